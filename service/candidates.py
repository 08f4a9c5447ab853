"""Candidates as requests bring them, in three shapes, as one: ids and columns of features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from model_store.encoding import token
from service.errors import (
    Fault,
    InvalidRequest,
    TooManyCandidates,
    UnknownItem,
    Warned,
    escape,
)
from service.schemas import CandidateColumns, CandidateRow, Id, RankRequest

Columns = dict[str, Sequence[Any]]  # feature → a value (or None) for each candidate
MAX_FAULTS: Final = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for at most."""

    candidates: int
    session_items: int
    id_bytes: int


NO_LIMITS: Final = Limits(candidates=2**62, session_items=2**62, id_bytes=2**62)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates, whatever shape they came in.

    Attributes:
        columns: the features that the request brought.
        places: where each stood in the request; None if that is its own position.
        id_pattern: the JSON pointer to an id, and in ``value_pattern`` to a feature's value.
    """

    ids: list[str]
    columns: Columns
    id_pattern: str
    value_pattern: str = ""
    places: Sequence[int] | None = None

    def only(self, kept: Sequence[int]) -> "Candidates":
        """Some of them."""
        return Candidates(
            ids=[self.ids[i] for i in kept],
            columns={name: [column[i] for i in kept] for name, column in self.columns.items()},
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

    def counts(self) -> dict[str, int]:
        """How many candidates bring each feature."""
        return {name: len(column) - column.count(None) for name, column in self.columns.items()}

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


def read_candidates(request: RankRequest, limits: Limits) -> Candidates:
    """The candidates of a request.

    Raises:
        TooManyCandidates: more than the limit.
        InvalidRequest: shapes are mixed, a column has another length, an id is too long.
    """
    given = request.candidates
    if isinstance(given, CandidateColumns):
        return _columns(given, limits)
    _check_count(len(given), "/candidates", limits)
    kinds = set(map(type, given))
    if CandidateRow in kinds:
        return _rows(given, limits)
    pattern = "/candidates/{}"
    return Candidates(texts(given, pattern, limits, kinds), {}, pattern)  # type: ignore[arg-type]


def _columns(given: CandidateColumns, limits: Limits) -> Candidates:
    _check_count(len(given.ids), "/candidates/ids", limits)
    for name, column in given.features.items():
        if len(column) != len(given.ids):
            detail = f"{len(column)} values for {len(given.ids)} ids"
            fault = Fault(f"/candidates/features/{escape(name)}", detail)
            raise InvalidRequest(f"candidates: feature {name!r} has {detail}", [fault])
    pattern = "/candidates/ids/{}"
    ids = texts(given.ids, pattern, limits)
    return Candidates(ids, dict(given.features), pattern, "/candidates/features/{name}/{place}")


def _rows(given: Sequence[Id | CandidateRow], limits: Limits) -> Candidates:
    rows: list[CandidateRow] = []
    row_first = isinstance(given[0], CandidateRow)
    for place, candidate in enumerate(given):
        if isinstance(candidate, CandidateRow) is not row_first:
            detail = "expected all candidates to be ids, or all to be rows"
            raise InvalidRequest(detail, [Fault(f"/candidates/{place}", detail)])
        rows.append(candidate)  # type: ignore[arg-type]
    pattern = "/candidates/{}/id"
    ids = texts([row.id for row in rows], pattern, limits)
    # Sorted: warnings and faults must not depend on the order of a set.
    names = sorted(set().union(*(row.features for row in rows)))
    columns: Columns = {name: [row.features.get(name) for row in rows] for name in names}
    return Candidates(ids, columns, pattern, "/candidates/{place}/features/{name}")


def _check_count(count: int, pointer: str, limits: Limits) -> None:
    if count > limits.candidates:
        fault = Fault(pointer, f"length {count} > {limits.candidates}")
        raise TooManyCandidates(f"{count} candidates, limit {limits.candidates}", [fault])


def check_session(request: RankRequest, limits: Limits) -> list[Warned]:
    """Session items are the input of session rankers; a click-through ranker has no use for them.

    Raises:
        InvalidRequest: they are too many, or an id is too long.
    """
    items = request.session_items
    if not items:
        return []
    if len(items) > limits.session_items:
        fault = Fault("/session_items", f"length {len(items)} > {limits.session_items}")
        detail = f"{len(items)} session items, limit {limits.session_items}"
        raise InvalidRequest(detail, [fault])
    texts(items, "/session_items/{}", limits)
    detail = "this ranker takes no session items; they are ignored"
    return [Warned("unused_session_items", detail, len(items))]


def text_of(each: Id) -> str:
    """An id as text: 7 and 7.0 are "7"."""
    return token(each) or ""


def texts(
    ids: Sequence[Id], pattern: str, limits: Limits, kinds: set[type] | None = None
) -> list[str]:
    """Ids as texts; ``kinds`` are their types, where the caller knows them.

    Raises:
        InvalidRequest: one is too long.
    """
    if (kinds or set(map(type, ids))) <= {str}:
        found: list[str] = ids  # type: ignore[assignment]
    else:
        found = [text_of(each) for each in ids]
    # A character takes up to four bytes.
    if max(map(len, found), default=0) * 4 > limits.id_bytes:
        for place, text in enumerate(found):
            if (size := len(text.encode())) > limits.id_bytes:
                detail = f"an id of {size} bytes > {limits.id_bytes}"
                raise InvalidRequest(detail, [Fault(pattern.format(place), detail)])
    return found
