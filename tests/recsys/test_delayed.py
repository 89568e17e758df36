"""Sales that come days after their rows, from the schema to upstreams and rankers; the log is synthetic.

A training at the end of eight days knows two thirds of the sales that will have come: who takes the others for none
learns rates that are too low.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedding_store import EmbeddingStore
from recsys.bundle.bundle import load_bundle
from recsys.bundle.write import train_bundle
from recsys.checks import check_daily
from recsys.config import DaysConfig, RefreshSettings, SpansConfig
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING
from recsys.data.seen import read_ids
from recsys.data.sizes import with_tables
from recsys.downstream.features import StoreFeatures
from recsys.downstream.training import RankerTraining, TrainedRanker, counted_tables, sized
from recsys.folders import bundle_folder, upstream_folder
from recsys.mistakes import MistakesError
from recsys.progressive import read_figures
from recsys.refresh.first import load_towers
from recsys.source import ranker_schema
from recsys.train import checkpoint
from recsys.train.distributed import Environment, process_group
from recsys.training_set import TrainingSet
from recsys.upstream import train_on
from tests.distributed import run_ranks
from tests.recsys.ads_log import RANKER, SPAN, START, TRUTH, sale_schema, sales, write, write_sales
from tests.recsys.test_ads_upstream import UPSTREAM, study, trained

SALES = replace(UPSTREAM, tasks=("sale",), training=replace(UPSTREAM.training, epochs=2))
ONCE = replace(SALES, training=replace(SALES.training, epochs=1))
RANK = replace(RANKER, tasks={"cvr": "sale"}, training=replace(RANKER.training, epochs=3))


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[Environment]:
    """One process group for all runs of this module."""
    with process_group() as running:
        yield running


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same log under a schema of each kind."""
    folder = tmp_path_factory.mktemp("sales")
    return {delayed: write_sales(folder / delayed, delayed) for delayed in ("ignored", "wait", "corrected")}


def share(logits: np.ndarray) -> float:
    """What a model expects over what is true."""
    return float((1 / (1 + np.exp(-logits))).mean() / TRUTH.click.mean())


def ranker(data: Path, out: Path, environment: Environment) -> TrainedRanker:
    config, tables = sized(RANK, data, NOTHING, told=False), counted_tables(RANK, data, NOTHING, told=False)
    schema = with_tables(ranker_schema(config, data, ("sale",)), tables)
    seen = read_ids(find_files(data, config.train), schema)
    features = StoreFeatures(EmbeddingStore(out / "store"), ())
    return RankerTraining(0, schema, config, data, features, seen, environment, NOTHING).train()


@pytest.mark.parametrize(
    ("delayed", "least", "most"), [("ignored", 0.0, 0.8), ("wait", 0.85, 1.15), ("corrected", 0.87, 1.13)]
)
def test_rates_that_are_learned(
    logs: dict[str, Path], tmp_path: Path, environment: Environment, delayed: str, least: float, most: float
) -> None:
    data = logs[delayed]
    _, said = trained(data, tmp_path, SALES, sale_schema(delayed))
    assert least < share(said[:, 0]) < most
    found = ranker(data, tmp_path, environment)
    assert least < share(found.logits[:, 0]) < most, "before the recalibration on rows whose sales are all known"
    labels, _, _ = found.of_task("cvr")
    assert labels.mean() == pytest.approx(TRUTH.click.mean(), abs=0.03)


def without_the_future(folder: Path, data: Path) -> Path:
    """The log as it was when its last training row came."""
    write_sales(folder, "ignored", rows=64)
    for name in ("schema.toml", "validation/a.parquet"):
        (folder / name).write_bytes((data / name).read_bytes())
    table = pq.read_table(data / "train/a.parquet")
    end = table["timestamp"].to_numpy().max()
    come = pa.array(np.nan_to_num(table["sold_at"].to_numpy(zero_copy_only=False), nan=np.inf) <= end)
    table = table.set_column(table.column_names.index("sale"), "sale", come.cast(pa.int8()))
    sold = pa.compute.if_else(come, table["sold_at"].combine_chunks(), pa.scalar(None, pa.int64()))
    pq.write_table(
        table.set_column(table.column_names.index("sold_at"), "sold_at", sold),
        folder / "train/a.parquet",
        row_group_size=2000,
    )
    return folder


def test_what_came_after_the_training_rows_teaches_nothing(
    logs: dict[str, Path], tmp_path: Path, environment: Environment
) -> None:
    known = without_the_future(tmp_path / "known", logs["corrected"])
    models = [ranker(data, tmp_path, environment) for data in (logs["corrected"], known)]
    np.testing.assert_array_equal(models[0].logits, models[1].logits)


