"""POST /rank: candidates, best first."""

from typing import Final

from service.ranking import Ranking
from service.routes.endpoint import Operation
from service.schemas import (
    RankReply,
    RankRequest,
    parse_rank,
    parse_rank_in_steps,
    parse_rank_raw,
)

RANK: Final = Operation(
    path="/rank",
    parse=parse_rank,
    parse_long=parse_rank_in_steps,
    parse_raw=parse_rank_raw,
    prepare=Ranking.prepare_any,
    request=RankRequest,
    reply=RankReply,
    summary="Rank candidates",
    answer="The candidates, best first.",
)
