"""Transforms: one layer -> one layer.

A layer is three functions, so a function of layers can change how gradients are computed, stored
or routed. Each of these says what it changes, and nests with the others and with the combinators.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.layer import (
    Layer,
    check_array,
    check_integer,
    check_layers,
    check_number,
    check_positive,
    clipping_factor,
    made_of,
    norm,
    note_on_error,
    shape_token,
    widen,
)


def remat(layer: Layer) -> Layer:
    """The layer with x as its only residual: backward runs forward again. Chen et al., 2016.

    Changes memory, at the cost of a second forward pass, which draws from the same key.

    Raises:
        ValueError: `layer` is not a Layer.
    """
    check_layers("remat", (layer,))

    def forward(params, x, key=None):
        y, _ = layer.forward(params, x, key)
        return y, (jnp.asarray(x), key)

    def forward_and_backward(params, x, key, dy):
        _, residuals = layer.forward(params, x, key)
        return layer.backward(params, residuals, dy)

    @jax.jit
    def again(*args):
        return _computed_again(forward_and_backward, *args)

    def backward(params, residuals, dy):
        return again(params, *residuals, dy)

    return made_of((layer,), "remat", remat, Layer(layer.init, forward, backward))


def repeat(layer: Layer, n: int) -> Layer:
    """y = f(... f(f(x))), n copies of the layer with parameters of their own, run by lax.scan.

    Changes neither values nor gradients of Sequential(layer, ..., layer), n times: copy i draws
    from fold_in(key, i). But the time to compile does not depend on n, and every leaf of params,
    grads and residuals has a first axis of length n, one entry a copy.

    Shapes: x what the layer takes, y the same.

    Raises:
        ValueError: `layer` is not a Layer; n is not a positive integer; y has another shape or
            dtype than x; a leaf of params does not have a first axis of length n.
    """
    check_layers("repeat", (layer,))
    n = check_integer("repeat", "n", n, 1)

    def init(key):
        return jax.vmap(lambda index: layer.init(jax.random.fold_in(key, index)))(jnp.arange(n))

    def check_copies(params):
        shapes = jax.tree.map(jnp.shape, params)
        if any(jnp.shape(leaf)[:1] != (n,) for leaf in jax.tree.leaves(params)):
            raise ValueError(f"repeat: expected params with a first axis of {n}, got {shapes}")

    def forward(params, x, key=None):
        check_copies(params)
        from_arrays = None

        def step(x, copy):
            nonlocal from_arrays
            index, params = copy
            layer_key = None if key is None else jax.random.fold_in(key, index)
            y, residuals = layer.forward(params, x, layer_key)
            if (y.shape, y.dtype) != (x.shape, x.dtype):
                raise ValueError(
                    f"repeat: expected y to be like x, {x.dtype} of shape {x.shape}, "
                    f"got {y.dtype} of shape {y.shape}"
                )
            arrays, from_arrays = _each_once(residuals)
            return y, arrays

        with note_on_error("in repeat, forward"):
            y, arrays = jax.lax.scan(step, jnp.asarray(x), (jnp.arange(n), params))
        return y, (from_arrays(arrays), shape_token(y))

    def backward(params, residuals, dy):
        check_copies(params)
        residuals, token = residuals
        dy = check_array("repeat", "dy", dy, token.shape[1:], token.dtype)

        def step(dy, copy):
            grads, dx = layer.backward(*copy, dy)
            return dx, grads

        with note_on_error("in repeat, backward"):
            dx, grads = jax.lax.scan(step, dy, (params, residuals), length=n, reverse=True)
        return grads, dx

    rebuild = functools.partial(repeat, n=n)
    return made_of((layer,), "repeat", rebuild, Layer(init, forward, backward))


def with_compute_dtype(layer: Layer, dtype: Any) -> Layer:
    """The layer with params, x and dy converted to dtype, and y, grads and dx converted back.

    Changes precision: parameters and grads keep their own dtype, y and dx have x's, and all
    between runs in `dtype`, in which the residuals are kept too. Around a whole model, nothing is
    converted between its layers. For an x of integers, y has `dtype`. Micikevicius et al., 2018.

    Raises:
        ValueError: `layer` is not a Layer; dtype is not a floating dtype.
    """
    check_layers("with_compute_dtype", (layer,))
    try:
        is_floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise ValueError(f"with_compute_dtype: expected a floating dtype, got {dtype!r}")

    def convert(tree):
        leaves, structure = jax.tree.flatten(tree)
        leaves = [
            leaf.astype(dtype) if _floating(leaf) else leaf for leaf in map(jnp.asarray, leaves)
        ]
        return jax.tree.unflatten(structure, leaves)

    def forward(params, x, key=None):
        x = jnp.asarray(x)
        y, residuals = layer.forward(convert(params), convert(x), key)
        return (y.astype(x.dtype) if _floating(x) else y), (residuals, shape_token(x))

    def backward(params, residuals, dy):
        residuals, token = residuals
        grads, dx = layer.backward(convert(params), residuals, convert(dy))
        grads = jax.tree.map(lambda grad, leaf: grad.astype(jnp.asarray(leaf).dtype), grads, params)
        return grads, dx.astype(token.dtype)

    rebuild = functools.partial(with_compute_dtype, dtype=dtype)
    whole = Layer(layer.init, forward, backward)
    return made_of((layer,), "with_compute_dtype", rebuild, whole)


def freeze(layer: Layer) -> Layer:
    """The layer with grads = 0.

    Changes grads, and under jit nothing is computed for them; dx flows as before. An optimizer
    with weight decay still decays the parameters.

    Raises:
        ValueError: `layer` is not a Layer.
    """
    check_layers("freeze", (layer,))

    def backward(params, residuals, dy):
        grads, dx = layer.backward(params, residuals, dy)
        return jax.tree.map(jnp.zeros_like, grads), dx

    return made_of((layer,), "freeze", freeze, layer._replace(backward=backward))


def scale_gradient(layer: Layer, factor: float | jax.Array) -> Layer:
    """The layer with factor * dx for dx; -1 reverses the gradient (Ganin and Lempitsky, 2015).

    Changes dx, and so the gradients of all that comes before the layer; not its own grads. The dx
    of integers, 0, stays as it is.

    Raises:
        ValueError: `layer` is not a Layer; factor is not a finite number (a traced one passes).
    """
    check_number("scale_gradient", "factor", factor)
    return _with_dx("scale_gradient", layer, lambda dx: dx * jnp.asarray(factor, dx.dtype))


def clip_gradient(
    layer: Layer, max_norm: float | jax.Array, *, axis: int | tuple[int, ...] | None = None
) -> Layer:
    """The layer with dx * min(1, max_norm / norm) for dx, norm being that of each example's dx.

    Changes dx, and so the gradients of all that comes before the layer; not its own grads. The dx
    of integers, 0, stays as it is.

    Args:
        axis: what the norm is taken over, one example. By default all axes but the first, the
            batch, or the only axis there is. For an example without a batch, as under jax.vmap,
            name its axes: (-3, -2, -1) for an image (height, width, channels).

    Raises:
        ValueError: `layer` is not a Layer; max_norm is not a finite number above 0 (a traced one
            passes); dx has no such axis.
    """
    check_positive("clip_gradient", "max_norm", max_norm)

    def clip(dx):
        own = tuple(range(dx.ndim > 1, dx.ndim)) if axis is None else axis
        return dx * clipping_factor(norm(dx, own), max_norm)

    return _with_dx("clip_gradient", layer, clip)


def per_example(layer: Layer) -> Layer:
    """The layer with a gradient for each example: vmap of forward and backward over x's first axis.

    Changes grads: every leaf gains a first axis, the batch, whose sum would be the layer's grads.
    They need the memory of as many params. Example i draws from fold_in(key, i). For the norms
    alone, see linear_squared_norms.

    Shapes: x (batch, ...), y (batch, ...), as the layer's; grads (batch, *shape) for params of
    that shape.

    Raises:
        ValueError: `layer` is not a Layer; x has no axis.
    """
    check_layers("per_example", (layer,))

    def forward(params, x, key=None):
        x = jnp.asarray(x)
        if x.ndim == 0:
            raise ValueError("per_example: expected x of shape (batch, ...), got ()")
        y, residuals = jax.vmap(forward_one, (None, 0, None), axis_name="example")(params, x, key)
        return y, (residuals, shape_token(y))

    def forward_one(params, x, key):
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index("example"))
        return layer.forward(params, x, key)

    def backward(params, residuals, dy):
        residuals, token = residuals
        dy = check_array("per_example", "dy", dy, token.shape[1:], token.dtype)
        return jax.vmap(layer.backward, (None, 0, 0))(params, residuals, dy)

    return made_of((layer,), "per_example", per_example, Layer(layer.init, forward, backward))


def as_jax_function(layer: Layer) -> Callable[..., jax.Array]:
    """f(params, x, key=None) -> y, which jax.grad differentiates by the layer's own backward.

    Changes nothing but who calls backward: it puts a layer, and its learning rule, into programs
    of Flax, Equinox or plain JAX. Under jit, vmap and scan too; jax.jvp has no rule for it, and
    JAX refuses grads of another shape than params, such as those of per_example.

    Raises:
        ValueError: `layer` is not a Layer.
    """
    check_layers("as_jax_function", (layer,))

    @jax.custom_vjp
    def function(params, x, key=None):
        return layer.forward(params, x, key)[0]

    def forward(params, x, key):
        y, residuals = layer.forward(params, x, key)
        return y, (params, residuals)

    def backward(kept, dy):
        return *layer.backward(*kept, dy), None

    function.defvjp(forward, backward)
    return function


def _floating(array):
    return jnp.issubdtype(array.dtype, jnp.floating)


def _with_dx(name, layer, change):
    """The layer with change(dx), computed in dx's accumulation dtype, for dx."""
    check_layers(name, (layer,))

    def backward(params, residuals, dy):
        grads, dx = layer.backward(params, residuals, dy)
        if not _floating(dx):
            return grads, dx
        with note_on_error(f"in {name}, backward"):
            return grads, change(widen(dx)).astype(dx.dtype)

    rebuild = functools.partial(_with_dx, name, change=change)
    return made_of((layer,), name, rebuild, layer._replace(backward=backward))


def _each_once(tree):
    """The arrays of a tree, each of them once, and the function that makes the tree of them."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = {id(leaf): leaf for leaf in leaves}
    places = [list(arrays).index(id(leaf)) for leaf in leaves]
    return list(arrays.values()), lambda arrays: structure.unflatten(arrays[i] for i in places)


def _computed_again(function, *args):
    """function(*args), which the compiler does not merge with what was computed before.

    It would find the forward pass to be the earlier one, and keep what that had computed. A
    barrier hides that; but for a CPU, XLA drops barriers before it looks for equal operations,
    and what it leaves alone there is a conditional whose predicate was behind a barrier.
    """
    args = jax.lax.optimization_barrier(args)
    always = jax.lax.platform_dependent(
        cpu=lambda: jax.lax.optimization_barrier(jnp.array(True)),
        default=lambda: jnp.array(True),
    )
    like = jax.eval_shape(function, *args)

    def never(*args):
        return jax.tree.map(jnp.zeros_like, like)

    return jax.lax.cond(always, function, never, *args)
