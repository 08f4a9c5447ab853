"""A run with siblings ends in one bundle that holds them all, each as it would be alone."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from compress import pipeline
from compress.config import ConfigError, load
from compress.evaluate import evaluate, find_bundle
from compress.export import click_card
from compress.pipeline import Outcome, run
from compress.plan import resolve
from compress.progress import Silent
from compress.tiers import TIERS_FOLDER, join
from model_store.bundle import Bundle, open_bundle, seal
from model_store.errors import BundleCorrupt, BundleNotFound
from model_store.store import open_store
from tests.compress.conftest import Command
from tests.compress.tiny import config_file

TIERS = 'tiers=[{name="quick", budget={flops=0.3}}, {name="quickest", budget={flops=0.15}}]'


@pytest.fixture(scope="module")
def place(tiny_run: Outcome, tiny_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a family was made, beside the single run that it goes on from."""
    del tiny_run
    place = tmp_path_factory.mktemp("family")
    shutil.copytree(tiny_place, place, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "apart", lambda _, function, *args: function(*args))
        made = run(resolve(load(config_file(place), [TIERS, "seeds=[1]"])), Silent())
    (place / "told").write_text(str(made.with_tiers))
    return place


@pytest.fixture(scope="module")
def family(place: Path) -> Bundle:
    """The published bundle."""
    return open_store(str(place / "store")).open("tiny@slim").bundle


def test_every_tier_keeps_its_own_budget(family: Bundle) -> None:
    """Told by its card, which is that of the run that made it."""
    dense = click_card(family).dense.flops
    cards = {tier.name: tier.card for tier in family.manifest.tiers}

    assert list(cards) == ["quick", "quickest"]
    assert cards["quickest"].slim.flops <= 0.15 * dense < cards["quick"].slim.flops <= 0.3 * dense
    assert [*cards["quick"].requested.values()] == [0.3]
    assert [*click_card(family).requested.values()] == [0.5]
    assert family.manifest.tiers[1].flops == cards["quickest"].slim.flops


def test_a_run_tells_what_all_tiers_take_together(family: Bundle, place: Path) -> None:
    """Budgets of bytes are of each by itself."""
    files = [path for path in family.root.rglob("*") if path.is_file()]

    assert int((place / "told").read_text()) == sum(path.stat().st_size for path in files)


def test_a_tier_scores_as_its_card_says(family: Bundle, place: Path) -> None:
    """From the family's own files, by the same command as any bundle."""
    (test,) = (place / "runs" / "tiny").glob("dense-*/test.parquet")

    for tier in family.manifest.tiers:
        found = evaluate(family.tier(tier.name), test, skip_bad=False, progress=Silent())
        assert found.quality == tier.card.results[0].slim
    assert find_bundle(str(family.root), None, "quick").manifest == family.manifest.of_tier("quick")


def test_what_siblings_have_in_common_lies_there_once(family: Bundle) -> None:
    """Vocabularies do; graphs and golden requests do not."""
    paths = [entry.path for entry in family.manifest.files]

    assert not [path for path in paths if path.startswith(TIERS_FOLDER) and "vocab" in path]
    assert f"{TIERS_FOLDER}/quick/model.onnx" in paths
    assert len({entry.sha256 for entry in family.manifest.files}) == len(paths)


def test_a_file_that_only_a_tier_has_keeps_its_place(family: Bundle, tmp_path: Path) -> None:
    """A feature that the slim ranker lost and a sibling kept still has its vocabulary."""
    whole = family.tier("quick")
    pruned = tuple(f.model_copy(update={"tensor": None}) for f in whole.manifest.features)
    bare = whole.manifest.model_copy(update={"features": pruned})
    shutil.copytree(family.root, tmp_path / "bare")
    for vocabulary in (tmp_path / "bare" / "vocab").iterdir():
        vocabulary.unlink()
    slim = seal(tmp_path / "bare", bare)

    joined = join(slim, {"quick": whole}, tmp_path / "joined")

    assert joined.tier("quick").encoders().keys() == whole.encoders().keys()


def test_a_tier_in_eight_bits_keeps_its_own_tolerance(family: Bundle, tmp_path: Path) -> None:
    """Its golden scores are off by more than those of a ranker in fp32 beside it."""
    quick = family.tier("quick")
    eight = quick.manifest.model_copy(update={"numerics": "int8-static", "golden_tolerance": 0.004})

    joined = join(family, {"quick": replace(quick, manifest=eight)}, tmp_path / "joined")

    assert joined.manifest.golden_tolerance == 0
    assert joined.manifest.of_tier("quick").golden_tolerance == 0.004


def test_the_same_command_again_publishes_nothing_twice(place: Path) -> None:
    """The family's bytes are a function of its members'."""
    before = {entry.version for entry in open_store(str(place / "store")).list()}

    run(resolve(load(config_file(place), [TIERS, "seeds=[1]"])), Silent())

    assert {entry.version for entry in open_store(str(place / "store")).list()} == before


def test_a_missing_tier_is_told_with_those_that_there_are(family: Bundle) -> None:
    """Like a version that is not in the store."""
    with pytest.raises(BundleNotFound, match="no tier 'quik'; its tiers: quick, quickest"):
        find_bundle(str(family.root), None, "quik")


def test_the_page_shows_the_siblings(command: Command, family: Bundle, tmp_path: Path) -> None:
    """And a tier has a page of its own."""
    whole, own = tmp_path / "whole.html", tmp_path / "own.html"

    for page in (["-O", whole], ["--tier", "quick", "-O", own]):
        assert command("report", family.root, *page).code == 0

    assert "quickest" in whole.read_text()
    assert "≤ 0.3<" in own.read_text()


@pytest.mark.parametrize(
    ("tiers", "said"),
    [
        ('tiers=[{name="a", budget={flop=0.1}}]', "tiers.0: budget.flop: unknown key"),
        ('tiers=[{name="a", budget={flops=2}}]', "tiers.0: budget.flops:"),
        ('tiers=[{name="a", budget={flops=0.5}}]', "tiers.0.budget: makes a ranker that the"),
        (
            'tiers=[{name="a", budget={flops=0.1}}, {name="b", budget={flops=0.1}}]',
            "tiers.1.budget: makes a ranker that the",
        ),
        ('tiers=[{name="a/b", budget={flops=0.1}}]', "tiers.0.name:"),
        (
            'tiers=[{name="a", budget={flops=0.1}}, {name="a", budget={flops=0.2}}]',
            "two tiers have one name",
        ),
    ],
)
def test_a_wrong_tier_is_refused_before_any_work(tmp_path: Path, tiers: str, said: str) -> None:
    """By the key that has to be changed."""
    with pytest.raises(ConfigError, match=said):
        resolve(load(config_file(tmp_path), [tiers]))


def test_a_damaged_tier_damages_the_bundle(family: Bundle, tmp_path: Path) -> None:
    """Its files are the bundle's own."""
    shutil.copytree(family.root, tmp_path / "it")
    (tmp_path / "it" / TIERS_FOLDER / "quick" / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(BundleCorrupt, match="publish the bundle again"):
        open_bundle(tmp_path / "it")
