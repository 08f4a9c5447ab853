"""Training state on disk: a kill at any point leaves the last whole one.

The file holds tensors and plain values only, and is read with ``weights_only``: no code in it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (to be caught; nothing is unpickled)
from typing import Any

import torch

from compress.config import ConfigError
from compress.data.folders import replaced


def save(path: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write beside the target, flush to the disk, rename.

    Args:
        path: the checkpoint.
        run: what the state belongs to (options, seed, sizes), as JSON values.
        state: tensors and plain values.

    Raises:
        FolderError: the disk is full; the checkpoint before this one stands.
    """
    with replaced(path) as staged, staged.open("wb") as file:
        torch.save({"run": json.dumps(run, sort_keys=True), "state": dict(state)}, file)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path | None, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of this very run, or None if it has not begun.

    Raises:
        ConfigError: the file belongs to another run, or cannot be read.
    """
    if path is None or not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise ConfigError(
            f"{path}: not a checkpoint, or a damaged one; delete it to start afresh"
        ) from error
    theirs, ours = json.loads(saved["run"]), json.loads(json.dumps(run, sort_keys=True))
    if theirs != ours:
        changed = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
        raise ConfigError(
            f"{path}: belongs to a run with other {', '.join(changed)}; delete it to start afresh, "
            "or restore the config to go on with it"
        )
    state: dict[str, Any] = saved["state"]
    return state
