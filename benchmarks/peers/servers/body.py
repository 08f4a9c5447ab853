"""The body as pydantic checks it, for the servers whose own way of parsing is pydantic.

Values are checked when they are encoded, as Slimrank does: a type for each of thousands of them
would only make these servers slower.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.peers.scoring import Ranker, as_json


class Candidate(BaseModel):
    """A candidate with its features."""

    model_config = ConfigDict(extra="forbid")
    id: str
    features: dict[str, Any]


class Body(BaseModel):
    """Candidates to rank for a user in a context."""

    model_config = ConfigDict(extra="forbid")
    model: str
    user: dict[str, Any]
    context: dict[str, Any]
    candidates: list[Candidate]
    shape: Literal["columns"]


def rank_body(rankers: Mapping[str, Ranker], body: Body) -> bytes:
    """A checked body to the answer's JSON."""
    return as_json(
        rankers[body.model].rank(
            body.user | body.context,
            [candidate.id for candidate in body.candidates],
            [candidate.features for candidate in body.candidates],
        )
    )
