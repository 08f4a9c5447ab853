"""Clusters of vectors (k-means by faiss), where frequent ones weigh more than rare ones."""

import faiss
import numpy as np
import torch
from torch import Tensor

from compress.progress import Progress
from model_store.arrays import Floats

ITERATIONS = 25
POINTS_PER_CLUSTER = 1000  # of more, as many are drawn to find the means
# Between the mean (0) and a point (1). A start at the points themselves is uneven: one of little
# length is near to everything, draws a tenth of all points, and keeps them.
START = 0.5
DRAWN = 8  # points looked at for each start


def importance(counts: Tensor, frequency: float) -> Tensor:
    """(N,) weights of mean 1 by clicks (N,): (1 + clicks) to the power of ``frequency``.

    >>> importance(torch.tensor([0, 2]), 1.0), importance(torch.tensor([0, 2]), 0.0)
    (tensor([0.5000, 1.5000]), tensor([1., 1.]))
    """
    weights = (1.0 + counts.float()) ** frequency
    return weights / weights.mean()


def seed_of(generator: torch.Generator) -> int:
    """A seed for a library that takes no torch generator."""
    return int(torch.randint(0, (1 << 31) - 1, (), generator=generator))


def clusters(
    points: Tensor, size: int, weights: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(size, d) weighted means of points (n, d), and the nearest of them to each point (n,)."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = np.ascontiguousarray(points.numpy(), np.float32)
    clustering = faiss.Kmeans(
        flat.shape[1],
        size,
        niter=ITERATIONS,
        seed=seed_of(generator),
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_PER_CLUSTER,
    )
    weighing = np.ascontiguousarray(weights.numpy(), np.float32)
    first = _starts(flat, size, weighing, generator)
    clustering.train(flat, weights=weighing, init_centroids=first)
    _, nearest = clustering.assign(flat)
    return torch.from_numpy(np.array(clustering.centroids)), torch.from_numpy(nearest)


def product_codes(
    X: Tensor, weights: Tensor, M: int, K: int, *, generator: torch.Generator, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Codes (N, M) and codebooks (M, K, D / M) of vectors (N, D) by one k-means a cut."""
    found = []
    for m, cut in enumerate(X.chunk(M, dim=1), start=1):
        found.append(clusters(cut, K, weights, generator))
        progress.step("codes", m, M)
    codebooks, codes = zip(*found, strict=True)
    return torch.stack(codes, 1), torch.stack(codebooks)


def _starts(
    points: Floats,
    size: int,
    weights: Floats,
    generator: torch.Generator,
) -> Floats:
    # Of different points: two equal starts would leave one of them without points.
    some = torch.randperm(len(points), generator=generator)[: DRAWN * size].numpy()
    distinct = np.unique(points[some], axis=0)
    drawn = distinct[torch.randperm(len(distinct), generator=generator).numpy()]
    mean = np.average(points, axis=0, weights=weights)
    chosen = np.resize(drawn, (size, points.shape[1]))
    return np.asarray(mean + START * (chosen - mean), np.float32)
