"""What the rankers' tests share: features of every kind, inputs, a data set of clicks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from compress.data.base import Part
from compress.data.encode import Batch, place, widths
from compress.rankers import RANKERS
from compress.rankers.base import Inputs, Ranker
from model_store.manifest import FeatureSpec, HashEncoding, NumericEncoding

SMALL: dict[str, dict[str, Any]] = {"dlrm": {"top": (12, 9)}, "dcnv2": {"deep": (12, 9)}}
CASES = [
    ("dlrm", {"interaction": "cat"}),
    ("dlrm", {"interaction": "dot"}),
    ("dcnv2", {"structure": "parallel"}),
    ("dcnv2", {"structure": "stacked", "rank": 3}),
]


def feature(name: str, side: Any, rows: int | None = None, length: int = 1) -> FeatureSpec:
    """A feature; a number if it has no rows."""
    kind: Any = "numeric" if rows is None else "multi" if length > 1 else "categorical"
    encoding = NumericEncoding() if rows is None else HashEncoding(rows=rows)
    return FeatureSpec(
        name=name, kind=kind, side=side, encoding=encoding, column=name, length=length
    )


FEATURES = tuple(
    place(
        [
            feature("age", "user"),
            feature("user", "user", 20),
            feature("hour", "context"),
            feature("likes", "user", 9, length=3),
            feature("device", "context", 7),
            feature("price", "item"),
            feature("item", "item", 30),
            feature("genres", "item", 8, length=2),
            feature("brand", "item", 5),
        ]
    )
)


class Clicks:
    """Rows in memory, of which only the fields ``told`` decide the click."""

    def __init__(
        self, rows: int, seed: int = 0, told: Mapping[str, float] | None = None, noise: int = 6
    ) -> None:
        rng = np.random.default_rng(seed)
        told = {"u0": 2.0, "i0": 2.0} if told is None else told
        names = [f"{side}{k}" for side in "ui" for k in range(noise // 2 + 1)]
        specs = [feature(name, "user" if name[0] == "u" else "item", 12) for name in names]
        self.features = tuple(place([*specs, feature("x", "user")]))
        counts = {"train": rows, "validation": rows // 4, "test": rows // 4}
        self.rows: Mapping[Part, int] = {"train": rows, "validation": rows // 4, "test": rows // 4}
        effects = {name: rng.normal(0, told.get(name, 0.0), 12) for name in names}
        self._parts = {part: self._made(rng, n, names, effects) for part, n in counts.items()}

    def _made(
        self, rng: np.random.Generator, rows: int, names: list[str], effects: Mapping[str, Any]
    ) -> Batch:
        ids = {name: rng.integers(2, 12, rows).astype(np.int32) for name in names}
        logit = sum(effects[name][ids[name]] for name in names)
        label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        user = np.stack([ids[n] for n in names if n[0] == "u"], 1)
        item = np.stack([ids[n] for n in names if n[0] == "i"], 1)
        x = rng.normal(size=(rows, 1)).astype(np.float32)
        return Batch(x, user, np.zeros((rows, 0), np.float32), item, label)

    def batches(
        self, part: Part, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Batch]:
        """As `compress.data.encode.Dataset.batches`."""
        held = self._parts[part]
        order = np.arange(len(held)) if rng is None else rng.permutation(len(held))
        for start in range(0, len(held), batch_size):
            rows = order[start : start + batch_size]
            yield Batch(
                held.request_numeric[rows],
                held.request_ids[rows],
                held.candidate_numeric[rows],
                held.candidate_ids[rows],
                held.label[rows],
            )


@pytest.fixture
def clicks() -> Callable[..., Clicks]:
    """Makes data sets."""
    return Clicks


@pytest.fixture
def build() -> Callable[..., Ranker]:
    """Makes small rankers, their table rows all non-zero so that nothing is equal by accident."""

    def make(
        name: str, options: Mapping[str, Any], features: Any = FEATURES, seed: int = 0
    ) -> Ranker:
        generator = torch.Generator().manual_seed(seed)
        config = RANKERS[name].Config(**{"dim": 4, "bottom": (6, 5), **SMALL[name], **options})
        ranker = RANKERS[name](features, config, generator)
        with torch.no_grad():
            ranker.table.weight.normal_(generator=generator)
        return ranker.eval()

    return make


@pytest.fixture
def draw() -> Callable[..., Inputs]:
    """Draws inputs of R request rows and N candidates for features."""

    def make(r: int, n: int, features: Any = FEATURES, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        parts: dict[str, torch.Tensor] = {}
        for name, columns in widths(features).items():
            rows = r if name.startswith("request") else n
            if name.endswith("numeric"):
                parts[name] = torch.randn(rows, columns, generator=generator)
                continue
            held = sorted((f for f in features if f.tensor == name), key=lambda f: f.start)
            ids = [
                torch.randint(0, f.encoding.rows, (rows, f.length), generator=generator)
                for f in held
            ]
            parts[name] = torch.cat([*ids, torch.zeros(rows, 0)], 1).to(torch.int32)
        return Inputs(**parts)

    return make
