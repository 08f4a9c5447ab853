"""Measure what FuxiCTR's rankers reach on a Criteo sample: the bar for our dense rankers.

    python benchmarks/fuxictr_criteo.py PATH/train.parquet [--env .cache/fuxictr] [--search]

FuxiCTR is installed into an environment of its own (``--env``); Slimrank does not depend on it.
The file has ``label``, ``I1..I13``, ``C1..C26`` and ``chunk`` (0..71, time order). Chunks 0-59
train, 60-65 choose the setting and the stopping point, 66-71 are scored once per seed.

FuxiCTR's wheel brings the feature processor, the layers and the training loop, but not the
ranking models of its zoo, which are assembled here from its layers after the papers.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import venv
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REQUIREMENTS = ("fuxictr==2.3.10", "torch==2.13.0")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="FuxiCTR's rankers on a Criteo sample.")
    parser.add_argument("data", type=Path, help="train.parquet with label, I1..I13, C1..C26, chunk")
    parser.add_argument("--env", type=Path, default=Path(".cache/fuxictr"))
    parser.add_argument("--out", type=Path, default=Path("reports/fuxictr_criteo.json"))
    parser.add_argument("--models", nargs="+", default=["DLRM", "DCNv2", "FinalNet"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--search", action="store_true", help="try every setting on validation, not only the chosen"
    )
    return parser.parse_args()


def _enter_environment(env: Path) -> None:
    """Create FuxiCTR's environment if it is missing and go on in its interpreter."""
    if Path(sys.prefix).resolve() == env.resolve():
        return
    python = env / "bin" / "python"
    ready = env / "installed.txt"
    if not ready.is_file() or ready.read_text().split() != list(REQUIREMENTS):
        venv.create(env, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        ready.write_text("\n".join(REQUIREMENTS))
    sys.exit(subprocess.run([python, *sys.argv], check=False).returncode)


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    _enter_environment(ARGUMENTS.env)

import numpy as np  # noqa: E402 - what follows exists only in FuxiCTR's environment
import polars as pl  # noqa: E402
import torch  # noqa: E402
from fuxictr.datasets.criteo import CustomizedFeatureProcessor  # noqa: E402
from fuxictr.pytorch.layers import (  # noqa: E402
    CrossNetV2,
    FeatureEmbedding,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel  # noqa: E402
from fuxictr.pytorch.torch_utils import seed_everything  # noqa: E402
from torch import Tensor, nn  # noqa: E402

NUMERIC = [f"I{i}" for i in range(1, 14)]
CATEGORICAL = [f"C{i}" for i in range(1, 27)]
PARTS = {"train": (0, 59), "validation": (60, 65), "test": (66, 71)}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a model: how the fields are encoded, the widths and the training."""

    numeric: str = "x4"  # "x4": buckets floor(ln(x)^2) as ids; "log": log1p, scaled, as numbers
    min_count: int = 2
    dim: int = 16
    regularizer: float = 1e-5
    dropout: float = 0.0
    batch_size: int = 2048
    learning_rate: float = 1e-3
    units: tuple[int, ...] = (512, 256)
    batch_norm: bool = False
    interaction: str = "dot"  # of DLRM; or "cat"


# One list for the three models: FuxiCTR's usual Criteo setting first, then the settings that a
# first look at this small set called for (numbers as numbers, small batches, firmer embeddings).
SEARCH = (
    Setting("x4", 10, 16, 1e-5, 0.0, 4096),
    Setting("x4", 5, 16, 3e-3, 0.1, 512),
    Setting("log", 5, 10, 1e-3, 0.1, 512),
    Setting("log", 5, 16, 3e-3, 0.1, 512),
    Setting("log", 10, 16, 3e-3, 0.0, 256, 5e-4),
    Setting("log", 5, 16, 1e-3, 0.2, 512, units=(64, 64, 64)),
)
# What --search chose on validation.
CHOSEN = {
    "DLRM": Setting("log", 10, 16, 3e-3, 0.0, 256, 5e-4),
    "DCNv2": Setting("log", 5, 16, 3e-3, 0.1, 512),
    "FinalNet": Setting("log", 10, 16, 3e-3, 0.0, 256, 5e-4),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """The three parts as FuxiCTR's processor encodes them."""

    feature_map: Any
    parts: dict[str, dict[str, Tensor]]


class Processor(CustomizedFeatureProcessor):
    """FuxiCTR's Criteo processor, with numbers besides its buckets."""

    def convert_to_log(self, name: str) -> pl.Expr:
        """log(1 + x), with what is below zero at zero."""
        return pl.col(name).clip(lower_bound=0).log1p()


def encode(rows: pl.DataFrame, setting: Setting, folder: Path) -> Encoded:
    """Fit FuxiCTR's processor on the training rows and encode all parts with it."""
    numbers = {
        "x4": {"type": "categorical", "preprocess": "convert_to_bucket"},
        "log": {"type": "numeric", "preprocess": "convert_to_log", "normalizer": "StandardScaler"},
    }[setting.numeric]
    processor = Processor(
        feature_cols=[
            {"name": NUMERIC, "active": True, "dtype": "float", **numbers},
            {"name": CATEGORICAL, "active": True, "dtype": "str", "type": "categorical"},
        ],
        label_col={"name": "label", "dtype": "float"},
        dataset_id=f"criteo_{setting.numeric}_{setting.min_count}",
        data_root=str(folder),
    )
    frames = {
        part: processor.preprocess(rows.lazy().filter(pl.col("chunk").is_between(*bounds)))
        for part, bounds in PARTS.items()
    }
    processor.fit(frames["train"], min_categr_count=setting.min_count)
    parts = {}
    for part, frame in frames.items():
        columns = processor.transform(frame.collect().to_dict(as_series=False))
        parts[part] = {name: torch.as_tensor(np.asarray(v)) for name, v in columns.items()}
    return Encoded(processor.feature_map, parts)


class Batches:
    """Batches of a part from memory, in the shape that FuxiCTR's loaders give."""

    def __init__(self, columns: dict[str, Tensor], batch_size: int, *, shuffle: bool) -> None:
        self.columns = columns
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.rows = len(next(iter(columns.values())))

    def __len__(self) -> int:
        """Batches per pass."""
        return (self.rows + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """One pass, in a new order if shuffled."""
        order = torch.randperm(self.rows) if self.shuffle else torch.arange(self.rows)
        for rows in order.split(self.batch_size):
            yield {name: column[rows] for name, column in self.columns.items()}


class Ranker(BaseModel, ABC):
    """What the three models share: FuxiCTR's loop around an embedding and a head."""

    def __init__(self, feature_map: Any, setting: Setting, folder: Path, steps: int) -> None:
        super().__init__(
            feature_map,
            model_id=type(self).__name__,
            monitor={"AUC": 1, "logloss": -1},
            early_stop_patience=3,
            eval_steps=steps,
            embedding_regularizer=setting.regularizer,
            model_root=str(folder),
            metrics=["AUC", "logloss"],
            verbose=0,
        )
        Path(self.model_dir).mkdir(parents=True, exist_ok=True)
        self.build(setting)
        self.compile("adam", "binary_crossentropy", setting.learning_rate)
        self.reset_parameters()

    @abstractmethod
    def build(self, setting: Setting) -> None:
        """Make the layers."""

    def answer(self, logits: Tensor) -> dict[str, Tensor]:
        """FuxiCTR's answer: the probability under ``y_pred``, from logits (B, 1)."""
        return {"y_pred": self.output_activation(logits)}


class DLRM(Ranker):
    """Naumov et al. 2019: numbers enter as one vector by a bottom MLP; fields meet in products."""

    def build(self, setting: Setting) -> None:
        """Make the layers."""
        features = self.feature_map.features
        self.numbers = [name for name, spec in features.items() if spec["type"] == "numeric"]
        self.embedding = FeatureEmbedding(
            self.feature_map, setting.dim, not_required_feature_columns=self.numbers
        )
        fields = len(features) - len(self.numbers)
        if self.numbers:
            self.bottom = MLP_Block(
                len(self.numbers), [512, 256, 64], "ReLU", setting.dim, output_activation="ReLU"
            )
            fields += 1
        self.interaction: nn.Module
        if setting.interaction == "cat":
            self.interaction, width = nn.Flatten(), fields * setting.dim
        else:
            self.interaction = InnerProductInteraction(fields, output="inner_product")
            width = fields * (fields - 1) // 2 + setting.dim * bool(self.numbers)
        self.with_numbers = setting.interaction == "dot"
        self.top = MLP_Block(
            width,
            list(setting.units),
            "ReLU",
            output_dim=1,
            dropout_rates=setting.dropout,
            batch_norm=setting.batch_norm,
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The probability from the fields by name."""
        inputs = self.get_inputs(batch)
        numbers = [inputs.pop(name).float() for name in self.numbers]
        vectors = self.embedding(inputs)  # (B, fields, dim)
        if not numbers:
            return self.answer(self.top(self.interaction(vectors)))
        dense = self.bottom(torch.stack(numbers, dim=1))
        met = self.interaction(torch.cat([vectors, dense.unsqueeze(1)], dim=1))
        return self.answer(self.top(torch.cat([met, dense], dim=1) if self.with_numbers else met))


class DCNv2(Ranker):
    """Wang et al. 2021, parallel: full-matrix cross layers beside an MLP."""

    def build(self, setting: Setting) -> None:
        """Make the layers."""
        self.embedding = FeatureEmbedding(self.feature_map, setting.dim)
        width = len(self.feature_map.features) * setting.dim
        self.cross = CrossNetV2(width, 3)
        self.deep = MLP_Block(
            width,
            list(setting.units),
            "ReLU",
            dropout_rates=setting.dropout,
            batch_norm=setting.batch_norm,
        )
        self.last = nn.Linear(width + setting.units[-1], 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The probability from the fields by name."""
        vectors = self.embedding(self.get_inputs(batch), flatten_emb=True)
        return self.answer(self.last(torch.cat([self.cross(vectors), self.deep(vectors)], dim=1)))


class Factorized(nn.Module):
    """A linear layer half of whose outputs are multiplied by the other half (FINAL, eq. 3)."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, units)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B, units)."""
        linear, factor = self.linear(x).chunk(2, dim=-1)
        return torch.cat([linear, linear * factor], dim=-1)


def factorized_block(width: int, setting: Setting) -> nn.Sequential:
    """Stack factorized layers with batch norm, ending in one logit."""
    layers: list[nn.Module] = []
    for units in setting.units:
        layers += [Factorized(width, units), nn.BatchNorm1d(units), nn.Dropout(setting.dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 1))


class FinalNet(Ranker):
    """Zhu et al. 2023, two blocks: both learn from their mean, the first sees gated fields too."""

    def build(self, setting: Setting) -> None:
        """Make the layers."""
        self.embedding = FeatureEmbedding(self.feature_map, setting.dim)
        fields = len(self.feature_map.features)
        self.gate = nn.Linear(fields, fields)
        self.block1 = factorized_block(2 * fields * setting.dim, setting)
        self.block2 = factorized_block(fields * setting.dim, setting)

    def reset_parameters(self) -> None:
        """FuxiCTR's initialisation, and gates that begin open."""
        super().reset_parameters()
        nn.init.zeros_(self.gate.weight)
        nn.init.ones_(self.gate.bias)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean of the two blocks, and each alone for the loss."""
        vectors = self.embedding(self.get_inputs(batch))  # (B, fields, dim)
        gates = self.gate(vectors.transpose(1, 2)).transpose(1, 2)
        first = self.block1(torch.cat([vectors, vectors * gates], dim=1).flatten(1))
        second = self.block2(vectors.flatten(1))
        sigmoid = self.output_activation
        return {
            "y_pred": sigmoid((first + second) / 2),
            "blocks": torch.cat([sigmoid(first), sigmoid(second)], dim=1),
        }

    def add_loss(self, answer: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The mean learns from the labels, each block from the mean."""
        taught = answer["y_pred"].detach().expand(-1, 2)
        blocks = self.loss_fn(answer["blocks"], taught, reduction="mean")
        return super().add_loss(answer, labels) + 2 * blocks


MODELS: dict[str, type[Ranker]] = {"DLRM": DLRM, "DCNv2": DCNv2, "FinalNet": FinalNet}


def train(
    name: str, setting: Setting, encoded: Encoded, seed: int, parts: list[str]
) -> dict[str, Any]:
    """Train once with FuxiCTR's loop; the named parts' metrics of the best checkpoint."""
    seed_everything(seed)
    started = time.perf_counter()
    load = {
        part: Batches(encoded.parts[part], setting.batch_size, shuffle=part == "train")
        for part in ["train", *parts]
    }
    with tempfile.TemporaryDirectory() as folder:
        steps = -(-len(load["train"]) // 4)  # validated four times an epoch
        model = MODELS[name](encoded.feature_map, setting, Path(folder), steps)
        model.fit(load["train"], epochs=20, validation_data=load["validation"])
    metrics = {part: dict(model.evaluate(load[part])) for part in parts}
    epochs = model._total_steps / len(load["train"])  # noqa: SLF001 - the loop keeps no log of it
    return {"seed": seed, "epochs": epochs, "s": time.perf_counter() - started, **metrics}


def line(name: str, setting: Setting, metrics: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    units = "-".join(map(str, setting.units))
    cells = [
        name,
        metrics["seed"],
        setting.numeric,
        setting.min_count,
        setting.dim,
        f"{setting.regularizer:g}",
    ]
    cells += [setting.dropout, setting.batch_size, f"{setting.learning_rate:g}", units]
    quality = metrics["validation"]
    cells += [f"{quality['AUC']:.4f}", f"{quality['logloss']:.4f}", f"{metrics['epochs']:.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def summary(runs: list[dict[str, Any]], part: str) -> dict[str, list[float]]:
    """Mean and standard deviation of a part's metrics over the seeds."""
    answer = {}
    for metric in ("AUC", "logloss"):
        values = np.array([run[part][metric] for run in runs])
        answer[metric] = [float(values.mean()), float(values.std(ddof=1))]
    return answer


def search(
    name: str, encodings: "Encodings", finalists: int = 2, seeds: int = 3
) -> tuple[Setting, list[dict[str, Any]]]:
    """Choose on validation: every setting once, then the best few by their mean over seeds.

    One run is not enough: seeds differ by as much as neighbouring settings do.
    """
    tried = []

    def attempt(setting: Setting, seed: int) -> None:
        metrics = train(name, setting, encodings(setting), seed, ["validation"])
        print(line(name, setting, metrics), flush=True)
        tried.append((setting, metrics))

    def monitor(setting: Setting) -> float:
        runs = [metrics["validation"] for other, metrics in tried if other == setting]
        return float(np.mean([run["AUC"] - run["logloss"] for run in runs]))

    for setting in SEARCH:
        attempt(setting, 1)
    best = sorted(SEARCH, key=monitor, reverse=True)[:finalists]
    for setting in best:
        for seed in range(2, seeds + 1):
            attempt(setting, seed)
    return max(best, key=monitor), [{"setting": asdict(s), **metrics} for s, metrics in tried]


class Encodings:
    """The rows encoded under each setting, made once."""

    def __init__(self, rows: pl.DataFrame, folder: Path) -> None:
        self.rows = rows
        self.folder = folder
        self.made: dict[tuple[str, int], Encoded] = {}

    def __call__(self, setting: Setting) -> Encoded:
        """What the setting trains on."""
        key = (setting.numeric, setting.min_count)
        if key not in self.made:
            self.made[key] = encode(self.rows, setting, self.folder)
        return self.made[key]


def measure(name: str, setting: Setting, encodings: Encodings, seeds: int) -> dict[str, Any]:
    """Train the setting once per seed and score the test part once per run."""
    parts = ["validation", "test"]
    runs = [train(name, setting, encodings(setting), seed, parts) for seed in range(1, seeds + 1)]
    report = {"setting": asdict(setting), **{part: summary(runs, part) for part in parts}}
    for part in parts:
        auc, logloss = report[part]["AUC"], report[part]["logloss"]
        print(
            f"{name} {part}: AUC {auc[0]:.4f} ± {auc[1]:.4f}, "
            f"logloss {logloss[0]:.4f} ± {logloss[1]:.4f} ({seeds} seeds)",
            flush=True,
        )
    return {**report, "runs": runs}


def main(arguments: argparse.Namespace) -> None:
    """Search if asked, train the chosen settings, print and write the report."""
    logging.disable(logging.INFO)
    torch.set_num_threads(arguments.threads)
    rows = pl.read_parquet(arguments.data)
    report: dict[str, Any] = {"requirements": REQUIREMENTS, "rows": len(rows), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        encodings = Encodings(rows, Path(folder))
        for name in arguments.models:
            setting, tried = CHOSEN[name], []
            if arguments.search:
                setting, tried = search(name, encodings)
            measured = measure(name, setting, encodings, arguments.seeds)
            report["models"][name] = {**measured, "search": tried}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(ARGUMENTS)
