"""The load generator: a closed loop over keep-alive connections, in one thread and raw sockets.

Each connection sends its next request as soon as the answer to the last one is whole. What it costs
itself (some 50 µs a request) is measured, because a generator at its limit measures itself.
"""

import itertools
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

HOST: Final = "127.0.0.1"
PATIENCE_S: Final = 30.0
PIECE: Final = 1 << 18
OK: Final = b" 200 "


class LoadFailed(Exception):
    """A request was not answered with 200; the message says what came instead."""


class Clocks(NamedTuple):
    """CPU seconds so far: of the server's processes, and of all on the machine."""

    server_s: float
    machine_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What one window saw.

    Attributes:
        latencies_ns: (requests,), unrounded.
        seconds: the length of the window, the last answers included.
        server_s: CPU seconds that the server's processes took in it.
        generator_s: CPU seconds that the generator took in it.
        foreign_s: CPU seconds that everybody else took in it.
    """

    latencies_ns: NDArray[np.int64]
    seconds: float
    server_s: float
    generator_s: float
    foreign_s: float


def request(path: str, body: bytes) -> bytes:
    """A POST, ready to send."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer.

    Attributes:
        body: where the body begins.
        length: of the body in bytes; None: it comes in chunks.
    """

    line: bytes
    body: int
    length: int | None


def read_head(data: bytes | bytearray) -> Head | None:
    """The head of an answer, None while it is not whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    line, *fields = bytes(data[:end]).split(b"\r\n")
    named = {name.strip().lower(): value.strip() for name, _, value in map(_parted, fields)}
    length = named.get(b"content-length")
    return Head(line, end + 4, None if length is None else int(length))


def _parted(field: bytes) -> tuple[bytes, bytes, bytes]:
    return field.partition(b":")


def is_whole(head: Head, data: bytes | bytearray) -> bool:
    """Whether the answer has all come."""
    if head.length is None:
        return data.endswith(b"0\r\n\r\n")
    return len(data) >= head.body + head.length


def body_of(head: Head, data: bytes | bytearray) -> bytes:
    """The body of a whole answer."""
    rest = bytes(data[head.body :])
    return rest if head.length is not None else b"".join(_chunks(rest))


def _chunks(rest: bytes) -> Iterator[bytes]:
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


class Connection:
    """One keep-alive connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = bytearray()
        self._head: Head | None = None
        self._sent_ns = 0

    def send(self, whole: bytes) -> None:
        """Send a request; blocks until the system has taken it."""
        self._data.clear()
        self._head = None
        self._sent_ns = time.perf_counter_ns()
        self.socket.sendall(whole)

    def receive(self) -> int | None:
        """Take what has come: the request's nanoseconds once its answer is whole, else None.

        Raises:
            LoadFailed: it is no 200, or the connection was closed.
        """
        piece = self.socket.recv(PIECE)
        if not piece:
            raise LoadFailed(f"the connection was closed after {bytes(self._data[:200])!r}")
        self._data += piece
        if self._head is None:
            self._head = read_head(self._data)
        if self._head is None or not is_whole(self._head, self._data):
            return None
        taken = time.perf_counter_ns() - self._sent_ns
        if OK not in self._head.line:
            said = body_of(self._head, self._data)[:300].decode(errors="replace")
            raise LoadFailed(f"{self._head.line.decode(errors='replace')}: {said}")
        return taken

    def ask(self, whole: bytes) -> tuple[bytes, bytes]:
        """One request with its answer: the status line and the body."""
        self.send(whole)
        while self._head is None or not is_whole(self._head, self._data):
            piece = self.socket.recv(PIECE)
            if not piece:
                raise LoadFailed("the connection was closed")
            self._data += piece
            self._head = read_head(self._data)
        return self._head.line, body_of(self._head, self._data)


def ask(port: int, path: str, body: bytes) -> tuple[bytes, bytes]:
    """One request over a connection of its own: the status line and the body of the answer.

    Raises:
        LoadFailed, OSError: there was no answer.
    """
    connection = Connection(port)
    try:
        return connection.ask(request(path, body))
    finally:
        connection.socket.close()


def measure(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    *,
    warmup_s: float,
    seconds: float,
    clocks: Callable[[], Clocks],
) -> Measured:
    """Keep ``connections`` busy, first to warm up, then to measure.

    Args:
        port: of the server.
        requests: ready to send, sent in rotation.
        connections: each waits for its answer before it asks again.
        warmup_s: seconds that are not measured.
        seconds: seconds that are.
        clocks: read before and after.

    Raises:
        LoadFailed, OSError: a request was not answered with 200.
    """
    opened = [Connection(port) for _ in range(connections)]
    try:
        rotation = itertools.cycle(requests)
        _drive(opened, rotation, warmup_s)
        before, own = clocks(), time.process_time()
        latencies, taken = _drive(opened, rotation, seconds)
        own, after = time.process_time() - own, clocks()
        server = after.server_s - before.server_s
        foreign = max(0.0, after.machine_s - before.machine_s - server - own)
        return Measured(latencies, taken, server, own, foreign)
    finally:
        for connection in opened:
            connection.socket.close()


def _drive(
    opened: Sequence[Connection], rotation: Iterator[bytes], seconds: float
) -> tuple[NDArray[np.int64], float]:
    """Ask for ``seconds``, then wait for what is under way: latencies, and seconds in all."""
    latencies: list[int] = []
    begun = time.perf_counter()
    deadline = begun + seconds
    with selectors.DefaultSelector() as selector:
        for connection in opened:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(next(rotation))
        under_way = len(opened)
        while under_way:
            ready = selector.select(PATIENCE_S)
            if not ready:
                raise LoadFailed(f"no answer in {PATIENCE_S:g} s")
            for key, _ in ready:
                taken = key.data.receive()
                if taken is None:
                    continue
                latencies.append(taken)
                if time.perf_counter() < deadline:
                    key.data.send(next(rotation))
                else:
                    under_way -= 1
    return np.array(latencies, dtype=np.int64), time.perf_counter() - begun
