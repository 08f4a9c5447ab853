"""The config refuses what it does not know, and says what it would have known."""

from pathlib import Path
from typing import ClassVar

import pytest

from compress.config import ConfigError, Frozen, RunConfig, check, configure, load

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
        ("seeds = [1, 1]\n" + MINIMAL, "seeds: Value error, a seed stands twice"),
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
