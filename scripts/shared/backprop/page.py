"""A page that plays a training back, and shows the backward pass as well as the forward one."""

import base64
import html
import json
import math
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from shared.backprop.moments import (
    DECISION_CELLS,
    MOST_UNITS,
    Quantized,
    both_passes,
    flat_layers,
    make_recorder,
)
from shared.backprop.sources import formula_and_code

import fnn
from fnn.training import check_value

MOST_MOMENTS, MOST_KEPT = 64, 2 * 10**7  # MOST_KEPT: numbers in the params of all epochs to keep
MOST_CELLS, FEWEST_CELLS = 16, 4  # along each side of a unit's map
MOST_EXAMPLES, MOST_POINTS = 16, 400
MOST_BYTES = 2_700_000  # of all numbers; compressed, and written as text, they take less
MOST_LETTERS = 3_000_000  # of a page
PACKED = [
    "values", "derivatives", "example_values", "example_derivatives", "decisions", "weights",
    "weight_grads",
]  # fmt: skip
SCRIPTS = ["numbers.js", "network.js", "plots.js", "panels.js", "page.js"]


def epochs_to_keep(num_epochs: int, num_params: int) -> list[int]:
    """The epochs whose params make a page: about sixty from 0 to num_epochs, denser at the start.

    They are fewer for a network so large that its params would fill the memory.
    """
    return _spread(num_epochs, max(2, min(MOST_MOMENTS, MOST_KEPT // max(num_params, 1))))


def page(
    model: fnn.Layer,
    params_by_epoch: Mapping[int, Any],
    points: jax.Array,
    labels: jax.Array,
    *,
    loss: fnn.Loss | None = None,
    targets: jax.Array | None = None,
    class_names: Sequence[str] | None = None,
    corners: tuple[tuple[float, float], tuple[float, float]] = ((0, 0), (1, 1)),
    title: str = "A training, played back",
) -> str:
    """The HTML of a page that shows both passes during a training. It needs no other file.

    Every unit is a small map over the plane of x: of its value, and of the derivative of the loss
    by its value. Beside them are weights and their gradients, the decisions, the loss, the numbers
    of single points, and each layer's formula, code, residuals and norms of gradients.

    Args:
        model: maps 2 features to those that the loss takes, such as a Sequential of Linear and
            activations, each of which is a column of the page. Of a column of more than 25 units
            the first 25 are drawn. A "W" (dim_out, dim_in) in a layer's params is drawn as lines.
            The model runs without a key.
        params_by_epoch: the params after each of some epochs; see epochs_to_keep. If there are more
            than the page has room for, it shows some of them.
        points: (n, 2), what the model is trained on.
        labels: (n,) integers from 0.
        loss: that of the training, with a value of shape (); by default fnn.MSELoss().
        targets: (classes, ...), the target of each class; by default one-hot vectors that are as
            long as a prediction.
        class_names: by default "class 0" and so on.
        corners: the lower left and the upper right one of the plane that is shown.

    Raises:
        ValueError: points, labels, class_names or corners do not fit together; there are no params
            or no layers; a layer's y is not (..., features); what the model and the loss raise.

    In a program of your own, run with PYTHONPATH=scripts:

        from shared.backprop.page import page

        params_by_epoch = {0: state.params}
        for number in range(1, 51):
            state, losses = epoch(state, points, targets, jax.random.key(number))
            params_by_epoch[number] = state.params
        pathlib.Path("mine.html").write_text(page(model, params_by_epoch, points, labels))
    """
    points, labels = jax.device_get((jnp.asarray(points), jnp.asarray(labels)))
    corners = [[*map(float, corner)] for corner in corners]
    loss = fnn.MSELoss() if loss is None else loss
    _check_points(points, labels, corners)
    if not params_by_epoch:
        raise ValueError("page: expected the params of an epoch, got none")
    epochs = sorted(params_by_epoch)
    first_params = params_by_epoch[epochs[0]]
    if targets is None:
        prediction = jax.eval_shape(lambda *inputs: model.forward(*inputs)[0], first_params, points)
        classes = range(prediction.shape[-1])
        targets = jnp.array([[a == b for b in classes] for a in classes], points.dtype)
    targets = jax.device_get(jnp.asarray(targets))
    names = [f"class {number}" for number in range(len(targets))]
    names = names if class_names is None else [str(name) for name in class_names]
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(targets) == len(names):
        raise ValueError(
            f"page: expected labels below the number of targets, and as many class names, got "
            f"labels {labels.min()} to {labels.max()}, {len(targets)} targets, {len(names)} names"
        )
    columns = _columns(model, loss, first_params, points, targets[labels])
    if len(columns) == 1:
        raise ValueError(f"page: expected a model with a layer, got {model}")
    shown = [column["shown"] for column in columns]
    weighted = [number for number, column in enumerate(columns[1:]) if column["weights"]]
    num_weights = sum(shown[number] * shown[number + 1] for number in weighted)
    num_moments, num_examples, cells = _sizes(sum(shown), num_weights, len(targets), len(epochs))
    if num_moments < len(epochs):
        epochs = [epochs[index] for index in _spread(len(epochs) - 1, num_moments)]
    examples = _choose_examples(labels[:MOST_POINTS].tolist(), num_examples)
    chosen = jax.device_get(jnp.array(examples))
    facts = {
        "epochs": epochs,
        "columns": columns,
        "corners": corners,
        "classes": names,
        "points": [[*map(_number, point)] for point in points[:MOST_POINTS].tolist()],
        "numPoints": len(points),
        "labels": labels[:MOST_POINTS].tolist(),
        "examples": examples,
        "decisionCells": DECISION_CELLS,
    }
    while True:
        record = make_recorder(
            model, loss, points, labels, targets, weighted, chosen, cells, corners
        )
        moments = [jax.device_get(record(params_by_epoch[epoch])) for epoch in epochs]
        text = _html(title, facts | {"cells": cells} | _numbers(moments))
        if len(text) <= MOST_LETTERS or cells == FEWEST_CELLS:
            return text
        # The numbers of this training were compressed less than those of most.
        cells = max(FEWEST_CELLS, math.floor(cells * math.sqrt(0.98 * MOST_LETTERS / len(text))))


def _numbers(moments):
    """What is shown of the moments, as JSON."""
    is_right = [moment.is_right.tolist() for moment in moments]
    return {
        "losses": [_number(moment.loss) for moment in moments],
        "accuracies": [_number(sum(each) / len(each)) for each in is_right],
        "wrong": [[n for n, yes in enumerate(each[:MOST_POINTS]) if not yes] for each in is_right],
        "dxNorms": [[*map(_number, moment.dx_norms)] for moment in moments],
        "gradsNorms": [[*map(_number, moment.grads_norms)] for moment in moments],
        "numbers": {
            field: _packed([getattr(moment, field) for moment in moments]) for field in PACKED
        },
    }


def _html(title, numbers):
    folder = pathlib.Path(__file__).parent
    data = json.dumps(numbers, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": html.escape(title),
        "style": (folder / "page.css").read_text("utf-8"),
        "numbers": data.replace("<", "\\u003c"),
        "script": "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS),
    }
    template = (folder / "page.html").read_text("utf-8")
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], template)


def _check_points(points, labels, corners):
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"page: expected points of shape (n, 2), got {points.shape}")
    if labels.shape != points.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        found = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(f"page: expected an integer label for each point, got {found}")
    (left, bottom), (right, top) = corners
    if not (left < right and bottom < top):
        raise ValueError(f"page: expected a lower left and an upper right corner, got {corners}")


