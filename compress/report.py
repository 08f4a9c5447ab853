"""A bundle's compression card as one HTML page: plots as inlined SVG, nothing fetched."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy.stats import t as student

from compress.curves import Curve, history_file, read_curves
from compress.export import click_card
from model_store.bundle import Bundle
from model_store.manifest import Card, FeatureSpec, Manifest, Quality

DENSE: Final = "#94a3b8"
SLIM: Final = "#0d9488"
LIMIT: Final = "#e11d48"
INK: Final = "#334155"
PARTS: Final = (
    "#0d9488",
    "#0ea5e9",
    "#8b5cf6",
    "#f59e0b",
    "#f43f5e",
    "#84cc16",
    "#64748b",
    "#d946ef",
)
STYLE: Final[Any] = {  # matplotlib types its keys one by one
    "font.size": 9.0,
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.hashsalt": "slimrank",
    "text.parse_math": False,  # a "$" in a name is a dollar
}
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the dense | slim table.

    Attributes:
        change: what compression did to it, in words.
    """

    what: str
    dense: str
    slim: str
    change: str


@dataclass(frozen=True, slots=True)
class Sibling:
    """A line of the table of tiers, the slim ranker itself the first."""

    name: str
    auc: str
    change: str
    flops: str
    bytes: str
    speed: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the page, and the sentence under it."""

    title: str
    svg: Markup
    caption: str


def write(bundle: Bundle, path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(bundle))


def page(bundle: Bundle) -> str:
    """The page's HTML."""
    manifest, card = bundle.manifest, click_card(bundle)
    with mpl.rc_context(STYLE):
        drawn = plots(card, history(bundle))
    return template("report.html").render(
        manifest=manifest,
        card=card,
        digest=bundle.digest,
        rows=comparison(card),
        tiles=tiles(card),
        tiers=siblings(manifest),
        plots=drawn,
        sides=features_by_side(manifest.features, card),
        config=json.dumps(manifest.card.config, indent=2),
    )


def template(path: str) -> Template:
    """A page by its path in this package; what it is filled with is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(path)


def history(bundle: Bundle) -> dict[str, Curve]:
    """The curves that the run left in the bundle; none if it left none."""
    path = history_file(bundle.root)
    return {} if path is None else read_curves(path)


def mean(card: Card, kind: str, metric: str) -> float:
    """A metric's mean over seeds."""
    return float(fmean(_by_seed(card, kind, metric)))


def _by_seed(card: Card, kind: str, metric: str) -> list[float]:
    qualities: list[Quality] = [getattr(result, kind) for result in card.results]
    return [float(getattr(quality, metric)) for quality in qualities]


def interval(values: Sequence[float]) -> float:
    """Half the width of the mean's 95 % interval by Student's t; 0 for a single value."""
    if len(values) == 1:
        return 0.0
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return float(quantile * stdev(values) / len(values) ** 0.5)


def comparison(card: Card) -> list[Row]:
    """Dense beside slim: mean quality over seeds, and what each costs."""
    rows = [
        Row(
            f"{label} (mean of {len(card.results)})" if len(card.results) > 1 else label,
            f"{mean(card, 'dense', metric):.5f}",
            f"{mean(card, 'slim', metric):.5f}",
            _change(card, metric),
        )
        for metric, label in (("auc", "AUC"), ("logloss", "log loss"), ("accuracy", "accuracy"))
        if card.results
    ]
    dense, slim = card.dense, card.slim
    costs = [
        ("FLOPs a candidate", dense.flops, slim.flops),
        ("parameters", dense.parameters, slim.parameters),
        ("bytes of the graph", _graph_bytes(dense.bytes), _graph_bytes(slim.bytes)),
        ("bytes of the bundle", sum(dense.bytes.values()), sum(slim.bytes.values())),
    ]
    rows += [Row(what, f"{a:,}", f"{b:,}", share(a, b)) for what, a, b in costs]
    if dense.us_per_request and slim.us_per_request:
        a, b = dense.us_per_request, slim.us_per_request
        rows.append(Row("µs a request", f"{a:,.1f}", f"{b:,.1f}", f"{a / b:.2f}x the speed"))
    return rows


def _change(card: Card, metric: str) -> str:
    # Paired by seed, so what seeds have in common cancels out.
    pairs = zip(_by_seed(card, "slim", metric), _by_seed(card, "dense", metric), strict=True)
    changes = [slim - dense for slim, dense in pairs]
    spread = f" ± {interval(changes):.5f}" if len(changes) > 1 else ""
    return f"{fmean(changes):+.5f}{spread}"


def _graph_bytes(parts: Mapping[str, int]) -> int:
    return sum(parts.get(part, 0) for part in ("embedding tables", "mlp", "graph"))


def share(dense: float, slim: float) -> str:
    """The one as a share of the other."""
    return f"{slim / dense:.1%}" if dense else "n/a"


