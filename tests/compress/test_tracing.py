"""Which dimensions go together: rules by hand, random graphs, and another library's opinion."""

from collections.abc import Callable

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compress.config import ConfigError
from compress.cutting import NotTheSame, gone, masked, narrowed, prove
from compress.tied import Example, Tied, TiedLayer
from compress.tracing import trace

ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A layer, something, and a layer that reads it."""

    def __init__(self, between: Callable[..., Tensor], width: int = 8, **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(width, 2)
        self.parts = nn.ModuleDict(parts)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6) -> (B, 2)."""
        return self.last(self.between(self.first(x), *self.parts.values()))


def traced(module: nn.Module, example: object = ROWS, stay: tuple[str, ...] = ()) -> Tied:
    """What is tied, of a module on an example."""
    return trace(module, Example.of(example), stay)


def layer(tied: Tied, name: str) -> TiedLayer:
    """The one layer of a name."""
    return next(x for x in tied.layers if x.name == name)


def proved(module: nn.Module, example: object = ROWS, draw: int = 0) -> set[str]:
    """Cut some of all that may go, prove it equal to the mask; the names of the layers cut."""
    generator = torch.Generator().manual_seed(draw)
    tied = traced(module, example)
    cut = {
        x.name: torch.randperm(x.count, generator=generator)[: max(1, x.count // 2)]
        for x in tied.layers
        if not x.lock and x.count > 1
    }
    prove(module, tied, cut, Example.of(example))
    return set(cut)


def test_a_neuron_is_a_row_a_bias_and_a_column() -> None:
    """Neuron g of a layer: its row, its bias, and column g of the layer that reads it."""
    tied = traced(Between(torch.relu))

    members = {axis: places.tolist() for axis, places in layer(tied, "first").members.items()}
    each = [[g] for g in range(8)]
    assert members == {("first.weight", 0): each, ("first.bias", 0): each, ("last.weight", 1): each}
    assert layer(tied, "first").shrunk == {("last.weight", 1)}


def test_the_ends_are_locked_with_reasons() -> None:
    """What reads the module's input, and what is its output, stays."""
    tied = traced(Between(torch.relu))

    assert layer(tied, "inputs of first").lock == "reads what is of fixed width"
    assert layer(tied, "last").lock == "is the module's output"


def gated_halves(x: Tensor) -> Tensor:
    """Half of the neurons gate the other half."""
    value, gate = x.chunk(2, dim=-1)
    return value * gate.sigmoid()


FREE: dict[str, tuple[Callable[..., Tensor], int, dict[str, nn.Module]]] = {
    "an activation that is not 0 at 0": (lambda x: torch.exp(x).sigmoid() + 1, 8, {}),
    "a batch norm": (lambda x, norm: norm(x).relu(), 8, {"norm": nn.BatchNorm1d(8)}),
    "a norm without weights": (lambda x, n: n(x), 8, {"n": nn.BatchNorm1d(8, affine=False)}),
    "a residual": (lambda x, more: x + more(x).relu(), 8, {"more": nn.Linear(8, 8)}),
    "in place": (lambda x: x.relu_().mul_(2.0), 8, {}),
    "gated halves": (gated_halves, 4, {}),
    "glu": (functional.glu, 4, {}),
    "concatenated twice": (lambda x: torch.cat([x, x.tanh()], -1), 16, {}),
    "stacked and flattened": (lambda x: torch.stack([x, x.exp()], 1).flatten(1), 16, {}),
    "heads": (lambda x: x.view(len(x), 2, -1).transpose(1, 2).mean(2), 4, {}),
    "a matrix, by @": (lambda x, w: x @ w.weight, 8, {"w": nn.Linear(8, 8, bias=False)}),
    "a matrix, transposed": (lambda x, w: x @ w.weight.T, 8, {"w": nn.Linear(8, 8)}),
    "scaled to length 1": (lambda x: functional.normalize(x, dim=-1), 8, {}),
    "attention over rows": (lambda x: torch.softmax(x @ x.T, -1) @ x, 8, {}),
    "einsum": (lambda x: torch.einsum("bd,cd->bc", x, x), 3, {}),
    "PReLU": (lambda x, act: act(x), 8, {"act": nn.PReLU(8)}),
    "PReLU of one slope": (lambda x, act: act(x), 8, {"act": nn.PReLU()}),
    "Hardswish": (functional.hardswish, 8, {}),
    "Hardshrink": (functional.hardshrink, 8, {}),
    "LogSigmoid": (functional.logsigmoid, 8, {}),
    "where": (lambda x: torch.where(x > 0, x, 0.5), 8, {}),
    "like": (lambda x: torch.ones_like(x) - torch.maximum(x, torch.zeros_like(x)), 8, {}),
    "tiled": (lambda x: torch.tile(x.unsqueeze(1), (1, 2, 1)).sum(1), 8, {}),
    "reversed": (lambda x: x.flip(-1), 8, {}),
}


@pytest.mark.parametrize("name", FREE)
def test_what_leaves_nothing_behind_may_go(name: str) -> None:
    """The first layer's neurons go through, and the narrower module computes as the masked one."""
    between, width, parts = FREE[name]
    torch.manual_seed(1)

    assert any(layer.startswith("first") for layer in proved(Between(between, width, **parts)))


def attended(x: Tensor, attention: nn.Module) -> Tensor:
    """(B, T, d) to itself."""
    return attention(x, x, x, need_weights=False)[0]


LOCKING: dict[str, tuple[Callable[..., Tensor], int, dict[str, nn.Module], str]] = {
    "a layer norm": (lambda x, n: n(x), 8, {"n": nn.LayerNorm(8)}, "layer_norm in parts.n"),
    "a norm by length": (lambda x, n: n(x), 8, {"n": nn.RMSNorm(8)}, "others by rms_norm"),
    "a softmax": (lambda x: x.softmax(-1), 8, {}, "taken together with others by softmax"),
    "a mean of all": (lambda x: x - x.mean(-1, keepdim=True), 8, {}, "by mean"),
    "a place": (lambda x: x[:, :4], 4, {}, "picked by its place by slice"),
    "an operation nobody knows": (lambda x: torch.cumprod(x, 1), 8, {}, "cumprod"),
    "an input beside it": (lambda x: x + ROWS.repeat(1, 2)[:, :8], 8, {}, "fixed width in add"),
    "a sum that is not 0": (
        lambda x: torch.cat([x.sigmoid().sum(-1, keepdim=True)] * 2, -1),
        2,
        {},
        "is summed by sum, and is not 0",
    ),
    "a constant in a product": (
        lambda x: (x + 1) @ (x + 1).T,
        3,
        {},
        "is summed by matmul, and is not 0",
    ),
    "a computed weight": (
        lambda x, w: functional.linear(x, w.weight.tanh()),
        8,
        {"w": nn.Linear(8, 8)},
        "linear, which is not understood",
    ),
    "a module of sizes": (
        lambda x, a: attended(x[:, None], a)[:, 0],
        8,
        {"a": nn.MultiheadAttention(8, 2, batch_first=True)},
        "belongs to a MultiheadAttention",
    ),
}


@pytest.mark.parametrize("name", LOCKING)
def test_what_would_change_the_rest_is_locked_and_told(name: str) -> None:
    """All of the first layer's neurons stay, for a reason that names what they meet."""
    between, width, parts, reason = LOCKING[name]
    tied = traced(Between(between, width, **parts))

    locks = [x.lock for x in tied.layers if x.name.startswith("first")]
    assert locks
    assert all(lock is not None and reason in lock for lock in locks), locks


def test_a_norm_beside_what_is_fixed_is_locked_there() -> None:
    """Where it normalises the module's input, not where it normalises a layer's output."""

    class Beside(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.parts["norm"](torch.cat([x, self.first(x)], -1)))

    module = Beside(torch.relu, 14, norm=nn.BatchNorm1d(14))

    assert proved(module) == {"first"}
    assert layer(traced(module), "parts.norm").count == 6


def test_sums_of_what_is_0_shrink_what_makes_it() -> None:
    """In an inner product nothing reads a neuron by a weight, so its own row has to be zero."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 8), nn.Embedding(5, 8)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return (self.left(x).relu() * self.right(ids)).sum(-1)

    module, ids = Product(), torch.tensor([0, 3, 4])
    found = layer(traced(module, (ROWS, ids)), "left + right")

    assert found.lock is None
    assert found.degree == 2
    assert found.shrunk == {("left.weight", 0), ("left.bias", 0), ("right.weight", 1)}
    assert proved(module, (ROWS, ids)) == {"left + right"}


def test_a_shared_table_goes_with_all_that_read_it() -> None:
    """One column of a table that two layers read, once pooled and once not."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(9, 4, mode="mean")
            self.again = nn.Embedding(9, 4)
            self.again.weight = self.table.weight
            self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.one(self.table(ids)) + self.other(self.again(ids[:, 0]))

    module, ids = Shared(), torch.randint(0, 9, (3, 5))
    tied = traced(module, ids)

    assert set(layer(tied, "table").members) == {
        ("table.weight", 1),
        ("one.weight", 1),
        ("other.weight", 1),
    }
    assert proved(module, ids) == {"table"}
    small = narrowed(module, gone(tied, {"table": torch.tensor([2])})[0])
    assert small.again.weight is small.table.weight
    assert (small.table.embedding_dim, small.again.embedding_dim, small.one.in_features) == (3,) * 3


def test_cut_layers_tell_their_new_sizes_and_keep_their_flags() -> None:
    """Sizes, buffers and whether a parameter is trained, after neurons 0 and 5 have gone."""
    module = Between(lambda x, norm: norm(x), norm=nn.BatchNorm1d(8))
    module.first.weight.requires_grad_(False)
    module.parts["norm"].running_mean = torch.arange(8.0)
    tied = traced(module)
    small = narrowed(module, gone(tied, {"first": torch.tensor([0, 5])})[0])

    norm = small.parts["norm"]
    assert (small.first.out_features, norm.num_features, small.last.in_features) == (6, 6, 6)
    assert norm.running_mean.tolist() == [1.0, 2.0, 3.0, 4.0, 6.0, 7.0]
    assert not small.first.weight.requires_grad
    assert small.last.weight.requires_grad
    assert module.first.out_features == 8


def test_a_mask_zeroes_what_reads_and_nothing_else() -> None:
    """The columns that read the neuron are zero; all else is as it was."""
    module = Between(torch.relu)
    tied = traced(module)
    same = masked(module, gone(tied, {"first": torch.tensor([3])})[1])
    expected = {name: p.clone() for name, p in module.named_parameters()}
    expected["last.weight"][:, 3] = 0.0

    assert all(torch.equal(p, expected[name]) for name, p in same.named_parameters())


def test_what_is_asked_to_stay_stays() -> None:
    """By the name of a part; a name that the module does not have is refused."""
    tied = traced(Between(torch.relu), stay=("first",))

    assert layer(tied, "first").lock == "was asked to stay"
    with pytest.raises(ConfigError, match="nothing called 'firsts'; did you mean 'first'"):
        traced(Between(torch.relu), stay=("firsts",))


def test_a_module_that_cannot_be_exported_is_refused() -> None:
    """Its forward branches on a value; the text says so."""
    with pytest.raises(ConfigError, match="may not branch on values"):
        traced(Between(lambda x: x if x.sum() > 0 else -x))


def test_a_width_that_the_trace_does_not_see_is_seen_by_the_proof() -> None:
    """A forward that divides by a width computes something else once it is narrower."""
    module = Between(lambda x: x / x.shape[-1])

    with pytest.raises(NotTheSame, match="differs from the masked one's"):
        proved(module)


def test_tracing_leaves_the_module_as_it_was() -> None:
    """Weights, statistics and modes."""
    module = Between(lambda x, norm: norm(x), norm=nn.BatchNorm1d(8))
    module.first.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    traced(module)

    assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    assert module.training
    assert not module.first.training


# --- random graphs --------------------------------------------------------------------------------

Step = tuple[str, int, int]


class Graph(nn.Module):
    """Steps that each take one or two of the tensors so far, (B, ·), and add one.

    Args:
        steps: an operation and two numbers that choose among the tensors.
    """

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.table, self.layers = nn.Embedding(7, 4), nn.ModuleDict()
        widths = [6, 4]
        for number, (name, i, j) in enumerate(steps):
            a, b = widths[i % len(widths)], widths[j % len(widths)]
            made = self._parts(name, a, b, 4 + j % 4)
            self.layers.update({f"{part}_{number}": layer for part, layer in made.items()})
            widths.append({"linear": 4 + j % 4, "cat": a + b, "stack": 2 * a}.get(name, a))
        self.last = nn.Linear(sum(widths), 3)

    @staticmethod
    def _parts(name: str, a: int, b: int, out: int) -> dict[str, nn.Module]:
        if name == "linear":
            return {"linear": nn.Linear(a, out)}
        if name == "batchnorm":
            return {"norm": nn.BatchNorm1d(a)}
        if name == "layernorm":
            return {"norm": nn.LayerNorm(a)}
        if name in {"add", "mul", "product"} and a != b:
            return {"fit": nn.Linear(b, a)}
        return {"double": nn.Linear(a, 2 * a)} if name in {"glu", "chunk"} else {}

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """(B, 6), (B, T) -> (B, 3)."""
        made = [x, self.table(ids).mean(1)]
        for number, (name, i, j) in enumerate(self.steps):
            made.append(self._apply(name, number, made[i % len(made)], made[j % len(made)]))
        return self.last(torch.cat(made, -1))  # all of it: export leaves out what goes nowhere

    def _apply(self, name: str, number: int, a: Tensor, b: Tensor) -> Tensor:
        parts = {p: part for p, part in self.layers.items() if p.endswith(f"_{number}")}
        if f"fit_{number}" in parts:
            b = parts.pop(f"fit_{number}")(b)
        for part in parts.values():
            a = part(a)
        return OPERATIONS[name](a, b)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(("linear", "batchnorm", "layernorm"), lambda a, _: a),
    "cat": lambda a, b: torch.cat([a, b], -1),
    "stack": lambda a, _: torch.stack([a, a.sigmoid()], 1).flatten(1),
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "product": lambda a, b: a * (a * b).sum(-1, keepdim=True),
    "glu": lambda a, _: functional.glu(a),
    "chunk": lambda a, _: gated_halves(a),
    "relu": lambda a, _: a.relu(),
    "sigmoid": lambda a, _: a.sigmoid(),
    "tanh": lambda a, _: a.tanh(),
    "cos": lambda a, _: a.cos(),
}
NAMES = st.sampled_from([*OPERATIONS, "linear", "linear"])
STEPS = st.lists(st.tuples(NAMES, st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=7)


@pytest.mark.slow
@settings(max_examples=30)
@given(steps=STEPS, seed=st.integers(0, 99))
def test_masked_is_sliced_on_random_graphs(steps: list[Step], seed: int) -> None:
    """Whatever may go by the trace alone, without rehearsal, leaves what the mask leaves."""
    torch.manual_seed(seed)
    module = Graph(steps)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)

    proved(module, (ROWS, torch.randint(0, 7, (3, 4))), seed)


def test_random_graphs_have_something_to_cut() -> None:
    """One of them, so that the test above does not hold for want of channels."""
    module = Graph([("linear", 0, 1), ("glu", 2, 0), ("cat", 3, 1), ("linear", 4, 2)])
    cut = proved(module, (ROWS, torch.randint(0, 7, (3, 4))))

    assert {"table", "layers.linear_0", "layers.double_1", "layers.linear_3"} <= cut


# --- an oracle ------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A residual, a batch norm, a concat and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.back, self.side = nn.Linear(8, 8), nn.Linear(6, 5)
        self.gate, self.value = nn.Linear(13, 7), nn.Linear(13, 7)
        self.last = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6) -> (B, 2)."""
        hidden = self.norm(self.first(x)).relu()
        hidden = torch.cat([self.side(x).tanh(), hidden + self.back(hidden)], -1)
        return self.last(self.gate(hidden).sigmoid() * self.value(hidden))


@pytest.mark.parametrize(
    ("name", "channel"), [("first", 3), ("back", 0), ("side", 4), ("value", 6)]
)
@pytest.mark.filterwarnings("ignore")
def test_torch_pruning_ties_the_same_dimensions(name: str, channel: int) -> None:
    """Its dependency graph names the same rows and columns of the same layers for a neuron."""
    module = Mixed().eval()
    tied = traced(module)
    ours = {
        (axis[0].removesuffix(".weight"), "out" if axis[1] == 0 else "in", int(position))
        for found in tied.layers
        for places in [found.members.get((f"{name}.weight", 0))]
        if places is not None and (places == channel).any()
        for axis, members in found.members.items()
        if axis[0].endswith(".weight")
        for position in members[int((places == channel).any(1).nonzero())]
    }
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=ROWS)
    layer = module.get_submodule(name)
    group = graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, idxs=[channel])
    names = {part: path for path, part in module.named_modules()}
    theirs = {
        (names[item.dep.target.module], "out" if out else "in", int(position))
        for item in group
        if item.dep.target.module in names
        for out in [graph.is_out_channel_pruning_fn(item.dep.handler)]
        for position in item.idxs
    }

    assert ours == theirs
