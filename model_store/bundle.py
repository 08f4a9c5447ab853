"""Bundles: a folder of files, and the manifest that names all of them with size and sha256.

Opening a bundle runs no code from it: it holds JSON, npy without pickles, and an ONNX graph that
this module only hashes. ``SHA256SUMS`` repeats the digests in the format of the shell's command,
so that `sha256sum -c SHA256SUMS` checks a bundle by hand; it also gives a damaged manifest away.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from model_store.arrays import NPY_ERRORS
from model_store.durable import sync_tree, write_atomic
from model_store.encoding import FIRST, Encoder, make_encoder
from model_store.errors import BundleCorrupt, BundleNotFound, ManifestInvalid
from model_store.item_vectors import ItemVectors, Neighbours, load_vectors
from model_store.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    CodedVectors,
    DenseVectors,
    FactoredVectors,
    FileEntry,
    InputName,
    Int8Vectors,
    ItemTableSpec,
    Manifest,
    NumberCode,
    SessionSpec,
    StoredCodes,
    VocabularyEncoding,
)
from model_store.packed_ids import PackedIds
from model_store.packing import decode_tokens, unpacked, unpacking

CHECKSUMS_FILE: Final = "SHA256SUMS"
GRAPH_FILE: Final = "model.onnx"
GOLDEN_FILE: Final = "golden.json"
ITEM_IDS_FILE: Final = "items/ids.json"
ITEM_VALUES_FILE: Final = "items/values.json"


def vocabulary_file(feature: str) -> str:
    """Where a feature's tokens lie.

    >>> vocabulary_file("genres"), vocabulary_file("a/b")
    ('vocab/genres.json', 'vocab/a%2Fb.json')
    """
    return f"vocab/{quote(feature, safe='')}.json"


def item_tensor_file(name: InputName) -> str:
    """Where the catalogue's rows of a graph input lie."""
    return f"items/{name}.npy"


@dataclass(frozen=True, slots=True)
class ItemTable:
    """The catalogue: row i of every tensor and value i of every list belong to ``ids[i]``.

    Attributes:
        tensors: graph input -> (items, columns), int32 or float32, mapped read-only from disk.
        values: feature -> raw values, for ``explain``; None if the bundle left them out.
    """

    ids: list[str]
    tensors: Mapping[InputName, NDArray[Any]]
    values: Mapping[str, list[Any]] | None


@dataclass(frozen=True, slots=True)
class SessionTable:
    """The catalogue of a session ranker: row i of everything belongs to ``ids[i]``.

    Attributes:
        vectors: None for a ranker that needs none.
        neighbours: what follows what; None for most rankers.
    """

    ids: list[str]
    vectors: ItemVectors | None
    neighbours: Neighbours | None


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """A request and the scores it must reproduce.

    Attributes:
        request: a POST /rank body without ``model``, candidates as columns.
        scores: in the order of the request's candidates.
    """

    request: dict[str, Any]
    scores: list[float]


