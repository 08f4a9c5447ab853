"""The manifest: the contract between training and serving.

A bundle is a folder of files and one ``manifest.json`` that names all of them. Serving reads the
manifest and fills the graph's inputs by it; it never asks which architecture a bundle holds.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

FORMAT_VERSION: Final = 3
MANIFEST_FILE: Final = "manifest.json"
MOST_TOLERANCE: Final = 0.05  # that a bundle may ask for its golden scores
UNREACHED: Final = -100.0  # the log weight of an item that no term of a session ranker reaches

Kind = Literal["numeric", "categorical", "multi"]
Side = Literal["user", "context", "item"]
InputName = Literal["request_numeric", "request_ids", "candidate_numeric", "candidate_ids"]
Transform = Literal["identity", "log1p", "standardize"]


class Frozen(BaseModel):
    """A record that is checked where it enters and trusted after."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NumericEncoding(Frozen):
    """A number: missing becomes ``default``, then ``transform`` is applied.

    ``log1p`` is ln(max(x, 0) + 1), as DLRM; ``standardize`` is (x - mean) / scale.
    """

    type: Literal["numeric"] = "numeric"
    transform: Transform = "identity"
    mean: float = 0.0
    scale: float = Field(default=1.0, gt=0)
    default: float = 0.0


class NumberCode(Frozen):
    """How a file holds tokens that are whole numbers, in ascending order: an Elias-Fano code.

    Attributes:
        base: 10, or 16 with lower-case digits.
        digits: of every token, zeros in front included; 0: no zeros in front.
        tokens: how many.
        bits: of each number, the low ones, kept as they are; the rest is kept in unary.
    """

    base: Literal[10, 16]
    digits: int = Field(ge=0, le=20)
    tokens: int = Field(ge=1)
    bits: int = Field(ge=0, le=63)


class VocabularyEncoding(Frozen):
    """A token's row in its vocabulary: 0 out of vocabulary, 1 missing, 2.. the known tokens.

    Attributes:
        file: a JSON array of the tokens, or what ``numbers`` tells.
        numbers: how the file holds them as numbers; None: it is JSON.
    """

    type: Literal["vocabulary"] = "vocabulary"
    file: str
    rows: int = Field(ge=2)
    default: str | None = None
    numbers: NumberCode | None = None


class HashEncoding(Frozen):
    """A token's row by CRC-32 of its UTF-8 bytes: 1 missing, 2.. the buckets (row 0 is unused)."""

    type: Literal["hash"] = "hash"
    rows: int = Field(ge=3)
    default: str | None = None


