"""What a bundle says is what its ranker said when it was trained; a bundle that is not sound says nothing."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import EmbeddingStore
from recsys.bundle.bundle import Bundle, load_bundle
from recsys.bundle.manifest import BundleError, Manifest
from recsys.bundle.write import train_bundle
from recsys.config import ConfigError, RankerConfig
from recsys.data.convert import to_batch
from recsys.data.errors import DataError
from recsys.data.files import find_files
from recsys.data.quarantine import NOTHING
from recsys.data.schema import Schema
from recsys.data.seen import read_ids
from recsys.data.sizes import with_tables
from recsys.downstream.features import StoreFeatures
from recsys.downstream.training import RankerTraining, TrainedRanker, counted_tables, sized
from recsys.folders import bundle_folder
from recsys.sealed import fingerprint
from recsys.source import ranker_schema
from recsys.train.distributed import process_group
from tests.distributed import run_ranks
from tests.recsys.bundle.conftest import ARM, CONFIG
from tests.recsys.downstream.example import SPLIT, publish_vectors

CHEAP = {"aot_inductor.precompile_headers": False, "aot_inductor.compile_wrapper_opt_level": "O0"}
"""AOTInductor's options where one program is compiled, and its speed does not matter."""
HISTORIES = {"mean": {"history": 2}, "attention": {"history": 3, "history_pooling": "attention"}}
"""Of two versions; the third place of those that are attended to stays empty."""


TABLES = {"learned": ("fine_tuned", "scratch"), "relations": ("attention", "attention")}
"""What is learned in place of users' and items' vectors."""


def trained_in_memory(config: RankerConfig, data: Path, store: Path, arm: str) -> TrainedRanker:
    """The same training, without checkpoints or a bundle."""
    names = config.series(config.arm(arm), 0)
    with process_group() as environment:
        config, tables = sized(config, data, NOTHING, told=False), counted_tables(config, data, NOTHING, told=False)
        schema = with_tables(ranker_schema(config, data, tuple(config.tasks.values())), tables)
        seen = read_ids(find_files(data, config.train), schema)
        history = config.arm(arm).history
        features = StoreFeatures(
            EmbeddingStore(store),
            names,
            config.publish_delay_ms,
            history=history,
            pooling=config.arm(arm).history_pooling,
            tables=config.arm(arm).learned(),
        )
        return RankerTraining(0, schema, config, data, features, seen, environment, NOTHING).train()


def rows_of(data: Path, patterns: tuple[str, ...]) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(path).read() for path in find_files(data, patterns)])


def said_in_training(trained: TrainedRanker, manifest: Manifest) -> dict[str, np.ndarray]:
    """Task -> recalibrated probabilities of the validation rows."""
    return {
        task.name: 1 / (1 + np.exp(-task.recalibration(trained.logits[:, number].astype(np.float64))))
        for number, task in enumerate(manifest.tasks)
    }


def of_kind(kind: str) -> RankerConfig:
    """A ranker with sequences; over tokens, the entire space is learned from."""
    if kind == "dlrm":
        return CONFIG
    if kind in HISTORIES:
        arms = [replace(arm, **HISTORIES[kind]) if arm.series else arm for arm in CONFIG.arms]
        return replace(CONFIG, arms=tuple(arms))
    if kind in TABLES:
        tables = dict(zip(("user_ctr", "item_ctr"), TABLES[kind], strict=True))
        arms = [replace(arm, tables=tables) if arm.name == ARM else arm for arm in CONFIG.arms]
        return replace(CONFIG, arms=tuple(arms), network=replace(CONFIG.network, frequency_adaptive=True))
    features = (*CONFIG.features, "clicked_items", "converted_items")
    network = replace(CONFIG.network, kind=kind, hidden=(8, 4), tokens=2)
    return replace(CONFIG, network=network, features=features, entire_space=True)