T = TypeVar("T")
_STRINGS: Final = TypeAdapter(list[str])
_VALUES: Final = TypeAdapter(dict[str, list[Any]])
_GOLDEN: Final = TypeAdapter(list[GoldenCase])


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Attributes:
        digest: "sha256:<hex>" of the manifest's bytes, and by it of everything in the bundle.
    """

    root: Path
    manifest: Manifest
    digest: str

    @property
    def size_bytes(self) -> int:
        """What the files take on disk, the manifest apart."""
        return sum(entry.bytes for entry in self.manifest.files)

    def path(self, name: str) -> Path:
        """The file of that name inside the bundle.

        Raises:
            ManifestInvalid: the name leads out of the bundle.
        """
        parts = name.split("/")
        if {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
            raise ManifestInvalid(
                f"{self.root}: {name!r} is no plain path inside the bundle; do not use this bundle"
            )
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ManifestInvalid(
                f"{self.root}: {name!r} is a link that leads out of the bundle; do not use it"
            )
        return path

    def tokens(self, feature: str) -> list[str] | None:
        """The known tokens of a feature, from row 2 on; None if it has no vocabulary.

        Raises:
            KeyError: the bundle has no such feature.
            BundleCorrupt: the vocabulary repeats a token, has more than the table has rows for, or
                is not coded as the manifest says.
        """
        spec = {spec.name: spec for spec in self.manifest.features}[feature]
        if spec.pruned or not isinstance(spec.encoding, VocabularyEncoding):
            return None
        file, known = spec.encoding.file, spec.encoding.rows - FIRST
        if spec.encoding.numbers is None:
            tokens = self._load(file, _STRINGS)
            self._check_unique(file, tokens)
        else:
            tokens = self._numbers(file, spec.encoding.numbers)
        if len(tokens) > known:
            raise BundleCorrupt(
                f"{self.path(file)}: {len(tokens)} tokens, the table has rows for {known}"
            )
        return tokens

    def encoders(self) -> dict[str, Encoder]:
        """An encoder for each feature that compression kept."""
        return {
            spec.name: make_encoder(spec, self.tokens(spec.name))
            for spec in self.manifest.features
            if not spec.pruned
        }

    def item_table(self) -> ItemTable | None:
        """The catalogue, None if the bundle has none.

        Raises:
            BundleCorrupt: ids, tensors and values do not fit each other.
        """
        spec = self.manifest.items
        if spec is None:
            return None
        return ItemTable(self._ids(spec), self.item_tensors(spec), self.item_values(spec))

    def item_tensors(self, spec: ItemTableSpec) -> dict[InputName, NDArray[Any]]:
        """The catalogue's encoded features, mapped from disk.

        Raises:
            BundleCorrupt: they do not fit the graph's inputs.
        """
        return {name: self._tensor(name, file, spec.items) for name, file in spec.tensors.items()}

    def item_values(self, spec: ItemTableSpec) -> dict[str, list[Any]] | None:
        """The catalogue's raw values, None if the bundle left them out.

        Raises:
            BundleCorrupt: they are not of as many items.
        """
        values = None if spec.values is None else self._load(spec.values, _VALUES)
        for feature, column in (values or {}).items():
            self._check_items(f"{spec.values} ({feature})", len(column), spec.items)
        return values

    def session_table(self) -> SessionTable | None:
        """The catalogue of a session ranker, None if the bundle holds none.

        Raises:
            BundleCorrupt: ids, vectors and neighbours do not fit each other.
        """
        spec = self.manifest.session
        if spec is None:
            return None
        return SessionTable(self._ids(spec), *self.session_items(spec))

    def session_items(self, spec: SessionSpec) -> tuple[ItemVectors | None, Neighbours | None]:
        """The item vectors of a session ranker, and what follows what; None where it has none.

        Raises:
            BundleCorrupt: they do not fit each other.
        """
        vectors = neighbours = None
        if spec.vectors is not None:
            vectors = load_vectors(spec.vectors, spec.items, self.path)
        if spec.neighbours is not None:
            neighbours = Neighbours.load(spec.neighbours, spec.items, self.path)
        dim = 1 if vectors is None else vectors.dim
        if dim != spec.dim:
            raise BundleCorrupt(
                f"{self.root}: item vectors of {dim} numbers, the manifest says {spec.dim}"
            )
        return vectors, neighbours

    def item_ids(self) -> PackedIds:
        """The ids of the catalogue, packed.

        That each is there once shows when they are indexed, and is not checked here.

        Raises:
            KeyError: the bundle has no catalogue.
            BundleCorrupt: they are no ids, or not as many as the manifest says.
        """
        spec = self.manifest.session or self.manifest.items
        if spec is None:
            raise KeyError("items")
        path = self.path(spec.ids)
        with unpacking(path) as file:
            try:
                ids = PackedIds.read(file)
            except ValueError as error:
                raise BundleCorrupt(f"{path}: {error}") from None
        self._check_items(spec.ids, len(ids), spec.items)
        return ids

    def tier(self, name: str) -> "Bundle":
        """A sibling, as a bundle in the same folder; the digest is the whole's.

        Raises:
            KeyError: there is no such tier.
        """
        return Bundle(self.root, self.manifest.of_tier(name), self.digest)

    def golden(self) -> list[GoldenCase]:
        """The requests whose scores the graph must reproduce before it serves."""
        return self._load(self.manifest.golden, _GOLDEN)

    def _ids(self, spec: ItemTableSpec | SessionSpec) -> list[str]:
        ids = self._load(spec.ids, _STRINGS)
        self._check_unique(spec.ids, ids)
        self._check_items(spec.ids, len(ids), spec.items)
        return ids

    def _load(self, name: str, adapter: TypeAdapter[T]) -> T:
        path = self.path(name)
        try:
            return adapter.validate_json(unpacked(path), strict=True)
        except ValidationError as error:
            raise BundleCorrupt(f"{path}: {_first(error.errors())}") from None

    def _numbers(self, name: str, code: NumberCode) -> list[str]:
        path = self.path(name)
        try:
            return decode_tokens(code, unpacked(path))
        except ValueError as error:
            raise BundleCorrupt(f"{path}: {error}; publish the bundle again") from None

    def _tensor(self, name: InputName, file: str, items: int) -> NDArray[Any]:
        path = self.path(file)
        try:
            # open_memmap, unlike numpy.load, knows only npy: no zip, and never a pickle.
            tensor = np.lib.format.open_memmap(path, mode="r")
        except NPY_ERRORS as error:
            raise BundleCorrupt(f"{path}: not a plain npy file ({error})") from None
        inputs = [spec for spec in self.manifest.inputs if spec.name == name]
        expected = [(spec.dtype, (items, *spec.shape[1:])) for spec in inputs]
        if [(str(tensor.dtype), tensor.shape)] != expected:
            raise BundleCorrupt(
                f"{path}: {tensor.dtype} of shape {tensor.shape}, the manifest's input {name} "
                f"asks for {expected}"
            )
        return tensor

    def _check_items(self, what: str, got: int, items: int) -> None:
        if got != items:
            raise BundleCorrupt(f"{self.root}: {what} holds {got} items, the manifest says {items}")

    def _check_unique(self, name: str, texts: Sequence[str]) -> None:
        if len(set(texts)) != len(texts):
            raise BundleCorrupt(f"{self.path(name)}: an entry appears twice")


def _first(errors: Sequence[ErrorDetails]) -> str:
    """The first of pydantic's complaints on one line, with how many follow."""
    where = ".".join(map(str, errors[0]["loc"]))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where + ': ' if where else ''}{errors[0]['msg']}{more}"


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Read a manifest.

    Args:
        raw: its bytes.
        where: what errors call it.

    Raises:
        ManifestInvalid: not JSON, of a newer format, or against the schema.
    """
    try:
        fields = from_json(raw)
    except ValueError as error:
        raise ManifestInvalid(f"{where}: not JSON ({error}); publish the bundle again") from None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    # Before the schema: a newer format may have fields that this one calls mistakes.
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ManifestInvalid(
            f"{where}: format version {version}, this Slimrank reads up to {FORMAT_VERSION}; "
            "upgrade Slimrank here, or publish the bundle with this version of it"
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ManifestInvalid(f"{where}: {_first(error.errors())}") from None


def digest_of(raw: bytes) -> str:
    """The digest of a bundle, from its manifest's bytes."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def checksums(manifest: Manifest, digest: str) -> bytes:
    """The content of ``SHA256SUMS``."""
    lines = [f"{entry.sha256}  {entry.path}" for entry in manifest.files]
    lines.append(f"{digest.removeprefix('sha256:')}  {MANIFEST_FILE}")
    return "".join(f"{line}\n" for line in lines).encode()


