"""Real little session bundles, whose scores a test can work out by hand."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import parser

from model_store.bundle import GOLDEN_FILE, GRAPH_FILE, ITEM_IDS_FILE, Bundle, seal
from model_store.codebooks import CodedTable, computed_codes
from model_store.item_vectors import DenseTable, FactoredTable, Int8Table, ItemVectors, Neighbours
from model_store.manifest import (
    UNREACHED,
    DataSpec,
    HashedCodes,
    Manifest,
    RadixCodes,
    Resources,
    SessionCard,
    SessionSpec,
    TensorSpec,
)

ITEMS = 40
DIM = 4
LENGTH = 3
REPEAT, FOLLOW = 0.5, -0.25  # log weights, the same for every place in a session
IDS = [f"i{row}" for row in range(ITEMS)]

# The query is START and the sum of the session's vectors, over 4: as a product, whose bits do not
# depend on what other sessions there are.
GRAPH = """
<ir_version: 9, opset_import: ["": 17]>
ways (float[R, L, {dim}] session) => ({outputs}) {{
  items = Constant<value = int64[1] {{1}}>()
  width = Constant<value = int64[1] {{2}}>()
  start = Constant<value = float[{dim}] {{{start}}}>()
  share = Constant<value = float {{0.25}}>()
  nought = Constant<value = float {{0.0}}>()
  one = Constant<value = float {{1.0}}>()
  to_repeat = Constant<value = float {{{repeat}}}>()
  to_follow = Constant<value = float {{{follow}}}>()
  widths = ReduceSum<keepdims = 0>(session, width)
  noughts = Mul(widths, nought)
  ones = Add(noughts, one)
  row = Unsqueeze(ones, items)
  product = MatMul(row, session)
  summed = Squeeze(product, items)
  all = Add(summed, start)
  query = Mul(all, share)
  repeat = Add(noughts, to_repeat)
  follow = Add(noughts, to_follow)
}}
"""


def rng() -> np.random.Generator:
    """The same numbers for every bundle."""
    return np.random.default_rng(11)


def coded(size: int, *, books: int = 2, concatenated: bool = False, **fields: Any) -> CodedTable:
    """Codes and codewords at random."""
    random = rng()
    codes = random.integers(0, size, (ITEMS, books)).astype(np.uint8 if size <= 256 else np.uint16)
    width = DIM // books if concatenated else DIM
    codebooks = random.normal(size=(books, size, width)).astype(np.float32)
    return CodedTable(codes, codebooks, concatenated, **fields)


def by_row(spec: RadixCodes | HashedCodes) -> CodedTable:
    """Codes that follow from the row."""
    codebooks = rng().normal(size=(2, 8, DIM)).astype(np.float32)
    return CodedTable(computed_codes(spec, ITEMS, 8), codebooks, False, spec)


def train() -> FactoredTable:
    """A tensor train of 5 · 8 rows and 2 · 2 columns."""
    random = rng()
    cores = [random.normal(size=s).astype(np.float32) for s in ((1, 5, 2, 2), (2, 8, 2, 1))]
    return FactoredTable.of(cores, 1, ITEMS)


def dense() -> DenseTable:
    """Vectors as they are."""
    return DenseTable(rng().normal(size=(ITEMS, DIM)).astype(np.float32))


FORMS: Mapping[str, Callable[[], ItemVectors]] = {
    "dense": dense,
    "float16": lambda: DenseTable(dense().matrix.astype(np.float16)),
    "int8": lambda: Int8Table.of(dense().matrix),
    "1 bit": lambda: coded(2, books=3),
    "4 bits": lambda: coded(16),
    "4 bits beside": lambda: coded(16, concatenated=True),
    "8 bits": lambda: coded(256),
    "8 bits beside": lambda: coded(256, concatenated=True),
    "9 bits": lambda: coded(300),
    "radix": lambda: by_row(RadixCodes(radices=(5, 8))),
    "hashed": lambda: by_row(HashedCodes(factors=(3, 7), prime=101)),
    "train": train,
}


def neighbours() -> Neighbours:
    """Item v is followed by v + 1 (weight 1/2) and v + 2 (1/4), while there are such."""
    rows = [[(v + n, 0.5**n) for n in (1, 2) if v + n < ITEMS] for v in range(ITEMS)]
    return Neighbours(
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int32),
        items=np.array([v for row in rows for v, _ in row], np.int32),
        weights=np.array([w for row in rows for _, w in row], np.float16),
    )


@dataclass(frozen=True)
class World:
    """A session ranker, and its scores by hand.

    Attributes:
        vectors: None for a ranker without.
        ways: the outputs of its graph.
    """

    vectors: ItemVectors | None = field(default_factory=dense)
    ways: Sequence[str] = ("query", "repeat", "follow")
    length: int = LENGTH
    start: Sequence[float] = (1.0, -0.5, 0.25, 0.0)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return 1 if self.vectors is None else self.vectors.dim

    def matrix(self) -> NDArray[np.float64]:
        """(N, dim) vectors."""
        if self.vectors is None:
            return np.zeros((ITEMS, 1))
        return self.vectors.vectors(np.arange(ITEMS)).astype(np.float64)

    def scores(self, session: Sequence[int]) -> list[float]:
        """The score of every item after a session of rows, oldest first."""
        matrix, taken = self.matrix(), list(session)[-self.length :]
        query = (np.array(self.start[: self.dim]) + matrix[taken].sum(0)) / 4
        follows = neighbours()
        masses = np.exp(matrix @ query) if "query" in self.ways else np.zeros(ITEMS)
        for row in taken:
            if "repeat" in self.ways:
                masses[row] += math.exp(REPEAT)
            if "follow" in self.ways:
                for column, weight in zip(*follows.of(row), strict=True):
                    masses[column] += math.exp(FOLLOW) * weight
        return [math.log(mass) if mass else UNREACHED for mass in masses.tolist()]

    def write(self, folder: Path, *, name: str = "session", golden_shift: float = 0.0) -> Bundle:
        """A sealed bundle of it."""
        shapes = {"query": ("R", self.dim), "repeat": ("R", "L"), "follow": ("R", "L")}
        outputs = ", ".join(f"float[{', '.join(map(str, shapes[w]))}] {w}" for w in self.ways)
        start = ", ".join(map(str, self.start[: self.dim]))
        text = GRAPH.format(
            dim=self.dim, start=start, outputs=outputs, repeat=REPEAT, follow=FOLLOW
        )
        model = parser.parse_model(text)
        onnx.checker.check_model(model)
        (folder / "items").mkdir(parents=True)
        (folder / GRAPH_FILE).write_bytes(model.SerializeToString())
        (folder / ITEM_IDS_FILE).write_text(json.dumps(IDS))
        scores = self.scores([2, 5])
        golden = {
            "request": {"session_items": ["i2", "i5"], "candidates": {"ids": ["i5", "i0"]}},
            "scores": [scores[5] + golden_shift, scores[0] + golden_shift],
        }
        (folder / GOLDEN_FILE).write_text(json.dumps([golden]))
        return seal(folder, self._manifest(folder, name, shapes))

    def _manifest(self, folder: Path, name: str, shapes: Mapping[str, tuple[Any, ...]]) -> Manifest:
        cost = Resources(flops=2 * self.dim)
        return Manifest(
            name=name,
            created_at="2026-11-21T00:00:00+00:00",
            graph=GRAPH_FILE,
            scores="logit",
            flops=2 * self.dim,
            inputs=(TensorSpec(name="session", dtype="float32", shape=("R", "L", self.dim)),),
            outputs=tuple(
                TensorSpec(name=way, dtype="float32", shape=shapes[way]) for way in self.ways
            ),
            features=(),
            session=SessionSpec(
                ids=ITEM_IDS_FILE,
                items=ITEMS,
                length=self.length,
                dim=self.dim,
                vectors=None if self.vectors is None else self.vectors.save(folder),
                neighbours=neighbours().save(folder) if "follow" in self.ways else None,
            ),
            data=DataSpec(label=""),
            golden=GOLDEN_FILE,
            card=SessionCard(ranker="sums", table="codes", seed=1, dense=cost, coded=cost),
        )
