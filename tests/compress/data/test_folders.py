"""Folders of a run: one process at a time, whole files only, a full disk told plainly."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compress.data.folders import FolderError, alone, in_turn, replaced, spacious
from compress.progress import Silent

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


class Waits(Silent):
    """Notes that somebody waits."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []
        self.began = threading.Event()

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Noted."""
        self.said.append((stage, done))
        self.began.set()


def test_who_comes_second_may_wait_and_says_so(tmp_path: Path) -> None:
    """It goes in when the first one is done; who need not wait says nothing."""
    waits, order = Waits(), []

    def come_second() -> None:
        with in_turn(tmp_path, waits):
            order.append("second")

    second = threading.Thread(target=come_second)
    with in_turn(tmp_path, Silent()):
        second.start()
        assert waits.began.wait(timeout=60)
        order.append("first")
    second.join()

    stage = f"wait for another run in {tmp_path}"
    assert order == ["first", "second"]
    assert waits.said == [(stage, 0), (stage, 1)]


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
