"""Numbers with their nouns, in the lines that a person reads."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return e.g. ``1 run`` or ``3 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
