"""The light half of classification: its sections, its data and its limits, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from harness.embedded import given_root
from harness.errors import DataError
from harness.paths import cache_dir
from harness.schema import DataSection, Later, LossSection, ModelSection, Spec
from harness.task import DataReport, NormFacts, Pictures, Progress, Triple
from tasks.classification import architectures, embedded, imagefolder, prepare


class ClassificationModel(Later, ModelSection):
    """A network; batch norm at every site before surgery."""

    name: str = Field(
        description=f"{', '.join(architectures.RESNETS)}, or any classifier of torchvision or timm"
    )
    width: int | None = Field(
        None, ge=1, description="channels of the stem of a resnet_mini*; null = as it is named for"
    )
    later = frozenset({"width"})


class ClassificationData(DataSection):
    """Pictures in class folders: real ones, or shapes generated in the same format."""

    size: int = Field(32, ge=1, description="side of the pictures that the network sees, px")
    resize: int | None = Field(
        None, ge=1, description="evaluation: shorter side before the centre crop, px; null = size"
    )
    scale: tuple[float, float] = Field(
        (1, 1), description="training: smallest and largest share of the picture that a crop keeps"
    )
    ratio: tuple[float, float] = Field(
        (1, 1), description="training: smallest and largest width / height of a crop"
    )
    flip: float = Field(0.5, ge=0, le=1, description="training: probability of a mirrored picture")
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="subtracted, RGB of 0..1; ImageNet's"
    )
    std: tuple[float, float, float] = Field(
        (0.229, 0.224, 0.225), description="divided by, RGB; ImageNet's"
    )
    num_train: int = Field(4000, ge=1, description="embedded data: training pictures")
    num_val: int = Field(1200, ge=1, description="embedded data: evaluation pictures")


class ClassificationInfo:
    """``harness.task.TaskInfo`` of classification."""

    name = "classification"
    title = "image classification on ImageNet with ResNets (torchvision)"
    downloads = prepare.DOWNLOADS
    implementation = "tasks.classification.task:ClassificationTask"
    numerics = 1
    sees_samples = True
    model = ClassificationModel
    data = ClassificationData
    loss = LossSection

    def norm_facts(self, spec: Spec) -> NormFacts:
        """Describe the norm sites of the ResNets that we know; others are not refused here."""
        model = _model(spec)
        return architectures.norm_facts(model.name, _data(spec).size, model.width)

    def separable(self, spec: Spec) -> bool:
        """Return True: pictures have one size."""
        return True

    def num_train(self, spec: Spec) -> int | None:
        """Return the number of training pictures; None where they are not there to be counted."""
        data = _data(spec)
        try:
            if _given_root(data) is None:
                return data.num_train
            return imagefolder.summarise(self.data_root(spec)).num_train
        except DataError:
            return None

    def refuse(self, spec: Spec) -> str | None:
        """Refuse crops that cannot be made, and a width that a network cannot have."""
        data, model = _data(spec), _model(spec)
        if model.width is not None and not model.name.startswith(architectures.MINI):
            return f"model.width={model.width} is for {architectures.MINI}*, not for {model.name}"
        if data.resize is not None and data.resize < data.size:
            return (
                f"data.resize={data.resize} leaves too little for a centre crop of "
                f"data.size={data.size}: use data.resize={data.size} or more"
            )
        for name, (low, high), most in (
            ("scale", data.scale, 1.0),
            ("ratio", data.ratio, float("inf")),
        ):
            if not 0 < low <= high <= most:
                limit = " up to 1" if most == 1 else ""
                return f"data.{name}=[{low:g},{high:g}] must ascend from above 0{limit}"
        return None

    def dataset(self, spec: Spec) -> str:
        """Return the name of the data set, as reports print it."""
        if _given_root(_data(spec)) is None:
            return "textured shapes"
        root = self.data_root(spec)
        return "ImageNet-1k" if imagefolder.summarise(root).is_imagenet else root.resolve().name

    def data_root(self, spec: Spec) -> Path:
        """Return the folder given, ``imagenet/`` within it, or where the embedded data are kept."""
        data = _data(spec)
        if (given := _given_root(data)) is not None:
            inner = given / "imagenet"
            return inner if inner.is_dir() else given
        return cache_dir() / "classification" / self._embedded_name(data)

    def fingerprint(self, spec: Spec) -> str:
        """Return the embedded data's generator and arguments, or a hash of the listing."""
        data = _data(spec)
        if _given_root(data) is None:
            return self._embedded_name(data)
        return f"imagefolder-{imagefolder.summarise(self.data_root(spec)).digest}"

    def prepare(self, spec: Spec, progress: Progress) -> Path:
        """Generate the embedded data if they are absent; check the layout of real data."""
        data = _data(spec)
        root = self.data_root(spec)
        if _given_root(data) is not None:
            imagefolder.check_layout(root)
            return root
        return embedded.generate(
            root,
            seed=data.seed,
            size=data.size,
            num_train=data.num_train,
            num_val=data.num_val,
            progress=lambda done, total: progress("generate", done, total),
        )

    def unpack(self, spec: Spec, sources: Sequence[Path], progress: Progress) -> None:
        """Fill a folder of pictures by class."""
        prepare.unpack(self.data_root(spec), sources, progress)

    def download(self, spec: Spec, folder: Path) -> None:
        """Fetch Imagenette through torchvision; ImageNet has no download without a login."""
        if not _data(spec).embedded:
            raise DataError(f"no library here downloads ImageNet: fetch {self.downloads}")
        prepare.download(folder)

    def check(self, spec: Spec, progress: Progress) -> DataReport:
        """Count the pictures of every class and open a sample of them."""
        from tasks.classification.inspection import inspect

        root = self.prepare(spec, progress)
        return inspect(root, progress, must_be_imagenet=not _data(spec).embedded)

    def show(self, spec: Spec, out: Path) -> None:
        """Draw training pictures, a row a class."""
        from tasks.classification.show import show

        show(self.prepare(spec, lambda *_: None), imagefolder.TRAIN, out)

    def pictures(self, spec: Spec) -> Pictures:
        """Return the recipe's mean and deviation, RGB."""
        data = _data(spec)
        return Pictures("rgb", data.mean, data.std)

    def show_pictures(self, spec: Spec, mean: Triple, std: Triple) -> Spec:
        """Return ``spec`` with another mean and deviation."""
        data = _data(spec).model_copy(update={"mean": mean, "std": std})
        return spec.model_copy(update={"data": data})

    @staticmethod
    def _embedded_name(data: ClassificationData) -> str:
        return embedded.fingerprint(data.seed, data.size, data.num_train, data.num_val)


def _model(spec: Spec) -> ClassificationModel:
    assert isinstance(spec.model, ClassificationModel)
    return spec.model


def _data(spec: Spec) -> ClassificationData:
    assert isinstance(spec.data, ClassificationData)
    return spec.data


def _given_root(data: ClassificationData) -> Path | None:
    return given_root(data, f"ImageNet (ILSVRC 2012 from image-net.org; {imagefolder.EXPECTED})")


INFO = ClassificationInfo()
