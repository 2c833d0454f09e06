"""What surgery did to each layer and why, as rows that people and programs can read."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from harness.errors import DataError

if TYPE_CHECKING:
    from torch import nn

Role = Literal["site", "layer", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One norm, convolution or Linear of a model after surgery."""

    path: str
    """Dotted path of the module; the first one, if it is registered in several places."""
    kind: str
    """Class name in the stock model, e.g. ``Conv2d``."""
    role: Role
    """A batch norm of the stock model, a convolution or Linear, or a norm of another kind."""
    fan_in: int | None = None
    """Weights that make one output value; None for norms."""
    norm_before: str = ""
    """Of a site, the norm of the stock model and the one now there."""
    norm_after: str = ""
    groups: int | None = None
    """Channel groups that the norm uses; None where it has none."""
    standardised: bool = False
    ws: str = ""
    """Variant of weight standardisation; empty if not standardised."""
    trainable: bool
    """Whether a gradient step changes any of its own parameters; if not, it is frozen."""
    num_params: int
    """Numbers in the module's own parameters."""
    paired_with: str = ""
    """Of a layer the norms it feeds, of a site the layers that feed it; paths joined by blanks."""
    why: str = ""
    """Why it was left alone, or what is degenerate about it; empty if there is nothing to say."""


COLUMNS = tuple(column.name for column in fields(AuditRow))


@dataclass(frozen=True, slots=True)
class NormAudit:
    """The rows of one model, in the order of its modules."""

    rows: tuple[AuditRow, ...]

    def __iter__(self) -> Iterator[AuditRow]:
        """Iterate over the rows."""
        return iter(self.rows)

    @property
    def num_norm_sites(self) -> int:
        """Count the batch norms of the stock model."""
        return sum(row.role == "site" for row in self.rows)

    @property
    def num_standardised(self) -> int:
        """Count the layers whose weights are standardised."""
        return sum(row.standardised for row in self.rows)

    @property
    def num_bare(self) -> int:
        """Count the layers that no norm site follows."""
        return sum(row.role == "layer" and not row.paired_with for row in self.rows)

    @property
    def num_frozen(self) -> int:
        """Count the rows that no gradient step changes."""
        return sum(not row.trainable for row in self.rows)

    def summary(self) -> str:
        """Describe the audit in one line."""
        norms = {
            f"{row.norm_after}, groups={row.groups}" if row.groups else row.norm_after
            for row in self.rows
            if row.role == "site"
        }
        variants = {row.ws for row in self.rows if row.standardised}
        return (
            f"{self.num_norm_sites} norm sites{_listed(norms)}; "
            f"{self.num_standardised} layers standardised{_listed(variants)}; "
            f"{self.num_bare} bare; {self.num_frozen} frozen"
        )

    def table_rows(self) -> list[tuple[str, ...]]:
        """Return one tuple of words a row, in the order of ``COLUMNS``, for printing."""
        return [tuple(map(_word, astuple(row))) for row in self.rows]

    def to_csv(self, path: Path) -> None:
        """Write the rows to ``path``; ``from_csv`` reads them back."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(self.table_rows())

    @classmethod
    def from_csv(cls, path: Path) -> NormAudit:
        """Read what ``to_csv`` wrote.

        Raises:
            DataError: if ``path`` holds something else.
        """
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise DataError(f"{path} is not a norm audit: its columns are {reader.fieldnames}")
            return cls(tuple(_parse(record) for record in reader))


def refresh_trainable(audit: NormAudit, model: nn.Module) -> NormAudit:
    """Return ``audit`` with ``trainable`` as ``model`` is now: freezing happens after surgery."""
    return NormAudit(
        tuple(replace(row, trainable=is_trainable(model.get_submodule(row.path))) for row in audit)
    )


def remark(audit: NormAudit, remarks: Mapping[str, str]) -> NormAudit:
    """Return ``audit`` with what is to be said of some layers, by path, added to ``why``."""
    return NormAudit(
        tuple(
            replace(row, why="; ".join(filter(None, (row.why, remarks.get(row.path, "")))))
            for row in audit
        )
    )


def is_trainable(module: nn.Module) -> bool:
    """Return whether a gradient step can change any of the module's own parameters."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _listed(words: set[str]) -> str:
    return f" ({'; '.join(sorted(words))})" if words else ""


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _parse(record: dict[str, str]) -> AuditRow:
    return AuditRow(
        path=record["path"],
        kind=record["kind"],
        role=cast("Role", record["role"]),
        fan_in=int(record["fan_in"]) if record["fan_in"] else None,
        norm_before=record["norm_before"],
        norm_after=record["norm_after"],
        groups=int(record["groups"]) if record["groups"] else None,
        standardised=record["standardised"] == "yes",
        ws=record["ws"],
        trainable=record["trainable"] == "yes",
        num_params=int(record["num_params"]),
        paired_with=record["paired_with"],
        why=record["why"],
    )
