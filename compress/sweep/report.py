"""A sweep's page and its frontier: everything by budget, and what the seeds can tell apart."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from compress.card import notes
from compress.data.folders import replaced
from compress.report import STYLE, Plot, svg, template
from compress.sessions.compare import size
from compress.sessions.report import NOTHING, Cell
from compress.stages import tools, write_whole
from compress.sweep.cells import Cell as SweepCell
from compress.sweep.launchers.base import Fault
from compress.sweep.paired import Mean, Paired, compare, corrected, supported
from compress.sweep.plan import Sweep
from compress.sweep.plots import TALL, WIDE, Point, frontier_plot
from compress.sweep.results import Result

DPI: Final = 160
COLUMNS: Final = (
    "seeds", "AUC", "AUC lost", "log loss risen", "FLOPs left", "bundle", "of its bytes",
    "µs a request", "speed", "fields", "parameters", "training",
)  # fmt: skip
SUMMARY: Final = ("seeds", "AUC lost", "±", "FLOPs left", "bundle", "speed")
TESTED: Final = (
    "seeds", "difference of AUC", "t test", "Holm", "exact", "Holm",
    "difference of log loss", "t test", "Holm", "exact", "Holm",
)  # fmt: skip

Metric = Callable[[Result], float]


@dataclass(frozen=True, slots=True)
class Line:
    """A method's line in a table."""

    method: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """All methods at one budget.

    Attributes:
        at: the budget in words.
        lines: by the order of `COLUMNS`.
        tests: of the other methods against the reference, by the order of `TESTED`.
        said: what the seeds can tell apart.
    """

    at: str
    lines: list[Line]
    tests: list[Line]
    said: str


def write(
    sweep: Sweep,
    cells: Sequence[SweepCell],
    results: Sequence[Result],
    faults: Mapping[str, Fault],
    folder: Path,
) -> None:
    """Write ``report.html``, and its frontier beside it as ``frontier.png`` and ``.svg``."""
    write_whole(folder / "report.html", page(sweep, cells, results, faults))
    for kind in ("png", "svg") if results else ():
        dated = {"Date": None} if kind == "svg" else None  # the same results make the same file
        with mpl.rc_context(STYLE), replaced(folder / f"frontier.{kind}") as staged:
            figure = Figure(figsize=(WIDE, TALL), layout="constrained")
            frontier_plot(figure, points(results))
            figure.savefig(staged, format=kind, dpi=DPI, metadata=dated)


def page(
    sweep: Sweep,
    cells: Sequence[SweepCell],
    results: Sequence[Result],
    faults: Mapping[str, Fault],
) -> str:
    """The page's HTML."""
    variants, first = sweep.variants, cells[0].site
    return template("sweep/report.html").render(
        sweep=sweep,
        name=variants[0].plan.config.name,
        cells=cells,
        faults=faults,
        frontier=frontier(results),
        columns=COLUMNS,
        tested=TESTED,
        budgets=[at_budget(sweep, at, results) for at in budgets(results)],
        dense=dense_means(results),
        timed=any(result.us for result in results),
        listed=[(result.cell, figures(result)) for result in results],
        commands={variant.name: command(sweep, variant.overrides) for variant in variants},
        data_hash=first.dataset.fingerprint,
        notes=notes(first),
        tools=tools(),
    )


def frontier(results: Sequence[Result]) -> Plot | None:
    """The plot that leads the page; None if there is nothing to show."""
    if not results:
        return None
    with mpl.rc_context(STYLE):
        return Plot(
            "Quality and its price",
            svg(frontier_plot, points(results), size=(WIDE, TALL)),
            "Down and left is better: a point is a method at a budget, the dashed line joins those "
            "that no other beats in both. Bars: 95 % intervals of the mean over seeds; faint: the "
            "seeds. Zero is the dense ranker of the same seed.",
        )


