"""Scoring time of a bundle's graphs: dense and slim, plain and split, fp32 and int8, side by side.

    python benchmarks/scoring.py runs/store/criteo-0-05

Takes a bundle's folder in a store (its aliases `dense` and `slim`), rebuilds rankers of the same
shapes (weights do not change the time), exports each plain and split, makes int8-static of each,
and times them one after the other, over and over, one thread, each time with other rows (drawn
uniformly from the tables). Beside them the two graphs that the bundles hold, *as it ships*.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from compress import int8
from compress.export import export_plain, export_split
from compress.graph import GraphSession, input_specs, interleaved, repeat_request
from compress.rankers import RANKERS
from model_store.manifest import FeatureSpec, Manifest, NumericEncoding

ROTATED = 32  # sets of rows, so that a table's rows are mostly not in the nearest cache
CALIBRATION = 2048  # rows


def ranker_of(manifest: Manifest, kind: str) -> torch.nn.Module:
    """A ranker of a bundle's shape, with random weights."""
    kept = manifest.card
    ranker = RANKERS[kept.ranker]
    widths = {
        name.removeprefix(f"{kind} "): sizes
        for name, sizes in kept.widths.items()
        if name.startswith(f"{kind} ")
    }
    options = {key: value for key, value in kept.config["ranker"].items() if key != "type"}
    bottoms = {"bottom_request": "bottom"}  # the option's name; the other side's is its own
    options |= {bottoms.get(name, name): sizes for name, sizes in widths.items()}
    config = ranker.Config.model_validate({k: v for k, v in options.items() if v is not None})
    return ranker(manifest.features, config, torch.Generator().manual_seed(0)).eval()


def feeds(features: tuple[FeatureSpec, ...], candidates: int, rng: np.random.Generator) -> dict:
    """One request and its candidates, rows drawn uniformly."""
    found = {}
    for name, spec in input_specs(features).items():
        held = sorted((f for f in features if f.tensor == name), key=lambda f: f.start)
        rows = 1 if spec.shape[0] == "R" else candidates
        if spec.dtype == "float32":
            found[name] = rng.normal(size=(rows, spec.shape[1])).astype(np.float32)
            continue
        columns = [
            rng.integers(0, f.encoding.rows, (rows, f.length))
            for f in held
            if not isinstance(f.encoding, NumericEncoding)
        ]
        found[name] = np.concatenate(columns, axis=1).astype(np.int32)
    return found


def sessions(store: Path, folder: Path) -> dict[str, tuple[GraphSession, tuple]]:
    """The eight graphs and the bundles' two, by name, with the features that feed them."""
    found = {}
    for kind in ("dense", "slim"):
        version = json.loads((store / "aliases" / f"{kind}.json").read_text())["version"]
        bundle = store / "versions" / version
        manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
        ranker = ranker_of(manifest, kind)
        request = feeds(manifest.features, CALIBRATION, np.random.default_rng(1))
        rows = repeat_request(request, CALIBRATION)
        for form, write in (("plain", export_plain), ("split", export_split)):
            path = folder / f"{kind}-{form}.onnx"
            write(ranker, path)
            found[f"{kind} {form} fp32"] = (GraphSession(path), manifest.features)
            eight = folder / f"{kind}-{form}-int8.onnx"
            int8.save(int8.static(int8.load(path), rows), eight)
            found[f"{kind} {form} int8"] = (GraphSession(eight), manifest.features)
        found[f"{kind} as it ships"] = (GraphSession(bundle / manifest.graph), manifest.features)
    return found


def measure(graphs: dict, candidates: int, rounds: int) -> dict[str, np.ndarray]:
    """Microseconds of CPU a request, (rounds,) a graph, the graphs in turn within each round."""
    rng = np.random.default_rng(0)
    inputs = []
    for name, (_, features) in graphs.items():
        sets = [feeds(features, candidates, rng) for _ in range(ROTATED)]
        plain = "plain" in name
        inputs.append([repeat_request(s, candidates) for s in sets] if plain else sets)
    times = interleaved([session for session, _ in graphs.values()], inputs, rounds)
    return dict(zip(graphs, times, strict=True))


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="the bundle's folder in a store")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        graphs = sessions(options.store, Path(folder))
        times = measure(graphs, options.candidates, options.rounds)
    slowest = times["dense plain fp32"]
    print(f"{options.candidates} candidates, one thread, {options.rounds} rounds, CPU time")
    print(
        "| graph | p10 µs | median µs | p90 µs | faster than dense plain fp32 (quartiles) |\n"
        "|---|---|---|---|---|"
    )
    for name, values in times.items():
        low, middle, high = np.percentile(values, [10, 50, 90])
        first, ratio, third = np.percentile(slowest / values, [25, 50, 75])
        print(
            f"| {name} | {low:.0f} | {middle:.0f} | {high:.0f} "
            f"| {ratio:.1f}x ({first:.1f}-{third:.1f}) |"
        )


if __name__ == "__main__":
    main()
