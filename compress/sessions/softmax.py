"""log sum_c exp(q_p · v_c + b_c) over a large catalogue, some rows of logits at a time.

What autograd would do in ten passes over (P, C) logits takes three here: a block's logits, their
exponentials in place, their shares written once for the way back. With ``half`` the products are of
bfloat16 numbers (sums in float32): on processors that multiply those, a third of the time. A logit
is then off by up to 1/256 of itself, so it is for training, not for scoring; what is asked of the
target itself must not come from here.

The shares stay until the way back: (P, C) numbers, 4 GB for 1,000 targets and a million items (half
of that with ``half``). Larger catalogues want a sample.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 64


class _ColumnMass(torch.autograd.Function):
    """See `column_mass`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, correction: Tensor, kind: torch.dtype
    ) -> Tensor:
        queries, columns = query.to(kind), vectors.to(kind)
        mass = query.new_empty(len(query))
        shares = query.new_empty(len(query), len(vectors), dtype=kind)
        for first in range(0, len(query), ROWS):
            block = slice(first, first + ROWS)
            logits = (queries[block] @ columns.T).to(query.dtype).add_(correction)  # (ROWS, C)
            top = logits.amax(1, keepdim=True)
            exponentials = logits.sub_(top).exp_()
            total = exponentials.sum(1, keepdim=True)
            mass[block] = (total.log() + top)[:, 0]
            shares[block] = exponentials.div_(total)
        ctx.save_for_backward(queries, columns, shares)
        return mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, columns, shares = ctx.saved_tensors
        scale = gradient.unsqueeze(1)  # (P, 1)
        of_query = (shares @ columns).to(gradient.dtype) * scale
        of_vectors = shares.T @ (queries.to(gradient.dtype) * scale).to(queries.dtype)
        return of_query, of_vectors.to(gradient.dtype), None, None


def column_mass(query: Tensor, vectors: Tensor, correction: Tensor, *, half: bool) -> Tensor:
    """(P,) log of the columns' summed weight.

    Args:
        query: (P, D).
        vectors: (C, D).
        correction: (C,) log of how many items each column stands for; no gradient goes there.
        half: multiply in bfloat16.
    """
    kind = torch.bfloat16 if half else query.dtype
    mass: Tensor = _ColumnMass.apply(query, vectors, correction.to(query.dtype), kind)  # type: ignore[no-untyped-call]
    return mass