def tiles(card: Card) -> list[tuple[str, str]]:
    """The figures that lead the page."""
    found = [("of the FLOPs", share(card.dense.flops, card.slim.flops))]
    if card.results:
        lost = mean(card, "slim", "auc") - mean(card, "dense", "auc")
        found.insert(0, ("AUC, slim to dense", f"{lost:+.4f}"))
    if card.dense.bytes:
        whole = share(_graph_bytes(card.dense.bytes), _graph_bytes(card.slim.bytes))
        found.append(("of the graph's bytes", whole))
    if card.dense.us_per_request and card.slim.us_per_request:
        found.append(
            ("the speed, a request", f"{card.dense.us_per_request / card.slim.us_per_request:.1f}x")
        )
    return found


def siblings(manifest: Manifest) -> list[Sibling]:
    """The ranker and its tiers; nothing for one that has none."""
    if not manifest.tiers or not isinstance(manifest.card, Card):
        return []
    cards = {"(this ranker)": manifest.card, **{tier.name: tier.card for tier in manifest.tiers}}
    return [_sibling(name, card) for name, card in cards.items()]


def _sibling(name: str, card: Card) -> Sibling:
    dense, slim = card.dense, card.slim
    a, b = dense.us_per_request, slim.us_per_request
    return Sibling(
        name,
        auc=f"{mean(card, 'slim', 'auc'):.5f}" if card.results else "n/a",
        change=_change(card, "auc") if card.results else "n/a",
        flops=share(dense.flops, slim.flops),
        bytes=share(sum(dense.bytes.values()), sum(slim.bytes.values())),
        speed=f"{a / b:.2f}x" if a and b else "n/a",
    )


def features_by_side(
    features: Iterable[FeatureSpec], card: Card
) -> dict[str, list[tuple[str, bool]]]:
    """Side -> (feature, whether slimming kept it)."""
    sides: dict[str, list[tuple[str, bool]]] = {"user": [], "context": [], "item": []}
    for feature in features:
        sides[feature.side].append((feature.name, feature.name in card.kept_features))
    return {side: names for side, names in sides.items() if names}


def plots(card: Card, curves: Mapping[str, Curve]) -> list[Plot]:
    """Every plot that the card and the curves have figures for."""
    seeds = f"{len(card.results)} seed{'s' if len(card.results) > 1 else ''}"
    drawn = (
        [
            Plot(
                "Quality by seed",
                svg(quality_plot, card, size=(8.4, 2.9)),
                f"Test rows, {seeds}; a grey line joins the two rankers of one seed. "
                "Bars: 95 % interval of the mean over seeds.",
            )
        ]
        if card.results
        else []
    )
    drawn.append(
        Plot(
            "What it costs",
            svg(cost_plot, card, size=(8.4, 2.6)),
            "FLOPs for one candidate, every row counted in full; bytes as they lie on disk.",
        )
    )
    if card.widths:
        drawn.append(
            Plot(
                "Hidden widths",
                svg(width_plot, card, size=(8.4, 0.9 + 0.34 * _layers(card))),
                "Neurons by layer, before and after.",
            )
        )
    if curves.get("method"):
        drawn.append(
            Plot(
                "How the budget was met",
                svg(method_plot, card, curves["method"], size=(8.4, 4.6)),
                "R: share of a resource that is left; s: groups removed by layer; "
                "y: price of the groups not yet zero; z: price of a resource.",
            )
        )
    if curves.get("train"):
        drawn.append(
            Plot(
                "Training",
                svg(training_plot, curves, size=(8.4, 2.6)),
                "Validation rows: the weights kept are those of the least log loss.",
            )
        )
    return drawn


