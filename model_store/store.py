"""The store: immutable versions of bundles, and aliases that say which one is meant.

Layout, the same in a local folder and behind a URL:

    <name>/versions/<version>/   a bundle; never changed once published
    <name>/aliases/<alias>.json  {"version": "7", "previous": ["5", "6"]}
    <name>/deleted/<version>     that version once was, so its number is not given again
    <name>/fresh/<version>/      items that were added to that version since: a journal of lines

Nothing is ever "the latest": someone sets an alias.
"""

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pydantic import ValidationError

from model_store.bundle import Bundle, digest_of, open_bundle, parse_manifest
from model_store.errors import (
    AliasConflict,
    BadReference,
    BundleCorrupt,
    BundleExists,
    BundleNotFound,
    ManifestInvalid,
    StoreError,
    StoreUnavailable,
    VersionInUse,
    VersionNotFound,
)
from model_store.local import LocalStorage
from model_store.manifest import MANIFEST_FILE, Frozen

DEFAULT_ALIAS: Final = "prod"
HISTORY: Final = 50  # versions that an alias remembers
LONGEST_JOURNAL: Final = 64 << 20  # bytes of fresh items beside a version

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_ALIAS: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_ADVICE: Final[Mapping[int, str]] = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space, or raise the quota, and try again",
    errno.EFBIG: "raise the limit on file sizes and try again",
    errno.EACCES: "give this user access and try again",
    errno.EROFS: "mount the store writable, or write from elsewhere",
}


class Storage(Protocol):
    """Where a store's files lie. Paths are relative, with slashes; the first part is a name."""

    def children(self, path: str) -> list[str]:
        """The names in a folder, none if there is no such folder."""
        ...

    def read(self, path: str) -> bytes | None:
        """A file's bytes, None if there is no such file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, all or nothing."""
        ...

    def read_from(self, path: str, start: int) -> bytes:
        """A file's bytes from a place on, none if there is no such file."""
        ...

    def append(self, path: str, lines: bytes) -> int:
        """Add whole lines to a file, and tell where they begin. Call it under the lock."""
        ...

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Keep other writers of that bundle's versions and aliases out, as far as it can."""
        ...

    def staged(self, bundle: Bundle, name: str) -> AbstractContextManager[Callable[[str], bool]]:
        """Prepare a copy of a bundle; the function given commits it to a path.

        The function returns False if the path is taken.
        """
        ...

    def fetch(self, path: str, *, verify: bool) -> Bundle:
        """Open the bundle at a path, from a local folder."""
        ...

    def remove(self, path: str, name: str) -> None:
        """Remove the bundle at a path; it stops being one at once."""
        ...

    def sweep(self, name: str) -> list[str]:
        """Remove what dead publishers left; the half-written versions that went."""
        ...


