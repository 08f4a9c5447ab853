"""How well budgets of time are told: rankers of sizes that neither fit nor check had seen.

    python -m benchmarks.latency_holdout CONFIG [-o KEY=VALUE] [--rankers 20]

The config is one of `compress run`: its data, its ranker, its candidates a request and its form of
tables. The ranker stays untrained, for times depend on sizes alone. As a run does, it times the
ranker and slimmed versions of it, drawn at random, and fits; then it tells the times of as many
more. An error is told over measured, less one; a run ends where the median of its own check is over
a tenth. Other work on the machine disturbs every figure: run it alone.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.config import load
from compress.pipeline import pricing_of, site_of, untrained
from compress.plan import resolve
from compress.pricing import FITTED, HELD_OUT, LatencyTable, MeasuredPricing, measure
from compress.progress import terminal


def errors_of(pricing: MeasuredPricing, rankers: int) -> tuple[float, NDArray[np.float64]]:
    """Microseconds of the dense ranker, and the relative errors of so many unseen ones."""
    candidates = pricing.options.timing_candidates
    timed = measure(
        pricing.ranker,
        pricing.dataset,
        candidates,
        pricing.tables,
        pricing.progress,
        count=FITTED + HELD_OUT + rankers,
    )
    table = LatencyTable(pricing.ranker, timed[:FITTED], candidates)
    return timed[0].us, table.errors(timed[FITTED + HELD_OUT :])


def figures(dense_us: float, errors: NDArray[np.float64]) -> dict[str, float]:
    """What is reported: shares of the time measured."""
    off = np.abs(errors)
    return {
        "dense_us": round(dense_us, 1),
        "rankers": len(off),
        "median": round(float(np.median(off)), 4),
        "nine_in_ten": round(float(np.quantile(off, 0.9)), 4),
        "worst": round(float(off.max()), 4),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print the errors as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="TOML file of a click-through run")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rankers", type=int, default=20, help="that the fit has not seen")
    options = parser.parse_args(words)
    with terminal() as progress:
        # One thread, as requests are timed.
        plan = resolve(load(options.config, [*options.override, "threads=1"]))
        site = site_of(plan, progress)
        found = errors_of(pricing_of(site, untrained(site, 0)), options.rankers)
    print(json.dumps(figures(*found)))


if __name__ == "__main__":
    main()
