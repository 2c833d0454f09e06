"""Chooses the backend before anything imports Keras: one process tests one backend."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

BACKENDS = ("tensorflow", "jax", "torch")
ROOT = Path(__file__).resolve().parents[2]

collect_ignore: list[str] = []
if find_spec("keras") is None:
    collect_ignore += ["test_layers.py", "test_models.py"]  # test_facade.py says so
else:
    os.environ.setdefault("KERAS_BACKEND", next(name for name in BACKENDS if find_spec(name)))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Only oneDNN has convolutions with channels first on a CPU, and TensorFlow uses it of its own
    # accord on some processors only.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Compiling these small programs takes longer than running them.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture(scope="session")
def torch_says(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Return what PyTorch computes for every case; see ``torch_reference``."""
    path = tmp_path_factory.mktemp("torch") / "reference.npz"
    # A process of its own: two frameworks in one may fight over threads and symbols.
    command = [sys.executable, "-m", "tests.keras.torch_reference", str(path)]
    subprocess.run(command, check=True, cwd=ROOT)
    with np.load(path) as archive:
        return dict(archive)
