"""Data before the training: a part held out, and features of mean 0 and standard deviation 1.

    train, test = fnn.split(jax.random.key(0), x, labels, fraction=0.2)
    model = fnn.Sequential(fnn.Standardize(*fnn.standardize(train[0])), ...)

One-hot vectors are JAX's: jax.nn.one_hot(labels, num_classes).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array, check_key, check_number, is_floating
from fnn._numerics import broadcast_last_axis, norm, upcast
from fnn.layer import Layer, type_of
from fnn.layers._frame import without_params


def split(
    key: jax.Array, *arrays: jax.Array, fraction: float
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """(the rest, the part held out): each a tuple with an array for each of `arrays`.

    The part has fraction * n of the n examples, rounded, but at least one, and so has the rest.
    Which ones is drawn with the key, and so is their order. All arrays are divided alike.

    Shapes: arrays (n, ...), n >= 2.

    Raises:
        ValueError: `key` is not a key; no arrays, or they differ in n; n < 2; fraction is not a
            number between 0 and 1; a NumPy integer does not fit into JAX's 32 bits.
    """
    check_key("split", key)
    check_number("split", "fraction", fraction)
    if not 0 < fraction < 1:
        raise ValueError(f"split: expected fraction to be between 0 and 1, got {fraction!r}")
    arrays = [_as_exact_array(array) for array in arrays]
    shapes = [array.shape for array in arrays]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths <= {(), (0,), (1,)}:
        raise ValueError(
            f"split: expected arrays with the same number of examples, two or more, got {shapes}"
        )
    n = len(arrays[0])
    num_held_out = min(max(1, round(fraction * n)), n - 1)
    order = jax.random.permutation(key, n)
    parts = order[num_held_out:], order[:num_held_out]
    return tuple(tuple(array[part] for array in arrays) for part in parts)


def _as_exact_array(given):
    """`given` as a jax array. An integer that as_array would clip raises ValueError."""
    array = as_array("split", "each array", given)
    is_integer = jnp.issubdtype(array.dtype, jnp.integer)
    is_narrowed = is_integer and getattr(given, "dtype", array.dtype) != array.dtype
    if is_narrowed and (given != jax.device_get(array)).any():
        got = f"{given.dtype} from {given.min()} to {given.max()}"
        raise ValueError(f"split: expected integers that fit into {array.dtype}, got {got}")
    return array


def standardize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, std) of every feature, over all axes but the last. Standardize applies them.

    std = sqrt(mean((x - mean)^2)), and 1 for a feature that is constant. Compute them from the
    training examples alone.

    Shapes: x (..., features), at least one example; mean and std (features,), of x's dtype, or in
    float32 for 16-bit numbers and integers.

    Raises:
        ValueError: x has no axis or no example, or is complex.
    """
    if jnp.issubdtype(getattr(x, "dtype", float), jnp.integer):
        x = x.astype(float)  # first, because as_array clips NumPy's integers of 64 bits
    x = as_array("standardize", "x", x)
    if jnp.iscomplexobj(x):
        raise ValueError(f"standardize: expected x of real numbers, got {x.dtype}")
    x = upcast(x if is_floating(x) else x.astype(float))
    num_rows = math.prod(x.shape[:-1])
    if x.ndim == 0 or num_rows == 0:
        raise ValueError(f"standardize: expected x of shape (..., features), got {x.shape}")
    rows = x.reshape(num_rows, x.shape[-1])
    # Divided by n before the sum, the mean cannot overflow. The mean of (rows - mean) should be 0.
    # What it is instead is the rounding error, which is added back.
    mean = jnp.sum(rows / num_rows, axis=0)
    mean = mean + jnp.mean(rows - broadcast_last_axis(mean, rows), axis=0)
    is_constant = jnp.max(rows, axis=0) == jnp.min(rows, axis=0)
    distance = (rows - broadcast_last_axis(mean, rows)) / math.sqrt(num_rows)
    deviation = norm(distance, axis=0)[0]
    return mean, jnp.where(is_constant, 1, deviation)


def Standardize(mean: Any, std: Any) -> Layer:
    """y = (x - mean) / std; dx = dy / std.

    Put it first in the model. Then every prediction is standardized too.

    mean and std are those of standardize. They are constants, and no parameters: they are not
    trained, and fnn.save does not store them with params.

    Shapes: x, y (..., features); mean, std (features,); params (). 16-bit numbers are computed in
    float32.

    Raises:
        ValueError: mean or std is not of shape (features,) or not finite; std is not above 0
            (traced ones pass); x or dy has another shape or is not floating.
    """
    mean = upcast(check_array("Standardize", "mean", mean, ("features",)))
    std = check_array("Standardize", "std", std, mean.shape, mean.dtype)
    if not isinstance(mean + std, jax.core.Tracer):
        mean, std = jax.device_get((mean, std))  # on the host they fit to an x on any device
        if not ((abs(mean) < math.inf) & (std > 0) & (std < math.inf)).all():
            raise ValueError("Standardize: expected a finite mean, and a finite std above 0")
    features = mean.shape[0]
    name = f"Standardize({features})"

    def along_features(vector, like):
        return broadcast_last_axis(jnp.asarray(vector), like)

    def forward(x, key):
        x = check_array(name, "x", x, (..., features))
        wide = upcast(x)
        y = (wide - along_features(mean, wide)) / along_features(std, wide)
        return y.astype(x.dtype), type_of(x)

    def backward(x_type, dy):
        dy = check_array(name, "dy", dy, *x_type)
        wide = upcast(dy)
        return (wide / along_features(std, wide)).astype(dy.dtype)

    return without_params(name, forward, backward)
