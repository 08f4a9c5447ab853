"""One TOML file is one run. What is mistyped is refused with the nearest right key.

Sections whose keys depend on a registry (`data`, `ranker`, `method`, `table`) hold a ``type`` and
that member's own options, which are checked against the ``Config`` that stands beside its code; so
a new source, ranker or method touches no file here.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, TypeVar, cast, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


class Frozen(BaseModel):
    """A section: immutable, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CompressError(Exception):
    """What a caller can mend: commands tell it in one message, without a traceback."""


class ConfigError(CompressError):
    """The config cannot be used; the text says where, what came and what was expected."""


class DistillConfig(Frozen):
    """Soft targets of the dense ranker: weight·BCE(teacher, ``temperature``) + (1 - weight)·BCE."""

    weight: float = Field(default=0.0, ge=0.0, le=1.0)
    temperature: float = Field(default=1.0, gt=0.0)


class TrainConfig(Frozen):
    """The one training loop's options. Epochs are passes over the training rows.

    Attributes:
        embedding_lr: None: as ``lr``; 0 leaves the tables as they are.
        patience: looks at validation without a new best that are borne before stopping.
        lr_decay: factor on both rates after each such look.
        weight_decay: of the layers.
        embedding_l2: pulls on the rows of a batch.
        ema_decay: over 0, what is judged and kept is the weights' moving average.
        half: multiply in bfloat16 while training; weights, their steps and the looks at
            validation stay in float32. See docs/training.md for which processors gain by it.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0.0)
    embedding_lr: float | None = Field(default=None, ge=0.0)
    batch_size: int = Field(default=2048, gt=0)
    epochs: int = Field(default=3, gt=0)
    patience: int = Field(default=2, ge=0)
    lr_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    embedding_l2: float = Field(default=0.0, ge=0.0)
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    evaluations_per_epoch: int = Field(default=1, gt=0)
    half: bool = False
    distill: DistillConfig = DistillConfig()


class Section(BaseModel):
    """A registry's section: the member's name and its options, unchecked until resolved."""

    model_config = ConfigDict(frozen=True, extra="allow")
    type: str

    @property
    def options(self) -> Mapping[str, Any]:
        """The section without its ``type``."""
        return self.model_extra or {}


class ExportConfig(Frozen):
    """What goes into the bundles; ``timing_candidates``: of the requests that are timed."""

    golden_requests: int = Field(default=16, gt=0)
    golden_candidates: int = Field(default=50, gt=0)
    timing_candidates: int = Field(default=200, gt=0)


class QuantizeConfig(Frozen):
    """Whether the slim graph goes out in eight bits. The dense one is fp32, to compare with.

    A section of its own, since it is no part of how rankers are made: a finished run that is
    repeated with another one trains nothing.

    Attributes:
        numerics: ``auto``: the fastest form that loses next to nothing and pays in time, else
            fp32. The name of a form: that one if it loses next to nothing, whatever the clock
            says (it saves bytes). ``fp32``: nothing is tried; the default, because what a clock
            decides may come out otherwise on another machine.
        min_speedup: least ratio of fp32's time for a request to int8's, for ``auto``.
        max_logloss_rise: most that the log loss of the validation rows may rise by.
        max_auc_loss: most that their AUC may fall by.
        calibration_rows: training rows that set the scales of ``int8-static``.
    """

    numerics: Literal["fp32", "auto", "int8-static", "int8-dynamic"] = "fp32"
    min_speedup: float = Field(default=1.05, gt=0.0)
    max_logloss_rise: float = 2e-4
    max_auc_loss: float = 2e-4
    calibration_rows: int = Field(default=8192, gt=0)


class GateConfig(Frozen):
    """Mean quality that slimming may cost, else nothing is published (exit code 3).

    A negative bound asks for a gain.
    """

    max_auc_loss: float = 1.0
    max_logloss_rise: float = 10.0


class RetrainConfig(Frozen):
    """What the method keeps is trained from nothing, as the dense ranker was, then fine-tuned.

    Attributes:
        distill: soft targets of the dense ranker meanwhile.
    """

    distill: DistillConfig = DistillConfig()


class TierConfig(Frozen):
    """A sibling in the same bundle: the method's options again, but for the budget.

    Attributes:
        name: what the bundle calls it.
        budget: in the method's place.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    budget: dict[str, Any]


