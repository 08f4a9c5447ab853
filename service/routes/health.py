"""GET /livez, /readyz and /metrics: for orchestrators and for Prometheus."""

from typing import Any, Final, Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.deps import Parts, PartsDep, requires
from service.problems import responses

router = APIRouter(tags=["operations"])

# The fault itself may name the store's path, and here nobody is asked for a key.
WHY: Final = "the log and GET /models say why"


class Alive(BaseModel):
    """The event loop turns."""

    status: Literal["alive"] = "alive"


class Reason(BaseModel):
    """Why not, or what to know."""

    code: str
    detail: str
    model: str | None = None


class Readiness(BaseModel):
    """Whether requests should be sent here.

    `reasons` say why not. `notes` say what is wrong without keeping requests away: a version that
    was refused while the one before goes on, a cache that is away.
    """

    status: Literal["ready", "unready"]
    reasons: list[Reason] = []
    notes: list[Reason] = []


@router.get("/livez")
async def livez() -> Alive:
    """Whether the process should be left alone: it answers, so yes."""
    return Alive()


@router.get(
    "/readyz", responses={503: {"model": Readiness, "description": "Send requests elsewhere."}}
)
async def readyz(response: Response, parts: PartsDep) -> Readiness:
    """Whether requests should be sent here: models are loaded and warm, and we are not leaving."""
    readiness = _readiness(parts)
    if readiness.status == "unready":
        response.status_code = 503
    return readiness


def _readiness(parts: Parts) -> Readiness:
    reasons, notes = [], []
    if parts.drain.leaving:
        reasons.append(Reason(code="draining", detail="this worker is stopping"))
    for slot in parts.loader.slots:
        if slot.ranking is None:
            detail = "loading" if slot.fault is None else f"not loaded; {WHY}"
            reasons.append(Reason(code="model_not_ready", detail=detail, model=slot.ref))
        elif slot.fault is not None:
            detail = f"{slot.ranking.version} goes on; {WHY}"
            notes.append(Reason(code="version_refused", detail=detail, model=slot.ref))
    if not parts.loader.slots:
        reasons.append(Reason(code="model_not_ready", detail="nothing is loaded yet"))
    if not parts.cache.up:
        notes.append(Reason(code="cache_down", detail="the cache does not answer"))
    return Readiness(status="unready" if reasons else "ready", reasons=reasons, notes=notes)


PROMETHEUS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Metrics."}
}


@router.get(
    "/metrics",
    response_class=Response,
    responses=PROMETHEUS | responses(401, 403),
    dependencies=[Depends(requires("metrics"))],
)
async def metrics(parts: PartsDep) -> Response:
    """Prometheus' text format: of all workers, whichever answers."""
    parts.tally.settle()
    parts.tell_in_flight()
    return Response(parts.metrics.render(), media_type=CONTENT_TYPE_LATEST)
