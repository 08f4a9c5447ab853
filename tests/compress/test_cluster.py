"""Ray Train's workers train what one process trains."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compress.cluster import RayError, train_on_ray
from compress.config import ConfigError, RunConfig, load
from compress.parallel import ALONE
from compress.pipeline import train
from compress.plan import resolve
from compress.progress import Silent

CONFIG = """
name = "tiny"
threads = 1
[data]
type = "synthetic"
rows = 1500
[ranker]
type = "dlrm"
dim = 4
bottom = [6]
top = [16, 8]
[train]
batch_size = 128
epochs = 1
[method]
type = "umec"
budget.flops = 0.5
epochs = 1
[finetune]
batch_size = 128
epochs = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run whose folder is its own."""
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG)
    return load(path, [f"runs={tmp_path / 'runs'}"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, with room for two workers and the trainer."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_workers_of_ray_train_what_one_process_trains(
    config: RunConfig, cluster: None, tmp_path: Path
) -> None:
    """Two of them leave checkpoints of the same weights, up to rounding, slimming included."""
    alone = config.model_copy(update={"runs": tmp_path / "alone"})
    train(resolve(alone), Silent(), ALONE)
    train_on_ray(config, 2)

    for stage in ("compress", "finetune"):
        one, both = (
            torch.load(next(runs.glob(f"tiny/*/seed-1/{stage}.ckpt")))["state"]["ranker"]
            for runs in (alone.runs, config.runs)
        )
        torch.testing.assert_close(one, both, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_worker_of_ray_refuses_is_told(config: RunConfig, cluster: None) -> None:
    """Its error is in the one that the command shows."""
    lost = config.model_copy(update={"threads": -1})

    with pytest.raises(RayError, match="threads"):
        train_on_ray(lost, 1)


def test_without_ray_the_error_says_what_to_install(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "ray.train", None)

    with pytest.raises(ConfigError, match=r"slimrank\[ray\]"):
        train_on_ray(config, 2)
