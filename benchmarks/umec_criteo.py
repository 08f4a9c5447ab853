"""UMEC on Criteo: quality lost at several FLOPs budgets, over seeds, from the exported bundles.

    python benchmarks/umec_criteo.py --data ../shared/data/criteo/train.parquet --chunks
    python benchmarks/umec_criteo.py --data ... --chunks --flops-of top_mlp   # as the paper counts

Each budget is one run of compress/configs/criteo.toml; what is compared is, seed by seed, the
slim bundle with the dense bundle that it was made from, on the same test rows. Nothing was chosen
on those: training, slimming and fine-tuning look at the validation rows only.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONFIG = Path("compress/configs/criteo.toml")
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def run(
    data: Path, *, chunks: bool, flops_of: str, budget: float, seeds: Sequence[int], runs: Path
) -> dict:
    """One `compress run`; its metrics.json."""
    name = f"criteo-{flops_of}-{budget:g}".replace(".", "-").replace("_", "-")
    options = {
        "name": json.dumps(name),
        "data.path": json.dumps(str(data)),
        "threads": "1",  # small batches: a second thread waits more than it works
        "seeds": json.dumps(list(seeds)),
        "method.budget.flops": str(budget),
        "method.flops_of": json.dumps(flops_of),
        "runs": json.dumps(str(runs)),
        "publish.store": json.dumps(str(runs / "store")),
        "gate": "{max_auc_loss = 1.0}",
    }
    if chunks:  # the sample's own clock, instead of fractions of the rows in file order
        options["data.split"] = '{column = "chunk", validation_from = 60, test_from = 66}'
    overrides = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    command = [sys.executable, "-m", "compress", "run", str(CONFIG), *overrides]
    subprocess.run(command, check=True)
    newest = max((runs / name).glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def row(flops_of: str, budget: float, metrics: dict) -> str:
    """A line of the table."""
    achieved = metrics["achieved"]
    cells = [f"{flops_of} {budget:g}", *(f"{achieved[name]:.4f}" for name in ("top_mlp", "mlp"))]
    results = metrics["results"]
    aucs = [interval([r[kind]["auc"] for r in results]) for kind in ("dense", "slim")]
    cells += ["{:.4f} ± {:.4f}".format(*auc) for auc in aucs]
    lost = interval([r["dense"]["auc"] - r["slim"]["auc"] for r in results])
    rise = interval([r["slim"]["logloss"] - r["dense"]["logloss"] for r in results])
    cells += ["{:+.4f} ± {:.4f}".format(*lost), "{:+.4f} ± {:.4f}".format(*rise)]
    cells.append(f"{achieved['fields']:.2f}")
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| budget | top-MLP FLOPs | all MLP FLOPs | AUC dense | AUC slim | AUC lost | log loss rise "
    "| fields kept |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Run all budgets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Criteo TSV or parquet")
    parser.add_argument("--chunks", action="store_true", help="split by the column `chunk`")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.34, 0.05])
    parser.add_argument("--flops-of", choices=["mlp", "top_mlp", "all"], default="mlp")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    rows = []
    for budget in options.budgets:
        metrics = run(
            options.data,
            chunks=options.chunks,
            flops_of=options.flops_of,
            budget=budget,
            seeds=options.seeds,
            runs=options.runs,
        )
        rows.append(row(options.flops_of, budget, metrics))
    print(HEADER, *rows, sep="\n")


if __name__ == "__main__":
    main()
