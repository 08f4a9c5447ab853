"""What may go: positions inside fields, several budgets at once, and what each group saves."""

import tomllib
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compress.budget import Budget, Pricing, bounds
from compress.config import ConfigError
from compress.data.encode import place
from compress.methods.groups import Problem, SlimmingConfig, energies
from compress.methods.problem import fit_budget
from compress.methods.removable import check_budget, make_problem, removable
from compress.rankers.base import Ranker
from compress.rankers.structure import Sizes
from compress.slim import mask, slim
from compress.train import Columns, TrainingData
from tests.compress.conftest import FEATURES, feature

Build = Callable[..., Ranker]
Clicks = Callable[..., TrainingData]
ALL = ("fields", "widths", "neurons")
CASES = [
    ("dlrm", {"interaction": "cat"}),
    ("dlrm", {"interaction": "dot"}),
    ("dlrm", {"interaction": "dot", "dim": 8, "widths": {"u0": 4, "i1": 5}}),
    ("dcnv2", {"structure": "parallel", "rank": 3}),
    ("dcnv2", {"structure": "stacked"}),
]


class Bytes:
    """Four bytes a number of the tables, and nothing else; the dense bundle's may be more."""

    def __init__(self, ranker: Ranker, wider: float = 1.0) -> None:
        self._rows = {field.name: field.rows for field in ranker.fields}
        self._dense = wider * self.bytes(ranker.sizes())

    def bytes(self, sizes: Sizes) -> float:
        """Of the tables."""
        return sum(4.0 * self._rows[name] * width for name, width in sizes.widths.items())

    def dense_bytes(self) -> float:
        """What the ranker's own sizes take."""
        return self._dense

    def p50_us(self, sizes: Sizes) -> float:
        """A microsecond a field."""
        return float(sum(width > 0 for width in sizes.widths.values()))


def problem_of(
    ranker: Ranker, rows: TrainingData, pricing: Pricing | None = None, **options: Any
) -> Problem:
    """The problem of a ranker under some options."""
    config = SlimmingConfig(**options)
    bounded = bounds(ranker, config.budget, config.flops_of, pricing)
    return make_problem(ranker, config, bounded, rows, seed=1, norms="loss")


def counts_of(problem: Problem, **wanted: int) -> list[int]:
    """Counts by layer, 0 where nothing is said."""
    return [wanted.get(groups.name, 0) for groups in problem.groups]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_sizes_told_are_those_of_the_slimmed_ranker(
    build: Build, clicks: Clicks, name: str, options: dict[str, Any]
) -> None:
    """Whatever goes, fields, positions or neurons: R is counted on what is left."""
    rows = clicks(200)
    ranker = build(name, options, rows.features)
    problem = problem_of(ranker, rows, budget={"flops": 1.0}, parts=ALL, width_unit=2)
    counts = [min(2, groups.removable) for groups in problem.groups]
    order = problem.order(counts)

    small = slim(ranker, problem.keep(counts, order))

    told, found = problem.sizes(counts, order), small.sizes()
    assert {name: width for name, width in told.widths.items() if width} == found.widths
    assert told.hidden == found.hidden
    ratio = sum(small.flops().values()) / sum(ranker.flops().values())
    assert problem.ratio(counts, order) == pytest.approx([ratio])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_positions_that_go_are_those_that_were_masked(
    build: Build, clicks: Clicks, name: str, options: dict[str, Any]
) -> None:
    """A narrower field scores as the wide one with zeros in what reads its positions."""
    rows = clicks(200)
    ranker = build(name, options, rows.features)
    problem = problem_of(ranker, rows, budget={"flops": 1.0}, parts=("widths",), width_unit=2)
    keep = problem.keep([5], problem.order([5]))
    small, masked = slim(ranker, keep), mask(ranker, keep)
    batch = next(iter(rows.batches("test", 50)))
    cpu = torch.device("cpu")

    expected = masked(Columns(rows.features, masked).inputs(batch, cpu))

    assert len(keep.dims) >= 2
    torch.testing.assert_close(
        small(Columns(rows.features, small).inputs(batch, cpu)), expected, atol=1e-5, rtol=0
    )


