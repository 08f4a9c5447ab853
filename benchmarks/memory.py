"""Peak memory of preparing and reading synthetic rows, by number of rows.

    python -m benchmarks.memory            # 2 M and 8 M rows, in a process each
    python -m benchmarks.memory 500000 2000000

Exits non-zero if the larger run needs over 15 % more than the smaller one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1.15


def main() -> int:
    """Measure each number of rows in a fresh process and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=[2_000_000, 8_000_000])
    parser.add_argument("--one", action="store_true", help="measure in this process")
    parser.add_argument("--folder", type=Path, help="where the encoded rows go")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.rows[0], options.folder)))
        return 0
    results = [apart(rows) for rows in options.rows]
    for result in results:
        print(
            f"{result['rows']:>12,} rows: peak {result['peak_mb']:.0f} MB, "
            f"prepared at {result['prepared_per_s']:,.0f} rows/s, "
            f"read in shuffled batches at {result['read_per_s']:,.0f} rows/s"
        )
    ratio = results[-1]["peak_mb"] / results[0]["peak_mb"]
    print(f"peak memory ratio: {ratio:.3f} (limit {LIMIT})")
    return int(ratio > LIMIT)


def apart(rows: int) -> dict[str, float]:
    """Measure in a process of its own: a peak never falls."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.memory", "--one", "--folder", folder]
        done = subprocess.run([*command, str(rows)], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def measure(rows: int, folder: Path) -> dict[str, float]:
    """Prepare so many rows and read the training part once, shuffled."""
    import numpy as np  # noqa: PLC0415  # only the measured process needs them

    from compress.data.encode import prepare  # noqa: PLC0415
    from compress.data.synthetic import Synthetic, SyntheticConfig  # noqa: PLC0415
    from compress.progress import Silent  # noqa: PLC0415

    start = time.perf_counter()
    dataset = prepare(Synthetic(SyntheticConfig(rows=rows)), folder, Silent())
    prepared = time.perf_counter()
    read = sum(len(batch) for batch in dataset.batches("train", 4096, np.random.default_rng(0)))
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows,
        "peak_mb": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10),
        "prepared_per_s": rows / (prepared - start),
        "read_per_s": read / (done - prepared),
    }


if __name__ == "__main__":
    sys.exit(main())
