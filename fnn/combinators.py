"""Combinators: many layers -> one layer."""

import jax

from fnn.layer import Layer, note_on_error


def Sequential(*layers: Layer) -> Layer:
    """y = f_n(... f_2(f_1(x))): forward through the layers, backward through them in reverse.

    params, grads and residuals are tuples, one entry a layer. Layer i draws from
    fold_in(key, i), so that adding a layer leaves the others' randomness alone. Sequentials
    nest, and an empty one is the identity.

    Raises:
        ValueError: an argument is not a Layer; params are not a tuple with one entry a layer.
            What a layer raises passes with a note that says where it happened.
    """
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"Sequential: expected a Layer at position {index}, got {layer!r}")

    def check_length(what, entries):
        is_tuple = isinstance(entries, tuple)
        if not is_tuple or len(entries) != len(layers):
            got = f"{len(entries)} entries" if is_tuple else type(entries).__name__
            raise ValueError(
                f"Sequential: expected {what} to be a tuple of {len(layers)} entries, got {got}"
            )

    def init(key):
        return tuple(
            layer.init(jax.random.fold_in(key, index)) for index, layer in enumerate(layers)
        )

    def forward(params, x, key=None):
        check_length("params", params)
        residuals = []
        for index, layer in enumerate(layers):
            layer_key = None if key is None else jax.random.fold_in(key, index)
            with note_on_error(f"in layer {index} of Sequential, forward"):
                x, kept = layer.forward(params[index], x, layer_key)
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(params, residuals, dy):
        check_length("params", params)
        check_length("residuals", residuals)
        grads = []
        for index in reversed(range(len(layers))):
            with note_on_error(f"in layer {index} of Sequential, backward"):
                grad, dy = layers[index].backward(params[index], residuals[index], dy)
            grads.append(grad)
        return tuple(reversed(grads)), dy

    return Layer(init, forward, backward)
