"""Published numbers are kept as they were published, each with its source."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from harness import paths
from harness.errors import UsageError
from harness.norm.catalogue import NORMS
from harness.paths import published_csv
from harness.registry import TASKS
from harness.report.published import Published, load, read
from harness.spec import presets, recipe

ROWS = read()
SURVEY = Path(__file__).resolve().parents[3] / "shared" / "published.csv"
OMITTED: tuple[tuple[str, ...], ...] = ()
"""Rows of the survey that ``results/published.csv`` leaves out, as ``translate`` returns them."""
METRICS = {
    "classification": {"top1_acc", "top5_acc"},
    "detection": {"box_AP", "mask_AP"},
    "segmentation": {"mIoU"},
    "pointcloud": {"overall_acc", "mean_class_acc"},
    "transfer": {"mean_acc"},
}
STEPS_PER_EPOCH = {
    "classification": lambda batch: 1_281_167 // batch,  # dropped tail
    "detection": lambda batch: 117_266 / batch,
    "segmentation": lambda batch: -(-10_582 // batch),  # kept tail
    "pointcloud": lambda batch: 9_840 // batch,
}


# -- against the survey ------------------------------------------------------------------------

NORM_NAMES = {
    "GN+center-only": ("gn_ws", "centred"),
    "GN+div-only": ("gn_ws", "divided"),
    "GN (hatched bar)": ("gn", None),
    "FrozenBN": ("frozen_bn", None),
    "SyncBN": ("sync_bn", None),
}


def translate(row: dict[str, str]) -> tuple[str, ...]:
    """Name the parts of a row of the survey as we do, errors as accuracies."""
    backbone = re.sub(r"-FPN| batch4096|-OS16|-1024| multigrid.*", "", row["model"])
    backbone = re.sub(r"^R-", "ResNet-", re.sub(r"^X-", "ResNeXt-", backbone))
    plain = backbone.lower().replace("-", "", 1).replace("-", "_")
    if "R-CNN" in row["task"]:
        short = plain.replace("resnext", "x").replace("resnet", "r")
        model = f"{row['task'].split()[0].lower()}_rcnn_{short}_fpn"
    else:
        model = {"deeplabv3r101": "deeplabv3_r101", "dgcnntf": "dgcnn_tf"}.get(plain, plain)
        model = model.removesuffix("pytorch")
    norm, half = NORM_NAMES.get(row["norm"], (row["norm"].lower().replace("+ws", "_ws"), None))
    value, metric = Decimal(row["value"]), row["metric"]
    if metric.endswith("_err"):
        metric, value = metric.replace("_err", "_acc"), 100 - value
    images = row["images_per_gpu"].removesuffix("*")
    return model, norm, half or "", metric, str(value), row["verified"], images


def parts(row: Published) -> tuple[str, ...]:
    half = row.ws if row.ws in ("centred", "divided") else ""
    verified, images = "yes" if row.verified else "no", str(row.images_per_gpu or "")
    return row.model, row.norm, half, row.metric, str(row.value), verified, images


@pytest.fixture(scope="module")
def survey() -> list[dict[str, str]]:
    if not SURVEY.is_file():
        pytest.skip(f"no survey of published numbers at {SURVEY}")
    return list(csv.DictReader(SURVEY.read_text().splitlines()))


def test_every_number_of_the_survey_is_here_unchanged_and_none_besides(survey):
    assert Counter(map(translate, survey)) == Counter(map(parts, ROWS)) + Counter(OMITTED)


def test_converted_errors_say_so(survey):
    errors = [row["value"] for row in survey if row["metric"].endswith("_err")]
    said = [row.note.split()[2] for row in ROWS if row.note.startswith("reported as ")]
    assert Counter(errors) == Counter(said)
    for row in ROWS:
        if row.note.startswith("reported as "):
            assert row.value + Decimal(row.note.split()[2]) == 100


def test_unverified_rows_of_the_survey_are_flagged(survey):
    unverified = Counter(translate(row) for row in survey if row["verified"] == "no")
    flagged = Counter(parts(row) for row in ROWS if row.shown.endswith(" (unverified)"))
    assert unverified == flagged
    assert sum(flagged.values()) == 28


def test_numbers_read_off_a_figure_say_how_exactly(survey):
    figure = Counter(translate(row) for row in survey if row["reading"].startswith("figure"))
    assert figure == Counter(parts(row) for row in ROWS if row.reading_error == 0.02)


# -- in itself ---------------------------------------------------------------------------------


def cell(model: str, norm: str, metric: str, comparable: str = "yes") -> list[str]:
    wanted = (model, norm, metric, comparable)
    return [r.shown for r in ROWS if (r.model, r.norm, r.metric, r.comparable) == wanted]


def test_some_numbers_by_hand():
    assert cell("resnet50", "gn_ws", "top1_acc") == ["76.28"]  # 23.72 % error
    assert cell("resnext101_32x4d", "gn_ws", "top5_acc") == ["93.97"]  # 6.03 % error
    assert cell("resnet101", "bn", "top1_acc") == ["77.61 +- 0.02"]  # 22.39 % error
    assert cell("mask_rcnn_r50_fpn", "gn_ws", "mask_AP") == ["36.51"]
    assert cell("faster_rcnn_x101_32x4d_fpn", "gn_ws", "box_AP") == ["41.90"]
    assert cell("deeplabv3_r101", "gn_ws", "mIoU") == ["77.20"]
    assert cell("dgcnn_tf", "bn_ws", "overall_acc") == ["92.0"]
    assert cell("resnet50", "bn_ws", "top1_acc", "partly") == ["76.24 (unverified)"]


def test_rows_use_our_names():
    for row in ROWS:
        assert row.metric in METRICS[row.task], row
        assert (row.task in TASKS) == (row.task != "transfer"), row
        layer = row.norm.removesuffix("_ws")
        assert layer in NORMS, row


def test_sources_are_public_citations():
    pattern = re.compile(
        r"(arXiv \d{4}\.\d{5}(v\d)?(, from memory| table \d|, ablation of ResNet-50)?"
        r"(, as quoted (by a third party|in (?=github)))?)?"
        r"(github\.com/[\w.-]+/[\w.-]+(@[0-9a-f]{7,8} \S+| issue \d+| pull request \d+ .*"
        r"| ?\(\d{4}\) \S+)?)?"
    )
    for row in ROWS:
        source = re.sub(r"(@[0-9a-f]{7,8}) \(\d{4}\)", r"\1", row.source)
        assert pattern.fullmatch(source), row.source


def test_unverified_or_remembered_numbers_are_never_fully_comparable():
    for row in ROWS:
        if not row.verified:
            assert row.comparable != "yes"
            assert row.shown.endswith("(unverified)")
        if "memory" in row.source:
            assert not row.verified
            assert row.comparable == "no"


def test_presets_are_those_of_the_rows():
    """Model, batch and epochs of each row that claims a preset's protocol are the preset's."""
    for row in ROWS:
        if row.preset is None:
            continue
        assert row.preset in presets(row.task), (row.task, row.preset)
        if row.comparable != "yes":
            continue
        content = recipe(row.task, row.preset)
        batch, steps = content["batch"]["size"], content["steps"]
        per_epoch = STEPS_PER_EPOCH[row.task](batch)
        assert (content["model"]["name"], batch) == (row.model, row.batch_size)
        assert row.epochs == pytest.approx(steps / per_epoch, abs=0.005)
        drops = [drop / per_epoch for drop in content["schedule"].get("drops", ())]
        if row.task in ("classification", "detection"):
            assert [float(drop) for drop in row.drops.split()] == pytest.approx(drops, abs=0.005)


def test_frame_is_typed_and_complete():
    frame = load()
    assert len(frame) == len(ROWS)
    assert frame["value"].tolist() == [float(row.value) for row in ROWS]
    assert frame["verified"].dtype == bool
    assert str(frame["batch_size"].dtype) == "Int64"
    assert frame["preset"].isna().tolist() == [row.preset is None for row in ROWS]


def test_a_wheels_own_copy_comes_first(tmp_path, monkeypatch):
    assert published_csv().parts[-2:] == ("results", "published.csv")
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path)
    assert published_csv() == tmp_path.parent / "results" / "published.csv"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "published.csv").touch()
    assert published_csv() == tmp_path / "results" / "published.csv"


def test_reading_needs_neither_pandas_nor_torch():
    code = (
        "import sys; from harness.report.published import read; read(); "
        "print([name for name in ('pandas', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- errors ------------------------------------------------------------------------------------


def broken(tmp_path: Path, **cells: str) -> Path:
    """Write the header and the first row with other cells."""
    with published_csv().open(newline="") as file:
        first = next(csv.DictReader(file))
    path = tmp_path / "published.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, first)
        writer.writeheader()
        writer.writerow(first | cells)
    return path


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("norm", "gnws", r"line 2, column norm: unknown norm 'gnws'\. Did you mean"),
        ("ws", "theirs", "line 2, column ws: 'theirs' is none of authors, tf"),
        ("ws", "", "line 2, column ws: None is none of"),
        ("norm", "gn", "line 2, column ws: 'authors' with norm 'gn', which has none"),
        ("value", "76,28", "line 2, column value: "),
        ("value", "nan", "line 2, column value: "),
        ("value", "762.8", "line 2, column value: Input should be less than or equal to 100"),
        ("unit", "percent", "line 2, column unit: Input should be '%'"),
        ("verified", "perhaps", "line 2, column verified: "),
        ("verified", "no", "line 2, column comparable: an unverified number is partly comparable"),
        ("comparable", "maybe", "line 2, column comparable: "),
        ("comparable", "no", "line 2, column preset: give one exactly where comparable is"),
        ("preset", "", "line 2, column preset: give one exactly where comparable is"),
        ("note", "", "line 2, column note: "),
        ("source", "", "line 2, column source: "),
        ("drops", "30,60", "line 2, column drops: "),
        ("epochs", "0", "line 2, column epochs: "),
    ],
)
def test_errors_name_line_and_column(tmp_path, column, text, message):
    with pytest.raises(UsageError, match=message):
        read(broken(tmp_path, **{column: text}))


def test_errors_of_the_file(tmp_path):
    path = broken(tmp_path)
    (row,) = read(path)
    assert row == ROWS[0]
    header, line = path.read_text().splitlines()
    path.write_text(f"{header}\n{line}\n{line}\n")
    with pytest.raises(UsageError, match="lines 2 and 3 are the same number"):
        read(path)
    path.write_text(f"{header}\n{line},more\n")
    with pytest.raises(UsageError, match="line 2 must have 20 cells"):
        read(path)
    path.write_text(f"{header},mine\n{line},1\n")
    with pytest.raises(UsageError, match="the columns must be task,dataset,"):
        read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "none.csv")
