"""What passes through a model for given numbers, array by array: backpropagation to read along."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import as_array, is_floating
from fnn._numerics import norm, upcast
from fnn.inspection import check_has_values, map_layers
from fnn.layer import Layer, check_is_layer
from fnn.losses import Loss, check_is_loss
from fnn.training import loss_and_grads

WIDTH = 80  # of the printed table
NUMBER_WIDTH = 8  # "-0.02469"; more for "-2.469e-05"
MOST_ROWS = 4  # of an array whose numbers are printed
MOST_LETTERS = 28  # of the name of an array


class TracedLayer(NamedTuple):
    """What passed through one layer: y = forward(x), and (grads, dx) = backward(dy)."""

    place: str  # "0", or "2.Residual" for the layer in a Residual
    name: str  # "Linear(2, 3)"
    params: Any
    x: jax.Array
    y: jax.Array
    residuals: Any  # what forward kept for backward
    dy: jax.Array
    grads: Any
    dx: jax.Array

    def __repr__(self) -> str:
        return _table([self])


class TracedLoss(NamedTuple):
    """What passed through the loss. d_prediction is the dy of the last layer."""

    prediction: jax.Array
    target: jax.Array
    value: jax.Array
    d_prediction: jax.Array

    def __repr__(self) -> str:
        return _table([self])


class Trace(tuple):
    """A TracedLayer for each layer in the order of forward, then the TracedLoss.

    It prints as a table.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return _table(self)


def trace(
    model: Layer, loss: Loss, params: Any, x: jax.Array, target: jax.Array, key: Any = None
) -> Trace:
    """One forward and one backward pass, and all arrays that passed through each of the layers.

    `*layers, last = fnn.trace(...)` gives a TracedLayer for each layer, in the order of forward,
    and a TracedLoss. The arguments are those of loss_and_grads(model, loss), and the arrays are to
    the bit those that it computes when it is not compiled.

    The result prints as a table. For each array it shows the name, the shape, the norm (the root of
    the sum of squares; for integers the dtype) and, if they are few, the numbers. "= x" stands for
    residuals that are x itself. Forward runs down the table. Backward starts at the bottom, with
    d_prediction, and goes up layer by layer; within a layer, from dy down to grads and dx. In a
    Sequential, a layer's y is the next layer's x, and a layer's dx is the dy of the layer before.

    Places and names are those of observe. Combinators and transforms, except for Sequential, have
    an entry after those of the layers inside. The layers in a repeat, a per_example or a remat have
    none, because they run inside a scan, vmap or jit, where arrays have no values. But under
    `with jax.disable_jit():` the layers in a remat have one, and each copy in a repeat has one.

    Raises:
        ValueError: it is called under jit, vmap or another transformation of JAX; what
            loss_and_grads raises.

    In this network of three layers, each dx is the dy of the layer before:

        >>> model = fnn.Sequential(fnn.Linear(2, 2), fnn.ReLU(), fnn.Linear(2, 1))
        >>> loss = fnn.MSELoss("sum")
        >>> first = {"W": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([0.5, -0.5])}
        >>> params = first, (), {"W": jnp.array([[2.0, -1.0]]), "b": jnp.zeros(1)}
        >>> fnn.trace(model, loss, params, jnp.array([-3.0, 2.0]), jnp.array([2.0]))
                        shape     norm   numbers
        0 Linear(2, 2)
          x             (2,)     3.606        -3        2
          params['W']   (2, 2)   5.477         1        2
                                               3        4
          params['b']   (2,)    0.7071       0.5     -0.5
          y             (2,)     2.121       1.5     -1.5
          residuals     = x
          dy            (2,)         4         4        0
          grads['W']    (2, 2)   14.42       -12        8
                                               0        0
          grads['b']    (2,)         4         4        0
          dx            (2,)     8.944         4        8
        1 ReLU()
          x             (2,)     2.121       1.5     -1.5
          y             (2,)       1.5       1.5        0
          residuals     = y
          dy            (2,)     4.472         4       -2
          dx            (2,)         4         4        0
        2 Linear(2, 1)
          x             (2,)       1.5       1.5        0
          params['W']   (1, 2)   2.236         2       -1
          params['b']   (1,)         0         0
          y             (1,)         3         3
          residuals     = x
          dy            (1,)         2         2
          grads['W']    (1, 2)       3         3        0
          grads['b']    (1,)         2         2
          dx            (2,)     4.472         4       -2
        loss
          prediction    (1,)         3         3
          target        (1,)         2         2
          value         ()           1         1
          d_prediction  (1,)         2         2

    Follow one number upwards. d_prediction is 2 (3 - 2) = 2. Times the weight 2 of layer 2, that is
    4: its dx, and the dy of ReLU. The slope of ReLU is 1 where its x is positive, so the 4 passes
    on to layer 0. Times x[1] = 2 that is 8, the gradient of W[0, 1].

    The other unit has x = -1.5 at ReLU, where the slope is 0. Nothing passes, and its row of
    grads['W'] is 0. A unit whose x is negative for every example learns nothing: it is dead.
    """
    check_is_layer("trace", model)
    check_is_loss("trace", loss)
    places, last = [], []

    def traced(place, layer):
        started, ended = [], []  # a layer in a repeat is called several times
        places.append(ended)

        def forward(params, x, key=None):
            y, residuals = layer.forward(params, x, key)
            if _has_values((x, y)):
                started.append((params, x, y, residuals))
            return y, residuals

        def backward(params, residuals, dy):
            grads, dx = layer.backward(params, residuals, dy)
            if _has_values((dy, dx)) and started:
                ended.append(TracedLayer(place, layer.name, *started.pop(), dy, grads, dx))
            return grads, dx

        return layer._replace(forward=forward, backward=backward)

    def loss_forward(prediction, target):
        value, residuals = loss.forward(prediction, target)
        last.extend([prediction, target, value])
        return value, residuals

    def loss_backward(residuals):
        last.append(loss.backward(residuals))
        return last[-1]

    traced_model = map_layers(traced, model)
    x, target = as_array("trace", "x", x), as_array("trace", "target", target)
    loss_and_grads(traced_model, Loss(loss_forward, loss_backward))(params, x, target, key)
    check_has_values("trace", last)
    # backward comes to the copies in a repeat in reverse.
    layers = [entry for ended in places for entry in reversed(ended)]
    return Trace([*layers, TracedLoss(*last)])


