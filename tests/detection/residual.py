"""How far the gradient of one step depends on its split into micro-batches, and on what account.

``python -m tests.detection.residual 0 100 300`` trains the mini network under GN for so many steps
and prints the table of docs/detection.md (some minutes on one core).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness.distributed import Ranks
from harness.feed import Steps, feed
from harness.loop import Trainer
from harness.rng import drawing, numpy_rng
from harness.worker import build_model
from tasks.detection import d2
from tasks.detection.dataset import Sample
from tasks.detection.task import DetectionTask
from tests.detection.conftest import detection_spec, detection_task


def double_model(*words: str) -> tuple[DetectionTask, nn.Module]:
    spec = detection_spec(*words)
    task = detection_task(spec)
    model, _ = build_model(task, spec)
    return task, model.double().train()


def samples_of(task: DetectionTask, num: int) -> list[Sample]:
    data = task.train_data()
    return [data.sample(i, numpy_rng("test", i)) for i in range(num)]


def gradient(
    task: DetectionTask, model: nn.Module, samples: list[Sample], micro: int, *, keyed: bool = True
) -> Tensor:
    """Accumulate the gradient of one step over micro-batches, as the loop does."""
    model.zero_grad()
    ids = list(range(len(samples)))
    count = task.counts(samples)
    draws = drawing if keyed else _global_draws
    torch.manual_seed(0)
    for start in range(0, len(samples), micro):
        chunk = slice(start, start + micro)
        with draws(0, 0, ids[chunk]):
            losses = task.loss(model, task.collate(samples[chunk]))
        torch.stack([total / count[name] for name, (total, _) in losses.items()]).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@contextmanager
def _global_draws(*_: object) -> Iterator[None]:
    """Draw as detectron2 does, from torch's global generator, one image after the other."""
    yield


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def narrowed(sample: Sample, height: int) -> Sample:
    """Return a sample cut to its upper part, keeping the objects that remain visible."""
    objects = sample["instances"]
    cut = d2.Instances((height, objects.image_size[1]), **objects.get_fields())
    cut.gt_boxes = objects.gt_boxes.clone()
    cut.gt_boxes.clip(cut.image_size)
    cut = cut[cut.gt_boxes.nonempty(threshold=4.0)]
    return sample | {"image": sample["image"][:, :height], "instances": cut}


def mixed_sizes(samples: list[Sample]) -> list[Sample]:
    """Return every second sample at two thirds of its height; those left empty are dropped."""
    mixed = [s if i % 2 else narrowed(s, 64) for i, s in enumerate(samples)]
    return [s for s in mixed if len(s["instances"])]


def split_differences(
    task: DetectionTask, model: nn.Module, samples: list[Sample]
) -> dict[str, float]:
    """Compare one image a forward with all at once: for equal sizes, mixed ones, global draws."""

    def one_by_one(images: list[Sample], *, keyed: bool = True) -> float:
        whole = gradient(task, model, images, len(images), keyed=keyed)
        return difference(gradient(task, model, images, 1, keyed=keyed), whole)

    return {
        "equal sizes": one_by_one(samples),
        "mixed sizes": one_by_one(mixed_sizes(samples)),
        "global draws": one_by_one(samples, keyed=False),
    }


def main(checkpoints: list[int]) -> None:
    torch.set_num_threads(1)
    spec = detection_spec("norm=gn", "batch.micro=8", "data.seed=1")
    task = detection_task(spec)
    model, _ = build_model(task, spec)
    cpu = torch.device("cpu")
    trainer = Trainer(task, model, spec, Ranks(cpu), cpu, chunk=8)
    model.train()
    windows = feed(Steps(task, task.train_data(), spec, chunk=8, rank=0, world=1), 0)
    done = 0
    for goal in sorted(checkpoints):
        for step in range(done, goal):
            trainer.step(next(windows), step)
        done = goal
        for mode in ("image", "stock"):
            words = ("norm=gn", "data.seed=1", f"loss.normalizer={mode}")
            twin_task, twin = double_model(*words)
            twin.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
            found = split_differences(twin_task, twin, samples_of(twin_task, 8))
            shown = "  ".join(f"{name} {value:.1e}" for name, value in found.items())
            print(f"step {goal:3}  loss.normalizer={mode}  {shown}", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [0])
