"""BentoML: an async API of one service with one worker, its body a root pydantic model."""

from typing import Any

import bentoml
from bentoml.exceptions import InvalidArgument
from starlette.responses import Response

from benchmarks.peers.scoring import load_rankers
from benchmarks.peers.servers.body import Body, rank_body


@bentoml.service(
    workers=1,
    logging={"access": {"enabled": False}},
)
class Ranking:
    """Ranks candidates."""

    def __init__(self) -> None:
        self._rankers = load_rankers()

    @bentoml.api(route="/rank")
    async def rank(self, body: Body, /) -> Any:
        """Rank on the event loop: a sync API runs on a thread, which one core does not need."""
        try:
            content = rank_body(self._rankers, body)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        return Response(content, media_type="application/json")
