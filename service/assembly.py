"""From an opened bundle to a ranking that reproduces its golden scores and has run warm.

Which kind of ranker a bundle holds stands in its manifest, as ``session``; nothing asks which
architecture.
"""

from typing import Any, Final, Protocol

from model_store.bundle import Bundle
from model_store.manifest import Manifest
from model_store.store import OpenedVersion
from service import click_ranking, costs, session_ranking
from service.caches import Blob, Blobs
from service.errors import BundleRejected, ServiceError
from service.item_ids import ItemIds
from service.ranking import Ranking, check_golden
from service.schemas import convert_rank

WARM_RUNS: Final = 3


class Table(Protocol):
    """What a bundle holds of its items, as a cache can keep it."""

    def pack(self) -> dict[str, Blob]:
        """Named blobs."""
        ...


class Kind(Protocol):
    """A kind of rankers: a module of this package."""

    def read_table(self, bundle: Bundle, ids: ItemIds) -> Table:
        """The catalogue of a bundle that has these ids; raises BundleCorrupt."""
        ...

    def unpack_table(self, bundle: Bundle, ids: ItemIds, blobs: Blobs) -> Table | None:
        """The same from what `Table.pack` made of it, None if it is not that."""
        ...

    def make_ranking(self, opened: OpenedVersion, table: Any) -> Ranking:
        """A ranking over that catalogue; raises BundleRejected."""
        ...


def kind_of(manifest: Manifest) -> Kind:
    """The kind of ranker that a bundle holds."""
    return click_ranking if manifest.session is None else session_ranking


def assemble(opened: OpenedVersion, table: Table | None, tolerance: float) -> Ranking:
    """A ranking that reproduces its golden scores and has run warm.

    Args:
        opened: the bundle.
        table: its catalogue.
        tolerance: how far a score may be off, unless the bundle allows more.

    Raises:
        BundleRejected: its graph, its catalogue or its golden scores do not fit.
    """
    bundle = opened.bundle
    tolerance = max(tolerance, bundle.manifest.golden_tolerance)
    try:
        ranking = kind_of(bundle.manifest).make_ranking(opened, table)
        cases = [(convert_rank(case.request), case.scores) for case in bundle.golden()]
        for _ in range(WARM_RUNS):
            if fault := check_golden(ranking, cases, tolerance):
                raise BundleRejected(fault)
        ranking.costs = costs.measured(ranking, [request for request, _ in cases])
    # A sealed bundle may still contradict itself in ways that only show when it is put together.
    except (ServiceError, ValueError, TypeError, KeyError, IndexError) as error:
        raise BundleRejected(f"{error}") from error
    return ranking
