"""File operations that survive a kill."""

import os
from pathlib import Path

import pytest

from model_store.durable import (
    LOCK_FILE,
    STAGING_FOLDER,
    append_lines,
    discard,
    locked,
    make_folder,
    staged,
    sweep,
    write_atomic,
)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """The new content is there, and nothing else is."""
    path = tmp_path / "prod.json"
    path.write_bytes(b"old")
    write_atomic(path, b"new")

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no part of the new."""
    path = tmp_path / "prod.json"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="no"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_with_those_above(tmp_path: Path) -> None:
    """And making one that is there is fine."""
    for _ in range(2):
        make_folder(tmp_path / "a/b/c")

    assert (tmp_path / "a/b/c").is_dir()


def test_a_stage_is_removed_when_its_block_ends(tmp_path: Path) -> None:
    """With whatever was written into it, whether or not the block failed."""

    def fail() -> None:
        with staged(tmp_path) as stage:
            (stage / "half").write_bytes(b"written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / STAGING_FOLDER).iterdir()) == []


def test_a_stage_that_was_renamed_stays(tmp_path: Path) -> None:
    """The end of the block does not reach for it."""
    with staged(tmp_path) as stage:
        (stage / "file").write_bytes(b"written")
        stage.rename(tmp_path / "target")

    assert (tmp_path / "target/file").read_bytes() == b"written"


def test_sweep_spares_what_is_held(tmp_path: Path) -> None:
    """A stage is litter once the process that made it is gone, not before."""
    dead = tmp_path / STAGING_FOLDER / "dead"
    with staged(tmp_path) as living:
        dead.mkdir()
        (dead / "half").write_bytes(b"written")
        sweep(tmp_path)

        assert living.is_dir()
        assert not dead.exists()


def test_sweep_removes_parts_of_small_files(tmp_path: Path) -> None:
    """What `write_atomic` had not renamed yet; nothing that is not hidden."""
    (tmp_path / STAGING_FOLDER).mkdir()
    folder = tmp_path / "aliases"
    folder.mkdir()
    (folder / ".prod.json.0123").write_bytes(b"{")
    (folder / "prod.json").write_bytes(b"{}")
    sweep(tmp_path)

    assert [path.name for path in folder.iterdir()] == ["prod.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"aliases", LOCK_FILE, STAGING_FOLDER}


def test_sweep_of_a_folder_that_never_staged_touches_nothing(tmp_path: Path) -> None:
    """Not even to make a lock file: the folder may not be ours."""
    (tmp_path / "notes").mkdir()
    sweep(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_discarded_folder_is_gone(tmp_path: Path) -> None:
    """Under its name at once, from the disk right after."""
    folder = tmp_path / "versions/1"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    with locked(tmp_path):
        discard(folder, tmp_path)

    assert not folder.exists()
    assert list((tmp_path / STAGING_FOLDER).iterdir()) == []


def test_lines_are_added_at_the_end(tmp_path: Path) -> None:
    """Each call tells where its lines begin."""
    path = tmp_path / "items.jsonl"

    assert append_lines(path, b"one\n") == 0
    assert append_lines(path, b"two\nthree\n") == 4
    assert path.read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("torn", [b"hal", b"one\nhal", b"one\n"])
def test_half_a_line_is_cut_off_before_the_next(tmp_path: Path, torn: bytes) -> None:
    """A killed writer's half line would spoil the next one's."""
    path = tmp_path / "items.jsonl"
    path.write_bytes(torn)
    append_lines(path, b"two\n")

    assert path.read_bytes() == torn[: torn.rfind(b"\n") + 1] + b"two\n"


def test_lines_that_could_not_be_written_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full leaves what was there."""
    path = tmp_path / "items.jsonl"
    append_lines(path, b"one\n")

    def fail(_: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no"):
        append_lines(path, b"two\n")

    assert path.read_bytes() == b"one\n"