def test_positions_are_nested_in_fields(build: Build, clicks: Clicks) -> None:
    """Those of a field that goes are no groups; of one that stays, a block does."""
    rows = clicks(200)
    ranker = build("dlrm", {}, rows.features)
    problem = problem_of(ranker, rows, budget={"flops": 1.0}, parts=ALL, width_unit=2)
    counts = counts_of(problem, fields=3, widths=problem.groups[-1].removable)
    order = problem.order(counts)

    keep = problem.keep(counts, order)

    gone = {field.name for field in ranker.fields} - set(keep.fields)
    assert len(gone) == 3
    assert all(len(keep.dims_of(f)) == 2 for f in ranker.fields if f.name in keep.fields)
    blocks = problem.groups[-1].blocks
    finite = order.groups[-1][order.energies[-1].isfinite()].tolist()
    assert not gone & {ranker.fields[blocks[g].field].name for g in finite}


def test_all_budgets_hold_at_once(build: Build, clicks: Clicks) -> None:
    """FLOPs, bytes and time have a bound each, and none is far from being met."""
    rows = clicks(200)
    ranker = build("dlrm", {"dim": 8}, rows.features)
    budget = {"flops": 0.6, "bytes": 0.5, "p50_us": 8.0}
    problem = problem_of(ranker, rows, Bytes(ranker), budget=budget, parts=ALL, width_unit=2)
    start = [0] * len(problem.groups)
    order = problem.order(start)

    counts = fit_budget(problem, start, order)

    ratio = problem.ratio(counts, order)
    assert (ratio <= problem.limits).all()
    assert (ratio >= problem.limits - 0.15).any()
    assert problem.limits == pytest.approx([0.6, 0.5, 8 / len(ranker.fields)])


def test_what_saves_more_goes_first(build: Build) -> None:
    """Of two fields worth the same the larger table goes, once bytes have a price."""
    ranker = build("dlrm", {})
    with torch.no_grad():
        ranker.top.first.weight.fill_(1.0)  # all fields are worth the same
    config = SlimmingConfig(budget={"bytes": 0.9}, parts=("fields",))
    bounded = bounds(ranker, config.budget, config.flops_of, Bytes(ranker))
    problem = make_problem(ranker, config, bounded, None, seed=1)  # type: ignore[arg-type]

    first = [ranker.fields[g].name for g in problem.order([0], np.ones(1)).groups[0][:3].tolist()]

    rows = sorted((field.rows for field in ranker.fields), reverse=True)
    assert [next(f.rows for f in ranker.fields if f.name == name) for name in first] == rows[:3]


def test_a_size_is_a_share_of_the_dense_bundle(build: Build) -> None:
    """A kB is 1,000 bytes, a KiB 1,024; more than there is asks for nothing."""
    ranker = build("dlrm", {})
    dense = Bytes(ranker).bytes(ranker.sizes())

    limits = [
        bounds(ranker, Budget(bytes=size), "all", Bytes(ranker))[0].limit
        for size in ("1 kB", "1KiB", "8MiB", 0.25)
    ]

    assert limits == pytest.approx([1000 / dense, 1024 / dense, 1.0, 0.25])


def test_a_size_without_its_unit_is_told_how_it_is_written() -> None:
    """As TOML, to be pasted."""
    with pytest.raises(ValidationError, match=r'a size like "8MiB"; did you mean "31885B"\?'):
        Budget(bytes=31885)


