"""Which dimensions of any module's weights go together, read off its exported graph.

The graph of `torch.export` is walked once. Each tensor in it has at most one axis of channels, and
carries the channel of every position on that axis (see `compress.tied`):

| an operation that | does to channels |
|---|---|
| multiplies by a weight | makes its columns one with what comes in; its rows are new ones |
| looks up a table | the table's columns are new ones |
| is element-wise | the two sides' become one (union-find) |
| moves elements (reshape, concat, …) | moves them: it is run on an array of channel numbers |
| sums over them | lets them go if a removed one is 0 there, else locks them |
| is anything else, or the module's output | locks them, with the reason |

What is zero where decides what a removed channel leaves behind. Where only weights read it, their
columns are zero, so it may be anything (sigmoid(0) = 0.5 never arrives). Where values are summed,
as in an inner product, the channel's own rows have to be zero, and must stay so on the way: the
*degree* of a position is 0 if it does not (``x + 1``, a sigmoid), else how many factors of the
position are zero then.
"""

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from compress.config import ConfigError, nearest
from compress.tied import FIXED, Axis, Channels, Example, Product, Tied, TiedLayer

SIZED: Final = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.BatchNorm1d, nn.PReLU)
# What a single zero does not tell: 0·y is 0 for all y, 0 + y is not.
PROBES: Final = (0.7, -1.3, 2.1)
# What the walk meets in its parts.
ATEN: Final = torch.ops.aten
COMPOSED: Final = (
    ATEN.cosine_similarity.default,
    ATEN.einsum.default,
    ATEN.hardshrink.default,
    ATEN.hardswish.default,
    ATEN.prelu.default,
    ATEN._prelu_kernel.default,  # noqa: SLF001  what exporting makes of PReLU
    ATEN.tile.default,
    ATEN.where.ScalarOther,
    ATEN.where.ScalarSelf,
)


def trace(module: nn.Module, example: Example, stay: Sequence[str] = ()) -> Tied:
    """What goes together in a module, as it computes the example in eval mode.

    Args:
        module: left as it is.
        example: its arguments.
        stay: modules and parameters, by name, all of whose dimensions are locked.

    Raises:
        ConfigError: it cannot be exported, or has no such names.
    """
    walk = Walk(module)
    program = _exported(module, example)
    signature = program.graph_signature
    for names in (signature.inputs_to_parameters, signature.inputs_to_buffers):
        walk.weights |= {placeholder: walk.first_name[name] for placeholder, name in names.items()}
    for node in program.graph.nodes:
        walk.visit(node)
    walk.lock_by_owner(stay)
    return Tied(
        layers=tuple(walk.layers()),
        sources=frozenset(walk.sources),
        tables=frozenset(walk.tables),
        products=tuple(walk.products),
        rows=example.rows,
    )


def _exported(module: nn.Module, example: Example) -> torch.export.ExportedProgram:
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own
            program = torch.export.export(module, example.args, dict(example.kwargs), strict=False)
            known = torch.export.default_decompositions()
            # In-place operations become plain ones, and composed ones their parts.
            plain: torch.export.ExportedProgram = program.run_decompositions(
                {op: known[op] for op in COMPOSED}
            )
            return plain
    except Exception as error:  # the edge to code that is not ours
        raise ConfigError(
            f"module: torch.export cannot trace it on the example ({_first_line(error)}); its "
            "forward may not branch on values of tensors, and takes what the example holds"
        ) from error
    finally:
        for part, was in training.items():
            part.training = was


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


# --- the walk ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """The axis of a tensor that has channels.

    Attributes:
        channels: (n,) by position; `FIXED`: none.
        degree: (n,) see above.
    """

    axis: int
    channels: Tensor
    degree: Tensor

    def spread(self, row: Tensor, shape: Sequence[int]) -> Tensor:
        """(n,) over a whole tensor."""
        along = [1] * len(shape)
        along[self.axis] = -1
        return row.view(along).expand(*shape).contiguous()


Found = Value | tuple[Value | None, ...] | None


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer; ``order`` are its dimensions, swapped if it is transposed."""

    name: str
    order: tuple[int, int] = (0, 1)


