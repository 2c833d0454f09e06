"""detectron2's RPN and RoI heads with keyed sampling, and losses that can average image by image.

detectron2 draws the anchors and regions of a loss from the global generator, one image after the
other, so that an image's draws depend on its neighbours. Here they come from the image's own
generator (``harness.rng``), whatever the micro-batch.

Its losses are means over all sampled regions (boxes) or all positive ones (masks) of a forward. How
many these are is known only after the forward, hence a window of several forwards cannot be
normalised by its total as other tasks are: ``stock`` weights each forward's means by its images.
``image`` averages within every image first; for images of equal size the split into micro-batches
then changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from harness.rng import current_draws
from tasks.detection.d2 import (
    RPN,
    DefaultAnchorGenerator,
    FastRCNNOutputLayers,
    Instances,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
    mask_rcnn_loss,
)


def sample_labels(
    labels: Tensor, num: int, positive_share: float, background: int, site: str, position: int
) -> tuple[Tensor, Tensor]:
    """Draw a share of positives and fill up with negatives, as detectron2's ``subsample_labels``.

    Args:
        labels: (N,) with -1 for ignored, ``background`` for negatives, the rest positives.
        num: how many to draw, or fewer where there are not enough.
        positive_share: largest share of positives among ``num``.
        background: the label of negatives.
        site: what is drawn, part of the key of the draw.
        position: place of the image in the micro-batch.

    Returns:
        The indices of the drawn positives and of the drawn negatives.
    """
    draws = current_draws()
    generator = None if draws is None else draws.generator(site, position, labels.device)
    positive = ((labels != -1) & (labels != background)).nonzero().squeeze(1)
    negative = (labels == background).nonzero().squeeze(1)
    num_positive = min(len(positive), int(num * positive_share))
    num_negative = min(len(negative), num - num_positive)

    def some(indices: Tensor, how_many: int) -> Tensor:
        order = torch.randperm(len(indices), generator=generator, device=labels.device)
        return indices[order[:how_many]]

    return some(positive, num_positive), some(negative, num_negative)


class KeyedRPN(RPN):  # type: ignore[misc]
    """detectron2's RPN, drawing the anchors of each image's loss from that image's generator.

    Its losses are sums divided by a fixed number per image, so they need no other normaliser.
    """

    proposals_per = "image"
    """``batch``: in training the best proposals are chosen over all images of the forward."""
    _positions: Iterator[int] = count()

    def label_and_sample_anchors(
        self, anchors: list[Any], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors image by image, in the order of ``gt_instances``."""
        self._positions = count()
        return super().label_and_sample_anchors(anchors, gt_instances)  # type: ignore[no-any-return]

    def _subsample_labels(self, label: Tensor) -> Tensor:
        positive, negative = sample_labels(
            label,
            self.batch_size_per_image,
            self.positive_fraction,
            0,
            "rpn",
            next(self._positions),
        )
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    def predict_proposals(
        self, anchors: Any, logits: list[Tensor], deltas: list[Tensor], image_sizes: Any
    ) -> list[Instances]:
        """Select proposals in float32, the type of detectron2's boxes."""
        proposals: list[Instances] = super().predict_proposals(
            anchors, [scores.float() for scores in logits], deltas, image_sizes
        )
        if self.training and self.proposals_per == "batch":
            return best_of_batch(proposals, self.post_nms_topk[True])
        return proposals


def best_of_batch(proposals: list[Instances], num: int) -> list[Instances]:
    """Keep the ``num`` proposals of highest score over all images, in their order.

    As Detectron and maskrcnn-benchmark in training (``FPN_POST_NMS_TOP_N_TRAIN``, issue 459 of
    facebookresearch/Detectron): images of a forward compete for the proposals.
    """
    scores = torch.cat([one.objectness_logits for one in proposals])
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.topk(min(num, len(scores))).indices] = True
    chosen = kept.split([len(one) for one in proposals])
    return [one[keep] for one, keep in zip(proposals, chosen, strict=True)]


class KeyedROIHeads(StandardROIHeads):  # type: ignore[misc]
    """detectron2's RoI heads, drawing the regions of each image from that image's generator."""

    _positions: Iterator[int] = count()

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Label the proposals image by image, in the order of ``targets``."""
        self._positions = count()
        return super().label_and_sample_proposals(proposals, targets)  # type: ignore[no-any-return]

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if len(gt_classes):
            classes = gt_classes[matched_idxs]
            classes[matched_labels == 0] = self.num_classes
            classes[matched_labels == -1] = -1
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        chosen = torch.cat(
            sample_labels(
                classes,
                self.batch_size_per_image,
                self.positive_fraction,
                self.num_classes,
                "roi",
                next(self._positions),
            )
        )
        return chosen, classes[chosen]

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """Skip the head where no region is positive: batch norm cannot train on nothing."""
        if self.training and self.mask_on:
            classes = torch.cat([i.gt_classes for i in instances])
            if not bool((classes < self.num_classes).any()):
                return {"loss_mask": features[self.mask_in_features[0]].sum() * 0.0}
        return super()._forward_mask(features, instances)


class BoxPredictor(FastRCNNOutputLayers):  # type: ignore[misc]
    """detectron2's box predictor; its scores are float32 in evaluation, as its boxes are."""

    def predict_probs(self, predictions: Any, proposals: list[Instances]) -> list[Tensor]:
        """Return per image the class probabilities, each (R, K + 1)."""
        return [probs.float() for probs in super().predict_probs(predictions, proposals)]


class PerImageBoxPredictor(BoxPredictor):
    """The same with the mean over images of each image's mean loss."""

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Return the stock losses, averaged over the images of ``proposals``."""
        sizes = [len(p) for p in proposals]
        scores, deltas = (tensor.split(sizes) for tensor in predictions)
        per_image = [
            super(PerImageBoxPredictor, self).losses((s, d), [p])
            for s, d, p in zip(scores, deltas, proposals, strict=True)
        ]
        return {name: _mean([losses[name] for losses in per_image]) for name in per_image[0]}


class PerImageMaskHead(MaskRCNNConvUpsampleHead):  # type: ignore[misc]
    """detectron2's mask head with the mean over images of each image's mean loss."""

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """Return the loss in training, and the instances with masks in evaluation."""
        if not self.training:
            return super().forward(x, instances)
        logits = self.layers(x).split([len(i) for i in instances])
        per_image = [
            mask_rcnn_loss(part, [one]) for part, one in zip(logits, instances, strict=True)
        ]
        return {"loss_mask": _mean(per_image)}


class AnchorGenerator(DefaultAnchorGenerator):  # type: ignore[misc]
    """detectron2's anchors without the deprecated call of ``torch.meshgrid`` that warns."""

    def _grid_anchors(self, grid_sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return per level the anchors, (H * W * A, 4) as x0, y0, x1, y1 in pixels."""
        anchors = []
        levels = zip(grid_sizes, self.strides, self.cell_anchors, strict=True)
        for (height, width), stride, cells in levels:
            x, y = (
                stride * (torch.arange(side, dtype=cells.dtype, device=cells.device) + self.offset)
                for side in (width, height)
            )
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (H, W, 2)
            corners = centres.repeat(1, 1, 2).view(-1, 1, 4) + cells
            anchors.append(corners.view(-1, 4))
        return anchors


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean()


PREDICTORS: dict[str, type[nn.Module]] = {"stock": BoxPredictor, "image": PerImageBoxPredictor}
MASK_HEADS: dict[str, type[nn.Module]] = {
    "stock": MaskRCNNConvUpsampleHead,
    "image": PerImageMaskHead,
}
"""By ``loss.normalizer``."""
