"""scikit-learn's own checks of estimators, and its conventions beyond them: its own k-means is the oracle."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
from kmeans_problems import blobs, same_bits

from cce_core._jit import COMPILED
from cce_core.clustering import KMeans, MiniBatchKMeans

checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="install scikit-learn: pip install -e '.[test]'")
pd = pytest.importorskip("pandas", reason="install pandas: pip install -e '.[test]'")
import joblib  # noqa: E402  scikit-learn needs it
import scipy.sparse  # noqa: E402
import sklearn.cluster  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import FeatureUnion, make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils import estimator_html_repr  # noqa: E402

EACH = pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])
THEIRS = {KMeans: sklearn.cluster.KMeans, MiniBatchKMeans: sklearn.cluster.MiniBatchKMeans}
NAMES = ["a", "b", "c"]


def frame(n=60, seed=0):
    return pd.DataFrame(blobs(n, 3, 3, seed=seed).astype(np.float64), columns=NAMES, index=np.arange(n) + 100)


@pytest.mark.filterwarnings("ignore:.*does not inherit from `sklearn.base.BaseEstimator`:UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("estimator", [KMeans(), MiniBatchKMeans()], ids=lambda e: type(e).__name__)
def test_scikit_learns_checks(estimator):
    if not COMPILED:
        estimator.set_params(n_iter=2)
    results = checks.check_estimator(estimator, on_fail=None)
    assert len(results) > 40
    assert [(r["check_name"], r["exception"]) for r in results if r["status"] not in ("passed", "skipped")] == []
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}


def test_the_error_before_fit_is_scikit_learns_too():
    from sklearn.exceptions import NotFittedError

    for call in (KMeans().predict, KMeans().score):
        with pytest.raises(NotFittedError, match="call fit first"):
            call([[0.0]])
    with pytest.raises(NotFittedError, match="call fit first"):
        KMeans().get_feature_names_out()


# Names of columns


def outcome(call):
    """What a call ends in: its error, and its warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            call()
            error = None
        except Exception as raised:
            error = raised
    return type(error), str(error) if isinstance(error, ValueError) else "", [str(w.message) for w in seen]


SEEN = {
    "reordered": lambda x: x[["c", "b", "a"]],
    "renamed": lambda x: x.rename(columns={"b": "z"}),
    "missing": lambda x: x[["a", "b"]],
    "extra": lambda x: x.assign(z=1.0),
    "many": lambda x: pd.DataFrame(np.eye(9), columns=list("pqrstuvwx")),
    "numbered": lambda x: x.set_axis(range(3), axis=1),
    "mixed": lambda x: x.set_axis(["a", "b", 2], axis=1),
    "array": lambda x: x.to_numpy(),
    "list": lambda x: x.to_numpy().tolist(),
    "narrow array": lambda x: x.to_numpy()[:, :2],
    "same": lambda x: x,
}


@EACH
@pytest.mark.parametrize("fitted", ["same", "array", "numbered"])
def test_columns_are_held_to_their_names(estimator, fitted):
    mine, theirs = (kind(3).fit(SEEN[fitted](frame())) for kind in (estimator, THEIRS[estimator]))
    again = "fit" if estimator is KMeans else "partial_fit"  # the first forgets
    for seen, method in itertools.product(SEEN, ["predict", "transform", "score", again]):
        x = SEEN[seen](frame())
        both = copy.deepcopy((theirs, mine)) if method == again else (theirs, mine)
        expected, found = (outcome(functools.partial(getattr(km, method), x)) for km in both)
        assert found[0] is expected[0], (seen, method)
        assert found[2] == expected[2], (seen, method)
        if "features, but" in expected[1]:
            assert expected[1].rstrip(".") in found[1]
        else:
            assert found[1] == expected[1]


@EACH
def test_names_are_those_of_the_last_fit(estimator):
    km = estimator(2).fit(frame())
    assert km.feature_names_in_.tolist() == NAMES
    assert km.feature_names_in_.dtype == object
    assert not hasattr(km.fit(frame().to_numpy()), "feature_names_in_")
    km = estimator(2).fit(frame())
    with pytest.raises(ValueError, match="finite"):
        km.fit(frame().rename(columns={"a": "z"}) * np.nan)
    assert km.feature_names_in_.tolist() == NAMES
    stream = MiniBatchKMeans(2).partial_fit(frame()).partial_fit(frame())
    assert stream.feature_names_in_.tolist() == NAMES


