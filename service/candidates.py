"""Candidates as requests bring them, in three shapes, as one: ids and columns of features."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

import numpy as np
from msgspec import Struct

from model_store.encoding import token
from service import kernels
from service.errors import (
    Fault,
    InvalidRequest,
    TooManyCandidates,
    UnknownItem,
    escape,
)
from service.schemas import (
    CandidateColumns,
    CandidateRow,
    Features,
    Id,
    RankRequest,
    RawRankRequest,
)

Columns = dict[str, Sequence[Any]]  # feature → a value (or None) for each candidate
MAX_FAULTS: Final = 20
NO_FEATURES: Final[Features] = {}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for at most."""

    candidates: int
    session_items: int
    id_bytes: int


NO_LIMITS: Final = Limits(candidates=2**62, session_items=2**62, id_bytes=2**62)


class ItemFeatures(NamedTuple):
    """The item features that a bundle declares, and those of them that its ranker kept."""

    declared: Set[str]
    kept: Set[str]


class Candidates(Struct, frozen=True, gc=False):
    """Candidates, whatever shape they came in.

    Attributes:
        columns: the features that the request brought and the ranker takes.
        undeclared: how many candidates of the request bring each feature that the bundle lacks.
        places: where each stood in the request; None if that is its own position.
        id_pattern: the JSON pointer to an id, and in ``value_pattern`` to a feature's value.
    """

    ids: list[str]
    columns: Columns
    undeclared: Mapping[str, int]
    id_pattern: str
    value_pattern: str = ""
    places: Sequence[int] | None = None

    def only(self, kept: Sequence[int]) -> "Candidates":
        """Some of them."""
        return Candidates(
            ids=[self.ids[i] for i in kept],
            columns={name: [column[i] for i in kept] for name, column in self.columns.items()},
            undeclared=self.undeclared,
            id_pattern=self.id_pattern,
            value_pattern=self.value_pattern,
            places=[self._place(i) for i in kept],
        )

    def first_of_each(self) -> list[int] | None:
        """Positions of the first of each id, None if none repeats."""
        if len(set(self.ids)) == len(self.ids):
            return None
        first: dict[str, int] = {}
        for position, item in enumerate(self.ids):
            first.setdefault(item, position)
        return list(first.values())

    def pointer(self, position: int, feature: str) -> str:
        """Where in the body a candidate's value of a feature stands."""
        return self.value_pattern.format(place=self._place(position), name=escape(feature))

    def unknown(self, positions: Sequence[int]) -> UnknownItem:
        """The refusal of candidates that the catalogue does not know."""
        faults = [
            Fault(self.id_pattern.format(self._place(i)), f"unknown item {self.ids[i]!r}")
            for i in positions[:MAX_FAULTS]
        ]
        return UnknownItem(f"{len(positions)} of {len(self.ids)} candidates are unknown", faults)

    def _place(self, position: int) -> int:
        return position if self.places is None else self.places[position]


def read_candidates(request: RankRequest, limits: Limits, features: ItemFeatures) -> Candidates:
    """The candidates of a request.

    Raises:
        TooManyCandidates: more than the limit.
        InvalidRequest: shapes are mixed, a column has another length, an id is too long.
    """
    given = request.candidates
    if isinstance(given, CandidateColumns):
        return _columns(given, limits, features)
    _check_count(len(given), "/candidates", limits)
    longest = kernels.longest(given)
    if longest < 0 and CandidateRow in (kinds := set(map(type, given))):
        if len(kinds) > 1:
            raise _mixed(given)
        return _rows(cast("Sequence[CandidateRow]", given), limits, features)
    pattern = "/candidates/{}"
    ids = _texts(given, longest, pattern, limits)  # type: ignore[arg-type]
    return Candidates(ids, {}, {}, pattern)


class RawCandidates(NamedTuple):
    """Candidates whose features are yet to be read.

    Attributes:
        brought: an object for each of them, or one of columns.
        as_columns: which of these it is.
    """

    ids: list[str]
    brought: kernels.Brought
    as_columns: bool


def read_raw(request: RawRankRequest, limits: Limits) -> RawCandidates | None:
    """The candidates of a request; None where anything is wrong, or shapes are mixed."""
    given, brought = request.asked.candidates, request.brought
    as_columns = isinstance(given, CandidateColumns)
    if isinstance(given, CandidateColumns):
        ids: Sequence[Id] = given.ids
    elif set(map(type, given)) == {CandidateRow}:
        rows = cast("Sequence[CandidateRow]", given)
        ids = [row.id for row in rows]
        if len(brought.spans) < len(rows):
            spans = np.zeros((len(rows), 2), np.int64)
            spans[[row.features is not None for row in rows]] = brought.spans
            brought = brought._replace(spans=spans)
    else:
        return None
    if len(ids) > limits.candidates:
        return None
    try:
        return RawCandidates(texts(ids, "", limits), brought, as_columns)
    except InvalidRequest:
        return None


