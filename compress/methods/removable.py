"""Which groups a ranker has: what may go of it, and saves something of what is budgeted."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import torch

from compress.budget import Bound
from compress.config import ConfigError
from compress.methods.groups import (
    FIELDS,
    WIDTHS,
    Block,
    Groups,
    Norms,
    Problem,
    Quorum,
    SlimmingConfig,
    Weights,
    by_field,
)
from compress.methods.slopes import device_of, measured, removal_costs
from compress.rankers.base import Ranker
from compress.rankers.structure import Field, Hidden, Prunable, Sizes
from compress.train import TrainingData

PositionCosts = Callable[[Groups], Sequence[float]]


def make_problem(
    ranker: Ranker,
    config: SlimmingConfig,
    bounds: Sequence[Bound],
    dataset: TrainingData,
    *,
    seed: int,
    norms: Norms = "weights",
) -> Problem:
    """The problem of slimming a ranker, its groups measured in some norm.

    Args:
        ranker: trained.
        config: what may go.
        bounds: what is to be stayed under.
        dataset: what positions, and groups in the metric ``loss``, are judged on.
        seed: of the order of its rows.
        norms: what a group's norm is measured in. ``weights``: as it is. ``energy``: in shares of
            its layer's. ``loss``: in the loss that its removal costs, see `removal_costs`.

    Raises:
        ConfigError: no choice of groups meets the bounds, or the ranker has no such groups.
    """
    groups = removable(
        ranker,
        config,
        bounds,
        costs=lambda singles: removal_costs(ranker, [singles], dataset, seed)[0].tolist(),
    )
    return Problem(ranker, measured(ranker, groups, norms, dataset, seed), bounds).within_reach()


def check_budget(
    ranker: Ranker, config: SlimmingConfig, bounds: Sequence[Bound], where: str
) -> None:
    """Refuse what no choice of groups can meet; it depends on the ranker's sizes alone.

    Args:
        ranker: trained or not.
        config: what may go.
        bounds: what is to be stayed under.
        where: how errors call the budget.

    Raises:
        ConfigError: as `make_problem`.
    """
    try:
        groups = removable(ranker, config, bounds, costs=lambda singles: [0.0] * singles.count)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    Problem(ranker, groups, bounds).within_reach(where)


def removable(
    ranker: Ranker, config: SlimmingConfig, bounds: Sequence[Bound], costs: PositionCosts
) -> list[Groups]:
    """The layers of groups of which some may go, and save something.

    Args:
        ranker: trained or not.
        config: what may go.
        bounds: what is to be saved.
        costs: what the loss rises by without each position, where positions may go.

    Raises:
        ConfigError: there are none.
    """
    groups = [*_groups(ranker, config, bounds)]
    if WIDTHS in config.parts and _saves(ranker.sizes(), _narrowest(ranker), bounds):
        groups.append(_positions(ranker, config, costs))
    groups = [g for g in groups if g.removable]
    if not groups:
        named = ", ".join(bound.key for bound in bounds)
        raise ConfigError(
            f"method.parts: nothing of {', '.join(config.parts)} may go and saves {named}; "
            "name other parts, or budget something else"
        )
    return groups


def _groups(ranker: Ranker, config: SlimmingConfig, bounds: Sequence[Bound]) -> Iterator[Groups]:
    prunable = ranker.prunable()
    if FIELDS in config.parts:
        yield _fields(ranker, prunable, config)
    for layer in prunable.hidden if "neurons" in config.parts else ():
        if _saves(ranker.sizes(), _one_less(ranker, layer), bounds):
            yield _neurons(layer, config.unit, device_of(ranker))


def _one_less(ranker: Ranker, layer: Hidden) -> Sizes:
    dense = ranker.sizes()
    return Sizes(dense.widths, {**dense.hidden, layer.name: dense.hidden[layer.name] - 1})


def _narrowest(ranker: Ranker) -> Sizes:
    dense = ranker.sizes()
    return Sizes(dict.fromkeys(dense.widths, 1), dense.hidden)


def _saves(dense: Sizes, smaller: Sizes, bounds: Sequence[Bound]) -> bool:
    return any(bound.share(smaller) < bound.share(dense) for bound in bounds)


def _fields(ranker: Ranker, prunable: Prunable, config: SlimmingConfig) -> Groups:
    numeric = [i for i, f in enumerate(prunable.fields) if f.numeric]
    locked = tuple(numeric) if config.protect_numeric else ()
    where = device_of(ranker)
    return Groups(
        name=FIELDS,
        count=len(prunable.fields),
        readers=prunable.readers,
        membership=prunable.membership.to(where),
        locked=locked,
        quorums=_quorums(prunable.fields, locked, prunable.least),
        metric=torch.ones(len(prunable.fields), device=where),
        unit=1,
    )


def _neurons(layer: Hidden, unit: int, where: torch.device) -> Groups:
    # One unit stays, so that the layer does.
    rest = max(layer.width - unit, 0)
    return Groups(
        name=layer.name,
        count=layer.width,
        readers=(layer.reader,),
        membership=None,
        locked=(),
        quorums=(Quorum(tuple(range(layer.width)), layer.width - rest),),
        metric=torch.ones(layer.width, device=where),
        unit=unit,
    )


def _quorums(fields: Sequence[Field], locked: Sequence[int], least: int) -> tuple[Quorum, ...]:
    """A field a side, so that both have a say; more if the ranker cannot do with so few.

    Embeddings where there are enough: then a budget that takes a bottom MLP to go can be met.
    """
    sides = [
        tuple(i for i, field in enumerate(fields) if field.request is request)
        for request in (True, False)
    ]
    open_sides = [side for side in sides if side and not set(side) & set(locked)]
    missing = max(0, least - len(locked) - len(open_sides))
    quorums = []
    for side in open_sides:
        wanted = min(len(side), 1 + (missing if side is open_sides[-1] else 0))
        embedded = tuple(i for i in side if not fields[i].numeric)
        quorums.append(Quorum(embedded if len(embedded) >= wanted else side, wanted))
    return tuple(quorums)


def _positions(ranker: Ranker, config: SlimmingConfig, costs_of: PositionCosts) -> Groups:
    """Blocks of ``width_unit`` positions, those of a field that matter least together.

    Args:
        ranker: whose fields.
        config: tells the unit.
        costs_of: what the loss rises by without each of such groups.
    """
    prunable = ranker.prunable()
    fields = prunable.fields
    singles = [Block(i, (k,)) for i, field in enumerate(fields) for k in range(field.width)]
    costs = costs_of(_positions_of(ranker, prunable, singles))
    if prunable.aligned:
        costs = _shared_ranks(singles, costs)
    blocks = [
        Block(singles[own[0]].field, tuple(sorted(singles[g].positions[0] for g in least)))
        for own in by_field(singles)
        for ranked in [sorted(own, key=lambda g: costs[g])]
        for start in range(0, len(ranked), config.width_unit)
        for least in [ranked[start : start + config.width_unit]]
    ]
    return _positions_of(ranker, prunable, blocks)


def _shared_ranks(singles: Sequence[Block], costs: Sequence[float]) -> list[int]:
    """Places in one order of the positions, by what they cost in all fields together.

    Those that fewer fields have come first, so that what fields keep stays nested.
    """
    found: dict[int, tuple[int, float]] = {}
    for block, cost in zip(singles, costs, strict=True):
        (k,) = block.positions
        holders, total = found.get(k, (0, 0.0))
        found[k] = holders + 1, total + cost
    order = sorted(found, key=lambda k: (*found[k], k))
    return [order.index(block.positions[0]) for block in singles]


def _positions_of(ranker: Ranker, prunable: Prunable, blocks: Sequence[Block]) -> Groups:
    where = device_of(ranker)
    starts = np.cumsum([0, *(field.width for field in prunable.fields)])
    membership = torch.zeros(len(blocks), int(starts[-1]), device=where)
    for g, block in enumerate(blocks):
        membership[g, [int(starts[block.field]) + k for k in block.positions]] = 1.0
    members, aligned = by_field(blocks), prunable.aligned
    return Groups(
        name=WIDTHS,
        count=len(blocks),
        readers=() if aligned else prunable.readers,
        membership=membership,
        locked=tuple(own[-1] for own in members) if aligned else (),
        quorums=() if aligned else tuple(Quorum(tuple(own), 1) for own in members),
        metric=torch.ones(len(blocks), device=where),
        unit=1,
        blocks=tuple(blocks),
        made=tuple(_made(ranker)) if aligned else (),
    )


def _made(ranker: Ranker) -> Iterator[Weights]:
    """What makes the fields' vectors, in the columns of their concatenation."""
    end = 0
    for side in ranker.sides:
        if side.bottom is not None:
            last = cast("torch.nn.Linear", side.bottom.layers[-1])
            columns, end = slice(end, end + last.out_features), end + last.out_features
            yield Weights(columns, last.weight.data.T)
            yield Weights(columns, last.bias.data.unsqueeze(0))
        for place in side.places:
            columns, end = slice(end, end + place.width), end + place.width
            table = cast("torch.nn.Embedding", ranker.tables[str(place.width)]).weight.data
            yield Weights(columns, table[place.rows.start : place.rows.stop])
