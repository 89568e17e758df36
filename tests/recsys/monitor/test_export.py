import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from embedding_store import EmbeddingStore
from recsys.monitor.export import HELP, dead_dimensions, exposition, read_records, samples, write_metrics
from tests.recsys.monitor.publishing import day_name, noisy, replay, write_record

LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of three days."""
    root = tmp_path_factory.mktemp("metrics")
    store = EmbeddingStore(root / "store")
    for day in range(3):
        gates = ["user_ctr: too little"] if day == 2 else []
        counted = {"calibration": 1.1, "rows": 200, "positives": 20}
        clicks, paid = {"ne": 0.9, "auc": 0.7, **counted}, {"deviance": 0.8, "concordance": 0.6, **counted}
        scored = {"click": clicks, "revenue": paid} if day else {}
        write_record(root / "ctr", day, replay(store, 1, noisy, first=day), gates=gates, progressive=scored)
    return root / "ctr"


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """A strict reader of the text format, version 0.0.4; families must be whole, HELP and TYPE first."""
    found, family, seen = {}, "", set()
    assert text.endswith("\n")
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in seen
            seen.add(family)
            assert next(lines) == f"# TYPE {family} gauge"
            continue
        match = LINE.fullmatch(line)
        assert match, line
        assert match[1] == family
        labels = LABEL.findall(match[2])
        unescaped = [(k, re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], v)) for k, v in labels]
        assert len({k for k, _ in unescaped}) == len(unescaped)
        key = (match[1], tuple(sorted(unescaped)))
        assert key not in found
        found[key] = float(match[3])
    return found


def test_prometheus_text_holds_the_newest_days_figures(folder: Path) -> None:
    write_metrics(folder, "ctr")
    found = parse((folder / "metrics.prom").read_text())
    record = read_records(folder)[-1]
    quality = record["quality"]

    def value(name: str, **labels: str) -> float:
        return found[f"recsys_refresh_{name}", tuple(sorted(labels.items()))]

    assert {name for name, _ in found} == {f"recsys_refresh_{name}" for name in HELP}
    assert value("version", series="item_ctr") == 3
    assert value("as_of_timestamp_seconds", series="user_ctr") == record["as_of"] / 1000
    assert value("coverage_ratio", series="user_ctr", by="event") == 1.0
    drift = quality["series"]["user_ctr"]["drift"]
    assert value("drift_cosine", series="user_ctr", entities="day", quantile="0.5") == drift["day_cosine"]["0.5"]
    skew = quality["pair"]["skew"]
    assert value("skew_auc", upstream="ctr", users_behind="0", items_behind="2") == skew["auc"][0][2]
    assert value("gates_refused", upstream="ctr") == 1
    assert value("progressive_ne", upstream="ctr", task="click") == 0.9
    assert value("progressive_deviance", upstream="ctr", task="revenue") == 0.8
    assert value("stage_seconds", upstream="ctr", stage="train") == 14.5
    assert value("ageing_auc", upstream="ctr", days="2") == quality["pair"]["ageing"][2]["auc"]
    assert not any(dict(labels).get("days") == "14" for _, labels in found)  # undefined: no sample


def test_what_is_not_known_on_the_first_day_has_no_sample(folder: Path) -> None:
    found = parse(exposition(samples(read_records(folder)[0], "ctr")))
    names = {name.removeprefix("recsys_refresh_") for name, _ in found}
    scored = {name for name in HELP if name.startswith("progressive_")}
    assert names == set(HELP) - scored - {
        "coverage_ratio",
        "drift_cosine",
        "neighbour_overlap_ratio",
        "skew_loss_ratio",
    }


def test_labels_are_escaped() -> None:
    evil = 'a"b\\c\nd{}='
    ((_, labels),) = parse(exposition([("rows", {"series": evil}, 1.0)]))
    assert dict(labels) == {"series": evil}


def test_every_family_is_described_in_one_line() -> None:
    assert all(text and "\n" not in text and "\\" not in text for text in HELP.values())
    with pytest.raises(AssertionError):
        parse('# HELP a b\n# TYPE a gauge\na{x="1"} 1\na{x="1"} 2\n')  # the reader of this file is strict


def test_tensorboard_has_a_point_a_day_however_often_it_is_exported(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "ctr"
    (root / "days").mkdir(parents=True)
    for record in read_records(folder):
        (root / "days" / f"{record['day']}.json").write_text(json.dumps(record))
        write_metrics(root, "ctr")
        write_metrics(root, "ctr")
    assert len(list((root / "tensorboard").iterdir())) == 3
    # File by file: TensorBoard orders files by name, which two of one second and one process do not keep.
    boards = [EventAccumulator(str(path)).Reload() for path in (root / "tensorboard").iterdir()]

    def points_of(tag: str) -> list[ScalarEvent]:
        found = [point for board in boards if tag in board.Tags()["scalars"] for point in board.Scalars(tag)]
        return sorted(found, key=lambda point: point.step)

    points = points_of("user_ctr/drift_cosine/entities_day-quantile_0.5")
    assert [point.step for point in points] == [19_780, 19_781]
    assert points[0].wall_time == 2 * 86_400
    expected = read_records(folder)[-1]["quality"]["series"]["user_ctr"]["drift"]["day_cosine"]["0.5"]
    assert points[-1].value == pytest.approx(expected)
    assert [point.value for point in points_of("gates_refused")] == [0, 0, 1]
    assert len(points_of("skew_auc/users_behind_0-items_behind_0")) == 3


def test_without_records_nothing_is_written(tmp_path: Path) -> None:
    write_metrics(tmp_path, "ctr")
    assert list(tmp_path.iterdir()) == []


def test_records_come_by_day_and_unfinished_ones_do_not(tmp_path: Path) -> None:
    (tmp_path / "days").mkdir()
    for day in (3, 1, 2):
        (tmp_path / "days" / f"{day_name(day)}.json").write_text(json.dumps({"day": day_name(day)}))
    (tmp_path / "days" / ".half.json").write_text("{")
    assert [record["day"] for record in read_records(tmp_path)] == [day_name(day) for day in (1, 2, 3)]


def test_dead_dimensions() -> None:
    assert dead_dimensions({"dimensions": {"std": [0.0, 0.5, 1e-5]}}) == 2
    assert dead_dimensions({"dimensions": None}) is None
