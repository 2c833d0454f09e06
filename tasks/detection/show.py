"""Draws annotated samples of a data set in COCO's format, so that a person can judge it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
from pycocotools import mask as coco_mask

from harness.errors import DataError, UsageError

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom

# Okabe and Ito (2008), "Color Universal Design": told apart with any kind of colour vision.
COLOURS: tuple[Colour, ...] = (
    (213, 94, 0),  # vermilion
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (204, 121, 167),  # reddish purple
    (230, 159, 0),  # orange
    (0, 114, 178),  # blue
)
_TILE = 288  # pixels: the longer side of a picture as shown
_GAP = 6
_MARGIN = 18
_CAPTION = 24
_PAIRS_A_ROW = 3
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


class Split(NamedTuple):
    """What the json of one split says."""

    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]  # by image id
    names: dict[int, str]  # by category id
    colours: dict[int, Colour]  # by category id


def show(root: Path, split: str, out: Path, *, num: int = 12) -> None:
    """Draw samples, each beside its boxes, masks and names, into one picture.

    The samples are spread evenly over the split; one with a crowd and one without any object are
    among them, if there are such images.

    Args:
        root: folder with `annotations/instances_{split}.json` and the images in `{split}/`.
        split: name of the image folder, such as `train2017`.
        out: picture to write; its suffix chooses the format.
        num: number of samples.

    Raises:
        DataError: the annotations or a chosen image are missing or broken.
        UsageError: `num` is not positive, or `out` cannot be written.
    """
    if num < 1:
        raise UsageError(f"the number of samples must be 1 or more, not {num}")
    data = _read(root / "annotations" / f"instances_{split}.json")
    chosen = _choose(data, num)
    pairs = [_pair(root / split / image["file_name"], image, data) for image in chosen]
    sheet = _sheet(pairs, _heading(root, split, data, len(chosen)), _legend(data, chosen))
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the picture {out}: {error}") from error


def _read(path: Path) -> Split:
    """Read COCO annotations; `info` and `licenses` may be absent."""
    try:
        content = json.loads(path.read_bytes())
        images = sorted(content["images"], key=lambda image: image["id"])
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for item in content["annotations"]:
            names[item["category_id"]], item["bbox"]  # a KeyError now, not in the midst of drawing
            annotations[item["image_id"]].append(item)
    except OSError as error:
        raise DataError(f"cannot read the COCO annotations {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a COCO instances file: expected images, annotations and categories"
        ) from error
    if not images:
        raise DataError(f"{path} lists no image")
    return Split(images, annotations, names, colours_of(names))


def colours_of(category_ids: Iterable[int]) -> dict[int, Colour]:
    """Give each category a colour, in their order."""
    return {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(category_ids)}


def _choose(data: Split, num: int) -> list[dict[str, Any]]:
    """Pick the first image with a crowd, the first without objects, and others evenly spread."""
    found = [data.annotations.get(image["id"], []) for image in data.images]
    crowds = [i for i, objects in enumerate(found) if any(o.get("iscrowd") for o in objects)]
    empty = [i for i, objects in enumerate(found) if not objects]
    chosen = crowds[:1] + empty[:1] if num >= 3 else []
    rest = [i for i, objects in enumerate(found) if objects and i not in chosen] or empty[1:]
    wanted = min(num - len(chosen), len(rest))
    chosen += [rest[k * len(rest) // wanted] for k in range(wanted)]
    return [data.images[i] for i in sorted(chosen)]


# --- one sample ----------------------------------------------------------------------------------


def _pair(path: Path, image: dict[str, Any], data: Split) -> tuple[Image.Image, str]:
    """Return an image beside its annotations, and a caption."""
    picture = read_rgb(path)
    objects = data.annotations.get(image["id"], [])
    if picture.size != (stated := (image.get("width"), image.get("height"))):
        raise DataError(f"{path} has {picture.size} pixels, but its annotations say {stated}")
    plain, noted = annotated(picture, objects, data, _TILE)
    pair = Image.new("RGB", (2 * _TILE + _GAP, _TILE), _PAPER)
    pair.paste(plain, (0, _TILE - plain.height))
    pair.paste(noted, (plain.width + _GAP, _TILE - plain.height))
    crowds = sum(bool(o.get("iscrowd")) for o in objects)
    parts = [_count(len(objects) - crowds, "object")] if len(objects) > crowds else []
    parts += [_count(crowds, "crowd")] if crowds else []
    return pair, f"{image['file_name']}: {' and '.join(parts) or 'no objects'}"


def read_rgb(path: Path) -> Image.Image:
    """Read an image of any colour mode as RGB, turned as its EXIF tag says.

    Raises:
        DataError: if it is missing or broken.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def annotated(
    picture: Image.Image, objects: Sequence[dict[str, Any]], data: Split, side: int
) -> tuple[Image.Image, Image.Image]:
    """Return an image, and its greyed copy under boxes, masks and names.

    Args:
        picture: of any size.
        objects: annotations of it, or detections in COCO's result format.
        data: names and colours of the categories.
        side: pixels of the longer side of both.
    """
    factor = side / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    plain = picture.resize(size, Image.Resampling.BICUBIC)
    # Grey and paler, so that the colours of the annotations stand out.
    noted = plain.convert("L").point(lambda v: 90 + v * 0.6).convert("RGB")
    # Large objects first: the small ones stay on top.
    ordered = sorted(objects, key=lambda o: -float(o.get("area", 0.0)))
    for item in ordered:
        _draw_mask(noted, item, picture.size, data.colours[item["category_id"]])
    boxes = [_draw_box(noted, item, factor, data) for item in ordered]
    taken: list[Box] = []
    for item, box in zip(ordered, boxes, strict=True):
        _draw_name(noted, item, box, data, taken)
    return plain, noted


