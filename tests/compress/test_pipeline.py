"""A run ends in two published bundles, whatever stops it on the way."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress import pipeline
from compress.config import ConfigError, GateConfig, RunConfig, load
from compress.data.encode import Dataset
from compress.data.folders import FolderError, alone
from compress.evaluate import evaluate
from compress.pipeline import Outcome, judge, resolve, run, run_folder
from compress.progress import Silent
from model_store.bundle import open_bundle
from model_store.manifest import Quality, SeedResult
from model_store.store import open_store

CONFIG = """
name = "tiny"
seeds = [1, 2]
[data]
type = "synthetic"
rows = 3000
catalogue = 40
[ranker]
type = "dlrm"
dim = 4
bottom = [6]
top = [16, 8]
[train]
lr = 1e-2
batch_size = 128
epochs = 2
[method]
type = "umec"
budget.flops = 0.5
[finetune]
batch_size = 128
epochs = 1
[export]
golden_requests = 2
golden_candidates = 10
timing_candidates = 20
"""

Configured = Callable[..., RunConfig]


def config_file(folder: Path) -> Path:
    """The config, its run folder and its store inside ``folder``."""
    path = folder / "tiny.toml"
    places = f'runs = "{folder / "runs"}"\npublish.store = "{folder / "store"}"\n'
    path.write_text(places + CONFIG)
    return path


def configured(folder: Path, *overrides: str) -> RunConfig:
    """The config as loaded."""
    return load(config_file(folder), overrides)


def folders_of(outcome: Outcome) -> dict[str, Path]:
    """The published bundles' folders."""
    return {kind: outcome.folder / "seed-1" / kind for kind in ("dense", "slim")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's one run goes."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def outcome(place: Path) -> Outcome:
    """A whole run over two seeds."""
    return run(resolve(configured(place)), Silent())


def quality(auc: float, logloss: float) -> Quality:
    """Metrics of a thousand rows."""
    return Quality(auc=auc, logloss=logloss, accuracy=0.5, rows=1000)


def test_every_section_is_checked_before_any_work(tmp_path: Path):
    """All sections' faults come at once, and nothing has been written."""
    config = configured(tmp_path, "data.row=5", "ranker.type=dlmr", "method.budgets.flops=0.1")

    with pytest.raises(ConfigError) as caught:
        resolve(config)

    said = str(caught.value)
    assert "data: row: unknown key; did you mean 'rows'?" in said
    assert "ranker.type: unknown 'dlmr'; did you mean 'dlrm'?" in said
    assert "method: budgets: unknown key; did you mean 'budget'?" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("publish.alias=a/b", "publish.alias: 'a/b' is not an alias"),
        ("publish.alias='5'", "publish.alias: '5' is not an alias"),
        ("publish.alias=dense", "publish.alias: 'dense' names a bundle of every run"),
        ("publish.alias=slim", "publish.alias: 'slim' names a bundle of every run"),
        ("publish.store=''", "publish.store: '' is no store"),
        ("publish.store=s4://x", "publish.store: s4://x: Protocol not known: s4"),
    ],
)
def test_what_the_store_would_refuse_is_refused_first(tmp_path: Path, override: str, said: str):
    """Not after hours of training, with half of it published. Nothing is made."""
    with pytest.raises(ConfigError) as caught:
        resolve(configured(tmp_path, override))

    assert said in str(caught.value)
    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_store_is_looked_at_without_being_made(tmp_path: Path):
    """Checking a config leaves no trace."""
    resolve(configured(tmp_path))

    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_another_release_of_a_tool_starts_afresh(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """A card tells one set of versions, so results of two may not meet under it."""
    plan = resolve(configured(tmp_path))
    folder = run_folder(plan, dataset)
    monkeypatch.setattr(pipeline, "tools", lambda: {"torch": "99"})

    assert run_folder(plan, dataset) != folder


def test_the_gate_judges_the_mean_over_seeds():
    """One bad seed is no reason to refuse, a bad mean is."""
    results = [
        SeedResult(seed=1, dense=quality(0.70, 0.5), slim=quality(0.69, 0.5)),
        SeedResult(seed=2, dense=quality(0.70, 0.5), slim=quality(0.70, 0.52)),
    ]

    verdict = judge(GateConfig(max_auc_loss=0.005, max_logloss_rise=0.02), results)

    assert verdict.auc_loss == pytest.approx(0.005)
    assert verdict.logloss_rise == pytest.approx(0.01)
    assert not judge(GateConfig(max_auc_loss=0.004), results).holds
    assert not judge(GateConfig(max_logloss_rise=0.009), results).holds


@pytest.mark.slow
def test_dense_and_slim_are_published_under_one_card(outcome: Outcome, place: Path):
    """Two versions of one name, aliases by kind, and the public alias on slim."""
    store = open_store(str(place / "store"))
    bundles = {kind: store.open(f"tiny@{kind}").bundle for kind in ("dense", "slim")}

    assert outcome.versions == {"dense": "1", "slim": "2"}
    assert store.aliases("tiny") == {"dense": "1", "slim": "2", "prod": "2"}
    assert bundles["dense"].manifest.card == bundles["slim"].manifest.card == outcome.card


@pytest.mark.slow
def test_the_cards_quality_is_what_evaluate_says(outcome: Outcome):
    """Every published metric can be had again from a bundle and the test rows beside it."""
    for result in outcome.card.results:
        for kind in ("dense", "slim"):
            bundle = open_bundle(outcome.folder / f"seed-{result.seed}" / kind)
            found = evaluate(
                bundle, outcome.folder / "test.parquet", skip_bad=False, progress=Silent()
            )
            assert found.quality == getattr(result, kind)


@pytest.mark.slow
def test_the_card_tells_the_bytes_on_disk(outcome: Outcome):
    """Its own manifest's bytes are among them."""
    for kind, folder in folders_of(outcome).items():
        files = [path for path in folder.rglob("*") if path.is_file()]
        told = getattr(outcome.card, kind).bytes
        assert sum(told.values()) == sum(path.stat().st_size for path in files)


@pytest.mark.slow
def test_the_card_tells_what_was_achieved(outcome: Outcome):
    """Counted on the slim ranker: no more than the budget, fewer fields or neurons than before."""
    card = outcome.card

    assert card.requested["all"] == 0.5
    assert card.achieved["all"] <= 0.5
    assert card.slim.flops < card.dense.flops
    for kind, folder in folders_of(outcome).items():
        assert open_bundle(folder).manifest.flops == getattr(card, kind).flops
    assert card.dense.us_per_request is not None
    assert set(card.tools) >= {"torch", "onnxruntime", "python"}
    assert len(card.data_hash) == 64


@pytest.mark.slow
def test_the_same_command_again_does_nothing_again(outcome: Outcome, place: Path):
    """Finished stages are found, no version is published twice, no byte changes."""
    again = run(resolve(configured(place)), Silent())

    assert again == outcome
    assert len(open_store(str(place / "store")).list()) == 2


@pytest.mark.slow
def test_two_runs_do_not_work_in_one_folder(outcome: Outcome, place: Path):
    """The second is refused, and touches nothing."""
    with alone(outcome.folder), pytest.raises(FolderError, match="another run works in"):
        run(resolve(configured(place)), Silent())


@pytest.mark.slow
def test_the_card_tells_the_config_of_its_own_run(outcome: Outcome, place: Path, tmp_path: Path):
    """Another gate over the same rankers stands on their card; what was measured stays."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)

    again = run(resolve(configured(tmp_path, "gate.max_auc_loss=0.7")), Silent())

    assert again.card.config["gate"]["max_auc_loss"] == 0.7
    assert again.card.results == outcome.card.results
    assert again.card.achieved == outcome.card.achieved


@pytest.mark.slow
def test_a_gate_that_does_not_hold_publishes_nothing(outcome: Outcome, place: Path, tmp_path: Path):
    """Gate and store are no part of a run's key: the trained rankers are judged anew."""
    store = tmp_path / "other"
    overrides = ["gate.max_auc_loss=-0.5", f"publish.store={store}"]
    command = [sys.executable, "-m", "compress", "run", str(config_file(place))]
    asked = [part for override in overrides for part in ("-o", override)]

    ended = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)

    assert ended.returncode == 3
    assert "not published: AUC lost" in ended.stderr
    assert not store.exists()


