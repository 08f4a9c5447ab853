"""Bodies of varying size, load by a timetable, memory and whether it grew."""

import http.server
import json
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.peers import bodies as fixed
from benchmarks.peers.load import HOST, LoadFailed
from benchmarks.steady import bodies, driving
from benchmarks.steady.memory import growth, memory

POOL = fixed.Pool(
    people=[{"user": {"u": "a"}, "context": {"c": 1}}],
    ids=["i0", "i1", "i2"],
    features={"price": [0.5, 1, 2], "genre": ["x", "y", None]},
    catalogue=True,
)
PLACES = [2, 0, 3, 1] * 2  # 3 is unknown
THOUSANDS = np.arange(1, 401) * 1000.0


def _cut(form: str, start: int, count: int) -> object:
    return json.loads(bodies.FORMS[form](POOL, PLACES).cut(start, count))


def test_forms_hold_the_same_candidates_in_the_same_places() -> None:
    """Rows, columns and ids of a cut differ in shape alone, around the end of the row too."""
    ids, rows, columns = (_cut(form, 3, 3) for form in ("ids", "rows", "columns"))

    assert ids == ["i1", "i2", "i0"]
    assert [row["id"] for row in rows] == columns["ids"] == ids
    assert [row["features"]["price"] for row in rows] == columns["features"]["price"] == [1, 2, 0.5]


def test_unknown_candidates_fill_up_where_the_bundle_knows_too_few() -> None:
    """They have ids of their own, and features of some known one."""
    assert _cut("ids", 0, 4) == ["i2", "i0", "new-3", "i1"]
    assert _cut("rows", 2, 1) == [{"id": "new-3", "features": {"price": 0.5, "genre": "x"}}]


def test_sizes_cover_both_ends_and_no_body_comes_twice() -> None:
    """Of 1 to 3 candidates, each size is drawn, and a top_k where candidates are not brought."""
    head = b'{"model":"m",'
    form = bodies.FORMS["ids"](POOL, PLACES)
    mix = bodies.Mix([bodies.Source("/rank", [head], [form], 4)], (1, 3), seed=0)
    best = bodies.Mix([bodies.Source("/recommend", [head], [], 0)], (7, 7), seed=0)

    drawn = [json.loads(mix.draw().partition(b"\r\n\r\n")[2]) for _ in range(50)]

    assert {len(body["candidates"]) for body in drawn} == {1, 2, 3}
    assert best.draw().startswith(b"POST /recommend ")
    assert best.draw().endswith(b'\r\n\r\n{"model":"m","top_k":7}')


class _Answers(http.server.BaseHTTPRequestHandler):
    """Refuses an empty body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if body else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers."""
    with http.server.ThreadingHTTPServer((HOST, 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _request(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_times_of_a_timetable_count_from_when_requests_were_due(port: int) -> None:
    """Not from when they left: these were due before there was a connection."""
    lane = driving.Lane(1, lambda: _request(b"x"), iter([-9.0, -5.0]))
    (tally,) = driving.by_timetable(port, [lane], warmup_s=-10.0)

    assert tally.times.get_total_count() == 2
    assert tally.times.get_max_value() >= 8_990_000  # µs
    assert tally.times.get_min_value() >= 4_990_000
    assert tally.lag.get_max_value() < 4_990_000  # the wait for a connection is not its own


def test_timetable_of_poisson_has_its_rate_and_ends_in_time() -> None:
    """The same for a seed; in order."""
    dues = list(driving.dues(1000.0, 10.0, seed=3))

    assert dues == sorted(driving.dues(1000.0, 10.0, seed=3))
    assert not list(driving.dues(0.0, 10.0, seed=3))
    assert len(dues) == pytest.approx(10_000, rel=0.05)
    assert 9.9 < dues[-1] < 10.0


def test_closed_loop_asks_until_it_is_over_and_takes_what_is_under_way(port: int) -> None:
    """Two connections, told to stop at the third answer: four were asked."""
    told: list[float] = []

    driving.closed(port, 2, lambda: _request(b"x"), told.append, lambda: len(told) >= 3)

    assert len(told) == 4
    assert min(told) > 0


def test_refusal_ends_the_load(port: int) -> None:
    """It is no fast answer."""
    with pytest.raises(LoadFailed, match="500"):
        driving.by_timetable(port, [driving.Lane(1, lambda: _request(b""), iter([0.0]))])


def test_memory_of_this_process_holds_what_it_allocates() -> None:
    """256 MB of ones are in memory, private, allocated and nobody else's.

    So many that what else the process frees meanwhile is little of it.
    """
    before = memory(os.getpid())
    ones = np.ones(256_000_000, np.uint8)
    after = memory(os.getpid())

    for kind in ("rss", "pss", "private", "anonymous"):
        gained = getattr(after, kind) - getattr(before, kind)
        assert gained > 0.9 * len(ones), kind


def _noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.2, len(THOUSANDS))


def test_memory_that_only_jitters_is_flat() -> None:
    """Also where it grew before the second half."""
    found = growth(THOUSANDS, 90 + _noise() + 10 * (THOUSANDS > 100_000))

    assert found.word == "flat"
    assert found.tenth == pytest.approx(90, abs=0.2)
    assert found.half == pytest.approx(100, abs=0.2)
    assert found.low < found.second_half < found.high < 1.0


def test_memory_that_rises_by_more_than_a_hundredth_grew() -> None:
    """5 MB in the second half, told to within the noise."""
    found = growth(THOUSANDS, 90 + THOUSANDS / 40_000 + _noise())

    assert found.word == "grew"
    assert found.second_half == pytest.approx(5.0, abs=0.2)
    assert found.low > 4.5
    assert found.end - found.half == pytest.approx(5.0, abs=0.3)


def test_memory_whose_noise_hides_growth_is_unclear() -> None:
    """Flat is a claim of its own, not what is said when nothing can be told."""
    assert growth(THOUSANDS, 90 + 50 * _noise()).word == "unclear"


def test_too_few_samples_are_refused() -> None:
    """Rather than judged by an interval of no worth."""
    with pytest.raises(ValueError, match="expected 40 or more"):
        growth(THOUSANDS[:60], THOUSANDS[:60])
