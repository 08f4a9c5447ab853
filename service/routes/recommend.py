"""POST /recommend: the best of the whole catalogue."""

from typing import Final

from service.routes.endpoint import Operation
from service.schemas import RecommendReply, RecommendRequest, parse_recommend

RECOMMEND: Final = Operation(
    path="/recommend",
    parse=parse_recommend,
    parse_long=parse_recommend,
    parse_raw=lambda _: None,
    prepare=lambda ranking, request, limits: ranking.prepare_best(request, limits),
    request=RecommendRequest,
    reply=RecommendReply,
    summary="The best of the whole catalogue",
    answer="Items of the catalogue, best first.",
)
