"""From clicks to a ranked list, by the commands that a person types."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compress.config import load
from compress.curves import history_file, read_curves
from compress.pipeline import fine_tune, site_of, train_dense
from compress.plan import resolve
from compress.progress import Silent
from loadtest import server
from model_store.bundle import Bundle
from model_store.store import open_store

if TYPE_CHECKING:
    from tests.conftest import RedisServer

NAME = "synthetic"
CONFIG = Path("compress/configs/synthetic.toml")


@contextmanager
def serving(store: Path, log: Path, **settings: str) -> Iterator[server.Server]:
    """The service on a store, as an operator starts it."""
    with server.serving({"STORE": str(store), "DRAIN_DELAY_S": "0", **settings}, log) as running:
        yield running


def opened(store: Path, alias: str) -> Bundle:
    """The bundle that an alias names."""
    return open_store(str(store)).open(f"{NAME}@{alias}").bundle


def ask(running: server.Server, body: dict[str, Any]) -> dict[str, Any]:
    """The reply to POST /rank."""
    return server.post_json(f"{running.url}/rank", body)


def test_a_run_publishes_dense_and_slim_and_serves_slim(published: Path) -> None:
    """A run leaves two versions of one name; `prod` names the slim one, which costs less."""
    dense, slim, prod = (opened(published, alias) for alias in ("dense", "slim", "prod"))

    assert prod.digest == slim.digest != dense.digest
    assert slim.manifest.card.slim.flops < slim.manifest.card.dense.flops


def test_two_processes_train_what_one_trains(published: Path, tmp_path: Path) -> None:
    """The curves of two are those of one, as far as their digits go: log losses, UMEC's s and z.

    Found: 5e-5 apart at most, where s counts neurons.
    """
    plan = resolve(load(CONFIG, (f"runs={tmp_path}", "threads=1")))
    site = site_of(plan, Silent())
    dense, trained = train_dense(site, 1)
    slim = plan.method.compress(
        dense,
        site.dataset,
        config=plan.method_config,
        seed=1,
        train=plan.config.train,
        pricing=None,
        progress=Silent(),
        checkpoint=None,
    )
    _, tuned = fine_tune(site, 1, slim.ranker, dense)
    curves = history_file(opened(published, "slim").root)
    assert curves is not None
    both = read_curves(curves)

    for name, alone in (("train", trained), ("finetune", tuned)):
        looks = [look["logloss"] for look in both[name]]
        assert looks == pytest.approx([look.logloss for look in alone.history], abs=1e-4)
    for row, row_alone in zip(both["method"], slim.history, strict=True):
        assert row == pytest.approx(row_alone, abs=1e-3, rel=1e-3)


def test_the_service_reproduces_the_golden_scores(published: Path, tmp_path: Path) -> None:
    """Scores over HTTP are those that torch gave when the bundle was exported, highest first."""
    bundle = opened(published, "prod")

    with serving(published, tmp_path / "log") as running:
        replies = [ask(running, case.request) for case in bundle.golden()]

    for case, reply in zip(bundle.golden(), replies, strict=True):
        scores = [item["score"] for item in reply["items"]]
        assert reply["digest"] == bundle.digest
        assert scores == pytest.approx(sorted(case.scores, reverse=True), abs=1e-5)


def test_an_activation_changes_the_answers_and_a_rollback_restores_them(
    published: Path, tmp_path: Path
) -> None:
    """Activating the dense version serves it; rolling back serves the slim one again."""
    digests = {alias: opened(published, alias).digest for alias in ("dense", "slim")}
    version = open_store(str(published)).aliases(NAME)["dense"]
    body = {"candidates": ["1", "2", "3"]}

    with serving(published, tmp_path / "log", STORE_POLL_S="0.05") as running:
        served = [ask(running, body)["digest"]]
        server.post_json(f"{running.url}/models/{NAME}/activate", {"version": version})
        served.append(ask(running, body)["digest"])
        server.post_json(f"{running.url}/models/{NAME}/rollback", {})
        served.append(ask(running, body)["digest"])

    assert served == [digests["slim"], digests["dense"], digests["slim"]]


def test_redis_holds_the_tables_and_may_go_away(
    published: Path, tmp_path: Path, empty_redis: "RedisServer"
) -> None:
    """The item table lies in Redis under the digest; without Redis the answers are the same."""
    digest = opened(published, "prod").digest.removeprefix("sha256:")
    body = {"candidates": ["1", "2", "3"]}

    with serving(published, tmp_path / "log", CACHE=empty_redis.url) as running:
        with_redis = ask(running, body)["items"]
        with empty_redis.client() as client:
            keys = [key.decode() for key in client.scan_iter()]
        empty_redis.stop()
        without = ask(running, body)["items"]
        ready = server.get_json(f"{running.url}/readyz")
    empty_redis.start()

    assert any(digest in key for key in keys)
    assert without == with_redis
    assert ready


def test_commands_judge_what_was_published(published: Path) -> None:
    """`model_store verify` finds nothing wrong, and `show` prints the card's numbers as JSON."""
    command = [sys.executable, "-m", "model_store", "--store", str(published)]

    verified = subprocess.run([*command, "verify"], check=False, capture_output=True, text=True)
    shown = subprocess.run([*command, "show", f"{NAME}@slim"], check=True, capture_output=True)

    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert NAME in json.dumps(shown.stdout.decode())
