"""Scoring items of a large catalogue: codes by look-up against dense vectors and a tensor train.

    python -m benchmarks.item_scoring                 # 1 M items, 128 numbers each, one thread

Times what serving runs (`service.item_scores`) beside the same products in ONNX Runtime and numpy.
In every round each way runs some times in a row, as in a service, so that whatever else the machine
does hits all of them. A ratio is taken within a round; the figures are medians over rounds, with
the 10th and 90th percentile. Vectors, codes and queries are random: times do not depend on them.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_limits

from model_store.codebooks import CodedTable
from model_store.item_vectors import FactoredTable
from service.item_scores import fastest

ROTATED = 64  # lists of candidates, so that their rows are mostly not in the nearest cache
RANK = 16
Timed = dict[str, Callable[[], object]]


def graph(
    nodes: Sequence[tuple[str, list[str], str]],
    digits: Sequence[str],
    constants: dict[str, NDArray],
) -> ort.InferenceSession:
    """A graph on one thread that takes rows, or their digits, and a query (dim, 1).

    Nodes are (operator, inputs, output), the last one gives the scores (n, 1). With a query (dim,)
    ONNX Runtime takes five times as long.
    """
    made = [helper.make_node(kind, names, [output]) for kind, names, output in nodes]
    given = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in digits]
    given.append(helper.make_tensor_value_info("query", TensorProto.FLOAT, ["dim", 1]))
    scores = helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, ["n", 1])
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = helper.make_model(
        helper.make_graph(made, "scores", given, [scores], held),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def coded(
    items: int,
    dim: int,
    books: int,
    size: int,
    rng: np.random.Generator,
    *,
    cuts: bool = False,
) -> CodedTable:
    """Codes whose codewords add up, each as wide as a vector, or stand one after the other."""
    codes = rng.integers(0, size, (items, books), dtype=np.uint8)
    width = dim // books if cuts else dim
    codebooks = rng.standard_normal((books, size, width), dtype=np.float32)
    return CodedTable(codes, codebooks, concatenated=cuts)


def train_cores(items: int, dim: int, rng: np.random.Generator) -> list[NDArray]:
    """A train of three cores, their rows near the cubic root of the items; dim = 4 · 4 · rest."""
    rows = int(np.ceil(items ** (1 / 3)))
    shapes = [(1, rows, 4, RANK), (RANK, rows, 4, RANK), (RANK, rows, dim // 16, 1)]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def train_graph(cores: list[NDArray], dim: int) -> ort.InferenceSession:
    """Rows of a train by the digits of their numbers, which are fed, multiplied with a query."""
    first, second, third = cores
    rows = first.shape[1]
    return graph(
        [
            ("Gather", ["first", "i"], "one"),  # (N, 4, R)
            ("Gather", ["second", "j"], "two"),  # (N, R, 4R)
            ("Gather", ["third", "k"], "three"),  # (N, R, dim / 16)
            ("MatMul", ["one", "two"], "left"),  # (N, 4, 4R)
            ("Reshape", ["left", "inner"], "folded"),  # (N, 16, R)
            ("MatMul", ["folded", "three"], "whole"),  # (N, 16, dim / 16)
            ("Reshape", ["whole", "outer"], "vectors"),  # (N, dim)
            ("MatMul", ["vectors", "query"], "scores"),
        ],
        ["i", "j", "k"],
        {
            "first": np.ascontiguousarray(first[0]),
            "second": np.ascontiguousarray(second.transpose(1, 0, 2, 3)).reshape(rows, RANK, -1),
            "third": np.ascontiguousarray(third[..., 0].transpose(1, 0, 2)),
            "inner": np.array([-1, 16, RANK], np.int64),
            "outer": np.array([-1, dim], np.int64),
        },
    )


def check_train(cores: list[NDArray], session: ort.InferenceSession, dim: int) -> None:
    """The graph gives what serving expands the same cores to."""
    rows, query = cores[0].shape[1], np.ones(dim, np.float32)
    table = FactoredTable.of(cores, 1, 1000)
    fed = digits(np.arange(1000), rows) | {"query": query[:, None]}
    found = session.run(None, fed)[0][:, 0]
    np.testing.assert_allclose(found, table.all_scores(query), rtol=1e-3, atol=1e-2)


def digits(rows: NDArray, base: int) -> dict[str, NDArray]:
    """A row's number in the base of a train's cores."""
    return {"i": rows // base**2, "j": rows // base % base, "k": rows % base}


def rotated(made: Callable[[], NDArray]) -> Iterator[NDArray]:
    """Other candidates or another query each time, made before the clock runs."""
    return cycle([made() for _ in range(ROTATED)])


def lists(matrix: NDArray, candidates: int, rng: np.random.Generator) -> Timed:
    """Ways to score a list of candidates."""
    items, dim = matrix.shape
    rows = rotated(lambda: rng.integers(0, items, candidates))
    queries = rotated(lambda: rng.standard_normal(dim, dtype=np.float32))
    columns = rotated(lambda: rng.standard_normal((dim, 1), dtype=np.float32))
    nodes = [("Gather", ["table", "rows"], "taken"), ("MatMul", ["taken", "query"], "scores")]
    dense = graph(nodes, ["rows"], {"table": matrix})
    cores = train_cores(items, dim, rng)
    train = train_graph(cores, dim)
    check_train(cores, train, dim)
    base = cores[0].shape[1]
    of_digits = cycle([digits(next(rows), base) for _ in range(ROTATED)])
    product = fastest(coded(items, dim, 8, 256, rng, cuts=True))
    eight = fastest(coded(items, dim, 8, 256, rng))
    four = fastest(coded(items, dim, 16, 16, rng))
    return {
        "dense, ONNX Runtime": lambda: dense.run(
            None, {"rows": next(rows), "query": next(columns)}
        ),
        "dense, numpy": lambda: matrix.take(next(rows), axis=0) @ next(queries),
        "tensor train, ONNX Runtime": lambda: train.run(
            None, next(of_digits) | {"query": next(columns)}
        ),
        "8 codes of 8 bits, in cuts": lambda: product.scoring(next(queries))(next(rows)),
        "8 codes of 8 bits": lambda: eight.scoring(next(queries))(next(rows)),
        "16 codes of 4 bits": lambda: four.scoring(next(queries))(next(rows)),
    }


def scans(matrix: NDArray, top: int, rng: np.random.Generator) -> Timed:
    """Ways to score the whole catalogue; those of codes also find the best, exactly."""
    items, dim = matrix.shape
    queries = rotated(lambda: rng.standard_normal(dim, dtype=np.float32))
    columns = rotated(lambda: rng.standard_normal((dim, 1), dtype=np.float32))
    product = graph([("MatMul", ["table", "query"], "scores")], [], {"table": matrix})
    tables = {
        f"{books} codes of {bits} bits, best {top}": fastest(
            coded(items, dim, books, 1 << bits, rng)
        )
        for books, bits in ((8, 8), (8, 4), (16, 4))
    }
    ways: Timed = {
        "dense product, ONNX Runtime": lambda: product.run(None, {"query": next(columns)}),
        "dense product, numpy": lambda: matrix @ next(queries),
    }
    for name, table in tables.items():
        ways[name] = lambda table=table: table.best(next(queries), top)
    return ways


def measure(ways: Timed, rounds: int, in_a_row: int) -> dict[str, NDArray]:
    """Microseconds a call, (rounds,) a way: the ways in turn within each round."""
    times = {name: np.empty(rounds) for name in ways}
    for turn in range(-2, rounds):  # the first two warm up
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(in_a_row):
                way()
            if turn >= 0:
                times[name][turn] = (time.perf_counter() - start) / in_a_row * 1e6
    return times


def spread(values: NDArray, form: str) -> str:
    """A median, and in brackets what it lies between."""
    low, middle, high = (format(v, form) for v in np.percentile(values, [10, 50, 90]))
    return f"{middle} ({low}-{high})"


def report(title: str, times: dict[str, NDArray], references: Sequence[Sequence[str]]) -> None:
    """A table: times, and how often each way goes into the faster of some references."""
    print(f"\n{title}\n")
    heads = [" or ".join(names) for names in references]
    print(f"| way | µs | {' | '.join(f'faster than {head}' for head in heads)} |")
    print(f"|---|---|{'---|' * len(heads)}")
    for name, values in times.items():
        ratios = [np.min([times[r] for r in names], axis=0) / values for names in references]
        cells = [spread(values, ",.0f"), *(f"{spread(ratio, '.1f')}x" for ratio in ratios)]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((options.items, options.dim), dtype=np.float32)
    with threadpool_limits(1):
        print(
            f"{options.items} items of {options.dim} numbers, one thread, {options.rounds} rounds"
        )
        times = measure(lists(matrix, options.candidates, rng), options.rounds, in_a_row=20)
        report(
            f"{options.candidates} random candidates",
            times,
            [["dense, ONNX Runtime"], ["tensor train, ONNX Runtime"]],
        )
        times = measure(scans(matrix, options.top, rng), options.rounds, in_a_row=3)
        best = ["dense product, ONNX Runtime", "dense product, numpy"]
        report("The whole catalogue", times, [best])


if __name__ == "__main__":
    main()
