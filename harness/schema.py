"""The sections of a run's specification, with their defaults and limits.

Task-independent: a task adds its own ``model``, ``data`` and ``loss`` sections (see
``harness.task.TaskInfo``), and ``harness.spec`` joins the two into one frozen ``Spec``.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from harness.norm.catalogue import NORMS, WS_VARIANTS, parse_norm
from harness.trackers.registry import tracker_names

_GHOST = re.compile(r"ghost:([1-9]\d*)")
_LARGEST_HINT = 2**16
"""Up to which micro-batches are suggested."""
_LARGEST_SEED = 2**63 - 1
"""A seed is a column of the tables, and a part of a run's name."""


class Section(BaseModel):
    """A frozen group of keys; ``shorthand`` names the key that a bare value stands for."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )
    shorthand: ClassVar[str | None] = None

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn the bare value of ``section=value`` into a mapping of the section's keys."""
        if isinstance(value, dict) or cls.shorthand is None:
            return value
        return {cls.shorthand: value}


class Later(Section):
    """A section in which some keys came later than results.

    At their default they change nothing, so they are left out of what is written and hashed: a run
    that does not use them keeps its identity. Their defaults must never change.
    """

    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        unused = {key for key in self.later if getattr(self, key) == fields[key].default}
        return {key: value for key, value in content.items() if key not in unused}


class NormSection(Section):
    """The switch. ``norm=gn_ws`` is sugar for ``norm.layer=gn norm.ws=authors``."""

    layer: str = Field("gn", description="normalisation of the activations (see `ls norms`)")
    groups: int = Field(32, ge=1, description="channel groups, where a norm has them")
    interleaved: bool = Field(
        False, description="gn: channel c is in group c mod groups, not in runs of channels"
    )
    ws: str | None = Field(None, description="variant of weight standardisation, or null")
    scope: Literal["followed_by_norm", "backbone"] = Field(
        "followed_by_norm", description="which of the layers followed by a norm are standardised"
    )

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Read the grammar ``<layer>[_ws]``."""
        return parse_norm(value) if isinstance(value, str) else value

    @field_validator("layer")
    @classmethod
    def _known_layer(cls, value: str) -> str:
        if value not in NORMS:
            raise _unknown(value, NORMS)
        return value

    @field_validator("ws")
    @classmethod
    def _known_variant(cls, value: str | None) -> str | None:
        if value is not None and value not in WS_VARIANTS:
            raise _unknown(value, WS_VARIANTS)
        return value

    @property
    def name(self) -> str:
        """Return the name in the grammar, e.g. ``gn_ws``."""
        return f"{self.layer}_ws" if self.ws else self.layer


class BatchSection(Section):
    """The batch in three numbers (all in images)."""

    shorthand = "size"

    size: int = Field(ge=1, description="images per optimiser step, over all devices")
    micro: int = Field(ge=1, description="images per forward pass on one device")
    stat: str = Field(
        "micro", description="images each batch statistic sees: micro, sync or ghost:K"
    )
    tail: Literal["keep", "drop"] = Field(
        "keep", description="an epoch's incomplete last batch: keep it as a smaller one, or drop it"
    )

    @field_validator("stat")
    @classmethod
    def _known_stat(cls, value: str) -> str:
        if value not in ("micro", "sync") and not _GHOST.fullmatch(value):
            raise _unknown(value, ("micro", "sync", "ghost:K"))
        return value

    @property
    def ghost(self) -> int | None:
        """Return the K of ``stat=ghost:K``, None for any other."""
        found = _GHOST.fullmatch(self.stat)
        return int(found[1]) if found else None

    @model_validator(mode="after")
    def _ghost_divides(self) -> BatchSection:
        if self.ghost and self.micro % self.ghost:
            legal = [str(k) for k in range(1, self.micro + 1) if self.micro % k == 0]
            raise ValueError(
                f"stat={self.stat} does not divide micro={self.micro}: use "
                f"batch.stat=ghost:{' or ghost:'.join(legal)}"
            )
        return self


class OptimSection(Section):
    """The optimiser, one group of rules for every task."""

    shorthand = "name"

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="the optimiser")
    lr: float = Field(gt=0, description="base learning rate, before the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    weight_decay: float = Field(0.0, ge=0, description="of the weights of convs and linears")
    weight_decay_norm: float = Field(0.0, ge=0, description="of the norms' gamma")
    weight_decay_bias: float = Field(0.0, ge=0, description="of every bias and the norms' beta")
    lr_factor_bias: float = Field(1.0, gt=0, description="learning-rate factor of biases")
    clip_norm: float | None = Field(None, gt=0, description="largest L2 norm of the gradient")


class ScheduleSection(Section):
    """The learning rate as a pure function of the step (``harness.schedule``)."""

    shorthand = "name"

    name: Literal["constant", "cosine", "poly", "multistep"] = Field(
        "constant", description="how the rate falls from step to step"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    warmup_factor: float = Field(0.0, ge=0, le=1, description="factor at step 0 of the warm-up")
    drops: tuple[int, ...] = Field((), description="multistep: steps at which the rate drops")
    gamma: float = Field(0.1, gt=0, description="multistep: factor of each drop")
    power: float = Field(0.9, gt=0, description="poly: the exponent")
    floor: float = Field(0.0, ge=0, lt=1, description="smallest factor of the base rate")


class ModelSection(Section):
    """A task's model; each task adds its options."""

    shorthand = "name"

    name: str