class AliasRecord(Frozen):
    """What an alias names, and what it named before (the last one is the rollback's target)."""

    version: str
    previous: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedRef:
    """A name and a version that exists."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Published:
    """A version that was added."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """A version, verified and ready to read."""

    bundle: Bundle
    name: str
    version: str


class Journal(NamedTuple):
    """Lines of a journal.

    Attributes:
        lines: where each begins, and what it says, without its end.
        end: where the next one will begin.
    """

    lines: list[tuple[int, bytes]]
    end: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the store's list.

    Attributes:
        bytes: of all files, by the manifest.
        problem: why the manifest cannot be read (the fields from it are empty then), or an alias.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    digest: str = ""
    created_at: str = ""
    bytes: int = 0
    problem: str | None = None


# Store.list takes the word inside the class.
Names = list[str]
Pairs = list[tuple[str, str]]
Entries = list[Entry]
Lines = Sequence[bytes]
AliasNames = Mapping[str, tuple[str, ...]]  # version -> its aliases


def parse_ref(ref: str) -> tuple[str, str]:
    """The name and the version or alias that a reference means.

    >>> parse_ref("ctr@7"), parse_ref("ctr")
    (('ctr', '7'), ('ctr', 'prod'))

    Raises:
        BadReference: it is none of "name", "name@version", "name@alias".
    """
    name, at, selector = ref.partition("@")
    if not _NAME.fullmatch(name) or (at and not _VERSION.fullmatch(selector)):
        raise BadReference(
            f'{ref!r}: expected "name", "name@version" or "name@alias"; a name has up to 64 of '
            "a-z 0-9 . _ - and starts with a letter or a digit"
        )
    return name, selector or DEFAULT_ALIAS


def version_order(version: str) -> tuple[bool, int, str]:
    """Sorts numbers by value, and other versions after them by text."""
    number = int(version) if version.isdecimal() else -1
    return number < 0, number, version


class Store:
    """Versions and aliases over some storage.

    Attributes:
        url: what errors call the store.
    """

    def __init__(self, storage: Storage, url: str) -> None:
        self._storage: Final = storage
        self.url: Final = url

    def publish(self, folder: Path, name: str, version: str | None = None) -> Published:
        """Add a sealed bundle as a version that nobody can change any more.

        Args:
            folder: the bundle's folder; it is copied.
            name: the name to publish under.
            version: None gives the next number.

        Raises:
            BundleExists: the version is, or once was, published.
            BundleCorrupt: the folder is no intact bundle.
            StoreUnavailable: it could not be written; what was published before is untouched.
        """
        _expect(_NAME, name, "a bundle's name")
        with self._explained(f"publishing {name}"):
            bundle = open_bundle(folder)
            with self._storage.staged(bundle, name) as commit, self._storage.locked(name):
                for free in self._free(name, version):
                    if commit(_path(name, free)):
                        return Published(name, free, bundle.digest)
        raise BundleExists(
            f"{self.url}: {name}@{version} is already published, and versions never change; "
            "publish under another version"
        )

    def open(self, ref: str, *, verify: bool = True) -> OpenedVersion:
        """Open the version that a reference means.

        Args:
            ref: "name@version", "name@alias", or "name" for its alias ``prod``.
            verify: check every file's digest; otherwise only names and sizes.

        Raises:
            BundleNotFound, VersionNotFound: there is no such version.
            BundleCorrupt, ManifestInvalid: it is damaged, or of a newer format.
        """
        resolved = self.resolve(ref)
        try:
            bundle = self._fetch(resolved, verify=verify)
        except StoreError:
            # An alias may have moved and its old version been deleted since we looked.
            if (again := self.resolve(ref)) == resolved:
                raise
            resolved, bundle = again, self._fetch(again, verify=verify)
        return OpenedVersion(bundle, resolved.name, resolved.version)

    def resolve(self, ref: str) -> ResolvedRef:
        """The version that a reference means now.

        Raises:
            BundleNotFound, VersionNotFound: there is no such version.
        """
        name, selector = parse_ref(ref)
        with self._explained(f"resolving {ref}"):
            versions = self._known_versions(name)
            record = self._alias(name, selector)
            version = selector if record is None else record.version
            if version in versions:
                return ResolvedRef(name, version)
            aliases = self.aliases(name)
        if record is not None:
            raise VersionNotFound(
                f"{self.url}: alias {selector} of {name} names version {version}, which is gone; "
                f"set it to one of {', '.join(versions)}"
            )
        named = ", ".join(f"{alias} -> {target}" for alias, target in aliases.items())
        raise VersionNotFound(
            f"{self.url}: {name} has no version or alias {selector!r}; it has the versions "
            f"{', '.join(versions)} and {f'the aliases {named}' if named else 'no alias'}"
        )

    def list(self) -> Entries:
        """Every version of every bundle, damaged ones too, and those of damaged aliases."""
        with self._explained("listing"):
            return [entry for name in self._names() for entry in self._entries(name)]

    def with_alias(self, alias: str) -> Names:
        """The bundles that have an alias, a damaged one too."""
        with self._explained("listing"):
            return [n for n in self._names() if alias in self._alias_files(n)]

    def aliases(self, name: str) -> dict[str, str]:
        """The version that each alias of a bundle names."""
        _expect(_NAME, name, "a bundle's name")
        with self._explained(f"reading the aliases of {name}"):
            return {alias: record.version for alias, record in self._aliases(name).items()}

    def history(self, name: str, alias: str) -> AliasRecord:
        """What an alias names and named before.

        Raises:
            VersionNotFound: there is no such alias.
        """
        _expect(_NAME, name, "a bundle's name")
        with self._explained(f"reading {name}@{alias}"):
            record = self._alias(name, alias)
        if record is None:
            raise VersionNotFound(f"{self.url}: {name} has no alias {alias!r}; set it first")
        return record

    def set_alias(
        self, name: str, alias: str, version: str, *, expected: str | None = None
    ) -> None:
        """Make an alias name a version; what it named before can be rolled back to.

        Args:
            name: the bundle.
            alias: starts with a letter.
            version: must exist and have a readable manifest.
            expected: the version it must name now; None to move it whatever it names.

        Raises:
            AliasConflict: it names another version than ``expected``.
            BundleNotFound, VersionNotFound: there is no such version.
            BundleCorrupt, ManifestInvalid: the version's manifest cannot be read.
        """
        check_alias(alias)
        with self._writing(name, f"setting {name}@{alias}") as versions:
            if alias in versions:
                raise BadReference(f"{self.url}: {name} has a version {alias!r}; name it otherwise")
            self._expect_version(name, version, versions)
            self._check_manifest(name, version)
            record = self._alias(name, alias)
            current = None if record is None else record.version
            if expected not in (None, current):
                raise AliasConflict(
                    f"{self.url}: {name}@{alias} is expected to name {expected}, it names "
                    f"{current or 'nothing'}; look again and decide anew"
                )
            if record is None:
                self._write_alias(name, alias, AliasRecord(version=version))
            elif version != record.version:
                previous = (*record.previous, record.version)[-HISTORY:]
                self._write_alias(name, alias, AliasRecord(version=version, previous=previous))

    def rollback(self, name: str, alias: str = DEFAULT_ALIAS) -> str:
        """Make an alias name what it named before, and return that version.

        Versions deleted since are passed over.

        Raises:
            AliasConflict: there is nothing to go back to.
            VersionNotFound: there is no such alias.
        """
        with self._writing(name, f"rolling back {name}@{alias}") as versions:
            record = self.history(name, alias)
            previous = [version for version in record.previous if version in versions]
            if not previous:
                raise AliasConflict(
                    f"{self.url}: {name}@{alias} names {record.version} and nothing before it is "
                    "left to roll back to; set the alias instead"
                )
            *older, target = previous
            self._write_alias(name, alias, AliasRecord(version=target, previous=tuple(older)))
            return target

    def fresh(self, name: str, version: str, start: int = 0) -> Journal:
        """What was added to a version since it was published, from a place of its journal on.

        Raises:
            StoreUnavailable: the journal cannot be read.
        """
        _expect(_NAME, name, "a bundle's name")
        _expect(_VERSION, version, "a version")
        with self._explained(f"reading the fresh items of {name}@{version}"):
            data = self._storage.read_from(_journal(name, version), start)
        # Half a line at the end is somebody's who still writes, or who died.
        return _lines(data[: data.rfind(b"\n") + 1], start)

    def add_fresh(self, name: str, version: str, lines: Lines) -> Journal:
        """Add lines to a version's journal; they are on the disk when this returns.

        Args:
            name: the bundle.
            version: must exist.
            lines: without line ends.

        Raises:
            BundleNotFound, VersionNotFound: there is no such version.
            StoreUnavailable: it could not be written, or the journal is as long as it may be.
        """
        journal = _journal(name, version)
        data = b"".join(line + b"\n" for line in lines)
        with self._writing(name, f"adding items to {name}@{version}") as versions:
            self._expect_version(name, version, versions)
            if self._storage.read_from(journal, max(0, LONGEST_JOURNAL - len(data))):
                raise StoreUnavailable(
                    f"{self.url}: {journal} would grow beyond {LONGEST_JOURNAL} bytes; publish a "
                    "version that knows the new items"
                )
            return _lines(data, self._storage.append(journal, data))

    def delete(self, name: str, version: str) -> None:
        """Delete a version for good; its number is never given again.

        Raises:
            VersionInUse: an alias names it.
            BundleNotFound, VersionNotFound: there is no such version.
        """
        with self._writing(name, f"deleting {name}@{version}") as versions:
            self._expect_version(name, version, versions)
            named = self._aliases(name).items()
            if aliases := [alias for alias, record in named if record.version == version]:
                raise VersionInUse(
                    f"{self.url}: {name}@{version} is named by {', '.join(aliases)}; move that "
                    "alias first"
                )
            self._delete(name, version)

    def gc(
        self, name: str | None = None, *, keep_previous: int = 1, dry_run: bool = False
    ) -> Pairs:
        """Delete the versions that no alias names, and what dead publishers left.

        Args:
            name: only this bundle.
            keep_previous: rollback targets to keep for each alias.
            dry_run: only say what would go.

        Returns:
            The (name, version) pairs that went.
        """
        if name is not None:
            self._known_versions(name)
        with self._explained("collecting"):
            names = self._names() if name is None else [name]
            gone = [pair for each in names for pair in self._collect(each, keep_previous, dry_run)]
            if not dry_run:
                # All folders, as one whose first publish was killed has no version yet.
                for each in self._storage.children("") if name is None else [name]:
                    gone += [(each, version) for version in self._storage.sweep(each)]
        return gone

    def _collect(self, name: str, keep_previous: int, dry_run: bool) -> Pairs:
        with self._writing(name, f"collecting {name}") as versions:
            kept = self._kept(name, versions, keep_previous)
            # One without a manifest may still be on its way up; sweep knows.
            unnamed = [v for v in versions if v not in kept and self._manifest(name, v) is not None]
            for version in [] if dry_run else unnamed:
                self._delete(name, version)
        return [(name, version) for version in unnamed]

    @contextmanager
    def _writing(self, name: str, doing: str) -> Iterator[Names]:
        """Keep other writers of a bundle out; gives its versions.

        Raises:
            BundleNotFound: it has none. (Before the lock, which makes the bundle's folder.)
        """
        with self._explained(doing):
            self._known_versions(name)
            with self._storage.locked(name):
                yield self._versions(name)

    def _names(self) -> Names:
        return [
            name
            for name in self._storage.children("")
            if _NAME.fullmatch(name) and self._storage.children(f"{name}/versions")
        ]

    def _versions(self, name: str) -> Names:
        found = self._storage.children(f"{name}/versions")
        return sorted(filter(_VERSION.fullmatch, found), key=version_order)

    def _known_versions(self, name: str) -> Names:
        """The versions of a bundle that has some.

        Raises:
            BundleNotFound: it has none.
        """
        _expect(_NAME, name, "a bundle's name")
        if versions := self._versions(name):
            return versions
        names = ", ".join(self._names()) or "none; publish one first"
        raise BundleNotFound(f"{self.url}: no bundle {name!r}; the store has {names}")

    def _expect_version(self, name: str, version: str, versions: Names) -> None:
        if version not in versions:
            raise VersionNotFound(
                f"{self.url}: {name} has no version {version!r}; it has {', '.join(versions)}"
            )

    def _free(self, name: str, version: str | None) -> Iterable[str]:
        """Versions to try, in turn."""
        deleted = self._storage.children(f"{name}/deleted")
        if version is None:
            used = (int(v) for v in [*self._versions(name), *deleted] if v.isdecimal())
            return map(str, count(max(used, default=0) + 1))
        _expect(_VERSION, version, "a version")
        if version in deleted:
            raise BundleExists(
                f"{self.url}: {name}@{version} was published and deleted; what its number meant "
                "must not change, so publish under another version"
            )
        if version in self._aliases(name):
            raise BadReference(f"{self.url}: {name} has an alias {version!r}; name it otherwise")
        return [version]

    def _fetch(self, resolved: ResolvedRef, *, verify: bool) -> Bundle:
        with self._explained(f"opening {resolved}"):
            return self._storage.fetch(_path(resolved.name, resolved.version), verify=verify)

    def _manifest(self, name: str, version: str) -> bytes | None:
        return self._storage.read(f"{_path(name, version)}/{MANIFEST_FILE}")

    def _check_manifest(self, name: str, version: str) -> None:
        raw = self._manifest(name, version)
        if raw is None:
            raise BundleCorrupt(
                f"{self.url}: {name}@{version} is half-written, it has no {MANIFEST_FILE}"
            )
        parse_manifest(raw, f"{self.url}: {name}@{version}")

    def _entries(self, name: str) -> Entries:
        """A bundle's versions. What a damaged alias named nobody knows: it is told of each."""
        named: dict[str, tuple[str, ...]] = {}
        problem: str | None = None
        for alias in self._alias_files(name):
            try:
                record = self._alias(name, alias)
            except BundleCorrupt as error:
                problem = f"{error}"
                continue
            if record is not None:
                named[record.version] = (*named.get(record.version, ()), alias)
        entries = [self._entry(name, version, named) for version in self._versions(name)]
        return [e if e.problem else replace(e, problem=problem) for e in entries]

    def _entry(self, name: str, version: str, aliases: AliasNames) -> Entry:
        named = aliases.get(version, ())
        raw = self._manifest(name, version)
        if raw is None:
            return Entry(name, version, named, problem=f"half-written: it has no {MANIFEST_FILE}")
        try:
            manifest = parse_manifest(raw, f"{self.url}: {name}@{version}")
        except ManifestInvalid as error:
            return Entry(name, version, named, digest_of(raw), problem=f"{error}")
        size = sum(file.bytes for file in manifest.files)
        return Entry(name, version, named, digest_of(raw), manifest.created_at, size)

    def _alias(self, name: str, alias: str) -> AliasRecord | None:
        if not _ALIAS.fullmatch(alias):
            return None
        path = f"{name}/aliases/{alias}.json"
        raw = self._storage.read(path)
        if raw is None:
            return None
        try:
            return AliasRecord.model_validate_json(raw)
        except ValidationError as error:
            raise BundleCorrupt(
                f"{self.url}: {path} is damaged ({error.errors()[0]['msg']}); delete that file and "
                "set the alias again"
            ) from None

    def _aliases(self, name: str) -> dict[str, AliasRecord]:
        found = {alias: self._alias(name, alias) for alias in self._alias_files(name)}
        return {alias: record for alias, record in found.items() if record is not None}

    def _alias_files(self, name: str) -> Names:
        files = self._storage.children(f"{name}/aliases")
        return [file.removesuffix(".json") for file in files if file.endswith(".json")]

    def _write_alias(self, name: str, alias: str, record: AliasRecord) -> None:
        text = f"{record.model_dump_json()}\n"
        self._storage.write(f"{name}/aliases/{alias}.json", text.encode())

    def _kept(self, name: str, versions: Names, keep_previous: int) -> set[str]:
        """The versions that aliases name, and those they could be rolled back to."""
        kept = set[str]()
        for record in self._aliases(name).values():
            previous = [version for version in record.previous if version in versions]
            kept |= {record.version, *previous[len(previous) - keep_previous :]}
        return kept

    def _delete(self, name: str, version: str) -> None:
        # First the mark: were we killed after the removal, the number could be given again.
        self._storage.write(f"{name}/deleted/{version}", b"")
        self._storage.remove(_path(name, version), name)
        if self._storage.children(f"{name}/fresh/{version}"):
            self._storage.remove(f"{name}/fresh/{version}", name)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cause = error.strerror or str(error) or type(error).__name__
            advice = _ADVICE.get(error.errno or 0, "check the storage and try again")
            raise StoreUnavailable(
                f"{self.url}: {doing} failed: {cause}; what was published before is untouched; "
                f"{advice}"
            ) from error


def _path(name: str, version: str) -> str:
    return f"{name}/versions/{version}"


def _journal(name: str, version: str) -> str:
    return f"{name}/fresh/{version}/items.jsonl"


def _lines(data: bytes, start: int) -> Journal:
    lines = []
    for line in data.split(b"\n")[:-1]:
        lines.append((start, line))
        start += len(line) + 1
    return Journal(lines, start)


def _expect(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise BadReference(f"{text!r} is not {what}; expected to match {pattern.pattern}")


def check_alias(alias: str) -> None:
    """Check that a text can be an alias.

    Raises:
        BadReference: it cannot.
    """
    _expect(_ALIAS, alias, "an alias")


def open_store(url: str, *, cache: Path | None = None) -> Store:
    """The store at a URL.

    Nothing is read or made yet: a local folder that does not exist is an empty store.

    Args:
        url: a local folder ("store", "/srv/store", "file:///srv/store") or what fsspec knows
            ("s3://bucket/store", "memory://store").
        cache: where bundles from a URL are kept, ``~/.cache/slimrank`` if None; delete it at will.

    Raises:
        BadReference: the URL is empty.
        StoreUnavailable: no driver for the URL is installed.
    """
    if not url.strip():
        raise BadReference(
            f"{url!r} is no store; expected a folder, or a URL like s3://bucket/store"
        )
    scheme, separator, rest = url.partition("://")
    if not separator or scheme in ("file", "local"):
        return Store(LocalStorage(Path(rest or url).absolute()), url)
    # Here, as local stores, and so the tests of everything above them, need no fsspec.
    from model_store.remote import open_remote  # noqa: PLC0415

    storage = open_remote(url, cache or Path.home() / ".cache" / "slimrank")
    return Store(storage, re.sub("//[^/@]*@", "//", url))  # no passwords in messages