def _decode(item: dict[str, Any], width: int, height: int) -> NDArray[np.uint8] | None:
    """Return the mask of an annotation, (height, width), or None where it has only a box."""
    segmentation = item.get("segmentation")
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
            encoded = segmentation  # compressed run lengths
        else:
            encoded = coco_mask.frPyObjects(segmentation, height, width)
            encoded = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
        return np.asarray(coco_mask.decode(encoded), dtype=np.uint8)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"annotation {item.get('id')} has a broken segmentation: {error}"
        ) from error


def _draw_mask(
    canvas: Image.Image, item: dict[str, Any], source: tuple[int, int], colour: Colour
) -> None:
    """Lay a translucent region with a firm edge over the canvas; hatch it for a crowd."""
    mask = _decode(item, *source)
    if mask is None:
        return
    region = Image.fromarray(mask * np.uint8(255)).resize(canvas.size, Image.Resampling.BICUBIC)
    region = region.point(lambda v: 255 if v >= 128 else 0)
    # The frame is no edge: grow the region past it before taking the inner border.
    wide = ImageOps.expand(region, border=3, fill=0)
    edge = ImageChops.subtract(wide, wide.filter(ImageFilter.MinFilter(3)))
    edge = edge.crop((3, 3, 3 + canvas.width, 3 + canvas.height))
    strength = region.point(lambda v: v * 0.5)
    if item.get("iscrowd"):
        y, x = np.mgrid[: canvas.height, : canvas.width]
        lines = Image.fromarray(np.where((x + y) % 9 < 4, 255, 40).astype(np.uint8))
        strength = ImageChops.multiply(region, lines)
    canvas.paste(colour, (0, 0), strength)
    canvas.paste(tuple(int(0.55 * c) for c in colour), (0, 0), edge)


def _draw_box(canvas: Image.Image, item: dict[str, Any], factor: float, data: Split) -> Box:
    """Draw an object's box, dashed for a crowd, and return where it lies on the canvas."""
    colour = data.colours[item["category_id"]]
    draw = ImageDraw.Draw(canvas)
    x, y, width, height = (float(value) * factor for value in item["bbox"])
    right = min(max(x + width, x + 1.0), canvas.width - 1.0)
    bottom = min(max(y + height, y + 1.0), canvas.height - 1.0)
    box = max(0.0, min(x, right)), max(0.0, min(y, bottom)), right, bottom
    if item.get("iscrowd"):
        _dashed(draw, box, colour)
    else:
        draw.rectangle(box, outline=colour, width=2)
    return box


