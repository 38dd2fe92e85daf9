"""Budgets: never more bytes than the full table's where the vocabulary is known, and a word of warning where it would be more."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

import cce_core as cce
from cce_core.method import get_method

BUDGETED = [m.name for m in cce.methods() if m.budgeted]
KINDS = ("num_params", "num_bytes")


def made(method, vocab, dim, **more):
    """The table (None where the budget is too small) and the warnings that it came with."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            table = cce.make_table(method, vocab, dim, seed=0, **more)
        except cce.BudgetError:
            table = None
    return table, said


def least_bytes(method, vocab, dim, kind, **more):
    """Stored bytes at the least budget that is not refused, by bisection."""
    low, high = 0, 1 << 24
    while high - low > 1:
        middle = (low + high) // 2
        table, _ = made(method, vocab, dim, **{kind: middle}, **more)
        low, high = (middle, high) if table is None else (low, middle)
    return strategies.served(made(method, vocab, dim, **{kind: high}, **more)[0]).ledger().total


@pytest.mark.parametrize("method", BUDGETED)
@given(data=st.data())
def test_no_table_outgrows_the_full_one(method, data):
    vocab, dim = data.draw(st.integers(1, 60) | st.integers(61, 3000)), data.draw(st.sampled_from([2, 4, 8, 12, 16]))
    rule, more = get_method(method), {"n_chunks": 2}
    if rule.codecs:
        more["codec"] = data.draw(st.sampled_from(["float32", "bfloat16", "int8", "int4"]))
    if rule.projects and method != "ldim":
        more["rank"] = data.draw(st.sampled_from([None, 0, "auto", 2]))
    if method.startswith("sparse"):
        more["n_atoms"] = min(2, vocab)
    kind = data.draw(st.sampled_from(KINDS))
    full = {"num_params": vocab * dim, "num_bytes": 4 * vocab * dim}
    # about the full table's size as often as far off it
    budget = data.draw(st.integers(1, 2 * full[kind]) | st.sampled_from([full[kind], full[kind] + 1, 65_536, 2**62]))
    table, said = made(method, vocab, dim, **{kind: budget}, **more)
    if table is None:
        return
    table = strategies.served(table)
    stored = table.ledger().total
    assert stored == sum(array.nbytes for array in table.arrays().values())
    if stored > full["num_bytes"]:
        assert stored == least_bytes(method, vocab, dim, kind, **more)
        assert len(said) == 1
    assert budget <= full[kind] or len(said) == 1
    within = min(budget, full[kind]) if stored <= full["num_bytes"] else budget
    assert (table.num_params if kind == "num_params" else stored) <= within
    for warning in said:
        assert warning.category is UserWarning
        assert warning.filename == __file__  # the caller's line
        text = str(warning.message)
        for part in (
            f"{budget:,} ",
            repr(method),
            f"{full['num_bytes']:,} bytes",
            f"{stored:,} bytes",
            "method='full'",
        ):
            assert part in text


def test_budgets_below_the_full_table_are_left_alone():
    """Every method at a fair budget: no warning, and the sizes of a table without a vocabulary where it can do without one."""
    for method in BUDGETED:
        table, said = made(method, 5000, 16, num_params=16_000)
        assert not said
        assert table.ledger().ratio > 1
    for method in ("hash", "bloom", "hemb", "rhemb", "ce", "robe", "hnet"):
        bounded, _ = made(method, 5000, 16, num_params=16_000)
        unbounded, said = made(method, None, 16, num_params=16_000)
        assert (bounded.spec.sizes, said) == (unbounded.spec.sizes, [])


def test_what_takes_every_id_has_no_full_table_to_outgrow():
    table, said = made("hash", None, 16, num_params=65_536)
    assert (table.num_params, said) == (65_536, [])


def test_a_budget_is_only_a_limit_to_a_table_that_is_as_large_as_it_is():
    for method in ("full", "int8", "int4"):
        table, said = made(method, 3, 16, num_params=65_536)
        assert (table.num_params, said) == (48, [])


@pytest.mark.parametrize("method", BUDGETED)
def test_the_smallest_tables_are_made_with_a_word_rather_than_refused(method):
    for vocab in (1, 2, 3, 4, 10):
        more = {"n_atoms": 1} if method.startswith("sparse") else {}
        table, said = made(method, vocab, 16, num_params=65_536, **more)
        assert len(said) == 1
        assert table.lookup(np.arange(vocab)).shape == (vocab, 16)


@pytest.mark.filterwarnings("default")
def test_a_loop_over_columns_warns_of_a_table_once():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(5):
            for vocab in (3, 10, 100_000):
                cce.make_table("cce", vocab, 16, num_params=65_536, seed=0)
    assert ["vocab 3 " in str(w.message) or "vocab 10 " in str(w.message) for w in said] == [True, True]


def test_a_budget_that_is_too_small_is_refused_as_ever():
    for budget in ({"num_params": 10}, {"num_bytes": 10}):
        with pytest.raises(cce.BudgetError, match="too few"):
            cce.make_table("cce", 3, 16, **budget)


@pytest.mark.parametrize("method", ["full", "int8", "int4"])
def test_a_method_without_a_budget_warns_where_a_rank_makes_it_larger_than_the_full_table(method):
    with pytest.warns(UserWarning, match="more than the 4,096 of the full one"):
        cce.make_table(method, 16, 64, rank=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cce.make_table(method, 1000, 64, rank=8)


@pytest.mark.parametrize(
    ("plain", "short"),
    [
        ("low_dim", "ldim"), ("hash_embedding", "hemb"), ("robe_hash_embedding", "rhemb"), ("quotient_remainder", "qr"),
        ("hashed_net", "hnet"), ("tensor_train", "tt"), ("deep_hash", "dhe"), ("product_quantization", "pq"),
        ("vector_quantization", "vq"), ("sparse_codes", "sparse"), ("sparse_hashed_codes", "sparse2"),
    ],
)  # fmt: skip
def test_plain_names_are_the_short_ones(plain, short):
    assert cce.make_table(plain, 500, 8, num_params=600).spec == cce.make_table(short, 500, 8, num_params=600).spec


def test_residual_vector_quantization_has_two_stages():
    spec = cce.make_table("residual_vector_quantization", 500, 8, num_params=600).spec
    assert (
        spec
        == cce.make_table("rvq", 500, 8, num_params=600).spec
        == cce.make_table("vq", 500, 8, num_params=600, stages=2).spec
    )