def named_files(manifest: Manifest) -> Iterator[str]:
    """Every file that a manifest refers to."""
    yield manifest.graph
    yield manifest.golden
    for spec in manifest.features:
        if not spec.pruned and isinstance(spec.encoding, VocabularyEncoding):
            yield spec.encoding.file
    if manifest.items is not None:
        yield manifest.items.ids
        yield from manifest.items.tensors.values()
        if manifest.items.values is not None:
            yield manifest.items.values
    if manifest.session is not None:
        yield from _session_files(manifest.session)
    for tier in manifest.tiers:
        yield from named_files(manifest.of_tier(tier.name))


def _session_files(session: SessionSpec) -> Iterator[str]:
    yield session.ids
    match session.vectors:
        case DenseVectors(file=file):
            yield file
        case Int8Vectors(file=file, scales=scales):
            yield from (file, scales)
        case CodedVectors(codes=codes, codebooks=codebooks, scales=of_words):
            yield codebooks
            if isinstance(codes, StoredCodes):
                yield codes.file
            if of_words is not None:
                yield of_words
        case FactoredVectors(cores=cores):
            yield from cores
    if session.neighbours is not None:
        yield from session.neighbours.model_dump().values()


def open_bundle(root: Path, *, verify: bool = True) -> Bundle:
    """Open a bundle's folder.

    Args:
        root: the folder.
        verify: hash every file; otherwise only names and sizes are checked.

    Raises:
        BundleNotFound: there is no such folder.
        ManifestInvalid: the manifest is unreadable, of a newer format, or names what it must not.
        BundleCorrupt: a file is missing, half-written or damaged.
    """
    if not root.is_dir():
        raise BundleNotFound(f"{root}: no such folder")
    path = root / MANIFEST_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BundleCorrupt(
            f"{root}: no {MANIFEST_FILE}; this is no bundle, or its writing was cut off: "
            "publish it again"
        ) from None
    bundle = Bundle(root, parse_manifest(raw, str(path)), digest_of(raw))
    _check_names(bundle)
    _check_sums(bundle)
    for entry in bundle.manifest.files:
        check_file(bundle.path(entry.path), entry, verify=verify)
    return bundle