def budgets(results: Sequence[Result]) -> list[str]:
    """In words, in the order of the sweep."""
    return list(dict.fromkeys(result.cell.variant.at for result in results))


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """In the order of the sweep."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.cell.variant.method, []).append(result)
    return found


def points(results: Sequence[Result]) -> dict[str, list[Point]]:
    """What the frontier shows, by method."""
    dense_us = typical_us(results)
    found: dict[str, list[Point]] = {}
    for method, ours in by_method(results).items():
        for at in budgets(ours):
            seeds = [result for result in ours if result.cell.variant.at == at]
            lost = [result.auc_lost for result in seeds]
            costs = (
                [result.flops_left for result in seeds],
                [float(result.bundle_bytes) for result in seeds],
                [dense_us[shared(result)] / result.speedup for result in seeds if result.speedup],
            )
            found.setdefault(method, []).append(Point(costs, lost, Mean.of(lost).half))
    return found


def shared(result: Result) -> Path:
    """Whose dense rankers it has in common."""
    return result.cell.site.shared


def typical_us(results: Sequence[Result]) -> dict[Path, float]:
    """Microseconds of a request to the dense ranker; only ratios to it were taken side by side."""
    taken: dict[Path, list[float]] = {}
    for result in results:
        if result.us:
            taken.setdefault(shared(result), []).append(result.us[0])
    return {folder: median(us) for folder, us in taken.items()}


def at_budget(sweep: Sweep, at: str, results: Sequence[Result]) -> Budget:
    """The tables of one budget."""
    methods = by_method([result for result in results if result.cell.variant.at == at])
    dense_us = typical_us(results)
    lines = [Line(method, row(ours, dense_us)) for method, ours in methods.items()]
    auc = paired(sweep.reference, methods, lambda result: result.found.result.slim.auc)
    logloss = paired(sweep.reference, methods, lambda result: result.found.result.slim.logloss)
    tests = [
        Line(method, (Cell(str(auc[method].seeds)), *tested(auc[method]), *tested(logloss[method])))
        for method in auc
    ]
    return Budget(at, lines, tests, supported(list(auc.values()), "of AUC") if auc else "")


def paired(
    reference: str, methods: Mapping[str, Sequence[Result]], metric: Metric
) -> dict[str, Paired]:
    """Every other method against the reference, corrected for their number."""
    by_seed = {
        method: {result.cell.seed: metric(result) for result in ours}
        for method, ours in methods.items()
    }
    theirs = by_seed.pop(reference, {})
    tests = {method: test for method, ours in by_seed.items() if (test := compare(ours, theirs))}
    return corrected(tests)


def tested(test: Paired) -> tuple[Cell, ...]:
    """A difference with its interval, and the p of both tests."""
    values = (test.t, test.t_holm, test.exact, test.exact_holm)
    return figure_of(test.difference, "+.5f"), *(Cell(p_value(p)) for p in values)


def p_value(p: float | None) -> str:
    """To two digits.

    >>> p_value(0.0625), p_value(0.00004), p_value(None)
    ('0.062', '<0.001', '-')
    """
    if p is None:
        return NOTHING
    return f"{p:.2g}" if p >= 0.001 else "<0.001"  # noqa: PLR2004


def figure_of(mean: Mean, spec: str) -> Cell:
    """A mean, and its interval under it."""
    return Cell(f"{mean.value:{spec}}", "" if mean.half is None else f"± {mean.half:.5f}")


def row(ours: Sequence[Result], dense_us: Mapping[Path, float]) -> tuple[Cell, ...]:
    """A method at a budget: means over its seeds."""
    speeds = [result.speedup for result in ours if result.speedup]
    us = [dense_us[shared(result)] / result.speedup for result in ours if result.speedup]
    seconds = [result.found.seconds for result in ours if result.found.seconds is not None]
    fields = fmean(len(result.card.kept_features) for result in ours)
    parameters = fmean(result.found.slim.parameters for result in ours)
    return (
        Cell(str(len(ours))),
        figure_of(Mean.of([result.found.result.slim.auc for result in ours]), ".5f"),
        figure_of(Mean.of([result.auc_lost for result in ours]), "+.5f"),
        figure_of(Mean.of([result.logloss_risen for result in ours]), "+.5f"),
        Cell(f"{fmean(result.flops_left for result in ours):.2%}"),
        Cell(size(fmean(result.bundle_bytes for result in ours))),
        Cell(f"{fmean(result.bytes_left for result in ours):.1%}"),
        Cell(f"{fmean(us):,.0f}" if us else NOTHING),
        Cell(f"{fmean(speeds):.2f}x" if speeds else NOTHING),
        Cell(f"{fields:.3g} of {total_fields(ours[0])}"),
        Cell(f"{parameters:,.0f}"),
        Cell(f"{fmean(seconds):,.0f} s" if seconds else NOTHING),
    )


def summary(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """Method, budget and the columns of `SUMMARY`, for a terminal."""
    dense_us = typical_us(results)
    for at in budgets(results):
        here = [result for result in results if result.cell.variant.at == at]
        for method, ours in by_method(here).items():
            texts = {c: cell.text for c, cell in zip(COLUMNS, row(ours, dense_us), strict=True)}
            half = Mean.of([result.auc_lost for result in ours]).half
            texts["±"] = NOTHING if half is None else f"{half:.5f}"
            yield method, at or NOTHING, *(texts[name] for name in SUMMARY)


def total_fields(result: Result) -> int:
    """Of the dense ranker."""
    return len(result.card.kept_features) + len(result.card.pruned_features)


def dense_means(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The quality of the dense rankers, each counted once."""
    by_folder = {
        (shared(result), result.cell.seed): result.found.result.dense for result in results
    }
    found = []
    for metric, label in (("auc", "AUC"), ("logloss", "log loss")):
        for folder in dict.fromkeys(folder for folder, _ in by_folder):
            values = [getattr(q, metric) for (other, _), q in by_folder.items() if other == folder]
            cell = figure_of(Mean.of(values), ".5f")
            found.append((label, f"{cell.text} {cell.note}".rstrip()))
    return found


def figures(result: Result) -> tuple[Cell, ...]:
    """One cell's figures."""
    return (
        Cell(f"{result.found.result.slim.auc:.5f}"),
        Cell(f"{result.auc_lost:+.5f}"),
        Cell(f"{result.logloss_risen:+.5f}"),
        Cell(f"{result.flops_left:.2%}"),
        Cell(size(float(result.bundle_bytes))),
        Cell(f"{result.speedup:.2f}x" if result.speedup else NOTHING),
    )


def command(sweep: Sweep, overrides: Sequence[str]) -> str:
    """What makes a variant's card of its cells, and publishes it if its gate holds."""
    words = ["python", "-m", "compress", "run", str(sweep.base)]
    return shlex.join(words + [word for text in overrides for word in ("-o", text)])