class BucketEncoding(Frozen):
    """A number's row by sorted ``edges``: 1 missing, 2 + (number of edges at or below x)."""

    type: Literal["buckets"] = "buckets"
    edges: tuple[float, ...]
    default: float | None = None

    @field_validator("edges")
    @classmethod
    def _sorted(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if list(edges) != sorted(edges):
            raise ValueError("expected edges in ascending order")
        return edges

    @property
    def rows(self) -> int:
        """Rows of the embedding table, out-of-vocabulary and missing included."""
        return len(self.edges) + 3


Encoding = Annotated[
    NumericEncoding | VocabularyEncoding | HashEncoding | BucketEncoding,
    Field(discriminator="type"),
]


class FeatureSpec(Frozen):
    """One named feature: where a request carries it, how it is encoded, where it lands.

    Attributes:
        side: ``user`` and ``context`` are the request side (computed once), ``item`` is the
            candidates'.
        column: its column in a data file (defaults to ``name``).
        length: values kept of a multi-valued feature (1 for the others); shorter ones are padded
            with row 1, which pools to nothing.
        tensor: the graph input that holds it; None once compression pruned it.
        start: its first column in that input; it takes ``length`` columns.
    """

    name: str
    kind: Kind
    side: Side
    encoding: Encoding
    column: str
    separator: str = "|"
    length: int = Field(default=1, ge=1)
    tensor: InputName | None = None
    start: int = 0

    @property
    def pruned(self) -> bool:
        """Whether compression removed the feature: accepted in requests, and ignored."""
        return self.tensor is None

    @property
    def request_side(self) -> bool:
        """Whether one value serves all the candidates of a request."""
        return self.side != "item"


class TensorSpec(Frozen):
    """A graph input or output. In ``shape`` "R" is 1 or N, "N" the number of candidates."""

    name: str
    dtype: Literal["float32", "int32", "int64", "uint8"]
    shape: tuple[int | str, ...]


class FileEntry(Frozen):
    """A file of the bundle, by its POSIX path inside it."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class ItemTableSpec(Frozen):
    """The encoded features of the catalogue's items, row i of each tensor for ``ids[i]``.

    Attributes:
        ids: a JSON array of strings, the item ids.
        tensors: graph input name -> npy file, (items, columns of that input).
        values: a JSON object feature -> list of raw values, for ``explain``; None if left out.
    """

    ids: str
    tensors: dict[InputName, str]
    items: int = Field(ge=0)
    values: str | None = None


class DenseVectors(Frozen):
    """Item vectors as they are: one npy file, (items, dim), float32 or float16."""

    type: Literal["dense"] = "dense"
    file: str


class Int8Vectors(Frozen):
    """Item vectors row by row in eight bits: vector = row · scale.

    Attributes:
        file: npy, (items, dim) int8.
        scales: npy, (items,) float16.
    """

    type: Literal["int8"] = "int8"
    file: str
    scales: str


class StoredCodes(Frozen):
    """Codes that were chosen item by item.

    Attributes:
        file: npy, (items, ceil(M · bits / 8)) uint8: an item's M codes, ``bits`` each, from the
            lowest bit of the first byte on.
        bits: 1 to 16.
    """

    type: Literal["stored"] = "stored"
    file: str
    bits: int = Field(ge=1, le=16)


class RadixCodes(Frozen):
    """Codes that need no file: the digits of an item's row, the last radix the least significant.

    Two radices are the quotient-remainder trick.
    """

    type: Literal["radix"] = "radix"
    radices: tuple[PositiveInt, ...] = Field(min_length=1)


class HashedCodes(Frozen):
    """Codes that need no file: code m is row · ``factors[m]`` modulo the prime, modulo K."""

    type: Literal["hashed"] = "hashed"
    factors: tuple[PositiveInt, ...] = Field(min_length=1)
    prime: PositiveInt = 2_147_483_647


class CodedVectors(Frozen):
    """Item vectors put together from codewords.

    Attributes:
        codes: which codeword of each codebook an item takes, (items, M).
        codebooks: npy, (M, K, width) float32, float16 or int8.
        scales: of int8 codebooks, npy, (M, K) float16; None for the others.
        composition: ``sum`` (width = dim) or ``concatenate`` (width = dim / M).
    """

    type: Literal["codes"] = "codes"
    codes: Annotated[StoredCodes | RadixCodes | HashedCodes, Field(discriminator="type")]
    codebooks: str
    scales: str | None = None
    composition: Literal["sum", "concatenate"]


class FactoredVectors(Frozen):
    """Item vectors as a tensor train: row (i_1 … i_d), in mixed radix, is G_1[i_1] · … · G_d[i_d].

    Attributes:
        cores: npy, (R_{k-1}, I_k, J_k, R_k) each; the later ones n times smaller in both ranks.
        block: n of the semi-tensor product; 1 is the plain tensor train.
    """

    type: Literal["factors"] = "factors"
    cores: tuple[str, ...] = Field(min_length=2)
    block: int = Field(default=1, ge=1)


Vectors = Annotated[
    DenseVectors | Int8Vectors | CodedVectors | FactoredVectors, Field(discriminator="type")
]


class NeighbourSpec(Frozen):
    """A sparse (items, items) matrix S of what follows what, by rows.

    Attributes:
        offsets: npy, (items + 1,) int32: row v is [offsets[v], offsets[v + 1]).
        items: npy, int32: columns.
        weights: npy, float16 or float32: over 0.
    """

    offsets: str
    items: str
    weights: str


class SessionSpec(Frozen):
    """How a session ranker scores the catalogue.

    The graph takes the vectors of the session's items, oldest first, as ``session`` (R, L, dim);
    it answers with ``query`` (R, dim) and log weights ``repeat``, ``follow`` (R, L). The score is

        log( exp(query · e_v) + sum_t exp(repeat_t) [v_t = v] + sum_t exp(follow_t) S[v_t, v] )

    where a term that the graph has no output for is 0; what no term reaches scores `UNREACHED`.

    Attributes:
        ids: a JSON array of strings, the item ids.
        items: how many.
        length: the newest so many session items are taken.
        dim: of the vectors; 1 (all of them zero) without any.
    """

    ids: str
    items: int = Field(ge=1)
    length: int = Field(ge=1)
    dim: int = Field(ge=1)
    vectors: Vectors | None = None
    neighbours: NeighbourSpec | None = None


class DataSpec(Frozen):
    """How a data file of this bundle's source is read, so that `evaluate` needs no config.

    Attributes:
        label: the label's column.
        positive_from: values at or above it are positive (None: the label is 0 or 1).
        tsv_columns: names for a tab-separated file without a header (Criteo's); None elsewhere.
        time: the time column, if any.
    """

    label: str
    positive_from: float | None = None
    tsv_columns: tuple[str, ...] | None = None
    time: str | None = None


class Quality(Frozen):
    """Metrics of one exported graph on one data set."""

    auc: float
    logloss: float
    accuracy: float
    rows: int


class SeedResult(Frozen):
    """Quality before and after compression under one seed, on the same test rows."""

    seed: int
    dense: Quality
    slim: Quality


class Resources(Frozen):
    """What a ranker costs. FLOPs per candidate row (multiply and add counted as two)."""

    flops: int
    flops_parts: dict[str, int] = {}
    bytes: dict[str, int] = {}
    parameters: int = 0
    us_per_request: float | None = None


class NumericsTrial(Frozen):
    """A form of the slim graph beside the fp32 one: the same rows, in turn in one process.

    Attributes:
        numerics: ``fp32``, ``int8-static``, ...
        auc: on the validation rows.
        logloss: on the validation rows.
        moved: the farthest that a score of those rows is from fp32's.
        split_gap: the farthest that scores with the request given once are from the same with it
            given for each candidate.
        bytes: of the graph.
        us_per_request: candidates -> median microseconds of CPU.
        speedup: candidates -> fp32's time to its own, call by call: lower quartile, median, upper.
    """

    numerics: str
    auc: float
    logloss: float
    moved: float = 0.0
    split_gap: float = 0.0
    bytes: int
    us_per_request: dict[int, float]
    speedup: dict[int, tuple[float, float, float]]


class Quantization(Frozen):
    """How the precision of the slim graph was chosen; the first trial is fp32."""

    chosen: str
    reason: str
    trials: tuple[NumericsTrial, ...]


class Card(Frozen):
    """The compression card: what was done, what it cost and what it gained.

    Attributes:
        quantization: None where nothing but fp32 was asked for.
    """

    method: str
    ranker: str
    seed: int
    results: tuple[SeedResult, ...] = ()
    dense: Resources
    slim: Resources
    requested: dict[str, float] = {}
    achieved: dict[str, float] = {}
    kept_features: tuple[str, ...]
    pruned_features: tuple[str, ...] = ()
    widths: dict[str, tuple[int, ...]] = {}
    quantization: Quantization | None = None
    config: dict[str, Any] = {}
    data_hash: str = ""
    tools: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class SessionQuality(Frozen):
    """Full-ranking quality of an exported session ranker: shares in [0, 1], by "P@10" and the like.

    Attributes:
        intervals: metric -> 95 % interval, by bootstrap over sessions.
        repeated: over targets that are in their session already; ``new`` over the others.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    repeated: dict[str, float] = {}
    new: dict[str, float] = {}
    rows: int
    sessions: int


class SessionSeed(Frozen):
    """Quality of the uncompressed and of the coded ranker under one seed, same test rows."""

    seed: int
    dense: SessionQuality
    coded: SessionQuality


class SessionCard(Frozen):
    """The compression card of a session ranker.

    Attributes:
        table: the method that made the item table.
        requested: what the config asked of the table.
        achieved: ratios to the uncompressed bundle, and what is to be known of the codes.
        floors: parameter-free rankers on the same test rows.
    """

    kind: Literal["session"] = "session"
    ranker: str
    table: str
    seed: int
    results: tuple[SessionSeed, ...] = ()
    dense: Resources
    coded: Resources
    requested: dict[str, float] = {}
    achieved: dict[str, float] = {}
    floors: dict[str, SessionQuality] = {}
    config: dict[str, Any] = {}
    data_hash: str = ""
    tools: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class Tier(Frozen):
    """A sibling of a click-through ranker, of the same run under another budget.

    Each field is the manifest's own, for this ranker; files that both have are shared.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    graph: str
    numerics: str
    flops: int = Field(ge=0)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[FeatureSpec, ...]
    items: ItemTableSpec | None
    golden: str
    golden_tolerance: float = Field(default=0.0, ge=0.0, le=MOST_TOLERANCE)
    card: Card


class Manifest(Frozen):
    """All that serving needs to know of a bundle. The bundle's digest is the sha256 of this file.

    Attributes:
        item_id: the feature that is filled with the candidate's own id, if any.
        session: how a session ranker scores; None for a click-through ranker.
        scores: what the graph's output means.
        golden: a JSON file of requests with the scores they must reproduce.
        golden_tolerance: how far off they may be at least; serving may be set to allow more. An
            int8 graph needs some: a last bit that another processor rounds otherwise can move a
            number by a whole step.
        flops: of this bundle's graph per candidate row, request side included; serving predicts
            from it how long a request takes.
        numerics: the precision of the graph ("fp32", "int8-static", ...).
        tiers: siblings, by names that differ.
    """

    format_version: int = FORMAT_VERSION
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    created_at: str
    graph: str
    scores: Literal["probability", "logit"]
    numerics: str = "fp32"
    flops: int = Field(ge=0)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[FeatureSpec, ...]
    item_id: str | None = None
    items: ItemTableSpec | None = None
    session: SessionSpec | None = None
    data: DataSpec
    golden: str
    golden_tolerance: float = Field(default=0.0, ge=0.0, le=MOST_TOLERANCE)
    files: tuple[FileEntry, ...] = ()
    card: Card | SessionCard
    tiers: tuple[Tier, ...] = ()

    @field_validator("tiers")
    @classmethod
    def _distinct(cls, tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
        if len({tier.name for tier in tiers}) != len(tiers):
            raise ValueError("two tiers have one name")
        return tiers

    def of_tier(self, name: str) -> "Manifest":
        """The manifest as if that sibling were alone in the bundle.

        Raises:
            KeyError: there is no such tier.
        """
        tier = {tier.name: tier for tier in self.tiers}[name]
        fields = {field: getattr(tier, field) for field in Tier.model_fields if field != "name"}
        return self.model_copy(update={**fields, "tiers": ()})
