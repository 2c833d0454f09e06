"""One way to differentiate on every backend of Keras."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def to_numpy(x: Any) -> np.ndarray:
    """Return a float32 array of a backend's tensor of any type."""
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def pullback(
    function: Callable[[Any], Any], value: np.ndarray, upstream: np.ndarray, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``function(value)`` and the gradient of ``sum(upstream * function(value))``."""

    def loss(x: Any) -> Any:
        y = function(x)
        weighted = keras.ops.cast(y, "float32") * keras.ops.convert_to_tensor(upstream)
        return keras.ops.sum(weighted), y

    x = keras.ops.convert_to_tensor(value, dtype)
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(x)
                total, y = loss(x)
            gradient = tape.gradient(total, x)
        case "jax":
            import jax

            (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
        case "torch":
            x.requires_grad_()
            total, y = loss(x)
            total.backward()
            y, gradient = y.detach(), x.grad
        case other:
            raise AssertionError(other)
    return to_numpy(y), to_numpy(gradient)