def test_rows_that_are_open_do_not_choose_the_pass(
    logs: dict[str, Path], tmp_path: Path, environment: Environment
) -> None:
    """A log that ends with its validation rows does not know their sales yet."""
    data = tmp_path / "data"
    write_sales(data, "corrected")
    columns = sales(2000, 1, start=START + SPAN, span=86_400_000)
    sold, end = columns["sold_at"], START + SPAN + 86_400_000
    come = np.nan_to_num(sold.to_numpy(zero_copy_only=False), nan=np.inf) < end
    sold_at = pa.array(np.where(come, sold.fill_null(0).to_numpy(), 0), mask=~come)
    write(data, columns | {"sale": come.astype(np.int8), "sold_at": sold_at}, "validation")
    with pytest.raises(DataError, match=r"do not hold both a 0 and a 1 of label 'sale'.*window"):
        ranker(data, tmp_path, environment)


def test_a_bundle_of_a_delayed_label(logs: dict[str, Path], tmp_path: Path) -> None:
    train_bundle(RANK, "none", logs["corrected"], tmp_path, str(tmp_path / "store"))
    bundle = load_bundle(bundle_folder(tmp_path))
    assert "sold_at" not in bundle.schema.columns()
    rows = pq.read_table(logs["corrected"] / "validation/a.parquet")
    assert bundle.predict(rows)["cvr"].mean().item() == pytest.approx(TRUTH.click.mean(), abs=0.04)
    data = write_sales(tmp_path / "data", "corrected", rows=2000)
    write(data, sales(1000, 3, start=START + SPAN, span=86_400_000), "train")  # too young to measure delays by
    with pytest.raises(DataError, match="are needed to measure delays by"):
        train_bundle(RANK, "none", data, tmp_path / "anew", str(tmp_path / "store"))
    train_bundle(RANK, "none", data, tmp_path / "next", str(tmp_path / "store"), start=tmp_path)
    again = load_bundle(bundle_folder(tmp_path / "next"))
    (earlier,) = again.manifest.training["progressive"]
    assert earlier["tasks"]["sale"]["rows"] == 0, "nobody knows them yet"
    assert again.predict(rows)["cvr"].mean().item() == pytest.approx(TRUTH.click.mean(), abs=0.06)


def _day(data: Path, out: Path) -> None:
    """Train on a day from where the source's training ended."""
    schema = sale_schema("corrected")
    with process_group() as environment:
        start = checkpoint.latest(upstream_folder(out, "ads") / "checkpoints")
        assert start is not None
        files, as_of = find_files(data, ("day/*.parquet",)), START + SPAN + 86_400_000 - 1
        given = TrainingSet(files=files, schema=schema, data=data, as_of=as_of)
        options = {"out": out / "day", "store": out / "store", "title": None, "start": start}
        train_on(given, ONCE, ONCE.training, environment, **options)
        load_towers(out / "day/checkpoints", SALES, schema, environment)


def test_a_day_goes_on_with_the_delays_of_the_source(logs: dict[str, Path], tmp_path: Path) -> None:
    """No window of its rows has ended; two ranks train it together."""
    data, schema = logs["corrected"], sale_schema("corrected")
    write(data, sales(1000, 2, start=START + SPAN, span=86_400_000), "day")
    trained(data, tmp_path, ONCE, schema)
    run_ranks(_day, 2, data, tmp_path)
    states = []
    for folder in (upstream_folder(tmp_path, "ads"), tmp_path / "day"):
        holder = torch.nn.Module()
        holder.loss = torch.nn.Module()
        holder.loss.objective = torch.nn.Module()
        holder.loss.objective.register_buffer("delays", torch.zeros(1, 1024))
        checkpoint.load_model(folder / "checkpoints", holder, parts=("loss.",))
        states.append(holder.loss.objective.delays)
    assert torch.equal(*states)
    assert 0.2 < states[0].median() < 0.5
    figures = read_figures(tmp_path / "day")
    assert figures["sale"]["rows"] == 0, "nobody knows them yet"
    assert figures["sale"]["ne"] is None


def test_a_day_cannot_wait(tmp_path: Path) -> None:
    """It is trained on once, when it ends."""
    data = write_sales(tmp_path, "wait", rows=600)
    days = [f"2023-11-{day}" for day in range(23, 28)]
    for number, day in enumerate(days):
        write(data, sales(300, 3 + number, start=START + SPAN, span=1000), f"days/{day}")
    plan = DaysConfig(events="days/{day}/*.parquet", first=days[0], last=days[-1])
    spans = SpansConfig(train=(days[0], days[2]), validation=(days[3], days[3]), test=(days[4], days[4]))
    config = replace(study(SALES, {"cvr": "sale"}), refresh=RefreshSettings(days=plan), spans=spans)
    with pytest.raises(
        MistakesError, match=r"label 'sale' .*waits for a window of 7d, and a day of 24 hours is trained"
    ):
        check_daily(config, data)
    sale_schema("corrected").save(data / "schema.toml")
    assert check_daily(config, data) == []
