"""What holds for every member of TABLES, and what each promises of its error."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compress.costs import bytes_by_part
from compress.export import export_split
from compress.rankers.base import Ranker
from compress.rankers.sides import Place
from compress.rankers.structure import Inputs
from compress.tables import TABLES, TableMethod, look_up, reordered

Build = Callable[..., Ranker]
Draw = Callable[..., Inputs]
# The energy of the error, as a share of the table's; no field here has rows enough for codes.
ERRORS = {"float32": 0.0, "float16": 1e-6, "int8": 2e-3, "int4": 1e-2, "pq": 2e-3}
every_table = pytest.mark.parametrize("kind", TABLES)
BLOCKS = (range(300), range(300, 1000))


def method_of(kind: str) -> TableMethod:
    """The method with its default options."""
    method: Any = TABLES[kind]
    made: TableMethod = method(method.Config())
    return made


def table_of(width: int = 16, seed: int = 0) -> nn.Embedding:
    """A trained table's like: rows of very different lengths, the first ones of a block zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1000, width, generator=generator)
    weight *= torch.exp(torch.randn(1000, 1, generator=generator))
    for block in BLOCKS:
        weight[block.start] = 0.0
    return nn.Embedding(1000, width, _weight=weight, sparse=True)


def vectors(table: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """(n, D) of rows (n,), each looked up as its block's."""
    found = []
    for block in BLOCKS:
        of_block = rows[(rows >= block.start) & (rows < block.stop)]
        found.append(look_up(table, of_block.to(torch.int32)[:, None], [block.start])[:, 0])
    return torch.cat(found)


def shipped(ranker: Ranker, kind: str) -> Ranker:
    """The ranker with its tables as they ship."""

    def make(table: nn.Module, places: Sequence[Place]) -> nn.Module:
        assert isinstance(table, nn.Embedding)
        return method_of(kind).shipped(table, [place.rows for place in places])

    return ranker.with_tables(make).eval()


def test_every_table_promises_an_error() -> None:
    """A new one must say how far off its rows may be."""
    assert set(ERRORS) == set(TABLES)


@every_table
@pytest.mark.parametrize("width", [16, 5, 1])
def test_rows_ship_near_what_was_trained(kind: str, width: int) -> None:
    """Zeros stay zeros to the last bit: they are the rows of what is not known."""
    table = table_of(width)

    found = vectors(method_of(kind).shipped(table, BLOCKS), torch.arange(1000))

    weight = table.weight.detach()
    error = (found.detach() - weight).square().sum() / weight.square().sum()
    assert found.dtype == torch.float32
    assert found.shape == (1000, width)
    assert float(error) <= ERRORS[kind]
    assert not found[0].any()
    assert not found[300].any()


@every_table
def test_a_table_of_zeros_ships(kind: str) -> None:
    """No scale is zero."""
    table = nn.Embedding(1000, 4, _weight=torch.zeros(1000, 4))

    assert not vectors(method_of(kind).shipped(table, BLOCKS), torch.arange(1000)).any()


@every_table
def test_rows_move_within_their_blocks(kind: str) -> None:
    """Row i becomes what row order[i] was, exactly."""
    table = method_of(kind).shipped(table_of(5), BLOCKS)
    order = torch.cat([torch.arange(300).flip(0), torch.arange(300, 1000).flip(0)])

    moved = vectors(reordered(table, order), torch.arange(1000))

    assert torch.equal(moved, vectors(table, torch.arange(1000))[order])


@every_table
@pytest.mark.parametrize("width", [16, 5])
def test_a_table_takes_the_bytes_that_it_is_priced_at(kind: str, width: int) -> None:
    """To the byte, scales included."""
    method = method_of(kind)

    table = method.shipped(table_of(width), BLOCKS)

    held = [*table.buffers(), *table.parameters()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert size == method.bytes((len(block), width) for block in BLOCKS)


def test_small_rows_keep_their_shape_beside_large_ones() -> None:
    """In four bits, too: a row a thousand times as short errs by no larger share of itself."""
    weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(1))
    weight[1::2] /= 1000
    table = nn.Embedding(1000, 16, _weight=weight)

    found = vectors(method_of("int4").shipped(table, BLOCKS), torch.arange(1000))

    error = (found - weight).square().sum(1) / weight.square().sum(1)
    assert float(error[1::2].mean()) < 0.01


@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind != "float32"])
def test_small_tables_make_a_small_graph(build: Build, tmp_path: Path, kind: str) -> None:
    """Each table lies in it once, as it ships, and the card counts it with the tables."""
    ranker = build("dlrm", {"dim": 8, "widths": {"item": 3, "device": 3}})

    export_split(shipped(ranker, kind), tmp_path / "model.onnx")

    fields = [field for field in ranker.fields if not field.numeric]
    told = method_of(kind).bytes((field.rows, field.width) for field in fields)
    parts = bytes_by_part(tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    largest = max(np.prod(t.dims) for t in graph.initializer if t.data_type == 1)
    assert told - 200 <= parts["embedding tables"] <= told
    assert largest <= max(p.numel() for p in ranker.layers())