def stopped(folder: Path, awaited: str, sent: signal.Signals) -> tuple[int, str]:
    """Start a run in its own process, and stop it once a file is there."""
    command = [sys.executable, "-m", "compress", "run", str(config_file(folder)), "-o", "seeds=[1]"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    waits = threading.Event()
    while not list((folder / "runs").rglob(awaited)) and process.poll() is None:
        waits.wait(0.005)
    process.send_signal(sent)
    said = process.communicate()[0]
    return process.returncode, said


def figures(outcome: Outcome) -> dict[str, Any]:
    """What must not depend on when a run was stopped."""
    return outcome.card.model_dump(include={"results", "kept_features", "widths"})


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_figures(outcome: Outcome, tmp_path: Path):
    """Kill -9 during training costs nothing but time."""
    code, _ = stopped(tmp_path, "dense.ckpt", signal.SIGKILL)
    resumed = run(resolve(configured(tmp_path, "seeds=[1]")), Silent())

    assert code == -signal.SIGKILL
    assert resumed.versions == {"dense": "1", "slim": "2"}
    assert figures(resumed)["results"] == figures(outcome)["results"][:1]
    assert figures(resumed)["widths"] == figures(outcome)["widths"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path):
    """One line, no traceback, and the shell's exit code for an interrupt."""
    code, said = stopped(tmp_path, "dense.ckpt", signal.SIGINT)

    assert code == 130
    assert "goes on from the last checkpoint" in said
    assert "Traceback" not in said


def test_a_teacher_of_the_dense_ranker_is_refused(tmp_path: Path) -> None:
    """It has none: the weight would do nothing."""
    with pytest.raises(ConfigError, match=r"train\.distill\.weight: .* \[finetune\] or \[method\]"):
        resolve(configured(tmp_path, "train.distill.weight=0.5"))
