"""The service from the environment that its image has. Only `make serve-only` runs this."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import server
from model_store.store import open_store

TRAINING = ("torch", "onnx", "onnxscript", "polars", "pyarrow", "sklearn")


def test_the_training_stack_is_not_installed() -> None:
    """What only training needs is not installed here."""
    assert [name for name in TRAINING if importlib.util.find_spec(name)] == []


def test_the_application_imports() -> None:
    """Extra `serve` brings all that the application imports."""
    code = "import service.app, service.__main__"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("alias", ["dense", "slim"])
def test_a_published_bundle_is_served(
    alias: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A bundle that training published elsewhere answers /rank with its golden scores."""
    store = request.config.getoption("--published-store").resolve()
    name = open_store(str(store)).list()[0].name
    bundle = open_store(str(store)).open(f"{name}@{alias}").bundle
    settings = {"STORE": str(store), "MODELS": f"{name}@{alias}"}

    with server.serving(settings, tmp_path / "service.log") as running:
        replies = [
            (
                case.scores,
                server.post_json(f"{running.url}/rank", {**case.request, "shape": "columns"}),
            )
            for case in bundle.golden()
        ]

    assert replies
    for golden, reply in replies:
        assert reply["digest"] == bundle.digest
        assert reply["scores"] == pytest.approx(sorted(golden, reverse=True), abs=1e-5)
