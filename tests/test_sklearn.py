"""scikit-learn's own checks of estimators."""

from __future__ import annotations

import pytest

from cce_core._jit import COMPILED
from cce_core.clustering import KMeans, MiniBatchKMeans

checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="install scikit-learn: pip install -e '.[test]'")


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
    assert skipped <= {"check_sample_weights_pandas_series", "check_array_api_input"}


def test_the_error_before_fit_is_scikit_learns_too():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError, match="call fit first"):
        KMeans().predict([[0.0]])
