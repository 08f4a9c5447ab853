"""A tiny bundle, sealed without any training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import (
    GOLDEN_FILE,
    GRAPH_FILE,
    ITEM_IDS_FILE,
    ITEM_VALUES_FILE,
    Bundle,
    item_tensor_file,
    open_bundle,
    seal,
    vocabulary_file,
)
from model_store.codebooks import CodedTable
from model_store.item_vectors import Neighbours
from model_store.manifest import (
    BucketEncoding,
    Card,
    DataSpec,
    FeatureSpec,
    HashEncoding,
    ItemTableSpec,
    Manifest,
    NumericEncoding,
    Resources,
    SessionCard,
    SessionSpec,
    TensorSpec,
    VocabularyEncoding,
)
from model_store.store import open_store

MakeBundle = Callable[..., Bundle]
GRAPH = b"\0 no real graph\n"


def features() -> tuple[FeatureSpec, ...]:
    """One feature of each kind of encoding, and a pruned one."""
    return (
        FeatureSpec(
            name="age", kind="numeric", side="user", column="age",
            encoding=NumericEncoding(transform="log1p"), tensor="request_numeric",
        ),
        FeatureSpec(
            name="hour", kind="categorical", side="context", column="hour",
            encoding=BucketEncoding(edges=(6.0, 18.0)), tensor="request_ids",
        ),
        FeatureSpec(
            name="item_id", kind="categorical", side="item", column="item_id",
            encoding=HashEncoding(rows=16), tensor="candidate_ids",
        ),
        FeatureSpec(
            name="genres", kind="multi", side="item", column="genres", length=2,
            encoding=VocabularyEncoding(file=vocabulary_file("genres"), rows=4),
            tensor="candidate_ids", start=1,
        ),
        FeatureSpec(
            name="zip", kind="categorical", side="user", column="zip",
            encoding=VocabularyEncoding(file=vocabulary_file("zip"), rows=9),
        ),
    )  # fmt: skip


def manifest(name: str = "ctr", **changes: object) -> Manifest:
    """The tiny bundle's manifest, before it is sealed."""
    manifest = Manifest(
        name=name,
        created_at="2026-11-01T00:00:00Z",
        graph=GRAPH_FILE,
        scores="probability",
        flops=5,
        inputs=(
            TensorSpec(name="request_numeric", dtype="float32", shape=("R", 1)),
            TensorSpec(name="request_ids", dtype="int32", shape=("R", 1)),
            TensorSpec(name="candidate_ids", dtype="int32", shape=("N", 3)),
        ),
        outputs=(TensorSpec(name="score", dtype="float32", shape=("N",)),),
        features=features(),
        item_id="item_id",
        items=ItemTableSpec(
            ids=ITEM_IDS_FILE,
            tensors={"candidate_ids": item_tensor_file("candidate_ids")},
            items=2,
            values=ITEM_VALUES_FILE,
        ),
        data=DataSpec(label="click"),
        golden=GOLDEN_FILE,
        card=Card(
            method="umec",
            ranker="dlrm",
            seed=0,
            dense=Resources(flops=100),
            slim=Resources(flops=5),
            kept_features=("age", "hour", "item_id", "genres"),
            pruned_features=("zip",),
        ),
    )
    return manifest.model_copy(update=changes)


def write_files(root: Path, graph: bytes) -> None:
    """All files of the tiny bundle, the manifest apart."""
    texts = {
        vocabulary_file("genres"): ["Drama", "Comedy"],
        ITEM_IDS_FILE: ["i1", "i2"],
        ITEM_VALUES_FILE: {"genres": [["Drama"], None]},
        GOLDEN_FILE: [{"request": {"candidates": {"ids": ["i1"]}}, "scores": [0.25]}],
    }
    for name, value in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{json.dumps(value)}\n")
    (root / GRAPH_FILE).write_bytes(graph)
    rows = np.array([[3, 2, 1], [7, 1, 1]], dtype=np.int32)
    np.save(root / item_tensor_file("candidate_ids"), rows)


def write_session_bundle(root: Path) -> Bundle:
    """A tiny session ranker's bundle: three items in coded vectors, and what follows what."""
    root.mkdir()
    codes = np.array([[0, 1], [1, 0], [1, 1]], np.uint8)
    codebooks = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    neighbours = Neighbours(
        offsets=np.array([0, 1, 1, 3], np.int32),
        items=np.array([2, 0, 1], np.int32),
        weights=np.array([1.0, 0.5, 0.25], np.float16),
    )
    spec = SessionSpec(
        ids=ITEM_IDS_FILE,
        items=3,
        length=4,
        dim=2,
        vectors=CodedTable(codes, codebooks, concatenated=False).save(root),
        neighbours=neighbours.save(root),
    )
    golden = [{"request": {"candidates": {"ids": ["i1"]}, "session_items": []}, "scores": [0.5]}]
    (root / ITEM_IDS_FILE).write_text('["i1", "i2", "i3"]\n')
    (root / GOLDEN_FILE).write_text(f"{json.dumps(golden)}\n")
    (root / GRAPH_FILE).write_bytes(GRAPH)
    cost = Resources(flops=7)
    return seal(
        root,
        manifest(
            "session",
            scores="logit",
            inputs=(TensorSpec(name="session", dtype="float32", shape=("R", "L", 2)),),
            outputs=(
                TensorSpec(name="query", dtype="float32", shape=("R", 2)),
                TensorSpec(name="follow", dtype="float32", shape=("R", "L")),
            ),
            features=(),
            item_id=None,
            items=None,
            session=spec,
            card=SessionCard(ranker="gru4rec", table="codes", seed=0, dense=cost, coded=cost),
        ),
    )


@pytest.fixture
def session_bundle(tmp_path: Path) -> Bundle:
    """A tiny session ranker's bundle."""
    return write_session_bundle(tmp_path / "session")


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Seals a tiny bundle; another ``graph`` gives another digest."""

    def make(folder: str = "bundle", graph: bytes = GRAPH, **changes: object) -> Bundle:
        root = tmp_path / folder
        root.mkdir()
        write_files(root, graph)
        return seal(root, manifest(**changes))

    return make


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle's folder, to copy: sealing waits for the disk."""
    root = tmp_path_factory.mktemp("sealed")
    write_files(root, GRAPH)
    return seal(root, manifest()).root


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Bundle:
    """A tiny bundle."""
    return open_bundle(shutil.copytree(sealed, tmp_path / "bundle"))


@pytest.fixture
def packed_bundle(tmp_path: Path) -> Bundle:
    """A tiny bundle as the first release of format 3 packed it, sealed anew."""
    root = shutil.copytree(Path(__file__).with_name("format_3"), tmp_path / "packed")
    return seal(root, open_bundle(root).manifest)


@pytest.fixture(scope="session")
def three_versions(sealed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, to copy, with versions 1 to 3 of ctr; prod names 2, and named 1 before."""
    root = tmp_path_factory.mktemp("three") / "store"
    store = open_store(f"{root}")
    for _ in range(3):
        store.publish(sealed, "ctr")
    store.set_alias("ctr", "prod", "1")
    store.set_alias("ctr", "prod", "2")
    return root
