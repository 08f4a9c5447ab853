"""What a store promises, wherever its files lie."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.bundle import Bundle
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
from model_store.manifest import MANIFEST_FILE
from model_store.store import (
    HISTORY,
    AliasRecord,
    Entry,
    Journal,
    Published,
    ResolvedRef,
    Store,
    check_alias,
    open_store,
    parse_ref,
    version_order,
)


class Files:
    """A store's files, reached past the store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = fsspec.url_to_fs(url)

    def fill(self, folder: Path) -> None:
        """Copy a local store in: the layout is the same everywhere."""
        self._fs.put(f"{folder}/", f"{self._root}/", recursive=True)

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        return bytes(self._fs.cat_file(f"{self._root}/{path}"))

    def write(self, path: str, data: bytes) -> None:
        """Write a file."""
        self._fs.makedirs(f"{self._root}/{path}".rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(f"{self._root}/{path}", data)

    def remove(self, path: str) -> None:
        """Remove a file or a folder."""
        self._fs.rm(f"{self._root}/{path}", recursive=True)


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    """The files of an empty store."""
    if request.param == "local":
        yield Files(f"file://{tmp_path}/store")
        return
    files = Files(f"memory://{uuid4().hex}/store")
    yield files
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def store(files: Files, tmp_path: Path) -> Store:
    """An empty store."""
    return open_store(files.url, cache=tmp_path / "cache")


@pytest.fixture
def three(store: Store, files: Files, three_versions: Path) -> Store:
    """A store with versions 1 to 3 of ctr; prod names 2, and named 1 before."""
    files.fill(three_versions)
    return store


def versions(store: Store) -> list[str]:
    """The versions of all bundles, in the order listed."""
    return [entry.version for entry in store.list()]


# References


@pytest.mark.parametrize(
    ("ref", "parsed"),
    [
        ("ctr", ("ctr", "prod")),
        ("ctr@7", ("ctr", "7")),
        ("a.b-c_d@2026-11-01", ("a.b-c_d", "2026-11-01")),
    ],
)
def test_a_reference_names_a_bundle_and_maybe_a_version(ref: str, parsed: tuple[str, str]) -> None:
    """A bare name means the alias prod."""
    assert parse_ref(ref) == parsed


@pytest.mark.parametrize(
    "ref", ["", "@", "ctr@", "Ctr", "../x", "ctr@../x", "ctr@a@b", "ctr/x", ".x", "x" * 65, "ctr\n"]
)
def test_a_malformed_reference_is_refused(ref: str) -> None:
    """A reference cannot become a path that leaves the store."""
    with pytest.raises(BadReference, match="expected"):
        parse_ref(ref)


@given(st.text(max_size=8))
def test_no_reference_leaves_the_store(text: str) -> None:
    """Whatever the text is, it is refused or its parts are plain names."""
    try:
        parts = parse_ref(text)
    except BadReference:
        return
    assert not any("/" in part or part in ("", ".", "..") for part in parts)


def test_versions_sort_by_number_then_by_text() -> None:
    """Version 10 comes after version 9, and words come after numbers."""
    assert sorted(["b", "10", "9", "a"], key=version_order) == ["9", "10", "a", "b"]


@pytest.mark.parametrize("name", ["", "..", "Ctr", "a/b"])
def test_names_are_checked_before_they_are_paths(store: Store, bundle: Bundle, name: str) -> None:
    """No method takes a name that is none."""
    calls = [
        lambda: store.publish(bundle.root, name),
        lambda: store.set_alias(name, "prod", "1"),
        lambda: store.rollback(name),
        lambda: store.aliases(name),
        lambda: store.history(name, "prod"),
        lambda: store.delete(name, "1"),
        lambda: store.fresh(name, "1"),
        lambda: store.add_fresh(name, "1", []),
        lambda: store.gc(name),
    ]

    for call in calls:
        with pytest.raises(BadReference):
            call()


# Publishing


def test_versions_are_numbered_from_one(store: Store, bundle: Bundle) -> None:
    """Without a version, publishing gives the next number."""
    published = [store.publish(bundle.root, "ctr") for _ in range(2)]

    assert published == [Published("ctr", v, bundle.digest) for v in ("1", "2")]


def test_numbers_go_on_after_a_gap(store: Store, bundle: Bundle) -> None:
    """The next number is above all numbers, words are not counted."""
    for version in ("10", "v99"):
        store.publish(bundle.root, "ctr", version)

    assert store.publish(bundle.root, "ctr").version == "11"


def test_what_was_published_opens_unchanged(store: Store, bundle: Bundle) -> None:
    """An opened version is a verified copy, file by file, with the digest of the original."""
    store.publish(bundle.root, "ctr", "7")
    opened = store.open("ctr@7")

    assert (opened.name, opened.version) == ("ctr", "7")
    assert opened.bundle.digest == bundle.digest
    assert opened.bundle.manifest == bundle.manifest
    assert opened.bundle.root != bundle.root
    for entry in bundle.manifest.files:
        assert opened.bundle.path(entry.path).read_bytes() == bundle.path(entry.path).read_bytes()
    assert opened.bundle.golden() == bundle.golden()


def test_a_published_version_can_be_published_again(store: Store, bundle: Bundle) -> None:
    """An opened version is itself a bundle's folder: copying between stores needs nothing more."""
    store.publish(bundle.root, "ctr")

    copied = store.publish(store.open("ctr@1").bundle.root, "copy")
    assert copied.digest == bundle.digest


def test_the_source_may_change_after_publishing(store: Store, bundle: Bundle) -> None:
    """Publishing copies; the version does not follow the folder it came from."""
    store.publish(bundle.root, "ctr")
    (bundle.root / "model.onnx").write_bytes(b"overwritten")

    assert store.open("ctr@1").bundle.digest == bundle.digest


def test_a_version_is_published_once(store: Store, make_bundle: Callable[..., Bundle]) -> None:
    """The second publisher of a version is refused, and the first one's files stay."""
    first, second = make_bundle("one"), make_bundle("two", graph=b"other")
    store.publish(first.root, "ctr", "1")

    with pytest.raises(BundleExists, match="versions never change"):
        store.publish(second.root, "ctr", "1")
    assert store.open("ctr@1").bundle.digest == first.digest


def test_the_same_content_is_not_published_twice_as_one_version(
    store: Store, bundle: Bundle
) -> None:
    """Even an equal bundle is refused: the caller believes to add a version, and does not."""
    store.publish(bundle.root, "ctr", "1")

    with pytest.raises(BundleExists):
        store.publish(bundle.root, "ctr", "1")


@pytest.mark.parametrize("version", ["", "..", "a/b", ".hidden", "1\n"])
def test_a_version_is_a_plain_word(store: Store, bundle: Bundle, version: str) -> None:
    """A version cannot become a path that leaves the store."""
    with pytest.raises(BadReference):
        store.publish(bundle.root, "ctr", version)


def test_a_damaged_folder_is_not_published(store: Store, bundle: Bundle) -> None:
    """What could not be opened is not added."""
    os.truncate(bundle.root / "model.onnx", 1)

    with pytest.raises(BundleCorrupt, match=r"model.onnx: 1 bytes"):
        store.publish(bundle.root, "ctr")
    assert store.list() == []


def test_a_stray_file_is_not_published(store: Store, bundle: Bundle) -> None:
    """Only what the manifest lists is copied."""
    (bundle.root / "notes.txt").write_text("mine")
    store.publish(bundle.root, "ctr")

    assert not (store.open("ctr@1").bundle.root / "notes.txt").exists()


# Resolving and opening


def test_an_alias_resolves_to_what_it_names(three: Store) -> None:
    """Version, alias and bare name lead to the same version."""
    expected = ResolvedRef("ctr", "2")

    assert [three.resolve(ref) for ref in ("ctr@2", "ctr@prod", "ctr")] == [expected] * 3
    assert f"{expected}" == "ctr@2"
    assert three.open("ctr").version == "2"


def test_an_unknown_name_is_told_with_the_known_ones(three: Store) -> None:
    """The error lists what there is."""
    with pytest.raises(BundleNotFound, match="no bundle 'ctx'; the store has ctr"):
        three.open("ctx")


def test_an_empty_store_says_so(store: Store) -> None:
    """A store that does not exist yet is an empty one."""
    assert store.list() == []
    assert store.gc() == []
    with pytest.raises(BundleNotFound, match="publish one first"):
        store.open("ctr")


def test_an_unknown_version_is_told_with_the_known_ones(three: Store) -> None:
    """The error lists versions and aliases."""
    with pytest.raises(VersionNotFound, match=r"versions 1, 2, 3 and the aliases prod -> 2"):
        three.open("ctr@4")


def test_no_alias_is_told_when_one_is_meant(store: Store, bundle: Bundle) -> None:
    """A bare name needs the alias prod; nothing stands in for it."""
    store.publish(bundle.root, "ctr")

    with pytest.raises(VersionNotFound, match="'prod'; it has the versions 1 and no alias"):
        store.open("ctr")


def test_an_alias_of_a_lost_version_is_told(three: Store, files: Files) -> None:
    """When someone removed a folder by hand, the error says which alias to set."""
    files.remove("ctr/versions/2")

    with pytest.raises(VersionNotFound, match="alias prod of ctr names version 2, which is gone"):
        three.open("ctr")


def test_a_damaged_file_in_the_store_is_refused(three: Store, files: Files) -> None:
    """Digests are checked on every open."""
    files.write("ctr/versions/2/model.onnx", b"\0 no real grapH\n")

    with pytest.raises(BundleCorrupt, match=r"model.onnx: sha256"):
        three.open("ctr")


def test_a_lost_file_in_the_store_is_refused(three: Store, files: Files) -> None:
    """So are names."""
    files.remove("ctr/versions/2/golden.json")

    with pytest.raises(BundleCorrupt, match=r"golden.json: missing"):
        three.open("ctr")


def test_a_version_without_manifest_is_half_written(three: Store, files: Files) -> None:
    """It is listed as such, not opened, and no alias is set to it."""
    files.remove(f"ctr/versions/3/{MANIFEST_FILE}")

    assert three.list()[2].problem == "half-written: it has no manifest.json"
    with pytest.raises(BundleCorrupt, match=r"no manifest.json"):
        three.open("ctr@3")
    with pytest.raises(BundleCorrupt, match="half-written"):
        three.set_alias("ctr", "prod", "3")


def test_a_newer_format_is_listed_and_refused(three: Store, files: Files) -> None:
    """An old program sees a newer bundle in the list, and neither opens nor activates it."""
    path = f"ctr/versions/3/{MANIFEST_FILE}"
    files.write(path, json.dumps({**json.loads(files.read(path)), "format_version": 4}).encode())

    assert "format version 4" in f"{three.list()[2].problem}"
    with pytest.raises(ManifestInvalid, match="upgrade Slimrank"):
        three.open("ctr@3")
    with pytest.raises(ManifestInvalid, match="upgrade Slimrank"):
        three.set_alias("ctr", "prod", "3")


def test_open_follows_an_alias_that_moved_meanwhile(
    three: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version deleted between resolving its alias and opening it is no error: the alias moved."""
    resolve = three.resolve

    def resolve_then_move(ref: str) -> ResolvedRef:
        resolved = resolve(ref)
        if resolved.version == "2":
            three.set_alias("ctr", "prod", "3")
            three.delete("ctr", "2")
        return resolved

    monkeypatch.setattr(three, "resolve", resolve_then_move)

    assert three.open("ctr").version == "3"


# Listing


def test_the_list_tells_all_of_a_version(three: Store, bundle: Bundle) -> None:
    """Name, version, aliases, digest, creation time and size."""
    created = bundle.manifest.created_at
    entries = three.list()

    assert entries[1] == Entry("ctr", "2", ("prod",), bundle.digest, created, bundle.size_bytes)
    assert [entry.aliases for entry in entries] == [(), ("prod",), ()]


def test_the_list_is_ordered(store: Store, bundle: Bundle) -> None:
    """By name, then by version as a person counts."""
    for ref in ("b@2", "a@10", "a@9"):
        store.publish(bundle.root, *ref.split("@"))

    assert [(e.name, e.version) for e in store.list()] == [("a", "9"), ("a", "10"), ("b", "2")]


def test_strange_folders_are_not_listed(three: Store, files: Files) -> None:
    """What the store did not write is left alone."""
    files.write("Backup/versions/1/manifest.json", b"{}")
    files.write("notes/readme.txt", b"mine")
    files.write("ctr/versions/bad name/manifest.json", b"{}")

    assert versions(three) == ["1", "2", "3"]


# Aliases


def test_an_alias_remembers_what_it_named(three: Store) -> None:
    """The history has the oldest first and is what rollback walks back."""
    assert three.history("ctr", "prod") == AliasRecord(version="2", previous=("1",))
    assert three.aliases("ctr") == {"prod": "2"}


def test_setting_an_alias_to_what_it_names_changes_nothing(three: Store) -> None:
    """A repeated command does not make the history longer."""
    three.set_alias("ctr", "prod", "2")

    assert three.history("ctr", "prod").previous == ("1",)


def test_a_bundle_has_many_aliases(three: Store) -> None:
    """Aliases are independent of each other."""
    three.set_alias("ctr", "canary", "3")
    three.set_alias("ctr", "slim", "3")

    assert three.aliases("ctr") == {"canary": "3", "prod": "2", "slim": "3"}
    assert three.list()[2].aliases == ("canary", "slim")


def test_an_alias_can_be_checked_before_there_is_a_store() -> None:
    """By the rule that setting it follows."""
    check_alias("prod")

    for alias in ("5", "a/b", ""):
        with pytest.raises(BadReference, match="is not an alias"):
            check_alias(alias)


@pytest.mark.parametrize("url", ["", "  "])
def test_an_empty_url_is_no_store(url: str) -> None:
    """It would mean the current folder."""
    with pytest.raises(BadReference, match="is no store"):
        open_store(url)


def test_a_history_is_bounded(three: Store) -> None:
    """An alias moved every hour for years stays a small file."""
    for turn in range(HISTORY + 3):
        three.set_alias("ctr", "prod", "1" if turn % 2 else "3")

    assert len(three.history("ctr", "prod").previous) == HISTORY


def test_expected_must_be_what_the_alias_names(three: Store) -> None:
    """Who decided on an old state does not overwrite another's decision."""
    three.set_alias("ctr", "prod", "3", expected="2")

    with pytest.raises(AliasConflict, match="expected to name 2, it names 3"):
        three.set_alias("ctr", "prod", "1", expected="2")
    assert three.aliases("ctr") == {"prod": "3"}


def test_expected_of_an_alias_that_is_not_there_conflicts(three: Store) -> None:
    """An alias that does not exist names nothing."""
    with pytest.raises(AliasConflict, match="it names nothing"):
        three.set_alias("ctr", "canary", "1", expected="2")


@pytest.mark.parametrize("alias", ["", "7", "../x", ".x", "a/b", "a b"])
def test_an_alias_is_a_word(three: Store, alias: str) -> None:
    """It starts with a letter, so a number always means a version."""
    with pytest.raises(BadReference):
        three.set_alias("ctr", alias, "1")


def test_an_alias_and_a_version_never_share_a_word(store: Store, bundle: Bundle) -> None:
    """What name@word means does not depend on what is looked up first."""
    store.publish(bundle.root, "ctr", "v1")
    store.set_alias("ctr", "prod", "v1")

    with pytest.raises(BadReference, match="has a version 'v1'"):
        store.set_alias("ctr", "v1", "v1")
    with pytest.raises(BadReference, match="has an alias 'prod'"):
        store.publish(bundle.root, "ctr", "prod")


def test_an_alias_names_only_versions_that_exist(three: Store) -> None:
    """The error lists those that do."""
    with pytest.raises(VersionNotFound, match="no version '9'; it has 1, 2, 3"):
        three.set_alias("ctr", "prod", "9")
    with pytest.raises(BundleNotFound):
        three.set_alias("ctx", "prod", "1")


def test_a_damaged_alias_is_told_with_its_file(three: Store, files: Files) -> None:
    """The error says which file to delete."""
    files.write("ctr/aliases/prod.json", b'{"version": 2}')

    with pytest.raises(BundleCorrupt, match=r"ctr/aliases/prod.json is damaged"):
        three.open("ctr")


def test_a_damaged_alias_leaves_the_list_whole(three: Store, files: Files, bundle: Bundle) -> None:
    """Its bundle's versions are listed with the problem; other aliases and bundles as ever."""
    files.write("ctr/aliases/slim.json", b"{}")
    three.publish(bundle.root, "other")

    *ctr, other = three.list()

    assert [(e.version, e.aliases) for e in ctr] == [("1", ()), ("2", ("prod",)), ("3", ())]
    assert all("aliases/slim.json is damaged" in f"{e.problem}" and e.digest for e in ctr)
    assert (other.name, other.problem) == ("other", None)


def test_bundles_are_found_by_an_alias(three: Store, files: Files, bundle: Bundle) -> None:
    """By its file: one that is damaged counts, so that nobody overlooks it."""
    three.publish(bundle.root, "bare")
    three.publish(bundle.root, "broken")
    files.write("broken/aliases/prod.json", b"{}")

    assert three.with_alias("prod") == ["broken", "ctr"]


def test_a_strange_file_among_the_aliases_is_no_alias(three: Store, files: Files) -> None:
    """Only what could be an alias is read as one."""
    files.write("ctr/aliases/7.json", b"{}")
    files.write("ctr/aliases/readme.txt", b"mine")

    assert three.aliases("ctr") == {"prod": "2"}


def test_an_alias_is_a_small_file_that_people_can_read(three: Store, files: Files) -> None:
    """The layout is fixed: other tools may read it."""
    assert json.loads(files.read("ctr/aliases/prod.json")) == {"version": "2", "previous": ["1"]}


def test_the_history_of_no_alias_is_not_found(three: Store) -> None:
    """An alias has a history once it was set."""
    with pytest.raises(VersionNotFound, match="has no alias 'canary'"):
        three.history("ctr", "canary")


# Rolling back


def test_rollback_returns_to_what_was_named_before(three: Store) -> None:
    """Each call goes one step further back, until nothing is left."""
    three.set_alias("ctr", "prod", "3")

    assert [three.rollback("ctr"), three.rollback("ctr")] == ["2", "1"]
    with pytest.raises(AliasConflict, match="nothing before it"):
        three.rollback("ctr")
    assert three.aliases("ctr") == {"prod": "1"}


def test_rollback_passes_over_deleted_versions(three: Store) -> None:
    """It goes to the newest version that is still there."""
    three.set_alias("ctr", "prod", "3")
    three.delete("ctr", "2")

    assert three.rollback("ctr") == "1"


def test_rollback_of_no_alias_is_not_found(three: Store) -> None:
    """There is nothing to roll back."""
    with pytest.raises(VersionNotFound, match="'canary'"):
        three.rollback("ctr", "canary")


# Deleting


def test_a_deleted_version_is_gone(three: Store) -> None:
    """It is neither listed nor opened."""
    three.delete("ctr", "3")

    assert versions(three) == ["1", "2"]
    with pytest.raises(VersionNotFound):
        three.open("ctr@3")


def test_a_version_that_an_alias_names_is_not_deleted(three: Store) -> None:
    """What serves cannot disappear."""
    with pytest.raises(VersionInUse, match="named by prod; move that alias first"):
        three.delete("ctr", "2")
    assert three.open("ctr").version == "2"


def test_a_deleted_number_is_not_given_again(three: Store, bundle: Bundle) -> None:
    """A version in an old log line means one bundle for ever."""
    three.delete("ctr", "3")

    assert three.publish(bundle.root, "ctr").version == "4"
    with pytest.raises(BundleExists, match="published and deleted"):
        three.publish(bundle.root, "ctr", "3")


def test_a_half_written_version_can_be_deleted(three: Store, files: Files) -> None:
    """A person may clear away what gc is too careful to touch."""
    files.remove(f"ctr/versions/3/{MANIFEST_FILE}")
    three.delete("ctr", "3")

    assert versions(three) == ["1", "2"]


# Fresh items


def test_a_journal_is_read_from_where_one_left_off(three: Store) -> None:
    """Lines come back in order with their places, to whoever asks, from any place on."""
    first = three.add_fresh("ctr", "2", [b'{"id": "a"}', b"caf\xc3\xa9 \r"])
    second = three.add_fresh("ctr", "2", [b"{}"])

    assert first == Journal([(0, b'{"id": "a"}'), (12, b"caf\xc3\xa9 \r")], 20)
    assert second == Journal([(20, b"{}")], 23)
    assert three.fresh("ctr", "2") == Journal([*first.lines, *second.lines], 23)
    assert three.fresh("ctr", "2", first.end) == second
    assert three.fresh("ctr", "2", 23) == three.fresh("ctr", "1", 23) == Journal([], 23)
    assert three.fresh("ctr", "1") == three.fresh("new", "1") == Journal([], 0)


def test_half_a_line_is_not_read_until_it_is_whole(three: Store, files: Files) -> None:
    """Somebody may be at work on it; or has died, and the next writer cuts it off."""
    three.add_fresh("ctr", "2", [b"one"])
    files.write("ctr/fresh/2/items.jsonl", b"one\ntw")

    assert three.fresh("ctr", "2") == Journal([(0, b"one")], 4)
    assert three.fresh("ctr", "2", 4) == Journal([], 4)
    if files.url.startswith("file://"):
        assert three.add_fresh("ctr", "2", [b"three"]) == Journal([(4, b"three")], 10)


def test_a_version_with_additions_is_what_it_was(three: Store, bundle: Bundle) -> None:
    """They lie beside it: its digest, its files and the list of versions are the same."""
    three.add_fresh("ctr", "2", [b"one"])

    assert three.open("ctr@2").bundle.digest == bundle.digest
    assert versions(three) == ["1", "2", "3"]
    assert [entry.problem for entry in three.list()] == [None] * 3


def test_additions_go_with_their_version(three: Store, files: Files) -> None:
    """Its number is never given again, so nobody inherits them."""
    three.add_fresh("ctr", "3", [b"one"])
    three.delete("ctr", "3")

    assert three.fresh("ctr", "3") == Journal([], 0)
    with pytest.raises(VersionNotFound, match="has no version '3'"):
        three.add_fresh("ctr", "3", [b"one"])


def test_nothing_is_added_to_what_is_not_there(three: Store) -> None:
    """Nor is a folder made for it."""
    with pytest.raises(BundleNotFound, match="no bundle 'new'"):
        three.add_fresh("new", "1", [b"one"])
    for name, version in (("../ctr", "1"), ("ctr", "../1")):
        with pytest.raises(BadReference):
            three.fresh(name, version)


def test_a_journal_ends_somewhere(three: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond that a version should be published that knows the items."""
    monkeypatch.setattr("model_store.store.LONGEST_JOURNAL", 10)
    three.add_fresh("ctr", "2", [b"123456"])
    with pytest.raises(StoreUnavailable, match="beyond 10 bytes; publish a version"):
        three.add_fresh("ctr", "2", [b"123456"])

    assert three.add_fresh("ctr", "2", [b"12"]).end == 10


def test_deleting_what_is_not_there_is_told(three: Store) -> None:
    """The error lists what there is."""
    with pytest.raises(VersionNotFound, match="it has 1, 2, 3"):
        three.delete("ctr", "9")
    with pytest.raises(BundleNotFound):
        three.delete("ctx", "1")


# Collecting


def test_gc_deletes_what_no_alias_names(three: Store) -> None:
    """What an alias names stays, and so does what it would roll back to."""
    assert three.gc() == [("ctr", "3")]
    assert versions(three) == ["1", "2"]
    assert three.rollback("ctr") == "1"


def test_gc_may_give_up_the_rollback_targets(three: Store) -> None:
    """Who needs the space keeps only what is named."""
    assert three.gc(keep_previous=0) == [("ctr", "1"), ("ctr", "3")]


def test_gc_keeps_as_many_rollback_targets_as_asked(three: Store, bundle: Bundle) -> None:
    """Deleted versions do not count among them."""
    three.set_alias("ctr", "prod", "3")
    three.set_alias("ctr", "prod", three.publish(bundle.root, "ctr").version)
    three.delete("ctr", "3")

    assert three.gc(keep_previous=1) == [("ctr", "1")]
    assert three.rollback("ctr") == "2"


def test_gc_of_one_bundle_leaves_the_others(three: Store, bundle: Bundle) -> None:
    """A name narrows it down."""
    three.publish(bundle.root, "other")

    assert three.gc("ctr") == [("ctr", "3")]
    assert three.gc() == [("other", "1")]


def test_a_dry_run_deletes_nothing(three: Store) -> None:
    """It says what would go."""
    assert three.gc(dry_run=True) == [("ctr", "3")]
    assert versions(three) == ["1", "2", "3"]


def test_gc_of_an_unknown_bundle_is_told(three: Store) -> None:
    """A mistyped name is not a clean store."""
    with pytest.raises(BundleNotFound):
        three.gc("ctx")


def test_gc_leaves_a_fresh_upload_alone(three: Store, files: Files) -> None:
    """A version without manifest may be on its way up."""
    files.remove(f"ctr/versions/3/{MANIFEST_FILE}")

    assert three.gc() == []
    assert versions(three) == ["1", "2", "3"]


# Opening a store


def test_a_relative_folder_is_a_store(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken from the folder where the store was opened, wherever the process goes after."""
    monkeypatch.chdir(tmp_path)
    store = open_store("store")
    store.publish(bundle.root, "ctr")
    monkeypatch.chdir("/")

    assert store.open("ctr@1").bundle.root == tmp_path / "store/ctr/versions/1"


@pytest.mark.parametrize("url", ["nonsense://x", "gs-typo://bucket/x"])
def test_an_unknown_scheme_is_told(url: str) -> None:
    """Not every URL is one that fsspec knows."""
    with pytest.raises(StoreUnavailable, match="Protocol not known"):
        open_store(url)


def test_bundles_from_a_url_are_kept_in_the_home_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder of one's own, the cache is where such things belong."""
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    store = open_store(f"memory://{uuid4().hex}")
    store.publish(bundle.root, "ctr")

    assert store.open("ctr@1").bundle.root.is_relative_to(tmp_path / "home/.cache/slimrank")


def test_errors_show_no_password(tmp_path: Path) -> None:
    """A URL may carry credentials; messages and logs do not."""
    store = open_store("memory://user:secret@host/store", cache=tmp_path)

    with pytest.raises(StoreError) as caught:
        store.open("ctr")
    assert "secret" not in f"{caught.value}"
    assert "memory://host/store" in f"{caught.value}"
