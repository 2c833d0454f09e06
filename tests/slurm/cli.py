"""`normbench` that knows the recipe of the slow task; without torch, as the real one."""

from __future__ import annotations

import os
from pathlib import Path

from harness import registry, spec
from harness.cli import main

RECIPE = """\
model: {name: resnet_mini}
norm: {layer: gn, ws: null, groups: 4}
batch: {size: 4, micro: 2}
optim: {name: sgd, lr: 0.01}
steps: 60
data: {size: 32, resize: null, scale: [1, 1], ratio: [1, 1], num_train: 24, num_val: 24}
exec: {threads: 1, log_s: 0.1}
"""

if __name__ == "__main__":
    configs = Path(os.environ["CONFIGS"])
    (configs / "slow").mkdir(parents=True, exist_ok=True)
    (configs / "slow" / "mini.yaml").write_text(RECIPE)
    registry.TASKS["slow"] = "tests.slurm.slow:INFO"
    spec.configs_dir = lambda: configs
    main()
