"""Codes of their own for items that share one: K^M codes for N items do not keep them apart."""

import torch
from torch import Tensor

# How many neighbourhoods of taken codes are searched for a free one.
HOPS = 64


def shared(codes: Tensor) -> Tensor:
    """(N,) the first item in row order with the same codes (N, M); an item's own row if it is that.

    >>> shared(torch.tensor([[1, 2], [3, 4], [1, 2]])).tolist()
    [0, 1, 0]
    """
    _, group = torch.unique(codes, dim=0, return_inverse=True)
    rows = torch.arange(len(codes))
    first = torch.full((len(codes),), len(codes)).scatter_reduce_(0, group, rows, "amin")
    return first[group]


def told_apart(codes: Tensor, codebooks: Tensor, points: Tensor, counts: Tensor) -> Tensor:
    """Codes (N, M) without doubles, as far as free ones are near.

    Of those who share a code the most frequent keeps it; the others, most frequent first, take the
    free code nearest to their vector among those that differ in one codeword, then among the
    neighbours of the nearest of these, and so on.

    Args:
        codes: (N, M).
        codebooks: (M, K, D), composed by sum.
        points: (N, D) what the codes stand for.
        counts: (N,) clicks.
    """
    codes = codes.long()
    # Frequent first, so that the first of a group is the one that keeps its code.
    order = torch.argsort(counts, descending=True, stable=True)
    ranked = codes[order]
    first = shared(ranked)
    late = (first != torch.arange(len(first))).nonzero().squeeze(1)
    if not len(late):
        return codes
    search = _Search(ranked, codebooks)
    for place in late.tolist():
        ranked[place] = search.nearest_free(points[order[place]], ranked[place])
    found = torch.empty_like(codes)
    found[order] = ranked
    return found


class _Search:
    """Which codes are taken, by a 64-bit hash: two codes of one hash cost a free code, no more."""

    def __init__(self, codes: Tensor, codebooks: Tensor) -> None:
        books, size, _ = codebooks.shape
        self._codebooks, self._size = codebooks, size
        fixed = torch.Generator().manual_seed(0)
        self._factors = torch.randint(1, 1 << 62, (books,), generator=fixed) * 2 + 1  # odd
        self._steps = torch.arange(size) * self._factors.unsqueeze(1)  # (M, K), wrapping around
        self._taken = set(self._key(codes).tolist())

    def _key(self, codes: Tensor) -> Tensor:
        return (codes * self._factors).sum(-1)

    def nearest_free(self, point: Tensor, code: Tensor) -> Tensor:
        """A code (M,) near a point (D,) that nobody has; taken from then on."""
        start, visited = code, set[int]()
        for _ in range(HOPS):
            near = self._by_distance(point, code)
            book, word = near // self._size, near % self._size
            keys = self._key(code) + (self._steps[book, word] - code[book] * self._factors[book])
            visited.add(int(self._key(code)))
            free = next((i for i, k in enumerate(keys.tolist()) if k not in self._taken), None)
            if free is not None:
                self._taken.add(int(keys[free]))
                return _changed(code, book[free], word[free])
            on = next((i for i, k in enumerate(keys.tolist()) if k not in visited), None)
            if on is None:
                break
            code = _changed(code, book[on], word[on])
        return start

    def _by_distance(self, point: Tensor, code: Tensor) -> Tensor:
        """(M·K,) single changes of a code, the one whose vector is nearest to the point first."""
        words = self._codebooks[torch.arange(len(code)), code]  # (M, D)
        left = point - words.sum(0) + words  # (M, D), what each codebook would have to be
        distances = (left.unsqueeze(1) - self._codebooks).square().sum(2)  # (M, K)
        return torch.argsort(distances.flatten(), stable=True)


def _changed(code: Tensor, book: Tensor, word: Tensor) -> Tensor:
    code = code.clone()
    code[book] = word
    return code
