"""Transforms: one layer -> one layer, with another memory, precision or routing of gradients.

Each docstring says what changes. Each raises a ValueError if `layer` is not a Layer. Transforms can
be nested.

One of your own is a function from layer to layer. ReZero is y = x + a f(x) with a learned number a
that starts at 0 (Bachlechner et al., 2021, https://arxiv.org/abs/2003.04887). So da is the sum of
f(x) dy, and f gets a dy:

    >>> def rezero(f):
    ...     def forward(params, x, key=None):
    ...         fx, residuals = f.forward(params["f"], x, key)
    ...         return x + params["a"] * fx, (fx, residuals)
    ...     def backward(params, residuals, dy):
    ...         grads, dx = f.backward(params["f"], residuals[1], params["a"] * dy)
    ...         return {"a": jnp.vdot(residuals[0], dy), "f": grads}, dy + dx
    ...     return fnn.Layer(lambda key: {"a": jnp.zeros(()), "f": f.init(key)}, forward, backward)
    >>> fnn.check_layer(rezero(fnn.Linear(3, 3)), jnp.ones((4, 3)), jax.random.key(0))
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import (
    as_array,
    check_array,
    check_copies,
    check_integer,
    check_number,
    check_positive,
    is_floating,
    note_on_error,
)
from fnn._numerics import cast_floating, clipping_factor, norm, upcast
from fnn._sharing import each_array_once, put_together
from fnn.layer import Layer, check_is_layer, fold_key, is_statistic, transformed, type_of


def remat(layer: Layer) -> Layer:
    """The layer that keeps only x and the key: backward runs forward again. Chen et al., 2016.

    Changes the memory between the passes, at the cost of a second forward pass. Both forward passes
    draw from the same key. Raises a ValueError if `layer` is not a Layer.
    """

    def forward(params, x, key=None):
        x = as_array("remat", "x", x)
        y, _ = layer.forward(params, x, key)
        return y, (x, key)

    def forward_and_backward(params, x, key, dy):
        _, residuals = layer.forward(params, x, key)
        return layer.backward(params, residuals, dy)

    @jax.jit
    def run_again(*args):
        return _compute_again(forward_and_backward, *args)

    def backward(params, residuals, dy):
        return run_again(params, *residuals, dy)

    return transformed(layer, remat, forward=forward, backward=backward)


def repeat(layer: Layer, n: int) -> Layer:
    """y = f(... f(f(x))): n copies of the layer, each with its own parameters, run by lax.scan.

    Changes the time to compile, which does not depend on n. Values and gradients are those of
    Sequential(layer, ..., layer): copy i draws from fold_in(key, i). Every leaf of params, grads
    and residuals has a first axis of length n, with one entry for each copy.

    Shapes: x what the layer takes; y has x's shape.

    Raises:
        ValueError: n is not a positive integer; y has another shape or
            dtype than x, or dx than dy; a leaf of params does not have a first axis of length n.
    """
    n = check_integer("repeat", "n", n, 1)

    def init(key):
        # Not vmap: there keys of the implementation "rbg" draw other numbers.
        return jax.lax.map(lambda index: layer.init(jax.random.fold_in(key, index)), jnp.arange(n))

    def check_alike(what, expected, got):
        if type_of(got) != type_of(expected):
            raise ValueError(f"repeat: expected {what}, {type_of(expected)}, got {type_of(got)}")

    def forward(params, x, key=None):
        check_copies("repeat", params, n)
        x = as_array("repeat", "x", x)

        def step(x, copy):
            index, params = copy
            y, residuals = layer.forward(params, x, fold_key(key, index))
            check_alike("y to be like x", x, y)
            return y, each_array_once(residuals)

        with note_on_error("in repeat, forward"):
            y, (arrays, sharing) = jax.lax.scan(step, x, (jnp.arange(n), params))
        return y, (put_together(arrays, sharing), type_of(y))

    def backward(params, residuals, dy):
        check_copies("repeat", params, n)
        residuals, y_type = residuals
        dy = check_array("repeat", "dy", dy, *y_type)

        def step(dy, copy):
            params, residuals = copy
            grads, dx = layer.backward(params, residuals, dy)
            check_alike("dx to be like dy", dy, dx)
            return dx, grads

        with note_on_error("in repeat, backward"):
            dx, grads = jax.lax.scan(step, dy, (params, residuals), length=n, reverse=True)
        return grads, dx

    rebuild = functools.partial(repeat, n=n)
    return transformed(layer, rebuild, init=init, forward=forward, backward=backward)


def with_compute_dtype(layer: Layer, dtype: Any) -> Layer:
    """The layer with params, x and dy converted to dtype, and y, grads and dx converted back.

    Changes precision. Parameters and grads keep their own dtype, y and dx have x's dtype, and
    everything between, residuals too, has `dtype`. Statistics are not converted: BatchNorm's "mean"
    and "var". Around a whole model it converts only at the two ends. For an x of integers, y has
    `dtype`. Micikevicius et al., 2018.

    float16 has no numbers below 6e-8, so the derivatives of a mean over many examples become 0 in
    it. Scale the loss, Loss(loss.forward, lambda kept: 1000 * loss.backward(kept)), and divide the
    grads by 1000. bfloat16 has float32's range and needs no such scale.

    Raises:
        ValueError: dtype is not a floating dtype.
    """
    try:
        is_allowed = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        is_allowed = False
    if not is_allowed:
        raise ValueError(f"with_compute_dtype: expected a floating dtype, got {dtype!r}")

    def cast_params(params):
        # float16 may not hold a variance.
        return jax.tree.map_with_path(
            lambda path, leaf: leaf if is_statistic(path) else cast_floating(leaf, dtype), params
        )

    def forward(params, x, key=None):
        x = as_array("with_compute_dtype", "x", x)
        low_params, low_x = cast_params(params), cast_floating(x, dtype)
        y, residuals = layer.forward(low_params, low_x, key)
        return (y.astype(x.dtype) if is_floating(x) else y), (residuals, type_of(x))

    def backward(params, residuals, dy):
        residuals, x_type = residuals
        grads, dx = layer.backward(cast_params(params), residuals, cast_floating(dy, dtype))
        # In place of a grad may stand a tree, as those of fnn.kronecker_factors are.
        grads = jax.tree.map(
            lambda leaf, grad: cast_floating(grad, jnp.asarray(leaf).dtype), params, grads
        )
        return grads, dx.astype(x_type.dtype)

    rebuild = functools.partial(with_compute_dtype, dtype=dtype)
    return transformed(layer, rebuild, forward=forward, backward=backward)


def freeze(layer: Layer) -> Layer:
    """The layer with grads = 0.

    Changes grads; dx is as before. Under jit no time is spent on the grads that are replaced.
    Raises a ValueError if `layer` is not a Layer.

    A key goes on to the layer, so a frozen BatchNorm still normalizes by the batch in training.

    An optimizer may still move the parameters: by weight decay, and, if the layer was trained
    before, by the momentum in the optimizer's state. To freeze in the middle of a training, start
    with a fresh state, optimizer.init(params).
    """

    def backward(params, residuals, dy):
        grads, dx = layer.backward(params, residuals, dy)
        return jax.tree.map(jnp.zeros_like, grads), dx

    return transformed(layer, freeze, backward=backward)


def scale_gradient(layer: Layer, factor: float | jax.Array) -> Layer:
    """The layer with factor * dx in place of dx.

    The factor -1 reverses the gradient (Ganin and Lempitsky, 2015).

    Changes dx, and so the gradients of all layers before this one, but not its own grads. The dx
    of an x of integers stays 0.

    Raises:
        ValueError: factor is not a finite number (a traced one passes).
    """
    check_number("scale_gradient", "factor", factor)
    rebuild = functools.partial(scale_gradient, factor=factor)
    return _with_dx(layer, rebuild, lambda dx: dx * jnp.asarray(factor, dx.dtype))


def clip_gradient(
    layer: Layer, max_norm: float | jax.Array, *, axis: int | tuple[int, ...] | None = None
) -> Layer:
    """The layer with dx * min(1, max_norm / |dx|) in place of dx. |dx| is the norm over an example.

    Changes dx, and so the gradients of all layers before this one, but not its own grads. The dx
    of an x of integers stays 0.

    Args:
        axis: the axes of one example, over which the norm is taken. By default all axes but the
            first, which is the batch; if dx has only one axis, that one. For an example without a
            batch axis, as under jax.vmap, name its axes: (-3, -2, -1) for an image (height, width,
            channels).

    Raises:
        ValueError: max_norm is not a finite number above 0 (a traced one
            passes); axis is not an integer or a tuple of integers, or dx has no such axis.
    """
    check_positive("clip_gradient", "max_norm", max_norm)
    if axis is not None:
        for number in axis if isinstance(axis, tuple) else (axis,):
            check_integer("clip_gradient", "axis", number, -math.inf)

    def clip(dx):
        first = 1 if dx.ndim > 1 else 0
        own_axes = tuple(range(first, dx.ndim)) if axis is None else axis
        return dx * clipping_factor(norm(dx, own_axes), max_norm)

    rebuild = functools.partial(clip_gradient, max_norm=max_norm, axis=axis)
    return _with_dx(layer, rebuild, clip)


def as_jax_function(layer: Layer) -> Callable[..., jax.Array]:
    """f(params, x, key=None) -> y, which jax.grad differentiates by the layer's own backward.

    Changes only who calls backward. Thus code in Flax, Equinox or plain JAX can use a layer and its
    learning rule, under jit, vmap and scan too. jax.jvp has no rule for it. JAX refuses grads of
    another shape than params, such as those of per_example. Raises a ValueError if `layer` is not a
    Layer.

        >>> through = fnn.ReLU()._replace(backward=lambda params, residuals, dy: ((), dy))
        >>> straight_through = fnn.as_jax_function(through)
        >>> jax.grad(lambda x: jnp.sum(3 * straight_through((), x)))(jnp.array([0.5, -2.0]))
        Array([3., 3.], dtype=float32)
    """
    check_is_layer("as_jax_function", layer)

    @jax.custom_vjp
    def function(params, x, key):
        return layer.forward(params, x, key)[0]

    def forward(params, x, key):
        y, residuals = layer.forward(params, x, key)
        return y, (params, residuals)

    def backward(kept, dy):
        return *layer.backward(*kept, dy), None

    function.defvjp(forward, backward)
    return lambda params, x, key=None: function(params, as_array("as_jax_function", "x", x), key)


def _with_dx(layer, rebuild, change):
    """The layer with change(dx) in place of dx, computed in dx's accumulation dtype."""

    def backward(params, residuals, dy):
        grads, dx = layer.backward(params, residuals, dy)
        if not is_floating(dx):
            return grads, dx
        with note_on_error(f"in {rebuild.func.__name__}, backward"):
            return grads, change(upcast(dx)).astype(dx.dtype)

    return transformed(layer, rebuild, backward=backward)


def _compute_again(function, *args):
    """function(*args), computed anew: the compiler reuses no result of an earlier computation.

    XLA would see that the second forward pass is equal to the first, and keep the first one's
    results. A barrier around the arguments prevents it. But on a CPU, XLA drops barriers before it
    looks for equal operations. There a conditional prevents it, whose predicate XLA cannot know.
    """
    args = jax.lax.optimization_barrier(args)
    always = jax.lax.platform_dependent(
        cpu=lambda: jax.lax.optimization_barrier(jnp.array(True)),
        default=lambda: jnp.array(True),
    )

    def never(*args):
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *args))

    return jax.lax.cond(always, function, never, *args)
