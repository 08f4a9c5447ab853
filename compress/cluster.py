"""The same training on the workers of a Ray cluster, in the process group that Ray Train makes.

Workers train as far as checkpoints in the run's folder; what follows is done where it was asked
for. So all of them need that folder, and the data, at the same paths: on one machine, or on a disk
that is shared.
"""

import os
from pathlib import Path
from typing import Any, Final

import torch

from compress.config import CompressError, ConfigError, RunConfig
from compress.parallel import joined
from compress.pipeline import train
from compress.plan import resolve
from compress.progress import Silent, terminal

EXTRA: Final = "it comes with the extra `ray`: pip install 'slimrank[ray]'"


class RayError(CompressError):
    """Training on Ray's workers failed; the text has the first worker's error."""


def train_on_ray(config: RunConfig, workers: int) -> None:
    """Train all rankers of a run on a Ray cluster, as far as their checkpoints.

    The cluster is the one that ``RAY_ADDRESS`` or an earlier ``ray.init`` names, else one is
    started on this machine. A worker takes a GPU where this machine has some, else a CPU.

    Args:
        config: checked, and resolvable.
        workers: how many train together.

    Raises:
        ConfigError: Ray is not installed.
        RayError: a worker failed.
    """
    try:
        from ray.train import RunConfig as RayRunConfig  # noqa: PLC0415  # an extra of its own
        from ray.train import ScalingConfig, TrainingFailedError  # noqa: PLC0415
        from ray.train.torch import TorchTrainer  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"--ray-workers: Ray Train is not installed ({error}); {EXTRA}") from None
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config.model_dump_json(), "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RayRunConfig(name=config.name, storage_path=str(config.runs.absolute() / "ray")),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise RayError(f"training on {workers} workers of Ray failed: {error}") from error


def _work(task: dict[str, Any]) -> None:
    """What a worker does; Ray has made the process group."""
    os.chdir(task["folder"])  # paths of a config are relative to where it was started
    plan = resolve(RunConfig.model_validate_json(task["config"]))
    with joined() as world:
        if not world.first:
            train(plan, Silent(), world)
            return
        with terminal() as progress:
            train(plan, progress, world)
