from dataclasses import replace
from pathlib import Path

import pytest

from recsys.data.files import find_files
from recsys.data.schema import SchemaError
from recsys.data.synthetic import market_schema, market_split, prepare_synthetic
from recsys.evaluate.metrics import roc_auc
from recsys.study.oracle import oracle_scores


def test_oracle_scores_follow_the_files(tmp_path: Path) -> None:
    prepare_synthetic(tmp_path, users=100, items=100, days=6, events_per_day=400, upstream_days=2)
    schema = market_schema()
    files = find_files(tmp_path, market_split(days=6, upstream_days=2).test)
    labels, scores = oracle_scores(files, schema, "click")
    assert labels.shape == scores.shape == (2 * 400,)
    assert roc_auc(labels, scores) > 0.7
    conversions, _ = oracle_scores(files, schema, "conversion")
    assert len(conversions) == labels.sum()
    with pytest.raises(SchemaError, match="no outcome 'oracle_click'"):
        oracle_scores(files, replace(schema, outcomes=()), "click")