def _spread(last, most):
    """At most `most` integers from 0 to `last`, denser at the start."""
    return sorted({round(last * (index / (most - 1)) ** 1.7) for index in range(most)})


def _sizes(num_units, num_weights, num_classes, num_moments):
    """How many moments, examples, and cells along each side of a map there is room for."""
    maps = num_units * (1 + num_classes)  # a byte for each cell
    pairs = 8 * num_units  # bytes for each example: a value and a derivative
    smallest = maps * FEWEST_CELLS**2 + pairs + 3 * num_weights
    num_moments = min(num_moments, MOST_MOMENTS, max(2, MOST_BYTES // smallest))
    num_examples = min(max(MOST_BYTES // 5 // (pairs * num_moments), 1), MOST_EXAMPLES)
    room = MOST_BYTES // num_moments - pairs * num_examples - 3 * num_weights
    cells = math.isqrt(max(room, 0) // maps)
    return num_moments, num_examples, min(max(cells, FEWEST_CELLS), MOST_CELLS)


def _choose_examples(labels, count):
    """The numbers of the first points of each class, `count` in all if there are as many."""
    by_class = {label: [n for n, other in enumerate(labels) if other == label] for label in labels}
    in_turns = sorted((turn, n) for found in by_class.values() for turn, n in enumerate(found))
    return sorted(n for _, n in in_turns[:count])


def _columns(model, loss, params, points, target):
    """What is said of x and of each layer: its name, units, formula, code and residuals."""
    columns = [{"name": "x", "place": "", "width": 2, "shown": 2}]

    def loss_backward(prediction):
        value, residuals = loss.forward(prediction, target)
        check_value("page", value)
        return loss.backward(residuals)

    def run(params, points):
        passes = both_passes(model, params, points, loss_backward)
        layers = flat_layers(model, params)
        for number, (place, layer, its_params) in enumerate(layers):
            x, y = passes.values[number : number + 2]
            if y.ndim != 2:
                raise ValueError(
                    f"page: expected y of shape (..., features) from layer {place}, {layer.name}, "
                    f"got {y.shape} for x {x.shape}"
                )
            formula, code = formula_and_code(layer)
            kept = jax.tree.leaves(passes.residuals[number])
            columns.append({
                "name": layer.name, "place": place,
                "width": y.shape[1], "shown": min(y.shape[1], MOST_UNITS),
                "weights": _has_weights(its_params, y.shape[1], x.shape[1]),
                # _replace forgets the kind: another forward or backward need not be Linear's.
                "isLinear": layer.settings.get("kind") == "Linear",
                "hasBias": isinstance(its_params, dict) and "b" in its_params,
                "formula": formula, "code": code,
                "keeps": [_kept(array, x, y) for array in kept],
            })  # fmt: skip

    jax.eval_shape(run, params, points)
    return columns


def _has_weights(params, dim_out, dim_in):
    """Whether params have a W (dim_out, dim_in), and a b (dim_out,) if they have one."""
    if not isinstance(params, dict):
        return False
    shapes = {name: getattr(array, "shape", None) for name, array in params.items()}
    return shapes.get("W") == (dim_out, dim_in) and shapes.get("b", (dim_out,)) == (dim_out,)


def _kept(array, x, y):
    """The name of an array of the residuals, its shape, and its bytes."""
    name = "x" if array is x else "y" if array is y else str(array.dtype)
    return [name, [*array.shape], array.size * array.dtype.itemsize]


def _packed(arrays):
    """Arrays, or Quantized ones, of which there is one for each moment, as JSON.

    The numbers are compressed by zlib and written in base64.
    """
    if isinstance(arrays[0], Quantized):
        integers, scales = zip(*arrays, strict=True)
        return _packed(integers) | {"scales": _packed(scales)}
    data = b"".join(array.tobytes() for array in arrays)
    text = base64.b64encode(zlib.compress(data)).decode()
    return {"type": str(arrays[0].dtype), "shape": [len(arrays), *arrays[0].shape], "data": text}


def _number(value):
    """A number with five digits, or None if it is not finite, which JSON cannot say."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None