def test_a_share_is_one_of_the_dense_bundle_as_it_lies_there(build: Build) -> None:
    """Where the slim one keeps all in half the bytes, half is left before anything goes."""
    ranker = build("dlrm", {})

    (bound,) = bounds(ranker, Budget(bytes=0.25), "all", Bytes(ranker, wider=2.0))

    assert bound.limit == 0.25
    assert bound.share(ranker.sizes()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": {"bytes": "10B"}, "parts": ("fields",)}, r"method.budget.bytes: .* smallest"),
        ({"budget": {"flops": 1e-4}, "parts": ("neurons",)}, r"method.budget.flops: .* smallest"),
        (
            {"budget": {"flops": 1e-4, "bytes": "10B"}, "parts": ("fields",)},
            r"(?s)budget.flops.*budget.bytes",
        ),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_with_the_smallest(
    build: Build, clicks: Clicks, options: dict[str, Any], said: str
) -> None:
    """Each resource by itself, all of them at once."""
    rows = clicks(50)
    ranker = build("dlrm", {}, rows.features)

    with pytest.raises(ConfigError, match=said):
        problem_of(ranker, rows, Bytes(ranker), **options)


def test_the_smallest_that_is_told_can_be_met(build: Build, clicks: Clicks) -> None:
    """It is no guess."""
    rows = clicks(50)
    ranker = build("dlrm", {}, rows.features)
    with pytest.raises(ConfigError) as caught:
        problem_of(ranker, rows, Bytes(ranker), budget={"bytes": "10B"}, parts=("fields",))
    smallest = tomllib.loads(str(caught.value).rpartition(": ")[2])["method"]["budget"]

    problem = problem_of(ranker, rows, Bytes(ranker), budget=smallest, parts=("fields",))

    assert fit_budget(problem, [0], problem.order([0])) == [problem.groups[0].removable]


@pytest.mark.parametrize("parts", [("fields",), ALL])
@pytest.mark.parametrize("protect", [True, False])
def test_the_smallest_is_met_whatever_the_weights_are(
    build: Build, parts: tuple[str, ...], protect: bool
) -> None:
    """Where the fields that matter most are dear, and nothing else may stay of their side."""
    features = place(
        [*(feature(f"u{k}", "user", 9 * k) for k in (1, 4, 2)), feature("x", "user")]
        + [feature(f"i{k}", "item", 7 * k) for k in (3, 1, 5)]
    )
    options: dict[str, Any] = {"parts": parts, "width_unit": 3, "protect_numeric": protect}
    told = set()
    for seed in range(4):
        ranker = build("dlrm", {}, features, seed)
        config = SlimmingConfig(budget={"bytes": "1B"}, **options)
        bounded = bounds(ranker, config.budget, config.flops_of, Bytes(ranker))
        with pytest.raises(ConfigError) as caught:
            check_budget(ranker, config, bounded, "tiers.it.budget")
        smallest = tomllib.loads(str(caught.value).rpartition(": ")[2])["tiers"]["it"]["budget"]
        told.add(smallest["bytes"])

        config = config.model_copy(update={"budget": Budget(**smallest)})
        bounded = bounds(ranker, config.budget, config.flops_of, Bytes(ranker))
        check_budget(ranker, config, bounded, "tiers.it.budget")
        groups = removable(ranker, config, bounded, lambda singles: [0.0] * singles.count)
        problem = Problem(ranker, groups, bounded).within_reach()
        start = [0] * len(problem.groups)
        worth = [torch.rand(g.count, generator=torch.Generator().manual_seed(seed)) for g in groups]
        order = problem.order(start, worth=worth)
        assert (problem.ratio(fit_budget(problem, start, order), order) <= problem.limits).all()

    assert len(told) == 1  # it depends on sizes alone


class Worded(Bytes):
    """Some fields come with a vocabulary."""

    def __init__(self, ranker: Ranker, words: Mapping[str, int]) -> None:
        self._words = words
        super().__init__(ranker)

    def bytes(self, sizes: Sizes) -> float:
        """Of the tables and the vocabularies of fields that stay."""
        words = sum(size for name, size in self._words.items() if sizes.widths[name])
        return super().bytes(sizes) + words


# The item side may keep i0 (long, without words) or i1 (short, with words).
TWO_SIDES = [feature("u", "user", 5), feature("i0", "item", 90), feature("i1", "item", 20)]


def test_fields_are_as_cheap_as_their_narrowest(build: Build) -> None:
    """Whole, a long table is dearer than a short one with its words; narrow, it is not."""
    ranker = build("dlrm", {"dim": 8}, place(TWO_SIDES))
    pricing = Worded(ranker, {"i1": 400})
    assert 4 * 8 * 90 > 4 * 8 * 20 + 400 > 4 * 90 * 1 + 400 > 4 * 90 * 1

    config = SlimmingConfig(budget={"bytes": "1B"}, parts=ALL, width_unit=1)
    bounded = bounds(ranker, config.budget, config.flops_of, pricing)

    with pytest.raises(ConfigError, match=f'bytes = "{4 * 5 + 4 * 90}B"'):
        check_budget(ranker, config, bounded, "method.budget")


def test_a_budget_that_never_binds_changes_nothing(build: Build) -> None:
    """Of two resources only the one that is short decides what is cheapest."""
    ranker = build("dlrm", {"dim": 8, "widths": {"i0": 2, "i1": 8}}, place(TWO_SIDES))
    pricing = Worded(ranker, {"i1": 900})  # fewer bytes without i1, fewer FLOPs without i0
    found = []
    for more in ({}, {"p50_us": 1e9}, {"flops": 1.0}):
        config = SlimmingConfig(budget={"bytes": "900B", **more}, parts=("fields",))
        bounded = bounds(ranker, config.budget, config.flops_of, pricing)
        groups = removable(ranker, config, bounded, lambda singles: [0.0] * singles.count)
        problem = Problem(ranker, groups, bounded).within_reach()
        found.append([group.quorums for group in problem.groups])

    assert found[0] == found[1] == found[2]
    assert found[0] != [group.quorums for group in groups]


@pytest.mark.parametrize("interaction", ["cat", "dot"])
def test_positions_that_save_nothing_do_not_go(
    build: Build, clicks: Clicks, interaction: str
) -> None:
    """Fields stay fields, however narrow: no method takes some in vain, its share of all groups."""
    rows = clicks(50)
    ranker = build("dlrm", {"interaction": interaction}, rows.features)

    problem = problem_of(ranker, rows, budget={"fields": 0.5}, parts=ALL, width_unit=2)

    assert [groups.name for groups in problem.groups] == ["fields"]
    with pytest.raises(ConfigError, match="nothing of widths may go and saves fields"):
        problem_of(ranker, rows, budget={"fields": 0.5}, parts=("widths",), width_unit=2)


def dot(build: Build, rows: TrainingData, **options: Any) -> Ranker:
    """A ranker of inner products."""
    return build("dlrm", {"interaction": "dot", "dim": 8, **options}, rows.features)


@pytest.mark.parametrize("widths", [{}, {"u0": 2, "i1": 5}], ids=["one width", "several"])
@pytest.mark.parametrize("worth", [False, True], ids=["energies", "scores"])
def test_positions_of_inner_products_go_in_one_order(
    build: Build, clicks: Clicks, widths: dict[str, int], worth: bool
) -> None:
    """However many go: what fields keep stays nested, the last block of each field included."""
    rows = clicks(200)
    problem = problem_of(
        dot(build, rows, widths=widths),
        rows,
        budget={"flops": 1.0},
        parts=("widths",),
        width_unit=2,
    )
    (groups,) = problem.groups
    draw = torch.Generator().manual_seed(0)
    scores = [torch.rand(groups.count, generator=draw)] if worth else None

    for count in range(groups.removable + 1):
        dims = problem.keep([count], problem.order([count], worth=scores)).dims
        kept = [set(dims.get(f.name, range(f.width))) for f in problem.ranker.fields]
        kept.sort(key=len)
        assert all(few <= more for few, more in pairwise(kept))
        assert all(kept)


def test_what_makes_a_position_is_zeroed_alone(build: Build, clicks: Clicks) -> None:
    """UMEC's step shrinks a field's own columns of its table, or rows that put out its numbers."""
    rows = clicks(200)
    ranker = dot(build, rows)
    problem = problem_of(ranker, rows, budget={"flops": 1.0}, parts=("widths",), width_unit=2)
    before = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    chosen = {block.field: g for g, block in enumerate(problem.groups[0].blocks)}
    names = [field.name for field in ranker.fields]
    picked = [chosen[names.index("i1")], chosen[names.index("request_numeric")]]

    problem.shrink(0, torch.tensor(picked), price=1.0, lr=1e9)

    place = next(p for p in ranker.candidate.places if p.feature.name == "i1")
    of_table, of_numbers = (list(problem.groups[0].blocks[g].positions) for g in picked)
    expected = before["tables.8.weight"].clone()
    expected[place.rows.start : place.rows.stop, of_table] = 0.0
    last = len(ranker.request.bottom.layers) - 1  # type: ignore[union-attr]
    bottom = f"request.bottom.layers.{last}"
    before[f"{bottom}.weight"][of_numbers] = before[f"{bottom}.bias"][of_numbers] = 0.0
    before["tables.8.weight"] = expected
    for name, parameter in ranker.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], atol=1e-6, rtol=0)
    assert energies(problem.groups[0])[picked].max() < 1e-6


def test_a_mistyped_field_in_widths_is_refused(build: Build) -> None:
    """With the nearest name, and all that there are."""
    said = r"no fields \['usr'\]; did you mean 'user'\?; there are brand, "
    with pytest.raises(ConfigError, match=said):
        build("dlrm", {"widths": {"usr": 2}})


def test_the_width_of_numbers_that_are_not_there_is_refused(build: Build) -> None:
    """A side without numeric features has no vector for them."""
    without = [f for f in FEATURES if f.tensor != "candidate_numeric"]
    build("dlrm", {"widths": {"candidate_numeric": 2}})

    with pytest.raises(ConfigError, match=r"no fields \['candidate_numeric'\]"):
        build("dlrm", {"widths": {"candidate_numeric": 2}}, without)
