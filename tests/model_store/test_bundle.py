"""Sealing and opening bundles."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.bundle import (
    CHECKSUMS_FILE,
    Bundle,
    GoldenCase,
    checksums,
    digest_of,
    item_tensor_file,
    named_files,
    open_bundle,
    parse_manifest,
    seal,
    vocabulary_file,
)
from model_store.errors import BundleCorrupt, BundleNotFound, ManifestInvalid
from model_store.manifest import (
    MANIFEST_FILE,
    CodedVectors,
    DenseVectors,
    FactoredVectors,
    FileEntry,
    Int8Vectors,
    RadixCodes,
    StoredCodes,
    Vectors,
)

FORMAT_1 = Path(__file__).with_name("format_1")
FORMAT_1_DIGEST = "sha256:821260bb981b4ccb046df41ed4ad134851fb9d6328faf94a88c0cc15971803fd"
FORMAT_2 = Path(__file__).with_name("format_2")
FORMAT_2_DIGEST = "sha256:51c4bad78be6824d3a9bf02ec8df62ede21835f87fafa182592a5c07185e3f53"
FORMAT_3 = Path(__file__).with_name("format_3")
CLICK_3_DIGEST = "sha256:7fcaa5510959a1b90d22ddf69246e39f78a0f33494058724e1786979ad8b6ef9"
SESSION_3_DIGEST = "sha256:97f718cf5837865c9426d317c648a5ea20567c5bac38df1ae965323a72da2ceb"
PACKED_3_DIGEST = "sha256:81b05dc419f9ce851ddee7a5087038ae57dc97836fe41bab0ba449966d81da1b"
FLIPPED = b"\0 no real grapH\n"


def forge(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> Path:
    """Rewrite a bundle's manifest as an attacker would, with checksums that fit."""
    fields = json.loads((bundle.root / MANIFEST_FILE).read_bytes())
    change(fields)
    raw = json.dumps(fields).encode()
    (bundle.root / MANIFEST_FILE).write_bytes(raw)
    sums = checksums(parse_manifest(raw, "forged"), digest_of(raw))
    (bundle.root / CHECKSUMS_FILE).write_bytes(sums)
    return bundle.root


def replace(bundle: Bundle, name: str, data: bytes) -> Bundle:
    """Another content for a file, sealed."""
    (bundle.root / name).write_bytes(data)
    return seal(bundle.root, bundle.manifest)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """An array as the bytes of a file."""
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


class Reduced:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# Sealing


def test_the_format_is_pinned_by_its_bytes(bundle: Bundle, session_bundle: Bundle) -> None:
    """The same bundle has the same digest in every release that writes format version 3."""
    assert bundle.manifest.format_version == session_bundle.manifest.format_version == 3
    assert bundle.digest == CLICK_3_DIGEST
    assert session_bundle.digest == SESSION_3_DIGEST


def test_a_bundle_of_format_1_opens_for_ever(bundle: Bundle) -> None:
    """Files written by the first release of the format are read, and mean the same."""
    kept = open_bundle(FORMAT_1)

    assert kept.digest == FORMAT_1_DIGEST
    assert kept.manifest.format_version == 1
    assert kept.manifest.model_copy(update={"format_version": 3}) == bundle.manifest
    assert kept.session_table() is None
    assert kept.golden() == bundle.golden()
    ours, theirs = bundle.item_table(), kept.item_table()
    assert ours is not None
    assert theirs is not None
    assert (theirs.ids, theirs.values) == (ours.ids, ours.values)
    np.testing.assert_array_equal(theirs.tensors["candidate_ids"], ours.tensors["candidate_ids"])


def test_a_bundle_of_format_2_opens_for_ever(session_bundle: Bundle) -> None:
    """A session ranker's files of that format are read, and mean the same."""
    kept = open_bundle(FORMAT_2)
    table = kept.session_table()

    assert kept.digest == FORMAT_2_DIGEST
    assert kept.manifest.format_version == 2
    assert kept.manifest.model_copy(update={"format_version": 3}) == session_bundle.manifest
    assert kept.item_table() is None
    assert table is not None
    assert table.vectors is not None
    assert table.neighbours is not None
    assert table.ids == ["i1", "i2", "i3"]
    assert table.vectors.vectors(np.arange(3)).tolist() == [[6, 8], [6, 8], [8, 10]]
    assert table.neighbours.of(2)[0].tolist() == [0, 1]


