"""What a run of the session line came to, in words."""

from collections.abc import Iterator
from statistics import fmean

from model_store.manifest import SessionCard, SessionQuality

SHOWN = ("P@10", "MRR@10", "NDCG@10", "P@20", "MRR@20", "NDCG@20")


def lines(card: SessionCard) -> Iterator[str]:
    """A table of quality, then what was saved."""
    width = max(len(name) for name in (*card.floors, card.ranker, card.table)) + 2
    yield f"{'':{width}}" + "".join(f"{name:>9}" for name in SHOWN)
    for name, quality in card.floors.items():
        yield f"{name:{width}}" + _figures([quality])
    yield f"{card.ranker:{width}}" + _figures([result.dense for result in card.results])
    yield f"{card.table:{width}}" + _figures([result.coded for result in card.results])
    for name, value in card.achieved.items():
        yield f"{name}: {value:,.4g}"


def _figures(qualities: list[SessionQuality]) -> str:
    means = (fmean(quality.metrics[name] for quality in qualities) for name in SHOWN)
    return "".join(f"{100 * mean:9.2f}" for mean in means)