@dataclass
class Walk:
    """One pass over a graph, node by node."""

    module: nn.Module
    channels: Channels = field(default_factory=Channels)
    values: dict[Node, Found] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    sources: set[Axis] = field(default_factory=set)
    readers: set[Axis] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)

    def __post_init__(self) -> None:
        held: list[tuple[str, Tensor]] = [
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, str] = {}
        for name, tensor in held:
            first.setdefault(id(tensor), name)
        self.first_name = {name: first[id(tensor)] for name, tensor in held}
        self._ndim = {name: tensor.ndim for name, tensor in held}
        self._parameters = {first[id(p)] for p in self.module.parameters()}
        self._turned: dict[Node, Weight] = {}
        self._laid: dict[Node, Weight] = {}
        self._understood: set[str] = set()

    def visit(self, node: Node) -> None:
        """The channels of what a node makes."""
        self._understood.clear()
        if node.op == "call_function":
            self.values[node] = _rule(node)(self, node)
        elif node.op == "output":
            for x in node.all_input_nodes:
                self.lock(x, "is the module's output")
        reason = f"reaches {told(node)}, which is not understood"
        for x in node.all_input_nodes:
            weight = self._laid.get(x) or self.weight(x)
            if weight is not None and weight.name not in self._understood:
                for dimension in range(self._ndim[weight.name]):
                    self.channels.fix((weight.name, dimension), reason)

    def value(self, x: object) -> Value | None:
        """What an argument carries."""
        found = self.values.get(x) if isinstance(x, Node) else None
        return found if isinstance(found, Value) else None

    def weight(self, x: object) -> Weight | None:
        """The parameter or buffer that an argument is."""
        if not isinstance(x, Node):
            return None
        name = self.weights.get(x.name) if x.op == "placeholder" else None
        return self._turned.get(x) if name is None else Weight(name)

    def turn(self, node: Node, weight: Weight) -> None:
        """A node is a matrix, transposed."""
        self._understood.add(weight.name)
        self._turned[node] = Weight(weight.name, (weight.order[1], weight.order[0]))

    def lay(self, node: Node, weight: Weight) -> None:
        """A node is a vector, laid along one axis."""
        self._understood.add(weight.name)
        self._laid[node] = weight

    def lock(self, x: object, reason: str) -> None:
        """All channels of an argument stay."""
        found = self.values.get(x) if isinstance(x, Node) else None
        for value in found if isinstance(found, tuple) else (found,):
            if value is not None:
                self.channels.lock(value.channels, reason)

    def along(self, x: object, dimension: int, length: int) -> tuple[Tensor, Tensor] | None:
        """The channels and degrees of a weight's dimension, as values; None: it is no weight."""
        laid = self._laid.get(x) if isinstance(x, Node) else None
        weight = laid or self.weight(x)
        if weight is None or weight.order != (0, 1):
            return None
        axis = (weight.name, 0 if laid else dimension)
        self._understood.add(weight.name)
        source = weight.name in self._parameters
        if source:
            self.sources.add(axis)
        channels = self.channels.of(axis, length)
        return channels, torch.full_like(channels, int(source))

    def product(
        self, node: Node, x: object, weight: Weight, dims: tuple[int, int], bias: object
    ) -> Value:
        """A weight with rows and columns, by ``dims``, is applied to x's last axis."""
        self._understood.add(weight.name)
        rows, columns = ((weight.name, dimension) for dimension in dims)
        out, value = size(node), self.value(x)
        reads = self.channels.of(columns, size(x)[-1])
        self.readers.add(columns)
        if value is not None and value.axis == len(size(x)) - 1:
            self.channels.tie(value.channels, reads, "reads what is of fixed width")
        else:
            self.lock(x, f"lies across {told(node)}")
            self.channels.lock(reads, "reads what is of fixed width")
        makes = self.channels.of(rows, out[-1])
        self.sources.add(rows)
        added = self.along(bias, 0, out[-1]) if isinstance(bias, Node) else None
        if added is not None:
            self.channels.tie(makes, added[0], "")
        elif isinstance(bias, Node):
            self.channels.lock(makes, "gets a bias that is computed")
        self.products.append(Product(rows, columns, size(x)[:-1].numel(), bias is not None))
        zero = torch.ones_like(makes) if added is None else added[1]
        return Value(len(out) - 1, makes, zero)

    def looked_up(self, table: object, axis: int) -> Value | None:
        """Rows of a table, by ids."""
        weight = self.weight(table)
        if weight is None or weight.order != (0, 1):
            return None
        found = self.along(table, 1, size(table)[1])
        self.tables.add(weight.name)
        self.channels.fix((weight.name, 0), "ids look its rows up")
        return found and Value(axis, *found)

    # --- what is left of it ---

    def lock_by_owner(self, stay: Sequence[str]) -> None:
        """What the caller names, and parameters of modules that hold their sizes elsewhere."""
        for name in stay:
            held = [part for part, _ in self.module.named_modules() if part] + [*self.first_name]
            if name not in held:
                raise ConfigError(
                    f"stay: the module has nothing called {name!r}{nearest(name, held)}; expected "
                    f"names of its parts or parameters, such as {', '.join(sorted(held)[:5])}"
                )
        known = (*SIZED, nn.ParameterList, nn.ParameterDict)
        for axis in self.channels.axes():
            aliases = [n for n, first in self.first_name.items() if first == axis[0]]
            if any(_within(alias, name) for alias in aliases for name in stay):
                self.channels.fix(axis, "was asked to stay")
            for alias in aliases:
                owner = self.module.get_submodule(alias.rpartition(".")[0])
                if type(owner).__module__.startswith("torch.") and not isinstance(owner, known):
                    kind = type(owner).__name__
                    self.channels.fix(axis, f"belongs to a {kind}, which holds sizes elsewhere")

    def layers(self) -> Iterator[TiedLayer]:
        """Channels that are alike."""
        names: Counter[str] = Counter()
        for members, degree, lock in self.channels.alike():
            makes = [axis for axis in members if axis in self.sources]
            name = self._name(makes or list(members))
            name = name if makes else f"inputs of {name}"
            names[name] += 1
            shrunk = set(members) & (self.readers | (self.sources if degree else set()))
            yield TiedLayer(
                name=name if names[name] == 1 else f"{name} #{names[name]}",
                members=members,
                degree=degree,
                shrunk=frozenset(axis for axis in shrunk if axis[0] in self._parameters),
                lock=lock,
            )

    def _name(self, axes: Sequence[Axis]) -> str:
        matrices = [axis for axis in axes if self._ndim[axis[0]] > 1]
        owners = [name.rpartition(".")[0] or name for name, _ in matrices or axes]
        return " + ".join(dict.fromkeys(owners))


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def size(x: object) -> torch.Size:
    """The shape of a node's tensor."""
    shape: torch.Size = cast("Node", x).meta["val"].shape
    return shape


