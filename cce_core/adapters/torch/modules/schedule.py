"""When to cluster while training: a few times in the first two thirds, then rest; what has rows until then, once and late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from cce_core import _check
from cce_core.adapters.torch.modules.learning import cluster_tables, learning
from cce_core.adapters.torch.modules.module import Compressed, Optimizers
from cce_core.learning.cluster import ClusterReport
from cce_core.method.spec import ROWS

_TIMES = 6  # more often was not found to be better


class ClusterSchedule:
    """Says when a model's tables are clustered, and does it: in a plain loop, as a Lightning callback, as one of Hugging Face's.

    With several epochs: after an epoch, at most six times, evenly over the first two thirds, so that the model can rest after the
    last. With steps alone, as in one single epoch: after a quarter and a half of them.

    Tables of `vq`, whose ids have rows while they learn, are clustered once: after three quarters of the epochs, so that shared
    rows are tuned in the last; with one epoch, or steps alone, at the very end.

        schedule = ClusterSchedule(epochs=12)              # or steps=total
        for epoch in range(12):
            ...
            schedule.after_epoch(model, optimizer)         # or after_step, behind every optimizer.step()

    The same object is a callback: `lightning.Trainer(callbacks=[ClusterSchedule()])`, `transformers.Trainer(…, callbacks=[…])`.
    There, without epochs and steps, it takes the trainer's own numbers when training begins: epochs where there are several,
    else optimiser steps.

    Args:
        epochs: of the whole training, at least 2 (1, where all tables that learn are of `vq`), or
        steps: of the whole training, at least 4: how often an optimiser steps.
        times: how often to cluster, evenly over the first two thirds; None is as above.
        settings: as for `cluster_`, such as `weights` or `averaged`.

    Raises:
        ValueError: both are given, or are too few.

    Example:
        >>> from cce_core.adapters.torch import ClusterSchedule
        >>> ClusterSchedule(epochs=20).at, ClusterSchedule(steps=1000).at
        ((2, 4, 6, 8, 10, 13), (250, 500))
        >>> ClusterSchedule(epochs=3).at, ClusterSchedule(steps=900, times=3).at
        ((1, 2), (200, 400, 600))
        >>> ClusterSchedule(epochs=20).late, ClusterSchedule(steps=1000).late
        (15, 1000)
    """

    def __init__(
        self, epochs: int | None = None, steps: int | None = None, *, times: int | None = None, **settings: Any
    ) -> None:
        self.times = None if times is None else _check.integer("times", times, 1)
        self.settings = settings
        self.unit, self.at, self.late, self.count = "", tuple[int, ...](), 0, 0
        self.reports: list[dict[str, ClusterReport]] = []  # of every clustering
        if epochs is not None and steps is not None:
            raise ValueError(f"give epochs or steps, not both; got {epochs!r} and {steps!r}")
        if epochs is not None:
            self._set_out("epoch", _check.integer("epochs", epochs, 1))
        elif steps is not None:
            self._set_out("step", _check.integer("steps", steps, 4))

    def _set_out(self, unit: str, total: int) -> None:
        """Settle after which epochs or steps."""
        self.unit, self.late = unit, total if unit == "step" else max(1, 3 * total // 4)
        last = 2 * total // 3
        if unit == "step" and self.times is None:
            self.at = (total // 4, total // 2)
        else:
            times = min(self.times or _TIMES, last)  # none in a single epoch
            self.at = tuple(sorted({last * k // times for k in range(1, times + 1)}))

    def __repr__(self) -> str:
        return f"ClusterSchedule(after {self.unit}s {self.at})" if self.unit else "ClusterSchedule()"

    # --- a plain loop -------------------------------------------------------------------------------------------------

    def after_epoch(self, model: nn.Module, optimizer: Optimizers = None) -> dict[str, ClusterReport]:
        """Call it when an epoch is done; clusters the tables where it is time.

        Args:
            model: whose tables are clustered.
            optimizer: a torch optimiser, or several, whose moments go along.

        Returns:
            The reports by table, or an empty dict where it was not time.

        Raises:
            RuntimeError: the schedule knows neither epochs nor steps.
        """
        return self._now("epoch", None, model, optimizer)

    def after_step(self, model: nn.Module, optimizer: Optimizers = None) -> dict[str, ClusterReport]:
        """Call it behind every step of the optimiser; else as `after_epoch`."""
        return self._now("step", None, model, optimizer)

    def _now(self, unit: str, count: int | None, model: nn.Module, optimizer: Optimizers) -> dict[str, ClusterReport]:
        """The unit's `count`-th time is over (None: the next); cluster where that is one of ours."""
        if not self.unit:
            raise RuntimeError("the schedule does not know the length of training: give it epochs= or steps=")
        if unit != self.unit or count == self.count:  # a trainer may call twice within a step, while gradients gather
            return {}
        before, self.count = self.count, self.count + 1 if count is None else count
        tables = learning(model)
        if not self.at and any(table.phase is None for table in tables.values()):
            raise ValueError("one epoch has no end to cluster after: give steps=, the number of its batches")
        late = before < self.late <= self.count  # a trainer may count steps of several optimisers as one
        return self._cluster(tables, self.count in self.at, late, optimizer)

    def _cluster(
        self, tables: Mapping[str, Compressed], usual: bool, late: bool, optimizer: Optimizers
    ) -> dict[str, ClusterReport]:
        """Cluster the tables whose time it is: those without phases, and those that have rows."""
        names = [n for n, table in tables.items() if (usual and table.phase is None) or (late and table.phase == ROWS)]
        if not names:
            return {}
        more = dict(self.settings)
        reports = cluster_tables(tables, names, optimizer, more.pop("weights", None), more.pop("averaged", None), more)
        self.reports.append(reports)
        return reports

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on later must know."""
        return {"unit": self.unit, "at": list(self.at), "late": self.late, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.unit, self.at, self.count = str(state["unit"]), tuple(state["at"]), int(state["count"])
        self.late = int(state.get("late", 0))  # of an earlier version: never

    def _finish(self, model: nn.Module, optimizer: Optimizers) -> None:
        """Training is over, sooner than it was to be: what is late is due."""
        if self.count < self.late:
            self.count = self.late
            self._cluster(learning(model), False, True, optimizer)

    # --- Lightning and Hugging Face -----------------------------------------------------------------------------------

    def _settle(self, epochs: object, steps: object) -> None:
        """Take a trainer's own numbers, where none were given."""
        if self.unit:
            return
        if isinstance(epochs, (int, float)) and epochs > 1:
            self._set_out("epoch", int(epochs))
        elif isinstance(steps, (int, float)) and 4 <= steps < float("inf"):
            self._set_out("step", int(steps))
        else:
            raise RuntimeError(f"the trainer says neither epochs nor steps (got {epochs!r}, {steps!r}): give steps=")

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Lightning: training begins."""
        self._settle(trainer.max_epochs, trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *rest: Any) -> None:
        """Lightning: a batch is done; its steps are the trainer's, also where gradients are gathered over batches."""
        self._now("step", trainer.global_step, pl_module, trainer.optimizers)

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Lightning: an epoch is done."""
        self._now("epoch", trainer.current_epoch + 1, pl_module, trainer.optimizers)

    def on_train_end(self, *given: Any, **more: Any) -> None:
        """Both: training is over; of Lightning's trainer and module, or by name."""
        if "model" in more:
            self._finish(more["model"], more.get("optimizer"))
        else:
            self._finish(given[1], given[0].optimizers)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Hugging Face: training begins."""
        self._settle(state.num_train_epochs, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Hugging Face: the optimiser has stepped."""
        self._now("step", state.global_step, more["model"], more.get("optimizer"))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Hugging Face: an epoch is done."""
        self._now("epoch", round(state.epoch), more["model"], more.get("optimizer"))

    @property
    def state_key(self) -> str:
        """Lightning: the name of the state in its checkpoints."""
        return type(self).__qualname__

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Both trainers call many more hooks, each a method that does nothing."""
        if name.startswith("on_") or name in ("setup", "teardown"):
            return _nothing
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")


def _nothing(*arguments: object, **named: object) -> None:
    """A hook that does nothing."""
