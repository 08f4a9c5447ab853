"""The command line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.__main__ import main, short, size
from model_store.bundle import Bundle, seal
from model_store.manifest import (
    Card,
    Quality,
    Resources,
    SeedResult,
    SessionQuality,
    SessionSeed,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(three_versions: Path, tmp_path: Path) -> Path:
    """A store with versions 1 to 3 of ctr; prod names 2, and named 1 before."""
    return shutil.copytree(three_versions, tmp_path / "store")


def run(store: Path, *arguments: str) -> int:
    """Run a command on a store."""
    return main(["--store", f"{store}", *arguments])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed since."""
    return capsys.readouterr().out.splitlines()


def test_list_prints_a_table(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a version, in columns, with short digests."""
    assert run(store, "list") == 0
    header, *rows = lines(capsys)

    assert header.split() == ["NAME", "VERSION", "ALIASES", "CREATED", "SIZE", "DIGEST"]
    assert [row.split()[:3] for row in rows] == [
        ["ctr", "1", "2026-11-01T00:00:00Z"],
        ["ctr", "2", "prod"],
        ["ctr", "3", "2026-11-01T00:00:00Z"],
    ]
    assert {row.index("296 B") for row in rows} == {header.index("SIZE")}


def test_list_prints_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: every field, whole digests."""
    assert run(store, "list", "--json") == 0
    entries = json.loads(capsys.readouterr().out)

    assert [(e["name"], e["version"], e["aliases"]) for e in entries] == [
        ("ctr", "1", []), ("ctr", "2", ["prod"]), ("ctr", "3", [])
    ]  # fmt: skip
    assert len(entries[0]["digest"]) == len("sha256:") + 64


def test_list_of_one_bundle(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name narrows it down; nothing found is said in words."""
    assert run(store, "list", "ctx") == 0
    assert lines(capsys) == [f"{store}: no bundles"]


def test_list_shows_damage(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged version does not hide the others."""
    (store / "ctr/versions/3/manifest.json").unlink()

    assert run(store, "list") == 0
    assert lines(capsys)[-1].endswith("damaged: half-written: it has no manifest.json")


def test_show_prints_what_is_in_a_bundle(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts first, then a line per feature with its place in the graph."""
    assert run(store, "show", "ctr") == 0
    text = capsys.readouterr().out

    for part in ("ctr@2", "prod", "model.onnx, fp32", "candidate_ids int32[N, 3]", "items    2"):
        assert part in text
    assert "genres   item     multi        vocabulary  candidate_ids[1-2]" in text
    assert "zip      user     categorical  vocabulary  pruned" in text


def test_show_of_a_plain_bundle(
    tmp_path: Path, make_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without catalogue and alias it says none; qualities are shown by seed."""
    good = Quality(auc=0.75, logloss=0.5, accuracy=0.7, rows=10)
    card = Card(
        method="umec", ranker="dlrm", seed=0, kept_features=(),
        dense=Resources(flops=2), slim=Resources(flops=1),
        results=(SeedResult(seed=3, dense=good, slim=good),),
    )  # fmt: skip
    bundle = make_bundle(items=None, card=card)
    run(tmp_path / "store", "publish", f"{bundle.root}", "ctr")
    assert run(tmp_path / "store", "show", "ctr@1") == 0
    text = capsys.readouterr().out

    assert "AUC, seed 3  dense 0.75000, slim 0.75000 on 10 rows" in text
    assert text.count("none") == 2


def test_show_of_a_session_ranker(
    tmp_path: Path, session_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its item table is, what it cost, and its quality by seed, as far as the card says."""
    quality = SessionQuality(metrics={"NDCG@10": 0.25, "P@1": 0.5}, rows=10, sessions=4)
    card = session_bundle.manifest.card.model_copy(
        update={"results": (SessionSeed(seed=3, dense=quality, coded=quality),)}
    )
    manifest = session_bundle.manifest.model_copy(update={"card": card})
    bundle = seal(session_bundle.root, manifest)
    run(tmp_path / "store", "publish", f"{bundle.root}", "session")
    assert run(tmp_path / "store", "show", "session@1") == 0
    text = capsys.readouterr().out

    for part in (
        "codes item table of gru4rec, seed 0",
        "items            3",
        "vectors          codes, 2 numbers",
        "neighbours       what followed what",
        "session          the newest 4",
        "NDCG@10, seed 3  dense 0.25000, coded 0.25000 on 10 rows",
    ):
        assert part in text
    assert "P@20" not in text
    assert "FEATURE" not in text


def test_show_prints_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest, with what the store adds."""
    assert run(store, "show", "ctr@1", "--json") == 0
    shown = json.loads(capsys.readouterr().out)

    assert (shown["name"], shown["version"]) == ("ctr", "1")
    assert shown["manifest"]["graph"] == "model.onnx"


def test_verify_checks_all(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a reference every version is hashed, and one line a version says so."""
    assert run(store, "verify") == 0
    assert [line.split(",")[0] for line in lines(capsys)] == [
        f"ctr@{version}: 6 files intact" for version in (1, 2, 3)
    ]


def test_verify_goes_on_after_damage(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every damaged version is told, the exit code tells that there was one."""
    (store / "ctr/versions/2/model.onnx").write_bytes(b"\0 no real grapH\n")

    assert run(store, "verify", "ctr@2", "ctr@3") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "model.onnx: sha256" in printed.err
    assert "ctr@3: 6 files intact" in printed.out


def test_alias_and_rollback_move_an_alias(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each prints what the alias names now."""
    assert run(store, "alias", "ctr", "prod", "3", "--expected", "2") == 0
    assert run(store, "rollback", "ctr") == 0
    assert run(store, "rollback", "ctr", "prod") == 0
    assert lines(capsys) == ["ctr@prod -> 3", "ctr@prod -> 2", "ctr@prod -> 1"]


def test_publish_copies_between_stores(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version's folder is a bundle, so it can be published elsewhere."""
    other = tmp_path / "other"
    assert run(other, "publish", f"{store}/ctr/versions/1", "ctr", "--version", "v1") == 0
    assert lines(capsys)[0].startswith("ctr@v1 sha256:")


def test_delete_removes_a_version(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its full reference."""
    assert run(store, "delete", "ctr@3") == 0
    assert lines(capsys) == ["deleted ctr@3"]
    assert not (store / "ctr/versions/3").exists()


def test_gc_says_what_went(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or would go, or that nothing did."""
    assert run(store, "gc", "--dry-run") == 0
    assert run(store, "gc", "ctr") == 0
    assert run(store, "gc") == 0
    assert run(store, "gc", "--keep-previous", "0") == 0
    assert lines(capsys) == [
        "would delete ctr@3", "deleted ctr@3", "nothing to delete", "deleted ctr@1"
    ]  # fmt: skip


def test_gc_keeps_no_negative_number(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped option is refused before anything is deleted."""
    with pytest.raises(SystemExit):
        run(store, "gc", "--keep-previous", "-1")
    assert "expected 0 or more, got -1" in capsys.readouterr().err


def test_the_store_may_be_named_after_the_command(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options are understood on both sides of it."""
    assert main(["rollback", "ctr", "--store", f"{store}"]) == 0
    assert lines(capsys) == ["ctr@prod -> 1"]


def test_the_default_store_is_a_folder_here(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named store, as the pipeline's."""
    monkeypatch.chdir(store.parent)

    assert main(["list"]) == 0
    assert len(lines(capsys)) == 4


def test_a_refusal_is_an_exit_code(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts see 1, and nothing on the standard output."""
    assert run(store, "delete", "ctr@2") == 1
    assert lines(capsys) == []


def test_a_refusal_is_one_line(store: Path) -> None:
    """No traceback: what was expected, what came, what to do; exit code 1."""
    done = subprocess.run(
        [sys.executable, "-m", "model_store", "--store", store, "show", "ctr@9"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {store}: ctr has no version or alias '9'; it has the versions 1, 2, 3 and the "
        "aliases prod -> 2\n"
    )


@pytest.mark.parametrize("command", [["list"], ["show", "ctr"], ["verify"]])
def test_a_reader_that_has_seen_enough_is_no_error(store: Path, command: list[str]) -> None:
    """As in `list | head`: no traceback, neither while printing nor at exit."""
    # -E: print into a buffer, as everywhere but under PYTHONUNBUFFERED.
    with subprocess.Popen(
        [sys.executable, "-E", "-m", "model_store", "--store", store, *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        said = process.stderr.read() if process.stderr else ""

    assert (said, process.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7.2e12, "7200.0 GB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    """One decimal, decimal units."""
    assert size(count) == text


def test_short_digests_have_twelve_digits() -> None:
    """Enough to tell versions apart."""
    assert short("sha256:0123456789abcdef") == "0123456789ab"
