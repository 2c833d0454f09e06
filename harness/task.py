"""What the machine asks of a task: a light description for planning and the work itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from harness.schema import DataSection, LossSection, ModelSection, Spec
from harness.share import ALONE, Share

if TYPE_CHECKING:
    import torch
    from numpy.random import RandomState
    from torch import Tensor, nn

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)`` by long work."""


@dataclass(frozen=True)
class Metric:
    """One measured number, with what is needed to read it years later."""

    name: str
    value: float
    unit: str
    n_eval: int
    """Samples that entered the metric."""
    split: str
    protocol: str
    """How it was measured, e.g. ``pycocotools segm, single scale``."""
    higher_is_better: bool = True
    se: float | None = None
    """Standard error of the metric itself over the evaluated samples, where defined."""


@dataclass(frozen=True)
class NormFacts:
    """What planning must know of a model's norm sites without building it."""

    widths: tuple[int, ...]
    """Every channel count that occurs at a norm site."""
    min_values: int
    """Values per channel that one image contributes at the smallest norm site."""
    smallest_site: str
    """Where that is, for the error message."""


@dataclass(frozen=True)
class DataReport:
    """What ``normbench data check`` found: facts as pairs and problems in words."""

    root: Path
    facts: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()


Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Pictures:
    """How a network is shown pictures; initial weights fit one way only."""

    colours: Literal["rgb", "bgr"]
    """Order of the channels."""
    mean: Triple | None = None
    """Subtracted, of red, green, blue in 0..1; None where it is not known."""
    std: Triple | None = None
    """Divided by, alike."""


class TaskInfo(Protocol):
    """The light half of a task (no torch): its sections, its data and its limits."""

    name: str
    title: str
    downloads: str
    """Names and sources of the official downloads, in words."""
    implementation: str
    """``module:Class`` of the ``Task``, imported only when a run starts."""
    numerics: int
    """Raised whenever the same spec gives other numbers than before."""
    sees_samples: bool
    """Whether every norm site sees whole samples, (N, ...), so that those of a forward can be told
    apart; in detection the heads see regions."""
    model: type[ModelSection]
    data: type[DataSection]
    loss: type[LossSection]

    def norm_facts(self, spec: Spec) -> NormFacts:
        """Describe the norm sites of ``spec.model``."""
        ...

    def separable(self, spec: Spec) -> bool:
        """Return whether samples cannot influence each other under a batch-independent norm."""
        ...

    def num_train(self, spec: Spec) -> int | None:
        """Return the number of training samples; None where planning cannot know it."""
        ...

    def refuse(self, spec: Spec) -> str | None:
        """Return why this combination cannot run, or None."""
        ...

    def dataset(self, spec: Spec) -> str:
        """Return the name of the data set, as reports print it."""
        ...

    def data_root(self, spec: Spec) -> Path:
        """Return where the data of ``spec`` lie, or will lie once generated."""
        ...

    def fingerprint(self, spec: Spec) -> str:
        """Return a short content identity of the data.

        Raises:
            DataError: if real data are missing or incomplete.
        """
        ...

    def prepare(self, spec: Spec, progress: Progress) -> Path:
        """Generate the embedded data if they are absent; check real data quickly."""
        ...

    def unpack(self, spec: Spec, sources: Sequence[Path], progress: Progress) -> None:
        """Turn official downloads into the layout of ``spec.data.root``.

        Raises:
            DataError: if one is missing, damaged, not safe to unpack, or of something else.
        """
        ...

    def download(self, spec: Spec, folder: Path) -> None:
        """Fetch what ``unpack`` takes into ``folder`` through a library that offers it.

        Raises:
            DataError: if none does, naming the official source.
        """
        ...

    def check(self, spec: Spec, progress: Progress) -> DataReport:
        """Look through the data as deeply as ``normbench data check`` promises."""
        ...

    def show(self, spec: Spec, out: Path) -> None:
        """Draw samples of the data into a picture."""
        ...


@runtime_checkable
class SeesPictures(Protocol):
    """A ``TaskInfo`` whose network sees pictures, and may be shown them in another way."""

    def pictures(self, spec: Spec) -> Pictures:
        """Return how the recipe shows pictures."""
        ...

    def show_pictures(self, spec: Spec, mean: Triple, std: Triple) -> Spec:
        """Return ``spec`` with another mean and deviation; the order of colours stays."""
        ...


@runtime_checkable
class Pretrains(Protocol):
    """A ``TaskInfo`` whose backbone can be pretrained as a classifier (``init=pretrain``)."""

    def pretraining(self, spec: Spec) -> Sequence[tuple[str, str]]:
        """Return the ``key=value`` words of classification with the backbone of ``spec``.

        Norm, seed, data seed and device are added by the harness.

        Raises:
            UsageError: if no recipe of classification has it.
        """
        ...


class TrainData(Protocol):
    """Training samples: map-style, so that resuming is arithmetic."""

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        ...

    def sample(self, index: int, rng: RandomState) -> Any:
        """Return sample ``index``, augmented by draws from ``rng`` alone."""
        ...


@runtime_checkable
class GroupedTrainData(TrainData, Protocol):
    """Training samples of which a micro-batch holds one group only, e.g. images of one format."""

    groups: bytes | None
    """The group of each sample, one byte each; None where they are not grouped."""


class Task(Protocol):
    """The working half of a task; constructed as ``Task(spec, root)`` in the worker."""

    bare: Sequence[str]
    """Patterns of the layers that no norm follows, by the recipe."""
    ws_classes: Mapping[type[nn.Module], type[nn.Module]]
    """Weight-standardised twins of the library's own layer classes."""
    backbone: str
    """Path prefix of the backbone, for ``norm.scope=backbone``."""
    out: Path | None
    """The run's folder, set by the worker, for what a task keeps beside the numbers."""

    def __init__(self, spec: Spec, root: Path | None) -> None:
        """Read what the data say of themselves, such as their classes.

        Without a ``root`` only the model can be built, for an audit before the data are there, with
        the official number of classes.
        """
        ...

    def build_model(self) -> nn.Module:
        """Return the library's model with BN wherever the recipe normalises."""
        ...

    def finish_model(self, model: nn.Module) -> None:
        """Freeze what the recipe freezes; called after surgery."""
        ...

    def train_data(self) -> TrainData:
        """Return the training samples."""
        ...

    def collate(self, samples: list[Any]) -> Any:
        """Join the samples of one micro-batch."""
        ...

    def to_device(self, batch: Any, device: torch.device) -> Any:
        """Move a collated micro-batch."""
        ...

    def counts(self, batch: Any) -> dict[str, float]:
        """Return each loss's denominator, from the targets alone (before any forward)."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, float]]:
        """Return each loss as (sum, count); the loop divides by the whole window's count."""
        ...

    def evaluate(
        self,
        model: nn.Module,
        device: torch.device,
        progress: Progress,
        share: Share = ALONE,
    ) -> list[Metric]:
        """Measure the official metrics on the evaluation split.

        ``share`` says which items this process looks at, and gathers what all of them found; every
        process returns the metrics of all items.
        """
        ...
