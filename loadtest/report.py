"""A run as a page, a picture and files that later runs are compared with.

    python -m loadtest.report [RUN] [--against EARLIER]

RUN and EARLIER are folders that ``python -m loadtest.compare`` wrote (RUN: reports/loadtest). Shows
RUN, and makes its page anew from its compare.json; with ``--against`` writes against.md and
against.png beside it instead, a table of ratios with their spread. Exits with 0, or with 2 where
there is no run or the two are not comparable: another machine, other settings or other bundles.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from loadtest import against, histograms, measured, plot, sides
from loadtest.measured import Knee, Measured, Ratio, Row, Spread

FORMAT: Final = 1
FILE: Final = "compare.json"
DEFAULT: Final = Path("reports/loadtest")
UNUSABLE: Final = 2
HEAD: Final = (
    "model",
    "load",
    "answers/s (rounds)",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "max ms",
    "p99 ms after sending",
    "unsent",
    "failed",
    "service CPU µs/request",
    "generator CPU",
    "generator late ms",
)


class RunUnusable(Exception):
    """That is no run that can be reported; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Report:
    """A run and what follows from it.

    Attributes:
        about: machine, settings, bundles: how it was measured.
        notes: what a reader must know before believing the tables.
    """

    about: Mapping[str, Any]
    windows: Sequence[Measured]
    rows: Sequence[Row]
    ratios: Sequence[Ratio]
    knees: Sequence[Knee]
    notes: Sequence[str]


def of_windows(about: Mapping[str, Any], windows: Sequence[Mapping[str, Any]]) -> Report:
    """What follows from recorded windows."""
    taken = measured.read(windows)
    table = measured.rows(taken)
    machine = about["machine"]
    notes = measured.remarks(table, apart=bool(machine["generator_cores"]))
    cores, workers = len(machine["service_cores"]), about["settings"]["workers"]
    if 0 < cores < workers:
        notes.append(f"{workers} workers shared {cores} core(s).")
    knees = measured.knees(taken)
    return Report(about, taken, table, measured.ratios(taken), knees, notes)


def write(out: Path, about: Mapping[str, Any], windows: Sequence[Mapping[str, Any]]) -> Report:
    """All files of a run; returns what they say."""
    out.mkdir(parents=True, exist_ok=True)
    report = of_windows(about, windows)
    derived = {
        "rows": [asdict(row) for row in report.rows],
        "ratios": [asdict(ratio) for ratio in report.ratios],
        "knees": [asdict(knee) for knee in report.knees],
        "notes": list(report.notes),
    }
    held = {"format": FORMAT, "about": dict(about), **derived, "windows": list(windows)}
    (out / FILE).write_text(json.dumps(held, indent=1), encoding="utf-8")
    _write_distributions(out / "hgrm", report.windows)
    _write_page(out, report)
    return report