def _has_values(tree):
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _table(entries):
    """The entries as text: a line for each, with a row for each of its arrays below it."""
    blocks = [
        ("loss", [*entry._asdict().items()])
        if isinstance(entry, TracedLoss)
        else (f"{entry.place} {entry.name}".strip(), _rows_of_layer(entry, entries))
        for entry in entries
    ]
    blocks = [(title, [_cells(*row) for row in rows]) for title, rows in blocks]
    head = ("", "shape", "norm", ["numbers".rjust(NUMBER_WIDTH)])
    rows = [head, *(row for _, rows in blocks for row in rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    line = "  {{:<{}}}  {{:<{}}}  {{:>{}}}  ".format(*widths)
    room = WIDTH - len(line.format("", "", ""))

    def lines(name, shape, norm, numbers):
        fits = all(len(text) <= room for text in numbers)
        first, *others = numbers if fits else [""]
        below = [line.format("", "", "") + text for text in others]
        return [line.format(name, shape, norm) + first, *below]

    table = lines(*head)
    for title, rows in blocks:
        table += [title, *(text for row in rows for text in lines(*row))]
    return "\n".join(text[:WIDTH].rstrip() for text in table)


def _rows_of_layer(entry, entries):
    """(name, array or text) of all that an entry shows.

    The params, residuals and grads of a combinator or transform are those of the layers in it. What
    the entries of these layers show is left out.
    """
    inside = ".".join(filter(None, [entry.place, entry.name])) + "."
    layers = [e for e in entries[:-1] if f"{e.place}.".startswith(inside)]
    shown = {id(leaf) for e in layers for leaf in jax.tree.leaves((e.params, e.residuals, e.grads))}

    def named(what):
        for path, leaf in jax.tree.leaves_with_path(getattr(entry, what)):
            if id(leaf) not in shown:
                same = [other for other in ("x", "y") if getattr(entry, other) is leaf]
                yield what + jax.tree_util.keystr(path), f"= {same[0]}" if same else leaf

    middle = [*named("params"), ("y", entry.y), *named("residuals"), ("dy", entry.dy)]
    return [("x", entry.x), *middle, *named("grads"), ("dx", entry.dx)]


def _cells(name, array):
    """A row of the table: name, shape, norm, and the lines of numbers."""
    if len(name) > MOST_LETTERS:
        name = "..." + name[3 - MOST_LETTERS :]
    if isinstance(array, str):
        return name, array, "", [""]
    array = jnp.asarray(array)
    size = f"{norm(array).item():.4g}" if is_floating(array) else str(array.dtype)
    return name, str(array.shape), size, _numbers(array)


def _numbers(array):
    """The rows of a matrix as lines, or the one line of a vector or number; [""] if too many."""
    if array.ndim > 2:
        array = array.squeeze()  # an image of one channel is a matrix
    rows = math.prod(array.shape[:-1])
    is_number = array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)
    if array.size == 0 or array.ndim > 2 or rows > MOST_ROWS or not is_number:
        return [""]
    # -0 + 0 is 0, which is easier to read.
    table = [
        [f"{number + 0:.4g}" for number in row] for row in upcast(array).reshape(rows, -1).tolist()
    ]
    width = max(NUMBER_WIDTH, *(len(number) for row in table for number in row))
    return [" ".join(number.rjust(width) for number in row) for row in table]
