"""What maskrcnn-benchmark does otherwise than detectron2, in subclasses of detectron2's parts.

The authors' code is a fork of facebookresearch/maskrcnn-benchmark; the files that each part follows
are named in brackets. docs/recipes.md lists all differences.

Its boxes (``model.boxes=pixels``) run from their first to their last pixel, so their width is
``x1 - x0 + 1``. Write the second corner one further, and coding and decoding of boxes, IoU, NMS and
the choice of a pyramid level are detectron2's, to the letter. What differs is whatever scales a box
or reads pixels with it, and that is what is here: resizing, pooled regions, mask targets, pasting.
Boxes below have the further corner unless said otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.detection.d2 import (
    Boxes,
    BufferList,
    Conv2d,
    Instances,
    MaskRCNNConvUpsampleHead,
    ROIAlign,
    ROIPooler,
)
from tasks.detection.losses import AnchorGenerator, PerImageMaskHead

_PADDING = 1
"""Empty cells around a mask that is pasted [modeling/roi_heads/mask_head/inference.py]."""


class RoundedAnchorGenerator(AnchorGenerator):
    """Anchors whose sides are rounded at the scale of the stride, and then scaled up.

    At stride 4 the anchor of 32 px and ratio 1/2 measures 6 x 3 cells, 48 x 24 px, instead of
    45.3 x 22.6 px [modeling/rpn/anchor_generator.py, after Detectron's ``generate_anchors``].
    """

    def _calculate_anchors(self, sizes: Any, aspect_ratios: Any) -> nn.Module:
        cells = []
        for stride, level, ratios in zip(self.strides, sizes, aspect_ratios, strict=True):
            corners = []
            for ratio in ratios:
                width = round(math.sqrt(stride**2 / ratio))
                height = round(width * ratio)
                corners += [
                    [side * size / stride / 2 for side in (-width, -height, width, height)]
                    for size in level
                ]
            cells.append(torch.tensor(corners))
        return BufferList(cells)  # type: ignore[no-any-return]


class PixelROIAlign(ROIAlign):  # type: ignore[misc]
    """RoIAlign of regions that end on their last pixel [csrc/cpu/ROIAlign_cpu.cpp]."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool ``rois`` (R, 5: image, x0, y0, x1, y1) from ``input`` (N, C, H, W)."""
        pooled: Tensor = super().forward(input, rois - rois.new_tensor([0, 0, 0, 1, 1]))
        return pooled


def end_on_last_pixel(pooler: ROIPooler) -> ROIPooler:
    """Let a pooler's regions end on their last pixel; levels are chosen as before."""
    pooler.level_poolers = nn.ModuleList(
        PixelROIAlign(align.output_size, align.spatial_scale, align.sampling_ratio, align.aligned)
        for align in pooler.level_poolers
    )
    return pooler


def _until_last_pixel(one: Instances) -> Instances:
    boxes = one.proposal_boxes.tensor
    content = one.get_fields() | {"proposal_boxes": Boxes(boxes - boxes.new_tensor([0, 0, 1, 1]))}
    return Instances(one.image_size, **content)


class _PixelTargets:
    """Crops mask targets to the last pixel of a region [modeling/roi_heads/mask_head/loss.py]."""

    training: bool

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """Return the loss in training, and the instances with masks in evaluation."""
        if self.training:
            instances = [_until_last_pixel(one) for one in instances]
        return super().forward(x, instances)  # type: ignore[misc]


class PixelMaskHead(_PixelTargets, MaskRCNNConvUpsampleHead):  # type: ignore[misc]
    """detectron2's mask head on such targets."""


class PixelPerImageMaskHead(_PixelTargets, PerImageMaskHead):
    """The same with the mean over images of each image's mean loss."""


MASK_HEADS: dict[str, type[nn.Module]] = {
    "stock": PixelMaskHead,
    "image": PixelPerImageMaskHead,
}
"""By ``loss.normalizer``."""


def is_more_than_a_pixel(bbox: list[float], height: int, width: int) -> bool:
    """Tell whether an object's last pixel lies beyond its first one, within the image.

    Others are no training objects [structures/bounding_box.py, ``clip_to_image``].

    Args:
        bbox: x, y, width and height in px.
        height: of the image.
        width: of the image.
    """
    for start, extent, side in ((bbox[0], bbox[2], width), (bbox[1], bbox[3], height)):
        first, last = (min(max(x, 0), side - 1) for x in (start, start + max(extent - 1, 0)))
        if last <= first:
            return False
    return True


def scale_pixels(instances: Instances, scale: tuple[float, float], *, flipped: bool) -> None:
    """Correct objects in place that were scaled, and then mirrored, by their edges.

    Scaling moves the last pixel, not the edge behind it, and a mirrored polygon at x comes to
    W - 1 - x instead of W - x [structures/bounding_box.py, structures/segmentation_mask.py].

    Args:
        instances: with ``gt_boxes``, maybe ``gt_masks``, already scaled and mirrored.
        scale: of x and of y.
        flipped: whether they are mirrored.
    """
    boxes = instances.gt_boxes.tensor
    if flipped:
        boxes[:, 0] -= 1 - scale[0]
    else:
        boxes[:, 2] += 1 - scale[0]
    boxes[:, 3] += 1 - scale[1]
    if flipped and instances.has("gt_masks") and hasattr(instances.gt_masks, "polygons"):
        for polygons in instances.gt_masks.polygons:
            for polygon in polygons:
                polygon[0::2] -= 1


def to_image(found: Instances, height: int, width: int) -> Instances:
    """Scale detections to the image's own size and paste their masks.

    Args:
        found: ``pred_boxes``, maybe ``pred_masks`` (N, 1, M, M) probabilities, and other fields, in
            the size that the model saw.
        height: of the image file, px.
        width: of the image file, px.

    Returns:
        The same detections with ``pred_masks`` (N, height, width) of booleans.
    """
    scale = found.pred_boxes.tensor.new_tensor(
        [width / found.image_size[1], height / found.image_size[0]] * 2
    )
    last = found.pred_boxes.tensor.new_tensor([0, 0, 1, 1])
    pixels = (found.pred_boxes.tensor - last) * scale
    fields = found.get_fields() | {"pred_boxes": Boxes(pixels + last)}
    if found.has("pred_masks"):
        masks = torch.zeros(len(found), height, width, dtype=torch.bool, device=pixels.device)
        for target, mask, box in zip(masks, found.pred_masks[:, 0], pixels, strict=True):
            paste(target, mask, box)
        fields["pred_masks"] = masks
    return Instances((height, width), **fields)


def paste(target: Tensor, mask: Tensor, box: Tensor) -> None:
    """Paint a mask into an image: its whole pixels, interpolated and cut at one half.

    Args:
        target: (H, W) of booleans, changed in place.
        mask: (M, M) probabilities.
        box: x0, y0, x1, y1 of the first and last pixel, not necessarily whole.
    """
    side = mask.shape[-1]
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    half = half * (side + 2 * _PADDING) / side
    x0, y0, x1, y1 = (int(x) for x in (*(centre - half), *(centre + half)))  # towards zero
    size = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
    padded = F.pad(mask.float(), [_PADDING] * 4)[None, None]
    grown = F.interpolate(padded, size=size, mode="bilinear", align_corners=False)[0, 0] > 0.5
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y1 + 1, target.shape[0]), min(x1 + 1, target.shape[1])
    if top < bottom and left < right:
        target[top:bottom, left:right] = grown[top - y0 : bottom - y0, left - x0 : right - x0]


def initialise(model: nn.Module) -> None:
    """Draw the weights whose distribution differs from detectron2's anew.

    Backbone: uniform, Kaiming with a = 1, where detectron2 has Kaiming normal [modeling/backbone/
    resnet.py]. Box head: normal with 0.01 [modeling/make_layers.py]. Mask predictor: Kaiming normal
    by fan-out, where detectron2 has 0.001; its fan-out counts the background
    [modeling/roi_heads/mask_head/roi_mask_predictors.py]. The pyramid, the RPN, the linear layers,
    the mask head's other convs and all biases are alike in both.
    """
    for module in model.get_submodule("backbone.bottom_up").modules():
        if isinstance(module, Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
    for module in model.get_submodule("roi_heads.box_head").modules():
        if isinstance(module, Conv2d):
            nn.init.normal_(module.weight, std=0.01)
    for name, module in model.named_modules():
        if name == "roi_heads.mask_head.predictor":
            assert isinstance(module, nn.Conv2d)
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.out_channels + 1)))
