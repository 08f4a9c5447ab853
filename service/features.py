"""Features: named values of a request → the tensors that the manifest asks for.

The request side becomes one row, computed once; the candidate side starts from the catalogue's
encoded rows (or the declared defaults), over which the request's own columns are laid.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from heapq import nsmallest
from typing import Any, Final, NamedTuple, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from model_store.encoding import (
    FIRST,
    BucketEncoder,
    CategoricalEncoder,
    Encoder,
    NumericEncoder,
    scaled,
    transformed,
)
from model_store.errors import BadValue
from model_store.manifest import (
    FeatureSpec,
    InputName,
    Manifest,
    NumericEncoding,
    Side,
    Transform,
)
from model_store.packed_ids import PackedIds
from service import kernels
from service.errors import Fault, InvalidRequest, Warned, escape
from service.item_ids import Index
from service.kernels import NumberColumn, TokenColumn
from service.schemas import Features

Array = NDArray[Any]
Tensors = dict[InputName, Array]
REQUEST_SIDES: Final[tuple[Side, Side]] = ("user", "context")
LARGEST: Final = float(np.finfo(np.float32).max)
MAX_NAMED: Final = 10
GROUPINGS: Final = 64  # sets of features that requests may bring in turn


def refused(pointer: str, error: BadValue) -> InvalidRequest:
    """A value that cannot be encoded, as a fault at ``pointer``."""
    value = repr(error.value)
    shown = value if len(value) <= 80 else f"{value[:77]}..."  # noqa: PLR2004
    detail = f"expected {error.expected}, got {shown}"
    return InvalidRequest(f"{error.feature}: {detail}", [Fault(pointer, detail)])


Places = slice | NDArray[np.intp]


class Group(NamedTuple):
    """The numbers of a tensor that one transform holds for.

    Attributes:
        columns: of each, in the tensor.
        at: the same, as a slice where they are neighbours.
        places: of each, where it stands among the features that were grouped.
        mean, scale: of each.
    """

    transform: Transform
    columns: NDArray[np.intp]
    at: Places
    places: Places
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


def grouped(specs: Sequence[FeatureSpec]) -> list[Group]:
    """Numeric features by transform, so that one call transforms many."""
    groups = []
    for transform in get_args(Transform):
        those = [
            (spec.start, place, spec.encoding.mean, spec.encoding.scale)
            for place, spec in enumerate(specs)
            if isinstance(spec.encoding, NumericEncoding) and spec.encoding.transform == transform
        ]
        if those:
            at, places, mean, scale = map(np.array, zip(*those, strict=True))
            groups.append(Group(transform, at, _run(at), _run(places), mean, scale))
    return groups


def _grouped_of(specs: Mapping[str, FeatureSpec], names: Sequence[str]) -> list[Group]:
    return grouped([specs[name] for name in names])


def _run(places: NDArray[np.intp]) -> Places:
    """Neighbours as a slice, which takes them without a copy."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if (np.diff(places) == 1).all() else places