def test_a_bundle_of_format_3_opens_for_ever(packed_bundle: Bundle, bundle: Bundle) -> None:
    """Its packed files are read, and mean what the plain ones do."""
    kept = open_bundle(FORMAT_3)

    assert kept.digest == packed_bundle.digest == PACKED_3_DIGEST
    assert kept.tokens("genres") == bundle.tokens("genres")
    assert kept.tokens("zip") == ["01002", "94110", "94111"]
    assert kept.golden() == bundle.golden()
    ours, theirs = bundle.item_table(), kept.item_table()
    assert ours is not None
    assert theirs is not None
    assert (theirs.ids, theirs.values) == (ours.ids, ours.values)


def test_a_vocabulary_that_is_not_coded_as_the_manifest_says_is_refused(
    packed_bundle: Bundle,
) -> None:
    """The text names the file."""
    changed = replace(packed_bundle, "vocab/zip.numbers", b"\0\0\0\0\0\0\0\0\0")

    with pytest.raises(BundleCorrupt, match=r"vocab/zip\.numbers: expected 3 numbers, found 0"):
        changed.tokens("zip")


def test_what_is_sealed_is_of_this_format(bundle: Bundle) -> None:
    """A manifest that was read from an older bundle is not written under its old number."""
    older = bundle.manifest.model_copy(update={"format_version": 1})

    assert seal(bundle.root, older).manifest.format_version == 3


def test_seal_lists_every_file_with_size_and_sha256(bundle: Bundle) -> None:
    """The manifest names all files of the folder, but neither itself nor the checksums."""
    on_disk = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if p.is_file()}

    assert {e.path for e in bundle.manifest.files} == on_disk - {MANIFEST_FILE, CHECKSUMS_FILE}
    for entry in bundle.manifest.files:
        data = (bundle.root / entry.path).read_bytes()
        assert entry == FileEntry(
            path=entry.path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)
        )
    assert bundle.size_bytes == sum(e.bytes for e in bundle.manifest.files)


def test_the_digest_is_the_sha256_of_the_manifest(bundle: Bundle) -> None:
    """Whoever has the digest can check the whole bundle, starting at the manifest."""
    raw = (bundle.root / MANIFEST_FILE).read_bytes()

    assert bundle.digest == f"sha256:{hashlib.sha256(raw).hexdigest()}"


def test_a_person_checks_a_bundle_with_sha256sum(bundle: Bundle) -> None:
    """SHA256SUMS is in the format of the shell's command, manifest included."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", CHECKSUMS_FILE],
        cwd=bundle.root, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.count(": OK") == len(bundle.manifest.files) + 1


def test_sealing_again_changes_nothing(bundle: Bundle) -> None:
    """Sealing a sealed bundle gives the same bytes."""
    assert seal(bundle.root, bundle.manifest) == bundle


def test_a_link_is_not_sealed(bundle: Bundle) -> None:
    """A link would leave its content behind when the bundle is published."""
    (bundle.root / "link").symlink_to(bundle.root / "model.onnx")

    with pytest.raises(BundleCorrupt, match="do not link"):
        seal(bundle.root, bundle.manifest)


def test_a_number_that_is_not_finite_is_not_sealed(bundle: Bundle) -> None:
    """JSON has no NaN; a bundle that other readers refuse is not written."""
    card = bundle.manifest.card.model_copy(update={"achieved": {"flops": float("nan")}})

    with pytest.raises(ManifestInvalid, match="not finite"):
        seal(bundle.root, bundle.manifest.model_copy(update={"card": card}))


@pytest.mark.parametrize(
    "missing",
    ["model.onnx", "golden.json", "vocab/genres.json", "items/ids.json", "items/values.json",
     "items/candidate_ids.npy"],
)  # fmt: skip
def test_a_file_that_the_manifest_refers_to_must_be_there(bundle: Bundle, missing: str) -> None:
    """A reference without a file is found when sealing, not when serving."""
    (bundle.root / missing).unlink()

    with pytest.raises(ManifestInvalid, match=missing):
        seal(bundle.root, bundle.manifest)


def test_a_pruned_feature_needs_no_vocabulary(bundle: Bundle) -> None:
    """Compression removes a pruned feature's tokens; its encoding stays as documentation."""
    assert not (bundle.root / vocabulary_file("zip")).exists()
    assert bundle.tokens("zip") is None


