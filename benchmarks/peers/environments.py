"""The peers' environments: a venv each, with what its constraint file names."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

CONSTRAINTS: Final = Path("constraints/peers")
INSTALL_S: Final = 900.0


class NotInstalled(Exception):
    """A peer's packages could not be had; the message carries pip's last lines."""


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
        NotInstalled: pip refused.
    """
    pins = CONSTRAINTS / f"{name}.txt"
    environment = folder / name
    python = environment / "bin" / "python"
    stamp = environment / ".pins"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    _run(sys.executable, "-m", "venv", str(environment))
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps")
    _run(str(python), *pip, "-r", str(pins))
    stamp.write_text(digest)
    return python


def version_of(name: str, package: str) -> str:
    """The version that a peer's constraint file pins, empty if it pins none."""
    lines = (CONSTRAINTS / f"{name}.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    return pinned.get(package.lower(), "")


def variables(root: Path, more: dict[str, str]) -> dict[str, str]:
    """A server's environment: this process's, this repository on the path, and ``more``."""
    parent = os.environ  # noqa: TID251 - handed on to a child process, never read as a setting
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(root)}
    kept = {name: value for name, value in parent.items() if not name.startswith("SLIMRANK_")}
    return kept | quiet | more


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(f"{error.stderr[-400:]}") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"not installed after {INSTALL_S:g} s") from None
