"""Table rows of an exported graph, rounded at export where the graph would round them itself.

On slim rankers this is most of what eight bits gain: rounding a look-up's fp32 rows on each call
costs nearly as much as the narrow layer behind it saves.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper


class RowsAhead:
    """Rounds table rows at export where a graph looks them up only to round them.

    QuantizeLinear moves up through Reshape and Concat to the Gathers, and there into the tables:
    the same numbers, a quarter of the bytes to fetch. What else a Concat takes is rounded by
    itself. The request side goes on looking up its own rows as they are.
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
        kind, node = self._maker(name)
        if kind == "Gather":
            # Rows of the two sides must part: one look-up of the candidates' into the table.
            table = node.input[0]
            readers = [n for n in self.nodes if n.op_type == "Gather" and n.input[0] == table]
            live = [n for n in readers if n.output[0] in self._live]
            return table in self._constants and len(live) == 1 and self._indexed(node) is not None
        return any(map(self._looks_up, _passed_on(kind, node)))

    def _move_up(self, name: str, rounding: Any) -> None:
        """Make ``<name>.int8`` where ``name`` is made."""
        kind, node = self._maker(name)
        parts = _passed_on(kind, node)
        if kind == "Gather" and (found := self._indexed(node)) and self._looks_up(name):
            self._round_table(node, *found, rounding)
        elif any(map(self._looks_up, parts)):
            for part in parts:
                self._move_up(part, rounding)
            node.input[: len(parts)] = [f"{part}.int8" for part in parts]
        else:
            inputs = [name, *rounding.input[1:]]
            place = self.nodes.index(self._made[name]) + 1 if name in self._made else 0
            self.nodes.insert(place, helper.make_node("QuantizeLinear", inputs, [f"{name}.int8"]))
            return
        node.output[0] = f"{name}.int8"

    def _indexed(self, gather: Any) -> tuple[Any, slice] | None:
        """The node that adds the tables' offsets to the ids, and which of its columns are meant."""
        kind, node = self._maker(gather.input[1])
        columns = slice(None)
        if kind == "Slice":  # the ids of the fields of this width, among others
            columns = slice(*(int(self._constants[name][0]) for name in node.input[1:3]))
            node = self._made.get(node.input[0])
        if node is None or node.op_type != "Add" or node.input[1] not in self._constants:
            return None
        return node, columns

    def _round_table(self, gather: Any, add: Any, columns: slice, rounding: Any) -> None:
        table = gather.input[0]
        offsets, rows = self._constants[add.input[1]].copy(), self._constants[table]
        # In every table the request side's rows come first (`compress.rankers.base.Ranker`).
        first = offsets[columns].min()
        offsets[columns] -= first
        add.input[1] = self._constant(f"{add.output[0]}.offsets", offsets)
        own = self._constant(f"{table}.request", rows[:first])
        for node in self.nodes:
            if node.op_type == "Gather" and node.input[0] == table:
                node.input[0] = own
        scale, zero = (self._constants[name] for name in rounding.input[1:])
        whole = np.clip(np.rint(rows[first:] / scale) + zero, 0, 255).astype(np.uint8)
        gather.input[0] = self._constant(f"{table}.candidate", whole)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = value
        return name


def _passed_on(kind: str, node: Any) -> list[str]:
    """The tensors whose numbers a node hands on as they are."""
    if kind == "Reshape":
        return [node.input[0]]
    return list(node.input) if kind == "Concat" else []
