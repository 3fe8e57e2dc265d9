"""What a model is made of, what passes through it, and where that first stops being finite."""

import functools
import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_integer, is_floating
from fnn._numerics import global_norm
from fnn.combinators import Sequential
from fnn.layer import Layer, check_is_layer
from fnn.losses import Loss, check_is_loss


def count_params(params: Any) -> int:
    """The number of elements of all the pytree's arrays together."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def summary(model: Layer, x_shape: tuple[int, ...], dtype: Any = jnp.float32) -> str:
    """A table of a model's layers, for training on x of this shape and dtype, with the totals.

    A row has the layer's place and name, the shape of its output, the number of its parameters, and
    the bytes of its residuals. An array that several layers keep is counted in the first of them,
    so the total is what a step holds between its two passes. The layers inside a combinator have
    rows of their own, and the combinator has one more, except for Sequential. A transform is one
    row. Nothing is computed: jax.eval_shape tells the shapes.

    Raises:
        ValueError: x_shape is no sequence of integers >= 0; what the layers raise for an x of this
            shape and dtype.
    """
    check_is_layer("summary", model)
    if not isinstance(x_shape, Sequence) or isinstance(x_shape, str | bytes):
        raise ValueError(f"summary: expected x_shape to be a sequence, got {x_shape!r}")
    x_shape = tuple(check_integer("summary", "each length in x_shape", n, 0) for n in x_shape)
    rows, seen = [], {}

    def counted(place, layer):
        def forward(params, x, key=None):
            start = len(rows)
            y, residuals = layer.forward(params, x, key)
            kept = {id(leaf): leaf for leaf in jax.tree.leaves(residuals) if id(leaf) not in seen}
            seen.update(kept)  # to keep the arrays alive, so that their ids stay unique
            num_bytes = sum(jnp.asarray(leaf).nbytes for leaf in kept.values())
            num_params = count_params(params) - sum(row[3] for row in rows[start:])
            label = layer.name if _is_combinator(layer) else _label(layer)
            rows.append((place, label, str(y.shape), num_params, num_bytes))
            return y, residuals

        return layer._replace(forward=forward)

    def run(key, x):
        opened = map_layers(counted, model, opened=_is_combinator)
        opened.forward(model.init(key), x, key)

    jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct(x_shape, dtype))
    total = ("", "total", "", sum(row[3] for row in rows), sum(row[4] for row in rows))
    head = ("", "layer", "output shape", "parameters", "residual bytes")
    table = [head, *((*row[:3], f"{row[3]:,}", f"{row[4]:,}") for row in (*rows, total))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [f"{{:<{width}}}" for width in widths[:3]]
    line = "  ".join([*left, *(f"{{:>{width}}}" for width in widths[3:])])
    return "\n".join(line.format(*row) for row in table)


def map_layers(
    change: Callable[[str, Layer], Layer],
    layer: Layer,
    place: str = "",
    *,
    opened: Callable[[Layer], bool] | None = None,
) -> Layer:
    """`layer` with every layer inside it replaced by change(place, inner).

    Combinators and transforms are opened: rebuilt from changed layers, and then changed themselves,
    except for Sequential. `opened` says which are opened; by default it is all of them. place is
    "2.0" for the first layer of the third, and "2.Residual" for the layer in a Residual there.
    """
    if not layer.layers or layer.rebuild is None or (opened and not opened(layer)):
        return change(place, layer)
    is_sequential = layer.rebuild is Sequential
    inside = [place] if is_sequential else [place, layer.name]
    numbers = [""]  # an only layer has no number, unless it is in a Sequential
    if is_sequential or len(layer.layers) > 1:
        numbers = map(str, range(len(layer.layers)))
    changed = layer.rebuild(
        *(
            map_layers(change, inner, ".".join(filter(None, [*inside, number])), opened=opened)
            for number, inner in zip(numbers, layer.layers, strict=True)
        )
    )
    return changed if is_sequential else change(place, changed)


def opens(names: Container[str]) -> Callable[[Layer], bool]:
    """A function for map_layers: whether a layer can be opened and has one of fnn's `names`."""
    return lambda layer: bool(layer.layers and layer.rebuild and layer.name in names)


def _is_combinator(layer):
    """Whether its name begins with a capital letter, as every constructor's and no transform's."""
    return layer.name[:1].isupper()


def _label(layer):
    """A layer's name in a table: "Linear(2, 3)", "remat(Linear(2, 3))"."""
    if len(layer.layers) == 1:
        return f"{layer.name}({_label(layer.layers[0])})"
    return layer.name