def told(node: Node) -> str:
    """An operation, and where it stands, for a reason."""
    name = operation(node) or str(node.target)
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return f"{name} in {stack[-1]}" if stack else name


def operation(node: Node) -> str | None:
    """ATen's name of it."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - it has no public name
        return target._schema.name.removeprefix("aten::")  # noqa: SLF001
    return None


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by ATen's names for them, defaults included."""
    declared = cast("Any", node.target)._schema.arguments  # noqa: SLF001
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    given = dict(zip((a.name for a in declared), node.args, strict=False))
    return {**defaults, **given, **node.kwargs}


# --- rules: what operations do to channels --------------------------------------------------------

Rule = Callable[[Walk, Node], Found]


def _rule(node: Node) -> Rule:
    if node.target is operator.getitem:
        return _item
    name = operation(node)
    if name is not None and name in RULES:
        return RULES[name]
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return _elementwise if pointwise else _unknown


def _unknown(walk: Walk, node: Node) -> Found:
    for x in node.all_input_nodes:
        walk.lock(x, f"reaches {told(node)}, which is not understood")
    return None


def _item(walk: Walk, node: Node) -> Found:
    source, position = node.args
    found = walk.values.get(cast("Node", source))
    return found[cast("int", position)] if isinstance(found, tuple) else None


def _nothing(walk: Walk, node: Node) -> Found:
    del walk, node
    return None


def _same(walk: Walk, node: Node) -> Found:
    return walk.value(node.args[0])


def _linear(walk: Walk, node: Node) -> Found:
    given = arguments(node)
    weight = walk.weight(given["weight"])
    if weight is None:
        return _unknown(walk, node)
    return walk.product(node, given["input"], weight, weight.order, given["bias"])


def _matmul(walk: Walk, node: Node) -> Found:
    left, right = cast("tuple[Node, Node]", node.args)
    weight = walk.weight(right)
    if weight is not None and walk.weight(left) is None and len(size(right)) == 2:  # noqa: PLR2004
        columns, rows = weight.order
        return walk.product(node, left, weight, (rows, columns), None)
    if min(len(size(left)), len(size(right))) < 2:  # noqa: PLR2004
        return _unknown(walk, node)
    return _contracted(walk, node, left, right)


