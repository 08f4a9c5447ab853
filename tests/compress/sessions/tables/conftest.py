"""A small table of clustered vectors, with the sessions that its clusters would make."""

import numpy as np
import pytest
import torch

from compress.sessions.data import Sessions
from compress.sessions.tables import Teacher

ITEMS, DIM, CLUSTERS = 300, 16, 12


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    """300 items of width 16 around 12 centres; sessions stay within a cluster."""
    draw = np.random.default_rng(3)
    cluster = draw.integers(CLUSTERS, size=ITEMS)
    centres = draw.normal(size=(CLUSTERS, DIM))
    vectors = centres[cluster] + 0.3 * draw.normal(size=(ITEMS, DIM))
    members = [np.flatnonzero(cluster == c) for c in range(CLUSTERS)]
    sessions = [draw.choice(some, size=6) for _ in range(40) for some in members]
    rows = np.concatenate(sessions).astype(np.int32)
    offsets = np.arange(0, len(rows) + 1, 6)
    clicks = Sessions(rows, offsets, tuple(str(i) for i in range(ITEMS)))
    return Teacher(
        torch.from_numpy(vectors.astype(np.float32)), torch.from_numpy(clicks.counts()), clicks
    )
