"""The uncompressed item table: what a session ranker is first trained with."""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from compress.sessions.tables.base import ItemTable
from model_store.item_vectors import DenseTable

LENGTH = 0.5


class LearnedTable(ItemTable):
    """Unit vectors (N, D).

    Length is what popular items gain by being popular; without it rare items are not drowned
    (Gupta et al. 2019, NISER).
    """

    def __init__(self, first: Tensor, *, sparse: bool = True) -> None:
        """Begin with vectors (N, D) of any length but zero.

        Args:
            first: the vectors.
            sparse: whether gradients are: then a step touches the batch's rows only.
        """
        super().__init__()
        self.sparse = sparse
        self.items, self.dim = first.shape
        # A step moves an entry by about the learning rate: this length makes it a few per cent.
        self.weight = nn.Parameter(F.normalize(first, dim=-1) * LENGTH)

    @property
    def rows_parameter(self) -> nn.Parameter | None:
        """All of it, if gradients are sparse."""
        return self.weight if self.sparse else None

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) vectors of rows (…)."""
        return F.normalize(F.embedding(rows, self.weight, sparse=self.sparse), dim=-1)

    def export(self) -> DenseTable:
        """Unit vectors, float32."""
        return DenseTable(F.normalize(self.weight.detach(), dim=-1).cpu().numpy())