class DataSection(Section):
    """A task's data; each task adds its options."""

    shorthand = "root"
    not_science: ClassVar[frozenset[str]] = frozenset({"root", "seed"})
    """Keys that are no part of a run's identity: the fingerprint stands for these two."""

    root: str | None = Field(None, description="folder of the real data set; null = embedded")
    seed: int = Field(0, ge=0, le=_LARGEST_SEED, description="seed of the embedded data")
    embedded: bool = Field(True, description="generate the data where no root is given")
    on_corrupt: Literal["error", "skip"] = Field(
        "error",
        description="a training sample that cannot be read: end the run, or train on the next "
        "readable one instead and count it; in evaluation it always ends the run",
    )


class LossSection(Section):
    """A task's loss options."""


class InitSection(Later):
    """Where the initial weights come from."""

    shorthand = "source"

    source: str | None = Field(
        None,
        description="scratch, FILE, run:ID (a finished run), torchvision:NAME, timm:NAME, or "
        "pretrain (the classification run of the same backbone, norm and seed)",
    )
    norm: str | None = Field(
        None, description="the norm that a file was trained under, where it does not tell: gn_ws"
    )
    colours: Literal["rgb", "bgr"] | None = Field(
        None, description="channel order that a file was trained with; null = as its layout has it"
    )
    allow_mismatch: bool = Field(
        False, description="load weights of another norm, or of a part of the backbone, nonetheless"
    )
    cell: str | None = Field(
        None, description="filled in: what the run of init=run:ID is to a table, seed aside"
    )
    later = frozenset({"norm", "colours", "allow_mismatch", "cell"})


class ExecSection(Section):
    """How a run is executed. Nothing here may change what is computed, only when and where."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    threads: int | None = Field(None, ge=1, description="CPU threads; null = all cores")
    workers: int = Field(0, ge=0, description="processes that load data; 0 = in the run's own")
    prefetch: int = Field(2, ge=1, description="steps that each of these processes has ready")
    chunk: Literal["auto", "micro"] | PositiveInt = Field(
        "auto", description="images per forward where that changes no number; micro = batch.micro"
    )
    ws_once: bool = Field(
        True, description="standardise weights once per step, not once per forward"
    )
    ws_recompute: bool = Field(
        False, description="standardise weights again in the backward pass instead of keeping them"
    )
    eval_every: int = Field(
        0, ge=0, description="steps between evaluations on the way, for the curve; 0 = none"
    )
    fused: bool = Field(
        True,
        description="fast exact forms of operations; false = the plain ones, equal to rounding",
    )
    log_s: float = Field(5.0, gt=0, description="seconds between progress lines")
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between checkpoints")
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="who is told the step curves, e.g. [tensorboard,wandb]; or []"
    )

    @field_validator("chunk", mode="before")
    @classmethod
    def _word_or_number(cls, value: Any) -> Any:
        if value in ("auto", "micro") or (type(value) is int and value > 0):
            return value
        raise _unknown(str(value), ("auto", "micro", "a positive number"))

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = tracker_names()
        for name in value:
            if name not in known:
                raise _unknown(name, known)
        return tuple(dict.fromkeys(value))


class Spec(Section):
    """Everything that defines one run. Built by ``harness.spec.build``, never by hand."""

    task: str
    preset: str
    model: ModelSection
    norm: NormSection
    batch: BatchSection
    optim: OptimSection
    schedule: ScheduleSection = ScheduleSection()
    steps: int = Field(ge=1, description="optimiser steps")
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = Field(
        "fp32", description="autocast type of forward and backward; fp64 casts the whole model"
    )
    seed: int = Field(
        0,
        ge=0,
        le=_LARGEST_SEED,
        description="of initial weights, data order and augmentation",
    )
    bn_eval: Literal["running", "precise"] = Field(
        "running", description="averages that bn evaluates with: of training, or re-estimated"
    )
    data: DataSection
    loss: LossSection = LossSection()
    init: InitSection = InitSection()
    devices: int = Field(1, ge=1, description="processes that share each step")
    exec: ExecSection = ExecSection()

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, content: Any) -> Any:
        """Replace a norm that is short for ``bn`` with a ``batch.stat`` by what it stands for."""
        norm, batch = (content.get(name) or {} for name in ("norm", "batch"))
        if not (isinstance(norm, dict) and isinstance(batch, dict)):
            return content  # for pydantic to say
        layer, stat = str(norm.get("layer")), batch.get("stat")
        short_for = NORMS[layer].short_for if layer in NORMS else ""
        if not short_for:
            return content
        if short_for == "ghost" and not _GHOST.fullmatch(str(stat)):
            raise ValueError(
                f"norm={layer} needs the images of a statistic: give batch.stat=ghost:K"
            )
        if short_for == "sync" and stat not in (None, "sync"):
            raise ValueError(f"norm={layer} contradicts batch.stat={stat}: leave one of them out")
        return {
            **content,
            "norm": norm | {"layer": "bn"},
            "batch": batch | {"stat": stat or short_for},
        }

    @model_validator(mode="after")
    def _batch_divides(self) -> Spec:
        share = self.batch.micro * self.devices
        if self.batch.size % share:
            below = self.batch.size // share * share
            sizes = " or ".join(str(n) for n in (below, below + share) if n)
            per_device, uneven = divmod(self.batch.size, self.devices)
            small = range(1, min(per_device, _LARGEST_HINT) + 1)
            micros = [n for n in small if not uneven and per_device % n == 0]
            near = sorted(sorted(micros, key=lambda n: abs(n - self.batch.micro))[:3])
            raise ValueError(
                f"batch.size={self.batch.size} is not divisible by batch.micro={self.batch.micro}"
                f" x devices={self.devices}: use batch.size={sizes}"
                + (f", or batch.micro={' or '.join(map(str, near))}" if near else "")
            )
        return self


def _unknown(value: str, options: Any) -> ValueError:
    from harness.documents import quoted
    from harness.errors import did_you_mean

    return ValueError(
        f"{quoted(value)} is not known.{did_you_mean(value, options)} Allowed: {', '.join(options)}"
    )
