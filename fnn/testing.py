"""Check a hand-written backward against finite differences, which share no code with it."""

import functools
from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fnn._checks import check_key, is_floating, note_on_error
from fnn._numerics import cast_floating
from fnn.layer import Layer, check_is_layer, is_statistic
from fnn.losses import Loss, check_is_loss

STEP = 1e-6  # the step of the differences; times sqrt(largest |x|) if that is above 1
TOLERANCE = 1e-6  # relative to the largest derivative of the same leaf
MAX_PARTS = 1024  # how many parts of a leaf are checked apart

# A check's programs run once each: to optimise them would take longer than it saves.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def check_layer(layer: Layer, x: jax.Array, key: jax.Array) -> None:
    """Raise AssertionError where layer.backward disagrees with finite differences of forward.

    Parameters are drawn by layer.init and then moved a little, so that no scale of exactly 1 and
    no bias of exactly 0 hides an error. The cotangent dy is random. The layer is checked without
    a key and, where that changes y, with one. Everything runs in float64, whatever the caller's
    jax_enable_x64, which is left as it was.

    Every floating element of params and x is checked by itself. In a leaf of more than 1024
    elements, neighbours are checked together, in a random direction.

    Grads of 0 pass for a leaf called "mean" or "var", which is a statistic that is not learned.

    A derivative must lie between the two one-sided differences with a step of 1e-6. So at a kink
    any subgradient passes. An error is seen if it is beyond 1e-6 of the leaf's largest derivative,
    and beyond the rounding of the differences, which is about 1e-9 of the sum of |dy y|. Keep x of
    order 1, off the kinks, and small: the check costs two forward passes for each element.

    Args:
        x: an input (..., features).
        key: for the parameters, the cotangent and the layer's own randomness.

    Raises:
        AssertionError: a derivative is wrong (the message names its leaf, its place and the size
            of the disagreement); grads and dx differ from params and x in structure, shape or
            dtype; y is not float64, so that something in forward is less exact; forward does not
            return (y, residuals), or backward not (grads, dx).
        ValueError: `layer` is not a Layer, or `key` not a key.
    """
    check_is_layer("check_layer", layer)
    check_key("check_layer", key)
    with jax.enable_x64(True):
        init_key, noise_key, layer_key = jax.random.split(key, 3)

        @_jit
        def prepare(x):
            params, x = cast_floating((layer.init(init_key), x), jnp.float64)
            leaves, structure = jax.tree.flatten(params)
            inputs = {"grads": params, "dx": x}  # named like the derivatives, as in messages
            y, _ = jax.eval_shape(functools.partial(forward, None), inputs)
            like = [*leaves, y]
            # One program draws all, because each that draws takes long to compile.
            ends = [*accumulate(leaf.size for leaf in like)]
            parts = jnp.split(jax.random.normal(noise_key, ends[-1:]), ends[:-1])
            *noise, dy = (part.reshape(leaf.shape) for part, leaf in zip(parts, like, strict=True))
            leaves = [
                leaf + 0.1 * part if is_floating(leaf) else leaf
                for leaf, part in zip(leaves, noise, strict=True)
            ]
            inputs = {"grads": jax.tree.unflatten(structure, leaves), "dx": x}
            y, y_with_key = (forward(run_key, inputs)[0] for run_key in (None, layer_key))
            return inputs, dy, jnp.any(y != y_with_key)

        def forward(run_key, inputs):
            with note_on_error("in check_layer, which called forward(params, x, key)"):
                result = layer.forward(inputs["grads"], inputs["dx"], run_key)
            y, residuals = _check_pair(
                "check_layer: expected forward to return (y, residuals)", result
            )
            if not hasattr(y, "dtype"):
                raise AssertionError(f"check_layer: expected y to be an array, got {_types(y)}")
            return y, residuals

        def backward(residuals, inputs, dy):
            with note_on_error("in check_layer, which called backward(params, residuals, dy)"):
                result = layer.backward(inputs["grads"], residuals, dy)
            expectation = "check_layer: expected backward to return (grads, dx)"
            return dict(zip(("grads", "dx"), _check_pair(expectation, result), strict=True))

        inputs, dy, is_random = prepare(jnp.asarray(x))
        _compare("check_layer", functools.partial(forward, None), backward, inputs, dy)
        if is_random:
            _compare("check_layer", functools.partial(forward, layer_key), backward, inputs, dy)


def check_loss(loss: Loss, prediction: jax.Array, target: jax.Array) -> None:
    """Raise AssertionError where loss.backward disagrees with finite differences of forward.

    As check_layer, for the derivative by prediction. A loss of the reduction "none" is to be
    checked with another, because its value is no scalar.

    Raises:
        AssertionError: as check_layer; forward does not return (value, residuals), or the value is
            no scalar.
        ValueError: `loss` is not a Loss.
    """
    check_is_loss("check_loss", loss)
    with jax.enable_x64(True):
        prediction, target = cast_floating((prediction, target), jnp.float64)

        def forward(inputs):
            result = loss.forward(inputs["d_prediction"], target)
            expectation = "check_loss: expected forward to return (value, residuals)"
            value, residuals = _check_pair(expectation, result)
            _check_alike("check_loss: expected value", jnp.zeros(()), value)
            return value, residuals

        def backward(residuals, inputs, dy):
            return {"d_prediction": loss.backward(residuals)}

        _compare("check_loss", forward, backward, {"d_prediction": prediction}, jnp.ones(()))


