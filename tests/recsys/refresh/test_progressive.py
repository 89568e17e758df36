"""recsys/progressive.py, seen from the cycles that score their days by it."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import LossConfig
from recsys.data.convert import to_batch
from recsys.evaluate.metrics import normalized_entropy, roc_auc
from recsys.models.derm import DERM
from recsys.models.losses import DermTask
from recsys.source import upstream_schema
from recsys.train.checkpoint import load_model
from recsys.train.tables import allocate
from tests.recsys.refresh.daily_example import DAYS, daily_config, records

CONFIG = daily_config()
pytestmark = pytest.mark.usefixtures("no_pages")


def test_a_day_is_scored_by_the_model_of_the_day_before(two_days: tuple[Path, Path], tmp_path: Path) -> None:
    """As a plain model does that is loaded from that checkpoint; no figure is of a model that has seen the day."""
    data, out = two_days
    upstream, schema = CONFIG.upstream, upstream_schema(CONFIG.upstream, data, out)
    labels = [label.name for label in schema.labels]
    for record, day in zip(records(out), DAYS, strict=False):
        model = allocate(DERM(schema, upstream.model, labels))
        load_model(out / record.start, DermTask(model, LossConfig(contrastive_weight=0), labels, None))
        batch = to_batch(pq.ParquetFile(data / f"days/{day}/part-0.parquet").read(), schema)
        with torch.no_grad():
            logits = model.eval()(model.vocabulary.resolve(batch)).logits.numpy()
        assert record.progressive.keys() == set(labels)
        for task, label in enumerate(labels):
            mask = batch.label_mask[:, task].numpy()
            known, said = batch.labels[:, task].numpy()[mask], logits[mask, task]
            found = record.progressive[label]
            assert (found["rows"], found["positives"]) == (mask.sum(), known.sum())
            assert found["ne"] == pytest.approx(normalized_entropy(known, said), rel=1e-4)
            assert found["auc"] == pytest.approx(roc_auc(known, said), rel=1e-4)
