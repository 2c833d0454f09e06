"""Proves on a small network what each norm declares of itself, and refutes what is not true.

Everything is measured in float64 but the gradients on degenerate inputs, which are taken in the
type that training uses. No data are needed, and all norms take a few seconds.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from harness.errors import AuditError, UsageError
from harness.norm.catalogue import NORMS, NormInfo, norm_info, parse_norm
from harness.norm.surgery import convert
from harness.terminal import new_table

_WIDTH, _GROUPS, _BATCH, _SIDE = 32, 4, 16, 4
_GHOST = 2
"""Samples of a statistic of ghost_bn here."""
_EXACT = 1e-12
"""Relative differences below this are round-off of float64."""
_UP_TO_EPS = 1e-3
"""Relative differences below this are the work of an epsilon of 1e-5 on inputs of size 1."""
_SHIFT, _SCALE = 1.7, 3.0

_COLUMNS = (
    "norm",
    "16x1 = 1x16",
    "train = eval",
    "input + c",
    "input x c",
    "WS: weight + c",
    "WS: weight x c",
    "degenerate",
    "(B, C)",
    "save/load",
    "names",
    "verdict",
)
_CAPTION = """\
Largest relative differences in float64, of the gradient over a window of 16 samples in one or in \
16 forwards, else of the output in training mode; yes/no is what the norm declares. WS: the \
network's output under NAME_ws when the weights move. Degenerate: gradients are finite on constant \
inputs and zero filters. (B, C): takes flat inputs, or refuses them."""


@dataclass
class Report:
    """What was measured of one norm, as the table shows it, and what turned out to be untrue."""

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def declared(
        self, column: str, found: float, declared: bool | None, what: str, tolerance: float
    ) -> None:
        """Compare a declaration with a measured difference, and note both."""
        is_true = found < tolerance
        word = "" if declared is None else "yes " if declared else "no "
        self.cells[column] = f"{word}{_short(found)}"
        if declared is not None and declared != is_true:
            self.failures.append(
                f"{self.name} declares {what}={declared}, but the difference is {_short(found)}"
            )

    def promised(self, column: str, holds: bool, what: str) -> None:
        """Note something that is promised of every norm."""
        self.cells[column] = "yes" if holds else "NO"
        if not holds:
            self.failures.append(f"{self.name}: {what}")


def stock_net() -> nn.Sequential:
    """Return a small network with batch norms whose gamma, beta and averages are no defaults.

    They have seen 100,000 forwards, so that a norm with a schedule is at its end.
    """
    layers = (
        nn.Conv2d(3, _WIDTH, 3, padding=1, padding_mode="circular", bias=False),
        nn.BatchNorm2d(_WIDTH),
        nn.Tanh(),
        nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, groups=2),
        nn.BatchNorm2d(_WIDTH),
    )
    model = nn.Sequential(*layers)
    draws = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(100_000)
            continue
        tensor.copy_(torch.randn(tensor.shape, generator=draws) * 0.3)
        if tensor.dim() == 1 and not name.endswith(("bias", "mean")):
            tensor.abs_().add_(0.5)  # gamma and running variance
    return model.double()


def selftest(norms: Sequence[str], console: Console) -> None:
    """Print one row a norm.

    Args:
        norms: names of layers; none for every registered norm.
        console: where to print.

    Raises:
        AuditError: with one line for everything that is not as declared.
        UsageError: if there is no such norm.
    """
    reports = [examine(name) for name in norms or NORMS]
    console.print(_table(reports))
    failures = [failure for report in reports for failure in report.failures]
    if failures:
        raise AuditError("\n".join(failures))
    num = len(reports)
    console.print(f"{num} norm{'s are what they declare' if num > 1 else ' is what it declares'}")


def parse_words(words: Sequence[str]) -> list[str]:
    """Read ``norm=X,Y`` into the names of layers; ``gn_ws`` means ``gn``, tried with and without.

    Raises:
        UsageError: if a word is anything else, or there is no such norm.
    """
    names: dict[str, None] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key != "norm" or not value:
            raise UsageError(f"{word!r}: selftest takes norm=NAME only")
        names.update(dict.fromkeys(parse_norm(name)["layer"] for name in value.split(",")))
    return list(names)


def examine(name: str) -> Report:
    """Measure everything that is declared or promised of one norm."""
    report = Report(name)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            info = norm_info(name)
            for measure in _MEASURES:
                measure(info, report)
    except Exception as error:  # a norm of another package may raise anything
        first = (str(error).splitlines() or [""])[0]
        report.failures.append(f"{name}: {type(error).__name__}: {first}")
    finally:
        torch.set_num_threads(threads)
    return report


def _converted(info: NormInfo, ws: bool = False) -> nn.Sequential:
    model = stock_net()
    _convert(model, f"{info.name}_ws" if ws else info.name, info)
    return model


def _convert(model: nn.Module, name: str, info: NormInfo) -> None:
    ghost = _GHOST if info.short_for == "ghost" else None
    convert(model, name, groups=_GROUPS, stat_batch=ghost, strict=True)


