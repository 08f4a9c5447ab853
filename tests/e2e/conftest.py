"""One run for all: a ranker of made-up clicks, trained, slimmed and published by the commands."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path("compress/configs/synthetic.toml")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the dense and the slim bundle, filled by `python -m compress run`."""
    folder = tmp_path_factory.mktemp("e2e")
    keys = [f"publish.store={folder / 'store'}", f"runs={folder / 'runs'}", "seeds=[1]"]
    overrides = [part for key in keys for part in ("-o", key)]

    run = [sys.executable, "-m", "compress", "run", str(CONFIG), *overrides]
    ended = subprocess.run(run, check=False, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr + ended.stdout
    return folder / "store"
