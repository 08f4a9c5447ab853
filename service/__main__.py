"""``python -m service``: settings, logging, uvicorn; and the way out on SIGTERM.

With several workers, all is imported once, in the process that watches over them, and they are
forked from it. Metrics are told by a variable, read when they are imported, that they are shared:
so what ranks is imported inside functions here, after that.
"""

import asyncio
import gc
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess, multiprocess

from model_store.errors import StoreError
from model_store.store import open_store
from service import log
from service.caches import CacheOptions, UnknownCache, open_cache
from service.settings import Settings, SettingsInvalid, load_settings, share_metrics

if TYPE_CHECKING:
    from service.app import Service
    from service.deps import Parts

BAD_SETTINGS: Final = 2
FORKS: Final = sys.platform == "linux"  # elsewhere, libraries of the system forbid it
SWITCH_S: Final = 0.0005  # how long the event loop waits for the GIL that a thread holds; not 5 ms


def application() -> "Service":
    """The application of one worker process."""
    from service.app import create_app  # noqa: PLC0415  see above

    settings = load_settings()
    log.configure(settings.log_level, settings.log_format)
    return create_app(settings, started=_settle)


def _settle(parts: "Parts") -> None:
    """What a process does once everything is loaded."""
    if threading.current_thread() is threading.main_thread():
        _drain_on_sigterm(parts)
    sys.setswitchinterval(SWITCH_S)
    # What lives now lives on: without this, each full collection walks it all, for 20 ms.
    gc.collect()
    gc.freeze()


def _drain_on_sigterm(parts: "Parts") -> None:
    """Before uvicorn's own handler: say not ready, and go on serving for a while."""
    loop = asyncio.get_running_loop()
    stop = signal.getsignal(signal.SIGTERM)

    def leave(number: int, frame: FrameType | None) -> None:
        if parts.drain.leaving and callable(stop):  # the second time: at once
            stop(number, frame)
        parts.drain.leaving = True
        loop.call_soon_threadsafe(loop.call_later, parts.settings.drain_delay_s, close, number)

    def close(number: int) -> None:
        parts.drain.closed = True
        if callable(stop):
            stop(number, None)

    signal.signal(signal.SIGTERM, leave)


def main() -> int:
    """Serve until told to stop."""
    try:
        settings = load_settings()
        with ExitStack() as stack:
            if settings.workers > 1:
                _check(settings)
                share_metrics(_metrics_folder(settings, stack))
                _import()
            return serve(settings)
    except (SettingsInvalid, UnknownCache, StoreError) as error:
        print(f"slimrank: {error}", file=sys.stderr)
        return BAD_SETTINGS


def _check(settings: Settings) -> None:
    """Refuse what workers would die of, and be started again, for ever.

    Raises:
        UnknownCache, StoreError: as `create_app`.
    """
    open_store(settings.store)
    options = CacheOptions(settings.cache_timeout_s, settings.cache_ttl_s, settings.cache_poll_s)
    open_cache(settings.cache, options)


def _import() -> None:
    """Import all that workers need; they share it as long as nobody writes there."""
    import service.app  # noqa: F401, PLC0415  see above

    gc.collect()
    gc.freeze()  # a collection in a worker would write to each object, and so copy it


class Worker(ForkProcess):
    """A worker that is forked, where uvicorn would start it anew.

    It shares with its parent, and the other workers, what was imported: 65 MB each otherwise.
    """

    def start(self) -> None:
        """Fork. Signals wait meanwhile: they would reach the parent's handlers in the child."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, multiprocess.SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Serve, as a process does that handles no signals yet."""
        for number in multiprocess.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, multiprocess.SIGNALS)
        with suppress(KeyboardInterrupt):
            super().run()


def _fork(
    config: uvicorn.Config,  # noqa: ARG001  as uvicorn calls it
    target: Callable[..., Any],
    sockets: Sequence[socket.socket],
) -> Worker:
    return Worker(target=target, kwargs={"sockets": sockets})


def _metrics_folder(settings: Settings, stack: ExitStack) -> Path:
    if settings.metrics_dir is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slimrank-metrics-")))
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)
    settings.metrics_dir.mkdir(parents=True)
    return settings.metrics_dir


def serve(settings: Settings) -> int:
    """Run uvicorn; with several workers each makes its own application.

    Returns:
        The exit code.
    """
    log.configure(settings.log_level, settings.log_format)
    config = uvicorn.Config(
        "service.__main__:application",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.trusted_proxies is not None,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    # Not `uvicorn.run`: with several workers it says 0 however they ended.
    if settings.workers == 1:
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):
            server.run()
        return 0 if server.started else STARTUP_FAILURE
    if FORKS:
        # uvicorn offers no choice.
        multiprocess.get_subprocess = _fork  # type: ignore[attr-defined, assignment]
    workers = Multiprocess(config, [config.bind_socket()])
    workers.run()
    failed = any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes)
    return STARTUP_FAILURE if failed else 0


if __name__ == "__main__":
    sys.exit(main())
