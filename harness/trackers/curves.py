"""Which numbers of the journal are curves, under the same names in every tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the curves' values in a row: ``train/loss``, ``evaluation/box_AP``; none in others."""
    match row["event"]:
        case "train":
            parts = {f"train/{name}": value for name, value in row["parts"].items()}
            return {
                "train/loss": row["loss"],
                **parts,
                "train/lr": row["lr"],
                "speed/images_per_s": row["images_per_s"],
                "speed/mem_mib": row["mem_mib"],
            }
        case "evaluation":
            return {f"evaluation/{name}": value for name, value in row["metrics"].items()}
    return {}
