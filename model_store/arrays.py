"""Arrays of item vectors in a bundle: plain npy files, mapped from disk, never a pickle."""

from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.errors import BundleCorrupt

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]
PathOf = Callable[[str], Path]

SCALES_FILE: Final = "items/scales.npy"
# Float16 is coarse below: rows in eight bits would not come back from a file as they went in.
LEAST_SCALE: Final = 2.0**-16
# What numpy's header parser lets through.
NPY_ERRORS: Final = (ValueError, OverflowError, SyntaxError, TokenError)


def save_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write an array into a bundle's folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


def load_array(path: Path, axes: int, *dtypes: str) -> NDArray[Any]:
    """Map an array read-only from disk.

    Raises:
        BundleCorrupt: it is no plain npy file, or of another type or number of axes.
    """
    try:
        # open_memmap, unlike numpy.load, knows only npy: no zip, and never a pickle.
        array = np.lib.format.open_memmap(path, mode="r")
    except NPY_ERRORS as error:
        raise BundleCorrupt(f"{path}: not a plain npy file ({error})") from None
    if str(array.dtype) not in dtypes or array.ndim != axes:
        raise BundleCorrupt(
            f"{path}: {array.dtype} of shape {array.shape}, expected {' or '.join(dtypes)} with "
            f"{axes} axes"
        )
    return np.asarray(array)