@pytest.mark.parametrize(
    ("arm", "kind"),
    [
        ("none", "dlrm"),
        *((ARM, kind) for kind in ("dlrm", "dhen", "attention", "relations")),
        *(pytest.param(ARM, kind, marks=pytest.mark.long) for kind in ("dcnv2", "mean", "learned")),
    ],
)
def test_scores_are_those_of_training_time(data: Path, store: Path, tmp_path: Path, arm: str, kind: str) -> None:
    config = of_kind(kind)
    if kind in HISTORIES:
        shutil.copytree(store, tmp_path / "store")
        store = tmp_path / "store"
        publish_vectors(data, store, later_ms=1000, turned=0.3)
    if kind == "relations":
        shutil.copytree(store, tmp_path / "store")
        store = tmp_path / "store"
        with EmbeddingStore(store).create("relation_ctr", dim=6).write(as_of=1, space="ctr-1") as writer:
            writer.append(torch.arange(2 * 7), torch.randn(2 * 7, 6, generator=torch.Generator().manual_seed(0)))
    train_bundle(config, arm, data, tmp_path, str(store))
    bundle = load_bundle(bundle_folder(tmp_path))
    trained = trained_in_memory(config, data, store, arm)
    wanted = said_in_training(trained, bundle.manifest)
    assert (trained.logits.std(axis=0) > 0.002).all()  # before the recalibration, which finds little to go by
    scores = bundle.predict(rows_of(data, SPLIT.validation))
    assert scores.keys() == {"ctr", "cvr"}
    for task, score in scores.items():
        np.testing.assert_allclose(score.numpy(), wanted[task], rtol=1e-5)
        assert len(np.unique(score.numpy())) > len(score) / 2
    if kind in HISTORIES:
        assert bundle.manifest.history_pooling == kind
        assert [pin.history for pin in bundle.manifest.pins] == [(1, 2), (1, 2)]
        EmbeddingStore(store).series("item_ctr").expire(keep_last=1, dry_run=False)
        with pytest.raises(BundleError, match=r"version 1 of .*item_ctr.*expired"):
            load_bundle(bundle_folder(tmp_path))
    few = rows_of(data, SPLIT.validation).slice(5, 1)
    np.testing.assert_allclose(bundle.predict(few)["ctr"].numpy(), wanted["ctr"][5:6], rtol=1e-5)
    assert [pin.series for pin in bundle.manifest.pins] == ([] if arm == "none" else ["user_ctr", "item_ctr"])