def _contracted(walk: Walk, node: Node, left: Node, right: Node) -> Found:
    """(…, n, k) · (…, k, m): channels along k are summed, along n or m they pass."""
    a, b = walk.value(left), walk.value(right)
    from_left = a and a.axis - len(size(left))
    from_right = b and b.axis - len(size(right))
    if a is not None and b is not None and (from_left, from_right) == (-1, -2):
        walk.channels.tie(a.channels, b.channels, "meets what is of fixed width")
        reason = f"is summed by {told(node)}, and is not 0 once it is gone"
        both = torch.where(b.channels == FIXED, a.channels, b.channels)
        walk.channels.summed(both, a.degree + b.degree, reason)
        return None
    passing = []
    for value, axis, x, own in ((a, from_left, left, -2), (b, from_right, right, -1)):
        if value is not None and axis == own:
            passing.append(Value(len(size(node)) + own, value.channels, value.degree))
        else:
            walk.lock(x, f"meets what is of fixed width in {told(node)}")
    if len(passing) == 1:
        return passing[0]
    for value in passing:
        walk.channels.lock(value.channels, f"spans two axes after {told(node)}")
    return None


def _embedding(walk: Walk, node: Node) -> Found:
    return walk.looked_up(node.args[0], len(size(node)) - 1)


def _embedding_bag(walk: Walk, node: Node) -> Found:
    return (walk.looked_up(node.args[0], 1), None, None, None)


def _batch_norm(walk: Walk, node: Node) -> Found:
    """Along axis 1, channel by channel: its parameters and statistics go with the channels."""
    x, *held = node.args[:5]
    value = walk.value(x)
    if value is None or value.axis != 1:
        return _unknown(walk, node)
    degree = value.degree
    for position, tensor in enumerate(held):
        found = walk.along(tensor, 0, len(value.channels)) if tensor is not None else None
        if found is not None:
            walk.channels.tie(value.channels, found[0], "shares a norm with what is fixed")
        elif tensor is not None:
            return _unknown(walk, node)
        if position == 0:
            degree = torch.zeros_like(degree) if tensor is None else degree + 1
    return (Value(1, value.channels, degree), None, None)


def _layer_norm(walk: Walk, node: Node) -> Found:
    x, shape = node.args[:2]
    value = walk.value(x)
    if value is None:
        return None
    if value.axis >= len(size(x)) - len(cast("list[int]", shape)):
        walk.lock(x, f"is normalised together with others by {told(node)}")
        return None
    return replace(value, degree=torch.zeros_like(value.degree))


def _glu(walk: Walk, node: Node) -> Found:
    given = arguments(node)
    value = walk.value(given["self"])
    if value is None or value.axis != given["dim"] % len(size(node)):
        return value
    half = len(value.channels) // 2
    first, gate = value.channels[:half], value.channels[half:]
    walk.channels.tie(first, gate, "is gated by what is fixed, or gates it")
    return Value(value.axis, torch.maximum(first, gate), value.degree[:half])


def _over(walk: Walk, node: Node) -> Found:
    """A reduction, or a softmax, over some axes."""
    given, name = arguments(node), operation(node)
    value, out = walk.value(given["self"]), node.meta["val"]
    if value is None:
        return None
    ndim = len(size(given["self"]))
    asked = given.get("dim")
    dims = [asked] if isinstance(asked, int) else list(asked or range(ndim))
    dims = [dim % ndim for dim in dims]
    if value.axis in dims:
        if name in SUMS:
            reason = f"is summed by {told(node)}, and is not 0 once it is gone"
            walk.channels.summed(value.channels, value.degree, reason)
        else:
            walk.lock(given["self"], f"is taken together with others by {told(node)}")
        return (None, None) if isinstance(out, tuple) else None
    lost = sum(dim < value.axis for dim in dims)
    kept = given.get("keepdim", name in ALONG)
    degree = value.degree if name not in SHIFTING else torch.zeros_like(value.degree)
    found = Value(value.axis if kept else value.axis - lost, value.channels, degree)
    return (found, None) if isinstance(out, tuple) else found


# --- element-wise -------------------------------------------------------------------------------


def _elementwise(walk: Walk, node: Node) -> Found:
    """All sides' channels become one; a removed one stays 0 if the operation gives 0 there."""
    shape = size(node)
    sides = [x for x in node.all_input_nodes if isinstance(x.meta.get("val"), Tensor)]
    values = {x: value for x in sides if (value := walk.value(x)) is not None}
    axes = {value.axis + len(shape) - len(size(x)) for x, value in values.items()}
    if len(axes) != 1:
        for x in values:
            walk.lock(x, f"meets channels of another axis in {told(node)}")
        return None
    axis = axes.pop()
    found = {x: side for x in sides if (side := _side(walk, node, x, axis)) is not None}
    if not found:
        return None
    channels = torch.stack([theirs for theirs, _ in found.values()]).amax(0)
    for theirs, _ in found.values():
        walk.channels.tie(channels, theirs, f"meets what is of fixed width in {told(node)}")
    return Value(axis, channels, _degrees(node, {x: degree for x, (_, degree) in found.items()}))


