"""The load generator, on answers made by hand and on a server in a thread."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from benchmarks.peers import bench, load
from benchmarks.peers.servers import SLIMRANK


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the body that came; 500 to an empty one."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if body else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers with what it is sent."""
    with http.server.ThreadingHTTPServer((load.HOST, 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_head_is_none_until_its_empty_line_has_come() -> None:
    """Half a head tells nothing; a whole one tells where the body begins and how long it is."""
    whole = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 2\r\n\r\n{}"

    assert load.read_head(whole[:30]) is None
    assert load.read_head(whole) == load.Head(b"HTTP/1.1 200 OK", len(whole) - 2, 2)


def test_answer_is_whole_with_its_last_byte() -> None:
    """One byte short of its length it is not."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    head = load.read_head(whole)

    assert head is not None
    assert not load.is_whole(head, whole[:-1])
    assert load.is_whole(head, whole)
    assert load.body_of(head, whole) == b"{}"


def test_chunks_are_put_together() -> None:
    """An answer without a length ends with an empty chunk; its body is that of the others."""
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n"
    head = load.read_head(whole)

    assert head is not None
    assert not load.is_whole(head, whole[:-5])
    assert load.is_whole(head, whole)
    assert load.body_of(head, whole) == b"[1,2]"


def test_every_connection_is_measured_once_in_a_window_of_no_length(port: int) -> None:
    """A window always takes what is under way: one answer a connection, none twice."""
    clocks = iter([load.Clocks(1.0, 10.0), load.Clocks(3.0, 10.0)])
    requests = [load.request("/rank", b"a"), load.request("/rank", b"bb")]

    measured = load.measure(port, requests, 3, warmup_s=0, seconds=0, clocks=lambda: next(clocks))

    assert len(measured.latencies_ns) == 3
    assert measured.latencies_ns.min() > 0
    assert measured.server_s == 2.0


def test_another_status_than_200_fails_the_load(port: int) -> None:
    """A refusal is no fast answer: the window is void, and the error tells the status."""
    with pytest.raises(load.LoadFailed, match="500"):
        load.measure(
            port,
            [load.request("/rank", b"")],
            1,
            warmup_s=0,
            seconds=0,
            clocks=lambda: load.Clocks(0.0, 0.0),
        )


def test_asking_returns_status_and_body(port: int) -> None:
    """Whatever the status."""
    assert load.ask(port, "/rank", b"{}") == (b"HTTP/1.1 200 OK", b"{}")
    assert load.ask(port, "/rank", b"")[0].startswith(b"HTTP/1.1 500")


def test_server_that_refuses_a_right_body_is_told_with_its_status(port: int) -> None:
    """And not called one that ranks otherwise, infinitely far from what was expected."""
    case = bench.Case("slim rows", [b""], like="slim rows")

    with pytest.raises(load.LoadFailed, match="500"):
        bench.check(port, SLIMRANK, case, {"slim rows": [b"{}"]})