def load(run: Path) -> Report:
    """A run from its folder, or from its compare.json itself.

    Raises:
        RunUnusable: there is none, or of another format.
    """
    path = run / FILE if run.is_dir() else run
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunUnusable(
            f"{path}: {error.strerror}; expected what `python -m loadtest.compare` wrote"
        ) from None
    except ValueError:
        raise RunUnusable(f"{path}: expected JSON") from None
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise RunUnusable(f"{path}: expected a run of format {FORMAT}, found another")
    try:
        report = of_windows(held["about"], held["windows"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunUnusable(f"{path}: the run is damaged: {error}") from None
    if not report.windows:
        raise RunUnusable(f"{path}: the run holds no measured window")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or the comparison if one is asked for; the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="?", default=DEFAULT, help="folder of a run")
    parser.add_argument("--against", type=Path, metavar="EARLIER", help="folder of an earlier run")
    options = parser.parse_args(argv)
    try:
        now = load(options.run)
        folder = options.run if options.run.is_dir() else options.run.parent
        if options.against is None:
            _write_page(folder, now)
            print(tables(now), *now.notes, sep="\n")
            return 0
        return _compare(now, load(options.against), folder)
    except RunUnusable as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return UNUSABLE


def tables(report: Report) -> str:
    """Knees, open loops and closed loops as Markdown."""
    open_rows = [row for row in report.rows if row.rate is not None]
    closed = [row for row in report.rows if row.rate is None]
    parts = []
    if report.knees:
        parts += ["## Knee", knee_table(report.knees)]
    if open_rows:
        parts += ["## Arrivals by a timetable (open loop)", markdown(open_rows, report.ratios)]
    if closed:
        parts += ["## Users who wait for answers (closed loop)", markdown(closed, report.ratios)]
    return "\n\n".join(parts)


def markdown(table: Sequence[Row], ratios: Sequence[Ratio]) -> str:
    """Rows as a table, lines of ratios under each level."""
    by_side = {(ratio.side, ratio.level): ratio for ratio in ratios}
    lines = [_line(HEAD), "|---|" + "---:|" * (len(HEAD) - 1)]
    for row, following in zip(table, [*table[1:], None], strict=True):
        lines.append(_line(_cells(row)))
        if following is None or following.level != row.level:
            here = [by_side.get((side, row.level)) for side in sides.SIDES]
            lines += [_line(_ratio_cells(ratio)) for ratio in here if ratio is not None]
    return "\n".join(lines)


def knee_table(knees: Sequence[Knee]) -> str:
    """The knees as a table."""
    dense = next((knee for knee in knees if knee.side == sides.DENSE), None)
    lines = [
        _line(("model", "knee, arrivals/s (rounds)", "p99 within ms", "against dense")),
        "|---|---:|---:|---:|",
    ]
    for knee in knees:
        low, high = knee.rate.low, knee.rate.high
        least = "at least " if knee.at_least else ""
        told = f"{least}{knee.rate.middle:g} ({low:g}-{high:g})" if high else "none"
        limit = f"{knee.limit_ms:.2f}" if knee.limit_ms else ""
        lines.append(_line((knee.side, told, limit, _against_dense(knee, dense))))
    return "\n".join(lines)


def _against_dense(knee: Knee, dense: Knee | None) -> str:
    # Dense may bear any rate above a lower bound: nothing follows from it.
    if dense is None or dense.at_least or not dense.rate.middle or knee.side == sides.DENSE:
        return ""
    least = "at least " if knee.at_least else ""
    return f"{least}{knee.rate.middle / dense.rate.middle:.2f}x"


def page(report: Report) -> str:
    """The tables with their plot, what to know about them and how they were measured."""
    about = report.about
    how = {key: value for key, value in about.items() if not isinstance(value, Mapping)}
    for part in ("machine", "settings", "bundles", "capacity", "rates"):
        how |= {f"{part}: {key}": value for key, value in about.get(part, {}).items()}
    return "\n".join(
        [
            f"# Dense against slim: {about['model']}",
            "",
            "![times by arrival rate, throughput, and how the generator fared](compare.png)",
            "",
            tables(report),
            "",
            "Times are unrounded, pooled over the rounds, and count from when a request was due by "
            "the timetable, or in a closed loop from when it was sent. The knee is the highest "
            f"arrival rate up to which p99 stays within {measured.KNEE:g} times what it is at the "
            "lowest rate and all arrivals are sent. Ratios are the median round's, with the range "
            f"of the rounds. p99.9 is shown from {measured.FEWEST_FOR_P999} answers on.",
            *(f"- {note}" for note in report.notes),
            "",
            "| how | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in how.items()),
            "",
        ]
    )


def _compare(now: Report, then: Report, folder: Path) -> int:
    differences = against.differences(now.about, then.about)
    if differences:
        print("loadtest: not comparable:", *differences, sep="\n  ", file=sys.stderr)
        return UNUSABLE
    changes = against.changes(now.windows, then.windows)
    text = against.markdown(changes, str(then.about["date"]), str(now.about["date"]))
    notes = [f"- Earlier run: {note}" for note in then.notes]
    notes += [f"- This run: {note}" for note in now.notes]
    text = "\n".join([text, "", *notes])
    (folder / "against.md").write_text(f"{text}\n\n![both runs](against.png)\n", encoding="utf-8")
    plot.draw_against(now.rows, then.rows, folder / "against.png")
    print(text, f"written to {folder}: against.md, against.png", sep="\n\n")
    return 0


def _write_page(out: Path, report: Report) -> None:
    (out / "compare.md").write_text(page(report), encoding="utf-8")
    plot.draw(report.rows, report.ratios, report.knees, out / "compare.png")


def _write_distributions(folder: Path, windows: Sequence[Measured]) -> None:
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.hgrm"):
        stale.unlink()
    pools: dict[str, list[Measured]] = {}
    for window in windows:
        name = window.level.name.replace("/", "-per-").replace(" ", "-")
        pools.setdefault(f"{window.side}-{name}.hgrm", []).append(window)
    for name, group in pools.items():
        pooled = histograms.pooled(window.times for window in measured.believed(group))
        (folder / name).write_text(histograms.hgrm(pooled), encoding="utf-8")


def _cells(row: Row) -> Sequence[str]:
    return (
        f"{row.side} (generator saturated)" if row.saturated else row.side,
        row.level.name,
        f"{row.rps.middle:.0f} ({row.rps.low:.0f}-{row.rps.high:.0f})",
        *map(_ms, (row.p50_ms, row.p99_ms, row.p999_ms, row.max_ms, row.after_send_p99_ms)),
        str(row.unsent),
        str(row.failures),
        f"{row.service_us:.0f}",
        f"{row.generator_cpu:.0%}",
        f"{row.lag_p99_ms:.2f}",
    )


def _ms(value: float | None) -> str:
    # Nothing of an empty histogram: no time is 0.
    return f"{value:.2f}" if value else ""


def _ratio_cells(ratio: Ratio) -> Sequence[str]:
    times = [_times(spread) for spread in (ratio.rps, ratio.p50, ratio.p99)]
    if ratio.rate is not None:
        times[0] = ""  # the timetable's rate, not the service's
    blank = [""] * 5
    service = _times(ratio.service_us)
    return (f"**{ratio.side} is better by**", ratio.level.name, *times, *blank, service, "", "")


def _times(spread: Spread) -> str:
    return f"**{spread.middle:.2f}x** ({spread.low:.2f}-{spread.high:.2f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