def svg(draw: Callable[..., None], *args: Any, size: tuple[float, float]) -> Markup:
    """Draw on a figure of so many inches, as SVG to stand in a page."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure, *args)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    # Safe: drawn here from numbers and escaped labels.
    return Markup(text[text.index("<svg") :])  # noqa: S704


def quality_plot(figure: Figure, card: Card) -> None:
    """AUC and log loss, dense and slim, a point a seed."""
    for axes, (metric, title) in zip(
        figure.subplots(1, 2),
        (("auc", "AUC (higher is better)"), ("logloss", "Log loss (lower is better)")),
        strict=True,
    ):
        values = [_by_seed(card, kind, metric) for kind in ("dense", "slim")]
        for pair in zip(*values, strict=True):
            axes.plot((0, 1), pair, color="#cbd5e1", linewidth=1, zorder=1)
        for x, (column, color) in enumerate(zip(values, (DENSE, SLIM), strict=True)):
            axes.scatter([x] * len(column), column, color=color, s=22, alpha=0.75, zorder=2)
            axes.errorbar(
                x + 0.12,
                fmean(column),
                yerr=interval(column),
                fmt="D",
                color=color,
                capsize=4,
                markersize=6,
                zorder=3,
            )
            axes.annotate(
                f"{fmean(column):.4f}",
                (x + 0.12, fmean(column)),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.set_xticks((0, 1), ("dense", "slim"))
        axes.set_xlim(-0.4, 1.6)
        axes.margins(y=0.2)
        axes.set_title(title)
        axes.grid(visible=False, axis="x")


def cost_plot(figure: Figure, card: Card) -> None:
    """FLOPs and bytes by part, dense above slim."""
    left, right = figure.subplots(1, 2)
    flops = {"slim": card.slim.flops_parts, "dense": card.dense.flops_parts}
    stacked(left, flops, "FLOPs a candidate", "")
    stacked(right, {"slim": card.slim.bytes, "dense": card.dense.bytes}, "Bytes of the bundle", "B")


def stacked(axes: Axes, bars: Mapping[str, Mapping[str, int]], title: str, unit: str) -> None:
    """A bar by name, the first at the bottom; its parts in the order of the last one's."""
    offsets = [0.0] * len(bars)
    order = [*list(bars.values())[-1], *chain.from_iterable(bars.values())]
    parts = [part for part in dict.fromkeys(order) if any(bar.get(part) for bar in bars.values())]
    for part, color in zip(parts, PARTS * 2, strict=False):
        widths = [float(bar.get(part, 0)) for bar in bars.values()]
        axes.barh(list(bars), widths, left=offsets, color=color, label=part, height=0.62)
        offsets = [start + width for start, width in zip(offsets, widths, strict=True)]
    for y, total in enumerate(offsets):
        axes.text(total, y, f" {EngFormatter(unit)(total)}", va="center", color=INK, fontsize=8)
    axes.set_title(title)
    axes.set_xlim(0, max(offsets) * 1.2)
    axes.xaxis.set_major_formatter(EngFormatter(unit))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False, axis="y")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16), handlelength=1)


def _layers(card: Card) -> int:
    return sum(len(w) for name, w in card.widths.items() if name.startswith("dense "))


def width_plot(figure: Figure, card: Card) -> None:
    """A bar a layer: what it was, and over it what is left."""
    axes = figure.subplots()
    labels, before, after = [], [], []
    for name, widths in card.widths.items():
        if name.startswith("dense "):
            mlp = name.removeprefix("dense ")
            slim = card.widths.get(f"slim {mlp}", (0,) * len(widths))
            labels += [f"{mlp} {layer + 1}" for layer in range(len(widths))]
            before += list(widths)
            after += list(slim)
    axes.barh(labels, before, color="#e2e8f0", height=0.72, label="dense")
    axes.barh(labels, after, color=SLIM, height=0.42, label="slim")
    for y, (wide, narrow) in enumerate(zip(before, after, strict=True)):
        axes.text(wide, y, f"  {wide} → {narrow}", va="center", color=INK, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(before) * 1.15)
    axes.set_xlabel("neurons")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right")


def method_plot(figure: Figure, card: Card, curve: Curve) -> None:
    """R against the budget, s, y and z over the steps."""
    grid = figure.subplots(2, 2, sharex=True).flatten()
    steps = [row["step"] for row in curve]
    layers = [key.removeprefix("s.") for key in curve[0] if key.startswith("s.")]

    for key, color in zip(_keys(curve, "ratio"), PARTS, strict=False):
        grid[0].plot(steps, [row[key] for row in curve], color=color)
    for name, budget in card.requested.items():
        grid[0].axhline(budget, color=LIMIT, linestyle="--", linewidth=1)
        grid[0].annotate(
            f"budget: {budget:g} of {name}",
            (1, budget),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=LIMIT,
            fontsize=8,
        )
    grid[0].set_ylim(0, 1.05)
    grid[0].set_title("R(s)")
    for axes, letter in ((grid[1], "s"), (grid[2], "y")):
        for layer, color in zip(layers, PARTS * 4, strict=False):
            axes.plot(steps, [row[f"{letter}.{layer}"] for row in curve], color=color, label=layer)
        axes.set_title({"s": "s: groups removed", "y": "y: price of group sparsity"}[letter])
    grid[1].legend(loc="upper left")
    for key, color in zip(_keys(curve, "z"), PARTS, strict=False):
        grid[3].plot(steps, [row[key] for row in curve], color=color, label=key)
    grid[3].set_title("z: price of a resource")
    for axes in grid[2:]:
        axes.set_xlabel("step")


def _keys(curve: Curve, letter: str) -> list[str]:
    # Bundles of one resource, as all were, have the letter alone.
    return [key for key in curve[0] if key.partition(".")[0] == letter]


def training_plot(figure: Figure, curves: Mapping[str, Curve]) -> None:
    """Log loss and AUC on validation rows, while training and while fine-tuning."""
    for axes, (metric, title) in zip(
        figure.subplots(1, 2),
        (("logloss", "Validation log loss"), ("auc", "Validation AUC")),
        strict=True,
    ):
        for name, label, color in (
            ("train", "dense", DENSE),
            ("finetune", "slim, fine-tuned", SLIM),
        ):
            curve = [row for row in curves.get(name, ()) if row[metric] is not None]
            axes.plot(
                [row["epoch"] for row in curve],
                [row[metric] for row in curve],
                marker="o",
                markersize=3,
                color=color,
                label=label,
            )
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.legend()
