"""Flatten: several axes merged."""

import math

from fnn._checks import check_array, check_integer
from fnn.layer import Layer, type_of
from fnn.layers._frame import without_params


def Flatten(*, num_axes: int = 3) -> Layer:
    """y = x with its last num_axes axes merged; dx = dy.

    Shapes: x (..., height, width, channels), y (..., height * width * channels) by default; params
    (). The axes before them stay, so an image without a batch axis is flattened as any other.
    torch.nn.Flatten merges all axes after the first by default.

    Raises:
        ValueError: num_axes is not a positive integer; x has fewer axes; dy has another shape
            than y.
    """
    num_axes = check_integer("Flatten", "num_axes", num_axes, 1)
    name = "Flatten()" if num_axes == 3 else f"Flatten(num_axes={num_axes})"
    axes = ("height", "width", "channels") if num_axes == 3 else ("n",) * num_axes

    def flat(shape):
        return *shape[:-num_axes], math.prod(shape[-num_axes:])

    def forward(x, key):
        x = check_array(name, "x", x, (..., *axes))
        return x.reshape(flat(x.shape)), type_of(x)

    def backward(x_type, dy):
        return check_array(name, "dy", dy, flat(x_type.shape), x_type.dtype).reshape(x_type.shape)

    return without_params(name, forward, backward)
