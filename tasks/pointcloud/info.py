"""The light half of point clouds: their sections, their data and their limits, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.embedded import given_root
from harness.errors import DataError
from harness.paths import cache_dir
from harness.schema import DataSection, LossSection, ModelSection, Spec
from harness.task import DataReport, NormFacts, Progress
from tasks.pointcloud import architectures, embedded, modelnet, prepare


class PointcloudModel(ModelSection):
    """DGCNN; batch norm at every site before surgery."""

    name: Literal["dgcnn_tf", "dgcnn"] = Field(
        description="dgcnn_tf: behind the published numbers of WS, with a transform net, ReLU and "
        "max pooling; dgcnn: its authors' PyTorch one, LeakyReLU, max and mean pooling"
    )
    k: int = Field(ge=1, description="neighbours of a point, itself included")
    edge: tuple[int, ...] = Field(min_length=1, description="channels of the EdgeConvs")
    embedding: int = Field(ge=1, description="channels of the convolution before pooling")
    head: tuple[int, int] = Field(description="widths of the head's normed layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="probability after each of these two")
    bn_eps: float = Field(1e-5, gt=0, description="epsilon of bn")
    bn_momentum: float = Field(
        0.1, gt=0, le=1, description="weight of a batch in bn's running averages"
    )


class PointcloudData(DataSection):
    """ModelNet40 as HDF5 files or as meshes, or solids generated in the format of the first."""

    format: Literal["hdf5", "meshes"] = Field(
        "hdf5", description="of real data: modelnet40_ply_hdf5_2048, or ModelNet40's OFF meshes"
    )
    points: int = Field(1024, ge=2, description="points of a cloud: the first ones of the file")
    augment: Literal["none", "dgcnn_tf", "dgcnn"] = Field(
        "none", description="random changes of training clouds, as in that recipe"
    )
    votes: int = Field(
        1, ge=1, description="evaluation: views turned about the upright axis, logits summed"
    )
    num_train: int = Field(1600, ge=1, description="embedded data: training clouds")
    num_test: int = Field(480, ge=1, description="embedded data: test clouds")


class PointcloudLoss(LossSection):
    """Cross-entropy with smoothed labels."""

    smoothing: float = Field(0.0, ge=0, lt=1, description="share of the label spread over classes")
    smooth_over: Literal["all", "others"] = Field(
        "all", description="spread over all classes, or over all but the true one"
    )


class PointcloudInfo:
    """``harness.task.TaskInfo`` of point clouds."""

    name = "pointcloud"
    title = "point-cloud classification on ModelNet40 with DGCNN"
    downloads = prepare.DOWNLOADS
    implementation = "tasks.pointcloud.task:PointcloudTask"
    numerics = 2  # 2: EdgeConvs and neighbours in other, faster orders of the same sums
    sees_samples = True
    model = PointcloudModel
    data = PointcloudData
    loss = PointcloudLoss

    def norm_facts(self, spec: Spec) -> NormFacts:
        """Describe the norm sites; the head's see a cloud as a single value."""
        model, _ = _sections(spec)
        return architectures.norm_facts(model.name, model.edge, model.embedding, model.head)

    def separable(self, spec: Spec) -> bool:
        """Return True: clouds have one size, and each a graph of its own."""
        return True

    def num_train(self, spec: Spec) -> int | None:
        """Return the number of training clouds; None where they are not there to be counted."""
        _, data = _sections(spec)
        try:
            if _given_root(data) is None:
                return data.num_train
            if data.format == "meshes":
                from tasks.pointcloud import meshes

                return len(meshes.listing(meshes.find(_real_root(data)), modelnet.TRAIN))
            from tasks.pointcloud import clouds

            return sum(map(clouds.count, modelnet.files(self.data_root(spec), modelnet.TRAIN)))
        except DataError:
            return None

    def refuse(self, spec: Spec) -> str | None:
        """Refuse more neighbours than points, embedded meshes, and to skip single clouds."""
        model, data = _sections(spec)
        if data.format == "meshes" and data.embedded and data.root is None:
            return "data.format=meshes needs ModelNet40's meshes: give data=DIR"
        if data.on_corrupt == "skip":
            return (
                "data.on_corrupt=skip: clouds are read before training, from files of thousands, "
                "and not one by one; use data.on_corrupt=error"
            )
        if model.k > data.points:
            return (
                f"model.k={model.k}: a cloud of data.points={data.points} has no more than "
                f"{data.points} neighbours, each point itself included"
            )
        return None

    def dataset(self, spec: Spec) -> str:
        """Return the name of the data set, as reports print it."""
        _, data = _sections(spec)
        if _given_root(data) is None:
            return "solids"
        if data.format == "meshes":
            return "ModelNet40 meshes, sampled"
        root = self.data_root(spec)
        return "ModelNet40" if modelnet.is_modelnet40(root) else f"{root.name} (not as published)"

    def data_root(self, spec: Spec) -> Path:
        """Return the folder of HDF5 files: the one given, or where ours are kept."""
        _, data = _sections(spec)
        if _given_root(data) is None:
            return cache_dir() / "pointcloud" / self._embedded_name(data)
        if data.format == "meshes":
            from tasks.pointcloud import meshes

            return cache_dir() / "pointcloud" / meshes.fingerprint(meshes.find(_real_root(data)))
        return modelnet.find(_real_root(data))

    def fingerprint(self, spec: Spec) -> str:
        """Return the embedded data's generator and arguments, or a hash of what is there."""
        _, data = _sections(spec)
        if _given_root(data) is None:
            return self._embedded_name(data)
        if data.format == "meshes":
            return self.data_root(spec).name
        return modelnet.fingerprint(self.data_root(spec))

    def prepare(self, spec: Spec, progress: Progress) -> Path:
        """Generate or sample what is absent; check the layout of real data."""
        _, data = _sections(spec)
        root = self.data_root(spec)
        if _given_root(data) is None:
            return embedded.generate(
                root,
                seed=data.seed,
                points=data.points,
                num_train=data.num_train,
                num_test=data.num_test,
                progress=lambda done, total: progress("generate", done, total),
            )
        if data.format == "meshes":
            from tasks.pointcloud import meshes

            return meshes.sample_all(meshes.find(_real_root(data)), root, progress)
        modelnet.check_layout(root)
        return root

    def unpack(self, spec: Spec, sources: Sequence[Path], progress: Progress) -> None:
        """Fill a folder of HDF5 files or of meshes."""
        _, data = _sections(spec)
        prepare.unpack(_real_root(data), sources, progress)

    def download(self, spec: Spec, folder: Path) -> None:
        """Fetch the meshes through torch-geometric; no library here offers the HDF5 files."""
        _, data = _sections(spec)
        if data.format != "meshes":
            raise DataError(
                "torch-geometric downloads the meshes: add data.format=meshes, or fetch "
                f"{self.downloads}"
            )
        prepare.download(folder)

    def check(self, spec: Spec, progress: Progress) -> DataReport:
        """Read every cloud; hold ModelNet40 against its numbers and checksums."""
        from tasks.pointcloud.inspection import inspect

        _, data = _sections(spec)
        root = self.prepare(spec, progress)
        return inspect(root, progress, official=not data.embedded, hdf5=data.format == "hdf5")

    def show(self, spec: Spec, out: Path) -> None:
        """Draw training clouds, a row a class."""
        from tasks.pointcloud.show import show

        _, data = _sections(spec)
        show(self.prepare(spec, lambda *_: None), data.points, out)

    @staticmethod
    def _embedded_name(data: PointcloudData) -> str:
        return embedded.fingerprint(data.seed, data.points, data.num_train, data.num_test)


def _sections(spec: Spec) -> tuple[PointcloudModel, PointcloudData]:
    assert isinstance(spec.model, PointcloudModel)
    assert isinstance(spec.data, PointcloudData)
    return spec.model, spec.data


def _given_root(data: PointcloudData) -> Path | None:
    return given_root(
        data, f"ModelNet40 ({modelnet.FOLDER}.zip from shapenet.cs.stanford.edu/media)"
    )


def _real_root(data: PointcloudData) -> Path:
    root = _given_root(data)
    assert root is not None
    return root


INFO = PointcloudInfo()
