"""The report shows all of the card, and needs nothing but itself."""

import re
from pathlib import Path

import pytest

from compress.report import comparison, interval, page, write
from model_store.bundle import Bundle
from model_store.manifest import Card, NumericsTrial, Quantization, Resources


@pytest.fixture(scope="module")
def html(exported: Bundle) -> str:
    """The page of a bundle."""
    return page(exported)


def test_the_page_fetches_nothing(html: str):
    """No script, no link, no image but inlined ones: it opens offline."""
    assert not re.search(r"<(script|link|img)\b", html)
    assert not re.search(r"url\(\s*['\"]?http", html)
    assert html.count("<svg") == 5


def test_the_page_says_all_of_the_card(html: str, exported: Bundle):
    """Names, figures, hashes, tools and notes are there to be read."""
    for text in ("umec", "dlrm", "u_segment", "i_tags", "d" * 64, "a note", exported.digest):
        assert text in html


def test_a_pruned_feature_is_shown_as_gone(html: str):
    """Kept and pruned features differ in more than their place."""
    assert '<span class="chip gone">i_tags</span>' in html
    assert '<span class="chip">u_segment</span>' in html


def test_the_same_bundle_gives_the_same_page(html: str, exported: Bundle, tmp_path: Path):
    """No clock and no chance in it, so that reports can be compared; folders are made."""
    path = tmp_path / "deep" / "report.html"

    write(exported, path)

    assert path.read_text() == html


def test_a_comparison_pairs_dense_and_slim(card: Card):
    """Quality is a mean with the change paired by seed; costs are shares."""
    rows = {row.what: row for row in comparison(card)}

    assert rows["AUC (mean of 2)"].dense == "0.70500"
    assert rows["AUC (mean of 2)"].slim == "0.69750"
    assert rows["AUC (mean of 2)"].change == "-0.00750 ± 0.03177"
    assert rows["FLOPs a candidate"].change == "10.0%"
    assert rows["bytes of the graph"].dense == "5,000"
    assert rows["µs a request"].change == "4.00x the speed"


def test_a_card_without_figures_is_still_a_page(card: Card):
    """Before evaluation there is nothing to divide by."""
    bare = Card(
        method="none",
        ranker="dlrm",
        seed=1,
        dense=Resources(flops=10),
        slim=Resources(flops=10),
        kept_features=(),
    )

    assert next(row.what for row in comparison(bare)) == "FLOPs a candidate"


@pytest.mark.parametrize(("values", "expected"), [([0.7], 0.0), ([0.0, 2.0], 12.706205)])
def test_the_interval_is_students(values, expected):
    """t(0.975, 1 degree) = 12.706; one value has no spread to tell."""
    assert interval(values) == pytest.approx(expected)


def test_the_precisions_that_were_tried_stand_side_by_side(html: str, exported: Bundle):
    """Quality, time, bytes and the reason of the choice; nothing where none was tried."""
    trials = tuple(
        NumericsTrial(
            numerics=numerics,
            auc=0.71,
            logloss=0.51234,
            moved=0.0031,
            bytes=12_345,
            us_per_request={200: 45.67},
            speedup={200: (1.31, 1.42, 1.53)},
        )
        for numerics in ("fp32", "int8-static")
    )
    found = Quantization(chosen="int8-static", reason="it pays & loses little", trials=trials)
    card = exported.manifest.card.model_copy(update={"quantization": found})
    manifest = exported.manifest.model_copy(update={"card": card})

    shown = page(Bundle(exported.root, manifest, exported.digest))

    assert "Precision of the slim graph" not in html
    for text in ("Precision of the slim graph: int8-static", "µs, 200 candidates", "0.51234"):
        assert text in shown
    for text in ("0.0031", "12,345", "45.7", "1.42x (1.31-1.53)", "it pays &amp; loses little."):
        assert text in shown
