"""A slim bundle goes out in eight bits where that pays and loses next to nothing."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress import int8
from compress.card import quantization_to_come
from compress.config import QuantizeConfig
from compress.costs import bytes_by_part
from compress.data.base import Part
from compress.data.encode import Batch, Dataset
from compress.export import click_card
from compress.graph import Feeds, GraphSession
from compress.quantize import FP32, decide, quantize
from model_store.bundle import Bundle, open_bundle
from model_store.manifest import NumericsTrial

AUTO = QuantizeConfig(numerics="auto")
# The bundle's validation rows are few: its AUC takes steps of the default bound's size.
AUTO_ON_FEW_ROWS = QuantizeConfig(
    numerics="auto", calibration_rows=500, max_logloss_rise=0.01, max_auc_loss=0.01
)


def trial(
    numerics: str,
    speedup: float = 1.0,
    *,
    logloss: float = 0.5,
    auc: float = 0.7,
    moved: float = 0.003,
    split_gap: float = 0.0,
) -> NumericsTrial:
    """What a form measured to; at 1,000 candidates it gains more than at 200."""
    return NumericsTrial(
        numerics=numerics,
        auc=auc,
        logloss=logloss,
        moved=moved,
        split_gap=split_gap,
        bytes=800,
        us_per_request={200: 100 / speedup, 1000: 400 / speedup},
        speedup={
            200: (speedup * 0.9, speedup, speedup * 1.1),
            1000: (speedup, speedup * 1.2, speedup * 1.3),
        },
    )


BEFORE = trial(FP32, moved=0.0)


def test_the_fastest_form_that_loses_little_ships():
    """Its speed, bytes and losses are the reason."""
    trials = [BEFORE, trial("int8-static", 1.4, logloss=0.50004), trial("int8-dynamic", 1.2)]

    chosen, reason = decide(trials, AUTO)

    assert chosen == "int8-static"
    assert "faster by 1.40x at 200 candidates (1.26-1.54), 1.68x at 1000" in reason
    assert "log loss +0.000040" in reason


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (trial("int8-static", 1.04), "does not pay: faster by 1.04x at 200 candidates"),
        (trial("int8-static", 2, logloss=0.5003), "raises log loss by 0.000300, over 0.0002"),
        (trial("int8-static", 2, auc=0.699), "loses 0.001000 of AUC, over 0.0002"),
        (trial("int8-static", 2, moved=0.06), "moves a score by 0.060, over 0.05"),
        (trial("int8-static", 2, split_gap=0.01), "a request given once and repeated 0.01 apart"),
    ],
    ids=["slow", "log loss", "AUC", "moved", "split"],
)
def test_what_does_not_pay_or_loses_too_much_stays_fp32(found: NumericsTrial, said: str):
    """With the figure and the bound that it missed."""
    chosen, reason = decide([BEFORE, found], AUTO)

    assert chosen == FP32
    assert reason.startswith("kept fp32: int8-static ")
    assert said in reason


def test_a_form_that_loses_too_much_leaves_the_field_to_another():
    """Dynamic ships where static's calibration fails."""
    trials = [BEFORE, trial("int8-static", 1.4, logloss=0.6), trial("int8-dynamic", 1.2)]

    assert decide(trials, AUTO)[0] == "int8-dynamic"


def test_a_form_asked_for_needs_no_gain_in_time_but_its_quality():
    """It saves bytes all the same."""
    asked = QuantizeConfig(numerics="int8-static")

    assert decide([BEFORE, trial("int8-static", 0.9)], asked)[0] == "int8-static"
    assert decide([BEFORE, trial("int8-static", 0.9, auc=0.5)], asked)[0] == FP32