def test_each_task_is_predicted_by_the_pass_that_was_best_for_it(
    data: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the bundle, and in what it says of new rows when another goes on from it."""
    scores = {"now": iter(())}
    monkeypatch.setattr(RankerTraining, "_judge", lambda *_: next(scores["now"]))
    of_passes = ([0.7, 0.9], [0.8, 0.8], [0.9, 0.9])
    keen = replace(CONFIG, training=replace(CONFIG.training, epochs=5, dense_lr=0.02))
    scores["now"] = iter(of_passes)
    train_bundle(keen, ARM, data, tmp_path / "first", str(store))
    bundle = load_bundle(bundle_folder(tmp_path / "first"))
    assert bundle.manifest.training["best_passes"] == {"ctr": 1, "cvr": 2}
    scores["now"] = iter(of_passes)
    trained = trained_in_memory(keen, data, store, ARM)
    wanted, said = said_in_training(trained, bundle.manifest), bundle.predict(rows_of(data, SPLIT.validation))
    for task in ("ctr", "cvr"):
        np.testing.assert_allclose(said[task].numpy(), wanted[task], rtol=1e-5)
    for number, alone in enumerate((([0.7, 0.7], [0.8, 0.8]), ([0.8, 0.8], [0.7, 0.7], [0.8, 0.8]))):
        scores["now"] = iter(alone)  # one pass for both
        other = trained_in_memory(keen, data, store, ARM)
        np.testing.assert_array_equal(other.logits[:, number], trained.logits[:, number])
        assert not np.allclose(other.logits[:, 1 - number], trained.logits[:, 1 - number])
    scores["now"] = iter(of_passes)
    after = replace(keen, train=SPLIT.validation, validation=SPLIT.test)
    train_bundle(after, ARM, data, tmp_path / "second", str(store), start=tmp_path / "first")
    (before,) = Manifest.load(bundle_folder(tmp_path / "second")).training["progressive"]
    assert before["tasks"]["click"]["ne"] == pytest.approx(bundle.manifest.tasks[0].validation["ne"], rel=1e-4)
    assert before["tasks"]["conversion"]["ne"] == pytest.approx(bundle.manifest.tasks[1].validation["ne"], rel=1e-4)


def _trained(data: Path, out: Path, store: str) -> None:
    with process_group() as environment:
        assert environment.world_size == 2
        train_bundle(CONFIG, ARM, data, out, store)


def test_two_ranks_train_one_ranker_together(data: Path, store: Path, tmp_path: Path) -> None:
    run_ranks(_trained, 2, data, tmp_path, str(store))
    bundle = load_bundle(bundle_folder(tmp_path))
    assert bundle.manifest.training["ranks"] == 2
    for task in bundle.manifest.tasks:
        assert 0.4 < task.validation["ne"] < 5  # a handful of conversions
    scores = bundle.predict(rows_of(data, SPLIT.test))
    assert all(score.isfinite().all() for score in scores.values())
    lines = (tmp_path / "training/metrics.jsonl").read_text().splitlines()
    assert {"ne/click", "ne/conversion"} <= json.loads(lines[-1]).keys()


def test_a_training_that_is_there_is_gone_on_with(
    data: Path, store: Path, made: Path, tmp_path: Path, bundle: Bundle
) -> None:
    """The bundle is deleted, its training is not: nothing is trained again, and the same program comes out."""
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(bundle_folder(tmp_path))
    before = (tmp_path / "training/metrics.jsonl").read_text()
    train_bundle(CONFIG, ARM, data, tmp_path, str(store))
    assert (tmp_path / "training/metrics.jsonl").read_text() == before
    rows = rows_of(data, SPLIT.test)
    again = load_bundle(bundle_folder(tmp_path)).predict(rows)
    assert all(torch.equal(again[task], score) for task, score in bundle.predict(rows).items())


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 9), first=st.integers(0, 300), chunks=st.integers(1, 3))
def test_every_row_is_scored_by_itself(rows: int, first: int, chunks: int) -> None:
    """However many rows come together, in whatever form."""
    bundle, table, whole = _ROWS
    part = table.slice(first, rows)
    pieces = [part.slice(i * 3, 3) for i in range(chunks)] + [part.slice(chunks * 3)]
    for form in (part, pa.concat_tables(pieces)):
        for task, score in bundle.predict(form).items():
            torch.testing.assert_close(score, whole[task][first : first + rows])
    if rows:
        batch = to_batch(part, bundle.schema)
        torch.testing.assert_close(bundle.predict(batch)["ctr"], whole["ctr"][first : first + rows])


@pytest.fixture(autouse=True)
def _rows(bundle: Bundle, data: Path) -> None:
    """For the test above: Hypothesis wants no fixtures."""
    global _ROWS
    table = rows_of(data, SPLIT.test)
    _ROWS = (bundle, table, bundle.predict(table))


def test_who_has_no_vector_and_was_never_seen_is_scored_all_the_same(bundle: Bundle, data: Path) -> None:
    table = rows_of(data, SPLIT.test).slice(0, 3)
    column = table.schema.get_field_index("user_id")
    table = table.set_column(column, "user_id", pa.array([10**15, 10**15 + 1, 10**15], pa.int64()))
    scores = bundle.predict(table)
    assert all(score.isfinite().all() for score in scores.values())


def test_a_null_id_and_a_missing_column_are_named(bundle: Bundle, data: Path) -> None:
    table = rows_of(data, SPLIT.test).slice(0, 3)
    column = table.schema.get_field_index("item_id")
    with pytest.raises(DataError, match="item_id"):
        bundle.predict(table.set_column(column, "item_id", pa.array([1, None, 2], pa.int64())))
    with pytest.raises(DataError, match="price"):
        bundle.predict(table.drop_columns(["price"]))


def test_the_manifest_says_what_the_bundle_is_of(bundle: Bundle, made: Path, store: Path) -> None:
    manifest = bundle.manifest
    assert (manifest.name, manifest.arm, bundle.tasks) == ("tasks", ARM, ("ctr", "cvr"))
    assert [(pin.series, pin.version, pin.space, pin.dim) for pin in manifest.pins] == [
        ("user_ctr", 1, "ctr-1", 6),
        ("item_ctr", 1, "ctr-1", 6),
    ]
    assert Path(manifest.store) == store
    assert {path.name for path in made.iterdir()} == {*manifest.files, "bundle.json"}
    assert Schema.load(made / "schema.toml").labels == ()


@pytest.mark.parametrize("name", ["ranker.pt2", "schema.toml", "vocabulary.npz"])
def test_a_changed_byte_and_a_missing_file_are_refused_by_name(
    copied: tuple[Path, Path], refusal: Callable[[], str], name: str
) -> None:
    path = copied[0] / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert re.search(f"{name} is changed .other bytes than were written.*copy the bundle again", refusal())
    path.write_bytes(whole[:-1])
    assert re.search(f"{name} is changed .*bytes instead of", refusal())
    path.unlink()
    assert re.search(f"{name} is missing", refusal())


def test_a_folder_without_a_sound_manifest_is_no_bundle(copied: tuple[Path, Path], refusal: Callable[[], str]) -> None:
    path = copied[0] / "bundle.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": 7}))
    assert re.search("has format 7, this version reads 1", refusal())
    path.write_text("{")
    assert re.search("is damaged", refusal())
    path.unlink()
    assert re.search("is no bundle: it has no bundle.json", refusal())


def test_a_ranker_on_the_cpu_takes_no_vectors_from_a_gpu(made: Path) -> None:
    words = "vectors is 'cuda:1', but device 'cpu': .* leave vectors out, or give device='cuda:1'"
    with pytest.raises(BundleError, match=words):
        load_bundle(made, vectors="cuda:1")


def test_pinned_versions_that_are_gone_are_named(
    copied: tuple[Path, Path], refusal: Callable[[], str], data: Path
) -> None:
    folder, store = copied
    publish_vectors(data, store, later_ms=1000)
    assert load_bundle(folder, store=store).manifest.pins[0].version == 1  # a newer one changes nothing
    EmbeddingStore(store).series("item_ctr").expire(keep_last=1, dry_run=False)
    assert re.search("version 1 of .*item_ctr.*expired.*recsys repin", refusal())


def test_a_store_that_was_made_anew_is_refused(
    copied: tuple[Path, Path], refusal: Callable[[], str], data: Path
) -> None:
    shutil.rmtree(copied[1])
    assert re.search("no series 'user_ctr'.*no series 'item_ctr'", refusal())
    publish_vectors(data, copied[1], space="other-1")
    assert re.search(
        "version 1 of series 'user_ctr' has space 'other-1' and dim 6, the ranker has learned from 'ctr-1' and 6",
        refusal(),
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_the_compiled_program_says_the_same(
    data: Path, store: Path, made: Path, tmp_path: Path, bundle: Bundle
) -> None:
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(bundle_folder(tmp_path))
    with torch._inductor.config.patch(CHEAP):
        train_bundle(CONFIG, ARM, data, tmp_path, str(store), compiled=True)
    compiled = load_bundle(bundle_folder(tmp_path))
    assert compiled.manifest.compiled == "cpu"
    rows = rows_of(data, SPLIT.test)
    for count in (1, 2, 50):
        for task, score in compiled.predict(rows.slice(7, count)).items():
            torch.testing.assert_close(score, bundle.predict(rows.slice(7, count))[task], atol=1e-5, rtol=0)


def test_fingerprints_and_arms(made: Path, data: Path, store: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(made)
    assert all(fingerprint(made / name) == facts for name, facts in manifest.files.items())
    with pytest.raises(
        ValueError, match=r"arm 'ctr_item_user' is not in .* \(did you mean 'ctr_user'\?\); it has: none"
    ):
        train_bundle(CONFIG, "ctr_item_user", data, tmp_path, str(store))
    odd = replace(CONFIG, tasks={"ctr": "clik"})
    with pytest.raises(ValueError, match="clik"):
        train_bundle(odd, ARM, data, tmp_path, str(store))


def test_negatives_that_were_left_out_of_the_files_are_counted_in(
    data: Path, store: Path, tmp_path: Path, bundle: Bundle
) -> None:
    """A tenth of the zeros of `click` is in the files: the odds of a click are a tenth of those in the files."""
    schema = Schema.load(data / "market/schema.toml")
    labels = tuple(replace(x, kept_negatives=0.1) if x.name == "click" else x for x in schema.labels)
    replace(schema, labels=labels).save(data / "market/sampled.toml")
    train_bundle(replace(CONFIG, schema="market/sampled.toml"), ARM, data, tmp_path, str(store))
    sampled, rows = load_bundle(bundle_folder(tmp_path)), rows_of(data, SPLIT.test)
    before, after = (each.predict(rows) for each in (bundle, sampled))
    torch.testing.assert_close(after["ctr"].logit().exp(), 0.1 * before["ctr"].logit().exp())
    torch.testing.assert_close(after["cvr"], before["cvr"])
    for mine, others in zip(bundle.manifest.tasks, sampled.manifest.tasks, strict=True):
        assert mine.validation == others.validation


def test_a_sequence_without_a_length_is_refused_before_anything_is_trained(
    data: Path, store: Path, tmp_path: Path
) -> None:
    schema = Schema.load(data / "market/schema.toml")
    features = tuple(replace(x, max_length=0) if x.name == "clicked_items" else x for x in schema.features)
    replace(schema, features=features).save(data / "market/endless.toml")
    config = replace(of_kind("dhen"), schema="market/endless.toml")
    with pytest.raises(ConfigError, match="sequence 'clicked_items' has no max_length"):
        train_bundle(config, ARM, data, tmp_path, str(store))
    assert not (tmp_path / "training/checkpoints").exists()
