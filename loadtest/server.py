"""The service as a subprocess: started with given settings, waited for, and stopped by its pid."""

import collections
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HOST: Final = "127.0.0.1"
PREFIX: Final = "SLIMRANK_"
SERVICE: Final = (sys.executable, "-m", "service")
POLL_S: Final = 0.05
WATCH_S: Final = 0.2
PROBE_S: Final = 5.0
ANSWER_S: Final = 30.0
# uvicorn drains on SIGTERM and then lets the signal end it.
CLEAN: Final = frozenset({0, -signal.SIGTERM, 128 + signal.SIGTERM})


class ServerFailed(Exception):
    """The service did not start, or did not stop; the message carries the end of its log."""


class PortTaken(ServerFailed):
    """Somebody listens on that port already."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running service; /readyz answered with 200."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def watch(self) -> None:
        """Return when the service ends by itself; Ctrl-C gets through meanwhile."""
        while self.process.poll() is None:
            time.sleep(WATCH_S)


def unwind_when_told_to_end() -> None:
    """Let SIGTERM, and a terminal that closes, end this process as Ctrl-C does.

    So no service outlives it, which has a session of its own. Under nohup it stays deaf to SIGHUP.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The parent's environment, with ``settings`` as its only SLIMRANK_* variables.

    A variable left over in the caller's shell would otherwise change what is measured.
    """
    parent = os.environ  # noqa: TID251 - handed on to a child process, never read as a setting
    kept = {name: value for name, value in parent.items() if not name.startswith(PREFIX)}
    return kept | {f"{PREFIX}{name}": value for name, value in settings.items()}


def get_json(url: str) -> dict[str, Any]:
    """The answer to a GET that must be 200.

    Raises:
        ServerFailed: it was not.
    """
    return _ask(urllib.request.Request(url))  # noqa: S310 - our own service


def post_json(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a POST that must be 200.

    Raises:
        ServerFailed: it was not; the message holds the problem as the service tells it.
    """
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return _ask(urllib.request.Request(url, data, headers))  # noqa: S310 - our own service


def _ask(request: urllib.request.Request) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:  # noqa: S310
            answer: dict[str, Any] = json.load(reply)
            return answer
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(2000).decode(errors="replace")
        raise ServerFailed(f"{request.full_url}: {error.code} {said}") from None
    except OSError as error:
        raise ServerFailed(f"{request.full_url}: {error}") from None


def free_port(host: str = HOST) -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(port: int, host: str = HOST) -> None:
    """Refuse a port that is in use, before minutes of work are spent on what would be served.

    Raises:
        PortTaken: with a way out.
    """
    with socket.socket() as probe:
        # As uvicorn: a port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"port {port} of {host} cannot be used ({error.strerror}): "
                "stop what listens there or choose another with --port"
            ) from error


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    if not log.exists():
        return "(no log)"
    with log.open(encoding="utf-8", errors="replace") as file:
        return "".join(collections.deque(file, maxlen=lines)).rstrip() or "(the log is empty)"


@contextlib.contextmanager
def serving(
    settings: Mapping[str, str],
    log: Path,
    *,
    port: int | None = None,
    command: Sequence[str] = SERVICE,
    cores: frozenset[int] | None = None,
    start_s: float = 60.0,
    stop_s: float = 20.0,
) -> Iterator[Server]:
    """The service, ready inside the block and gone after it.

    Args:
        settings: SLIMRANK_* variables without the prefix; host and port are added.
        log: where its output goes.
        port: a free one if not given.
        command: what to run; the service unless a test says otherwise.
        cores: the cores it may use, where the system lets one choose.
        start_s: how long /readyz may take to say 200.
        stop_s: how long it may drain after SIGTERM before it is killed.

    Raises:
        PortTaken: the port is in use.
        ServerFailed: it ended or was not ready in time, or it had to be killed at the end.
    """
    port = free_port() if port is None else port
    check_port(port)
    settings = {**settings, "HOST": HOST, "PORT": str(port)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output, pinned(cores):
        process = subprocess.Popen(
            command,
            env=environment(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Ctrl-C in the terminal must reach us only: we stop it, by SIGTERM and in order.
            start_new_session=True,
        )
    try:
        _await_ready(process, port, log, start_s)
        yield Server(f"http://{HOST}:{port}", log, process)
    except BaseException:
        # Why the block failed matters more than how the stop went.
        with contextlib.suppress(ServerFailed):
            _stop(process, log, stop_s)
        raise
    _stop(process, log, stop_s)


@contextlib.contextmanager
def pinned(cores: frozenset[int] | None) -> Iterator[None]:
    """Children started inside the block run on ``cores`` only, all their threads included.

    Affinity is inherited when a process starts; setting it afterwards would miss its threads.
    """
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    answer = "no connection"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(
                f"the service ended with status {process.returncode} before it was ready; "
                f"the end of {log}:\n{tail(log)}"
            )
        try:
            status, answer = _probe(port)
        except (OSError, http.client.HTTPException) as error:
            answer = str(error) or type(error).__name__
        else:
            if status == http.client.OK:
                return
        time.sleep(POLL_S)
    raise ServerFailed(
        f"the service was not ready after {timeout_s:g} s (/readyz: {answer}); "
        f"the end of {log}:\n{tail(log)}"
    )


def _probe(port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status, f"{response.status} {response.read(500).decode(errors='replace')}"
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    process.terminate()  # a no-op where the service has ended already
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        # Its session is its own, so the group holds the service and its workers, nothing else.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise ServerFailed(
            f"the service did not stop within {timeout_s:g} s of SIGTERM and was killed; "
            f"the end of {log}:\n{tail(log)}"
        ) from None
    if status not in CLEAN:
        raise ServerFailed(
            f"the service ended with status {status}; the end of {log}:\n{tail(log)}"
        )
