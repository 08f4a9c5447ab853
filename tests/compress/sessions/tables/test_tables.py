"""What every member of the registry of item tables must keep."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.config import ConfigError, Section, configure
from compress.progress import Silent
from compress.sessions.tables import TABLES, ItemTable, Teacher
from model_store.codebooks import CodedTable
from model_store.item_vectors import FactoredTable, ItemVectors, load_vectors

# Sizes that make sense for the small table of these tests.
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "eodrec": {"codes": "4x16", "steps": 20},
    "hashing": {"codes": "2x32"},
    "int8": {},
    "opq": {"codes": "4x16"},
    "pq": {"codes": "4x16"},
    "qr": {},
    "recjpq": {"codes": "4x16"},
    "rq": {"codes": "4x16"},
    "sttd": {"rank": 8},
    "tt": {"rank": 8},
}
UNSEEDED = {"dense", "int8", "qr"}
VARIANTS = [
    *((name, options) for name, options in OPTIONS.items()),
    ("dense", {"kept_as": "float16"}),
    ("eodrec", {"codes": "4x16", "steps": 20, "start": "gumbel"}),
    ("eodrec", {"codes": "4x16", "steps": 20, "learn_codes": True}),
    ("eodrec", {"codes": "4x16", "steps": 20, "start": "gumbel", "learn_codes": True}),
    ("int8", {"fake_quantised": False}),
    ("pq", {"codes": "2x32", "kept_as": "int8", "distinct": False}),
    ("qr", {"num_codebooks": 3, "kept_as": "float32"}),
    ("rq", {"codes": "3x8", "kept_as": "int8"}),
    ("sttd", {"cores": 3, "rank": 8}),
    ("tt", {"cores": 3, "rank": 8, "start": "gaussian"}),
]
every = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{n}-{o}" if o else n for n, o in VARIANTS]
)
UNIT = 2.0**-24


def build(teacher: Teacher, name: str, options: dict[str, Any], seed: int = 1) -> ItemTable:
    """A table by a config section."""
    method, config = configure(TABLES, Section(type=name, **options), "table")
    generator = torch.Generator().manual_seed(seed)
    return method().build(teacher, config, generator, Silent())


def rounding(vectors: ItemVectors) -> float:
    """How far two orders of the same float32 sums of products can lie apart."""
    if isinstance(vectors, CodedTable):
        books = np.abs(vectors.codebooks)
        return float(2 * len(books) * UNIT * books.max((1, 2)).sum())
    if isinstance(vectors, FactoredTable):
        ranks = [core.shape[0] * vectors.block for core in vectors.cores[1:]]
        largest = math.prod(float(np.abs(core).max()) for core in vectors.cores)
        return 2 * sum(ranks) * UNIT * math.prod(ranks) * largest
    return 0.0


def everything(vectors: ItemVectors) -> np.ndarray:
    """All vectors (N, D)."""
    return vectors.vectors(np.arange(len(vectors)))


def written(vectors: ItemVectors, folder: Path) -> dict[str, bytes]:
    """A table's files."""
    vectors.save(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_every_member_is_tried() -> None:
    """No table method escapes these tests."""
    assert set(OPTIONS) == set(TABLES)


@every
def test_vectors_have_the_shape_of_the_rows(
    teacher: Teacher, name: str, options: dict[str, Any]
) -> None:
    """Rows of any shape give vectors of that shape, D wide, in training and after."""
    table = build(teacher, name, options)
    rows = torch.tensor([[0, 5, 299], [7, 7, 1]])

    for training in (True, False):
        table.train(training)
        assert table(rows).shape == (2, 3, 16)
        assert table(rows[:, :0]).shape == (2, 0, 16)
    assert (table.items, table.dim) == teacher.vectors.shape


@every
def test_a_config_is_judged_before_there_is_a_teacher(name: str, options: dict[str, Any]) -> None:
    """What builds passes the check by sizes alone; what its table is too large for does not."""
    method, config = configure(TABLES, Section(type=name, **options), "table")

    method().check(config, 300, 16)

    if name not in {"dense", "int8", "qr", "tt", "sttd"}:
        with pytest.raises(ConfigError):
            method().check(config, 1 << 20, 16)


@every
def test_gradients_reach_every_parameter(
    teacher: Teacher, name: str, options: dict[str, Any]
) -> None:
    """What is learned is learned from the vectors: no parameter is left out."""
    table = build(teacher, name, options)
    table.train()
    torch.manual_seed(0)

    (table(torch.arange(300)).sin().sum() + table.penalty()).backward()

    parameters = dict(table.named_parameters())
    assert parameters
    for where, parameter in parameters.items():
        assert parameter.grad is not None, where
        assert bool(parameter.grad.to_dense().any()), where
        assert bool(parameter.grad.to_dense().isfinite().all()), where


@every
def test_what_ships_is_what_was_judged(
    teacher: Teacher, name: str, options: dict[str, Any]
) -> None:
    """The exported vectors are those of eval mode, up to the order of float32 sums."""
    table = build(teacher, name, options).eval()
    vectors = table.export()

    with torch.no_grad():
        seen = table(torch.arange(300)).numpy()

    assert np.abs(everything(vectors) - seen).max() <= rounding(vectors)
    assert (len(vectors), vectors.dim) == (300, 16)


@every
def test_files_give_back_what_was_saved(
    teacher: Teacher, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Saved and loaded vectors are equal to the last bit."""
    vectors = build(teacher, name, options).eval().export()

    loaded = load_vectors(vectors.save(tmp_path), 300, lambda file: tmp_path / file)

    np.testing.assert_array_equal(everything(loaded), everything(vectors))


@every
def test_a_seed_makes_the_same_bytes(
    teacher: Teacher, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """One seed, one table; another seed, another, where anything is drawn."""
    one, again, other = (
        written(build(teacher, name, options, seed).eval().export(), tmp_path / folder)
        for folder, seed in (("one", 1), ("again", 1), ("other", 2))
    )

    assert one == again
    assert (one == other) == (name in UNSEEDED)


@every
def test_tables_are_smaller_than_the_dense_one(
    teacher: Teacher, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """All files together take less than the float32 table."""
    files = written(build(teacher, name, options).eval().export(), tmp_path)

    taken = sum(len(file) for file in files.values())
    assert taken < 300 * 16 * 4 or (name, options) == ("dense", {})


@every
def test_codes_are_in_range(teacher: Teacher, name: str, options: dict[str, Any]) -> None:
    """No code is over K, and each item has M."""
    vectors = build(teacher, name, options).eval().export()
    if not isinstance(vectors, CodedTable):
        return

    books, size, _ = vectors.codebooks.shape
    assert vectors.codes.shape == (300, books)
    assert int(vectors.codes.max()) < size


@every
def test_tables_begin_nearer_the_teacher_than_chance(
    teacher: Teacher, name: str, options: dict[str, Any]
) -> None:
    """Squared distances to the teacher's are under half those of random vectors of its scale."""
    if options.get("start") == "gaussian":
        return
    theirs = teacher.vectors.numpy()
    vectors = everything(build(teacher, name, options).eval().export())
    chance = np.random.default_rng(0).normal(scale=theirs.std(), size=theirs.shape)

    assert ((theirs - vectors) ** 2).sum() < 0.5 * ((theirs - chance) ** 2).sum()


@every
def test_a_step_on_what_is_seen_moves_what_ships(
    teacher: Teacher, name: str, options: dict[str, Any]
) -> None:
    """Training on changes the export: nothing that learns is cut off from it."""
    table = build(teacher, name, options)
    before = everything(table.eval().export()).copy()
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    table.train()
    table.anneal(0.9)

    table(torch.arange(300)).sum().backward()
    optimizer.step()

    after = everything(table.eval().export())
    assert not np.array_equal(before, after)


@pytest.mark.parametrize(
    "freeze", [lambda table: table, lambda table: table.train().eval()], ids=["as built", "trained"]
)
def test_weights_move_to_a_table_built_alike(
    teacher: Teacher, freeze: Callable[[ItemTable], ItemTable]
) -> None:
    """A checkpoint's state in a fresh table of the same config gives the same export."""
    for name, options in VARIANTS:
        table = build(teacher, name, options)
        with torch.no_grad():
            for parameter in table.parameters():
                parameter.mul_(1.25)
        frozen = freeze(table).eval()
        fresh = build(teacher, name, options)
        fresh.load_state_dict(frozen.state_dict())

        same = np.array_equal(everything(fresh.eval().export()), everything(frozen.export()))
        assert same, name
