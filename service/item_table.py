"""The catalogue in this process: item id → row → encoded features."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.manifest import InputName
from service.caches import Blob, Blobs
from service.features import Tensors
from service.item_ids import ItemIds
from service.kernels import Texts

_VALUES: Final = "values"
_TENSOR: Final = "tensor:"


class ItemTable:
    """Row i of every tensor and value belongs to item i.

    Attributes:
        ids: of the items, in the catalogue's order.
        tensors: (items, columns) each. Mapped from disk, so that workers share pages, unless they
            came from the cache.
        values: feature → raw values, for ``explain``; None if the bundle left them out.
    """

    def __init__(
        self,
        ids: ItemIds,
        tensors: Mapping[InputName, NDArray[Any]],
        values: Mapping[str, Sequence[Any]] | None,
    ) -> None:
        self.ids = ids
        # A plain view: memmap's own indexing costs a microsecond a call.
        self.tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
        self.values = values

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read(cls, bundle: Bundle, ids: ItemIds) -> Self:
        """From an opened bundle that has a catalogue, and its ids."""
        spec = bundle.manifest.items
        if spec is None:
            raise ValueError(f"{bundle.root}: the bundle has no catalogue")
        return cls(ids, bundle.item_tensors(spec), bundle.item_values(spec))

    def pack(self) -> dict[str, Blob]:
        """Named blobs, for the cache. The tensors' are views: nothing is copied."""
        blobs: dict[str, Blob] = {}
        for name, tensor in self.tensors.items():
            flat = np.ascontiguousarray(tensor).reshape(-1)
            blobs[f"{_TENSOR}{name}:{tensor.dtype.str}"] = flat.view(np.uint8).data
        if self.values is not None:
            blobs[_VALUES] = orjson.dumps(self.values)
        return blobs

    @classmethod
    def unpack(cls, blobs: Blobs, ids: ItemIds) -> Self | None:
        """From what `pack` made, None if it is not that; the tensors are views of the blobs."""
        try:
            values = orjson.loads(blobs[_VALUES]) if _VALUES in blobs else None
            tensors = {}
            for name, blob in blobs.items():
                if name.startswith(_TENSOR):
                    _, tensor, dtype = name.split(":")
                    tensors[tensor] = np.frombuffer(blob, dtype).reshape(len(ids), -1)
            return cls(ids, tensors, values)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            return None

    def rows(self, ids: Texts) -> NDArray[np.intp]:
        """(N,) rows, -1 for unknown items."""
        return self.ids.rows(ids)

    def gather(
        self, rows: NDArray[np.intp], defaults: Tensors, unknown: Sequence[int] = ()
    ) -> Tensors:
        """(N, columns) each: the items' encoded features, the defaults for unknown items.

        Args:
            rows: (N,) of the items; -1 for unknown ones.
            defaults: (columns,) each.
            unknown: the places of unknown items.
        """
        tensors: Tensors = {}
        for name, default in defaults.items():
            table = self.tensors.get(name)
            if table is None or not len(table):
                tensors[name] = np.tile(default, (len(rows), 1))
                continue
            # "clip" lets unknown rows pass; they are overwritten below.
            tensors[name] = table.take(rows, axis=0, mode="clip")
            if unknown:
                tensors[name][[*unknown]] = default
        return tensors