def test_no_catalogue_is_fine(make_bundle: Callable[..., Bundle]) -> None:
    """A bundle may leave item features to the requests."""
    assert make_bundle(items=None).item_table() is None


def test_a_catalogue_may_leave_out_raw_values(bundle: Bundle) -> None:
    """Without raw values `explain` has less to say; nothing else changes."""
    assert bundle.manifest.items is not None
    items = bundle.manifest.items.model_copy(update={"values": None})
    table = seal(bundle.root, bundle.manifest.model_copy(update={"items": items})).item_table()

    assert table is not None
    assert table.values is None


# Opening


def test_open_gives_what_was_sealed(bundle: Bundle) -> None:
    """Opening a sealed folder gives an equal bundle."""
    assert open_bundle(bundle.root) == bundle


def test_no_folder_is_not_found(tmp_path: Path) -> None:
    """A folder that does not exist is told apart from a damaged one."""
    with pytest.raises(BundleNotFound, match="no such folder"):
        open_bundle(tmp_path / "absent")


def test_a_folder_without_manifest_is_refused(bundle: Bundle) -> None:
    """The manifest is written last, so without it the bundle is half-written."""
    (bundle.root / MANIFEST_FILE).unlink()

    with pytest.raises(BundleCorrupt, match="cut off: publish it again"):
        open_bundle(bundle.root)


@pytest.mark.parametrize("name", ["model.onnx", "vocab/genres.json", "golden.json"])
def test_a_missing_file_is_refused(bundle: Bundle, name: str) -> None:
    """Every listed file must be there."""
    (bundle.root / name).unlink()

    with pytest.raises(BundleCorrupt, match=f"{name}: missing"):
        open_bundle(bundle.root, verify=False)


def test_a_half_written_file_is_refused(bundle: Bundle) -> None:
    """A file cut short is found by its size, without hashing."""
    os.truncate(bundle.root / "model.onnx", 3)

    with pytest.raises(BundleCorrupt, match="3 bytes, the manifest says 16"):
        open_bundle(bundle.root, verify=False)


def test_a_flipped_byte_is_refused(bundle: Bundle) -> None:
    """A change that keeps the size is found by the digest."""
    (bundle.root / "model.onnx").write_bytes(FLIPPED)

    with pytest.raises(BundleCorrupt, match=r"sha256 .*, the manifest says"):
        open_bundle(bundle.root)


def test_without_verify_no_file_is_hashed(bundle: Bundle) -> None:
    """Who verified before may open cheaply: only names and sizes are checked."""
    (bundle.root / "model.onnx").write_bytes(FLIPPED)

    assert open_bundle(bundle.root, verify=False) == bundle


def test_a_changed_manifest_is_refused(bundle: Bundle) -> None:
    """A manifest that is still valid but not what was sealed disagrees with SHA256SUMS."""
    path = bundle.root / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b'"start": 1', b'"start": 0'))

    with pytest.raises(BundleCorrupt, match="it disagrees with"):
        open_bundle(bundle.root, verify=False)


def test_missing_checksums_are_refused(bundle: Bundle) -> None:
    """Without SHA256SUMS nothing vouches for the manifest."""
    (bundle.root / CHECKSUMS_FILE).unlink()

    with pytest.raises(BundleCorrupt, match="SHA256SUMS: missing"):
        open_bundle(bundle.root)


