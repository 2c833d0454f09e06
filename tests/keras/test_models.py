import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from normbench import keras as public
from tests.keras.cases import CASES, inputs_of, normal
from tests.keras.conftest import ROOT
from tests.keras.pullback import to_numpy

pytestmark = pytest.mark.keras

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]


def classifier(policy: str = "float32") -> keras.Model:
    """Return a model with every kind of layer that images can pass."""
    kwargs = {"dtype": policy, "use_bias": False}
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            public.WSConv2D(8, 3, padding="same", ws="authors", **kwargs),
            layers.GroupNormalization(4, dtype=policy),
            layers.ReLU(dtype=policy),
            public.WSDepthwiseConv2D(3, ws="timm", **kwargs),
            public.WSConv2D(8, 3, groups=2, ws="bit", **kwargs),
            layers.GroupNormalization(4, dtype=policy),
            public.WSConv2DTranspose(4, 2, strides=2, **kwargs),
            layers.GlobalAveragePooling2D(dtype=policy),
            public.WSDense(8, ws="scaled", dtype=policy),
            layers.Dense(2, dtype="float32"),
        ]
    )


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return images of two classes that differ in their vertical gradient."""
    labels = np.arange(32) % 2
    slope = np.where(labels, 1, -1)[:, None, None, None] * np.linspace(-1, 1, 8)[:, None, None]
    return (slope + 0.3 * normal(0, (32, 8, 8, 2))).astype(np.float32), labels


@pytest.fixture(autouse=True)
def _fixed() -> None:
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize("policy", POLICIES)
def test_trains_saves_and_loads(policy: str, tmp_path: Path):
    model = classifier(policy)
    x, y = blobs()
    first = to_numpy(model.layers[0].kernel)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    history = model.fit(x, y, batch_size=8, epochs=6, shuffle=False, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    for weight in model.get_weights():
        assert np.isfinite(weight).all()
    assert not np.allclose(to_numpy(model.layers[0].kernel), first)

    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(model(x)))
    for mine, theirs in zip(model.layers, loaded.layers, strict=True):
        assert type(mine) is type(theirs)
        assert getattr(mine, "ws", None) == getattr(theirs, "ws", None)
        for one, other in zip(mine.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)  # the raw kernels
    if policy == "float32":
        loaded.fit(x, y, batch_size=8, epochs=1, verbose=0)


@pytest.mark.parametrize("name", CASES)
def test_configuration_round_trip(name: str):
    case = CASES[name]
    layer = getattr(public, case.layer)(*case.args, **case.kwargs, ws="bcn", name="a")
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == f"normbench>{case.layer}"
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.ws == "bcn"
    assert again.get_config() == layer.get_config()
    x = inputs_of(case)
    layer(x)
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(layer(x)))


def test_models_can_be_cloned_and_share_layers():
    shared = public.WSConv2D(2, 3, padding="same", ws="scaled")
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, shared(shared(inputs)))
    copied = keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    x = normal(0, (2, 6, 6, 2))
    np.testing.assert_array_equal(to_numpy(copied(x)), to_numpy(model(x)))
    assert len(model.weights) == 2


def test_the_regulariser_sees_the_raw_kernel():
    layer = public.WSDense(3, kernel_regularizer=keras.regularizers.L2(0.5))
    layer(normal(0, (2, 4)))
    expected = 0.5 * (to_numpy(layer.kernel) ** 2).sum()
    np.testing.assert_allclose(to_numpy(layer.losses[0]), expected, rtol=1e-6)


def python_blocks(path: Path) -> list[str]:
    return [part.split("```")[0] for part in path.read_text().split("```python\n")[1:]]


def test_the_documents_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / "docs" / "keras.md")
    assert blocks
    exec("\n".join(blocks), {"__name__": "example"})
    assert (tmp_path / "model.keras").exists()


def test_no_torch_is_imported():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's run shows it, in a process of its own")
    program = (
        "import sys; sys.modules['torch'] = None\n"  # importing it would now fail
        "from normbench.keras import WSConv2D\n"
        "import numpy as np\n"
        "print(WSConv2D(2, 3)(np.ones((1, 4, 4, 3), 'float32')).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(1, 2, 2, 2)" in done.stdout
