"""Wire types of POST /rank and /recommend: parsed and validated once, from bytes, with no logic."""

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from service.errors import Fault, InvalidRequest, MalformedJson

Id = str | int | float
Features = dict[str, Any]
Shape = Literal["items", "columns"]
TopK = Annotated[int, Meta(ge=1)]
WarningCode = Literal[
    "duplicate_candidates",
    "session_truncated",
    "undeclared_feature",
    "unknown_session_items",
    "unused_session_items",
]
T = TypeVar("T")


class CandidateRow(Struct, gc=False, forbid_unknown_fields=True):
    """A candidate with features of its own, which win over the catalogue's."""

    id: Id
    features: Features | None = None


class CandidateColumns(Struct, gc=False, forbid_unknown_fields=True):
    """Candidates as columns: ids, and for each feature one value (or null) per id."""

    ids: list[Id]
    features: dict[str, list[Any] | None] | None = None


class RankRequest(Struct, gc=False, forbid_unknown_fields=True):
    """Candidates to rank for a user in a context.

    `candidates` is a list of ids, a list of rows, or columns. A null means the same as leaving the
    key out.
    """

    candidates: list[Id | CandidateRow] | CandidateColumns
    id: Id | None = None
    model: str | None = None
    user: Features | None = None
    context: Features | None = None
    session_items: list[Id] | None = None
    top_k: TopK | None = None
    unknown_items: Literal["score", "drop", "reject"] | None = None
    explain: Literal["none", "features"] | None = None
    shape: Shape | None = None


class RecommendRequest(Struct, gc=False, forbid_unknown_fields=True):
    """Asks for the best of the whole catalogue, after a session or for a user in a context.

    A null means the same as leaving the key out.
    """

    id: Id | None = None
    model: str | None = None
    user: Features | None = None
    context: Features | None = None
    session_items: list[Id] | None = None
    top_k: TopK | None = None
    exclude: list[Id] | None = None
    shape: Shape | None = None


class ExplainedValue(Struct):
    """The value that a feature was taken to have: the request's, the catalogue's or the default."""

    value: Any
    source: Literal["request", "store", "default"]


class RankedItem(Struct, omit_defaults=True):
    """A candidate and its score. `cold`: the catalogue does not know it."""

    id: str
    score: float
    cold: bool = False
    features: dict[str, ExplainedValue] | None = None


class ExcludedItem(Struct):
    """A candidate that was left out."""

    id: str
    reason: Literal["unknown_item"]


class RankWarning(Struct):
    """Something in the request that had no effect, and how often it came."""

    code: WarningCode
    detail: str
    count: int


class RankReply(Struct, omit_defaults=True):
    """The reply of POST /rank: `items`, or `ids` and `scores` for the shape "columns".

    Written by hand for speed; this is its document.
    """

    id: str
    model: str
    version: str
    digest: str
    excluded: list[ExcludedItem]
    warnings: list[RankWarning]
    timing_ms: dict[Literal["total", "parse", "features", "score"], float]
    items: list[RankedItem] | None = None
    ids: list[str] | None = None
    scores: list[float] | None = None
    cold: list[bool] | None = None
    request_features: dict[str, ExplainedValue] | None = None
    features: list[dict[str, ExplainedValue]] | None = None


class RecommendReply(Struct, omit_defaults=True):
    """The reply of POST /recommend: that of /rank, and how the items were found.

    `exact`: no item of the catalogue that is left out scores higher.
    """

    id: str
    model: str
    version: str
    digest: str
    method: Literal["exact"]
    excluded: list[ExcludedItem]
    warnings: list[RankWarning]
    timing_ms: dict[Literal["total", "parse", "features", "score"], float]
    items: list[RankedItem] | None = None
    ids: list[str] | None = None
    scores: list[float] | None = None


class _RawColumns(Struct, gc=False, forbid_unknown_fields=True):
    """CandidateColumns whose columns are yet to be parsed."""

    ids: list[Id]
    features: dict[str, Raw] | None = None


# RankRequest whose candidates are yet to be parsed: made of its fields, so that they stay alike.
_RankOutline: Final = msgspec.defstruct(
    "_RankOutline",
    [
        ("candidates", Raw),
        *(
            (field.name, field.type, field.default)
            for field in msgspec.structs.fields(RankRequest)
            if field.name != "candidates"
        ),
    ],
    gc=False,
    forbid_unknown_fields=True,
)
_RANK: Final = msgspec.json.Decoder(RankRequest)
_RECOMMEND: Final = msgspec.json.Decoder(RecommendRequest)
_OUTLINE: Final = msgspec.json.Decoder(_RankOutline)
_EACH: Final = msgspec.json.Decoder(list[Raw])
_CANDIDATE: Final[msgspec.json.Decoder[Id | CandidateRow]] = msgspec.json.Decoder(Id | CandidateRow)
_COLUMNS: Final = msgspec.json.Decoder(_RawColumns)
_COLUMN: Final[msgspec.json.Decoder[list[Any] | None]] = msgspec.json.Decoder(list[Any] | None)


def parse_rank(body: bytes | bytearray) -> RankRequest:
    """Parse the body of POST /rank.

    Raises:
        MalformedJson: it is not JSON (NaN and Infinity are not).
        InvalidRequest: it is, but of another shape; the fault says where.
    """
    return _parsed(_RANK, body)


def parse_rank_in_steps(body: bytes | bytearray) -> RankRequest:
    """`parse_rank` candidate by candidate, or column by column, for a thread beside the event loop.

    The parser keeps the GIL to its end, which may be milliseconds away; between steps others run.
    """
    try:
        outline = _OUTLINE.decode(body)
        given = msgspec.structs.asdict(outline)
        return RankRequest(**given | {"candidates": _candidates(given["candidates"])})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return parse_rank(body)  # it says what is wrong, and where in the body


def _candidates(raw: Raw) -> list[Id | CandidateRow] | CandidateColumns:
    if memoryview(raw)[:1].tobytes() != b"{":
        return [_CANDIDATE.decode(each) for each in _EACH.decode(raw)]
    columns = _COLUMNS.decode(raw)
    if columns.features is None:
        return CandidateColumns(columns.ids)
    features = {name: _COLUMN.decode(each) for name, each in columns.features.items()}
    return CandidateColumns(columns.ids, features)


def parse_recommend(body: bytes | bytearray) -> RecommendRequest:
    """Parse the body of POST /recommend.

    Raises:
        MalformedJson, InvalidRequest: as `parse_rank`.
    """
    return _parsed(_RECOMMEND, body)


def _parsed(decoder: msgspec.json.Decoder[T], body: bytes | bytearray) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _require_json(body)
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedJson(_reason(error)) from None


def convert_rank(body: dict[str, Any]) -> RankRequest:
    """A request from an already parsed body (a golden one)."""
    try:
        return msgspec.convert(body, RankRequest)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


def _require_json(body: bytes | bytearray) -> None:
    # The decoder stops at the first wrong type: what follows may not even be JSON.
    try:
        msgspec.json.decode(body)
    except msgspec.ValidationError:
        return  # a number out of range: JSON all the same
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedJson(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8"
    return str(error)


def _invalid(message: str) -> InvalidRequest:
    """A message of msgspec ("Expected `str` - at `$.candidates[0]`") as a fault with a pointer."""
    detail, _, path = message.partition(" - at `$")
    # A key of an open object shows as [...]: the pointer stops at the object.
    pointer = (
        path.rstrip("`").split("[...]")[0].replace("[", "/").replace("]", "").replace(".", "/")
    )
    detail = detail.replace("`", "'")
    return InvalidRequest(detail, [Fault(pointer, detail)])
