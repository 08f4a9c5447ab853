"""Codes for the rows of large fields: near what was trained, learned on, shipped as learned."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress.config import ConfigError, check
from compress.progress import Silent
from compress.rankers.base import Ranker
from compress.rankers.structure import Inputs
from compress.shipping import learned, look_ups, shipped
from compress.tables import look_up, reordered
from compress.tables.pq import LearnedCodes, Pq, PqConfig

Build = Callable[..., Ranker]
Draw = Callable[..., Inputs]
# A small field before, between and after two large ones of other lengths.
BLOCKS = (range(20), range(20, 620), range(620, 630), range(630, 1030), range(1030, 1040))
LARGE = [1, 3]


def method_of(**options: Any) -> Pq:
    """Codes of two positions each, for fields of a hundred rows or more."""
    return Pq(PqConfig(**{"cut": 2, "words": 32, "min_rows": 100, "rest": "float32", **options}))


def table_of(width: int = 8) -> nn.Embedding:
    """Random rows, those of the fourth field ten times as long."""
    weight = torch.randn(1040, width, generator=torch.Generator().manual_seed(0))
    weight[BLOCKS[3].start : BLOCKS[3].stop] *= 10
    return nn.Embedding(1040, width, _weight=weight, sparse=True)


def coded(method: Pq, table: nn.Embedding, counts: torch.Tensor | None = None) -> LearnedCodes:
    """The table as it is fine-tuned."""
    counts = torch.ones(len(table.weight)) if counts is None else counts
    generator = torch.Generator().manual_seed(1)
    found = method.learned(table, BLOCKS, lambda: counts, generator, Silent())
    assert isinstance(found, LearnedCodes)
    return found


def vectors(table: nn.Module, of: int) -> torch.Tensor:
    """(n, D) of a field's rows."""
    block = BLOCKS[of]
    rows = torch.arange(block.start, block.stop, dtype=torch.int32)
    return look_up(table, rows[:, None], [block.start])[:, 0].detach()


def error(table: nn.Module, weight: torch.Tensor, of: int) -> float:
    """The energy of the error, as a share of the field's."""
    block = BLOCKS[of]
    exact = weight[block.start : block.stop].detach()
    return float((vectors(table, of) - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize("width", [8, 5])
def test_large_fields_are_coded_and_small_ones_are_not(width: int) -> None:
    """Each near what was trained, however long its rows are; the last piece may be shorter."""
    table = table_of(width)

    found = coded(method_of(), table)

    assert found.codes.shape == (1000, -(-width // 2))
    for of in range(len(BLOCKS)):
        off = error(found, table.weight, of)
        assert 0.0 < off < 0.15 if of in LARGE else off == 0.0


def test_columns_of_coded_and_other_fields_may_stand_in_any_order() -> None:
    """A batch looks up in both places, and each column gets its own vectors."""
    table = table_of()
    found = coded(method_of(), table)
    order = [3, 0, 1, 4, 2]
    rows = torch.tensor([[BLOCKS[of].start + 7 for of in order]], dtype=torch.int32)

    together = look_up(found, rows, [BLOCKS[of].start for of in order])[0]

    assert torch.equal(together, torch.stack([vectors(found, of)[7] for of in order]))


def test_rows_that_are_looked_up_often_come_nearer() -> None:
    """They weigh more in the codewords."""
    table = table_of()
    counts = torch.zeros(1040)
    counts[20:60] = 10_000.0

    even, weighed = (coded(method_of(frequency=f), table, counts) for f in (0.0, 1.0))

    def off(found: nn.Module) -> float:
        return float((vectors(found, 1)[:40] - table.weight[20:60].detach()).square().sum())

    assert off(weighed) < 0.5 * off(even)


def test_codewords_learn_and_codes_stay() -> None:
    """The gradient goes to codewords and to the other fields' rows, which are sparse as ever."""
    found = coded(method_of(), table_of())
    rows = torch.tensor([[3, 25]], dtype=torch.int32)

    look_up(found, rows, [0, 20]).sum().backward()

    assert [name for name, _ in found.named_parameters()] == ["words", "rest.weight"]
    assert found.words.grad is not None
    assert int(found.words.grad.abs().sum(-1).count_nonzero()) == found.codes.shape[1]
    assert isinstance(found.rest, nn.Embedding)
    assert found.rest.weight.grad is not None
    assert found.rest.weight.grad.is_sparse


def test_what_ships_is_what_was_learned() -> None:
    """To the last bit: codewords are seen at the precision that they ship in while they learn."""
    method = method_of()
    found = coded(method, table_of())
    with torch.no_grad():
        found.words.mul_(1.01)

    small = method.shipped(found, BLOCKS)

    assert all(torch.equal(vectors(small, of), vectors(found, of)) for of in range(len(BLOCKS)))


@pytest.mark.parametrize("rest", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("width", [8, 5])
def test_codes_take_the_bytes_that_they_are_priced_at(rest: str, width: int) -> None:
    """Codewords once, a byte a code, the others as they ship."""
    method = method_of(rest=rest)

    small = method.shipped(coded(method, table_of(width)), BLOCKS)

    held = [*small.buffers(), *small.parameters()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert size == method.bytes((len(block), width) for block in BLOCKS)


def test_rows_move_within_their_blocks() -> None:
    """Row i becomes what row order[i] was, coded or not."""
    method = method_of(rest="int8")
    small = method.shipped(coded(method, table_of()), BLOCKS)
    order = torch.cat([torch.arange(b.start, b.stop).flip(0) for b in BLOCKS])

    moved = reordered(small, order)

    for of in range(len(BLOCKS)):
        assert torch.equal(vectors(moved, of), vectors(small, of).flip(0))


def test_look_ups_are_counted_by_row(build: Build, clicks: Callable[..., Any]) -> None:
    """Of the training rows alone, each feature's in its own block."""
    data = clicks(500)
    ranker = build("dlrm", {}, data.features)
    places = [*ranker.request.places, *ranker.candidate.places]

    counts = look_ups(ranker, places, data)

    (batch,) = data.batches("train", 1000)
    place = next(p for p in places if p.feature.name == "i1")
    ids = batch.candidate_ids[:, place.feature.start]
    own = counts[place.rows.start : place.rows.stop]
    assert int(counts.sum()) == 500 * len(places)
    assert own.tolist() == [int((ids == row).sum()) for row in range(len(place.rows))]


def test_a_ranker_of_coded_tables_scores_near_the_one_that_it_was(
    build: Build, clicks: Callable[..., Any], draw: Draw
) -> None:
    """Learned and shipped; its other tables stay those that train by rows."""
    data = clicks(500)
    method = Pq(PqConfig(cut=1, words=8, min_rows=12, rest="float32"))
    ranker = build("dlrm", {}, data.features)
    inputs = draw(7, 7, data.features)

    found = learned(ranker, method, data, 1, Silent()).eval()

    assert not found.sparse_tables()
    assert ranker.sparse_tables()
    torch.testing.assert_close(found(inputs), ranker(inputs), atol=0.5, rtol=0)
    torch.testing.assert_close(shipped(found, method)(inputs), found(inputs), atol=1e-6, rtol=0)


def test_fewer_rows_than_codewords_are_refused() -> None:
    """There would be nothing to tell apart."""
    with pytest.raises(ConfigError, match="min_rows: expected at least as many rows as words"):
        check(PqConfig, {"min_rows": 100}, "table")
