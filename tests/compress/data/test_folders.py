"""Folders of a run: one process at a time, whole files only, a full disk told plainly."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compress.data.folders import FolderError, alone, replaced, spacious

HOLDER = """
import sys
from pathlib import Path
from compress.data.folders import alone

with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def write_half(path: Path) -> None:
    """Something goes wrong on the way."""
    path.write_text("half")
    raise KeyError


def test_who_comes_second_is_refused_at_once(tmp_path: Path) -> None:
    """The folder is named; it is free again when the first one is done."""
    with alone(tmp_path / "run"), pytest.raises(FolderError) as caught, alone(tmp_path / "run"):
        pass

    assert f"another run works in {tmp_path / 'run'}; wait" in str(caught.value)
    with alone(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_a_killed_holder_keeps_nobody_out(tmp_path: Path) -> None:
    """The lock is the kernel's, and goes with its process."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(FolderError), alone(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)

    with alone(tmp_path):
        pass


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """What fails half-way leaves the old content and no part."""
    path = tmp_path / "folder" / "file"
    with replaced(path) as staged:
        staged.write_text("old")

    with pytest.raises(KeyError), replaced(path) as staged:
        write_half(staged)

    assert path.read_text() == "old"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_comes_with_the_path_and_how_to_go_on(tmp_path: Path) -> None:
    """And the part that was written is removed."""
    with pytest.raises(FolderError) as caught, replaced(tmp_path / "file") as staged:
        staged.write_bytes(bytes(1 << 17))

    assert str(caught.value).startswith(f"{tmp_path / 'file'}: the disk is full (File too large)")
    assert "run the same command: it goes on from the last checkpoint" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_faults_pass_unchanged(tmp_path: Path) -> None:
    """Only a full disk is mended by freeing space."""
    with pytest.raises(FileNotFoundError), spacious(tmp_path):
        (tmp_path / "none").read_bytes()
    with pytest.raises(RuntimeError, match="shapes"), spacious(tmp_path):
        raise RuntimeError("shapes do not match")
