"""Official downloads turned into the layout a task reads, then looked through."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.errors import DataError, UsageError
from harness.inspect import check_data, one_spec, progress_bar
from harness.registry import task_info
from harness.schema import Spec
from harness.task import TaskInfo

_FOLDER = ".download"


def prepare_data(
    task: str, words: Sequence[str], given: Sequence[Path], download: bool, console: Console
) -> None:
    """Unpack into ``data.root``, then print what ``data check`` finds there.

    Args:
        task: name of the task.
        words: the run that the data are for, with ``data=DIR``.
        given: archives and folders to unpack; none with ``download``.
        download: fetch the data through the task's library first.
        console: where to print.

    Raises:
        UsageError: without a folder to fill, or without anything to fill it from.
        DataError: if something given is wrong or cannot be fetched, or the data are not whole.
    """
    spec, info = one_spec(task, words), task_info(task)
    if spec.data.root is None:
        raise UsageError(f"data prepare {task} needs the folder to fill: data=DIR")
    if bool(given) == download:
        raise UsageError(
            f"data prepare {task} needs either --from ARCHIVE_OR_DIR or --download; official "
            f"downloads of {info.downloads}"
        )
    fetched = Path(spec.data.root).expanduser() / _FOLDER
    sources = [fetched] if download else [path.expanduser() for path in given]
    if download:
        _download(info, spec, fetched)
    with progress_bar() as progress:
        info.unpack(spec, sources, progress)
    if download:
        shutil.rmtree(fetched)
    check_data(task, words, console)


def _download(info: TaskInfo, spec: Spec, folder: Path) -> None:
    """Let the library download; an interrupted download is begun or gone on with as it can.

    Raises:
        DataError: if it cannot, naming the official source.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        info.download(spec, folder)
    # RuntimeError: torchvision's checksums; ValueError: a server that answers something else.
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the download failed ({reason}): try again, or fetch {info.downloads}, and give it "
            "with --from"
        ) from None