def test_a_newer_format_is_refused_before_its_schema(bundle: Bundle) -> None:
    """An old reader says that the bundle is newer, whatever else is new about it."""
    path = bundle.root / MANIFEST_FILE
    fields = {**json.loads(path.read_bytes()), "format_version": 4, "unheard_of": True}
    path.write_text(json.dumps(fields))

    with pytest.raises(ManifestInvalid, match="format version 4, this Slimrank reads up to 3"):
        open_bundle(bundle.root)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not JSON"),
        (b'{"format_version": 1', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "Input should be an object"),
        (b"{}", "name: Field required .and 10 more"),
        (b'{"format_version": "two"}', "format_version: "),
    ],
)
def test_an_unreadable_manifest_is_refused(bundle: Bundle, raw: bytes, complaint: str) -> None:
    """Whatever the bytes are, the error is one line that names the file and the fault."""
    (bundle.root / MANIFEST_FILE).write_bytes(raw)

    with pytest.raises(ManifestInvalid, match=complaint) as caught:
        open_bundle(bundle.root)
    assert MANIFEST_FILE in f"{caught.value}"
    assert "\n" not in f"{caught.value}"


def test_an_unknown_field_is_refused(bundle: Bundle) -> None:
    """Within one format version, a field that the reader does not know is a mistake."""
    path = bundle.root / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "graphs": "model.onnx"}))

    with pytest.raises(ManifestInvalid, match="graphs: Extra inputs are not permitted"):
        open_bundle(bundle.root)


@pytest.mark.parametrize(
    "name",
    ["../secret", "vocab/../../secret", "/etc/hostname", "", ".", "./x", "a//b", "a\\b", "a\nb",
     "a\0b"],
)  # fmt: skip
def test_names_that_leave_the_bundle_are_refused(bundle: Bundle, name: str) -> None:
    """No manifest reaches a file outside of its bundle's folder."""
    (bundle.root.parent / "secret").write_bytes(b"graph")
    entry = {"path": name, "sha256": hashlib.sha256(b"graph").hexdigest(), "bytes": 5}

    def change(fields: dict[str, Any]) -> None:
        fields["files"].append(entry)
        fields["graph"] = name

    with pytest.raises(ManifestInvalid, match="no plain path"):
        open_bundle(forge(bundle, change))


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Bundle) -> None:
    """Nor does a link planted in the folder."""
    outside = bundle.root.parent / "outside"
    outside.write_bytes((bundle.root / "model.onnx").read_bytes())
    (bundle.root / "model.onnx").unlink()
    (bundle.root / "model.onnx").symlink_to(outside)

    with pytest.raises(ManifestInvalid, match="leads out of the bundle"):
        open_bundle(bundle.root)


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST_FILE, CHECKSUMS_FILE])
def test_a_manifest_lists_no_file_twice_nor_itself(bundle: Bundle, name: str) -> None:
    """One entry speaks for one file."""
    entry = {"path": name, "sha256": "0" * 64, "bytes": 5}

    with pytest.raises(ManifestInvalid, match="twice, or itself"):
        open_bundle(forge(bundle, lambda fields: fields["files"].append(entry)))


def test_a_stray_file_is_ignored(bundle: Bundle) -> None:
    """A file that the manifest does not list is no part of the bundle."""
    (bundle.root / "notes.txt").write_text("by hand")

    assert open_bundle(bundle.root) == bundle


# What is in it


def test_tokens_come_in_row_order(bundle: Bundle) -> None:
    """The first token of a vocabulary is row 2 of its table."""
    assert bundle.tokens("genres") == ["Drama", "Comedy"]
    assert bundle.encoders()["genres"].encode([["Comedy", "Drama"]]).tolist() == [[3, 2]]


def test_features_without_vocabulary_have_no_tokens(bundle: Bundle) -> None:
    """Numbers, buckets and hashes need none."""
    assert [bundle.tokens(name) for name in ("age", "hour", "item_id")] == [None] * 3


def test_an_unknown_feature_has_no_tokens(bundle: Bundle) -> None:
    """Asking for a feature that is not there is a programmer's mistake."""
    with pytest.raises(KeyError):
        bundle.tokens("agee")


def test_encoders_are_those_of_the_kept_features(bundle: Bundle) -> None:
    """A pruned feature has no place in the graph, so nothing encodes it."""
    assert list(bundle.encoders()) == ["age", "hour", "item_id", "genres"]


