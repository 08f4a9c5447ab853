"""A caller on one kept connection, cheap enough to load a fast service from one core.

Locust's FastHttpUser spends about four times the CPU on a request. What is left out is what a
ranking never needs: redirects, cookies, chunks, compression, TLS.
"""

import socket
from dataclasses import dataclass
from typing import Final

CHUNK_BYTES: Final = 1 << 16
HEAD_END: Final = b"\r\n\r\n"
MOST_HEAD_BYTES: Final = 1 << 16
LENGTH: Final = b"content-length:"
CLOSING: Final = b"connection: close"


class NoAnswer(Exception):
    """The request was not answered with a whole HTTP response; the message says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response."""

    status: int
    body: bytes


def message(host: str, path: str, body: bytes) -> bytes:
    """A POST of JSON as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """One HTTP/1.1 connection, opened when it is first needed and again after it broke."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> Reply:
        """Send what ``message`` made and wait for the whole answer.

        Raises:
            NoAnswer: refused, broken, timed out, or no response of a known length.
        """
        try:
            stream = self._open()
            stream.sendall(request)
            return self._receive(stream)
        except OSError as error:
            self.close()
            raise NoAnswer(f"no answer: {type(error).__name__}") from None
        except NoAnswer:
            self.close()
            raise

    def close(self) -> None:
        """Close it, if it is open."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, self._timeout_s)
            # A small request must not wait for the answer to the last one's packet.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def _receive(self, stream: socket.socket) -> Reply:
        data = _more(stream)
        while (end := data.find(HEAD_END)) < 0:
            if len(data) > MOST_HEAD_BYTES:
                raise NoAnswer("no answer: what came is not HTTP")
            data += _more(stream)
        head = data[:end].lower()
        whole = end + len(HEAD_END) + _length(head)
        while len(data) < whole:
            data += _more(stream)
        if CLOSING in head:
            self.close()
        return Reply(_status(head), data[end + len(HEAD_END) : whole])


def _more(stream: socket.socket) -> bytes:
    data = stream.recv(CHUNK_BYTES)
    if not data:
        raise NoAnswer("no answer: the connection was closed")
    return data


def _status(head: bytes) -> int:
    protocol, status, *_ = [*head.partition(b"\r\n")[0].split(), b"", b""]
    if not protocol.startswith(b"http/") or not status.isdigit():
        raise NoAnswer("no answer: what came is not HTTP")
    return int(status)


def _length(head: bytes) -> int:
    value = head.partition(LENGTH)[2].partition(b"\r\n")[0].strip()
    if not value.isdigit():
        raise NoAnswer("no answer: a response without a length")
    return int(value)
