"""Arrays of a bundle are plain npy files."""

from pathlib import Path

import pytest

from model_store.arrays import load_array
from model_store.errors import BundleCorrupt


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95"])
def test_what_is_no_npy_is_not_read(content: bytes, tmp_path: Path) -> None:
    """Neither zip nor pickle."""
    path = tmp_path / "array.npy"
    path.write_bytes(content)

    with pytest.raises(BundleCorrupt, match="not a plain npy file"):
        load_array(path, 2, "float32")
