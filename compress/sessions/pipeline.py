"""A run of the session line, from sessions to published bundles, as one list of stages.

    read sessions → floors: fit → export → evaluate
    → choose: teacher and student on the older sessions, their epochs judged on the newest
    → for each seed: teacher: train on all sessions before the test → export → evaluate
                     student: codes from the teacher's table → distil → export → evaluate
    → card over all seeds → gate → publish

The teacher's results lie in a folder named by a hash of all that makes it, the student's in one
named by that and its table; so a killed run goes on where it stopped, and runs with other tables
share a teacher.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from compress.data.folders import alone, replaced, spacious
from compress.progress import Progress
from compress.sessions.calibrate import calibrate
from compress.sessions.card import Judged, write_card
from compress.sessions.config import FitConfig, SessionGate
from compress.sessions.cooccurrence import cooccurrence_vectors
from compress.sessions.data import Prefixes, Sessions, stranger
from compress.sessions.distill import Distillation
from compress.sessions.evaluate import evaluate_folder
from compress.sessions.export import export
from compress.sessions.plan import (
    Plan,
    Site,
    coded_folder,
    dense_folder,
    plan_as_json,
    student_key,
    teacher_key,
)
from compress.sessions.rankers import SESSION_RANKERS
from compress.sessions.rankers.base import SessionRanker
from compress.sessions.student import Student
from compress.sessions.tables.base import Teacher
from compress.sessions.tables.learned import LearnedTable
from compress.sessions.train import Epoch, fit
from compress.stages import apart, publish, write_whole
from model_store.bundle import open_bundle
from model_store.errors import StoreError
from model_store.item_vectors import ItemVectors
from model_store.manifest import Resources, SessionCard, SessionQuality

RANKS_FILE: Final = "ranks.npy"
BOOST_FILE: Final = "boost.json"
QUALITY_FILE: Final = "quality.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        versions: "dense" and "coded" -> published version; empty if the gate did not hold.
    """

    folder: Path
    card: SessionCard
    holds: bool
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen on validation.

    Attributes:
        teacher: how it did epoch by epoch: how long it is trained.
        student: the same of the student.
        boosts: of the repeats, in the teacher and in the student.
    """

    teacher: tuple[Epoch, ...]
    student: tuple[Epoch, ...]
    boosts: tuple[float, float]


def run(plan: Plan, progress: Progress) -> Outcome:
    """Run a plan, or what is left of it.

    Raises:
        CompressError, StoreError: it cannot go on; the text says why.
    """
    config = plan.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = plan.source.parts()
    plan.table.check(plan.table_config, data.train.items, plan.ranker_config.dim)
    root = config.runs / config.name
    keys = teacher_key(plan), student_key(plan)
    site = Site(plan, data, root / f"teacher-{keys[0]}", root / keys[1], progress)
    with spacious(root), alone(site.teachers), alone(site.folder):
        return carry_out(site)


def carry_out(site: Site) -> Outcome:
    """All stages after the data, in folders that no other run works in."""
    config = site.plan.config
    write_whole(site.folder / "config.json", json.dumps(plan_as_json(site.plan), indent=1))
    write_prefixes(site.data.test, site.test)
    floors = {name: judge_floor(site, name) for name in config.floors}
    choice = choose(site)
    seeds = [run_seed(site, seed, choice) for seed in config.seeds]
    card = write_card(site, seeds, floors, choice.boosts)
    holds = passes(config.gate, card)
    versions: Mapping[str, str] = {}
    if holds:
        first = config.seeds[0]
        folders = {"dense": dense_folder(site, first), "coded": coded_folder(site, first)}
        versions = publish(config.publish, config.name, folders)
    figures = {**card.model_dump(), "gate_holds": holds, "versions": dict(versions)}
    write_whole(site.folder / "metrics.json", json.dumps(figures, indent=1))
    return Outcome(site.folder, card, holds, versions)


def write_prefixes(prefixes: Prefixes, path: Path) -> None:
    """Write prefixes as rows ``session_id``, ``items``, ``target``, ids as texts."""
    if path.exists():
        return
    sessions = prefixes.sessions
    # Row -1, an item outside the catalogue, takes the last name.
    ids = np.array([*sessions.ids, stranger(sessions.ids)], dtype=object)
    frame = pl.DataFrame(
        {
            "session_id": prefixes.owner,
            "items": [ids[session].tolist() for session in sessions],
            "target": ids[prefixes.targets].tolist(),
        },
        schema={"session_id": pl.Int64, "items": pl.List(pl.String), "target": pl.String},
    )
    with replaced(path) as staged:
        frame.write_parquet(staged)


def judge_floor(site: Site, name: str) -> SessionQuality:
    """Fit, export and evaluate a parameter-free ranker."""
    kind = SESSION_RANKERS[name]
    folder = site.teachers / "floors" / name

    def made() -> tuple[SessionRanker, ItemVectors | None]:
        ranker = kind(kind.Config())
        ranker.fit(site.data.whole)
        return ranker, None

    card = SessionCard(ranker=name, table="none", seed=0, dense=NOTHING_YET, coded=NOTHING_YET)
    return judged(site, folder, made, card, {}).quality


NOTHING_YET: Final = Resources(flops=0)


def choose(site: Site) -> Choice:
    """Train on the older sessions under the first seed, and judge on the newest ones."""
    plan, seed = site.plan, site.plan.config.seeds[0]
    data = site.data
    teacher = new_teacher(site, data.train, seed)
    trained = learn(
        site,
        teacher,
        plan.config.train,
        sessions=data.train,
        validation=data.validation,
        seed=seed,
        folder=site.teachers / "choice",
    )
    dense = boosted(site, teacher, site.teachers / "choice")
    student, distillation = new_student(site, teacher, data.train, seed)
    tuned = learn(
        site,
        student,
        plan.config.finetune,
        sessions=data.train,
        validation=data.validation,
        seed=seed,
        folder=site.folder / "choice",
        distillation=distillation,
    )
    return Choice(trained, tuned, (dense, boosted(site, student, site.folder / "choice")))


def boosted(site: Site, student: Student, folder: Path) -> float:
    """Fit how much repeats weigh, or read what an earlier run has found."""
    path = folder / BOOST_FILE
    if not site.plan.config.calibrate:
        return float(student.ranker.boost)
    if not path.exists():
        stage = f"weight of repeats, {'teacher' if folder.parent == site.teachers else 'student'}"
        found = calibrate(student, site.data.validation, progress=site.progress, stage=stage)
        write_whole(path, json.dumps(found))
    student.ranker.boost.fill_(json.loads(path.read_text()))
    return float(student.ranker.boost)


def run_seed(site: Site, seed: int, choice: Choice) -> tuple[int, Judged, Judged]:
    """Train a teacher and its student on all sessions before the test, and judge both."""
    config, sessions = site.plan.config, site.data.whole
    card = SessionCard(
        ranker=config.ranker.type,
        table=config.table.type,
        seed=seed,
        dense=NOTHING_YET,
        coded=NOTHING_YET,
    )
    curves = {"train": _rows(choice.teacher), "finetune": _rows(choice.student)}
    here = site.teachers / f"seed-{seed}"
    teacher = new_teacher(site, sessions, seed)
    until = best_epoch(choice.teacher)
    learn(site, teacher, config.train, sessions=sessions, seed=seed, folder=here, until=until)
    teacher.ranker.boost.fill_(choice.boosts[0])
    plain = card.model_copy(update={"table": "dense"})
    dense = judged(
        site, here / "dense", lambda: (teacher.ranker, teacher.table.export()), plain, curves
    )

    def coded() -> tuple[SessionRanker, ItemVectors | None]:
        student, distillation = new_student(site, teacher, sessions, seed)
        learn(
            site,
            student,
            config.finetune,
            sessions=sessions,
            seed=seed,
            folder=site.folder / f"seed-{seed}",
            distillation=distillation,
            until=best_epoch(choice.student),
        )
        student.ranker.boost.fill_(choice.boosts[1])
        return student.ranker, student.table.export()

    return seed, dense, judged(site, coded_folder(site, seed), coded, card, curves)


def best_epoch(epochs: Sequence[Epoch]) -> int:
    """The epoch with the best NDCG@20 on validation; 0 is before the first step."""
    return max(epochs, key=lambda epoch: epoch.ndcg).epoch


def new_teacher(site: Site, sessions: Sessions, seed: int) -> Student:
    """The ranker with the uncompressed table; its first weights come from the seed."""
    plan = site.plan
    torch.manual_seed(seed)
    ranker = plan.ranker(plan.ranker_config)
    stage = f"seed {seed}: first vectors of {len(sessions):,} sessions"
    site.progress.step(stage, 0, 1)
    vectors = cooccurrence_vectors(sessions, ranker.config.dim, seed)
    site.progress.step(stage, 1, 1)
    return Student(ranker, LearnedTable(vectors))


def new_student(
    site: Site, teacher: Student, sessions: Sessions, seed: int
) -> tuple[Student, Distillation]:
    """The teacher's encoder with a compressed table, and the teacher's part in its loss."""
    plan, draw = site.plan, torch.Generator().manual_seed(seed)
    # A teacher that was trained now, and not read back, has drawn from the common generator.
    torch.manual_seed(seed)
    with torch.no_grad():
        vectors = teacher.table(torch.arange(teacher.table.items))
    counts = torch.from_numpy(sessions.counts())
    table = plan.table.build(
        Teacher(vectors, counts, sessions), plan.table_config, draw, site.progress
    )
    student = Student(copy.deepcopy(teacher.ranker), table)
    return student, Distillation.of(teacher, student, plan.config.distill, counts)


def learn(
    site: Site,
    student: Student,
    config: FitConfig,
    *,
    sessions: Sessions,
    seed: int,
    folder: Path,
    validation: Prefixes | None = None,
    distillation: Distillation | None = None,
    until: int | None = None,
) -> tuple[Epoch, ...]:
    """Train in place, with progress and a checkpoint under the name of what is trained."""
    what = "teacher" if distillation is None else "student"
    why = "choose epochs" if validation is not None else "all sessions"
    return fit(
        student,
        sessions,
        validation,
        config,
        seed,
        progress=site.progress,
        stage=f"seed {seed}: {what}, {why}",
        checkpoint=folder / f"{what}.ckpt",
        distillation=distillation,
        until=until,
    )


def judged(
    site: Site,
    folder: Path,
    make: Callable[[], tuple[SessionRanker, ItemVectors | None]],
    card: SessionCard,
    curves: Mapping[str, Any],
) -> Judged:
    """Export and evaluate what ``make`` gives, or read what an earlier run has left of it."""
    quality, ranks = folder.with_suffix(f".{QUALITY_FILE}"), folder.with_suffix(f".{RANKS_FILE}")
    try:
        bundle = open_bundle(folder)
    except StoreError:
        shutil.rmtree(folder, ignore_errors=True)  # not begun, or cut off
        ranker, table = make()
        bundle = export(
            ranker,
            table,
            folder,
            name=site.plan.config.name,
            ids=site.data.train.ids,
            examples=site.data.validation,
            card=card,
            options=site.plan.config.export,
            history=curves,
        )
        quality.unlink(missing_ok=True)
    if not quality.exists():
        stage = f"{folder.name}, seed {card.seed}: evaluate"
        site.progress.step(stage, 0, 1)
        found, each = apart(f"evaluating {folder}", evaluate_folder, folder, site.test)
        with replaced(ranks) as staged, staged.open("wb") as file:
            np.save(file, each)
        write_whole(quality, found.model_dump_json(indent=1))
        site.progress.step(stage, 1, 1, ndcg=found.metrics["NDCG@10"], mrr=found.metrics["MRR@20"])
    kept = SessionQuality.model_validate_json(quality.read_bytes())
    return Judged(bundle, kept, np.load(ranks))


def passes(gate: SessionGate, card: SessionCard) -> bool:
    """Whether the bundles may be published."""
    return card.achieved.get("NDCG@10 ratio", 0.0) >= gate.min_ratio


def _rows(epochs: Sequence[Epoch]) -> list[dict[str, float | None]]:
    # What is not a number (the training loss before the first step) is null in JSON.
    return [
        {k: v if math.isfinite(v) else None for k, v in asdict(epoch).items()} for epoch in epochs
    ]
