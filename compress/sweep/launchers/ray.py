"""Ray Tune: a trial a task, on a cluster of this machine or on the one that is connected to."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from compress.sweep.launchers.base import DIED, Ended, Event, Fault, Started, Task, attempt


class RayTune:
    """A trial of one CPU a task.

    A cluster is used if ray is connected to one already, or `RAY_ADDRESS` (which ray reads) names
    one; its machines must see the runs folder and the data under the same paths. Else one of this
    machine's own is started, and stopped at the end.
    """

    def launch(self, tasks: Sequence[Task], workers: int, tell: Callable[[Event], None]) -> None:
        """As `Launcher`. What a sweep goes on from lies in its cells; Tune's state is not kept."""
        started = not ray.is_initialized()
        if started:
            ray.init(include_dashboard=False, log_to_driver=False)
        listener = _Listener(tasks, tell)
        # Tune prints its settings, and results go to stdout.
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
                tune.Tuner(
                    tune.with_resources(
                        tune.with_parameters(_trial, tasks=list(tasks), folder=Path.cwd()),
                        {"cpu": 1},
                    ),
                    param_space={"task": tune.grid_search(list(range(len(tasks))))},
                    tune_config=tune.TuneConfig(max_concurrent_trials=workers),
                    run_config=tune.RunConfig(storage_path=folder, callbacks=[listener], verbose=0),
                ).fit()
        finally:
            if started:
                ray.shutdown()
        if listener.left:  # Tune returns as if all were well when it is interrupted
            raise KeyboardInterrupt


def _trial(config: dict[str, Any], tasks: list[Task], folder: Path) -> None:
    """A task in a worker of the cluster, whose own folder is another."""
    os.chdir(folder)
    fault = attempt(tasks[config["task"]])
    tune.report({"text": fault and fault.text, "stack": fault and fault.stack})


class _Listener(tune.Callback):  # type: ignore[misc]  # ray is not typed for us
    """Turns Tune's news of trials into a launcher's events."""

    def __init__(self, tasks: Sequence[Task], tell: Callable[[Event], None]) -> None:
        self.left = {task.name for task in tasks}
        self._tasks, self._tell = tasks, tell
        self._faults: dict[str, Fault] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A task begins."""
        del iteration, trials, info
        self._tell(Started(self._name(trial)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """What `_trial` reports."""
        del iteration, trials, info
        if result.get("text") is not None:
            self._faults[self._name(trial)] = Fault(result["text"], result["stack"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A task has ended, well or not."""
        del iteration, trials, info
        self._end(trial, self._faults.get(self._name(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A task's process has died."""
        del iteration, trials, info
        self._end(trial, Fault(DIED))

    def _end(self, trial: Any, fault: Fault | None) -> None:
        self.left.discard(self._name(trial))
        self._tell(Ended(self._name(trial), fault))

    def _name(self, trial: Any) -> str:
        place: int = trial.config["task"]
        return self._tasks[place].name
