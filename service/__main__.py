"""``python -m service``: settings, logging, uvicorn; and the way out on SIGTERM."""

import asyncio
import gc
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from model_store.errors import StoreError
from service import log
from service.app import Service, create_app
from service.caches import UnknownCache
from service.deps import Parts
from service.settings import Settings, SettingsInvalid, load_settings, share_metrics

BAD_SETTINGS: Final = 2


def application() -> Service:
    """The application of one worker process."""
    settings = load_settings()
    log.configure(settings.log_level, settings.log_format)
    return create_app(settings, started=_settle)


def _settle(parts: Parts) -> None:
    """What a process does once everything is loaded."""
    if threading.current_thread() is threading.main_thread():
        _drain_on_sigterm(parts)
    # What lives now lives on: without this, each full collection walks it all, for 20 ms.
    gc.collect()
    gc.freeze()


def _drain_on_sigterm(parts: Parts) -> None:
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
                # What it refuses here, workers would die of, and be started again, for ever.
                create_app(settings)
                share_metrics(_metrics_folder(settings, stack))
            return serve(settings)
    except (SettingsInvalid, UnknownCache, StoreError) as error:
        print(f"slimrank: {error}", file=sys.stderr)
        return BAD_SETTINGS


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
    workers = Multiprocess(config, [config.bind_socket()])
    workers.run()
    failed = any(worker.exitcode == STARTUP_FAILURE for worker in workers.processes)
    return STARTUP_FAILURE if failed else 0


if __name__ == "__main__":
    sys.exit(main())
