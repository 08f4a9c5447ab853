"""GET /models, and the changes of what is served."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from model_store.manifest import Card, FeatureSpec, Kind, Manifest, SessionCard, Side, Tier
from model_store.store import Entry
from service.additions import NewItem, grows
from service.candidates import Limits, text_of, texts
from service.deps import Parts, PartsDep, requires, takes_json
from service.errors import Fault, InvalidRequest
from service.loader import Activated, Slot
from service.problems import responses
from service.ranking import Ranking

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
    fresh_items: int


class SessionShown(BaseModel):
    """What a session ranker takes, and how it keeps its items."""

    length: int = Field(description="The newest so many known session items are taken.")
    dim: int = Field(description="Numbers in an item's vector.")
    table: Literal["dense", "int8", "codes", "factors"] | None = Field(
        description="The form of the item vectors; null for a ranker without."
    )
    table_bytes: int = Field(description="What the item vectors take in memory, or map from disk.")
    neighbours: bool = Field(description="Whether it weighs what followed what.")
    fresh_items: int = Field(description="Items that were added to this version.")


class TierShown(BaseModel):
    """A sibling of the ranker in the same bundle, under another budget."""

    name: str
    numerics: str
    flops_per_candidate: int
    kept: list[str]
    pruned: list[str]
    card: Card


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
    items: int = Field(description="How many the catalogue holds, fresh ones too.")


class Model(ModelSummary):
    """A model in full."""

    scores: Literal["probability", "logit"] | None
    numerics: str | None
    session: SessionShown | None = Field(description="Null for a click-through ranker.")
    inputs: list[InputFeature]
    kept: list[str]
    pruned: list[str]
    limits: LimitsShown
    flops_per_candidate: int | None
    card: Card | SessionCard | None
    tiers: list[TierShown] = Field(description="Its siblings; requests are answered by the model.")
    versions: list[Version]


class Models(BaseModel):
    """What is served."""

    models: list[ModelSummary]


def _text(given: Any) -> Any:
    """7 and 7.0 are "7", as in ids; true is no number. Half a surrogate pair is no character."""
    if isinstance(given, str):
        try:
            given.encode()
        except UnicodeEncodeError:  # JSON can spell it, and pydantic lets it through
            raise ValueError("expected Unicode, got half a surrogate pair") from None
    return text_of(given) if type(given) in {int, float} else given


# Not `str | int`: pydantic puts the branches of a union into the pointer.
Id = Annotated[str, BeforeValidator(_text), Field(json_schema_extra={"type": ["string", "number"]})]


class Activation(BaseModel):
    """Which version to serve."""

    model_config = ConfigDict(extra="forbid")

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


class FreshItem(BaseModel):
    """An item to add: by known items that were seen with it, or by its vector."""

    model_config = ConfigDict(extra="forbid")

    id: Id
    seen_with: list[Id] | None = None
    vector: list[float] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.seen_with is None) == (self.vector is None):
            raise ValueError("expected either seen_with or vector")
        return self


class FreshItems(BaseModel):
    """Items to add."""

    model_config = ConfigDict(extra="forbid")

    items: list[FreshItem] = Field(min_length=1)


class FreshReply(BaseModel):
    """What was added to which version, and how many fresh items it has now."""

    name: str
    version: str
    digest: str
    added: int
    updated: int
    fresh_items: int


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


@router.post(
    "/models/{name}/items",
    responses=responses(400, 401, 403, 404, 409, 422, 503),
    dependencies=[Depends(requires("admin")), Depends(takes_json)],
)
async def add_items(name: str, body: FreshItems, parts: PartsDep) -> FreshReply:
    """Make items rankable that the version which serves does not know."""
    parts.drain.check()
    items = _new_items(body, parts.limits)
    ranking, done = await parts.loader.add_items(name, items)
    return FreshReply(
        name=ranking.name,
        version=ranking.version,
        digest=ranking.digest,
        added=done.added,
        updated=done.updated,
        fresh_items=done.fresh,
    )


def _new_items(body: FreshItems, limits: Limits) -> list[NewItem]:
    """The items of a body within the limits.

    Raises:
        InvalidRequest: too many items, too many seen with one, or an id is too long.
    """
    _check_count(len(body.items), limits.candidates, "/items")
    ids = texts([item.id for item in body.items], "/items/{}/id", limits)
    found = []
    for number, (item_id, item) in enumerate(zip(ids, body.items, strict=True)):
        if item.seen_with is not None:
            where = f"/items/{number}/seen_with"
            _check_count(len(item.seen_with), limits.session_items, where)
            texts(item.seen_with, f"{where}/{{}}", limits)
        found.append(NewItem(item_id, item.seen_with, item.vector))
    return found


def _check_count(count: int, limit: int, pointer: str) -> None:
    if count > limit:
        raise InvalidRequest(f"{count} ids, limit {limit}", [Fault(pointer, f"{count} > {limit}")])


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
        items=ranking.items if ranking else 0,
    )


def _model(slot: Slot, parts: Parts, entries: list[Entry]) -> Model:
    manifest = slot.ranking.manifest if slot.ranking else None
    features = manifest.features if manifest else ()
    settings = parts.settings
    return Model(
        **_summary(slot, parts).model_dump(),
        scores=manifest.scores if manifest else None,
        numerics=manifest.numerics if manifest else None,
        session=_session(slot.ranking, manifest) if manifest else None,
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
        kept=_kept(features),
        pruned=_pruned(features),
        limits=LimitsShown(
            candidates=settings.max_candidates,
            body_bytes=settings.max_body_bytes,
            session_items=settings.max_session_items,
            id_bytes=settings.max_id_bytes,
            fresh_items=settings.max_fresh_items,
        ),
        flops_per_candidate=slot.ranking.flops_per_candidate if slot.ranking else None,
        card=manifest.card if manifest else None,
        tiers=[_tier(tier) for tier in manifest.tiers] if manifest else [],
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


def _tier(tier: Tier) -> TierShown:
    return TierShown(
        name=tier.name,
        numerics=tier.numerics,
        flops_per_candidate=tier.flops,
        kept=_kept(tier.features),
        pruned=_pruned(tier.features),
        card=tier.card,
    )


def _kept(features: Iterable[FeatureSpec]) -> list[str]:
    return [spec.name for spec in features if not spec.pruned]


def _pruned(features: Iterable[FeatureSpec]) -> list[str]:
    return [spec.name for spec in features if spec.pruned]


def _session(ranking: Ranking | None, manifest: Manifest) -> SessionShown | None:
    spec = manifest.session
    if spec is None or not grows(ranking):
        return None
    return SessionShown(
        length=spec.length,
        dim=spec.dim,
        table=None if spec.vectors is None else spec.vectors.type,
        table_bytes=ranking.catalogue.nbytes,
        neighbours=spec.neighbours is not None,
        fresh_items=len(ranking.catalogue.fresh.placed),
    )
