"""The built-in model's measures against their definitions, and its training's ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce
from cce_core import datasets, tuning

scores = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30)


@given(scores.filter(lambda rows: len({label for _, label in rows}) == 2))
def test_auc_is_how_often_a_like_is_above_a_dislike(drawn):
    score, labels = (np.array(column, np.float32) for column in zip(*drawn, strict=True))
    pairs = [np.sign(a - b) for a in score[labels > 0.5] for b in score[labels < 0.5]]
    assert tuning.auc(score, labels) == pytest.approx(np.mean([(1 + sign) / 2 for sign in pairs]))


def tables(method="hash"):
    return tuple(cce.make_table(method, n, 8, num_bytes=700, seed=k) for k, n in enumerate((30, 50)))


def test_patience_ends_training_that_gains_nothing_and_the_best_tables_are_kept():
    split = datasets.Synthetic(900, 30, 50, dim=4, seed=1).split(300)
    said = []
    settings = tuning.Settings(epochs=50, batch_size=64, lr=0.5, weight_decay=0, patience=2)
    result = tuning.fit(tables(), split, settings, said.append, keep_best=True)
    assert len(said) == result.best_epoch + 2 < 50
    users, items = result.best
    score = tuning.GMF(users, items, None).score(split.valid)
    assert tuning.auc(score, split.valid.labels) == result.auc
    assert result.train_bytes > sum(table.ledger().total for table in result.best)
