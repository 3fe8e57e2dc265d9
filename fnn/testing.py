"""Check a hand-written backward against finite differences, which share no code with it."""

from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fnn.layer import Layer
from fnn.losses import Loss

STEP = 1e-6  # of the finite differences, times the square root of an element beyond 1
TOLERANCE = 1e-6  # of a derivative, relative to the largest of the same leaf
MAX_PARTS = 1024  # into which a leaf is divided


def check_layer(layer: Layer, x: jax.Array, key: jax.Array) -> None:
    """Raise AssertionError where layer.backward disagrees with finite differences of forward.

    Parameters are drawn by layer.init and then moved a little, so that no scale of exactly 1 and
    no bias of exactly 0 hides an error. The cotangent dy is random. The layer is checked without
    a key and, where that changes y, with one. Everything runs in float64, whatever the caller's
    jax_enable_x64, which is left as it was.

    Every floating element of params and x is checked by itself; in a leaf of more than 1024
    elements, runs of neighbours are checked together, in a random direction. A derivative must
    lie between the two one-sided differences with a step of 1e-6: at a kink any subgradient
    passes, and an error is seen if it is beyond 1e-6 of the leaf's largest derivative and beyond
    the rounding of the differences, about 1e-9 of the sum of |dy y|. So keep x of order 1, off
    the kinks, and small: the check costs two forward passes an element.

    Args:
        x: an input (..., features).
        key: for the parameters, the cotangent and the layer's own randomness.

    Raises:
        AssertionError: a derivative is wrong (the message names its leaf, its place and the size
            of the disagreement); grads and dx differ from params and x in structure, shape or
            dtype; y is not float64, so that something in forward is less exact.
    """
    with jax.enable_x64(True):
        init_key, noise_key, dy_key, layer_key = jax.random.split(key, 4)
        params, x = _float64((layer.init(init_key), jnp.asarray(x)))
        leaves, structure = jax.tree.flatten(params)
        noise_keys = jax.random.split(noise_key, len(leaves))
        leaves = [
            leaf + 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype) if _floating(leaf) else leaf
            for leaf, key in zip(leaves, noise_keys, strict=True)
        ]
        params = jax.tree.unflatten(structure, leaves)
        inputs = {"grads": params, "dx": x}

        def check(run_key):
            def forward(inputs):
                return layer.forward(inputs["grads"], inputs["dx"], run_key)

            def backward(y, residuals):
                dy = jax.random.normal(dy_key, y.shape, y.dtype)
                grads, dx = layer.backward(params, residuals, dy)
                return dy, {"grads": grads, "dx": dx}

            return _compare("check_layer", forward, backward, inputs)

        y = check(None)
        if not jnp.array_equal(y, layer.forward(params, x, layer_key)[0]):
            check(layer_key)


def check_loss(loss: Loss, prediction: jax.Array, target: jax.Array) -> None:
    """Raise AssertionError where loss.backward disagrees with finite differences of forward.

    As check_layer, for the derivative by prediction.
    """
    with jax.enable_x64(True):
        prediction, target = _float64((jnp.asarray(prediction), jnp.asarray(target)))

        def forward(inputs):
            return loss.forward(inputs["d_prediction"], target)

        def backward(value, residuals):
            _check_alike("check_loss: expected value", jnp.zeros(()), value)
            return jnp.ones_like(value), {"d_prediction": loss.backward(residuals)}

        _compare("check_loss", forward, backward, {"d_prediction": prediction})


