"""Records of earlier versions, brought to this one step by step, so that no result is ever lost.

A record is data that others keep: whatever the first version wrote must stay readable. Each change
of ``harness.record.Record`` raises ``SCHEMA_VERSION`` and adds the step that leads to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from harness.identity import cell_of

SCHEMA_VERSION = 3
"""1: the first. 2: ``cell``, ``best`` and the unreadable samples stand in every record. 3: ``init``
tells of initial weights."""


def migrate(content: Any) -> Any:
    """Bring the content of a ``record.json`` to the newest version.

    Args:
        content: as parsed; what is no record at all is returned as it is.

    Raises:
        ValueError: in words, if a newer version wrote it, or no step can read it.
    """
    if not isinstance(content, dict):
        return content
    version = content.get("schema_version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"not a record (schema_version is {version!r})")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"written by a newer version (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}): update normbench"
        )
    for step in range(version, SCHEMA_VERSION):
        try:
            content = MIGRATIONS[step](content) | {"schema_version": step + 1}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record of schema {step} ({error} in it is wrong)") from None
    return content


def _name_the_cell(content: dict[str, Any]) -> dict[str, Any]:
    """1 -> 2: compute the cell from what the identity hashed; the rest has defaults."""
    if content.get("cell"):
        return content
    data = content["spec"]["data"]
    embedded = data["embedded"] and data["root"] is None
    return content | {"cell": cell_of(content["science"], embedded=embedded)}


def _leave(content: dict[str, Any]) -> dict[str, Any]:
    """2 -> 3: what is new has a default, which says that nothing is known."""
    return content


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = MappingProxyType(
    {1: _name_the_cell, 2: _leave}
)
"""Version -> step to the next one."""
