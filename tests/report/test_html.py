"""The page needs nothing else, loses no number, and obeys no record."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from harness.collect import metrics_frame
from harness.record import RunDir
from harness.report.build import build_table
from harness.report.html.audits import audits
from harness.report.html.gallery import galleries
from harness.report.html.page import page, write_page
from harness.report.html.tables import sort_key
from harness.report.layout import MISSING, layout
from tests.report import pages
from tests.report.cases import definition

pytestmark = pytest.mark.usefixtures("toy")
VOID = {"meta", "link", "img", "br", "path", "use", "line", "rect", "input"}


class Reader(HTMLParser):
    """Collects elements, attributes and text, and checks that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple:
    """Make the page once: ``(results, text)``."""
    with pytest.MonkeyPatch.context() as patch:
        from harness import registry, spec
        from tests.conftest import TOY_RECIPE

        folder = tmp_path_factory.mktemp("page")
        (folder / "configs" / "toy").mkdir(parents=True)
        (folder / "configs" / "toy" / "mini.yaml").write_text(TOY_RECIPE)
        patch.setitem(registry.TASKS, "toy", "tests.toy:INFO")
        patch.setattr(spec, "configs_dir", lambda: folder / "configs")
        pages.filled(folder / "results")
        return folder / "results", pages.html_of(folder / "results")


def test_page_is_well_formed_and_needs_no_network(made):
    read = Reader(made[1])
    assert read.elements[0][0] == "html"
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in made[1]
    assert not re.search(r"url\((?!#)", made[1])


def test_ids_are_unique_and_what_is_referred_to_exists(made):
    read = Reader(made[1])
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {
        v[1:] for _, a in read.elements for k, v in a.items() if k.endswith("href") and v[0] == "#"
    }
    targets |= set(re.findall(r"url\(#([^)]+)\)", made[1]))
    assert targets <= set(ids)


def test_every_text_of_the_tables_is_on_the_page(made):
    results, text = made
    said = " ".join(" ".join(Reader(text).text).split())
    shown = layout(pages.built_of(results)[2])
    assert {grid.kind for grid in shown.grids} == {"values", "differences", "published", "cost"}
    for grid in shown.grids:
        for entry in (entry for row in grid.rows for entry in row):
            assert entry.text in said
    for line in (*shown.notes, *shown.remarks, *shown.verdicts):
        assert line in said


def test_what_is_missing_or_failed_is_said(made):
    text = " ".join(Reader(made[1]).text)
    assert "of its 24 runs are not there" in " ".join(text.split()) or "runs are not there" in text
    assert "toy-bn-mb4-s1-ffffffff" in text
    assert "the loss became NaN at step 4" in text


def test_hostile_texts_stay_text(made):
    text = made[1]
    assert "<script>document" not in text
    assert "<img src=x" not in text
    assert "<b>no norm" not in text
    assert pages.HOSTILE in " ".join(Reader(text).text)


def test_pages_of_equal_records_are_equal(made):
    results, text = made
    assert pages.html_of(results) == text


def test_alike_layers_are_one_line_of_the_audit(made):
    text = " ".join(" ".join(Reader(made[1]).text).split())
    assert "2 Conv2d standardised (authors) 792 a norm follows it conv1, conv2" in text
    assert "2 BatchNorm2d bn → gn, 4 groups 32 a norm of the model norm1, norm2" in text


def test_a_long_list_of_layers_ends_at_a_whole_name(tmp_path):
    pages.filled(tmp_path)
    found, _, _ = pages.built_of(tmp_path)
    for path in (tmp_path / "runs").glob("*/audit.csv"):
        row = path.read_text().splitlines()[1]
        path.write_text(
            pages.AUDIT + "".join(row.replace("conv1", f"layer{i}.conv") + "\n" for i in range(60))
        )
    names = next(audits(found, tmp_path)).lines[0].layers
    assert len(names) <= 200
    assert re.fullmatch(r"conv1, conv2, (layer\d+\.conv, )+\.\.\.", names)


