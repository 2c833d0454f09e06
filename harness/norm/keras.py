"""Weight standardisation for Keras 3: its layers on any of its backends, without importing torch.

The authors published their layer for TensorFlow too, and that formula, ``ws="tf"``, is the default
here. The definitions are those of ``harness.norm.catalogue.WS_VARIANTS``. Constructors, variables
and operations are Keras's own; the kernel passes through ``standardize_kernel`` on its way.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
from keras import ops

from harness.norm.catalogue import WSVariant, ws_variant

_serializable = keras.saving.register_keras_serializable(package="normbench")


def standardize_kernel(
    kernel: Any, variant: str | WSVariant = "tf", *, filter_axes: tuple[int, ...] = (-1,)
) -> Any:
    """Standardise each output filter of ``kernel`` to mean 0 and deviation 1.

    Equal to ``harness.norm.weight_standardization.standardize_weight`` on the same filters:
    statistics in float32 for narrower types (in float64 for float64), the result rounded once to
    the type of ``kernel``. A filter with one weight, or with equal weights, has no deviation to
    divide by: its result is exactly 0 (``divided``: divided by epsilon), with a finite gradient.

    Args:
        kernel: tensor or variable ``(*kernel_size, C_in / groups, C_out)`` or ``(C_in, C_out)``;
            with ``filter_axes=(-2, -1)`` a depthwise ``(*kernel_size, C_in, multiplier)``, with
            ``(-2,)`` a transposed convolution's ``(*kernel_size, C_out, C_in)``.
        variant: name in ``WS_VARIANTS``, or a definition of your own.
        filter_axes: the axes that number the output filters.

    Returns:
        The standardised kernel, a tensor of the backend, of the shape and type of ``kernel``.

    Raises:
        UsageError: if ``variant`` is not the name of one.
    """
    definition = ws_variant(variant) if isinstance(variant, str) else variant
    kernel = ops.convert_to_tensor(kernel)
    dtype = keras.backend.standardize_dtype(kernel.dtype)
    rank = len(kernel.shape)
    outer = {axis % rank for axis in filter_axes}
    inner = tuple(axis for axis in range(rank) if axis not in outer)
    n = math.prod(kernel.shape[axis] for axis in inner)  # the fan-in
    wide = ops.cast(kernel, "float32") if dtype in ("float16", "bfloat16") else kernel
    # Subtracting a constant first changes neither result nor gradient, but makes filters of equal
    # weights exactly 0, as in PyTorch's half.
    one = tuple(slice(0, 1) if axis in inner else slice(None) for axis in range(rank))
    centred = wide - ops.stop_gradient(wide[one])
    # Not ops.mean: on torch it takes float64 through float32.
    centred = centred - ops.sum(centred, axis=inner, keepdims=True) / n
    if definition.half == "centred":
        return ops.cast(centred, dtype)
    squares = ops.sum(ops.square(centred), axis=inner, keepdims=True)
    # With n = 1 the squares are 0, and the unbiased variance's 0 / 0 counts as 0.
    variance = squares / max(n - definition.unbiased, 1)
    if definition.eps_inside_root:
        denominator = ops.sqrt(variance + definition.eps)
    else:
        denominator = _sqrt(variance) + definition.eps
    if definition.scaled:
        denominator = denominator * math.sqrt(n)
    numerator = wide if definition.half == "divided" else centred
    return ops.cast(numerator * ops.reciprocal(denominator), dtype)


def _sqrt(x: Any) -> Any:
    """Return the square root, with 0 as its derivative at 0."""
    positive = ops.greater(x, 0)
    # Twice: backwards, the root's infinite slope at 0 would meet the 0 of the branch not taken.
    root = ops.sqrt(ops.where(positive, x, ops.ones_like(x)))
    return ops.where(positive, root, ops.zeros_like(x))


class _WSLayer(keras.layers.Layer):  # type: ignore[misc]
    """What the layers below share: Keras's constructor plus ``ws``, and the standardised kernel.

    The raw kernel stays the variable, under Keras's name, so regularisers, constraints and files
    see what training changes.
    """

    _filter_axes: ClassVar[tuple[int, ...]] = (-1,)

    def __init__(self, *args: Any, ws: str = "tf", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws = ws_variant(ws).name

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        """Create a variable; mixed precision must not narrow the kernel before its statistics."""
        if name == "kernel":
            kwargs["autocast"] = False
        return super().add_weight(*args, name=name, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create the variables for inputs of ``input_shape``."""
        if self.quantization_mode is not None:
            raise self._cannot_be_quantized()
        super().build(input_shape)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: integer kernels have nothing to standardise."""
        raise self._cannot_be_quantized()

    def _cannot_be_quantized(self) -> Exception:
        return NotImplementedError(
            f"{self.name} ({type(self).__name__}) standardises a kernel of floats and cannot be "
            "quantised; give its standardized_kernel() to a plain Keras layer and quantise that one"
        )

    def standardized_kernel(self) -> Any:
        """Return the kernel that the forward pass uses, of the shape and type of ``kernel``."""
        return standardize_kernel(self.kernel, self.ws, filter_axes=self._filter_axes)

    def _standardize_for(self, inputs: Any, kernel: Any) -> Any:
        """Standardise ``kernel`` and round it once to the type in which it meets ``inputs``."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        # Keras has cast floating inputs to the layer's compute type, where it casts at all.
        dtype = dtype if keras.backend.is_float_dtype(dtype) else self.compute_dtype
        return ops.cast(standardize_kernel(kernel, self.ws, filter_axes=self._filter_axes), dtype)

    def _add_bias_and_activate(self, outputs: Any) -> Any:
        """Finish a convolution's ``outputs`` as Keras does."""
        if self.bias is not None:
            shape = [1] * len(outputs.shape)
            shape[-1 if self.data_format == "channels_last" else 1] = -1
            outputs = outputs + ops.reshape(self.bias, shape)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict[str, Any]:
        """Return what the constructor needs to make this layer again."""
        return {**super().get_config(), "ws": self.ws}


