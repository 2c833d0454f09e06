"""`normbench export --slurm-script`: a job script in plain text, which needs Slurm alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from harness.errors import NormbenchError, UsageError
from harness.launchers import write_runs
from harness.plan import PlannedRun
from harness.pool import prepare_data
from harness.slurm import Slurm


def slurm_script(
    cells: Sequence[PlannedRun], words: Mapping[str, str], jobs: int | None, results: Path
) -> str:
    """Write a job script that makes runs without submitit, for reading or for ``sbatch``.

    Raises:
        UsageError: if an option is wrong.
        NormbenchError: if the data of a run are not to be had.
    """
    if not cells:
        raise UsageError("nothing is left to run")
    roots, problems = prepare_data(cells, lambda *_: None)
    for run, outcome in problems.items():
        raise NormbenchError(f"{run}: {outcome.message}")
    asked = Slurm(results, words).parameters(cells[0], jobs or len(cells))
    if any(cell.spec.devices != cells[0].spec.devices for cell in cells):
        raise UsageError("one script asks for the same for all its runs: give devices=")
    if asked["nodes"] > 1:
        raise UsageError("nodes: a run over several nodes needs --launcher slurm")
    write_runs(cells)
    folder = results.resolve() / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    flags = {
        "job-name": asked["name"],
        "array": f"0-{len(cells) - 1}%{min(len(cells), asked['slurm_array_parallelism'])}",
        "time": asked["timeout_min"],
        "cpus-per-task": asked["cpus_per_task"],
        "gpus-per-node": asked.get("gpus_per_node"),
        "mem": f"{asked['mem_gb']}G" if "mem_gb" in asked else None,
        **{key: words.get(key) for key in ("partition", "account", "qos", "constraint")},
        "signal": f"USR2@{asked['slurm_signal_delay_s']}",
        "output": f"{folder}/%A_%a.out",
        "open-mode": "append",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" for key, value in flags.items() if value is not None]
    lines += ["#SBATCH --requeue", "", "runs=("]
    for cell in cells:
        lines.append(
            f"    {quote(str(cell.run.path.resolve()))} {quote(str(roots[cell.run.id].resolve()))}"
        )
    lines += [
        ")",
        "run=${runs[2 * SLURM_ARRAY_TASK_ID]} data=${runs[2 * SLURM_ARRAY_TASK_ID + 1]}",
        "",
        f"export OMP_NUM_THREADS={max(1, asked['cpus_per_task'] // cells[0].spec.devices)}",
        "",
        "# 75: told to stop, saved, and to be gone on with.",
        f'srun {quote(sys.executable)} -m harness.jobrun "$run" "$data"',
        "status=$?",
        'if [ "$status" = 75 ]; then',
        '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
        "fi",
        'exit "$status"',
    ]
    return "\n".join(lines) + "\n"