# Kinds of output


class Polars(types.ModuleType):
    """As much of polars as is used."""

    class DataFrame(dict):
        def __init__(self, data, schema, orient):
            assert orient == "row"
            super().__init__(zip(schema, data.T))


@EACH
def test_set_output(estimator, monkeypatch):
    x = frame()
    km = estimator(3)
    plain = km.fit_transform(x)
    names = [f"{estimator.__name__.lower()}{i}" for i in range(3)]
    assert km.get_feature_names_out().tolist() == km.get_feature_names_out(NAMES).tolist() == names
    assert km.set_output(transform="pandas") is km
    for out in (km.transform(x), km.fit_transform(x), clone(km).set_output(transform=None).fit_transform(x)):
        assert isinstance(out, pd.DataFrame)
        assert out.columns.tolist() == names
        assert out.index.tolist() == x.index.tolist()
        assert same_bits(out.to_numpy(copy=True), plain)
    with warnings.catch_warnings(action="ignore"):
        assert km.transform(x.to_numpy()).index.tolist() == list(range(60))
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(km.set_output(transform="default").transform(x), np.ndarray)
        assert isinstance(estimator(3).fit(x).transform(x), pd.DataFrame)
    monkeypatch.setitem(sys.modules, "polars", Polars("polars"))
    out = km.set_output(transform="polars").transform(x)
    assert list(out) == names
    assert same_bits(np.stack(list(out.values()), axis=1), plain)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match="pip install polars"):
        km.transform(x)
    with pytest.raises(ValueError, match="transform must be one of default, pandas, polars; got 'arrow'"):
        km.set_output(transform="arrow")
    for wrong, message in ((["a", "c", "b"], "input_features is not equal"), (["a"], "input_features is not equal")):
        with pytest.raises(ValueError, match=message):
            km.get_feature_names_out(wrong)
    with pytest.raises(ValueError, match="length equal to number of features \\(3\\), got 1"):
        estimator(3).fit(x.to_numpy()).get_feature_names_out(["a"])


@EACH
def test_the_type_of_distances_is_that_of_the_data(estimator):
    x = blobs(30, 3, 2)
    for kind in (np.float32, np.float64):
        assert estimator(3).fit_transform(x.astype(kind)).dtype == kind


# Scores, seeds, parameters


@EACH
def test_score_is_minus_the_inertia(estimator):
    x, weights = frame(), np.arange(60) % 3
    for mass in (None, weights):
        km = estimator(3).fit(x, sample_weight=mass)
        assert km.score(x, sample_weight=mass) == -km.inertia_
        assert km.score(x, "ignored", mass) == km.score(x.astype(np.float64), sample_weight=mass)
    with pytest.raises(ValueError, match="sample_weight must have shape"):
        km.score(x, sample_weight=[1.0])
    narrow = blobs(60, 3, 3)
    km = estimator(3).fit(narrow)
    assert km.score(narrow) == pytest.approx(-km.inertia_, rel=1e-12)


@EACH
def test_random_state_is_another_name_of_the_seed(estimator):
    x = frame()

    def found(**options):
        return estimator(6, init="random", **options).fit(x).cluster_centers_

    assert same_bits(found(random_state=7), found(seed=7))
    assert same_bits(found(random_state=np.int64(7), seed=3), found(seed=7))
    assert same_bits(found(random_state=None, seed=3), found(seed=3))
    for make in (np.random.default_rng, np.random.RandomState):
        state = make(5)
        first, second = found(random_state=state), found(random_state=state)
        assert not same_bits(first, second)  # each fit draws anew
        assert same_bits(first, found(random_state=make(5)))
    state = np.random.default_rng(5)
    km = clone(estimator(3, random_state=state))
    assert km.get_params()["random_state"].bit_generator.state == state.bit_generator.state
    assert km.set_params(random_state=4).random_state == 4
    assert "random_state=4" in repr(km)
    assert "random_state" not in repr(estimator())
    found(random_state=np.random)
    for wrong, error in ((-1, ValueError), (2**64, ValueError), (1.5, TypeError), ("7", TypeError), (True, TypeError)):
        with pytest.raises(error, match="random_state must be"):
            found(random_state=wrong)


