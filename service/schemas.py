"""Wire types of POST /rank and /recommend: parsed and validated once, from bytes, with no logic."""

from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from service import kernels
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


class _Ranked(Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    """What a ranking request has besides its candidates."""

    id: Id | None = None
    model: str | None = None
    user: Features | None = None
    context: Features | None = None
    session_items: list[Id] | None = None
    top_k: TopK | None = None
    unknown_items: Literal["score", "drop", "reject"] | None = None
    explain: Literal["none", "features"] | None = None
    shape: Shape | None = None


class RankRequest(_Ranked, kw_only=True):
    """Candidates to rank for a user in a context.

    `candidates` is a list of ids, a list of rows, or columns. A null means the same as leaving the
    key out.
    """

    candidates: list[Id | CandidateRow] | CandidateColumns


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


class RawRankRequest(NamedTuple):
    """A request whose candidates' features are yet to be read.

    Attributes:
        asked: has none of them: ``{}`` where something was brought.
    """

    asked: RankRequest
    brought: kernels.Brought


NO_RAW: Final = Raw(b"null")


class RawRow(Struct, gc=False, forbid_unknown_fields=True):
    """CandidateRow whose features are yet to be parsed."""

    id: Id
    features: Raw = NO_RAW


class RawColumns(Struct, gc=False, forbid_unknown_fields=True):
    """CandidateColumns whose columns are yet to be parsed."""

    ids: list[Id]
    features: Raw = NO_RAW


class _StepwiseRequest(_Ranked, kw_only=True):
    candidates: list[Id | RawRow] | RawColumns


_RANK: Final = msgspec.json.Decoder(RankRequest)
_STEPWISE: Final = msgspec.json.Decoder(_StepwiseRequest)
_RECOMMEND: Final = msgspec.json.Decoder(RecommendRequest)
_FEATURES: Final[msgspec.json.Decoder[Features | None]] = msgspec.json.Decoder(Features | None)
_COLUMNS: Final[msgspec.json.Decoder[dict[str, Raw] | None]] = msgspec.json.Decoder(
    dict[str, Raw] | None
)
_COLUMN: Final[msgspec.json.Decoder[list[Any] | None]] = msgspec.json.Decoder(list[Any] | None)
RAW_FROM: Final = 4096  # bytes: shorter bodies gain nothing
CANDIDATES: Final = b'"candidates"'
FEATURES: Final = b'"features"'


def parse_rank(body: bytes | bytearray) -> RankRequest:
    """Parse the body of POST /rank.

    Raises:
        MalformedJson: it is not JSON (NaN and Infinity are not).
        InvalidRequest: it is, but of another shape; the fault says where.
    """
    return _parsed(_RANK, body)


def parse_rank_raw(body: bytes | bytearray) -> RankRequest | RawRankRequest | None:
    """`parse_rank` that leaves features of candidates as they came.

    Who wants them reads them without a Python object for each, or parses the body whole, which
    says what is wrong. Of what is left as it came, nothing is known but where it lies.

    Returns:
        None where the body is to be parsed whole at once: since nothing is gained (it is short, or
        brings no features), since it is not all ASCII without escapes, or since something is wrong
        with it.
    """
    if len(body) < RAW_FROM or FEATURES not in body or not body.isascii() or b"\\" in body:
        return None
    cut = kernels.cut_features(body)
    if cut is None:
        return None
    rest, brought = cut
    try:
        request = _RANK.decode(rest)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not len(brought.spans):
        return request
    # A name that comes twice is seen once, and one elsewhere is no candidate's.
    if _bringing(request.candidates) != len(brought.spans):
        return None
    return RawRankRequest(request, brought)


def _bringing(given: list[Id | CandidateRow] | CandidateColumns) -> int:
    """How many objects of features they have."""
    if isinstance(given, CandidateColumns):
        return given.features is not None
    return sum(type(each) is CandidateRow and each.features is not None for each in given)


def _named_once(body: bytes | bytearray, given: list[Id | RawRow] | RawColumns) -> bool:
    """Whether candidates came once, and the features of each: of two, only the last was seen.

    A text that reads like one of these names counts as one: then it may be told that they did not.
    """
    several = [given] if isinstance(given, RawColumns) else [r for r in given if type(r) is RawRow]
    raws = [each.features for each in several if each.features is not NO_RAW]
    inside = b"\n".join(raws)
    around = [body.count(name) - inside.count(name) for name in (CANDIDATES, FEATURES)]
    return around == [1, len(raws)]


def parse_rank_in_steps(body: bytes | bytearray) -> RankRequest:
    """`parse_rank` candidate by candidate, or column by column, for a thread beside the event loop.

    The parser keeps the GIL to its end, which may be milliseconds away; between steps others run.
    """
    try:
        request = _STEPWISE.decode(body)
        given = request.candidates
        if not _named_once(body, given):
            return parse_rank(body)
        if isinstance(given, RawColumns):
            return _with_candidates(request, CandidateColumns(given.ids, _columns(given.features)))
        return _with_candidates(request, [_candidate(each) for each in given])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return parse_rank(body)  # it says what is wrong, and where in the body


def _candidate(given: Id | RawRow) -> Id | CandidateRow:
    if isinstance(given, RawRow):
        return CandidateRow(given.id, _FEATURES.decode(given.features))
    return given


def _columns(raw: Raw) -> dict[str, list[Any] | None] | None:
    columns = _COLUMNS.decode(raw)
    if columns is None:
        return None
    return {name: _COLUMN.decode(each) for name, each in columns.items()}


def _with_candidates(
    request: _StepwiseRequest, candidates: list[Id | CandidateRow] | CandidateColumns
) -> RankRequest:
    return RankRequest(**msgspec.structs.asdict(request) | {"candidates": candidates})


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
