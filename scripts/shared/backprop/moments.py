"""What a network looks like at one moment of its training: the numbers that a page shows.

The network is shown as columns of units: one for x, then one for the y of each layer. A unit has a
value and the derivative of the loss by that value. Both come from the layers' own forward and
backward.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from shared.host import jit_on_host

import fnn

MOST_UNITS = 25  # drawn of a column
DECISION_CELLS = 48  # along each side of the map of decisions


class Quantized(NamedTuple):
    """Rows of numbers as integers: number = part * |part| * scale.

    part is the integer divided by the largest of its type. So small numbers keep more digits than
    they would in equal steps: derivatives in one row often differ by powers of ten.

    The rows of a group, such as the units of a column, have one scale: the largest finite size in
    them. The smallest value of the integers' type stands for a number that is not finite.
    """

    integers: jax.Array  # (rows, n)
    scales: jax.Array  # (groups,)


class Moment(NamedTuple):
    """The numbers of one moment. U is the number of units drawn, column after column."""

    loss: jax.Array  # of all points together
    is_right: jax.Array  # (n,): whether the class with the smallest loss is a point's own
    values: Quantized  # (U, cells^2): over the plane
    derivatives: Quantized  # (U, classes * cells^2): of a point's own loss, if it has the class
    example_values: jax.Array  # (U, examples)
    example_derivatives: jax.Array  # (U, examples): of the example's own loss
    decisions: jax.Array  # (1, DECISION_CELLS^2): the class with the smallest loss
    weights: Quantized  # (V, MOST_UNITS + 1): see _rows. V is the number of their units.
    weight_grads: Quantized  # by the loss of all points together
    grads_norms: jax.Array  # (layers,), by the loss of all points together
    dx_norms: jax.Array  # (layers,)


class Passes(NamedTuple):
    """What passed through a network."""

    values: list[jax.Array]  # x, and the y of each layer
    residuals: list[Any]  # of each layer
    derivatives: list[jax.Array]  # of the loss, by each of the values
    grads: list[Any]  # of each layer


def flat_layers(model: fnn.Layer, params: Any, place: str = "") -> list[tuple[str, fnn.Layer, Any]]:
    """(place, layer, its params) for each layer. Those in a Sequential stand one by one."""
    if model.rebuild is not fnn.Sequential:
        return [(place or "0", model, params)]
    found = []
    for number, (layer, its_params) in enumerate(zip(model.layers, params, strict=True)):
        found += flat_layers(layer, its_params, f"{place}.{number}".removeprefix("."))
    return found


def both_passes(
    model: fnn.Layer, params: Any, x: jax.Array, loss_backward: Callable[[jax.Array], jax.Array]
) -> Passes:
    """Forward through all layers, and backward through them in reverse.

    loss_backward maps the prediction to the derivative of the loss by it.
    """
    layers = flat_layers(model, params)
    values, residuals = [x], []
    for _, layer, its_params in layers:
        y, kept = layer.forward(its_params, values[-1])
        values.append(y)
        residuals.append(kept)
    derivatives, grads = [loss_backward(values[-1])], []
    for (_, layer, its_params), kept in zip(reversed(layers), reversed(residuals), strict=True):
        its_grads, dx = layer.backward(its_params, kept, derivatives[-1])
        derivatives.append(dx)
        grads.append(its_grads)
    return Passes(values, residuals, derivatives[::-1], grads[::-1])


def make_recorder(
    model: fnn.Layer,
    loss: fnn.Loss,
    points: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    weighted: list[int],
    examples: jax.Array,
    cells: int,
    corners: tuple[tuple[float, float], tuple[float, float]],
) -> Callable[[Any], Moment]:
    """A compiled function params -> Moment.

    Args:
        points, labels: (n, 2) and (n,). The target of a point is targets[label].
        weighted: the numbers of the layers whose params have a W of shape (dim_out, dim_in).
        examples: the indices of the points whose numbers are kept.
        cells: along each side of a unit's map.
        corners: the lower left and the upper right one of the plane that is shown.
    """
    num_classes, num_cells = len(targets), cells * cells
    all_cells = num_classes * num_cells

    def loss_of_all(prediction):
        return loss.forward(prediction, targets[labels])

    def loss_of_one(prediction, target):
        return loss.forward(prediction[None], target[None])

    def decided(prediction):
        def losses(target):
            return jax.vmap(lambda one: loss_of_one(one, target)[0])(prediction)

        return jnp.argmin(jax.vmap(losses)(targets), axis=0)

    def backward_of_all(prediction):
        return loss.backward(loss_of_all(prediction)[1])

    def backward_of_each(prediction):
        def backward(prediction, target):
            return loss.backward(loss_of_one(prediction, target)[1])[0]

        of_plane = jnp.repeat(targets, num_cells, axis=0)
        target = jnp.concatenate([of_plane, targets[labels[examples]]])
        return jax.vmap(backward)(prediction, target)

    @jit_on_host
    def record(params):
        whole = both_passes(model, params, points, backward_of_all)
        plane = jnp.tile(_plane(corners, cells), (num_classes, 1))  # once for each class
        x = jnp.concatenate([plane.astype(points.dtype), points[examples]])
        probed = both_passes(model, params, x, backward_of_each)
        units = [min(array.shape[1], MOST_UNITS) for array in probed.values]
        values, derivatives = map(_units_first, (probed.values, probed.derivatives))
        fine_plane = _plane(corners, DECISION_CELLS).astype(points.dtype)
        predictions = whole.values[-1], fnn.predict(model, params, fine_plane)
        decisions = decided(jnp.concatenate(predictions))
        layers = flat_layers(model, params)
        weights = _rows([layers[number][2] for number in weighted])
        grads = _rows([whole.grads[number] for number in weighted])
        rows_of_layers = [units[number + 1] for number in weighted]
        return Moment(
            loss_of_all(whole.values[-1])[0],
            decisions[: len(points)] == labels.astype(int),
            quantized(values[:, :num_cells], units, jnp.int8),
            quantized(derivatives[:, :all_cells], units, jnp.int8),
            _four_digits(values[:, all_cells:]),
            _four_digits(derivatives[:, all_cells:]),
            decisions[None, len(points) :].astype(jnp.int16),
            quantized(weights, rows_of_layers, jnp.int16),
            quantized(grads, rows_of_layers, jnp.int8),
            _norms(whole.grads),
            _norms(whole.derivatives[:-1]),
        )

    return record


def quantized(rows: jax.Array, group_sizes: Sequence[int], dtype: Any) -> Quantized:
    """Rows (rows, n), of which the first so many are a group, then the next, as integers."""
    rows, limits = rows.astype(float), jnp.iinfo(dtype)
    is_finite = jnp.isfinite(rows)
    groups = jnp.array([n for n, size in enumerate(group_sizes) for _ in range(size)], int)
    sizes = jnp.max(jnp.abs(jnp.where(is_finite, rows, 0)), axis=1)
    scales = jax.ops.segment_max(sizes, groups, len(group_sizes))
    parts = rows / jnp.where(scales > 0, scales, 1)[groups, None]
    integers = jnp.round(jnp.sign(parts) * jnp.sqrt(jnp.abs(parts)) * limits.max)
    integers = jnp.where(is_finite, integers, limits.min).astype(dtype)
    return Quantized(integers, scales.astype(jnp.float32))


def _four_digits(numbers):
    """In float32 with 12 bits of the mantissa: the others are 0, which can be compressed."""
    return jax.lax.reduce_precision(numbers.astype(jnp.float32), exponent_bits=8, mantissa_bits=12)


def _plane(corners, cells):
    """The centres of cells^2 cells, row after row from below: (cells^2, 2)."""
    (left, bottom), (right, top) = corners
    steps = jnp.array([(cell + 0.5) / cells for cell in range(cells)])
    x, y = jnp.meshgrid(left + (right - left) * steps, bottom + (top - bottom) * steps)
    return jnp.stack([x.ravel(), y.ravel()], axis=-1)


def _units_first(columns):
    """The units that are drawn of arrays (n, units), column after column: (U, n)."""
    return jnp.concatenate([column[:, :MOST_UNITS] for column in columns], axis=1).T


def _rows(params_of_layers):
    """A row for each unit drawn: its row of W, filled up with zeros, and its b, or 0."""
    rows = [jnp.zeros((0, MOST_UNITS + 1))]
    for params in params_of_layers:
        W = params["W"][:MOST_UNITS, :MOST_UNITS].astype(float)
        b = params["b"][:MOST_UNITS].astype(float) if "b" in params else jnp.zeros(len(W))
        rows.append(jnp.pad(W, ((0, 0), (0, MOST_UNITS + 1 - W.shape[1]))).at[:, -1].set(b))
    return jnp.concatenate(rows)


def _norms(trees):
    """The root of the sum of squares of each tree.

    Each number is divided by the largest before it is squared. A gradient that vanishes to 1e-30 is
    still seen, though its square is 0 in float32.
    """
    rows = [[jnp.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)] for tree in trees]
    rows = [jnp.concatenate([jnp.zeros(1), *leaves]) for leaves in rows]
    # In one array, because many small ones take several times as long to compile.
    longest = max(map(len, rows))
    numbers = jnp.stack([jnp.pad(row, (0, longest - len(row))) for row in rows])
    largest = jnp.max(jnp.abs(numbers), axis=1, keepdims=True)
    unit = jnp.where(largest > 0, largest, 1)
    return unit[:, 0] * jnp.sqrt(jnp.sum((numbers / unit) ** 2, axis=1))
