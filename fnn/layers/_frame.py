"""What primitive layers share: with_params and without_params build a Layer and check params."""

from collections.abc import Callable
from typing import Any

import jax

from fnn._checks import check_key, check_tree
from fnn.layer import Layer


def with_params(
    name: str,
    specs: dict[str, tuple[tuple[int, ...], Callable[..., jax.Array]]],
    dtype: Any,
    forward: Callable[..., tuple[jax.Array, Any]],
    backward: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]],
    **facts: Any,
) -> Layer:
    """Build a layer with parameters. Its init draws them, and its forward and backward check them.

    Args:
        name: the layer's name, also in errors.
        specs: for each parameter its shape and its initializer (key, shape, dtype) -> array.
            Parameter number i is drawn with fold_in(key, i).
        dtype: the dtype of the parameters.
        forward, backward: as in fnn.layer. The grads of backward may be wider than the parameters:
            they are rounded here.
        facts: uses_key, couples_examples and settings, as in Layer. settings["kind"] is added: the
            name without its arguments.
    """
    facts["settings"] = {"kind": name.partition("(")[0]} | facts.get("settings", {})
    like = {entry: jax.ShapeDtypeStruct(shape, dtype) for entry, (shape, _) in specs.items()}

    def init(key):
        check_key(name, key)
        return {
            entry: initializer(jax.random.fold_in(key, index), shape, dtype)
            for index, (entry, (shape, initializer)) in enumerate(specs.items())
        }

    def checked_forward(params, x, key=None):
        check_tree(name, "params", params, like)
        return forward(params, x, key)

    def checked_backward(params, residuals, dy):
        check_tree(name, "params", params, like)
        grads, dx = backward(params, residuals, dy)
        return {entry: grads[entry].astype(params[entry].dtype) for entry in params}, dx

    return Layer(init, checked_forward, checked_backward, name=name, **facts)


def without_params(
    name: str,
    forward: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    backward: Callable[[Any, jax.Array], jax.Array],
    uses_key: bool = False,
) -> Layer:
    """Build a layer without parameters.

    Args:
        name: the layer's name, also in errors.
        forward: (x, key) -> (y, residuals).
        backward: (residuals, dy) -> dx.
        uses_key: as in Layer.
    """

    def checked_forward(params, x, key=None):
        check_tree(name, "params", params, ())
        return forward(x, key)

    def checked_backward(params, residuals, dy):
        check_tree(name, "params", params, ())
        return (), backward(residuals, dy)

    return Layer(lambda key: (), checked_forward, checked_backward, name=name, uses_key=uses_key)