class RequestNumbers:
    """The numeric request features: gathered in Python, transformed together."""

    def __init__(self, specs: Sequence[FeatureSpec], columns: int) -> None:
        self._columns = columns
        self._fields = [
            (REQUEST_SIDES.index(spec.side), spec, spec.start, spec.encoding.default)
            for spec in specs
            if isinstance(spec.encoding, NumericEncoding)
        ]
        self._groups = grouped(specs)

    def encode(self, sides: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """(1, columns) of numbers."""
        raw = [0.0] * self._columns
        for side, spec, start, default in self._fields:
            value = sides[side].get(spec.name)
            if value is None:
                raw[start] = default
            elif (type(value) is float or type(value) is int) and -LARGEST <= value <= LARGEST:
                raw[start] = value
            else:
                expected = "a number within ±3.4e38, or null"
                error = BadValue(spec.name, 0, value, expected)
                raise refused(f"/{spec.side}/{escape(spec.name)}", error)
        return _transformed(np.array([raw], dtype=np.float64), self._groups)


class ItemNumbers:
    """The numeric item features that a request brings, by column.

    Attributes:
        specs: the features, by name, in the order of their columns.
    """

    def __init__(self, specs: Iterable[FeatureSpec]) -> None:
        self.specs = {spec.name: spec for spec in sorted(specs, key=lambda spec: spec.start)}
        self.names = tuple(self.specs)
        # Nearly all requests bring the same ones.
        self._grouped = lru_cache(GROUPINGS)(partial(_grouped_of, self.specs))

    def lay(
        self, tensor: NDArray[np.float32], names: Sequence[str], raw: NDArray[np.float64]
    ) -> None:
        """Lay numbers (N, features) over a tensor (N, columns); NaN leaves what is there."""
        for transform, columns, _, places, mean, scale in self._grouped(tuple(names)):
            laid = scaled(raw[:, places], transform, mean, scale)
            kernels.lay_numbers(np.ascontiguousarray(laid), columns, tensor)


class RequestRows:
    """The categorical request features: one table row each, ``length`` rows if multi-valued."""

    def __init__(self, encoders: Sequence[Encoder], columns: int) -> None:
        self._columns = columns
        self._encoders = [
            (REQUEST_SIDES.index(encoder.spec.side), encoder.spec, encoder, _row_of_one(encoder))
            for encoder in encoders
        ]

    def encode(self, sides: Sequence[Mapping[str, Any]]) -> NDArray[np.int32]:
        """(1, columns) of table rows."""
        raw = [0] * self._columns
        for side, spec, encoder, row in self._encoders:
            value = sides[side].get(spec.name)
            try:
                if row is not None:
                    raw[spec.start] = row(value)
                else:
                    raw[spec.start : spec.start + spec.length] = encoder.encode([value])[0].tolist()
            except BadValue as error:
                raise refused(f"/{spec.side}/{escape(spec.name)}", error) from None
        return np.array([raw], dtype=np.int32)


def _row_of_one(encoder: Encoder) -> Callable[[Any], int] | None:
    """A way to encode one value without arrays; None for a multi-valued feature."""
    if isinstance(encoder, CategoricalEncoder | BucketEncoder) and encoder.spec.kind != "multi":
        return encoder.row
    return None


class RequestReader:
    """Lays the request side by compiled loops, where all of it are plain numbers and known tokens.

    Args:
        encoders: of the request's features.
        tokens: how those are laid that are found in a vocabulary.
        widths: columns of each tensor.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        tokens: Mapping[str, TokenColumn],
        widths: Mapping[str, int],
    ) -> None:
        specs = [encoder.spec for encoder in encoders]
        self._groups = grouped(specs)
        self._rows = np.zeros((1, widths.get("request_ids", 0)), np.int32)
        self._numbers = np.zeros((1, widths.get("request_numeric", 0)), np.float64)
        for encoder in encoders:
            at = encoder.spec.start
            if isinstance(encoder.spec.encoding, NumericEncoding):
                self._numbers[0, at] = encoder.spec.encoding.default
            else:
                self._rows[0, at] = encoder.encode([None])[0, 0]
        self._layouts = [
            self._layout({spec.name: spec for spec in specs if spec.side == side}, tokens)
            for side in REQUEST_SIDES
        ]

    def _layout(
        self, specs: Mapping[str, FeatureSpec], tokens: Mapping[str, TokenColumn]
    ) -> kernels.Layout:
        places = [tokens.get(name, NumberColumn(spec.start)) for name, spec in specs.items()]
        width, columns = self._rows.shape[1], self._numbers.shape[1]
        return kernels.Layout(_known([*specs]), places, width, columns, several=False)

    def tensors(self, sides: Sequence[Features]) -> Tensors | None:
        """One row each; None if a value is for the encoders to tell, or to refuse."""
        rows, numbers = self._rows.copy(), self._numbers.copy()
        for layout, values in zip(self._layouts, sides, strict=True):
            if values and not kernels.lay_side(layout, values, rows, numbers):
                return None
        tensors: Tensors = {}
        if numbers.size:
            tensors["request_numeric"] = _transformed(numbers, self._groups)
        if rows.size:
            tensors["request_ids"] = rows
        return tensors


def _transformed(numbers: NDArray[np.float64], groups: Sequence[Group]) -> NDArray[np.float32]:
    """(1, columns) of numbers as the graph takes them."""
    out = np.empty(numbers.shape, np.float32)
    for transform, _, at, _, mean, scale in groups:
        out[0, at] = transformed(numbers[0, at], transform, mean, scale)
    return out


def _known(names: Sequence[str]) -> kernels.Known:
    packed = PackedIds.of(names)
    return kernels.Known(packed.text, packed.ends, *Index.of(packed))


class FeaturePlan:
    """How the features of a bundle are filled, worked out once from its manifest."""

    def __init__(self, manifest: Manifest, encoders: Mapping[str, Encoder]) -> None:
        self.widths: Mapping[str, int] = {spec.name: int(spec.shape[1]) for spec in manifest.inputs}
        self.item_id = manifest.item_id if manifest.item_id in encoders else None
        self.specs: Mapping[str, FeatureSpec] = {spec.name: spec for spec in manifest.features}
        self.encoders = encoders
        self.item_features = frozenset(s.name for s in manifest.features if s.side == "item")
        kept = [encoders[spec.name] for spec in manifest.features if spec.name in encoders]
        self._request = self._request_tensors(kept)
        self._reader = self._request_reader([e for e in kept if e.spec.side != "item"])
        self.item_encoders = {
            encoder.spec.name: encoder for encoder in kept if encoder.spec.side == "item"
        }
        self._numbers = ItemNumbers(
            e.spec for e in self.item_encoders.values() if isinstance(e, NumericEncoder)
        )
        self._vocabularies = _token_columns([*self.item_encoders.values()])
        # None where the encoders themselves are needed.
        self.raw = self._raw_reader() if kernels.COMPILED else None
        self.defaults = self._candidate_defaults()

    def _request_tensors(self, kept: Sequence[Encoder]) -> dict[InputName, Any]:
        tensors: dict[InputName, Any] = {}
        numbers = [e.spec for e in kept if e.spec.tensor == "request_numeric"]
        rows = [e for e in kept if e.spec.tensor == "request_ids"]
        if "request_numeric" in self.widths:
            tensors["request_numeric"] = RequestNumbers(numbers, self.widths["request_numeric"])
        if "request_ids" in self.widths:
            tensors["request_ids"] = RequestRows(rows, self.widths["request_ids"])
        return tensors

    def _request_reader(self, encoders: Sequence[Encoder]) -> RequestReader | None:
        categories = [e for e in encoders if not isinstance(e, NumericEncoder)]
        if not kernels.COMPILED or not all(map(_has_vocabulary, categories)):
            return None
        tokens = _token_columns(categories)
        plain = len(tokens) == len(categories)
        return RequestReader(encoders, tokens, self.widths) if plain else None

    def _raw_reader(self) -> "RawReader | None":
        if self.item_encoders.keys() != self._vocabularies.keys() | self._numbers.specs.keys():
            return None
        names = sorted(self.item_features)
        # Of which JSON has other characters than the name itself.
        if not all(name.isascii() and name.isprintable() for name in names):
            return None
        if any(sign in name for name in names for sign in '"\\'):
            return None
        width = self.widths.get("candidate_ids", 0)
        return RawReader(names, self._vocabularies, width, self._numbers)

    def _candidate_defaults(self) -> Tensors:
        """The row of a candidate of which nothing is known, by tensor: (columns,)."""
        defaults: Tensors = {}
        if "candidate_numeric" in self.widths:
            width = self.widths["candidate_numeric"]
            defaults["candidate_numeric"] = np.zeros(width, dtype=np.float32)
        if "candidate_ids" in self.widths:
            defaults["candidate_ids"] = np.zeros(self.widths["candidate_ids"], dtype=np.int32)
        for encoder in self.item_encoders.values():
            spec = encoder.spec
            assert spec.tensor is not None  # noqa: S101  kept features have one
            defaults[spec.tensor][spec.start : spec.start + spec.length] = encoder.encode([None])[0]
        return defaults

    def known(self, ids: Sequence[str]) -> NDArray[np.bool_] | None:
        """Which items the vocabulary of the item id knows, None if there is no such vocabulary."""
        encoder = None if self.item_id is None else self.encoders[self.item_id]
        if not isinstance(encoder, CategoricalEncoder) or encoder.vocabulary is None:
            return None
        return np.fromiter(map(encoder.vocabulary.__contains__, ids), np.bool_, len(ids))

    def request(self, user: Features, context: Features) -> Tensors:
        """The request side, one row a tensor.

        Raises:
            InvalidRequest: a value cannot be encoded.
        """
        read = None if self._reader is None else self._reader.tensors((user, context))
        if read is not None:
            return read
        return {name: encoder.encode((user, context)) for name, encoder in self._request.items()}

    def overlay(
        self, tensors: Tensors, name: str, values: Sequence[Any], at: Sequence[int] | None
    ) -> None:
        """Lay values of an item feature over the candidates' tensors.

        Args:
            tensors: (N, columns) each, changed in place.
            name: a kept item feature.
            values: one each for the candidates at ``at`` (None: for all of them).
            at: positions of candidates.

        Raises:
            BadValue: a value cannot be encoded; its index counts in ``values``.
        """
        encoder = self.item_encoders[name]
        spec = encoder.spec
        assert spec.tensor is not None  # noqa: S101  kept features have one
        columns = slice(spec.start, spec.start + spec.length)
        tensors[spec.tensor][slice(None) if at is None else at, columns] = encoder.encode(values)

    def lay(self, tensors: Tensors, columns: Mapping[str, Sequence[Any]]) -> list[str]:
        """`overlay` of many features for all candidates at once; null leaves things as they are.

        Returns:
            The features that compiled loops cannot tell, or not all of, in the order in which they
            came: these are yet to be laid.
        """
        compiled = self._vocabularies.keys() | self._numbers.specs.keys()
        left = columns.keys() - compiled
        left |= {*self._lay_tokens(tensors, columns), *self._lay_numbers(tensors, columns)}
        return [name for name in columns if name in left]

    def _lay_tokens(self, tensors: Tensors, columns: Mapping[str, Sequence[Any]]) -> list[str]:
        names = [name for name in columns if name in self._vocabularies]
        if not names:
            return []
        given = [(columns[name], self._vocabularies[name]) for name in names]
        return [names[place] for place in kernels.lay_tokens(given, tensors["candidate_ids"])]

    def _lay_numbers(self, tensors: Tensors, columns: Mapping[str, Sequence[Any]]) -> list[str]:
        names = [name for name in columns if name in self._numbers.specs]
        if not names:
            return []
        raw = kernels.numbers([columns[name] for name in names])
        if raw is None:
            return names
        self._numbers.lay(tensors["candidate_numeric"], names, np.ascontiguousarray(raw.T))
        return []


class RawReader:
    """Reads what candidates bring from its JSON, without a Python object for each value.

    Args:
        names: of all item features that a bundle declares.
        tokens: how those are laid that are found in a vocabulary.
        width: columns of their tensor.
        numbers: the numeric ones.
    """

    def __init__(
        self,
        names: Sequence[str],
        tokens: Mapping[str, TokenColumn],
        width: int,
        numbers: ItemNumbers,
    ) -> None:
        self._numbers = numbers
        places: dict[str, kernels.Place] = dict.fromkeys(names, ())
        places |= tokens
        places |= {name: NumberColumn(at) for at, name in enumerate(numbers.names)}
        self._layout = kernels.Layout(
            _known(names), [*places.values()], width, len(numbers.names), several=True
        )

    def lay(
        self, tensors: Tensors, brought: kernels.Brought, count: int, *, as_columns: bool
    ) -> bool:
        """Lay what ``count`` candidates bring over their tensors; null leaves things as they are.

        Args:
            tensors: (N, columns) each, changed in place.
            brought: an object a candidate, or one of columns.
            count: N.
            as_columns: which of these it is.

        Returns:
            Whether it is JSON, and all of it could be told.
        """
        rows = tensors.get("candidate_ids", np.empty((count, 0), np.int32))
        numbers = np.empty((count, len(self._numbers.specs)))
        numbers.fill(np.nan)  # np.full asks more of Python: cold, 11 us instead of 6
        read = kernels.read_columns if as_columns else kernels.read_candidates
        if not read(brought, self._layout, rows, numbers):
            return False
        if numbers.size:
            self._numbers.lay(tensors["candidate_numeric"], self._numbers.names, numbers)
        return True


def _has_vocabulary(encoder: Encoder) -> TypeGuard[CategoricalEncoder]:
    """Whether its values are one token each, of those in a vocabulary."""
    if not isinstance(encoder, CategoricalEncoder):
        return False
    return encoder.vocabulary is not None and encoder.spec.kind != "multi"


def _token_columns(encoders: Sequence[Encoder]) -> dict[str, TokenColumn]:
    """The tokens that encoders know, to be found in half the time that a dictionary takes.

    Of those that have a vocabulary, where loops are compiled; not of one that UTF-8 cannot hold,
    since half a surrogate pair is a token like any other.
    """
    columns = {}
    for encoder in encoders if kernels.COMPILED else ():
        if _has_vocabulary(encoder):
            with suppress(ValueError):
                known = _known([*(encoder.vocabulary or ())])
                columns[encoder.spec.name] = TokenColumn(*known, FIRST, encoder.spec.start)
    return columns


def undeclared(
    features: Mapping[str, FeatureSpec], side: Side, counts: Mapping[str, int]
) -> list[Warned]:
    """A warning for each of the first few features that a side lacks, and one for the rest.

    Args:
        features: what the bundle declares, by name.
        side: where the request carries them.
        counts: feature name → how often it came with a value; declared ones do not matter.
    """
    if not counts:  # as most requests have it
        return []
    strange = {
        name: n for name, n in counts.items() if n and not _belongs(features.get(name), side)
    }
    warned = []
    for name in nsmallest(MAX_NAMED, strange):
        spec = features.get(name)
        hint = "" if spec is None else f"; it belongs to the {spec.side} side"
        detail = f"{side} feature {name!r} is ignored{hint}"
        warned.append(Warned("undeclared_feature", detail, strange.pop(name)))
    if strange:
        detail = f"{len(strange)} more {side} features are ignored"
        warned.append(Warned("undeclared_feature", detail, sum(strange.values())))
    return warned


def _belongs(spec: FeatureSpec | None, side: Side) -> bool:
    return spec is not None and spec.side == side