class PublishConfig(Frozen):
    """Where the bundles go: a folder or any fsspec URL."""

    store: str = "store"
    alias: str = "prod"


Seed = Annotated[int, Field(ge=0, lt=1 << 63)]  # what torch's and numpy's generators all take


class AnyRun(Frozen):
    """What the runs of both lines have: a name, seeds, data, a ranker, a place in a store."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    seeds: tuple[Seed, ...] = Field(default=(1,), min_length=1)
    runs: Path = Path("runs")
    threads: int | None = Field(default=None, gt=0)
    data: Section
    ranker: Section
    publish: PublishConfig = PublishConfig()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed stands twice, and would count twice in the means")
        return seeds


class RunConfig(AnyRun):
    """A whole run: data → train → compress → fine-tune → export → quantize → evaluate → publish."""

    train: TrainConfig = TrainConfig()
    method: Section
    tiers: tuple[TierConfig, ...] = ()
    retrain: RetrainConfig | None = None
    finetune: TrainConfig = TrainConfig()
    table: Section = Section(type="float32")
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    gate: GateConfig = GateConfig()

    @field_validator("tiers")
    @classmethod
    def _named_apart(cls, tiers: tuple[TierConfig, ...]) -> tuple[TierConfig, ...]:
        if len({tier.name for tier in tiers}) != len(tiers):
            raise ValueError("two tiers have one name")
        return tiers


class Configurable(Protocol):
    """A registry's member: a class with the model of its options beside its code."""

    Config: ClassVar[type[BaseModel]]


