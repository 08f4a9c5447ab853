"""The load generator's HTTP client, against sockets that answer what they are told."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from loadtest import client

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
WAIT_S = 5.0
Serve = Callable[..., client.Connection]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A connection to a listener that answers each request with the next parts, or hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(WAIT_S)
    threads = []
    connections = []

    def talk(sessions: tuple[list[list[bytes]], ...]) -> None:
        for answers in sessions:
            try:
                stream, _ = listener.accept()
            except TimeoutError:  # nobody came: the test that waited for an answer says so
                return
            with stream:
                stream.settimeout(WAIT_S)
                for parts in answers:
                    stream.recv(1 << 16)
                    for part in parts:
                        stream.sendall(part)

    def start(*sessions: list[list[bytes]]) -> client.Connection:
        threads.append(threading.Thread(target=talk, args=(sessions,)))
        threads[-1].start()
        connections.append(client.Connection(*listener.getsockname(), timeout_s=WAIT_S))
        return connections[-1]

    yield start
    for connection in connections:
        connection.close()
    for thread in threads:
        thread.join()
    listener.close()


def test_message_is_an_http_request() -> None:
    """Method, host and length are there, and the body follows untouched."""
    sent = client.message("h:1", "/rank", b'{"a":1}')

    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[:2] == [b"POST /rank HTTP/1.1", b"Host: h:1"]
    assert b"Content-Length: 7" in head
    assert body == b'{"a":1}'


def test_connection_is_kept(serve: Serve) -> None:
    """Two requests go over one connection."""
    connection = serve([[ANSWER], [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"]])

    assert connection.ask(b"one") == client.Reply(200, b"{}")
    assert connection.ask(b"two") == client.Reply(503, b"")


def test_answer_may_come_in_pieces(serve: Serve) -> None:
    """Head and body may be cut anywhere."""
    connection = serve([[ANSWER[:9], ANSWER[9:35], ANSWER[35:-1], ANSWER[-1:]]])

    assert connection.ask(b"x") == client.Reply(200, b"{}")


def test_connection_that_the_service_closes_is_opened_again(serve: Serve) -> None:
    """After `Connection: close` the next request has a new connection."""
    closing = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    connection = serve([[closing]], [[ANSWER]])

    assert [connection.ask(b"x").status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "the connection was closed"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"], "the connection was closed"),
        ([b"HTTP/1.1 200 OK\r\n\r\n{}"], "without a length"),
        ([b"hello 1\r\nContent-Length: 0\r\n\r\n"], "not HTTP"),
        ([b"\r\n\r\nContent-Length: 0\r\n\r\n"], "without a length"),
    ],
)
def test_half_an_answer_is_none(serve: Serve, parts: list[bytes], why: str) -> None:
    """What breaks off, tells no length or is not HTTP is no answer, and says why."""
    connection = serve([parts])

    with pytest.raises(client.NoAnswer, match=why):
        connection.ask(b"x")


def test_refused_connection_is_no_answer() -> None:
    """Where nobody listens, the message names the refusal."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

    with pytest.raises(client.NoAnswer, match="ConnectionRefused"):
        client.Connection(*address, timeout_s=1.0).ask(b"x")
