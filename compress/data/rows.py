"""Rows of files, cut into parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from compress.data.base import Part, Tally
from compress.data.files import Files
from compress.data.split import ROW, Cut, Split, resolve_cut


@dataclass(frozen=True)
class Rows:
    """A table of files and how it is split."""

    files: Files
    split: Split

    @cached_property
    def cut(self) -> Cut:
        """The split's boundary values."""
        column = self.split.column
        return resolve_cut(
            self.split, self.files.count, lambda: self.files.values(column) if column else ()
        )

    def chunks(self, part: Part, tally: Tally | None = None) -> Iterator[pl.DataFrame]:
        """Rows of a part in file order.

        Bad rows are counted in the part that they lie in; those without a readable place in the
        split, in training.
        """
        _, end = self.cut.bounds(part)
        for frame in self.files.frames(tally):
            rows = self.cut.select(frame, part).drop(ROW)
            if len(rows):
                yield rows
            if self.cut.column == ROW and len(frame) and frame[ROW][-1] >= end:
                return
