"""YAML that people wrote: read as data only, and whatever is wrong with it said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_MOST = 10**6
"""Values of a document, each counted as often as an alias repeats it; a recipe has a hundred."""


def parse_yaml(text: str) -> Any:
    """Parse one YAML document of plain data.

    Raises:
        ValueError: in one line, with the line of the text where the parser gave up.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST:
            raise ValueError(f"its aliases stand for more than {_MOST:,} values")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"not valid YAML{where}: {error.problem}") from None
    # ValueError: a date or number that looks like one and is none; RecursionError: [[[[...
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {str(error).splitlines()[0]}") from None


def _size(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Count the values of a node as if every alias were written out."""
    if node not in known:
        known[node] = _MOST  # for a node that holds itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        known[node] = 1 + sum(_size(one, known) for one in inner)
    return known[node]


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        ValueError: in one line, if it cannot be read, is no text or no YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError("is no text in UTF-8") from None


def quoted(value: object, longest: int = 80) -> str:
    """Return how a value is written, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= longest else f"{text[:longest]}..."
