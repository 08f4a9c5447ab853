"""What holds for every member of RANKERS: the split equals the plain ranker, slim equals masked."""

import dataclasses
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import nn

from compress.config import ConfigError
from compress.rankers import RANKERS
from compress.rankers.base import Ranker
from compress.rankers.sides import MISSING, OOV
from compress.rankers.structure import Inputs, Keep
from compress.slim import mask, slim
from model_store.manifest import FeatureSpec

# Features of one width do not stand together, and one that is multi-valued is among them.
WIDTHS = {"user": 3, "likes": 2, "device": 3, "genres": 6, "request_numeric": 5}
CASES = [
    pytest.param("dlrm", {"interaction": "cat"}, id="dlrm-cat"),
    pytest.param("dlrm", {"widths": WIDTHS}, id="dlrm-cat-widths"),
    pytest.param("dlrm", {"interaction": "dot"}, id="dlrm-dot"),
    pytest.param("dlrm", {"interaction": "dot", "widths": WIDTHS}, id="dlrm-dot-widths"),
    pytest.param("dcnv2", {"structure": "parallel"}, id="dcnv2-parallel"),
    pytest.param("dcnv2", {"structure": "parallel", "rank": 3}, id="dcnv2-parallel-low-rank"),
    pytest.param("dcnv2", {"structure": "stacked"}, id="dcnv2-stacked"),
    pytest.param("dcnv2", {"structure": "stacked", "rank": 3}, id="dcnv2-stacked-low-rank"),
    pytest.param("dcnv2", {"widths": WIDTHS, "rank": (3, 2)}, id="dcnv2-parallel-widths"),
]
every_ranker = pytest.mark.parametrize(("name", "options"), CASES)
Build = Callable[..., Ranker]
Draw = Callable[..., Inputs]


def some_of(ranker: Ranker) -> Keep:
    """Drops fields of both sides, a numeric one too, neurons, and positions where they may go."""
    dropped = {"likes", "genres", "candidate_numeric", "user"}
    hidden = {layer.name: tuple(range(1, layer.width, 2)) for layer in ranker.hidden()}
    dims = {"device": (2,), "request_numeric": (0, 3), "brand": (1, 2, 3)}
    if ranker.prunable().aligned:
        dims = {"device": (2,), "request_numeric": (0, 2), "brand": (0, 1, 2), "item": (0, 2)}
    return Keep(tuple(f.name for f in ranker.fields if f.name not in dropped), hidden, dims)


def test_every_registered_ranker_is_tested_here() -> None:
    """A new ranker must join the cases below."""
    assert {case.values[0] for case in CASES} == set(RANKERS)


@every_ranker
@pytest.mark.parametrize("request_rows", [1, 7])
def test_split_forward_equals_plain_forward(
    build: Build, draw: Draw, name: str, options: dict[str, Any], request_rows: int
) -> None:
    """Computing the request once changes no score, for one request row or one a candidate."""
    ranker, inputs = build(name, options), draw(request_rows, 7)

    torch.testing.assert_close(ranker.forward_split(inputs), ranker(inputs), atol=1e-6, rtol=0)


@every_ranker
def test_a_request_row_repeated_scores_as_one(
    build: Build, draw: Draw, name: str, options: dict[str, Any]
) -> None:
    """R = 1 means the same as its row repeated for every candidate."""
    ranker, inputs = build(name, options), draw(1, 5)
    repeated = dataclasses.replace(
        inputs,
        request_numeric=inputs.request_numeric.expand(5, -1),
        request_ids=inputs.request_ids.expand(5, -1),
    )

    torch.testing.assert_close(ranker(repeated), ranker(inputs))


