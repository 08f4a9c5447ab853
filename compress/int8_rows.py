"""Table rows of an exported graph, rounded at export where the graph would round them itself.

On slim rankers this is most of what eight bits gain: rounding a look-up's fp32 rows on each call
costs nearly as much as the narrow layer behind it saves.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper


@dataclass(frozen=True, slots=True)
class LookUp:
    """The candidates' look-up in a table.

    Attributes:
        gather: the node that fetches rows.
        add: the one before it that adds the tables' offsets to the ids.
        columns: which of its columns are meant.
        scales: (k, D) what rows of fewer bits are multiplied with, by column; None for others.
        widening: the nodes after it that make float32 of the rows.
    """

    gather: Any
    add: Any
    columns: slice
    scales: NDArray[Any] | None
    widening: tuple[Any, ...]


class RowsAhead:
    """Rounds table rows at export where a graph looks them up only to round them.

    QuantizeLinear moves up through Reshape and Concat to the Gathers, and there into the tables:
    the same numbers, a quarter of float32's bytes to fetch. Rows that ship in fewer bits need no
    widening then. What else a Concat takes is rounded by itself. The request side goes on looking
    up its own rows as they are.
    """

    def __init__(
        self, nodes: list[Any], constants: dict[str, NDArray[Any]], live: set[str]
    ) -> None:
        self.nodes, self._constants, self._live = nodes, constants, live
        self._made = {name: node for node in nodes for name in node.output}
        self._reads = Counter(name for node in nodes for name in node.input)

    def round(self) -> list[Any]:
        """The nodes, tables rounded where that is all the same."""
        for rounding in [node for node in self.nodes if node.op_type == "QuantizeLinear"]:
            if self._looks_up(rounding.input[0]):
                self.nodes.remove(rounding)
                self._move_up(rounding.input[0], rounding)
        return self.nodes

    def _maker(self, name: str) -> tuple[str, Any]:
        """Kind and node of what makes a tensor for one reader alone."""
        node = self._made.get(name) if self._reads[name] == 1 else None
        return ("", None) if node is None else (node.op_type, node)

    def _looks_up(self, name: str) -> bool:
        if self._look_up(name):
            return True
        return any(map(self._looks_up, _passed_on(*self._maker(name))))

    def _look_up(self, name: str) -> LookUp | None:
        """The look-up that a tensor comes from, its rows widened or not."""
        scales, widening = None, []
        kind, node = self._maker(name)
        if kind == "Mul" and node.input[1] in self._constants:
            scales, widening = self._constants[node.input[1]], [node]
            kind, node = self._maker(node.input[0])
        if kind == "Cast":
            widening.append(node)
            kind, node = self._maker(node.input[0])
        if kind != "Gather" or not self._own(node.input[0]):
            return None
        found = self._indexed(node)
        return LookUp(node, *found, scales, tuple(widening)) if found else None

    def _own(self, table: str) -> bool:
        """Whether the candidates look rows of a table up once, so that the sides' can part."""
        readers = [n for n in self.nodes if n.op_type == "Gather" and n.input[0] == table]
        live = [node for node in readers if node.output[0] in self._live]
        return table in self._constants and len(live) == 1

    def _move_up(self, name: str, rounding: Any) -> None:
        """Make ``<name>.int8`` where ``name`` is made."""
        kind, node = self._maker(name)
        parts = _passed_on(kind, node)
        if found := self._look_up(name):
            self._round_table(found, rounding)
            for idle in found.widening:
                self.nodes.remove(idle)
            found.gather.output[0] = f"{name}.int8"
        elif any(map(self._looks_up, parts)):
            for part in parts:
                self._move_up(part, rounding)
            node.input[: len(parts)] = [f"{part}.int8" for part in parts]
            node.output[0] = f"{name}.int8"
        else:
            inputs = [name, *rounding.input[1:]]
            place = self.nodes.index(self._made[name]) + 1 if name in self._made else 0
            self.nodes.insert(place, helper.make_node("QuantizeLinear", inputs, [f"{name}.int8"]))

    def _indexed(self, gather: Any) -> tuple[Any, slice] | None:
        """The node that adds the tables' offsets to the ids, and which of its columns are meant."""
        kind, node = self._maker(gather.input[1])
        columns = slice(None)
        if kind == "Slice":  # the ids of the fields of this width, among others
            columns = slice(*(int(self._constants[name][0]) for name in node.input[1:3]))
            node = self._made.get(node.input[0])
        if node is None or node.op_type != "Add" or node.input[1] not in self._constants:
            return None
        # Ids are the graph's own input; sums of codes, which pick codewords, are not.
        return None if node.input[0] in self._made else (node, columns)

    def _round_table(self, found: LookUp, rounding: Any) -> None:
        gather, add = found.gather, found.add
        table = gather.input[0]
        offsets, rows = self._constants[add.input[1]].copy(), self._constants[table]
        # In every table the request side's rows come first (`compress.rankers.base.Ranker`).
        first = offsets[found.columns].min()
        offsets[found.columns] -= first
        add.input[1] = self._constant(f"{add.output[0]}.offsets", offsets)
        own = self._constant(f"{table}.request", rows[:first])
        for node in self.nodes:
            if node.op_type == "Gather" and node.input[0] == table:
                node.input[0] = own
        scale, zero = (self._constants[name] for name in rounding.input[1:])
        numbers = _widened(rows[first:], offsets[found.columns], found.scales)
        whole = np.clip(np.rint(numbers / scale) + zero, 0, 255).astype(np.uint8)
        gather.input[0] = self._constant(f"{table}.candidate", whole)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = value
        return name


def _passed_on(kind: str, node: Any) -> list[str]:
    """The tensors whose numbers a node hands on as they are."""
    if kind == "Reshape":
        return [node.input[0]]
    return list(node.input) if kind == "Concat" else []


def _widened(
    rows: NDArray[Any], starts: NDArray[Any], scales: NDArray[Any] | None
) -> NDArray[np.float32]:
    """Rows (N, D) as float32.

    Args:
        rows: in blocks.
        starts: (k,) the first row of each column's block.
        scales: (k, D) of the columns' blocks; None where rows have none.
    """
    numbers = rows.astype(np.float32)
    if scales is None:
        return numbers
    order = np.argsort(starts)
    column = order[np.searchsorted(starts[order], np.arange(len(rows)), side="right") - 1]
    widened: NDArray[np.float32] = numbers * scales[column]
    return widened
