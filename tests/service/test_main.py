"""`python -m service` as a process: start, drain on SIGTERM, several workers, kill."""

import gc
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from model_store.store import Store
from service import kernels
from service.__main__ import _settle

pytestmark = pytest.mark.slow


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
    """One request on a connection of its own: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        data = reply.read()
        is_json = "json" in reply.headers.get("content-type", "")
        found = {key.lower(): value for key, value in reply.getheaders()}
        return reply.status, found, json.loads(data) if is_json else data.decode()
    finally:
        connection.close()


def rank(port: int) -> tuple[int, dict[str, str], Any]:
    """A ranking."""
    return ask(port, "POST", "/rank", {"candidates": ["i1", "i2"]})


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for another process."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ready(port: int) -> bool:
    """Whether /readyz says yes."""
    with suppress(OSError, http.client.HTTPException):
        return ask(port, "GET", "/readyz")[0] == 200
    return False


def environment(**settings: Any) -> dict[str, str]:
    """Ours, and settings."""
    given = {f"SLIMRANK_{name.upper()}": str(value) for name, value in settings.items()}
    return {**os.environ, **given}  # noqa: TID251  handed on to a child


@contextmanager
def running(log: Path, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process, ready; killed if the test leaves it alive."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"], env=environment(**settings), stdout=out, stderr=out
        )
    try:
        wait_for(lambda: ready(settings["port"]) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_the_way_out_fails_no_request(store: Store, tmp_path: Path, free_port: int) -> None:
    """After SIGTERM it is not ready, serves on with Connection: close, and ends by itself."""
    log = tmp_path / "log"
    with running(log, store=store.url, models="ctr", port=free_port, drain_delay_s=1) as process:
        first = rank(free_port)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not ready(free_port))
        during = rank(free_port)
        process.wait(30)

    assert (first[0], during[0], during[1]["connection"]) == (200, 200, "close")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request" and line["route"] == "/rank"]
    assert [(line["status"], line["version"], line["candidates"]) for line in requests] == [
        (200, "1", 2),
        (200, "1", 2),
    ]
    assert requests[0]["request_id"] == first[1]["x-request-id"]
    assert process.returncode in {0, -signal.SIGTERM}


def test_a_second_sigterm_ends_at_once(store: Store, tmp_path: Path, free_port: int) -> None:
    """Whoever insists does not wait for the delay."""
    log = tmp_path / "log"
    with running(log, store=store.url, port=free_port, drain_delay_s=600) as process:
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not ready(free_port))
        process.send_signal(signal.SIGTERM)

        process.wait(30)


def test_workers_follow_an_activation_share_metrics_and_are_replaced(
    store: Store, tmp_path: Path, free_port: int
) -> None:
    """Without Redis all reach the new version, no request fails; a killed one is restarted."""
    shared = tmp_path / "shared"
    settings = {"store": store.url, "port": free_port, "workers": 2, "store_poll_s": 0.1}
    settings["shared_dir"] = shared
    with running(tmp_path / "log", **settings):
        seen: list[tuple[int, str]] = []
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                status, headers, _ = rank(free_port)
                seen.append((status, headers.get("x-model-version", "")))

        asker = threading.Thread(target=keep_asking)
        asker.start()
        activated = ask(free_port, "POST", "/models/ctr/activate", {"version": "2"})
        wait_for(lambda: len(seen) > 40 and {version for _, version in seen[-30:]} == {"2"})
        stop.set()
        asker.join()
        count = len(seen)
        answered = f'slimrank_requests_total{{route="/rank",status="200"}} {count}.0'
        # What another worker answered last is told a moment later.
        wait_for(lambda: answered in ask(free_port, "GET", "/metrics")[2])
        metrics = ask(free_port, "GET", "/metrics")[2]
        workers = _children(tmp_path / "log")
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: len(_children(tmp_path / "log")) > 2)
        wait_for(lambda: ready(free_port))

    assert activated[0] == 200
    assert {status for status, _ in seen} == {200}
    assert 'slimrank_model_info{digest="' in metrics
    assert len([*shared.glob("*.ids")]) == kernels.COMPILED


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_share_what_is_imported(store: Store, tmp_path: Path, free_port: int) -> None:
    """Of what each has allocated, as much as it would hold alone, half is nobody's alone."""
    with running(tmp_path / "log", store=store.url, port=free_port, workers=2):
        wait_for(lambda: len(_children(tmp_path / "log")) == 2)
        for _ in range(50):
            assert rank(free_port)[0] == 200
        found = [_kib(worker) for worker in _children(tmp_path / "log")]

    for kib in found:
        assert kib["Private_Dirty"] < 0.7 * kib["Anonymous"]


def _kib(process: int) -> dict[str, int]:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def _children(log: Path) -> list[int]:
    text = log.read_text()
    return [int(part.split("]")[0]) for part in text.split("Started server process [")[1:]]


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"modles": "ctr"}, 2, "SLIMRANK_MODLES is not a setting; did you mean SLIMRANK_MODELS?"),
        ({"cache": "http://x"}, 2, "no cache for http://"),
        ({"cache": "http://x", "workers": 2}, 2, "no cache for http://"),
        ({"store": "nowhere://x"}, 2, "slimrank: nowhere://x: "),
        ({"store": "nowhere://x", "workers": 2}, 2, "slimrank: nowhere://x: "),
        ({"models": "nothing"}, 3, "no model can be served: nothing: "),
        ({"models": "nothing", "workers": 2}, 3, "no model can be served: nothing: "),
        ({"store": "nowhere", "workers": 2}, 3, "holds no bundle with the alias prod"),
    ],
)
def test_a_start_that_cannot_serve_ends_with_the_reason(
    store: Store, free_port: int, settings: dict[str, Any], code: int, said: str
) -> None:
    """No stack, no half service."""
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment(**{"store": store.url, "port": free_port, **settings}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_event_loop_need_not_wait_long_for_the_gil() -> None:
    """Once everything is loaded, a thread that holds it is asked for it ten times sooner."""
    before = sys.getswitchinterval()
    settled = threading.Thread(target=_settle, args=(None,))  # no signals: not the main thread
    try:
        settled.start()
        settled.join()

        assert sys.getswitchinterval() == pytest.approx(before / 10)
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