class _WSConv(_WSLayer):
    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolve as Keras does, with the standardised ``kernel``."""
        return super().convolution_op(inputs, self._standardize_for(inputs, kernel))


@_serializable
class WSConv1D(_WSConv, keras.layers.Conv1D):  # type: ignore[misc]
    """``keras.layers.Conv1D`` with standardised kernels; ``ws`` names the variant."""

    def call(self, inputs: Any) -> Any:
        """Map ``(B, T, C_in)`` to ``(B, T', C_out)``, or channels first."""
        # Unlike its sisters, Keras's Conv1D has no hook: it pads and convolves in call().
        padding = self.padding
        if padding == "causal":
            past = (self.dilation_rate[0] * (self.kernel_size[0] - 1), 0)
            around = (past, (0, 0)) if self.data_format == "channels_last" else ((0, 0), past)
            inputs = ops.pad(inputs, ((0, 0), *around))
            padding = "valid"
        outputs = ops.conv(
            inputs,
            self._standardize_for(inputs, self.kernel),
            strides=self.strides,
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._add_bias_and_activate(outputs)


@_serializable
class WSConv2D(_WSConv, keras.layers.Conv2D):  # type: ignore[misc]
    """``keras.layers.Conv2D`` with standardised kernels; ``ws`` names the variant."""


@_serializable
class WSConv3D(_WSConv, keras.layers.Conv3D):  # type: ignore[misc]
    """``keras.layers.Conv3D`` with standardised kernels; ``ws`` names the variant."""


@_serializable
class WSDepthwiseConv2D(_WSLayer, keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """``keras.layers.DepthwiseConv2D`` with standardised kernels; ``ws`` names the variant.

    The kernel is ``(H, W, C_in, multiplier)``: each pair of the last axes has a filter of its own.
    """

    _filter_axes = (-2, -1)

    def call(self, inputs: Any) -> Any:
        """Map ``(B, H, W, C_in)`` to ``(B, H', W', C_in * multiplier)``, or channels first."""
        outputs = ops.depthwise_conv(
            inputs,
            self._standardize_for(inputs, self.kernel),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._add_bias_and_activate(outputs)


class _WSConvTranspose(_WSLayer):
    """A transposed convolution's kernel is ``(*kernel_size, C_out, C_in)``."""

    _filter_axes = (-2,)

    def call(self, inputs: Any) -> Any:
        """Map ``(B, *space, C_in)`` to ``(B, *space', C_out)``, or channels first."""
        outputs = ops.conv_transpose(
            inputs,
            self._standardize_for(inputs, self.kernel),
            strides=self.strides,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._add_bias_and_activate(outputs)


@_serializable
class WSConv1DTranspose(_WSConvTranspose, keras.layers.Conv1DTranspose):  # type: ignore[misc]
    """``keras.layers.Conv1DTranspose`` with standardised kernels; ``ws`` names the variant."""


@_serializable
class WSConv2DTranspose(_WSConvTranspose, keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """``keras.layers.Conv2DTranspose`` with standardised kernels; ``ws`` names the variant."""


@_serializable
class WSConv3DTranspose(_WSConvTranspose, keras.layers.Conv3DTranspose):  # type: ignore[misc]
    """``keras.layers.Conv3DTranspose`` with standardised kernels; ``ws`` names the variant."""


@_serializable
class WSDense(_WSLayer, keras.layers.Dense):  # type: ignore[misc]
    """``keras.layers.Dense`` with standardised kernels; ``ws`` names the variant."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Map ``(..., C_in)`` to ``(..., C_out)``."""
        outputs = ops.matmul(inputs, self._standardize_for(inputs, self.kernel))
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)
