"""An evaluation over several processes: each looks at its share, and all learn what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import NormbenchError

if TYPE_CHECKING:
    from harness.distributed import Ranks

T = TypeVar("T")


class Share:
    """What one process does of an evaluation; ``ALONE`` does all of it.

    Every item belongs to one process, so that nothing is counted twice, and what is gathered are
    counts and predictions, of which the metrics are then made as by one process.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        """Take the share of a rank."""
        self._ranks = ranks
        self.rank, self.world = (ranks.rank, ranks.world) if ranks else (0, 1)
        self._met = False

    def of(self, number: int) -> range:
        """Return which of ``number`` items are ours."""
        return range(self.rank, number, self.world)

    def gather(self, found: T) -> list[T]:
        """Return what every process found, by rank; to be called once, by all of them.

        Raises:
            NormbenchError: as another process did, which could not finish its share.
        """
        self._met = True
        if self._ranks is None:
            return [found]
        everyone: list[tuple[T | None, NormbenchError | None]]
        everyone = self._ranks.gather_objects((found, None))
        return _joined(everyone)

    def fail(self, error: Exception) -> None:
        """Let the others know that this process has nothing to give, unless they have met."""
        if self._ranks is None or self._met:
            return
        self._met = True
        told = error if isinstance(error, NormbenchError) else NormbenchError(_in_a_line(error))
        self._ranks.gather_objects((None, told))


def _joined(everyone: Sequence[tuple[Any, NormbenchError | None]]) -> list[Any]:
    for _, error in everyone:
        if error is not None:
            raise error
    return [found for found, _ in everyone]


def _in_a_line(error: Exception) -> str:
    return f"another process: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


ALONE = Share()
"""One process that does everything."""
