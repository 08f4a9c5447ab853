"""docs/codes.md tells of every method, every option, and names that there are."""

import re
from pathlib import Path

import pytest

from compress.sessions.encode import ENCODERS
from compress.sessions.tables import TABLES

CODES = Path(__file__).parents[4] / "docs" / "codes.md"
FILES = Path(__file__).parents[4] / "compress" / "sessions" / "tables"


@pytest.fixture(scope="module")
def text() -> str:
    """The page."""
    return CODES.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_every_method_is_described(name: str, text: str) -> None:
    """A paragraph begins with each method's name."""
    assert f"**`{name}`**" in text


@pytest.mark.parametrize("name", TABLES)
def test_every_option_is_described(name: str, text: str) -> None:
    """The table of options has a row for each, which names the method or all of its kind."""
    options = text.partition("## Options")[2].partition("\n## ")[0]
    rows = [row for row in options.splitlines() if row.startswith("| `")]

    for option in TABLES[name].Config.model_fields:
        mine = [row.split("|") for row in rows if f"`{option}`" in row.split("|")[1]]
        assert any(f"`{name}`" in row[3] or "all with codebooks" in row[3] for row in mine), option


def test_the_command_takes_what_the_page_says(text: str) -> None:
    """The methods of `encode` are listed."""
    methods = re.search(r"`--method` is (.*?);", text)

    assert methods is not None
    assert set(re.findall(r"`(\w+)`", methods[1])) == set(ENCODERS)


def test_symbols_name_what_is_there(text: str) -> None:
    """Each name of the symbol table stands in the file beside it."""
    table = text.partition("## Symbols")[2].partition("\n## ")[0]
    for row in table.splitlines()[4:]:
        if not row.startswith("|"):
            continue
        _, _, names, files, _ = row.split("|")
        source = "".join(
            (FILES.parents[2] / file if "/" in file else FILES / file).read_text(encoding="utf-8")
            for file in re.findall(r"`([\w/]+\.py)`", files)
        )
        for name in re.findall(r"`+([\w.]+)`+", names):
            assert name.split(".")[-1] in source, name
