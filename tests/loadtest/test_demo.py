"""The demo, against the stand-in."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from loadtest import demo, server

Demo = Callable[..., int]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run's config, as far as the demo reads it."""
    path = tmp_path / "films.toml"
    path.write_text('name = "ctr"\n[data]\ntype = "synthetic"\n')
    sessions = '[data]\ntype = "synthetic-sessions"\n'
    path.with_name("sessions.toml").write_text(f'name = "session"\n{sessions}')
    return path


@pytest.fixture
def run(config: Path, store: Path, standin, monkeypatch: pytest.MonkeyPatch) -> Demo:
    """Run the demo with a job that publishes nothing new, once."""
    monkeypatch.chdir(config.parent)

    def call(*options: str, job: str = "", misbehaviour: tuple[str, ...] = ()) -> int:
        flags = ["--config", str(config), "--store", str(store), "--once"]
        flags += ["--session-config", str(config.with_name("sessions.toml"))]
        port = [] if "--port" in options else ["--port", str(server.free_port())]
        return demo.main(
            [*flags, *port, "--candidates", "30", *options],
            service=standin(*misbehaviour),
            compressor=[sys.executable, "-c", job],
        )

    return call


def test_demo_answers_and_stops(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """--once goes through every step, shows ten ranked films, and leaves nothing running."""
    status = run()

    out = capsys.readouterr().out
    assert status == 0
    for said in (
        "1 get the data",
        "2 train the session ranker",
        "3 serve ctr@slim,session@coded",
        "4 POST /rank: 30 films",
        "0.3333",
        "5 POST /recommend: after 3 films",
    ):
        assert said in out
    assert not [child for child in psutil.Process().children() if child.status() == "running"]


def test_price_of_slimming_is_told_either_way(
    run: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table holds means over the seeds, and says where slim is worse as well as better."""
    run()

    table = [re.sub(r"[│┃]|\s+", " ", line) for line in capsys.readouterr().out.splitlines()]
    lines = [re.sub(r" +", " ", line).strip() for line in table]
    assert "AUC 0.7900 0.7850 -0.0050 (worse)" in lines
    assert "log loss 0.5500 0.5400 -0.0100 (better)" in lines
    assert "FLOPs per candidate 9,000 3,000 3.00x less" in lines
    assert "bytes of embedding tables 3,000 1,000 3.00x less" in lines
    assert "bytes of the whole bundle 4,000 2,000 2.00x less" in lines
    assert "scoring, µs per request 400.0 500.0 1.25x more (worse)" in lines


def test_price_of_codes_is_told(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """The session ranker's table tells what the codes cost and gained."""
    run()

    table = [re.sub(r"[│┃]|\s+", " ", line) for line in capsys.readouterr().out.splitlines()]
    lines = [re.sub(r" +", " ", line).strip() for line in table]
    assert "MRR@20 0.2500 0.2400 -0.0100 (worse)" in lines
    assert "NDCG@10 0.3000 0.3100 +0.0100 (better)" in lines
    assert "bytes of item table 9,000 100 90.00x less" in lines


def test_unknown_cost_is_left_out() -> None:
    """A card without a timing has no timing line, and nothing to divide by gives no ratio."""
    resources = {"flops": 0, "bytes": {}, "us_per_request": None}

    lines = demo.price_lines({"results": [], "dense": resources, "slim": resources})

    assert [(line.name, line.verdict) for line in lines] == [
        ("FLOPs per candidate", "no ratio"),
        ("bytes of the whole bundle", "no ratio"),
    ]


def test_titles_and_years_come_from_the_downloads_cache(tmp_path: Path) -> None:
    """A title's last brackets are its year; without a cache films have no titles."""
    section = {"type": "ml-100k", "cache": str(tmp_path)}
    none = demo.read_films(section)
    titles = {"1": "Toy Story (1995)", "2": "unknown", "3": "Brother (Bror) (1962)"}
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k/titles.json").write_text(json.dumps(titles))

    assert none == {}
    assert demo.read_films(section) == {
        "1": demo.Film("Toy Story", "1995"),
        "2": demo.Film("unknown", ""),
        "3": demo.Film("Brother (Bror)", "1962"),
    }


def test_curl_line_is_a_whole_command() -> None:
    """The printed line is one shell command with a JSON body and its content type."""
    line = demo.curl(
        "http://127.0.0.1:8000", "rank", {"user": {"job": "it's"}, "candidates": list("abcdef")}
    )

    words = shlex.split(line)
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/rank"]
    assert "Content-Type: application/json" in words
    assert words[-1] == (
        '{"user": {"job": "it\'s"}, "candidates": ["a", "b", "c", "d", "e"], "top_k": 3}'
    )


def test_taken_port_is_told_before_anything_is_trained(
    run: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the port in use the demo stops at once, and names the option that helps."""
    with socket.socket() as holder:
        holder.bind((server.HOST, 0))
        holder.listen()
        status = run("--port", str(holder.getsockname()[1]), job="open('trained', 'w').close()")

    assert status == 1
    assert "--port" in capsys.readouterr().err
    assert not (tmp_path / "trained").exists()


def test_failed_job_ends_the_demo(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """When the compression job fails, nothing is served and the status of the job is told."""
    status = run(job="raise SystemExit(3)")

    assert status == 1
    assert "step 1 failed (status 3)" in capsys.readouterr().err


def test_reuse_trains_nothing(run: Demo) -> None:
    """--reuse serves what the store holds, without running the job."""
    assert run("--reuse", job="raise SystemExit(3)") == 0


def test_service_that_does_not_start_is_told(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of the service's log reaches the person at the terminal."""
    status = run(misbehaviour=("--exit-at-start",))

    assert status == 1
    assert "no such store" in capsys.readouterr().err


def test_missing_config_says_where_to_run(run: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """Started from another folder, the demo says from where it works."""
    status = run("--config", "nowhere.toml")

    assert status == 1
    assert "root of the repository" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_demo_serves_until_told_to_stop(
    number: signal.Signals, status: int, config: Path, store: Path, standin
) -> None:
    """Without --once it goes on serving; Ctrl-C, SIGTERM and a closed terminal end it in order.

    Its service is gone then, too.
    """
    port = server.free_port()
    sessions = str(config.with_name("sessions.toml"))
    flags = ["--config", str(config), "--session-config", sessions, "--reuse"]
    flags += ["--store", str(store), "--port", str(port)]
    script = (
        "import signal, sys; from loadtest import demo, server; "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # even where tests run under nohup
        "server.unwind_when_told_to_end(); "
        f"sys.exit(demo.main({flags!r}, service={standin()!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=config.parent,
        env=server.environment({}) | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        assert process.stdout is not None
        while "serving until Ctrl-C" not in process.stdout.readline():
            assert process.poll() is None
        server.get_json(f"http://{server.HOST}:{port}/readyz")
        process.send_signal(number)
        process.communicate(timeout=30)

    assert process.returncode == status
    server.check_port(port)
