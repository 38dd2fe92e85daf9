"""scikit-learn's protocol for estimators, without it: parameters, names of columns, kinds of output, routing of metadata.

scikit-learn, pandas and polars are imported only where a caller who has them asks for what they make.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cce_core import _check

OUTPUTS = ("default", "pandas", "polars")
_SHOWN = 5  # names in an error


def column_names(X: Any) -> NDArray[np.object_] | None:
    """The names of a data frame's columns, where all are text; None where X has no names.

    Raises:
        TypeError: some are text, others are not.
    """
    if isinstance(X, np.ndarray):
        return None
    found = getattr(X, "column_names", None)  # pyarrow's `columns` are the arrays
    names = list(getattr(X, "columns", ()) if found is None else found)
    text = [isinstance(name, str) for name in names]
    if any(text) and not all(text):
        kinds = sorted({type(name).__qualname__ for name in names})
        raise TypeError(
            f"Feature names are only supported if all input features have string names, but your input has {kinds} as "
            f"feature name / column name types; convert them: X.columns = X.columns.astype(str)"
        )
    return np.array(names, dtype=object) if names and all(text) else None


def _listed(title: str, names: set[str]) -> str:
    shown = sorted(names)[:_SHOWN] + ["..."] * (len(names) > _SHOWN)
    return "".join([title, "\n", *(f"- {name}\n" for name in shown)]) if names else ""


class Protocol:
    """Parameters by the names of the constructor's arguments, which it stores as they are and `fit` checks.

    Attributes:
        feature_names_in_: the names of the columns that `fit` saw, where it saw a data frame with names.
        n_features_in_: how many there were.
    """

    feature_names_in_: NDArray[np.object_]
    n_features_in_: int
    seed: Any
    random_state: Any

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, by name; `deep` changes nothing."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor by name.

        Raises:
            ValueError: there is no such argument; none is set then.
        """
        for name in params:
            _check.choice("parameter", name, tuple(self._names()))
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        hidden = {name for name in ("n_threads", "random_state") if getattr(self, name, None) is None}
        shown = {name: repr(value) for name, value in self.get_params().items() if name not in hidden}
        if not isinstance(getattr(self, "init", ""), str):
            shown["init"] = "'<array>'"
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def _drawn_seed(self) -> int:
        """The seed of a fit: `random_state` if there is one (a generator moves on by a draw), else `seed`."""
        state = self.random_state
        if state is None:
            return _check.seed(self.seed)
        if hasattr(state, "integers"):
            return int(state.integers(2**64, dtype=np.uint64))
        if hasattr(state, "randint"):  # a RandomState, or the module np.random
            return int(state.randint(2**64, dtype=np.uint64))
        if isinstance(state, bool) or not isinstance(state, (int, np.integer)):
            raise TypeError(
                f"random_state must be a whole number, a NumPy generator or None, got {state!r} of type "
                f"{type(state).__name__}"
            )
        return _check.integer("random_state", state, 0, 2**64 - 1)

    # Columns

    def _remember(self, names: NDArray[np.object_] | None, d: int) -> None:
        """What `fit` saw."""
        self.n_features_in_ = d
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_names(self, X: Any) -> None:
        """ValueError where X has other names of columns than `fit` saw, or in another order; a warning where one has none."""
        here, known = column_names(X), getattr(self, "feature_names_in_", None)
        name = type(self).__name__
        if known is None and here is not None:
            warnings.warn(f"X has feature names, but {name} was fitted without feature names", stacklevel=4)
        elif known is not None and here is None:
            warnings.warn(
                f"X does not have valid feature names, but {name} was fitted with feature names", stacklevel=4
            )
        elif known is not None and here is not None and here.tolist() != known.tolist():
            unseen, missing = set(here) - set(known), set(known) - set(here)
            what = _listed("Feature names unseen at fit time:", unseen) + _listed(
                "Feature names seen at fit time, yet now missing:", missing
            )
            what = what or "Feature names must be in the same order as they were in fit.\n"
            raise ValueError(f"The feature names should match those that were passed during fit.\n{what}")

    def _check_width(self, shape: tuple[int, ...]) -> None:
        if len(shape) == 2 and shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                f"input (coordinates a point)"
            )

    def _names_out(self, n: int, input_features: Any) -> NDArray[np.object_]:
        """`get_feature_names_out` for n columns, named after the class; `input_features` are checked alone."""
        if input_features is not None:
            given = np.asarray(input_features, dtype=object)
            if hasattr(self, "feature_names_in_") and given.tolist() != self.feature_names_in_.tolist():
                raise ValueError("input_features is not equal to feature_names_in_")
            if len(given) != self.n_features_in_:
                raise ValueError(
                    f"input_features should have length equal to number of features ({self.n_features_in_}), "
                    f"got {len(given)}"
                )
        prefix = type(self).__name__.lower()
        return np.array([f"{prefix}{i}" for i in range(n)], dtype=object)

    # Kinds of output

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what `transform` and `fit_transform` return.

        Args:
            transform: "default", an array; "pandas" or "polars", a data frame with the columns of
                `get_feature_names_out` (and the index of X); None changes nothing.

        Raises:
            ValueError: none of these.
        """
        if transform is not None:
            config = {"transform": _check.choice("transform", transform, OUTPUTS)}
            self._sklearn_output_config = config  # the name that scikit-learn's clone copies
        return self

    def _in_container(self, out: NDArray[Any], names: NDArray[np.object_], X: Any) -> Any:
        """`out` as `set_output` asks, or else scikit-learn's own configuration where it is loaded."""
        config: dict[str, Any] = getattr(sys.modules.get("sklearn"), "get_config", dict)()
        kind = getattr(self, "_sklearn_output_config", {}).get("transform", config.get("transform_output", "default"))
        if _check.choice("transform_output", kind, OUTPUTS) == "default":
            return out
        try:
            library: Any = importlib.import_module(kind)
        except ImportError as error:
            raise ImportError(f"output of kind {kind!r} needs {kind}: pip install {kind}") from error
        if kind == "polars":
            return library.DataFrame(out, schema=list(names), orient="row")
        index = X.index if isinstance(X, library.DataFrame) else None
        return library.DataFrame(out, index=index, columns=names, copy=False)

    # What scikit-learn alone asks for

    def __sklearn_tags__(self) -> Any:
        """What kind of estimator this is."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=InputTags(),
        )

    def get_metadata_routing(self) -> Any:
        """Which metadata, such as `sample_weight`, each method asks a meta-estimator for."""
        from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object

        if hasattr(self, "_metadata_request"):
            return get_routing_for_object(self._metadata_request)
        request = MetadataRequest(owner=type(self).__name__)
        for method in ("fit", "partial_fit", "score"):
            for name in self._metadata_of(method):
                getattr(request, method).add_request(param=name, alias=None)
        return request

    def _metadata_of(self, method: str) -> list[str]:
        parameters = inspect.signature(getattr(self, method)).parameters if hasattr(self, method) else ()
        return [name for name in parameters if name not in ("X", "y")]

    def _ask(self, method: str, asked: dict[str, Any]) -> Self:
        from sklearn import get_config
        from sklearn.utils.metadata_routing import UNCHANGED

        if not get_config().get("enable_metadata_routing"):
            raise RuntimeError(
                "This method is only available when metadata routing is enabled. You can enable it using "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        allowed = self._metadata_of(method)
        if set(asked) - set(allowed):
            raise TypeError(
                f"Unexpected args: {set(asked) - set(allowed)} in {method}. Accepted arguments are: {allowed}"
            )
        request = self.get_metadata_routing()
        for name, alias in asked.items():
            if alias is not UNCHANGED:
                getattr(request, method).add_request(param=name, alias=alias)
        self._metadata_request = request  # the name that scikit-learn's clone copies
        return self

    def set_fit_request(self, **asked: Any) -> Self:
        """Whether meta-estimators pass metadata to `fit`: `sample_weight=True`, False, None or the name it comes under."""
        return self._ask("fit", asked)

    def set_score_request(self, **asked: Any) -> Self:
        """The same for `score`."""
        return self._ask("score", asked)
