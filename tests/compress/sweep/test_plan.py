"""A sweep's file: every cell is resolved, or the file refused, before anything is done."""

import doctest
from pathlib import Path

import pytest

from compress.config import ConfigError, RunConfig, check, read
from compress.methods import METHODS
from compress.plan import plan_as_json, resolve
from compress.sweep import plan
from compress.sweep.plan import Sweep, load
from tests.compress.tiny import config_file

SWEEP = """
base = "tiny.toml"
seeds = [1, 2, 3]
reference = "magnitude"
[sweep]
method.budget.flops = [0.25, 0.5]
[methods.umec]
method.unit = 2
[methods.magnitude]
method = {type = "magnitude"}
finetune.epochs = 4
[methods.none]
method = {type = "none"}
sweep = {}
"""
CONFIGS = Path(plan.__file__).parents[1] / "configs"


def written(folder: Path, text: str = SWEEP) -> Path:
    """The sweep's file, its base beside it."""
    config_file(folder)
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str, *overrides: str) -> list[str]:
    """What is said of a file, line by line."""
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text), overrides)
    assert sorted(child.name for child in folder.iterdir()) == ["sweep.toml", "tiny.toml"]
    return str(caught.value).splitlines()


def config_of(sweep: Sweep, name: str) -> RunConfig:
    """The run's config of a variant."""
    return next(each.plan.config for each in sweep.variants if each.name == name)


def test_methods_are_taken_at_every_budget(tmp_path: Path) -> None:
    """Those with axes of their own at theirs: here at none."""
    sweep = load(written(tmp_path))

    assert [variant.name for variant in sweep.variants] == [
        "umec flops=0.25",
        "umec flops=0.5",
        "magnitude flops=0.25",
        "magnitude flops=0.5",
        "none",
    ]
    assert (sweep.seeds, sweep.reference) == ((1, 2, 3), "magnitude")
    assert {variant.plan.config.seeds for variant in sweep.variants} == {(1, 2, 3)}
    assert {variant.plan.config.threads for variant in sweep.variants} == {1}


def test_what_a_method_says_is_laid_on_the_base(tmp_path: Path) -> None:
    """But a section that names its type stands in the base's place."""
    sweep = load(written(tmp_path))
    umec, magnitude = (config_of(sweep, f"{name} flops=0.5") for name in ("umec", "magnitude"))

    assert (umec.method.type, umec.method.options) == (
        "umec",
        {"budget": {"flops": 0.5}, "unit": 2},
    )
    assert magnitude.method.options == {"budget": {"flops": 0.5}}
    assert (umec.finetune.epochs, magnitude.finetune.epochs) == (1, 4)
    assert umec.finetune.batch_size == magnitude.finetune.batch_size == 128


def test_several_axes_make_a_grid(tmp_path: Path) -> None:
    """Keys in quotes are as good as sections, and values may be tables."""
    text = SWEEP.replace(
        "method.budget.flops = [0.25, 0.5]",
        '"method.budget" = [{flops = 0.5}, {bytes = "10kB"}]\n"train.epochs" = [1, 2]',
    )
    sweep = load(written(tmp_path, text))

    assert [variant.at for variant in sweep.variants][:4] == [
        "budget={flops = 0.5} epochs=1",
        "budget={flops = 0.5} epochs=2",
        'budget={bytes = "10kB"} epochs=1',
        'budget={bytes = "10kB"} epochs=2',
    ]
    assert sweep.variants[2].plan.config.train.epochs == 1
    assert sweep.variants[2].plan.config.method.options["budget"] == {"bytes": "10kB"}


def test_overrides_go_where_their_key_is(tmp_path: Path) -> None:
    """To the sweep if it has it, else to the base."""
    asked = ("seeds=[7]", "reference=umec", "methods.umec.method.unit=4", "data.rows=2000")

    sweep = load(written(tmp_path), asked)

    umec = config_of(sweep, "umec flops=0.5")
    assert (sweep.seeds, sweep.reference) == ((7,), "umec")
    assert umec.method.options["unit"] == 4
    assert umec.data.options["rows"] == 2000