@every_ranker
def test_slim_equals_mask(build: Build, draw: Draw, name: str, options: dict[str, Any]) -> None:
    """What is cut out physically scores as what is zeroed in place, plain and split."""
    ranker = build(name, options)
    keep = some_of(ranker)
    small = slim(ranker, keep).eval()
    inputs, fewer = draw(6, 6), pick(draw(6, 6), ranker.features, small.features)

    expected = mask(ranker, keep)(inputs)

    torch.testing.assert_close(small(fewer), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(small.forward_split(fewer), expected, atol=1e-5, rtol=0)


@every_ranker
def test_slim_keeps_only_what_is_named(build: Build, name: str, options: dict[str, Any]) -> None:
    """Tables, bottom MLPs and neurons of what was dropped are gone, and the features say so."""
    ranker = build(name, options)
    keep = some_of(ranker)
    small = slim(ranker, keep)
    pruned = {f.name for f in small.features if f.pruned}

    assert {f.name: f.width for f in small.fields} == {
        f.name: len(keep.dims_of(f)) for f in ranker.fields if f.name in keep.fields
    }
    assert pruned == {"likes", "genres", "price", "user"}
    assert sum(len(table) for table in small.sparse_tables().values()) == 7 + 30 + 5
    assert small.candidate.bottom is None
    assert all(h.width == len(keep.hidden[h.name]) for h in small.hidden())
    for tensor in ("request_ids", "candidate_ids", "request_numeric"):
        live = sorted((f.start, f.length) for f in small.features if f.tensor == tensor)
        assert live[0][0] == 0
        assert all(a + length == b for (a, length), (b, _) in pairwise(live))


@every_ranker
def test_slimming_twice_equals_slimming_once(
    build: Build, draw: Draw, name: str, options: dict[str, Any]
) -> None:
    """A slimmed ranker is a ranker: it can be slimmed again."""
    ranker = build(name, options)
    fields = tuple(f.name for f in ranker.fields if f.name != "brand")
    once = slim(ranker, Keep(fields, {}))
    twice = slim(once, Keep(tuple(f for f in fields if f != "user"), {}))
    direct = slim(ranker, Keep(tuple(f for f in fields if f != "user"), {}))
    inputs = draw(3, 3, twice.features)

    assert torch.equal(twice.eval()(inputs), direct.eval()(inputs))


@every_ranker
def test_keeping_everything_changes_no_byte(
    build: Build, name: str, options: dict[str, Any]
) -> None:
    """Slimming by nothing is a copy."""
    ranker = build(name, options)
    same = slim(ranker, Keep(tuple(f.name for f in ranker.fields), {}))

    assert same.features == ranker.features
    for before, after in zip(ranker.parameters(), same.parameters(), strict=True):
        assert torch.equal(before, after)


@every_ranker
def test_the_same_generator_draws_the_same_weights(
    build: Build, name: str, options: dict[str, Any]
) -> None:
    """Weights are a function of the seed alone."""
    first, second = build(name, options, seed=3), build(name, options, seed=3)

    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@every_ranker
def test_flops_equal_what_the_layers_do(
    build: Build, draw: Draw, name: str, options: dict[str, Any]
) -> None:
    """The linear layers counted by hooks, plus what is no layer, are exactly `flops`."""
    for ranker in (whole := build(name, options), slim(whole, some_of(whole)).eval()):
        counted = 0

        def count(layer: nn.Module, args: Any, out: torch.Tensor) -> None:
            nonlocal counted
            counted += 2 * args[0].shape[1] * out.shape[1] + out.shape[1]

        for module in ranker.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(count)
        ranker(draw(1, 1, ranker.features))
        widths = [field.width for field in ranker.fields]
        beside = {"dlrm": 0, "dcnv2": 2 * 2 * sum(widths)}[name]  # ⊙ and + of each cross
        if options.get("interaction") == "dot":
            beside = sum(2 * min(pair) for pair in combinations(widths, 2))

        assert sum(ranker.flops().values()) == counted + beside


@every_ranker
def test_columns_of_a_reader_belong_to_fields_wholly(
    build: Build, name: str, options: dict[str, Any]
) -> None:
    """No column is left out, whatever the widths: the shares of each sum to one."""
    prunable = build(name, options).prunable()

    assert torch.equal(prunable.membership.sum(0), torch.ones(prunable.membership.shape[1]))
    for reader in prunable.readers:
        assert reader.layer.in_features >= reader.start + prunable.membership.shape[1]


@every_ranker
def test_zeroing_all_readers_columns_of_a_field_removes_it(
    build: Build, draw: Draw, name: str, options: dict[str, Any]
) -> None:
    """A field whose columns are zero in every reader has no influence: that is what UMEC zeroes."""
    ranker, inputs = build(name, options), draw(4, 4)
    prunable = ranker.prunable()
    position = [f.name for f in prunable.fields].index("item")
    touched = prunable.membership[position] > 0
    with torch.no_grad():
        for reader in prunable.readers:
            columns = reader.layer.weight[:, reader.start : reader.start + len(touched)]
            columns[:, touched] = 0.0
        before = ranker(inputs)
        place = next(p for p in ranker.candidate.places if p.feature.name == "item")
        ranker.tables[str(place.width)].weight[place.rows.start : place.rows.stop] = 7.0

    torch.testing.assert_close(ranker(inputs), before)


def pick(inputs: Inputs, old: tuple[FeatureSpec, ...], new: tuple[FeatureSpec, ...]) -> Inputs:
    """The columns that the new features kept of the old ones, in their new places."""
    placed = {f.name: f for f in old}
    parts = {}
    for field in dataclasses.fields(Inputs):
        live = sorted((f for f in new if f.tensor == field.name), key=lambda f: f.start)
        columns = [placed[f.name].start + k for f in live for k in range(f.length)]
        parts[field.name] = getattr(inputs, field.name)[:, columns]
    return Inputs(**parts)


def test_a_narrower_field_has_zeros_behind_it_in_inner_products(build: Build, draw: Draw) -> None:
    """It scores as a field of the others' width whose last positions are zero."""
    narrow = build("dlrm", {"interaction": "dot", "dim": 6, "widths": {"device": 2}})
    wide = build("dlrm", {"interaction": "dot", "dim": 6})
    with torch.no_grad():
        for small, large in ((narrow.request, wide.request), (narrow.candidate, wide.candidate)):
            for place, padded in zip(small.places, large.places, strict=True):
                own = narrow.tables[str(place.width)].weight[place.rows.start : place.rows.stop]
                rows = wide.tables["6"].weight[padded.rows.start : padded.rows.stop]
                rows.zero_()[:, : place.width] = own
    others = {n: p for n, p in narrow.named_parameters() if not n.startswith("tables")}
    wide.load_state_dict(others, strict=False)
    inputs = draw(1, 5)

    torch.testing.assert_close(narrow(inputs), wide(inputs))


def test_inner_products_refuse_positions_that_are_not_nested(build: Build) -> None:
    """No order of the positions has zeros behind both."""
    ranker = build("dlrm", {"interaction": "dot"})
    fields = tuple(field.name for field in ranker.fields)

    with pytest.raises(ValueError, match="nested"):
        slim(ranker, Keep(fields, {}, {"device": (0, 1), "brand": (1, 2)}))


def test_multi_valued_features_pool_by_the_mean_of_what_is_there(build: Build, draw: Draw) -> None:
    """Padding counts for nothing; an empty list is a zero vector."""
    ranker, inputs = build("dlrm", {}), draw(3, 3)
    inputs.request_ids[:, 1:4] = torch.tensor(
        [[2, 4, MISSING], [MISSING, MISSING, MISSING], [OOV, MISSING, MISSING]]
    )
    position = [f.name for f in ranker.fields].index("likes")
    rows = ranker.tables["4"].weight[ranker.request.places[1].rows.start :]

    pooled = torch.cat(ranker.request_fields(inputs), 1)[:, position]

    torch.testing.assert_close(pooled[0], (rows[2] + rows[4]) / 2)
    assert torch.equal(pooled[1], torch.zeros(4))
    torch.testing.assert_close(pooled[2], rows[OOV])


def test_tables_start_as_dlrms() -> None:
    """Rows are uniform within ±sqrt(1/rows); out-of-vocabulary and missing rows are zero."""
    from_rows = 400
    features = [
        FeatureSpec.model_validate(
            {
                "name": "i",
                "kind": "categorical",
                "side": "item",
                "encoding": {"type": "hash", "rows": from_rows},
                "column": "i",
                "tensor": "candidate_ids",
            }
        )
    ]
    ranker = RANKERS["dlrm"](features, RANKERS["dlrm"].Config(), torch.Generator().manual_seed(0))
    table = ranker.tables["16"].weight

    assert torch.equal(table[: MISSING + 1], torch.zeros(2, 16))
    assert table.abs().max() <= (1 / from_rows) ** 0.5
    assert table[2:].std().item() == pytest.approx((1 / from_rows / 3) ** 0.5, rel=0.05)


def test_default_sizes_are_the_papers() -> None:
    """13 numbers and 26 categories give d = 432-512-256-1 and 705,793 top-MLP FLOPs."""
    numbers = [
        FeatureSpec.model_validate(
            {
                "name": f"I{k}",
                "kind": "numeric",
                "side": "context",
                "encoding": {"type": "numeric"},
                "column": f"I{k}",
                "tensor": "request_numeric",
                "start": k,
            }
        )
        for k in range(13)
    ]
    tokens = [
        FeatureSpec.model_validate(
            {
                "name": f"C{k}",
                "kind": "categorical",
                "side": "item",
                "encoding": {"type": "hash", "rows": 3},
                "column": f"C{k}",
                "tensor": "candidate_ids",
                "start": k,
            }
        )
        for k in range(26)
    ]
    config = RANKERS["dlrm"].Config()
    flops = RANKERS["dlrm"]([*numbers, *tokens], config, torch.Generator()).flops()

    assert flops["top"] == 705_793
    assert flops["bottom_request"] == 311_120


def test_a_ranker_without_item_features_is_refused(build: Build) -> None:
    """There would be nothing to rank."""
    request_only = [f for f in build("dlrm", {}).features if f.request_side]

    with pytest.raises(ConfigError, match="side = 'item'"):
        build("dlrm", {}, features=request_only)


@every_ranker
def test_a_ranker_without_request_features_scores(
    build: Build, draw: Draw, name: str, options: dict[str, Any]
) -> None:
    """All features may be the item's."""
    features = tuple(f for f in build(name, options).features if not f.request_side)
    left = {n: w for n, w in options.get("widths", {}).items() if n in {f.name for f in features}}
    ranker = build(name, {**options, "widths": left}, features=features)
    inputs = draw(1, 4, features)

    torch.testing.assert_close(ranker.forward_split(inputs), ranker(inputs))