@pytest.fixture(autouse=True)
def _narrow_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's ranker is small; all its layers are to change."""
    monkeypatch.setattr(int8, "LEAST_INPUTS", 4)


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of its own, in fp32."""
    shutil.copytree(exported.root, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def timer(*us: float) -> Any:
    """Takes so many microseconds for a call of each graph: fp32, static, dynamic."""

    def timed(sessions: Sequence[GraphSession], feeds: Sequence[Sequence[Feeds]], rounds: int):
        for session, sets in zip(sessions, feeds, strict=True):
            assert session.run(sets[0]).shape == (len(sets[0]["candidate_ids"]),)
        return np.repeat(np.array(us)[:, None], rounds, axis=1)

    return timed


@pytest.fixture
def quantized(bundle: Bundle, dataset: Dataset) -> Bundle:
    """The bundle in eight bits, as if that took half the time."""
    return quantize(bundle, dataset, AUTO_ON_FEW_ROWS, 20, seed=1, timer=timer(90.0, 45.0, 60.0))


def test_the_card_tells_what_was_measured(quantized: Bundle):
    """Every form beside fp32, in quality, time and bytes; it comes back from the manifest."""
    found = click_card(open_bundle(quantized.root)).quantization

    assert quantized.manifest.numerics == "int8-static"
    assert found is not None
    assert found.chosen == "int8-static"
    fp32, static, dynamic = found.trials
    assert [t.numerics for t in found.trials] == ["fp32", "int8-static", "int8-dynamic"]
    assert static.us_per_request == {20: 45.0, 1000: 45.0}
    assert static.speedup[20] == (2.0, 2.0, 2.0)
    assert abs(static.logloss - fp32.logloss) < 2e-3
    assert 0 < static.moved < 0.01
    assert dynamic.split_gap <= dynamic.moved


def test_golden_requests_have_the_scores_of_the_graph_that_ships(
    quantized: Bundle, exported: Bundle
):
    """The same requests; the manifest says how far another processor may be off."""
    before, after = exported.golden(), quantized.golden()
    tolerance = quantized.manifest.golden_tolerance

    assert [case.request for case in before] == [case.request for case in after]
    off = [
        abs(a - b)
        for was, now in zip(before, after, strict=True)
        for a, b in zip(was.scores, now.scores, strict=True)
    ]
    assert 0 < max(off) <= tolerance < 0.01


def test_the_graph_is_smaller_and_its_bytes_are_told_by_part(quantized: Bundle, exported: Bundle):
    """Rounded rows are table rows, whole weights with their scales are MLP."""
    before, after = bytes_by_part(exported.root), bytes_by_part(quantized.root)

    assert sum(after.values()) == sum(
        path.stat().st_size for path in quantized.root.rglob("*") if path.is_file()
    )
    assert after["mlp"] < before["mlp"]
    assert after["embedding tables"] <= before["embedding tables"]


def test_what_does_not_pay_leaves_the_graph_and_says_why(
    bundle: Bundle, exported: Bundle, dataset: Dataset
):
    """Byte for byte the fp32 bundle, but for the card."""
    kept = quantize(bundle, dataset, AUTO_ON_FEW_ROWS, 20, seed=1, timer=timer(90.0, 89.0, 95.0))

    found = click_card(kept).quantization
    assert found is not None
    assert found.reason.startswith("kept fp32: int8-static does not pay: faster by 1.01x")
    assert kept.manifest.numerics == FP32
    assert kept.manifest.golden_tolerance == 0
    assert kept.manifest.files == exported.manifest.files
    assert len(found.model_dump_json()) <= len(quantization_to_come(20).model_dump_json())


def test_a_ranker_of_narrow_layers_is_not_even_tried(
    bundle: Bundle, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """The card says so."""
    monkeypatch.setattr(int8, "LEAST_INPUTS", 1000)

    found = click_card(quantize(bundle, dataset, AUTO_ON_FEW_ROWS, 20, seed=1)).quantization

    assert found is not None
    assert found.reason == "kept fp32: no layer of the candidates is wide enough"
    assert found.trials == ()


class Watched(Dataset):
    """A data set that notes which parts are read."""

    def __init__(self, dataset: Dataset) -> None:
        self.__dict__ |= dataset.__dict__
        self.read: list[Part] = []

    def batches(
        self, part: Part, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[Batch]:
        """Notes it."""
        self.read.append(part)
        return super().batches(part, batch_size, rng)

    def raw(self, part: Part) -> Iterator[Any]:
        """Notes it."""
        self.read.append(part)
        return super().raw(part)


def test_no_test_row_is_read(bundle: Bundle, dataset: Dataset):
    """Scales come from training rows, the choice from validation rows."""
    watched = Watched(dataset)

    quantize(bundle, watched, AUTO_ON_FEW_ROWS, 20, seed=1, timer=timer(90.0, 45.0, 60.0))

    assert watched.read[0] == "train"
    assert set(watched.read[1:]) == {"validation"}


def test_real_clocks_time_the_form_that_was_asked_for(bundle: Bundle, dataset: Dataset):
    """No other is built; it ships whatever the clock says."""
    asked = AUTO_ON_FEW_ROWS.model_copy(update={"numerics": "int8-dynamic"})

    found = click_card(quantize(bundle, dataset, asked, 20, seed=1)).quantization

    assert found is not None
    assert found.chosen == "int8-dynamic"
    assert [trial.numerics for trial in found.trials] == ["fp32", "int8-dynamic"]
    assert all(us > 0 for t in found.trials for us in t.us_per_request.values())
