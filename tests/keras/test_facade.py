import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.keras.conftest import ROOT


def test_without_keras_one_line_says_what_to_install():
    program = "import sys; sys.modules['keras'] = None; import normbench.keras"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: normbench.keras needs Keras 3")
    assert "pip install 'keras>=3" in last


def test_the_facade_itself_imports_neither_keras_nor_torch():
    program = "import sys, normbench; print({'keras', 'torch'} & set(sys.modules))"
    found = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert found.strip() == "set()"


@pytest.mark.keras
@pytest.mark.skipif(
    find_spec("keras") is None,
    reason="the layers are tested where Keras 3 is (the extra `keras`); .ci/run does it",
)
def test_keras_runs_on_the_backend_under_test():
    import keras

    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]
