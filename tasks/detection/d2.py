"""The one door to detectron2: imports 0.6 or later, compiled or not, quietly, and says when it cannot.

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
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from harness.errors import EnvironmentProblem
from harness.norm.weight_standardization import standardize_weight

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

    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]
    if not hasattr(np, "bool"):
        np.bool = np.bool_


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

# Below this line detectron2 is importable; elsewhere `from tasks.detection.d2 import ...` is.
from detectron2.data import detection_utils  # noqa: E402
from detectron2.data import transforms  # noqa: E402
from detectron2.evaluation.coco_evaluation import instances_to_coco_json  # noqa: E402
from detectron2.layers import Conv2d, ShapeSpec, batched_nms  # noqa: E402
from detectron2.modeling import FPN, GeneralizedRCNN, ResNet, StandardROIHeads  # noqa: E402
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator  # noqa: E402
from detectron2.modeling.backbone.fpn import LastLevelMaxPool  # noqa: E402
from detectron2.modeling.backbone.resnet import (  # noqa: E402
    BasicBlock,
    BasicStem,
    BottleneckBlock,
)
from detectron2.modeling.box_regression import Box2BoxTransform  # noqa: E402
from detectron2.modeling.matcher import Matcher  # noqa: E402
from detectron2.modeling.poolers import ROIPooler  # noqa: E402
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead  # noqa: E402
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead  # noqa: E402
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers  # noqa: E402
from detectron2.modeling.roi_heads.mask_head import (  # noqa: E402
    MaskRCNNConvUpsampleHead,
    mask_rcnn_loss,
)
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402


class WSDetectronConv2d(Conv2d):  # type: ignore[misc]
    """detectron2's conv (with its own ``norm`` and ``activation``) on a standardised weight.

    Surgery retypes instances of ``Conv2d`` in place, so parameter names do not change.
    """

    ws: str = "authors"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and activate.

        Args:
            x: (N, C_in, H, W).

        Returns:
            (N, C_out, H', W').
        """
        weight = standardize_weight(self.weight, self.ws)
        x = self._conv_forward(x, weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def extra_repr(self) -> str:
        """Name the variant beside detectron2's own description."""
        return f"{super().extra_repr()}, ws={self.ws}"
