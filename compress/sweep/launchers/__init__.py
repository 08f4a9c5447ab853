"""The registry of launchers: what runs a sweep's cells."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from compress.config import CompressError, ConfigError, nearest
from compress.sweep.launchers.base import Launcher
from compress.sweep.launchers.local import Local


class LauncherMissing(CompressError):
    """A launcher's library is not installed."""


def _ray() -> Launcher:
    try:
        from compress.sweep.launchers.ray import RayTune  # noqa: PLC0415 - an extra of its own
    except ModuleNotFoundError as error:
        raise LauncherMissing(
            f"the launcher 'ray' needs Ray Tune ({error}): pip install 'slimrank[ray]'"
        ) from None
    return RayTune()


LAUNCHERS: Final[Mapping[str, Callable[[], Launcher]]] = MappingProxyType(
    {"local": Local, "ray": _ray}
)


def make_launcher(name: str) -> Launcher:
    """The launcher of that name.

    Raises:
        ConfigError: there is none.
        LauncherMissing: its library is not installed.
    """
    if name not in LAUNCHERS:
        raise ConfigError(
            f"--launcher: unknown {name!r}{nearest(name, LAUNCHERS)}; "
            f"choose one of {', '.join(LAUNCHERS)}"
        )
    return LAUNCHERS[name]()
