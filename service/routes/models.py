"""GET /models, and the changes of what is served."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from model_store.manifest import Card, Kind, SessionCard, Side
from model_store.store import Entry
from service.candidates import text_of
from service.deps import Parts, PartsDep, requires, takes_json
from service.loader import Activated, Slot
from service.problems import responses

router = APIRouter(tags=["models"])

Default = str | float | int | None


class InputFeature(BaseModel):
    """A feature that requests may carry, its side, and what a missing value becomes."""

    name: str
    side: Side
    kind: Kind
    default: Default
    pruned: bool


class LimitsShown(BaseModel):
    """What a request may ask for at most."""

    candidates: int
    body_bytes: int
    session_items: int
    id_bytes: int


class Version(BaseModel):
    """A version in the store."""

    version: str
    aliases: list[str]
    digest: str
    created_at: str
    problem: str | None


class ModelSummary(BaseModel):
    """A model that is configured, and what of it is served."""

    name: str
    ref: str
    version: str | None
    digest: str | None
    state: Literal["loading", "ready", "failed"]
    default: bool
    activating: bool
    fault: str | None = Field(description="Why the version that the store names is not served.")
    loaded_at: str | None


class Model(ModelSummary):
    """A model in full."""

    scores: Literal["probability", "logit"] | None
    numerics: str | None
    items: int
    inputs: list[InputFeature]
    kept: list[str]
    pruned: list[str]
    limits: LimitsShown
    flops_per_candidate: int | None
    card: Card | SessionCard | None
    versions: list[Version]


class Models(BaseModel):
    """What is served."""

    models: list[ModelSummary]


def _text(given: Any) -> Any:
    """7 and 7.0 are "7", as in ids; true is no number."""
    return text_of(given) if type(given) in {int, float} else given


class Activation(BaseModel):
    """Which version to serve."""

    model_config = ConfigDict(extra="forbid")

    # Not `str | int`: pydantic puts the branches of a union into the pointer.
    version: Annotated[str, BeforeValidator(_text)] = Field(
        description="A version of the store, or an alias.",
        json_schema_extra={"type": ["string", "integer"]},
    )


class ActivationReply(BaseModel):
    """What is served now, and what was before."""

    name: str
    version: str
    digest: str
    previous: str | None


@router.get(
    "/models", responses=responses(401, 403), dependencies=[Depends(requires("rank", "admin"))]
)
async def models(parts: PartsDep) -> Models:
    """What is served."""
    return Models(models=[_summary(slot, parts) for slot in parts.loader.slots])


@router.get(
    "/models/{name}",
    responses=responses(401, 403, 404, 422),
    dependencies=[Depends(requires("rank", "admin"))],
)
async def model(name: str, parts: PartsDep) -> Model:
    """A model in full: its inputs, limits, compression card and versions."""
    slot = parts.loader.slot_of(name)
    return _model(slot, parts, await parts.loader.versions(slot.name))


@router.post(
    "/models/{name}/activate",
    responses=responses(400, 401, 403, 404, 409, 422, 503),
    dependencies=[Depends(requires("admin")), Depends(takes_json)],
)
async def activate(name: str, body: Activation, parts: PartsDep) -> ActivationReply:
    """Serve another version: it is built, checked and warmed beside the one that serves."""
    parts.drain.check()
    return _reply(await parts.loader.activate(name, body.version))


@router.post(
    "/models/{name}/rollback",
    responses=responses(400, 401, 403, 404, 409, 422, 503),
    dependencies=[Depends(requires("admin"))],
)
async def rollback(name: str, parts: PartsDep) -> ActivationReply:
    """Serve what the alias named before."""
    parts.drain.check()
    return _reply(await parts.loader.rollback(name))


def _reply(done: Activated) -> ActivationReply:
    return ActivationReply(
        name=done.ranking.name,
        version=done.ranking.version,
        digest=done.ranking.digest,
        previous=done.previous,
    )


def _summary(slot: Slot, parts: Parts) -> ModelSummary:
    ranking = slot.ranking
    return ModelSummary(
        name=slot.name,
        ref=slot.ref,
        version=ranking.version if ranking else None,
        digest=ranking.digest if ranking else None,
        state=slot.state,
        default=ranking is not None and parts.loader.default is ranking,
        activating=slot.activating,
        fault=slot.fault,
        loaded_at=slot.loaded_at.isoformat(timespec="seconds") if slot.loaded_at else None,
    )


def _model(slot: Slot, parts: Parts, entries: list[Entry]) -> Model:
    manifest = slot.ranking.manifest if slot.ranking else None
    features = manifest.features if manifest else ()
    settings = parts.settings
    return Model(
        **_summary(slot, parts).model_dump(),
        scores=manifest.scores if manifest else None,
        numerics=manifest.numerics if manifest else None,
        items=slot.ranking.items if slot.ranking else 0,
        inputs=[
            InputFeature(
                name=spec.name,
                side=spec.side,
                kind=spec.kind,
                default=spec.encoding.default,
                pruned=spec.pruned,
            )
            for spec in features
        ],
        kept=[spec.name for spec in features if not spec.pruned],
        pruned=[spec.name for spec in features if spec.pruned],
        limits=LimitsShown(
            candidates=settings.max_candidates,
            body_bytes=settings.max_body_bytes,
            session_items=settings.max_session_items,
            id_bytes=settings.max_id_bytes,
        ),
        flops_per_candidate=slot.ranking.flops_per_candidate if slot.ranking else None,
        card=manifest.card if manifest else None,
        versions=[
            Version(
                version=entry.version,
                aliases=list(entry.aliases),
                digest=entry.digest,
                created_at=entry.created_at,
                problem=entry.problem,
            )
            for entry in entries
        ],
    )
