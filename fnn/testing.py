"""Check a hand-written backward against finite differences, which share no code with it."""

from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fnn.layer import Layer
from fnn.losses import Loss

STEP = 1e-6  # of the finite differences, relative to max(1, |element|)
TOLERANCE = 1e-6  # of a derivative, relative to the largest of the same leaf
MAX_PARTS = 1024  # into which a leaf is divided


def check_layer(layer: Layer, x: jax.Array, key: jax.Array) -> None:
    """Raise AssertionError where layer.backward disagrees with finite differences of forward.

    Parameters are drawn by layer.init and then moved a little, so that no scale of exactly 1 and
    no bias of exactly 0 hides an error. The cotangent dy is random. The layer is checked without
    a key and, where that changes y, with one. Everything runs in float64, whatever the caller's
    jax_enable_x64, which is left as it was.

    Every element of params and x is checked by itself; in a leaf of more than 1024 elements, runs
    of neighbours are checked together, in a random direction. A derivative must lie between the
    two one-sided differences: at a kink any subgradient passes, so choose x off the kinks.

    Args:
        x: an input (..., features). The check costs two forward passes an element: keep it small.
        key: for the parameters, the cotangent and the layer's own randomness.

    Raises:
        AssertionError: a derivative is wrong (the message names its leaf, its place and the size
            of the disagreement), or grads and dx differ from params and x in structure, shape or
            dtype.
    """
    with jax.enable_x64(True):
        init_key, noise_key, dy_key, layer_key = jax.random.split(key, 4)
        params, unravel = ravel_pytree(_float64(layer.init(init_key)))
        params = unravel(params + 0.1 * jax.random.normal(noise_key, params.shape, params.dtype))
        inputs = {"grads": params, "dx": _float64(x)}

        def check(run_key):
            def forward(inputs):
                return layer.forward(inputs["grads"], inputs["dx"], run_key)

            def backward(y, residuals):
                dy = jax.random.normal(dy_key, y.shape, y.dtype)
                grads, dx = layer.backward(params, residuals, dy)
                return dy, {"grads": grads, "dx": dx}

            return _compare("check_layer", forward, backward, inputs)

        y = check(None)
        if not jnp.array_equal(y, layer.forward(params, inputs["dx"], layer_key)[0]):
            check(layer_key)


def check_loss(loss: Loss, prediction: jax.Array, target: jax.Array) -> None:
    """Raise AssertionError where loss.backward disagrees with finite differences of forward.

    As check_layer, for the derivative by prediction.
    """
    with jax.enable_x64(True):
        target = _float64(target)

        def forward(inputs):
            return loss.forward(inputs["d_prediction"], target)

        def backward(value, residuals):
            _check_alike("check_loss: expected value", value, jnp.zeros(()))
            return jnp.ones_like(value), {"d_prediction": loss.backward(residuals)}

        _compare("check_loss", forward, backward, {"d_prediction": _float64(prediction)})


def _compare(name, forward, backward, inputs):
    """Assert that backward's derivatives are those of <dy, y>; returns y.

    forward(inputs) returns (y, residuals) and backward(y, residuals) returns (dy, derivatives).
    `inputs` and the derivatives are dictionaries, whose keys are the names that a message uses.
    """
    leaves = jax.tree.leaves_with_path(inputs)
    begins = accumulate((leaf.size for _, leaf in leaves), initial=0)
    parts = [
        (owner, start, stop)
        for owner, (begin, end) in enumerate(pairwise(begins))
        for start, stop in pairwise(_divide(begin, end))
    ]
    owner, start, stop = jnp.array(parts, int).reshape(-1, 3).T

    @jax.jit
    def measure(inputs):
        """y; then, for each part, the slope of <dy, y> by backward, to the left and to the right
        along a direction in that part; and the rounding error of the latter two."""
        y, residuals = forward(inputs)
        dy, derivatives = backward(y, residuals)
        for what in derivatives:
            _check_alike(f"{name}: expected {what}", derivatives[what], inputs[what])
        point, unravel = ravel_pytree(inputs)
        gradient, _ = ravel_pytree(derivatives)
        weights = jax.random.uniform(jax.random.key(0), point.shape, minval=0.5, maxval=1.5)

        def slopes(part):
            index = jnp.arange(point.size)
            inside = (part[0] <= index) & (index < part[1])
            direction = jnp.where(inside, weights, 0)
            direction = direction / jnp.linalg.norm(direction)
            step = STEP * jnp.maximum(1, jnp.max(jnp.where(inside, jnp.abs(point), 0)))
            y_left, _ = forward(unravel(point - step * direction))
            y_right, _ = forward(unravel(point + step * direction))
            left, right = jnp.vdot(dy, y - y_left) / step, jnp.vdot(dy, y_right - y) / step
            return jnp.vdot(gradient, direction), left, right

        noise = 4 * jnp.finfo(y.dtype).eps * jnp.sum(jnp.abs(dy * y)) / STEP
        return y, jax.lax.map(slopes, (start, stop)), noise

    y, (given, left, right), noise = measure(inputs)
    excess = jnp.maximum(jnp.minimum(left, right) - given, given - jnp.maximum(left, right))
    largest = jax.ops.segment_max(jnp.maximum(jnp.abs(left), jnp.abs(right)), owner)[owner]
    wrong = ~(excess <= TOLERANCE * largest + noise)  # so that NaN is wrong
    if jnp.any(wrong):
        worst = jnp.argmax(jnp.where(wrong, jnp.nan_to_num(excess, nan=jnp.inf), -1))
        path, leaf = leaves[owner[worst]]
        same_leaf = owner == owner[worst]
        first = start[worst] - start[jnp.argmax(same_leaf)]
        others = stop[worst] - start[worst] - 1
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


def _check_alike(expectation, got, like):
    got, like = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (got, like)
    )
    if got != like:
        raise AssertionError(f"{expectation} to be {like}, got {got}")


def _float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
