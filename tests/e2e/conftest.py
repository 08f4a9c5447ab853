"""One run for all: a ranker of made-up clicks, trained, slimmed and published by the commands."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path("compress/configs/synthetic.toml")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the dense and the slim bundle, filled by `compress run` in two processes.

    `make serve-only` and `make loadtest-gate` fill theirs in one.
    """
    folder = tmp_path_factory.mktemp("e2e")
    keys = [
        f"publish.store={folder / 'store'}",
        f"runs={folder / 'runs'}",
        "seeds=[1]",
        "threads=1",
    ]
    overrides = [part for key in keys for part in ("-o", key)]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = [*torchrun, "-m", "compress", "run", str(CONFIG), *overrides]
    ended = subprocess.run(run, check=False, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr + ended.stdout
    return folder / "store"