def _compare(name, forward, backward, inputs):
    """Assert that backward's derivatives are those of <dy, y>; returns y.

    forward(inputs) returns (y, residuals) and backward(y, residuals) returns (dy, derivatives).
    `inputs` and the derivatives are dictionaries, whose keys are the names that a message uses.
    """
    leaves = jax.tree.leaves_with_path(inputs)
    checked = [number for number, (_, leaf) in enumerate(leaves) if _floating(leaf)]
    begins = accumulate((leaves[number][1].size for number in checked), initial=0)
    parts = [
        (number, start, stop)
        for number, (begin, end) in zip(checked, pairwise(begins), strict=True)
        for start, stop in pairwise(_divide(begin, end))
    ]
    owner, starts, stops = jnp.array(parts, int).reshape(-1, 3).T

    @jax.jit
    def measure(inputs):
        """y; then, for each part, the slope of <dy, y> by backward, to the left and to the right
        along a direction in that part, and the rounding error of the latter two."""
        y, residuals = forward(inputs)
        _check_alike(f"{name}: expected y", y.astype(jnp.float64), y)
        dy, derivatives = backward(y, residuals)
        for what in derivatives:
            _check_alike(f"{name}: expected {what}", inputs[what], derivatives[what])
        all_leaves, structure = jax.tree.flatten(inputs)
        point, unravel = ravel_pytree([all_leaves[number] for number in checked])
        gradient, _ = ravel_pytree([jax.tree.leaves(derivatives)[number] for number in checked])
        weights = jax.random.uniform(jax.random.key(0), point.shape, minval=0.5, maxval=1.5)

        def output(point):
            moved = dict(zip(checked, unravel(point), strict=True))
            there = [moved.get(number, leaf) for number, leaf in enumerate(all_leaves)]
            return forward(jax.tree.unflatten(structure, there))[0]

        def slopes(part):
            start, stop = part
            index = jnp.arange(point.size)
            inside = (start <= index) & (index < stop)
            direction = jnp.where(inside, weights, 0)
            direction = direction / jnp.linalg.norm(direction)
            largest = jnp.max(jnp.where(inside, jnp.abs(point), 0), initial=1)
            step = STEP * jnp.sqrt(largest)
            left = jnp.vdot(dy, y - output(point - step * direction)) / step
            right = jnp.vdot(dy, output(point + step * direction) - y) / step
            rounding = 4 * jnp.finfo(y.dtype).eps * jnp.sum(jnp.abs(dy * y)) / step
            given = jnp.sum(jnp.where(inside, gradient * direction, 0))  # one NaN stays one
            return given, left, right, rounding

        return y, jax.lax.map(slopes, (starts, stops))

    y, (given, left, right, rounding) = measure(inputs)
    excess = jnp.maximum(jnp.minimum(left, right) - given, given - jnp.maximum(left, right))
    largest = jax.ops.segment_max(jnp.maximum(jnp.abs(left), jnp.abs(right)), owner)[owner]
    wrong = ~(excess <= TOLERANCE * largest + rounding)  # so that NaN is wrong
    if jnp.any(wrong):
        worst = jnp.argmax(jnp.where(wrong, jnp.nan_to_num(excess, nan=jnp.inf), -1))
        path, leaf = leaves[owner[worst]]
        same_leaf = owner == owner[worst]
        first = starts[worst] - starts[jnp.argmax(same_leaf)]
        others = stops[worst] - starts[worst] - 1
        raise AssertionError(
            f"{name}: {path[0].key}{jax.tree_util.keystr(path[1:])} disagrees with finite "
            f"differences at {[int(i) for i in jnp.unravel_index(first, leaf.shape)]}"
            f"{f' and the next {others}' if others else ''}: backward gives {given[worst]:.6g}, "
            f"differences give {(left + right)[worst] / 2:.6g}, off by {excess[worst]:.2g} where "
            f"the leaf's largest is {largest[worst]:.2g}; {jnp.sum(wrong & same_leaf)} of "
            f"{jnp.sum(same_leaf)} places disagree"
        )
    return y


def _divide(begin, end):
    """The bounds of the at most MAX_PARTS parts of the range from begin to end."""
    count = min(end - begin, MAX_PARTS)
    return [begin + (end - begin) * part // count for part in range(count + 1)] if count else []


def _check_alike(expectation, like, got):
    like, got = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (like, got)
    )
    if got != like:
        raise AssertionError(f"{expectation} to be {like}, got {got}")


def _floating(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _float64(tree):
    def convert(leaf):
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.float64) if _floating(leaf) else leaf

    return jax.tree.map(convert, tree)
