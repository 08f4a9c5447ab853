"""What the rankers' tests share: features of every kind, inputs, a data set of clicks."""

import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.__main__ import main
from compress.config import ExportConfig, load
from compress.data.base import Part
from compress.data.encode import Batch, Dataset, place, prepare, widths
from compress.data.synthetic import Synthetic, SyntheticConfig
from compress.export import export
from compress.pipeline import Outcome, run
from compress.plan import resolve
from compress.progress import Silent
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.rankers.structure import Inputs, Keep
from compress.slim import slim
from model_store.bundle import Bundle
from model_store.manifest import (
    Card,
    FeatureSpec,
    HashEncoding,
    NumericEncoding,
    Quality,
    Resources,
    SeedResult,
)
from tests.compress.tiny import config_file

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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Threads cost more than they bring on rankers this small, the more on a busy machine."""
    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `python -m compress` with some words, in this process: starting one takes seconds."""

    def run(*words: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of this process cannot grow over 64 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
            for table in ranker.sparse_tables().values():
                table.normal_(generator=generator)
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


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Made-up clicks with a catalogue, features of every kind on both sides, and empty cells."""
    source = Synthetic(SyntheticConfig(rows=3000, seed=3, catalogue=60))
    return prepare(source, tmp_path_factory.mktemp("data"), Silent())


@pytest.fixture(scope="session")
def slimmed(dataset: Dataset) -> Ranker:
    """An untrained ranker without the fields ``u_noise1`` and ``i_tags``."""
    config = RANKERS["dlrm"].Config(dim=4, bottom=(6,), top=(12, 9))
    dense = RANKERS["dlrm"](dataset.features, config, torch.Generator().manual_seed(0))
    gone = {"u_noise1", "i_tags"}
    kept = tuple(field.name for field in dense.fields if field.name not in gone)
    return slim(dense, Keep(kept, {"top.0": tuple(range(8))})).eval()


@pytest.fixture(scope="session")
def card() -> Card:
    """A card with two seeds."""
    qualities = [
        Quality(auc=auc, logloss=0.5, accuracy=0.7, rows=300) for auc in (0.7, 0.69, 0.71, 0.705)
    ]
    return Card(
        method="umec",
        ranker="dlrm",
        seed=1,
        results=(
            SeedResult(seed=1, dense=qualities[0], slim=qualities[1]),
            SeedResult(seed=2, dense=qualities[2], slim=qualities[3]),
        ),
        dense=Resources(
            flops=1000,
            flops_parts={"bottom_request": 100, "top": 900},
            bytes={"embedding tables": 4000, "mlp": 900, "graph": 100, "vocab": 50},
            parameters=1200,
            us_per_request=80.0,
        ),
        slim=Resources(
            flops=100,
            flops_parts={"bottom_request": 20, "top": 80},
            bytes={"embedding tables": 400, "mlp": 90, "graph": 80, "vocab": 30},
            parameters=120,
            us_per_request=20.0,
        ),
        requested={"top_mlp": 0.1},
        achieved={"top_mlp": 0.09},
        kept_features=("u_segment",),
        pruned_features=("i_tags",),
        widths={"dense top": (12, 9), "slim top": (8, 9)},
        data_hash="d" * 64,
        tools={"torch": "2"},
        notes=("a note",),
    )


@pytest.fixture(scope="session")
def exported(
    dataset: Dataset, slimmed: Ranker, card: Card, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A sealed bundle of ``slimmed``. Read only: it is shared by the whole session."""
    history = {
        "train": [
            {"step": 0, "epoch": 0.0, "train_loss": None, "logloss": 0.7, "auc": 0.5},
            {"step": 9, "epoch": 1.0, "train_loss": 0.6, "logloss": 0.6, "auc": 0.6},
        ],
        "finetune": [{"step": 0, "epoch": 0.0, "train_loss": None, "logloss": 0.6, "auc": 0.6}],
        "method": [
            {"step": 1, "ratio": 1.0, "z": 0.0, "s.fields": 0.0, "y.fields": 0.0},
            {"step": 2, "ratio": 0.1, "z": 0.5, "s.fields": 2.0, "y.fields": 0.1},
        ],
    }
    return export(
        slimmed,
        dataset,
        tmp_path_factory.mktemp("bundle"),
        name="ctr",
        card=card,
        options=ExportConfig(golden_requests=3, golden_candidates=10),
        history=history,
    )


@pytest.fixture
def test_rows(dataset: Dataset, tmp_path: Path) -> Path:
    """The raw test part as a parquet file."""
    path = tmp_path / "test.parquet"
    next(iter(dataset.raw("test"))).write_parquet(path)
    return path


@pytest.fixture(scope="session")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one whole run of all tests goes: copy it, do not work in it."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def tiny_run(tiny_place: Path) -> Outcome:
    """A whole run over two seeds."""
    return run(resolve(load(config_file(tiny_place))), Silent())
