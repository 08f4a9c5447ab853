"""The config refuses what it does not know, and says what it would have known."""

import math
from datetime import date
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import model_validator

from compress.config import ConfigError, Frozen, RunConfig, check, configure, load, read
from compress.data.split import Split
from compress.methods.umec import UmecConfig
from compress.plan import check_run
from compress.rankers.dcnv2 import DcnV2Config
from compress.rankers.dlrm import DlrmConfig

MINIMAL = """
name = "ctr"
[data]
type = "synthetic"
[ranker]
type = "dlrm"
[method]
type = "umec"
"""


class Umec:
    """Stands for a registry's member."""

    class Config(Frozen):
        """Its options."""

        budget: float = 0.5
        mode: str = "joint"


class Column(Frozen):
    """Stands for a nested record of a section's options."""

    name: str
    kind: str = "numeric"


class Table:
    """Stands for a source with a list of columns."""

    class Config(Frozen):
        """Its options."""

        columns: tuple[Column, ...] = ()


class Pair(Frozen):
    """Stands for keys that must agree."""

    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> "Pair":
        if self.low > self.high:
            raise ValueError("low is over high")
        return self


class Registry:
    """The stand-ins, under their config names."""

    methods: ClassVar = {"umec": Umec, "none": Umec}
    sources: ClassVar = {"table": Table}


@pytest.fixture
def write(tmp_path: Path):
    """Writes a config file and returns its path."""

    def _write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return _write


def test_a_minimal_config_needs_three_types_and_a_name(write):
    """All else has a default."""
    config = load(write(MINIMAL))

    assert isinstance(config, RunConfig)
    assert (config.data.type, config.seeds) == ("synthetic", (1,))


def test_a_config_is_immutable(write):
    """What was validated stays valid."""
    config = load(write(MINIMAL))

    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = [1]\n" + MINIMAL, "seed: unknown key; did you mean 'seeds'?"),
        ("epochs = 2\n" + MINIMAL, "epochs: unknown key; did you mean 'train.epochs'?"),
        (MINIMAL + "[train]\nepoch = 2\n", "train.epoch: unknown key; did you mean 'epochs'?"),
        (
            MINIMAL + "[train.distill]\nwieght = 0.5\n",
            "train.distill.wieght: unknown key; did you mean 'weight'?",
        ),
        (MINIMAL + "[gate]\nzzz = 1\n", "gate.zzz: unknown key; known keys: max_auc_loss"),
        (MINIMAL + "[train]\nepochs = 'two'\n", "train.epochs: Input should be a valid integer"),
        (MINIMAL + "[train]\nlr = -1.0\n", "train.lr: Input should be greater than 0, got -1.0"),
        (MINIMAL.replace("[method]\ntype", "[method]\ntyp"), "method.type: required, but absent"),
        (MINIMAL.replace('type = "umec"', 'typ = "umec"'), "is it what you meant by 'typ'?"),
        (MINIMAL.replace('"ctr"', '"C T R"'), "name: String should match pattern"),
        ("seeds = []\n" + MINIMAL, "seeds: Tuple should have at least 1 item"),
        ("seeds = [1, 1]\n" + MINIMAL, "seeds: a seed stands twice"),
        ("name = ", "not TOML"),
    ],
)
def test_a_fault_is_named_with_its_place_and_remedy(write, text, said):
    """A mistyped key comes with the nearest right one, a wrong value with what it should be."""
    with pytest.raises(ConfigError) as caught:
        load(write(text))

    assert said in str(caught.value)
    assert "run.toml" in str(caught.value)


