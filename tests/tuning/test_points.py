"""What is drawn and recommended: the frontier, its nearest rivals, and the smallest point that loses little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cce_core.tuning import points
from cce_core.tuning.points import ALIKE, FULL, SIGN, Point


def point(label: str, size: float, value: float, metric: str = "auc", seeds: int = 1) -> Point:
    runs = tuple({"bytes": size, "train_bytes": 3 * size, metric: value, "seed": k} for k in range(seeds))
    return Point(label, "", runs)


sizes = st.integers(1, 40).map(lambda k: 100 * k)
sweeps = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.lists(st.tuples(sizes, st.integers(1, 99)), min_size=1, max_size=5),
    min_size=1,
)


def lines(drawn, metric):
    return {label: [point(label, x, y / 100, metric) for x, y in line] for label, line in drawn.items()}


@given(sweeps, st.sampled_from(["auc", "logloss"]))
def test_the_frontier_is_what_nothing_smaller_equals(drawn, metric):
    """Against the definition: every point with every other."""
    found = lines(drawn, metric)
    everything = [(p.x("bytes"), SIGN[metric] * p.mean(metric)) for line in found.values() for p in line]
    edge = [(p.x("bytes"), SIGN[metric] * p.mean(metric)) for p in points.frontier(found, "bytes", metric)]
    assert edge == sorted(set(edge))
    strict = {
        (x, y) for x, y in everything if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in everything)
    }  # fmt: skip
    assert set(edge) <= strict
    for x, y in strict - set(edge):  # left out for one of its size that is better
        assert any(x < a <= x * ALIKE ** len(everything) and b > y for a, b in edge)


def test_methods_of_the_frontier_come_first_and_then_the_nearest():
    found = {
        "far": [point("far", 100, 0.5)], "near": [point("near", 100, 0.69), point("near", 200, 0.5)],
        "best": [point("best", 90, 0.7)], "small": [point("small", 10, 0.6)], FULL: [point(FULL, 1000, 0.9)],
    }  # fmt: skip
    assert points.nearest(found, most=3) == ["small", "best", "near"]
    assert points.nearest(found, most=1) == ["small", "best"]
    assert points.nearest(found, most=9) == ["small", "best", "near", "far"]


@given(sweeps, st.sampled_from([0.0, 0.01, 0.1]), st.booleans())
def test_what_is_recommended_loses_little_and_is_the_smallest_that_does(drawn, loss, with_full):
    found = lines(drawn, "auc")
    rivals = [p for line in found.values() for p in line]
    if with_full:
        found[FULL] = [point(FULL, 2000, 0.5)]
    best = points.recommend(found, loss)
    reference = 0.5 if with_full else max(p.mean("auc") for p in rivals)
    fitting = [p for p in rivals if p.mean("auc") >= reference - loss and (p.x("bytes") < 2000 or not with_full)]
    if not fitting:
        assert best.point is None
        assert "Nothing smaller" in str(best)
    else:
        assert best.point in fitting
        assert best.point.x("bytes") <= ALIKE * min(p.x("bytes") for p in fitting)
        assert best.point.label in str(best)


@pytest.mark.parametrize(
    ("metric", "reference", "value", "said"),
    [
        ("auc", 0.8, 0.797, "loses 0.003 AUC"),
        ("auc", 0.8, 0.81, "gains 0.010 AUC"),
        ("auc", 0.8, 0.8001, "loses no AUC"),
        ("logloss", 0.5, 0.504, "loses 0.004 log loss"),
        ("score", 3.0, 3.5, "gains 0.500 score"),
    ],
)
def test_the_sentence(metric, reference, value, said):
    found = {FULL: [point(FULL, 9_067_392, reference, metric, 3)], "vq": [point("vq", 87_900, value, metric, 3)]}
    best = points.recommend(found, 0.005, metric)
    assert str(best) == f"Your two tables take 9.1 MB. vq at 88 KB {said}. Means of 3 seeds."
    best = points.recommend(found, 0.005, metric, "train_bytes")
    assert best.sentence == f"Your two tables take 9.1 MB (27 MB in training). vq at 88 KB (264 KB in training) {said}."
    alone = points.recommend({"vq": found["vq"]}, 0.005, metric)
    assert alone.point is alone.reference
    assert alone.sentence.startswith("The best of all, vq, takes 88 KB. vq at 88 KB loses no ")


def test_what_was_not_measured_is_no_advice():
    with pytest.raises(ValueError, match="no run of these has logloss and bytes"):
        points.recommend({"vq": [point("vq", 10, 0.5)]}, metric="logloss")
