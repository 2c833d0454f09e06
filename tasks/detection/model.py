"""Mask and Faster R-CNN put together from detectron2's own parts, batch norm at every norm site.

The parts are constructed directly: no configuration tree, no registry. Batch norm follows every
conv of the backbone (stem and shortcuts too), of the pyramid, and of the box and mask heads; the
RPN, the linear layers, the deconv and the predictors have none (the authors' maskrcnn-benchmark
fork, ``configs/gn_baselines``).
"""

from __future__ import annotations

from torch import nn

from tasks.detection import maskrcnn_benchmark
from tasks.detection.architectures import architecture
from tasks.detection.d2 import (
    FPN,
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    Box2BoxTransform,
    FastRCNNConvFCHead,
    GeneralizedRCNN,
    LastLevelMaxPool,
    Matcher,
    ResNet,
    ROIPooler,
    ShapeSpec,
    StandardRPNHead,
)
from tasks.detection.info import DetectionModel
from tasks.detection.losses import (
    MASK_HEADS,
    PREDICTORS,
    AnchorGenerator,
    KeyedROIHeads,
    KeyedRPN,
)

BARE = (
    "proposal_generator.rpn_head.*",
    "roi_heads.box_head.fc*",
    "roi_heads.box_predictor.*",
    "roi_heads.mask_head.deconv",
    "roi_heads.mask_head.predictor",
)
"""The layers that no norm follows."""
BACKBONE = "backbone.bottom_up"

_STAGES = ["res2", "res3", "res4", "res5"]
_RPN_LEVELS = ["p2", "p3", "p4", "p5", "p6"]
_ROI_LEVELS = ["p2", "p3", "p4", "p5"]


def build_detector(model: DetectionModel, num_classes: int, normalizer: str) -> GeneralizedRCNN:
    """Build the model with batch norm, random weights and nothing frozen.

    Args:
        model: the model section of a spec.
        num_classes: number of categories, without background.
        normalizer: ``loss.normalizer``.

    Returns:
        The model; in training it maps a list of dicts (``image`` (3, H, W) of BGR 0..255,
        ``instances``) to a dict of losses, in evaluation to a list of dicts of ``instances``.
    """
    backbone = FPN(
        bottom_up=_resnet(model),
        in_features=_STAGES,
        out_channels=model.fpn_channels,
        norm="BN",
        top_block=LastLevelMaxPool(),
    )
    shapes = backbone.output_shape()
    detector = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=_rpn(model, shapes),
        roi_heads=_roi_heads(model, shapes, num_classes, normalizer),
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        input_format="BGR",
    )
    if model.weight_init == "maskrcnn_benchmark":
        maskrcnn_benchmark.initialise(detector)
    return detector


def _resnet(model: DetectionModel) -> ResNet:
    shape = architecture(model.name)
    bottleneck = shape.expansion > 1
    in_channels, stages = model.width, []
    for stage, num_blocks in enumerate(shape.num_blocks):
        width = model.width * 2**stage
        out_channels = width * shape.expansion
        options = {"bottleneck_channels": shape.inner_channels(width), "num_groups": shape.groups}
        stages.append(
            ResNet.make_stage(
                BottleneckBlock if bottleneck else BasicBlock,
                num_blocks,
                in_channels=in_channels,
                out_channels=out_channels,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (num_blocks - 1),
                norm="BN",
                # Strides stay in the 3x3 convs, detectron2's STRIDE_IN_1X1 False.
                **(options if bottleneck else {}),
            )
        )
        in_channels = out_channels
    stem = BasicStem(in_channels=3, out_channels=model.width, norm="BN")
    return ResNet(stem, stages, out_features=_STAGES, freeze_at=0)


def _rpn(model: DetectionModel, shapes: dict[str, ShapeSpec]) -> KeyedRPN:
    rpn = model.rpn
    rounded = rpn.anchors == "rounded"
    generator = maskrcnn_benchmark.RoundedAnchorGenerator if rounded else AnchorGenerator
    anchors = generator(
        sizes=[[float(size)] for size in rpn.anchor_sizes],
        aspect_ratios=[list(rpn.anchor_ratios)],
        strides=[shapes[level].stride for level in _RPN_LEVELS],
        offset=0.5,  # centred on the cells, as in maskrcnn-benchmark; detectron2's default is 0
    )
    network = KeyedRPN(
        in_features=_RPN_LEVELS,
        head=StandardRPNHead(in_channels=model.fpn_channels, num_anchors=len(rpn.anchor_ratios)),
        anchor_generator=anchors,
        anchor_matcher=Matcher(list(rpn.iou), [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=rpn.num_anchors,
        positive_fraction=rpn.positive_share,
        pre_nms_topk=(rpn.pre_nms_train, rpn.pre_nms_test),
        post_nms_topk=(rpn.post_nms_train, rpn.post_nms_test),
        nms_thresh=rpn.nms_iou,
        anchor_boundary_thresh=rpn.anchor_margin,
        smooth_l1_beta=rpn.beta,
    )
    network.proposals_per = rpn.proposals_per
    return network


def _roi_heads(
    model: DetectionModel, shapes: dict[str, ShapeSpec], num_classes: int, normalizer: str
) -> KeyedROIHeads:
    box = model.box
    box_head = FastRCNNConvFCHead(
        ShapeSpec(channels=model.fpn_channels, height=box.pool, width=box.pool),
        conv_dims=[box.channels] * box.num_convs,
        fc_dims=[box.hidden],
        conv_norm="BN",
    )
    predictor = PREDICTORS[normalizer](
        box_head.output_shape,
        box2box_transform=Box2BoxTransform(weights=box.weights),
        num_classes=num_classes,
        test_score_thresh=model.test.min_score,
        test_nms_thresh=model.test.nms_iou,
        test_topk_per_image=model.test.max_detections,
        smooth_l1_beta=box.beta,
    )
    masks = {}
    if architecture(model.name).masks:
        masks = {
            "mask_in_features": _ROI_LEVELS,
            "mask_pooler": _pooler(model, shapes, model.mask.pool),
            "mask_head": _mask_head(model, num_classes, normalizer),
        }
    return KeyedROIHeads(
        num_classes=num_classes,
        batch_size_per_image=box.num_rois,
        positive_fraction=box.positive_share,
        proposal_matcher=Matcher([box.iou], [0, 1]),
        box_in_features=_ROI_LEVELS,
        box_pooler=_pooler(model, shapes, box.pool),
        box_head=box_head,
        box_predictor=predictor,
        **masks,
    )


def _mask_head(model: DetectionModel, num_classes: int, normalizer: str) -> nn.Module:
    mask = model.mask
    heads = maskrcnn_benchmark.MASK_HEADS if model.boxes == "pixels" else MASK_HEADS
    return heads[normalizer](
        ShapeSpec(channels=model.fpn_channels, height=mask.pool, width=mask.pool),
        num_classes=num_classes,
        conv_dims=[mask.channels] * (mask.num_convs + 1),  # the last one is the deconv's
        conv_norm="BN",
    )


def _pooler(model: DetectionModel, shapes: dict[str, ShapeSpec], cells: int) -> ROIPooler:
    pooler = ROIPooler(
        output_size=cells,
        scales=[1.0 / shapes[level].stride for level in _ROI_LEVELS],
        sampling_ratio=model.sampling_ratio,
        pooler_type=model.roi_align,
        canonical_box_size=model.roi_canonical,
        canonical_level=4,  # Lin et al. 2017, arXiv 1612.03144, equation 1
    )
    return maskrcnn_benchmark.end_on_last_pixel(pooler) if model.boxes == "pixels" else pooler
