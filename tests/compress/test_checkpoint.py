"""A checkpoint is whole, or the one before it stands."""

from pathlib import Path

import pytest
import torch

from compress.checkpoint import load, save
from compress.data.folders import FolderError


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Torch's own error over the system's is told as what it is, and no part stays."""
    path = tmp_path / "dense.ckpt"
    save(path, {"seed": 1}, {"epoch": 1})

    with pytest.raises(FolderError, match=f"{path}: the disk is full"):
        save(path, {"seed": 1}, {"epoch": 2, "weights": torch.zeros(1 << 16)})

    assert load(path, {"seed": 1}) == {"epoch": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["dense.ckpt"]