def observe(layer: Layer, callback: Callable[[str, str, dict[str, jax.Array]], None]) -> Layer:
    """The layer, calling callback(place, direction, statistics) for all that passes through it.

    Changes only what you see. Every layer reports, and so do the combinators and transforms around
    it, except for Sequential. Under jit, jax.debug.callback calls back while the program runs, and
    reports of one program may come in another order. Inside a scan or vmap a layer reports once for
    each turn or example; inside remat it reports once more in backward.

    place is "2.0 Linear(25, 2)" for the first layer of the third, and "2.Residual Linear(25, 25)"
    for the layer in a Residual there, which is itself "2 Residual".

    direction is "parameters" for params and "forward" for y, and on the way back "grads" for grads
    and "backward" for dx. statistics has two entries of shape (), over all arrays together: "norm",
    the root of the sum of squares, and "nonfinite", the number of NaNs and infinities. What has no
    floating elements is not reported.

    Raises:
        ValueError: `layer` is not a Layer; callback cannot be called.

    This prints the norms of all that passes forward and back:

        >>> model, loss = fnn.Sequential(fnn.Linear(2, 2), fnn.Tanh()), fnn.MSELoss()
        >>> def show(place, direction, statistics):
        ...     print(f"{place:<14} {direction:<10} {statistics['norm']:.1f}")
        >>> evaluate = fnn.loss_and_grads(fnn.observe(model, show), loss)
        >>> _ = evaluate(model.init(jax.random.key(0)), jnp.ones((4, 2)), jnp.ones((4, 2)))
        0 Linear(2, 2) parameters 1.4
        0 Linear(2, 2) forward    3.8
        1 Tanh()       forward    2.3
        1 Tanh()       backward   0.5
        0 Linear(2, 2) grads      1.6
        0 Linear(2, 2) backward   0.3
    """
    check_is_layer("observe", layer)
    if not callable(callback):
        raise ValueError(f"observe: expected callback to be a function, got {callback!r}")

    def observed(place, layer):
        report = functools.partial(_report, callback, f"{place} {layer.name}".strip())

        def forward(params, x, key=None):
            if not layer.layers:  # the parameters are its own
                report("parameters", params)
            y, residuals = layer.forward(params, x, key)
            report("forward", y)
            return y, residuals

        def backward(params, residuals, dy):
            grads, dx = layer.backward(params, residuals, dy)
            report("grads", grads)
            report("backward", dx)
            return grads, dx

        def rebuild(*layers):
            return observed(place, layer.rebuild(*layers))

        inside = {**vars(layer), "rebuild": layer.rebuild and rebuild}
        return Layer(layer.init, forward, backward, **inside)

    return map_layers(observed, layer)


def find_nonfinite(
    model: Layer, loss: Loss, params: Any, x: jax.Array, target: jax.Array, key: Any = None
) -> tuple[str, str] | None:
    """(place, direction) of the first NaN or infinity in one forward and backward pass, or None.

    Places and directions are those of observe, in the order in which a training step meets them.
    Before and between the layers they are ("x", "forward"), ("target", "forward"),
    ("loss", "forward") for the loss's value, and ("loss", "backward") for the derivative by the
    prediction. The arguments are those of loss_and_grads(model, loss). The passes are not compiled:
    one operation runs after the other, and so do the copies in a repeat.

    Raises:
        ValueError: it is called under jit, vmap or another transformation of JAX; `model` is not a
            Layer, or `loss` not a Loss.

    These parameters have grown so large that the last layer's y overflows:

        >>> model = fnn.Sequential(fnn.Linear(2, 3), fnn.ReLU(), fnn.Linear(3, 2))
        >>> params = jax.tree.map(lambda leaf: 1e20 * leaf, model.init(jax.random.key(0)))
        >>> fnn.find_nonfinite(model, fnn.MSELoss(), params, jnp.ones((4, 2)), jnp.ones((4, 2)))
        ('2 Linear(3, 2)', 'forward')
    """
    check_is_layer("find_nonfinite", model)
    check_is_loss("find_nonfinite", loss)
    check_has_values("find_nonfinite", (params, x, target, key))
    found = []

    def callback(place, direction, statistics):
        if statistics["nonfinite"]:
            found.append((place, direction))

    report = functools.partial(_report, callback)
    observed = observe(model, callback)
    with jax.disable_jit(), jax.debug_nans(False), jax.debug_infs(False):
        report("x", "forward", x)
        report("target", "forward", target)
        prediction, residuals = observed.forward(params, x, key)
        value, loss_residuals = loss.forward(prediction, target)
        report("loss", "forward", value)
        d_prediction = loss.backward(loss_residuals)
        report("loss", "backward", d_prediction)
        observed.backward(params, residuals, d_prediction)
    return found[0] if found else None


def check_has_values(name: str, tree: Any) -> None:
    """Raise ValueError if an array of the tree is traced, as under jit or vmap."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"{name}: expected arrays with values, got ones that are traced")


def _report(callback, place, direction, tree):
    leaves = [leaf for leaf in map(jnp.asarray, jax.tree.leaves(tree)) if is_floating(leaf)]
    if leaves:
        with jax.disable_jit(False):  # compiled also where find_nonfinite disables it
            statistics = _statistics(leaves)
        jax.debug.callback(functools.partial(callback, place, direction), statistics)


@jax.jit
def _statistics(leaves):
    nonfinite = sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in leaves)
    return {"norm": global_norm(leaves), "nonfinite": nonfinite}