def test_all_faults_are_told_at_once(write):
    """A config with two faults needs one round to mend, not two."""
    with pytest.raises(ConfigError) as caught:
        load(write(MINIMAL + "[train]\nepoch = 2\nlr = 0\n"))

    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_a_config_error(tmp_path):
    """The reader sees the path and the system's reason."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_an_unknown_registry_member_is_refused_with_the_nearest(write):
    """A mistyped type lists what there is."""
    config = load(write(MINIMAL.replace('"umec"', '"umecc"')))

    with pytest.raises(ConfigError) as caught:
        configure(Registry.methods, config.method, "method")

    assert str(caught.value) == (
        "method.type: unknown 'umecc'; did you mean 'umec'?; choose one of none, umec"
    )


def test_an_option_of_a_registry_section_is_checked_by_its_member(write):
    """The key belongs to the member's own Config, not to the run's."""
    config = load(write(MINIMAL + "budgets = 0.1\n"))

    with pytest.raises(ConfigError, match=r"method: budgets: unknown key; did you mean 'budget'\?"):
        configure(Registry.methods, config.method, "method")


def test_the_type_of_a_section_is_among_its_keys(write):
    """A second, mistyped ``type`` beside the right one is told as such."""
    config = load(write(MINIMAL), ["method.typ=none"])

    with pytest.raises(ConfigError, match=r"method: typ: unknown key; did you mean 'type'\?"):
        configure(Registry.methods, config.method, "method")


def test_a_fault_between_keys_is_told_without_the_section():
    """The text names the keys; all of the section would bury it."""
    with pytest.raises(ConfigError) as caught:
        check(Pair, {"low": 3, "high": 2}, "data")

    assert str(caught.value) == "data: low is over high"


def test_a_key_inside_a_list_of_records_is_checked():
    """The place names the record's position, the hint the record's keys."""
    with pytest.raises(ConfigError, match=r"columns\.1\.kinds: unknown key; did you mean 'kind'"):
        check(Table.Config, {"columns": [{"name": "a"}, {"name": "b", "kinds": "x"}]}, "data")


def test_an_override_is_typed_as_in_the_file(write):
    """Numbers, lists and booleans parse as TOML; what is no TOML is text."""
    config = load(
        write(MINIMAL),
        ["method.budget=0.1", "seeds=[1, 2]", "publish.store=/srv/models", "train.lr=1e-2"],
    )

    assert configure(Registry.methods, config.method, "method")[1].budget == 0.1
    assert (config.seeds, config.publish.store, config.train.lr) == ((1, 2), "/srv/models", 0.01)


@pytest.mark.parametrize("override", ["method.budget", "=1", "a..b=1", "name.x=1"])
def test_a_malformed_override_is_refused(write, override):
    """An override without a key, a value or a section to go to is named."""
    with pytest.raises(ConfigError, match="-o "):
        load(write(MINIMAL), [override])


def test_a_mistyped_override_is_refused_like_a_mistyped_key(write):
    """Overrides pass the same check as the file."""
    with pytest.raises(ConfigError, match=r"train\.epoch: unknown key; did you mean 'epochs'"):
        load(write(MINIMAL), ["train.epoch=3"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seeds=[-1]", "seeds.0: Input should be greater than or equal to 0, got -1"),
        (f"seeds=[{10**23}]", "seeds.0: Input should be less than 9223372036854775808"),
        ("gate.max_auc_loss=nan", "gate.max_auc_loss: Input should be a finite number, got nan"),
        ("train.lr=inf", "train.lr: Input should be a finite number, got inf"),
        ("train.batch_size=true", "train.batch_size: Input should be a valid integer, got True"),
        ('train.batch_size="512"', "train.batch_size: Input should be a valid integer, got '512'"),
        ("train.lr=true", "train.lr: Input should be a valid number, got True"),
    ],
)
def test_an_absurd_value_is_refused_with_its_bound(write, override, said):
    """Before anything runs; and neither a truth value nor text passes for a number."""
    with pytest.raises(ConfigError) as caught:
        load(write(MINIMAL), [override])

    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "key", "value", "said"),
    [
        (DlrmConfig, "top", [0], "top.0: Input should be greater than 0, got 0"),
        (DlrmConfig, "top", [-3], "top.0: Input should be greater than 0, got -3"),
        (DlrmConfig, "bottom", [0], "bottom.0: Input should be greater than 0, got 0"),
        (DlrmConfig, "bottom", [10**6], "bottom.0: Input should be less than or equal to 65536"),
        (DcnV2Config, "deep", [0], "deep.0: Input should be greater than 0, got 0"),
        (DcnV2Config, "crosses", 10**6, "crosses: Input should be less than or equal to 64"),
        (DlrmConfig, "dim", 10**12, "dim: Input should be less than or equal to 4096"),
        (UmecConfig, "prox_lr", math.inf, "prox_lr: Input should be a finite number, got inf"),
        (UmecConfig, "budget", {"flops": True}, "budget.flops: Input should be a valid number"),
        (UmecConfig, "budget", {"flops": 2}, "budget.flops: Input should be less than or equal to"),
        (UmecConfig, "budget", {}, "budget: expected at least one of flops, bytes, p50_us, fields"),
        (UmecConfig, "budget", {"bytes": "8 megs"}, 'expected a size like "8MiB"'),
        (UmecConfig, "budget", {"bytes": 8}, "expected a share in (0, 1]"),
    ],
)
def test_an_absurd_option_is_refused_with_its_bound(model, key, value, said):
    """What would end in a traceback, or in all the memory, ends in a line."""
    fine = {"budget": {"flops": 0.5}} if model is UmecConfig else {}
    with pytest.raises(ConfigError) as caught:
        check(model, fine | {key: value}, "x")

    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_whole_number_is_a_number_and_a_date_a_date():
    """Strict about kinds, not about how TOML writes them."""
    split = {"column": "day", "validation_from": date(2020, 1, 1), "test_from": 1_600_000_000}

    assert check(UmecConfig, {"budget": {"flops": 1}}, "method").budget.flops == 1.0
    assert check(Split, split, "split").validation_from == date(2020, 1, 1)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("budget.flops=0.1", "budget: unknown key; did you mean 'method.budget.flops'?"),
        ("budgets.flops=0.1", "budgets: unknown key; did you mean 'method.budget.flops'?"),
        ("interaction=dot", "interaction: unknown key; did you mean 'ranker.interaction'?"),
        ("seed=3", "seed: unknown key; did you mean 'seeds'?"),
        ("distill.weight=0.5", "distill: unknown key; did you mean 'method.distill.weight'?"),
        ("gates.max_auc_loss=1", "gates: unknown key; did you mean 'gate'?"),
    ],
)
def test_a_key_that_stands_in_no_section_is_told_which_it_belongs_into(
    tmp_path: Path, override: str, hint: str
) -> None:
    """Also of the sections whose keys depend on their type."""
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)

    with pytest.raises(ConfigError) as refused:
        check_run(read(path, [override]), "run.toml")

    assert str(refused.value) == f"run.toml: {hint}"