def test_a_vocabulary_larger_than_its_table_is_refused(bundle: Bundle) -> None:
    """A row that the table lacks would make the graph fail on some requests only."""
    changed = replace(bundle, "vocab/genres.json", b'["Drama", "Comedy", "Crime"]')

    with pytest.raises(BundleCorrupt, match="3 tokens, the table has rows for 2"):
        changed.tokens("genres")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'["Drama", "Drama"]', "twice"),
        (b'["Drama", 7]', "1: Input should be a valid string"),
        (b"{", "Invalid JSON"),
    ],
)
def test_a_malformed_vocabulary_is_refused(bundle: Bundle, content: bytes, complaint: str) -> None:
    """A vocabulary is a JSON array of different strings."""
    changed = replace(bundle, "vocab/genres.json", content)

    with pytest.raises(BundleCorrupt, match=complaint):
        changed.tokens("genres")


def test_vocabulary_files_stay_in_their_folder() -> None:
    """No feature name makes a path that leaves vocab/."""
    assert vocabulary_file("../../etc/x") == "vocab/..%2F..%2Fetc%2Fx.json"


def test_the_item_table_is_mapped_from_disk(bundle: Bundle) -> None:
    """Workers share the pages of a catalogue, and cannot write to it."""
    table = bundle.item_table()
    assert table is not None
    rows = table.tensors["candidate_ids"]

    assert table.ids == ["i1", "i2"]
    assert table.values == {"genres": [["Drama"], None]}
    assert isinstance(rows, np.memmap)
    assert rows.tolist() == [[3, 2, 1], [7, 1, 1]]
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 5


def test_an_empty_catalogue_is_a_catalogue(bundle: Bundle) -> None:
    """No items is a valid number of items."""
    assert bundle.manifest.items is not None
    np.save(bundle.root / item_tensor_file("candidate_ids"), np.zeros((0, 3), np.int32))
    (bundle.root / "items/ids.json").write_text("[]")
    (bundle.root / "items/values.json").write_text("{}")
    items = bundle.manifest.items.model_copy(update={"items": 0})
    table = seal(bundle.root, bundle.manifest.model_copy(update={"items": items})).item_table()

    assert table is not None
    assert table.tensors["candidate_ids"].shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("items/ids.json", b'["i1"]', "holds 1 items, the manifest says 2"),
        ("items/ids.json", b'["i1", "i1"]', "twice"),
        ("items/values.json", b'{"genres": [null]}', r"\(genres\) holds 1 items"),
        ("items/values.json", b"[]", "should be an object"),
        ("golden.json", b'[{"request": {}}]', "0.scores: Field required"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    bundle: Bundle, name: str, content: bytes, complaint: str
) -> None:
    """Ids, rows, values and golden cases are checked against the manifest when they are read."""
    changed = replace(bundle, name, content)

    with pytest.raises(BundleCorrupt, match=complaint):
        (changed.item_table(), changed.golden())


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((1, 3), np.int32),
        np.zeros((2, 4), np.int32),
        np.zeros((2, 3), np.int64),
        np.zeros((2, 3), ">i4"),
        np.zeros(6, np.int32),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)
def test_a_tensor_that_does_not_fit_its_input_is_refused(
    bundle: Bundle, tensor: np.ndarray[Any, Any]
) -> None:
    """A catalogue's tensor has the dtype and the columns of the graph input, and all items."""
    np.save(bundle.root / item_tensor_file("candidate_ids"), tensor)
    changed = seal(bundle.root, bundle.manifest)

    with pytest.raises(BundleCorrupt, match="the manifest's input candidate_ids asks for"):
        changed.item_table()


def test_a_tensor_for_an_input_that_the_graph_lacks_is_refused(bundle: Bundle) -> None:
    """The manifest must declare what the catalogue fills."""
    inputs = bundle.manifest.inputs[:2]
    changed = seal(bundle.root, bundle.manifest.model_copy(update={"inputs": inputs}))

    with pytest.raises(BundleCorrupt, match=r"asks for \[\]"):
        changed.item_table()


def header(shape: str) -> bytes:
    """An npy file with a header of one's own."""
    text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(24)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip, which numpy.load would open",
        b"\x80\x04\x95 a pickle, which numpy.load would load if it were told to",
        header("(-1, 3)"),
        header(f"(2, {10**30})"),
        header("(2, 3000)"),
        header("("),
    ],
    ids=["empty", "zip", "pickle", "negative", "huge", "short", "malformed"],
)
def test_what_is_no_npy_is_refused(bundle: Bundle, content: bytes) -> None:
    """Only the plain array format is read, whatever the file claims."""
    changed = replace(bundle, "items/candidate_ids.npy", content)

    with pytest.raises(BundleCorrupt, match="not a plain npy file"):
        changed.item_table()


