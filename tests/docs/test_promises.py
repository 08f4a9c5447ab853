"""What the documentation promises is there, and what is there is documented."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from compress.data import SOURCES
from compress.methods import METHODS
from compress.rankers import RANKERS
from compress.sweep.launchers import LAUNCHERS
from compress.tables import TABLES
from service.caches import CACHES
from service.caches.redis import FORMAT
from service.catalogue import ARRAYS
from service.metrics import Metrics
from service.problems import CODES
from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def _words(*pages: str) -> set[str]:
    text = "\n".join((ROOT / page).read_text() for page in pages)
    return set(re.findall(r"[A-Za-z0-9_-]+", text))


def _missing(names: Iterable[str], *pages: str) -> list[str]:
    words = _words(*pages)
    return sorted(name for name in names if name not in words)


def test_each_setting_is_in_the_operations_guide() -> None:
    """An operator finds every SLIMRANK_ variable in docs/operations.md."""
    names = [f"{PREFIX}{field.upper()}" for field in Settings.model_fields]

    assert _missing(names, "docs/operations.md") == []


def test_the_operations_guide_names_no_unknown_setting() -> None:
    """The pages name no SLIMRANK_ variable but settings, since start-up refuses all others."""
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    named = {w for w in _words("docs/operations.md", "README.md") if w.startswith(PREFIX)}

    assert named - known - {PREFIX} == set()


def test_the_composition_waits_for_the_way_out() -> None:
    """Docker kills no worker that still answers, and sees it unready before it goes."""
    image = (ROOT / "docker/serve.Dockerfile").read_text()
    patience_s = _number(r"stop_grace_period: (\d+)s", (ROOT / "docker/compose.yaml").read_text())
    delay_s = _number(r"SLIMRANK_DRAIN_DELAY_S=(\d+)", image)

    assert patience_s > delay_s + Settings().drain_timeout_s
    assert delay_s > _number(r"HEALTHCHECK --interval=(\d+)s", image)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return int(found[1])


def test_each_metric_is_in_the_operations_guide() -> None:
    """An operator finds every metric in docs/operations.md, by the name that /metrics shows."""
    families = list(Metrics().registry.collect())
    shown = [f"{f.name}_total" if f.type == "counter" else f.name for f in families]

    assert _missing(shown, "docs/operations.md") == []


def test_each_part_of_a_cached_table_is_in_the_operations_guide() -> None:
    """An operator who looks into Redis finds what lies there, under which key."""
    assert _missing(ARRAYS, "docs/operations.md") == []
    assert f"slimrank:{{<hex>}}:{FORMAT}:" in (ROOT / "docs/operations.md").read_text()


def test_each_error_code_is_documented() -> None:
    """A caller finds every problem code in docs/operations.md or docs/api.md."""
    assert _missing(CODES, "docs/operations.md", "docs/api.md") == []


@pytest.mark.parametrize(
    "registry",
    [SOURCES, RANKERS, METHODS, TABLES, LAUNCHERS, CACHES],
    ids=["sources", "rankers", "methods", "tables", "launchers", "caches"],
)
def test_each_registry_member_is_in_the_readme(registry: Iterable[str]) -> None:
    """A reader learns from README what there is to choose from."""
    assert _missing(registry, "README.md", "docs/operations.md") == []


def test_readme_names_only_make_targets_that_exist() -> None:
    """Every `make TARGET` of README and CONTRIBUTING is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    pages = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:^|`|=\S+ )make ([a-z0-9][a-z0-9-]*)", pages, re.MULTILINE))

    assert named
    assert named - targets == set()


def test_each_public_make_target_is_in_the_readme() -> None:
    """What `make help` lists, README explains."""
    listed = set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE)) - {"help"}

    assert {name for name in listed if f"make {name}" not in README} == set()


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link of a Markdown page names a file that exists."""
    pages = [ROOT / p for p in _tracked() if p.endswith(".md")]
    dead = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]

    assert dead == []


def _tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# What would tie the repository to one machine: its folders, and the hosts of package indexes.
HOSTS = re.compile(r"(pythonhosted|pypi|npmjs|debian|crates|download\.pytorch)[.](org|io|net)")
FOLDERS = re.compile(r"(^|[^A-Za-z0-9_.-])/(work|farm|root|home)/")


@pytest.mark.parametrize("pattern", [HOSTS, FOLDERS], ids=["hosts", "folders"])
def test_tracked_files_name_no_machine(pattern: re.Pattern[str]) -> None:
    """No tracked text names a package index's host or a folder of somebody's machine."""
    found = [
        f"{name}:{number}"
        for name in _tracked()
        for number, line in enumerate((ROOT / name).read_bytes().splitlines(), start=1)
        if pattern.search(line.decode(errors="replace"))
    ]

    assert found == []