C = TypeVar("C", bound=BaseModel)
T = TypeVar("T")


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the TOML file of a run of the click-through line.

    Raises:
        ConfigError: the file is missing, is no TOML, or a key or value in it is wrong.
    """
    return check(RunConfig, read(path, overrides), where=str(path))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file, then set each ``key=value`` of ``overrides`` in it; nothing is checked.

    Raises:
        ConfigError: the file is missing or is no TOML, or an override is none.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    for override in overrides:
        _set(table, override)
    return table


def _set(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"-o {override}: expected key=value, like -o method.budget=0.1")
    put(table, names, _value(text.strip()), where=f"-o {override}")


def put(table: dict[str, Any], names: Sequence[str], value: Any, where: str) -> None:
    """Set what lies under a path of names, in place; sections that are missing are made.

    Raises:
        ConfigError: one of them is a value; ``where`` says who asked.
    """
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {name!r} is a value, not a section")
    table[names[-1]] = value


def _value(text: str) -> Any:
    # Typed as in the file; what is no TOML is a bare word or path, which a shell leaves unquoted.
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


CLOSE: Final = 0.8  # of words that are nearly the same
TEACHERLESS: Final = "train.distill"  # which the dense ranker has in common with others, unused

Sections = Mapping[str, type[BaseModel]]  # a section -> what it may hold besides its type


def check(
    model: type[C],
    table: Mapping[str, Any],
    where: str,
    beside: Sequence[str] = (),
    sections: Sections = MappingProxyType({}),
) -> C:
    """Validate a table against a section's model; all its faults in one error.

    Args:
        model: what is expected.
        table: what came.
        where: what errors call the table.
        beside: keys that the section knows besides the model's, for hints.
        sections: of the table whose keys the model does not know, for hints.

    Raises:
        ConfigError: a line a fault, unknown keys with the nearest right one.
    """
    # Strictly, `true` and "512" are no numbers; and of the strict modes only JSON's takes a list
    # for a tuple, and text for a path or a date, as TOML and overrides write them.
    try:
        return model.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        faults = [fault for fault in error.errors() if not _follows(fault)]
        lines = [_explain(model, fault, beside, sections) for fault in faults]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def resolve(registry: Mapping[str, T], section: Section, where: str) -> T:
    """The registry's member that a section names.

    Raises:
        ConfigError: no such member; the text lists the choices.
    """
    if section.type in registry:
        return registry[section.type]
    raise ConfigError(
        f"{where}.type: unknown {section.type!r}{nearest(section.type, registry)}; "
        f"choose one of {', '.join(sorted(registry))}"
    )


def configure(registry: Mapping[str, type[T]], section: Section, where: str) -> tuple[type[T], Any]:
    """The registry's member that a section names, and the section's options as its ``Config``.

    Raises:
        ConfigError: no such member, or an option of it is wrong.
    """
    member = resolve(registry, section, where)
    return member, check(cast("Configurable", member).Config, section.options, where, ["type"])


def configured(
    registry: Mapping[str, type[T]], section: Section, where: str, faults: list[str]
) -> tuple[type[T], Any] | None:
    """As `configure`; what is wrong joins ``faults``, to be told with that of other sections."""
    try:
        return configure(registry, section, where)
    except ConfigError as error:
        faults.append(str(error))
        return None


def _follows(fault: Any) -> bool:
    # Refused items are told by themselves, and do not count towards their list's length.
    too_short: bool = fault["type"] == "too_short"
    return too_short and fault["ctx"]["actual_length"] < len(fault["input"])


def _explain(model: type[BaseModel], fault: Any, beside: Sequence[str], sections: Sections) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        *above, _ = fault["loc"]
        keys = _keys_at(model, above) if above else [*_keys_at(model, above), *beside]
        hint = (
            nearest(str(fault["loc"][-1]), keys, cutoff=CLOSE)
            or _deeper(model, fault, sections)
            or nearest(str(fault["loc"][-1]), keys)
            or f"; known keys: {', '.join(sorted(keys))}"
        )
        return f"{path}: unknown key{hint}"
    if fault["type"] == "missing":
        hint = nearest(str(fault["loc"][-1]), fault["input"], "is it what you meant by")
        return f"{path}: required, but absent{hint}"
    text = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):
        # A fault between keys: the text names them, and what came is the whole section.
        return f"{path}: {text}" if path else text
    return f"{path}: {text}, got {fault['input']!r}"


def _deeper(model: type[BaseModel], fault: Any, sections: Sections) -> str:
    """A question about the key of a section that ends much like one that stands in none."""
    if len(fault["loc"]) > 1:
        return ""
    key, inner = str(fault["loc"][0]), fault["input"]
    while isinstance(inner, Mapping) and inner:
        step = next(iter(inner))
        key, inner = f"{key}.{step}", inner[step]
    length = key.count(".") + 1
    found = {
        ".".join(parts[-length:]): path
        for path in reversed([*_paths(model, sections)])  # of those that end alike the first
        if len(parts := path.split(".")) > length and not path.startswith(TEACHERLESS)
    }
    close = difflib.get_close_matches(key, found, n=1, cutoff=CLOSE)
    return f"; did you mean {found[close[0]]!r}?" if close else ""


def _paths(model: type[BaseModel], sections: Sections, above: str = "") -> Iterator[str]:
    """The dotted keys of a model and of the sections in it."""
    for name, field in model.model_fields.items():
        path = f"{above}{name}"
        inner = sections.get(path, _model_in(field.annotation))
        yield path
        if get_origin(field.annotation) is not tuple and _is_model(inner):
            yield from _paths(inner, sections, f"{path}.")


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _keys_at(model: Any, path: Sequence[int | str]) -> list[str]:
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = _model_in(field.annotation) if field else model
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    # `tuple[Column, ...]`, `Column | None` and the like: the first pydantic model named in it.
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if _is_model(part):
            return part
    return annotation


def nearest(
    word: str, choices: Iterable[str], question: str = "did you mean", *, cutoff: float = 0.5
) -> str:
    """A question about the choice most like a word, empty if none is like it.

    >>> nearest("epoch", ["epochs", "lr"])
    "; did you mean 'epochs'?"
    """
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return f"; {question} {close[0]!r}?" if close else ""