def test_opening_a_bundle_runs_no_code_from_it(bundle: Bundle, tmp_path: Path) -> None:
    """An array of objects, which is a pickle inside, is refused before it is unpickled."""
    trap = tmp_path / "trap"
    objects = np.empty((2, 3), dtype=object)
    objects[:] = Reduced(trap)
    np.save(bundle.root / item_tensor_file("candidate_ids"), objects, allow_pickle=True)
    changed = seal(bundle.root, bundle.manifest)

    with pytest.raises(BundleCorrupt, match="Python objects in dtype"):
        changed.item_table()
    assert not trap.exists()


# Session rankers


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("items/ids.json", b'["i1", "i2"]', "holds 2 items, the manifest says 3"),
        ("items/ids.json", b'["i1", "i2", "i1"]', "twice"),
        ("items/ids.json", b'["i1", "i2", 3]', "should be a valid string"),
        ("items/codes.npy", npy(np.zeros((2, 1), np.uint8)), "for 2 items, the manifest says 3"),
        ("items/codebooks.npy", npy(np.zeros((2, 2, 3), np.float32)), "of 3 numbers"),
        ("items/neighbour_items.npy", npy(np.array([2, 0, 3], np.int32)), "no 3 rows"),
    ],
)
def test_parts_of_a_session_table_that_do_not_fit_are_refused(
    session_bundle: Bundle, name: str, content: bytes, complaint: str
) -> None:
    """Ids, vectors and neighbours are checked against the manifest when they are read."""
    changed = replace(session_bundle, name, content)

    with pytest.raises(BundleCorrupt, match=complaint):
        changed.session_table()


def test_a_click_through_bundle_has_no_session_table(bundle: Bundle) -> None:
    """And a session ranker without vectors and neighbours has one with neither."""
    assert bundle.session_table() is None


def test_a_session_ranker_may_need_neither_vectors_nor_neighbours(session_bundle: Bundle) -> None:
    """Then its table is the ids alone, and nothing else of the folder is referred to."""
    session = session_bundle.manifest.session
    assert session is not None
    bare = session.model_copy(update={"vectors": None, "neighbours": None, "dim": 1})
    manifest = session_bundle.manifest.model_copy(update={"session": bare})
    table = seal(session_bundle.root, manifest).session_table()

    assert [*named_files(manifest)] == ["model.onnx", "golden.json", "items/ids.json"]
    assert table is not None
    assert (table.ids, table.vectors, table.neighbours) == (["i1", "i2", "i3"], None, None)


@pytest.mark.parametrize(
    ("vectors", "files"),
    [
        (DenseVectors(file="v"), ["v"]),
        (Int8Vectors(file="v", scales="s"), ["v", "s"]),
        (FactoredVectors(cores=("a", "b")), ["a", "b"]),
        (
            CodedVectors(
                codes=StoredCodes(file="c", bits=4), codebooks="b", scales="s", composition="sum"
            ),
            ["b", "c", "s"],
        ),
        (
            CodedVectors(codes=RadixCodes(radices=(2,)), codebooks="b", composition="concatenate"),
            ["b"],
        ),
    ],
    ids=["dense", "int8", "factors", "stored codes", "radix codes"],
)
def test_every_file_of_item_vectors_is_referred_to(
    session_bundle: Bundle, vectors: Vectors, files: list[str]
) -> None:
    """So that sealing finds it missing, and publishing takes it along."""
    session = session_bundle.manifest.session
    assert session is not None
    changed = session.model_copy(update={"vectors": vectors, "neighbours": None})
    manifest = session_bundle.manifest.model_copy(update={"session": changed})

    assert [*named_files(manifest)][3:] == files


def test_golden_cases_are_requests_with_scores(bundle: Bundle) -> None:
    """A golden case is a body of POST /rank and the scores that it must give."""
    assert bundle.golden() == [GoldenCase({"candidates": {"ids": ["i1"]}}, [0.25])]
