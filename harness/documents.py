"""YAML that people wrote: read as data only, and whatever is wrong with it said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Parse one YAML document of plain data.

    Raises:
        ValueError: in one line, with the line of the text where the parser gave up.
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"not valid YAML{where}: {error.problem}") from None
    # ValueError: a date or number that looks like one and is none; RecursionError: [[[[...
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {str(error).splitlines()[0]}") from None


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
