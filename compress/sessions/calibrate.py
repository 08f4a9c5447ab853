"""How much a session's own items weigh against all others, fitted on held-out sessions.

    p(v) ∝ exp(θ_l · e_v) + exp(boost) · sum_t exp(r_lt) [v_t = v]

Cross-entropy settles the balance on the sessions that are learned. Their next items the query knows
by heart, so it trusts itself too much on others; and a coded table points less surely still. One
number mends both, and costs nothing to serve: it is added to the log weights in the graph.
"""

from typing import Final

import numpy as np

from compress.progress import Progress
from compress.sessions.data import Prefixes
from compress.sessions.student import Student
from compress.sessions.train import judge

BOOSTS: Final = tuple(step / 2 for step in range(-4, 9))  # -2 … 4
ENOUGH: Final = 4000  # prefixes


def calibrate(student: Student, prefixes: Prefixes, *, progress: Progress, stage: str) -> float:
    """The boost with the best NDCG@20; of equal ones the nearest to none. It stays in the ranker.

    Args:
        student: any ranker with vectors; one that has no way to repeat gets 0.
        prefixes: held out; of many, an even sample is enough.
        progress: told of each trial.
        stage: what progress calls it.
    """
    if not student.ranker.repeats:
        return 0.0
    few = prefixes
    if len(prefixes) > ENOUGH:
        few = prefixes.select(np.linspace(0, len(prefixes) - 1, ENOUGH, dtype=np.int64))
    found = {}
    for done, boost in enumerate(sorted(BOOSTS, key=abs), start=1):
        student.ranker.boost.fill_(boost)
        found[boost] = judge(student, few)[2]
        progress.step(stage, done, len(BOOSTS), boost=boost, ndcg=found[boost])
    best = max(found, key=lambda boost: found[boost])  # the first of equals
    student.ranker.boost.fill_(best)
    return best