def _draw_name(
    canvas: Image.Image, item: dict[str, Any], box: Box, data: Split, taken: list[Box]
) -> None:
    """Write an object's name at its box unless names in `taken` leave no room; colours remain."""
    colour = data.colours[item["category_id"]]
    name = data.names[item["category_id"]] + (" crowd" if item.get("iscrowd") else "")
    font = ImageFont.load_default(size=13)
    wide, high = font.getlength(name) + 6.0, 17.0
    left = max(0.0, min(box[0], canvas.width - wide))
    # Above the box, inside it at its head, below it, or inside at its foot.
    for top in (box[1] - high, box[1], box[3], box[3] - high):
        spot = (left, top, left + wide, top + high)
        inside = top >= 0.0 and spot[3] <= canvas.height
        if inside and not any(_overlap(spot, other) for other in taken):
            break
    else:
        return
    taken.append(spot)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle(spot, fill=colour)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601 luma
    draw.text((spot[0] + 3, spot[1]), name, fill="black" if light > 110 else "white", font=font)


def _dashed(draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    left, top, right, bottom = box
    for start in np.arange(left, right, 9.0).tolist():
        for y in (top, bottom):
            draw.line((start, y, min(start + 5.0, right), y), fill=colour, width=2)
    for start in np.arange(top, bottom, 9.0).tolist():
        for x in (left, right):
            draw.line((x, start, x, min(start + 5.0, bottom)), fill=colour, width=2)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# --- the sheet -----------------------------------------------------------------------------------


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _heading(root: Path, split: str, data: Split, num: int) -> str:
    everything = [item for items in data.annotations.values() for item in items]
    crowds = sum(bool(item.get("iscrowd")) for item in everything)
    return (
        f"{root.name}/{split}: {_count(len(data.images), 'image')} with "
        f"{_count(len(everything) - crowds, 'object')} and {_count(crowds, 'crowd')}; {num} shown"
    )


def _legend(data: Split, chosen: list[dict[str, Any]]) -> list[tuple[str, Colour]]:
    """List the categories of the chosen images in the order of their ids."""
    seen = {o["category_id"] for image in chosen for o in data.annotations.get(image["id"], [])}
    return [
        (f"{name} (id {key})", data.colours[key]) for key, name in data.names.items() if key in seen
    ]


def _sheet(
    pairs: list[tuple[Image.Image, str]], heading: str, legend: list[tuple[str, Colour]]
) -> Image.Image:
    """Arrange the samples under a heading and a legend."""
    columns = min(_PAIRS_A_ROW, len(pairs))
    cell = 2 * _TILE + _GAP + _MARGIN, _TILE + _CAPTION + _MARGIN
    width = columns * cell[0] + _MARGIN
    font, large = ImageFont.load_default(size=15), ImageFont.load_default(size=20)

    # Legend entries flow over as many lines as they need.
    entries: list[tuple[float, int, str, Colour]] = []
    x, line = float(_MARGIN), 0
    for text, colour in legend:
        wide = 24.0 + font.getlength(text) + 22.0
        if x + wide > width and x > _MARGIN:
            x, line = float(_MARGIN), line + 1
        entries.append((x, line, text, colour))
        x += wide
    head = _MARGIN + 30 + 24 + 26 * (line + 1) + 10

    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (width, head + rows * cell[1]), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), heading, fill=_INK, font=large)
    guide = "Left: the image. Right: its boxes, masks of what is visible, names. Hatched: a crowd."
    draw.text((_MARGIN, _MARGIN + 30), guide, fill=_INK, font=font)
    for x, line, text, colour in entries:
        y = _MARGIN + 30 + 26 + 26 * line
        draw.rectangle((x, y, x + 17, y + 17), fill=colour, outline=_INK)
        draw.text((x + 24, y), text, fill=_INK, font=font)
    for i, (pair, caption) in enumerate(pairs):
        left = _MARGIN + i % columns * cell[0]
        top = head + i // columns * cell[1]
        sheet.paste(pair, (left, top))
        draw.text((left, top + _TILE + 3), caption, fill=_INK, font=font)
    return sheet
