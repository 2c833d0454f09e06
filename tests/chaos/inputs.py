"""Draws what nobody meant: words, documents with a few damaged places, files with damaged bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

Bytes = list[tuple[str, float, bytes]]
Edits = list[tuple[str, int, int, Any]]

_WORDS = st.sampled_from(
    [
        *("", " ", "0", "-1", "1e400", "nan", "null", "true", "[]", "{}", "[1, 2]", "{a: b}", "~"),
        *("&a [*a]", "!!int x", "../..", "/", ".", "a" * 300, "\x1b[2J", "\u202e", "é", "bn,gn"),
        *("0..3", "3..0", "0..10000000000", "9" * 30, "1_000", "0x10", "12:30:45", "2020-01-01"),
        *("=", "%s", "{}"),
    ]
)
TEXTS = st.one_of(_WORDS, st.text(max_size=12))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**31, -(2**31) - 1, 2**63, 10**30, 10**400]),
    st.floats(width=32),
    st.sampled_from([float("nan"), float("inf"), 1e308, -1e308, 1e-320]),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
_OPERATIONS = ("replace", "remove", "insert", "rename", "copy", "wrap", "repeat")

edits = st.lists(
    st.tuples(st.sampled_from(_OPERATIONS), st.integers(0, 10**6), st.integers(0, 10**6), VALUES),
    min_size=1,
    max_size=4,
)
"""Damage to a document of mappings and lists: operation, place, another place, value."""

byte_edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "overwrite", "drop", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)
"""Damage to the bytes of a file: operation, place as a share of its length, bytes."""


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) within a document, depth first."""
    found: list[tuple[Any, Any]] = []
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in items:
        found.append((document, key))
        found += _places(value)
    return found


def damaged(document: Any, changes: Edits) -> Any:
    """Return a copy of a document of mappings and lists with some places changed."""
    holder = [copy.deepcopy(document)]
    for operation, at, other, value in changes:
        places = _places(holder)
        container, key = places[at % len(places)]
        match operation:
            case "replace":
                container[key] = copy.deepcopy(value)
            case "remove" if len(places) > 1:
                del container[key]
            case "insert" if isinstance(container[key], dict):
                container[key][str(value)[:20]] = copy.deepcopy(value)
            case "insert" if isinstance(container[key], list):
                container[key].append(copy.deepcopy(value))
            case "rename" if isinstance(container, dict):
                container[str(value)[:20]] = container.pop(key)
            case "copy":
                source, name = places[other % len(places)]
                container[key] = copy.deepcopy(source[name])
            case "wrap":
                container[key] = [container[key]]
            case "repeat" if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
        if not holder:
            return None
    return holder[0]


def spoiled(data: bytes, changes: Bytes) -> bytes:
    """Return ``data`` with some bytes changed, cut off, inserted, dropped or repeated."""
    for operation, share, new in changes:
        at = int(share * len(data))
        match operation:
            case "flip" if data:
                data = data[:at] + bytes([data[at] ^ (1 << new[0] % 8)]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "insert":
                data = data[:at] + new + data[at:]
            case "overwrite":
                data = data[:at] + new + data[at + len(new) :]
            case "drop":
                data = data[:at] + data[at + 16 * len(new) :]
            case "repeat":
                data = data[:at] + data[max(0, at - 64) : at] + data[at:]
    return data


def as_json(document: Any) -> bytes:
    """Write a document as JSON, NaN and half characters included."""
    return json.dumps(document).encode()


def as_lines(document: Any) -> bytes:
    """Write a list as one JSON a line."""
    return b"".join(
        as_json(row) + b"\n" for row in (document if isinstance(document, list) else [document])
    )


def as_yaml(document: Any) -> bytes:
    """Write a document as YAML."""
    text: str = yaml.safe_dump(document, allow_unicode=True)
    return text.encode(errors="surrogatepass")


def document_or_bytes(document: Any, write: Callable[[Any], bytes]) -> st.SearchStrategy[bytes]:
    """Draw a file: a document with damaged places, or with damaged bytes."""
    whole = write(document)
    return st.one_of(
        edits.map(lambda changes: write(damaged(document, changes))),
        byte_edits.map(lambda changes: spoiled(whole, changes)),
    )