@EACH
def test_in_the_tools_of_scikit_learn(estimator):
    x = frame(90)
    km = estimator(3, random_state=0)
    pipe = make_pipeline(StandardScaler(), clone(km)).set_output(transform="pandas")
    assert pipe.fit(x).predict(x).shape == (90,)
    name = estimator.__name__.lower()
    assert (
        pipe.transform(x).columns.tolist() == pipe.get_feature_names_out().tolist() == [f"{name}{i}" for i in range(3)]
    )
    search = GridSearchCV(km, {"n_clusters": [1, 3], "random_state": [0, 1]}, cv=3).fit(x)
    assert search.best_params_["n_clusters"] == 3
    assert search.best_score_ == np.mean(cross_val_score(search.best_estimator_, x, cv=3))
    columns = ColumnTransformer([("k", clone(km), ["a", "b"])], remainder="passthrough").set_output(transform="pandas")
    assert columns.fit_transform(x).columns.tolist() == [f"k__{name}{i}" for i in range(3)] + ["remainder__c"]
    assert FeatureUnion([("one", clone(km)), ("two", clone(km))]).fit_transform(x).shape == (90, 6)
    km.fit(x)
    for other in (
        pickle.loads(pickle.dumps(km)),
        *joblib.Parallel(2)(joblib.delayed(type(km).fit)(km, x) for _ in "ab"),
    ):
        assert same_bits(other.predict(x), km.labels_)
        assert other.feature_names_in_.tolist() == NAMES
    for shown in (km, clone(km), pipe, estimator(2, init=np.zeros((2, 3)))):
        assert estimator.__name__ in estimator_html_repr(shown)
    assert km.__sklearn_tags__().estimator_type == "clusterer"
    assert sklearn.base.is_clusterer(km)


@EACH
def test_routing_of_metadata(estimator):
    x, weights = frame(), np.where(np.arange(60) < 30, 1.0, 0.0)
    with pytest.raises(RuntimeError, match="enable_metadata_routing=True"):
        estimator().set_fit_request(sample_weight=True)
    with sklearn.config_context(enable_metadata_routing=True):
        km = estimator(2).set_fit_request(sample_weight=True).set_score_request(sample_weight="mass")
        again = clone(km)
        for one in (km, again):
            routing = one.get_metadata_routing()
            assert routing.fit.requests["sample_weight"] is True
            assert routing.score.requests["sample_weight"] == "mass"
        pipe = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), again)
        pipe.fit(x, sample_weight=weights)
        plain = estimator(2).fit(StandardScaler().fit_transform(x), sample_weight=weights)
        assert same_bits(again.cluster_centers_, plain.cluster_centers_)
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match=r"sample_weight.*"):
            make_pipeline(StandardScaler().set_fit_request(sample_weight=False), estimator(2)).fit(
                x, sample_weight=weights
            )
        with pytest.raises(TypeError, match="Unexpected args: {'weight'}"):
            km.set_fit_request(weight=True)
        if estimator is MiniBatchKMeans:
            assert km.set_partial_fit_request(sample_weight=False).get_metadata_routing().partial_fit.requests == {
                "sample_weight": False
            }
    assert same_bits(estimator(2).fit(x, None, weights).labels_, estimator(2).fit(x, sample_weight=weights).labels_)


# What X may be


@EACH
def test_what_x_may_be(estimator):
    x = frame()
    labels = estimator(3).fit(x).labels_
    for same in (x.astype(object), x.astype("Float64"), np.asfortranarray(x.to_numpy()), x.to_numpy().tolist()):
        assert np.array_equal(estimator(3).fit(same).labels_, labels)
    assert estimator(2).fit(x > 0).cluster_centers_.dtype == np.float32
    for sparse in (scipy.sparse.csr_matrix(x), scipy.sparse.coo_array(x)):
        for call in (estimator().fit, estimator(2).fit(x.to_numpy()).predict, estimator(2).fit(x.to_numpy()).transform):
            with pytest.raises(TypeError, match=r"sparse one, which is not supported; use X.toarray\(\)"):
                call(sparse)
    for wrong, error, message in (
        (x.where(x > 0), ValueError, r"finite in float32, got nan at"),
        (x.astype("Float64").mask(x > 0), (TypeError, ValueError), "X must be"),
        (x.astype(str) + "x", ValueError, "could not convert string to float"),
        (x["a"], ValueError, "Reshape your data"),
        (pd.DataFrame({"t": pd.date_range("2020", periods=9)}), TypeError, "real numbers, got datetime64"),
    ):
        with pytest.raises(error, match=message):
            estimator(2).fit(wrong)