def _compare(name, forward, backward, inputs, dy):
    """Assert that backward's derivatives are those of <dy, y>.

    forward(inputs) returns (y, residuals), backward(residuals, inputs, dy) the derivatives.
    `inputs` and the derivatives are dictionaries, whose keys are the names that a message uses.
    """
    leaves = jax.tree.leaves_with_path(inputs)
    checked = [number for number, (_, leaf) in enumerate(leaves) if is_floating(leaf)]
    not_learned = [is_statistic(path) for path, _ in leaves]
    begins = accumulate((leaves[number][1].size for number in checked), initial=0)
    parts = [
        (number, start, stop)
        for number, (begin, end) in zip(checked, pairwise(begins), strict=True)
        for start, stop in pairwise(_divide(begin, end))
    ]

    @_jit
    def measure(inputs, dy):
        """For each part, about the slope of <dy, y> along a direction in that part: is it wrong, by
        how much, backward's slope, the differences' slope, and the leaf's largest slope."""
        owner, starts, stops = jnp.array(parts, int).reshape(-1, 3).T
        y, residuals = forward(inputs)
        _check_alike(f"{name}: expected y", y.astype(jnp.float64), y)
        derivatives = backward(residuals, inputs, dy)
        for what in derivatives:
            _check_alike(f"{name}: expected {what}", inputs[what], derivatives[what])
        all_leaves, structure = jax.tree.flatten(inputs)
        point, unravel = ravel_pytree([all_leaves[number] for number in checked])
        gradient, _ = ravel_pytree([jax.tree.leaves(derivatives)[number] for number in checked])
        weights = 1 + 0.5 * jnp.sin(jnp.arange(point.size))

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

            def slope(step):
                return jnp.vdot(dy, output(point + step * direction) - y) / step

            left, right = jax.lax.map(slope, jnp.array([-step, step]))
            rounding = 4 * jnp.finfo(y.dtype).eps * jnp.sum(jnp.abs(dy * y)) / step
            # Not vdot, in which a NaN of another part would become 0 * NaN.
            given = jnp.sum(jnp.where(inside, gradient * direction, 0))
            return given, left, right, rounding

        given, left, right, rounding = jax.lax.map(slopes, (starts, stops))
        excess = jnp.maximum(jnp.minimum(left, right) - given, given - jnp.maximum(left, right))
        steepest = jnp.maximum(jnp.abs(left), jnp.abs(right))
        largest = jax.ops.segment_max(steepest, owner, len(leaves))[owner]
        wrong = ~(excess <= TOLERANCE * largest + rounding)  # also where excess is NaN
        wrong = wrong & ~(jnp.array(not_learned)[owner] & (given == 0))
        return wrong, jnp.nan_to_num(excess, nan=jnp.inf), given, (left + right) / 2, largest

    results = jax.device_get(measure(inputs, dy))
    rows = [row for row in zip(parts, *(a.tolist() for a in results), strict=True) if row[1]]
    if not rows:
        return
    (number, start, stop), _, excess, given, difference, largest = max(rows, key=lambda row: row[2])
    path, leaf = leaves[number]
    places = [begin for owner, begin, _ in parts if owner == number]
    first = [int(i) for i in jnp.unravel_index(start - places[0], leaf.shape)]
    others = f" and the next {stop - start - 1}" if stop - start > 1 else ""
    num_wrong = sum(part[0] == number for part, *_ in rows)
    raise AssertionError(
        f"{name}: {path[0].key}{jax.tree_util.keystr(path[1:])} disagrees with finite differences "
        f"at {first}{others}: backward gives {given:.6g}, differences give {difference:.6g}, off "
        f"by {excess:.2g} where the leaf's largest is {largest:.2g}; {num_wrong} of {len(places)} "
        "places disagree"
    )


def _divide(begin, end):
    """The bounds of the at most MAX_PARTS parts of the range from begin to end."""
    count = min(end - begin, MAX_PARTS)
    return [begin + (end - begin) * part // count for part in range(count + 1)] if count else []


def _check_alike(expectation, like, got):
    like, got = _types(like), _types(got)
    if got != like:
        raise AssertionError(f"{expectation} to be {like}, got {got}")


def _check_pair(expectation, got):
    """Return `got`, which must be a tuple of two."""
    if not isinstance(got, tuple) or len(got) != 2:
        raise AssertionError(f"{expectation}, got {_types(got)}")
    return got


def _types(tree):
    """The tree with "float64[2, 3]" in place of an array, and with the type's name of others."""

    def name(leaf):
        is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
        return f"{leaf.dtype}{list(leaf.shape)}" if is_array else type(leaf).__name__

    return jax.tree.map(name, tree)