def _side(walk: Walk, node: Node, x: Node, axis: int) -> tuple[Tensor, Tensor] | None:
    """Channels and degrees of an operand along the axis; None: it is of width 1 there."""
    length, own = size(node)[axis], axis - (len(size(node)) - len(size(x)))
    value = walk.value(x)
    if value is not None:
        if len(value.channels) == length:
            return value.channels, value.degree
        walk.lock(x, f"is spread over others by {told(node)}")
        return None
    if own < 0 or size(x)[own] != length or length == 1 or _is_spread(x, own):
        return None
    fixed = torch.full((length,), FIXED)
    return walk.along(x, own, length) or (fixed, torch.zeros_like(fixed))


def _is_spread(x: Node, dimension: int) -> bool:
    """Whether one number is repeated along a dimension, as often as its forward asks for."""
    if operation(x) != "expand":
        return False
    source = size(x.args[0])
    own = dimension - (len(size(x)) - len(source))
    return own < 0 or source[own] == 1


def _degrees(node: Node, sides: Mapping[Node, Tensor]) -> Tensor:
    """(n,) of what comes out of operands with these degrees."""
    stacked = torch.stack(list(sides.values()))
    multiplied = operation(node) == "mul"
    total = stacked.sum(0) if multiplied else stacked.amax(0)
    found = torch.zeros_like(total)
    for pattern in torch.unique(stacked > 0, dim=1).T:
        zero = {x for x, is_zero in zip(sides, pattern.tolist(), strict=True) if is_zero}
        if _gives_zero(node, zero):
            found = torch.where(((stacked > 0) == pattern[:, None]).all(0), total, found)
    return found


def _gives_zero(node: Node, zero: set[Node]) -> bool:
    """Whether an operation gives 0 where these operands are 0, whatever the others are."""

    def scalar(probe: float, x: Node) -> Tensor:
        number = torch.tensor(0.0 if x in zero else probe)
        kind = x.meta["val"].dtype
        return number > 0 if kind == torch.bool else number.to(kind)

    for probe in PROBES:
        args, kwargs = map_arg((node.args, node.kwargs), partial(scalar, probe))
        if cast("Any", node.target)(*args, **kwargs) != 0:
            return False
    return bool(zero)


# --- moving elements -----------------------------------------------------------------------------


def _moves(walk: Walk, node: Node) -> Found:
    """Run on numbers of channels, on their degrees, and on where they stood along the axis."""
    inputs = [x for x in node.all_input_nodes if walk.value(x) is not None]
    if not inputs:
        weight = walk.weight(node.args[0])
        if weight is not None and operation(node) in TURNS and _is_turn(node):
            walk.turn(node, weight)
        elif weight is not None and _is_laid(node):
            walk.lay(node, weight)
        return None
    if any(_picks(walk, node, x) for x in inputs):
        for x in inputs:
            walk.lock(x, f"is picked by its place by {told(node)}")
        return None
    channels = _moved(walk, node, lambda v: v.channels, FIXED)
    degrees = _moved(walk, node, lambda v: v.degree, 0)
    places = _moved(walk, node, lambda v: torch.arange(len(v.channels)), 0)
    found = [_seen(walk, node, *parts) for parts in zip(channels, degrees, places, strict=True)]
    if operation(node) == "split" and len(found) > 1:
        _tie_parts(walk, node, found)
    return tuple(found) if isinstance(node.meta["val"], list | tuple) else found[0]


def _is_turn(node: Node) -> bool:
    matrix = torch.arange(6).view(2, 3)
    if len(size(node.args[0])) != matrix.ndim:
        return False
    moved = cast("Any", node.target)(matrix, *node.args[1:])
    return bool(torch.equal(moved, matrix.T))


def _is_laid(node: Node) -> bool:
    """Whether a vector is laid along one axis of a larger tensor, as (n,) is in (1, n, 1)."""
    wide = [length for length in size(node) if length != 1]
    return len(size(node.args[0])) == 1 and wide in ([], [*size(node.args[0])])


