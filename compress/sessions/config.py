"""One TOML file is one run of the session line: its sections and their defaults."""

from typing import Final, Literal

from pydantic import Field, model_validator

from compress.config import AnyRun, Frozen, Section

TASK: Final = "session"
Weights = Literal["float32", "float16", "int8"]


class FitConfig(Frozen):
    """The training loop's options.

    Attributes:
        lr: of the encoder, at its peak; warmed up over the first tenth, then cosine to zero. 0: the
            encoder stays as it is.
        table_lr: of the item table.
        newest: so many sessions are learned from, the newest ones; 0: all.
        batch_clicks: clicks in a batch, about.
        negatives: items drawn for each batch besides its own; 0: the whole catalogue.
        half: multiply the cross-entropy's logits in bfloat16, see `compress/sessions/softmax.py`.
        patience: epochs without a better validation NDCG@20 that are borne before stopping.
        weight_decay: of the encoder.
    """

    lr: float = Field(default=1e-3, ge=0.0)
    table_lr: float = Field(default=3e-3, ge=0.0)
    newest: int = Field(default=0, ge=0)
    batch_clicks: int = Field(default=512, ge=2)
    negatives: int = Field(default=2048, ge=0)
    half: bool = False
    epochs: int = Field(default=10, gt=0)
    patience: int = Field(default=3, ge=0)
    weight_decay: float = Field(default=0.0, ge=0.0)


class SoftTargets(Frozen):
    """How much the student imitates its teacher, and where.

    Attributes:
        after: where soft targets are taken: ``clicks``, at every target of the cross-entropy, which
            a trained teacher knows by heart; or ``sessions``, after the last click of each, where
            it says what it would say of a session that it has not seen. There is no cross-entropy
            then, and no dropout.
        soft: weight of KL(teacher || student) over all ways (γ); the cross-entropy keeps 1 - γ.
        contrast: weight of the contrastive loss between recombined hot and cold halves (β).
        bidirectional: whether the teacher learns with the student.
        hot_share: share of the items, by clicks, that are hot.
        temperature: of the contrastive loss (τ).
    """

    after: Literal["clicks", "sessions"] = "clicks"
    soft: float = Field(default=0.5, ge=0.0, le=1.0)
    contrast: float = Field(default=0.0, ge=0.0)
    bidirectional: bool = False
    hot_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    temperature: float = Field(default=0.2, gt=0.0)

    @model_validator(mode="after")
    def _alone(self) -> "SoftTargets":
        others = self.soft < 1 or self.contrast or self.bidirectional
        if self.after == "sessions" and others:
            raise ValueError(
                "after a session's end there are soft targets alone: expected soft = 1, "
                "contrast = 0 and bidirectional = false beside after = 'sessions'"
            )
        return self


class SessionExport(Frozen):
    """What goes into the bundles.

    Attributes:
        weights: how the graph's weights are kept; they are computed with in float32.
    """

    golden_requests: int = Field(default=16, gt=0)
    golden_candidates: int = Field(default=50, gt=0)
    timing_candidates: int = Field(default=1000, gt=0)
    weights: Weights = "float16"


class SessionGate(Frozen):
    """What the coded table may cost of the uncompressed one's NDCG@10, else nothing is published.

    Attributes:
        min_ratio: coded over dense; over 1 asks for a gain.
    """

    min_ratio: float = Field(default=0.0, ge=0.0)


class SessionRunConfig(AnyRun):
    """A whole run: sessions → teacher → codes → student → export → evaluate → publish.

    Attributes:
        calibrate: whether teacher and student weigh repeats as validation has it.
    """

    task: Literal["session"]
    train: FitConfig = FitConfig()
    calibrate: bool = True
    table: Section
    finetune: FitConfig = FitConfig(lr=5e-4, table_lr=1e-3, epochs=5)
    distill: SoftTargets = SoftTargets()
    floors: tuple[str, ...] = ("own-items", "sequential-rules", "rules-and-own")
    export: SessionExport = SessionExport()
    gate: SessionGate = SessionGate()