def test_a_folder_without_runs_has_a_page(tmp_path):
    nothing = build_table(definition(), (), tmp_path, metrics_frame([]))
    read = Reader(page(tmp_path, [], [], [nothing]))
    assert "No run has finished yet." in " ".join(read.text)
    bare = write_page(tmp_path, [], ["skipped <x>"], []).read_text()
    assert bare.count("skipped &lt;x&gt;") == 1
    assert "No table has a number yet" in bare
    assert "Nothing: every run" not in bare


def test_runs_without_samples_are_said_to_have_none(tmp_path):
    pages.filled(tmp_path)
    for path in (tmp_path / "runs").glob("*/samples/*"):
        path.unlink()
    found, _, _ = pages.built_of(tmp_path)
    (gallery,) = galleries(found, tmp_path)
    assert gallery.truth is None
    assert gallery.num_runs == len(found)
    assert "left samples" in pages.html_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("62.0 ± 2.0 (3)", "62.0"),
        ("-1.50 [-2, 1]", "-1.50"),
        ("1,234 (0.9)", "1234"),
        ("n/a", ""),
        (MISSING, ""),
    ],
)
def test_cells_sort_by_their_first_number(text, key):
    assert sort_key(text) == key


@pytest.mark.parametrize("content", ["[", "{}", '[{"name": 1}]', "\x00", '[["a"]]'])
def test_broken_lists_of_samples_are_passed_over(content, tmp_path):
    from harness.samples import read_samples

    (tmp_path / "index.json").write_text(content)
    assert read_samples(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "0_truth.svg", "1_truth.png", "2_truth.png"]
)
def test_only_pictures_of_the_folder_are_read(name, tmp_path):
    import json

    from harness.samples import read_samples, write_samples

    write_samples(tmp_path, [pages.sample(0, right=None)])
    (tmp_path.parent / "secret.png").write_bytes((tmp_path / "0_truth.png").read_bytes())
    (tmp_path / "1_truth.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "2_truth.png").symlink_to(tmp_path.parent / "secret.png")
    rows = json.loads((tmp_path / "index.json").read_text())
    assert len(read_samples(tmp_path)) == 1
    (tmp_path / "index.json").write_text(json.dumps([rows[0] | {"truth_picture": name}]))
    assert read_samples(tmp_path) == []


def test_samples_come_back_as_they_were(tmp_path):
    from harness.samples import read_samples, spread, write_samples

    written = [pages.sample(0, right=True), pages.sample(1, right=None)]
    write_samples(tmp_path / "samples", written)
    for one, other in zip(read_samples(tmp_path / "samples"), written, strict=True):
        assert (one.name, one.truth, one.found, one.right) == (
            *(other.name, other.truth, other.found, other.right),
        )
        assert one.truth_picture.tobytes() == other.truth_picture.tobytes()
    assert spread(2, 6) == [0, 1]
    assert spread(0, 6) == []
    for total in (7, 100, 480, 1200, 40_000):
        parts = [k * total // 6 for k in range(7)]
        for index, first, beyond in zip(spread(total, 6), parts[:-1], parts[1:], strict=True):
            assert first <= index < beyond
    # The clouds of the mini preset: their 16 classes take turns.
    assert len({index % 16 for index in spread(480, 6)}) == 6


def test_drawing_that_fails_stops_nothing(tmp_path):
    import torch

    from harness.samples import keep_samples

    class Broken:
        def samples(self, model, device, num):
            raise RuntimeError("no pictures today")

    run = RunDir(tmp_path, "x")
    run.path.mkdir(parents=True)
    said = keep_samples(Broken(), torch.nn.Identity(), torch.device("cpu"), run)
    assert said == "no sample predictions were drawn (RuntimeError: no pictures today)"
    assert keep_samples(object(), torch.nn.Identity(), torch.device("cpu"), run) is None
    assert not run.samples.exists()