def _picks(walk: Walk, node: Node, x: Node) -> bool:
    """Whether an operation names positions of x's channels, which others would take up."""
    value, given = walk.value(x), arguments(node)
    name = operation(node)
    if value is None or name not in PICKS:
        return False
    if name == "index":
        chosen = given["indices"]
        masks = [i for i in chosen if i is not None and i.meta["val"].dtype == torch.bool]
        return bool(masks) or (value.axis < len(chosen) and chosen[value.axis] is not None)
    if given["dim"] % len(size(x)) != value.axis:
        return False
    out = node.meta["val"]
    return not (name == "slice" and out.shape == size(x))


def _moved(
    walk: Walk, node: Node, of: Callable[[Value], Tensor], otherwise: int
) -> tuple[Tensor, ...]:
    def stand_in(x: Node) -> Tensor:
        value, held = walk.value(x), x.meta["val"]
        if value is not None:
            return value.spread(of(value), held.shape)
        # Which rows an index takes does not matter: all are alike but along the channels.
        index = operation(node) in PICKS and not held.dtype.is_floating_point
        return torch.full(held.shape, 0 if index else otherwise)

    args, kwargs = map_arg((node.args, node.kwargs), stand_in)
    found = cast("Any", node.target)(*args, **kwargs)
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _seen(
    walk: Walk, node: Node, channels: Tensor, degrees: Tensor, places: Tensor
) -> Value | None:
    """The one axis of channels of what came out; what is the same along it becomes one."""
    if not (channels != FIXED).any():
        return None
    axis = _axis(channels, places)
    if axis is None:
        walk.channels.lock(channels, f"loses its axis in {told(node)}")
        return None
    length = channels.shape[axis]
    across = channels.movedim(axis, 0).reshape(length, -1)
    seen = across.amax(1)
    for column in torch.unique(across, dim=1).T:
        walk.channels.tie(seen, column, f"is beside what is of fixed width in {told(node)}")
    return Value(axis, seen, degrees.movedim(axis, 0).reshape(length, -1).amin(1))


def _axis(channels: Tensor, places: Tensor) -> int | None:
    """That along which the places change; else the channels; else the last of width 1."""
    free = channels == FIXED
    for numbers in (places, channels):
        least = numbers.masked_fill(free, torch.iinfo(torch.int64).max)
        most = numbers.masked_fill(free, -1)
        change = [a for a in range(numbers.ndim) if (most.amax(a) > least.amin(a)).any()]
        if change:
            return change[-1]
    thin = [a for a, length in enumerate(channels.shape) if length == 1]
    return thin[-1] if thin else None


def _tie_parts(walk: Walk, node: Node, parts: Sequence[Value | None]) -> None:
    """Parts of one width have to stay of one width."""
    value = walk.value(node.args[0])
    if value is None or arguments(node)["dim"] % len(size(node.args[0])) != value.axis:
        return
    width = len(value.channels) // len(parts)
    if len(value.channels) != width * len(parts):
        walk.lock(node.args[0], f"is cut at a fixed place by {told(node)}")
        return
    for start in range(width, len(value.channels), width):
        theirs = value.channels[start : start + width]
        walk.channels.tie(value.channels[:width], theirs, f"is cut by {told(node)}")


SUMS: Final = frozenset({"sum", "linalg_vector_norm"})
SHIFTING: Final = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax", "logsumexp"})
ALONG: Final = frozenset({*SHIFTING, "cumsum"} - {"logsumexp"})
REDUCING: Final = frozenset({"mean", "amax", "amin", "max", "min"})
TURNS: Final = frozenset({"permute", "transpose", "t"})
PICKS: Final = frozenset(
    {"slice", "select", "split_with_sizes", "unbind", "index", "index_select", "gather"}
)
MOVING: Final = frozenset(
    {"view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "expand"}
    | {"cat", "stack", "repeat", "split", "flip"}
)
RULES: Final[Mapping[str, Rule]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "embedding": _embedding,
    **dict.fromkeys(("embedding_bag", "_embedding_bag"), _embedding_bag),
    "_native_batch_norm_legit_no_training": _batch_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "glu": _glu,
    # Element by element, though torch's tags do not say so.
    **dict.fromkeys(("log_sigmoid", "zeros_like", "ones_like"), _elementwise),
    **dict.fromkeys(SUMS | SHIFTING | ALONG | REDUCING, _over),
    **dict.fromkeys(MOVING | PICKS | TURNS, _moves),
    **dict.fromkeys(("_to_copy", "type_as", "alias", "detach"), _same),
    "_assert_tensor_metadata": _nothing,
}