def _columns(given: CandidateColumns, limits: Limits, features: ItemFeatures) -> Candidates:
    _check_count(len(given.ids), "/candidates/ids", limits)
    brought = {name: c for name, c in (given.features or {}).items() if c is not None}
    for name, column in brought.items():
        if len(column) != len(given.ids):
            detail = f"{len(column)} values for {len(given.ids)} ids"
            fault = Fault(f"/candidates/features/{escape(name)}", detail)
            raise InvalidRequest(f"candidates: feature {name!r} has {detail}", [fault])
    pattern = "/candidates/ids/{}"
    ids = texts(given.ids, pattern, limits)
    columns: Columns = {name: c for name, c in brought.items() if name in features.kept}
    undeclared = {
        name: len(column) - column.count(None)
        for name, column in brought.items()
        if name not in features.declared
    }
    value_pattern = "/candidates/features/{name}/{place}"
    return Candidates(ids, columns, undeclared, pattern, value_pattern)


def _mixed(given: Sequence[Id | CandidateRow]) -> InvalidRequest:
    """The refusal of ids among rows, or rows among ids: of the first that is not as the first."""
    first = isinstance(given[0], CandidateRow)
    place = next(i for i, each in enumerate(given) if isinstance(each, CandidateRow) is not first)
    detail = "expected all candidates to be ids, or all to be rows"
    return InvalidRequest(detail, [Fault(f"/candidates/{place}", detail)])


def _rows(rows: Sequence[CandidateRow], limits: Limits, features: ItemFeatures) -> Candidates:
    pattern = "/candidates/{}/id"
    ids = texts([row.id for row in rows], pattern, limits)
    brought = [row.features or NO_FEATURES for row in rows]
    alike = _by_column(brought)
    names = set().union(*brought) if alike is None else alike.keys()
    # Sorted: faults must not depend on the order of a set.
    columns: Columns = {
        name: [each.get(name) for each in brought] if alike is None else alike[name]
        for name in sorted(names & features.kept)
    }
    # One pass, never a column each: a body can bring a new name with every value.
    strange = names - features.declared
    undeclared = Counter(
        name
        for each in (brought if strange else ())
        for name, value in each.items()
        if value is not None and name in strange
    )
    return Candidates(ids, columns, undeclared, pattern, "/candidates/{place}/features/{name}")


def _by_column(brought: Sequence[Features]) -> Columns | None:
    """Rows of the same features, as most callers send them, by column; None if they differ."""
    first = brought[0]
    if len(first) < 2 or any(len(each) != len(first) for each in brought):  # noqa: PLR2004
        return None
    try:
        values = map(itemgetter(*first), brought)
        return dict(zip(first, zip(*values, strict=True), strict=True))
    except KeyError:
        return None


def _check_count(count: int, pointer: str, limits: Limits) -> None:
    if count > limits.candidates:
        fault = Fault(pointer, f"length {count} > {limits.candidates}")
        raise TooManyCandidates(f"{count} candidates, limit {limits.candidates}", [fault])


def read_session(given: Sequence[Id] | None, limits: Limits) -> list[str]:
    """The ids of session items, oldest first.

    Raises:
        InvalidRequest: they are too many, or an id is too long.
    """
    items = given or []
    if len(items) > limits.session_items:
        fault = Fault("/session_items", f"length {len(items)} > {limits.session_items}")
        detail = f"{len(items)} session items, limit {limits.session_items}"
        raise InvalidRequest(detail, [fault])
    return texts(items, "/session_items/{}", limits)


def read_excluded(given: Sequence[Id] | None, limits: Limits) -> list[str]:
    """The ids that must not be recommended.

    Raises:
        InvalidRequest: they are more than candidates may be, or an id is too long.
    """
    items = given or []
    if len(items) > limits.candidates:
        fault = Fault("/exclude", f"length {len(items)} > {limits.candidates}")
        raise InvalidRequest(f"{len(items)} excluded ids, limit {limits.candidates}", [fault])
    return texts(items, "/exclude/{}", limits)


def text_of(each: Id) -> str:
    """An id as text: 7 and 7.0 are "7"."""
    return token(each) or ""


def texts(ids: Sequence[Id], pattern: str, limits: Limits) -> list[str]:
    """Ids as texts.

    Raises:
        InvalidRequest: one is too long.
    """
    return _texts(ids, kernels.longest(ids), pattern, limits)


def _texts(ids: Sequence[Id], longest: int, pattern: str, limits: Limits) -> list[str]:
    found: list[str] = ids  # type: ignore[assignment]
    if longest < 0:
        found = [text_of(each) for each in ids]
        longest = kernels.longest(found)
    # A character takes up to four bytes.
    if longest * 4 > limits.id_bytes:
        for place, text in enumerate(found):
            if (size := len(text.encode())) > limits.id_bytes:
                detail = f"an id of {size} bytes > {limits.id_bytes}"
                raise InvalidRequest(detail, [Fault(pattern.format(place), detail)])
    return found
