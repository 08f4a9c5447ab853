"""docs/your-own-ranker.md: its code runs as it stands, and its table has all options."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from compress import slim_module

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/your-own-ranker.md").read_text()


@pytest.mark.slow
def test_the_pages_code_runs_as_it_stands(tmp_path: Path) -> None:
    """Both blocks in one file: the useless table is dropped, both budgets hold, ONNX is written."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "tables dropped: ('device',)" in done.stdout
    told = re.search(r"FLOPs ([\d,]+) -> ([\d,]+) a row, bytes ([\d,]+) -> ([\d,]+)", done.stdout)
    assert told is not None
    before, after, bytes_before, bytes_after = (int(n.replace(",", "")) for n in told.groups())
    assert after <= 0.5 * before
    assert bytes_after <= 0.25 * bytes_before
    onnx.checker.check_model(tmp_path / "slim.onnx")


def test_the_page_has_each_option_with_its_default() -> None:
    """Every keyword of `slim_module` stands in the table of options, and no other does."""
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(slim_module).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    rows = re.findall(
        r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", PAGE.split("| option |")[1], re.MULTILINE
    )
    told = {
        name: default.strip()
        for names, defaults in rows
        for name, default in zip(re.findall(r"\w+", names), defaults.split(","), strict=True)
    }

    assert told.keys() == options.keys()
    numbers = {
        name: default for name, default in options.items() if isinstance(default, int | float)
    }
    assert {name: float(told[name]) for name in numbers} == numbers