def _check_names(bundle: Bundle) -> None:
    listed = [entry.path for entry in bundle.manifest.files]
    if len(set(listed)) != len(listed) or {MANIFEST_FILE, CHECKSUMS_FILE} & set(listed):
        raise ManifestInvalid(f"{bundle.root}: the manifest lists a file twice, or itself")
    for name in named_files(bundle.manifest):
        if name not in listed:
            raise ManifestInvalid(
                f"{bundle.root}: the manifest refers to {name!r} and does not list it under files"
            )


def _check_sums(bundle: Bundle) -> None:
    path = bundle.root / CHECKSUMS_FILE
    if not path.is_file() or path.read_bytes() != checksums(bundle.manifest, bundle.digest):
        raise BundleCorrupt(
            f"{path}: missing, or it disagrees with {MANIFEST_FILE}; one of the two was changed "
            "after the bundle was sealed: publish it again"
        )


def check_file(path: Path, entry: FileEntry, *, verify: bool) -> None:
    """Check a file against its entry in the manifest.

    Raises:
        BundleCorrupt: it is missing, of another size, or (with ``verify``) of another digest.
    """
    if not path.is_file():
        raise BundleCorrupt(f"{path}: missing; publish the bundle again")
    if (size := path.stat().st_size) != entry.bytes:
        raise BundleCorrupt(
            f"{path}: {size} bytes, the manifest says {entry.bytes}; publish the bundle again"
        )
    if verify and (digest := _sha256(path)) != entry.sha256:
        raise BundleCorrupt(
            f"{path}: sha256 {digest}, the manifest says {entry.sha256}; publish the bundle again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(root: Path, manifest: Manifest) -> Bundle:
    """Make a folder a bundle: hash every file in it, write the manifest last, and open it.

    Args:
        root: a folder with the files; all of them become part of the bundle.
        manifest: its ``files`` are replaced, and its ``format_version`` is this Slimrank's.

    Raises:
        ManifestInvalid: the manifest refers to a file that is not there, or a number is not finite.
        BundleCorrupt: the folder holds a link or another thing that is no plain file.
    """
    entries = tuple(_entry(root, path) for path in _plain_files(root))
    sealed = manifest.model_copy(update={"files": entries, "format_version": FORMAT_VERSION})
    try:
        text = manifest_text(sealed)
    except ValueError as error:
        raise ManifestInvalid(f"{root}: a number in the manifest is not finite ({error})") from None
    raw = text.encode()
    sync_tree(root)
    write_atomic(root / CHECKSUMS_FILE, checksums(sealed, digest_of(raw)))
    write_atomic(root / MANIFEST_FILE, raw)
    return open_bundle(root)


def manifest_text(manifest: Manifest) -> str:
    """A manifest as its file holds it.

    Raises:
        ValueError: a number is not finite.
    """
    content = manifest.model_dump(mode="json")
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleCorrupt(f"{path}: a bundle holds plain files only; copy it in, do not link")
        if path.is_file() and path not in (root / MANIFEST_FILE, root / CHECKSUMS_FILE):
            yield path


def _entry(root: Path, path: Path) -> FileEntry:
    return FileEntry(
        path=path.relative_to(root).as_posix(), sha256=_sha256(path), bytes=path.stat().st_size
    )
