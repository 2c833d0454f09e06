import keras
import numpy as np
import pytest
from keras import ops

from harness.errors import UsageError
from harness.norm.catalogue import WS_VARIANTS, WSVariant
from harness.norm.keras import standardize_kernel
from normbench import keras as public
from tests.keras.cases import CASES, Case, inputs_of, kernel_of, normal, upstream_of
from tests.keras.pullback import pullback, to_numpy
from tests.norm.references import standardize

pytestmark = pytest.mark.keras

BACKEND = keras.backend.backend()
LAYERS = [name for name in public.__all__ if name.startswith("WS")]
DISTINCT = ["conv1d", "conv2d", "conv3d", "dense", "depthwise_multiplier", "transpose2d"]
"""One case of each layout."""


def built(case: Case, kernel: np.ndarray | None = None, **kwargs) -> keras.layers.Layer:
    """Return the layer of ``case`` with its kernel in place."""
    layer = getattr(public, case.layer)(*case.args, **{**case.kwargs, **kwargs})
    first = kwargs.get("data_format") == "channels_first"
    layer.build((case.inputs[0], case.inputs[-1], *case.inputs[1:-1]) if first else case.inputs)
    layer.kernel.assign(kernel_of(case) if kernel is None else kernel)
    return layer


def plain_twin(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return Keras's own layer with the weights as they are."""
    config = layer.get_config()
    del config["ws"]
    kind = getattr(keras.layers, type(layer).__name__.removeprefix("WS"))
    plain = kind.from_config(config)
    plain.build(layer.get_build_config()["input_shape"])
    plain.set_weights(layer.get_weights())
    return plain


def close(found: np.ndarray, expected: np.ndarray, relative: float, size: float = 0) -> None:
    """Compare as vectors, relative to ``expected`` or to ``size`` if that is greater."""
    assert found.shape == expected.shape
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    assert np.linalg.norm(found - expected) <= relative * max(np.linalg.norm(expected), size)


def test_every_layer_has_a_case():
    assert {case.layer for case in CASES.values()} == set(LAYERS)


@pytest.mark.parametrize("name", CASES)
def test_equals_its_pytorch_namesake(name: str, torch_says):
    case = CASES[name]
    num = len(WS_VARIANTS)

    def every_variant(kernels):
        pairs = zip(range(num), WS_VARIANTS, strict=True)
        axes = case.filter_axes
        return ops.stack([standardize_kernel(kernels[i], v, filter_axes=axes) for i, v in pairs])

    raw, upstream = kernel_of(case), upstream_of(case)
    kernels, gradients = pullback(every_variant, np.stack([raw] * num), np.stack([upstream] * num))
    # Where the fan-in is 2, the gradient is a small difference of terms of this size.
    size = np.linalg.norm(upstream) / raw.std(0).min() if name == "fan_in_2" else 0
    for variant, kernel, gradient in zip(WS_VARIANTS, kernels, gradients, strict=True):
        close(kernel, torch_says[f"{name}/{variant}/kernel"], 5e-7)
        close(gradient, torch_says[f"{name}/{variant}/gradient"], 2e-6, size)
    layer = built(case, use_bias=False, ws="authors")
    close(to_numpy(layer(inputs_of(case))), torch_says[f"{name}/authors/output"], 1e-6)


@pytest.mark.parametrize("variant", WS_VARIANTS)
def test_equals_the_definition_in_numpy(variant: str):
    kernel = 0.05 * normal(0, (3, 3, 4, 5)) + 0.3
    found = to_numpy(standardize_kernel(kernel, variant))
    expected = standardize(kernel.astype(np.float64).transpose(3, 0, 1, 2), variant)
    close(found, expected.transpose(1, 2, 3, 0), 5e-7)


def test_the_default_is_the_authors_tensorflow_formula():
    case = CASES["conv2d"]
    kernel = kernel_of(case)
    expected = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    layer = built(case)
    assert layer.ws == "tf"
    close(to_numpy(layer.standardized_kernel()), expected, 1e-6)
    close(to_numpy(standardize_kernel(kernel)), expected, 1e-6)


def test_takes_a_definition_of_your_own():
    own = WSVariant("own", unbiased=True, eps=1e-3, eps_inside_root=True, scaled=False, source="")
    kernel = normal(0, (4, 3))
    expected = (kernel - kernel.mean(0)) / np.sqrt(kernel.var(0, ddof=1) + 1e-3)
    close(to_numpy(standardize_kernel(kernel, own)), expected, 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_layer_is_keras_own_on_the_standardised_kernel(name: str):
    case = CASES[name]
    layer = built(case, activation="tanh", bias_initializer="ones")
    plain = plain_twin(layer)
    plain.kernel.assign(layer.standardized_kernel())
    x = inputs_of(case)
    assert tuple(layer(x).shape) == tuple(layer.compute_output_shape(case.inputs))
    np.testing.assert_array_equal(to_numpy(layer(x)), to_numpy(plain(x)))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_causal_convolutions_look_back_only(data_format: str):
    time = 1 if data_format == "channels_last" else 2
    x = normal(0, (2, 9, 3) if time == 1 else (2, 3, 9))
    layer = public.WSConv1D(
        4, 3, padding="causal", dilation_rate=2, data_format=data_format, bias_initializer="ones"
    )
    output = to_numpy(layer(x))
    plain = plain_twin(layer)
    plain.kernel.assign(layer.standardized_kernel())
    np.testing.assert_array_equal(output, to_numpy(plain(x)))
    past, future = np.split(x, [5], axis=time)
    changed = to_numpy(layer(np.concatenate([past, future + 1], axis=time)))
    np.testing.assert_array_equal(changed.take(range(5), time), output.take(range(5), time))


@pytest.mark.parametrize("name", ["conv2d", "conv2d_grouped", "depthwise", "transpose2d"])
def test_channels_first(name: str):
    case = CASES[name]
    layer = built(case, bias_initializer="ones")
    first = built(case, bias_initializer="ones", data_format="channels_first")
    x = inputs_of(case)
    found = to_numpy(first(np.moveaxis(x, -1, 1)))
    close(np.moveaxis(found, 1, -1), to_numpy(layer(x)), 1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("name", DISTINCT)
def test_narrow_types_take_float32_statistics_and_round_once(name: str, policy: str):
    case = CASES[name]
    kernel = kernel_of(case) + np.float32(1)  # a mean that a narrow type would lose digits to
    layer = built(case, kernel, dtype=policy, bias_initializer="ones")
    wide = to_numpy(layer.kernel)  # float32, or already rounded where the variable is narrow
    expected = standardize_kernel(wide, filter_axes=case.filter_axes)
    plain = plain_twin(layer)
    plain.kernel.assign(ops.cast(expected, plain.variable_dtype))
    x = inputs_of(case)
    output = layer(x)
    assert keras.backend.standardize_dtype(output.dtype) == layer.compute_dtype
    assert keras.backend.standardize_dtype(layer.standardized_kernel().dtype) == layer.kernel.dtype
    np.testing.assert_array_equal(to_numpy(output), to_numpy(plain(x)))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("variant", ["tf", "authors", "bit"])
@pytest.mark.parametrize("name", ["conv2d", "fan_in_1"])
def test_filters_without_deviation_give_zero_and_a_finite_gradient(name, variant, policy):
    case = CASES[name]
    values = np.resize(np.float32([0, 0.1, -3.3, 1e-3]), case.kernel[-1])  # one a filter
    kernel = np.broadcast_to(values, case.kernel).copy()
    layer = built(case, kernel, ws=variant, dtype=policy, use_bias=False)
    model = keras.Sequential([keras.Input(case.inputs[1:]), layer])
    x = inputs_of(case)
    output, gradient = pullback(
        lambda k: model.stateless_call([k], [], x)[0],
        kernel,
        np.float32(1e-3) * normal(3, layer.compute_output_shape(case.inputs)),
        layer.variable_dtype,
    )
    assert (output == 0).all()
    assert np.isfinite(gradient).all()
    assert (gradient == 0).all() == (name == "fan_in_1")


def test_float64_is_computed_in_float64():
    if BACKEND == "jax":
        pytest.skip("JAX computes in float32 unless JAX_ENABLE_X64 is set")
    kernel = np.random.RandomState(0).randn(3, 3, 4, 5)
    found = ops.convert_to_numpy(standardize_kernel(kernel, "authors"))
    assert found.dtype == np.float64
    expected = standardize(kernel.transpose(3, 0, 1, 2), "authors").transpose(1, 2, 3, 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_unknown_variants_are_refused():
    with pytest.raises(UsageError, match=r"unknown weight standardisation 'ft'.*'tf'"):
        public.WSConv2D(4, 3, ws="ft")
    with pytest.raises(UsageError, match="unknown weight standardisation"):
        standardize_kernel(np.ones((2, 2), np.float32), "x")


@pytest.mark.parametrize("name", ["dense", "conv2d", "conv1d"])
def test_lora_adapts_the_raw_kernel(name: str):
    case = CASES[name]
    layer = built(case, ws="timm", use_bias=False)
    x = inputs_of(case)
    before = to_numpy(layer(x))
    layer.enable_lora(2)
    close(to_numpy(layer(x)), before, 1e-6)
    assert [w.name for w in layer.trainable_weights] == ["lora_kernel_a", "lora_kernel_b"]
    layer.lora_kernel_b.assign(normal(4, tuple(layer.lora_kernel_b.shape)))
    merged = kernel_of(case) + to_numpy(layer.lora_kernel_a) @ to_numpy(layer.lora_kernel_b)
    close(to_numpy(layer(x)), to_numpy(built(case, merged, ws="timm", use_bias=False)(x)), 1e-5)


def test_quantisation_is_refused_in_one_line():
    layer = built(CASES["dense"])
    for options in ({}, {"type_check": False}):
        with pytest.raises(NotImplementedError, match=r"WSDense.*cannot be quantised") as caught:
            layer.quantize("int8", **options)
        assert "\n" not in str(caught.value)
    for kind, arguments in ((public.WSDense, (3,)), (public.WSConv2D, (3, 3))):
        quantized = kind(*arguments, dtype="int8_from_float32")
        with pytest.raises(NotImplementedError, match="cannot be quantised"):
            quantized.build((1, 5, 5, 4))
