"""A sweep's TOML file, resolved into variants: a named method at a budget, over one base config.

base = "criteo.toml"                  # a config of `compress run`, beside this file
seeds = [1, 2, 3]
reference = "umec"                    # what the others are tested against; else the first one

[sweep]                               # keys of the base, and the values that each takes
method.budget.flops = [0.05, 0.1]

[methods.umec]                        # the base as it is
[methods.longer]
finetune.epochs = 3                   # laid on the base
[methods.dense]
method = {type = "none"}              # names its `type`, so it takes the base's place
sweep = {}                            # axes of its own: here none
"""

import copy
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from compress.config import ConfigError, Frozen, Seed, check, nearest, put, read
from compress.plan import Plan, check_run, plan_as_json, resolve

Table = Mapping[str, Any]

# These change no ranker, or have a key of their own in a sweep. Cells are judged in fp32.
UNSWEPT: Final = frozenset(
    {"gate", "name", "publish", "quantize", "runs", "seeds", "task", "threads"}
)


class SweepConfig(Frozen):
    """The file as it stands.

    Attributes:
        base: a run's config, by its path from this file's folder.
        seeds: None: those of the base.
        reference: of the paired tests; None: the first method.
        sweep: sections and keys of the base, with a list of values at each end.
        methods: by name, what is laid on the base; ``sweep`` in it: axes of its own.
    """

    base: Path
    seeds: tuple[Seed, ...] | None = None
    reference: str | None = None
    sweep: dict[str, Any] = Field(default={})
    methods: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Variant:
    """A method at a budget: an ordinary run, over all seeds.

    Attributes:
        budget: dotted key -> value, in the order of the axes.
        at: the budget in words, empty if there is none.
        overrides: what makes the run's config of the base's file.
    """

    method: str
    budget: Table
    at: str
    plan: Plan
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.method} {self.at}".rstrip()


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is to be run; nothing in it can be wrong any more."""

    path: Path
    base: Path
    seeds: tuple[int, ...]
    reference: str
    variants: tuple[Variant, ...]


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep's file and its base, and resolve every variant.

    Args:
        path: the sweep's file.
        overrides: ``key=value`` in it if it is one of its keys, else in the base.

    Raises:
        ConfigError: something is wrong in either, or in a variant; all variants' faults at once.
    """
    ours = [text for text in overrides if _first(text) in SweepConfig.model_fields]
    theirs = [text for text in overrides if text not in ours]
    config = check(SweepConfig, read(path, ours), where=str(path))
    file = path.parent / config.base
    base = read(file, theirs)
    if "task" in base:
        raise ConfigError(f"{file}: task = {base['task']!r}: a sweep is of click-through rankers")
    if config.seeds is not None:
        base["seeds"] = list(config.seeds)
    seeds = check_run(base, where=str(file)).seeds
    reference = config.reference or next(iter(config.methods))
    faults = [] if reference in config.methods else [_unknown(reference, config.methods)]
    variants: list[Variant] = []
    for method, entry in config.methods.items():
        try:
            variants += _variants(method, entry, config.sweep, base, file)
        except ConfigError as error:
            faults.append(str(error))
    faults += _alike(variants)
    if faults:
        raise ConfigError("\n".join(f"{path}: {line}" for line in "\n".join(faults).splitlines()))
    return Sweep(path, file, seeds, reference, tuple(variants))


def _first(override: str) -> str:
    return override.partition("=")[0].partition(".")[0].strip()


def _unknown(reference: str, methods: Table) -> str:
    hint = nearest(reference, methods)
    return f"reference: no method {reference!r}{hint}; choose one of {', '.join(methods)}"


def _variants(method: str, entry: Table, axes: Table, base: Table, file: Path) -> Iterator[Variant]:
    """A method at each of its budgets."""
    where = f"methods.{method}"
    over = {key: value for key, value in entry.items() if key != "sweep"}
    own = entry.get("sweep", axes)
    if not isinstance(own, Mapping):
        raise ConfigError(f"{where}.sweep: expected sections and keys of the base, got {own!r}")
    values = dict(_axes(own, "sweep" if own is axes else f"{where}.sweep"))
    if wrong := sorted({key.partition(".")[0] for key in (*over, *values)} & UNSWEPT):
        raise ConfigError(f"{where}: {', '.join(wrong)}: no part of a cell; set it in the base")
    names = short(list(values))
    faults: dict[str, None] = {}  # each once, however many budgets have it
    for each in itertools.product(*values.values()):
        budget = dict(zip(values, each, strict=True))
        at = " ".join(f"{names[key]}={_word(value)}" for key, value in budget.items())
        table = merged(base, over)
        try:
            for key, value in budget.items():
                put(table, key.split("."), value, where=f"sweep.{key}")
            plan = resolve(check_run(table | {"threads": 1}, where=""))
        except ConfigError as error:
            lines = str(error).splitlines()
            faults |= dict.fromkeys(f"{where}: {line.removeprefix(': ')}" for line in lines)
        else:
            yield Variant(method, budget, at, plan, tuple(_overrides(table, read(file))))
    if faults:
        raise ConfigError("\n".join(faults))


def _axes(table: Table, where: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Dotted key -> values, of sections within sections or of keys that are dotted already."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            for inner, values in _axes(value, f"{where}.{key}"):
                yield f"{key}.{inner}", values
        elif isinstance(value, list) and value:
            yield key, tuple(value)
        else:
            raise ConfigError(f"{where}.{key}: expected a list of values, got {value!r}")


def merged(base: Table, over: Table) -> dict[str, Any]:
    """A deep copy of ``base`` with ``over`` laid on it.

    >>> merged({"train": {"lr": 1, "epochs": 2}}, {"train": {"lr": 3}})
    {'train': {'lr': 3, 'epochs': 2}}
    >>> merged({"method": {"type": "umec", "unit": 8}}, {"method": {"type": "none"}})
    {'method': {'type': 'none'}}
    """
    found = copy.deepcopy(dict(base))
    for key, value in over.items():
        below = found.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and "type" not in value:
            found[key] = merged(below, value)
        else:
            found[key] = copy.deepcopy(value)
    return found


def short(keys: Sequence[str]) -> dict[str, str]:
    """What dotted keys are called where there is little room.

    >>> short(["method.unit", "train.lr", "finetune.lr"])
    {'method.unit': 'unit', 'train.lr': 'train.lr', 'finetune.lr': 'finetune.lr'}
    """
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)
    }


def _word(value: Any) -> str:
    return value if isinstance(value, str) else toml(value)


def toml(value: Any) -> str:
    """A value as TOML writes it in one line.

    >>> toml({"type": "umec", "budget": {"flops": 0.1}, "parts": ["fields"], "fast": True})
    '{type = "umec", budget = {flops = 0.1}, parts = ["fields"], fast = true}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else json.dumps(name, ensure_ascii=False)


def _overrides(table: Table, file: Table) -> Iterator[str]:
    """What of a variant's config is not as in the base's file, in whole sections."""
    for key, value in table.items():
        if key != "threads" and file.get(key) != value:
            yield f"{key}={toml(value)}"


def _alike(variants: Sequence[Variant]) -> list[str]:
    """Variants that would be one run, and stand in their own way."""
    seen: dict[str, str] = {}
    faults = []
    for variant in variants:
        run = json.dumps(plan_as_json(variant.plan), sort_keys=True)
        if run in seen:
            faults.append(f"{variant.name}: the same run as {seen[run]}; leave one of them out")
        seen.setdefault(run, variant.name)
    return faults
