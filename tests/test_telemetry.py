"""Nobody is told what runs here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a library would take as a wish for silence (CI), or as another place to write to.
HIDDEN = {"CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "GITHUB_ACTIONS", "TF_BUILD"}


@pytest.mark.parametrize("package", ["service", "compress"])
def test_onnxruntime_reports_nothing(package: str, tmp_path: Path) -> None:
    """Importing a package silences the runtime: it keeps no device id in the home folder."""
    environment = {k: v for k, v in os.environ.items() if k not in HIDDEN}  # noqa: TID251 - a child's
    code = f"import {package}, onnxruntime"

    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**environment, "HOME": str(tmp_path)}
    )

    assert list(tmp_path.rglob("*")) == []
