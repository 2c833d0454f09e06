"""What weights themselves tell of the norm that they were trained under.

Running averages come with batch norm alone, and some layouts name the norm. Weight standardisation
leaves no such trace: the raw weights that a file holds are not standardised, only used so. What
remains is arithmetic. Batch norm's running variance is that of what the layer before it gave out,
which is about the sum of its squared weights times the mean square of its inputs (about 1 behind a
norm), and the raw and the standardised weights differ in that sum by the variance of the
raw ones. Where the two readings are a factor of ten apart, the variances tell which one was used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from torch import Tensor

from harness.weights.trained import Trained

_USUAL = 0.0
"""log10 of a running variance over the sum of squared weights: the median over the layers of our
own trained mini networks, bn and bn_ws in four tasks, lies between -0.4 and 0.5."""
_CLEAR = 1.0
"""How much nearer to it one reading must be, in powers of ten. In the same networks the wrong
reading was at least 1.5 away from the right one."""


def of_tensors(tensors: Mapping[str, Tensor], pairs: Iterable[tuple[Tensor, Tensor]]) -> Trained:
    """Tell the norm from the names and numbers of a file.

    Args:
        tensors: by key, as in the file.
        pairs: the weight (O, ...) of each layer before a batch norm and the running variance (O).
    """
    if any("standardized_conv2d" in key for key in tensors):
        return Trained("gn", True, 32, "bit", "the names of Big Transfer's layers")
    if any(key.endswith(("running_var", "bn_riv")) for key in tensors):
        standardised = _standardised(pairs)
        told = "running averages in the file"
        if standardised is not None:
            told += ", whose size tells of weight standardisation"
        return Trained("bn", standardised, told_by=told, estimated=True)
    if any(key.endswith("_bn_s") for key in tensors):
        return Trained("frozen_bn", False, told_by="batch norms without averages, as in Caffe2")
    if any("_gn_s" in key for key in tensors) or any(".gn1." in f".{key}" for key in tensors):
        return Trained("gn", told_by="the names of its norms")
    return Trained()


def _standardised(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool | None:
    plain, standardised = [], []
    for weight, variance in pairs:
        rows = weight.detach().double().flatten(1)
        if rows.shape[1] < 2 or rows.shape[0] != variance.numel():
            continue
        over_raw = variance.double().clamp_min(1e-30) / rows.square().sum(1).clamp_min(1e-30)
        plain.append(float(over_raw.log10().median()))
        over_unit = variance.double().clamp_min(1e-30) / (rows.shape[1] - 1)
        standardised.append(float(over_unit.log10().median()))
    if not plain:
        return None
    far_plain, far_unit = (abs(median(logs) - _USUAL) for logs in (plain, standardised))
    return far_unit < far_plain if abs(far_unit - far_plain) >= _CLEAR else None
