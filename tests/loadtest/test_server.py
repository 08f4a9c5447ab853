"""The service as a subprocess."""

import http.client
import json
import os
import signal
import socket
import urllib.request
from pathlib import Path

import psutil
import pytest

from loadtest import server


def test_serves_inside_the_block_and_is_gone_after_it(standin, tmp_path: Path) -> None:
    """/readyz is 200 inside the block; after it nobody listens and the process is no more."""
    with (
        server.serving({"MODELS": "ctr@slim"}, tmp_path / "log", command=standin()) as running,
        urllib.request.urlopen(f"{running.url}/readyz") as reply,  # noqa: S310 - our own server
    ):
        ready = reply.status

    assert ready == http.client.OK
    assert not psutil.pid_exists(running.pid)
    server.check_port(int(running.url.rsplit(":", 1)[1]))


def test_only_the_settings_given_reach_the_service(
    standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SLIMRANK_ variable of the caller's shell does not change what is measured."""
    monkeypatch.setenv("SLIMRANK_WORKERS", "7")
    with server.serving({"MODELS": "ctr@slim"}, tmp_path / "log", command=standin()) as running:
        pass

    seen = json.loads(running.log.read_text().splitlines()[0].removeprefix("settings "))
    assert set(seen) == {"SLIMRANK_MODELS", "SLIMRANK_HOST", "SLIMRANK_PORT"}
    assert seen["SLIMRANK_HOST"] == "127.0.0.1"


def test_nohup_stays_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who started a test to outlive the terminal gets that; SIGTERM ends it all the same."""
    handlers = {signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)

    server.unwind_when_told_to_end()

    assert handlers[signal.SIGHUP] is signal.SIG_IGN
    with pytest.raises(SystemExit, match="143"):
        handlers[signal.SIGTERM](signal.SIGTERM, None)


def test_failed_start_shows_the_end_of_the_log(standin, tmp_path: Path) -> None:
    """When the service ends at once, the error says with what status and what it said last."""
    expected = r"status 1 before it was ready[\s\S]*no such store"
    with (
        pytest.raises(server.ServerFailed, match=expected),
        server.serving({}, tmp_path / "log", command=standin("--exit-at-start")),
    ):
        pass


def test_wait_for_readiness_is_bounded(standin, tmp_path: Path) -> None:
    """A service that never gets ready is given up, with its own reason, and ended."""
    with (
        pytest.raises(server.ServerFailed, match=r"not ready after 1\.5 s .*warming"),
        server.serving({}, tmp_path / "log", command=standin("--never-ready"), start_s=1.5),
    ):
        pass

    assert not any("--never-ready" in child.cmdline() for child in psutil.Process().children())


def test_taken_port_is_told_with_a_way_out(standin, tmp_path: Path) -> None:
    """A port in use is refused before anything starts, and the message names the option."""
    with socket.socket() as holder:
        holder.bind((server.HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]

        with (
            pytest.raises(server.PortTaken, match=rf"port {port} .* --port"),
            server.serving({}, tmp_path / "log", port=port, command=standin()),
        ):
            pass

    assert not (tmp_path / "log").exists()


def test_service_deaf_to_sigterm_is_killed_and_told(standin, tmp_path: Path) -> None:
    """A service that does not drain in time is killed, and that counts as a failure."""
    with (
        pytest.raises(server.ServerFailed, match="did not stop within"),
        server.serving(
            {}, tmp_path / "log", command=standin("--ignore-sigterm"), stop_s=0.5
        ) as running,
    ):
        pass

    assert not psutil.pid_exists(running.pid)


def test_service_that_died_on_its_own_is_told(standin, tmp_path: Path) -> None:
    """Watching a service ends when it dies, and that is a failure, not a clean stop."""

    def kill_and_watch() -> None:
        with server.serving({}, tmp_path / "log", command=standin()) as running:
            os.kill(running.pid, signal.SIGKILL)
            running.watch()

    with pytest.raises(server.ServerFailed, match="ended with status -9"):
        kill_and_watch()


def test_error_of_the_block_is_not_hidden_by_the_stop(standin, tmp_path: Path) -> None:
    """An error inside the block comes out as itself, and the service is stopped all the same."""
    with (
        pytest.raises(ZeroDivisionError),
        server.serving({}, tmp_path / "log", command=standin()) as running,
    ):
        raise ZeroDivisionError

    assert not psutil.pid_exists(running.pid)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_children_keep_to_the_cores_given(standin, tmp_path: Path) -> None:
    """The service runs on the cores asked for; the caller's own cores stay as they were."""
    ours = os.sched_getaffinity(0)
    core = min(ours)
    with server.serving(
        {}, tmp_path / "log", command=standin(), cores=frozenset({core})
    ) as running:
        theirs = os.sched_getaffinity(running.pid)

    assert theirs == {core}
    assert os.sched_getaffinity(0) == ours