def _images() -> Tensor:
    """Return images with means and deviations that differ from each other, (16, 3, 4, 4)."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(_BATCH, 3, _SIDE, _SIDE, generator=draws, dtype=torch.float64)
    each = torch.randn(_BATCH, 3, 1, 1, generator=draws, dtype=torch.float64)
    return x * (1 + each.abs()) + each


def _kernels(model: nn.Sequential) -> list[Tensor]:
    return [layer.weight for layer in model if isinstance(layer, nn.Conv2d)]


def _short(number: float) -> str:
    return f"{number:.0e}" if number else "0"


def _difference(found: Tensor, expected: Tensor) -> float:
    size = float(expected.norm()) or 1.0
    value = float((found - expected).norm()) / size
    return value if math.isfinite(value) else math.inf


def _batch(info: NormInfo, report: Report) -> None:
    """Take the gradient of a window at once and sample by sample."""

    def gradient(model: nn.Module, chunks: int) -> Tensor:
        for chunk in _images().chunk(chunks):
            model(chunk).tanh().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, single = (gradient(_converted(info).train(), chunks) for chunks in (1, _BATCH))
    found = _difference(single, whole)
    report.declared(_COLUMNS[1], found, info.batch_independent, "batch_independent", _EXACT)


def _modes(info: NormInfo, report: Report) -> None:
    model, x = _converted(info), _images()
    expected = copy.deepcopy(model).eval()(x)
    found = _difference(model.train()(x), expected)
    report.declared(_COLUMNS[2], found, info.train_is_eval, "train_is_eval", _EXACT)


def _inputs(info: NormInfo, report: Report) -> None:
    norm: nn.Module = _converted(info)[1].train()
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(_BATCH, _WIDTH, _SIDE, _SIDE, generator=draws, dtype=torch.float64)

    def moved(by: Callable[[Tensor], Tensor]) -> float:
        return _difference(copy.deepcopy(norm)(by(x)), copy.deepcopy(norm)(x))

    shift, scale = moved(lambda x: x + _SHIFT), moved(lambda x: x * _SCALE)
    report.declared(_COLUMNS[3], shift, info.shift_invariant, "shift_invariant", _UP_TO_EPS)
    report.declared(_COLUMNS[4], scale, info.scale_invariant, "scale_invariant", _UP_TO_EPS)


def _weights(info: NormInfo, report: Report) -> None:
    """Move the weights under weight standardisation; training mode, so that averages are fresh."""
    model, x = _converted(info, ws=True).train(), _images()
    expected = copy.deepcopy(model)(x)
    for column, factor, shift in ((_COLUMNS[5], 1.0, _SHIFT), (_COLUMNS[6], _SCALE, 0.0)):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for weight in _kernels(other):
                weight.mul_(factor).add_(shift)
        found = _difference(other(x), expected)
        report.promised(column, found < _UP_TO_EPS, f"moving standardised weights: {found:.1e}")
        report.cells[column] = _short(found)


def _degenerate(info: NormInfo, report: Report) -> None:
    holds = True
    for ws in (False, True):
        for constant in (True, False):
            model = _converted(info, ws).float().train()
            x = torch.ones(4, 3, _SIDE, _SIDE) if constant else _images().float()
            x.requires_grad_()
            if not constant:
                with torch.no_grad():
                    _kernels(model)[0].zero_()
            model(x).square().sum().backward()
            tensors = [x, *model.parameters()]
            holds &= all(bool(t.grad.isfinite().all()) for t in tensors if t.grad is not None)
    report.promised(_COLUMNS[7], holds, "a gradient on degenerate inputs is not finite")


def _flat(info: NormInfo, report: Report) -> None:
    norm = _flat_norm(info)
    x = torch.randn(_BATCH, _WIDTH, dtype=torch.float64)
    try:
        works = norm(x).shape == x.shape
    except ValueError:
        works = False
    report.promised(
        _COLUMNS[8], works == info.takes_flat, f"(B, C) works={works}, but takes_flat is not"
    )
    report.cells[_COLUMNS[8]] = "yes" if works else "refused"


def _flat_norm(info: NormInfo) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, _WIDTH), nn.BatchNorm1d(_WIDTH)).double()
    _convert(model, info.name, info)
    norm: nn.Module = model[1]
    return norm.train()


def _saved(info: NormInfo, report: Report) -> None:
    trained, x = _converted(info, ws=True).train(), _images()
    trained(x).sum().backward()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh = _converted(info, ws=True)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    same = torch.equal(fresh.eval()(x), trained.eval()(x))
    report.promised(_COLUMNS[9], same, "a loaded state dict gives other outputs")


def _names(info: NormInfo, report: Report) -> None:
    """Check that no name of the stock network is lost; strict surgery refuses undeclared ones."""
    parameters = {name for name, _ in stock_net().named_parameters()}
    kept = parameters <= set(_converted(info, ws=True).state_dict())
    report.promised(_COLUMNS[10], kept, "a parameter name of the stock model is lost")


_MEASURES = (_names, _batch, _modes, _inputs, _weights, _degenerate, _flat, _saved)


def _table(reports: Sequence[Report]) -> Table:
    table = new_table("", *_COLUMNS)
    for report in reports:
        cells = [report.cells.get(column, "-") for column in _COLUMNS[1:-1]]
        verdict = "[red]FAILED[/]" if report.failures else "[green]ok[/]"
        table.add_row(report.name, *cells, verdict)
    table.caption = _CAPTION
    table.caption_justify = "left"
    return table