def test_seeds_and_reference_need_not_be_said(tmp_path: Path) -> None:
    """The base's seeds, the first method."""
    text = SWEEP.replace("seeds = [1, 2, 3]\n", "").replace('reference = "magnitude"\n', "")

    sweep = load(written(tmp_path, text))

    assert (sweep.seeds, sweep.reference) == ((1, 2), "umec")


def test_what_is_mistyped_is_refused_with_the_nearest_right_key(tmp_path: Path) -> None:
    """All variants' faults at once, each once however many budgets have it; nothing is made."""
    text = (
        SWEEP.replace("method.budget.flops", "method.budget.flop")
        .replace("finetune.epochs", "finetun.epochs")
        .replace('"none"', '"nun"')
        .replace('reference = "magnitude"', 'reference = "magnitud"')
    )
    path = tmp_path / "sweep.toml"

    said = refused(tmp_path, text)

    assert said == [
        f"{path}: reference: no method 'magnitud'; did you mean 'magnitude'?; choose one of umec, "
        "magnitude, none",
        f"{path}: methods.umec: method: budget.flop: unknown key; did you mean 'flops'?",
        f"{path}: methods.magnitude: finetun: unknown key; did you mean 'finetune'?",
        f"{path}: methods.none: method.type: unknown 'nun'; did you mean 'none'?; choose one of "
        + ", ".join(sorted(METHODS)),
    ]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[methods.umec]", "[method.umec]", "method: unknown key; did you mean 'methods'?"),
        ("[0.25, 0.5]", "0.25", "sweep.method.budget.flops: expected a list of values, got 0.25"),
        ("[0.25, 0.5]", "[]", "sweep.method.budget.flops: expected a list of values, got []"),
        ("[0.25, 0.5]", "[0.25, 2]", "methods.umec: method: budget.flops: Input should be less"),
        ("[0.25, 0.5]", "[0.25, 0.25]", "umec flops=0.25: the same run as umec flops=0.25"),
        ("sweep = {}", "sweep = 3", "methods.none.sweep: expected sections and keys of the base"),
        ("finetune.epochs = 4", "seeds = [4]", "methods.magnitude: seeds: no part of a cell"),
        ("method.budget.flops", "threads", "methods.umec: threads: no part of a cell"),
        ("method.budget.flops", "name.x", "methods.umec: name: no part of a cell"),
        ("method.budget.flops", "train.lr.x", "methods.umec: sweep.train.lr.x: 'lr' is a value"),
        ("[1, 2, 3]", "[1, 1]", "tiny.toml: seeds: a seed stands twice"),
        ('"tiny.toml"', '"none.toml"', "none.toml: cannot be read"),
    ],
)
def test_what_cannot_be_swept_is_refused(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    """With what came, and what was expected."""
    assert any(said in line for line in refused(tmp_path, SWEEP.replace(before, after)))


def test_session_rankers_are_not_swept(tmp_path: Path) -> None:
    """Their line compares tables by other means."""
    said = refused(tmp_path, SWEEP, "task=session")

    assert said == [
        f"{tmp_path / 'tiny.toml'}: task = 'session': a sweep is of click-through rankers"
    ]


def test_a_variants_overrides_make_its_run_of_the_base(tmp_path: Path) -> None:
    """`compress run BASE -o …` is told by them to the last option, but for the threads."""
    sweep = load(written(tmp_path), ["data.rows=2000"])

    for variant in sweep.variants:
        table = read(sweep.base, variant.overrides)
        again = plan_as_json(resolve(check(RunConfig, table, where="")))
        assert again == plan_as_json(variant.plan) | {"threads": None}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*-sweep.toml")), ids=lambda path: path.stem)
def test_the_sweeps_that_come_along_are_sound(path: Path) -> None:
    """Every cell of theirs resolves; the reference is at every budget."""
    sweep = load(path)

    reached = {variant.at for variant in sweep.variants if variant.method == sweep.reference}
    assert reached >= {variant.at for variant in sweep.variants if variant.at}


def test_the_examples_hold() -> None:
    """Those of the code."""
    assert doctest.testmod(plan).failed == 0
