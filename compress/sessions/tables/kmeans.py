"""Clusters of item vectors (k-means by faiss), where frequent items weigh more than rare ones."""

import faiss
import numpy as np
import torch
from torch import Tensor

ITERATIONS = 25


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
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,  # never twice one point
        min_points_per_centroid=1,
        max_points_per_centroid=len(flat),
    )
    clustering.train(flat, weights=np.ascontiguousarray(weights.numpy(), np.float32))
    _, nearest = clustering.assign(flat)
    return torch.from_numpy(np.array(clustering.centroids)), torch.from_numpy(nearest)
