"""Channels cut out of a module's weights, and the same channels masked: the two must agree."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from compress.config import CompressError
from compress.tied import Axis, Example, Tied

M = TypeVar("M", bound=nn.Module)
Gone = Mapping[Axis, Tensor]  # positions, by axis

ROUNDING: Final = 1e3  # of the largest output: by how many of its roundings sums may differ
COARSEST: Final = 0.02  # of it, where a rounding is as coarse as bfloat16's

# What a forward that is not ours may raise at sizes that it does not expect.
FOREIGN: Final = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


class NotTheSame(CompressError):
    """A module does not compute without its channels what it computes with them masked."""


def gone(tied: Tied, channels: Mapping[str, Tensor]) -> tuple[Gone, Gone]:
    """What goes if these channels go, by the layer's name: what is cut out, what a mask zeroes."""
    cut: dict[Axis, list[Tensor]] = {}
    zeroed: dict[Axis, list[Tensor]] = {}
    for layer in tied.layers:
        if layer.name in channels:
            for axis, places in layer.members.items():
                found = places[channels[layer.name]].flatten()
                cut.setdefault(axis, []).append(found)
                if axis in layer.shrunk:
                    zeroed.setdefault(axis, []).append(found)
    return _joined(cut), _joined(zeroed)


def _joined(found: Mapping[Axis, Sequence[Tensor]]) -> Gone:
    return {axis: torch.cat(list(places)).sort().values for axis, places in found.items()}


def narrowed(module: M, cut: Gone) -> M:
    """A copy without these positions of its parameters and buffers; of the same class."""
    small = copy.deepcopy(module)
    held = dict([*small.named_parameters(), *small.named_buffers()])
    narrower = {id(held[name]): _without(held[name], places) for name, places in _by_name(cut)}
    for part in small.modules():
        for name, tensor in [*_own(part)]:
            if id(tensor) in narrower:
                setattr(part, name, narrower[id(tensor)])
        _resize(part)
    return small


def masked(module: M, zeroed: Gone) -> M:
    """A copy of the same size with zeros at these positions."""
    same = copy.deepcopy(module)
    held = dict(same.named_parameters())
    with torch.no_grad():
        for (name, dimension), places in zeroed.items():
            held[name].index_fill_(dimension, places.to(held[name].device), 0.0)
    return same


def _by_name(cut: Gone) -> Iterator[tuple[str, dict[int, Tensor]]]:
    for wanted in {name for name, _ in cut}:
        yield wanted, {axis[1]: places for axis, places in cut.items() if axis[0] == wanted}


def _without(tensor: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    found = tensor.detach()
    for dimension, positions in places.items():
        kept = torch.ones(found.shape[dimension], dtype=torch.bool)
        kept[positions] = False
        found = found.index_select(dimension, kept.nonzero().flatten().to(found.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(found, requires_grad=tensor.requires_grad)
    return found


def _own(part: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from part.named_parameters(recurse=False, remove_duplicate=False)
    yield from part.named_buffers(recurse=False, remove_duplicate=False)


def _resize(part: nn.Module) -> None:
    """What a layer says of its own size."""
    if isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, nn.Embedding | nn.EmbeddingBag):
        part.embedding_dim = part.weight.shape[1]
    elif isinstance(part, nn.BatchNorm1d):
        kept = [held for held in (part.weight, part.running_mean) if isinstance(held, Tensor)]
        part.num_features = len(kept[0]) if kept else part.num_features
    elif isinstance(part, nn.PReLU):
        part.num_parameters = len(part.weight)


def prove(module: nn.Module, tied: Tied, channels: Mapping[str, Tensor], example: Example) -> None:
    """See that a module computes the example without some channels as with them masked.

    Raises:
        NotTheSame: it does not; or it fails, and the text says how.
    """
    cut, zeroed = gone(tied, channels)
    try:
        ours = answers(narrowed(module, cut), example)
    except FOREIGN as error:
        raise NotTheSame(f"it fails once it is narrower: {error}") from error
    for number, (small, whole) in enumerate(
        zip(ours, answers(masked(module, zeroed), example), strict=True)
    ):
        if small.shape != whole.shape:
            shapes = f"{tuple(small.shape)}, and {tuple(whole.shape)} masked"
            raise NotTheSame(f"output {number} becomes {shapes}")
        far = _distance(small, whole)
        if far > 1.0:
            raise NotTheSame(
                f"output {number} differs from the masked one's by {far:.3g} times "
                "what rounding explains"
            )


def answers(module: nn.Module, example: Example) -> list[Tensor]:
    """What it computes of the example in eval mode; what it draws is drawn alike each time."""
    module.eval()
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return example.given_to(module)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in what rounding may make of it; infinite if one is not a number."""
    if not theirs.dtype.is_floating_point:
        return 0.0 if torch.equal(ours, theirs) else float("inf")
    if not theirs.numel():
        return 0.0
    finite = theirs.isfinite()
    if not torch.equal(ours[~finite], theirs[~finite]) or not ours[finite].isfinite().all():
        return float("inf")
    if not finite.any():
        return 0.0
    scale = theirs[finite].abs().max()
    tiny = torch.finfo(theirs.dtype)
    allowed = min(ROUNDING * tiny.eps, COARSEST) * scale + tiny.tiny
    return float((ours[finite] - theirs[finite]).abs().max() / allowed)
