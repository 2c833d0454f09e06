"""Classification as a task of another package, slow for as long as a file exists.

So that a job can reach its limit on any machine, and be quick once that is seen.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tasks.classification.info import ClassificationInfo


class SlowInfo(ClassificationInfo):
    name = "slow"
    implementation = "tests.slurm.slow_task:SlowTask"


def be_slow() -> None:
    if Path(os.environ["SLOW"]).exists():
        time.sleep(0.5)


INFO = SlowInfo()
