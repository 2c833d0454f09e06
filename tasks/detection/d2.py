"""The one door to detectron2: imports it whatever its age and build, or says why it cannot.

detectron2 0.6 as packaged for PyPI is pure Python and older than the libraries around it: it names
constants that Pillow and NumPy have since renamed, and imports the native extension ``_C`` on which
only rotated boxes, deformable convolutions and its own COCO evaluation rest. None of them is used
here. Every other module takes what it needs of detectron2 from here, so that the order of imports
cannot matter.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from harness.errors import EnvironmentProblem
from harness.norm.weight_standardization import WeightStandardized

UPSTREAM = "git+https://github.com/facebookresearch/detectron2@02b5c4e2"
"""What users of pip install; the commit is the newest one that this was read against."""
_INSTALL = f"run `make setup`, or: pip install --no-build-isolation {UPSTREAM}"


class _MissingExtension(ModuleType):
    """Stands for ``detectron2._C`` where it was never compiled; complains once it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise EnvironmentProblem(
            f"detectron2's native function {name} is needed, but this installation is pure Python: "
            f"pip install --no-build-isolation {UPSTREAM}"
        )


def _restore_names() -> None:
    """Give back the names that detectron2 0.6 expects of Pillow < 10 and NumPy < 1.24 or >= 2."""
    import numpy as np
    from PIL import Image

    vars(Image).setdefault("LINEAR", Image.Resampling.BILINEAR)
    vars(np).setdefault("bool", np.bool_)


def import_detectron2() -> ModuleType:
    """Import detectron2's models whatever its age and build.

    Returns:
        The package ``detectron2``.

    Raises:
        EnvironmentProblem: if it is not installed, or was compiled for another torch.
    """
    _restore_names()
    try:
        with warnings.catch_warnings():
            # detectron2 scripts its box transforms while it is imported.
            warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
            package = importlib.import_module("detectron2")
            if importlib.util.find_spec("detectron2._C") is None:
                stub = _MissingExtension("detectron2._C")
                sys.modules["detectron2._C"] = stub
                package._C = stub  # type: ignore[attr-defined]
            importlib.import_module("detectron2.modeling")
            importlib.import_module("detectron2.data.detection_utils")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"detection needs detectron2 (no module named {error.name!r}): {_INSTALL}"
        ) from None
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentProblem(f"detectron2 cannot be imported ({reason}): {_INSTALL}") from None
    return package


import_detectron2()

# ruff: noqa: E402  # from here on detectron2 can be imported
from detectron2.data import detection_utils, transforms
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import Conv2d, ROIAlign, ShapeSpec
from detectron2.modeling import FPN, GeneralizedRCNN, ResNet, StandardROIHeads
from detectron2.modeling.anchor_generator import BufferList, DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage

__all__ = [
    "FPN",
    "RPN",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "Box2BoxTransform",
    "BoxMode",
    "Boxes",
    "BufferList",
    "Conv2d",
    "DefaultAnchorGenerator",
    "EventStorage",
    "FastRCNNConvFCHead",
    "FastRCNNOutputLayers",
    "GeneralizedRCNN",
    "Instances",
    "LastLevelMaxPool",
    "MaskRCNNConvUpsampleHead",
    "Matcher",
    "ROIAlign",
    "ROIPooler",
    "ResNet",
    "ShapeSpec",
    "StandardROIHeads",
    "StandardRPNHead",
    "WSDetectronConv2d",
    "detection_utils",
    "import_detectron2",
    "instances_to_coco_json",
    "mask_rcnn_loss",
    "transforms",
]


class WSDetectronConv2d(WeightStandardized, Conv2d):  # type: ignore[misc]
    """detectron2's conv (with its own ``norm`` and ``activation``) on a standardised weight.

    Surgery retypes instances of ``Conv2d`` in place, so parameter names do not change.
    """

    norm: nn.Module | None
    activation: Callable[[Tensor], Tensor] | None
    _conv_forward: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and activate.

        Args:
            x: (N, C_in, H, W).

        Returns:
            (N, C_out, H', W').
        """
        x = self._conv_forward(x, self.forward_weight(), self.bias)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x
