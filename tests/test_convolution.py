import re

import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

KEY = jax.random.key(0)


def run(layer, x):
    return layer.forward(layer.init(KEY), x)


def test_a_convolution_is_the_sum_of_its_definition():
    x, dy = draw(1, (6, 5, 2)), draw(2, (4, 3, 3))
    layer = fnn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding=(2, 1))
    params = {"W": draw(3, (3, 2, 2, 3)), "b": draw(4, (3,))}
    padded = jnp.pad(x, ((2, 2), (1, 1), (0, 0)))
    expected = jnp.stack(
        [
            jnp.stack(
                [
                    jnp.einsum(
                        "klc,klco->o", padded[2 * i : 2 * i + 3, 3 * j : 3 * j + 2], params["W"]
                    )
                    for j in range(2)
                ]
            )
            for i in range(4)
        ]
    ) + params["b"].reshape(1, 1, 3)
    y, residuals = layer.forward(params, x)
    assert residuals is x
    assert jnp.allclose(y, expected, atol=1e-5)
    grads, dx = layer.backward(params, residuals, dy[:, :2])
    assert jnp.allclose(grads["b"], dy[:, :2].sum(axis=(0, 1)), atol=1e-5)
    moved = padded[4:7, 3:5].transpose(2, 0, 1)  # what y[2, 1] sees
    one = jnp.zeros_like(dy[:, :2]).at[2, 1, 0].set(1)
    assert jnp.allclose(
        layer.backward(params, residuals, one)[0]["W"][..., 0].transpose(2, 0, 1), moved, atol=1e-6
    )
    assert dx.shape == x.shape


def test_flatten_takes_as_many_axes_as_told():
    layer, x = fnn.Flatten(num_axes=2), draw(1, (5, 3, 4))
    y, residuals = layer.forward((), x)
    assert jnp.all(y == x.reshape(5, 12))
    assert jnp.all(layer.backward((), residuals, y)[1] == x)
    with pytest.raises(ValueError, match=r"Flatten\(num_axes=2\): expected x of shape"):
        layer.forward((), x[0, 0])


def test_an_image_without_rows_is_refused():
    with pytest.raises(ValueError, match="expected x with rows and columns"):
        run(fnn.Conv2d(3, 4, 1, padding=3, stride=2), jnp.ones((2, 0, 5, 3)))


def test_convolutions_have_the_order_of_axes_that_is_fast():
    """XLA's CPU compiler puts another order right outside of loops alone."""
    layer = fnn.Conv2d(2, 3, 3, stride=2, padding=1)
    params, x = layer.init(KEY), draw(1, (4, 6, 5, 2))

    def passes(params, x):
        y, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, y)

    text = jax.jit(passes).lower(params, x).as_text()
    orders = re.findall("stablehlo.convolution.* dim_numbers = (.*?), window", text)
    assert orders == ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"] * 3


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (fnn.Conv2d(1, 2, 3), (7, 5, 4, 2)),
        (fnn.Conv2d(1, 2, 3, padding="SAME"), (7, 7, 6, 2)),
        (fnn.Conv2d(1, 2, 3, stride=2, padding="SAME"), (7, 4, 3, 2)),
        (fnn.Conv2d(1, 2, (7, 1), stride=[1, 4]), (7, 1, 2, 2)),
        (fnn.Conv2d(1, 2, 3, padding=5), (7, 15, 14, 2)),
        (fnn.Flatten(), (7, 42)),
    ],
)
def test_shapes_follow_from_size_stride_and_padding(layer, shape):
    y, _ = jax.eval_shape(lambda x: run(layer, x), jnp.ones((7, 7, 6, 1)))
    assert y.shape == shape


def test_residuals_are_as_small_as_can_be():
    x = draw(1, (10, 8, 8, 3))

    def kept(layer):
        residuals = jax.tree.leaves(jax.eval_shape(lambda x: run(layer, x)[1], x))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)

    assert kept(fnn.Conv2d(3, 4, 3)) == x.nbytes
    assert kept(fnn.Flatten()) == 0


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_messages_say_what_was_expected_and_what_came(wrap):
    for layer, x, message in (
        (
            fnn.Conv2d(2, 3, 3),
            (5, 5, 3),
            r"Conv2d\(2, 3, \(3, 3\)\): expected x of shape \(..., height,",
        ),
        (
            fnn.Conv2d(2, 3, 3),
            (5, 2),
            r"expected x of shape \(..., height, width, 2\), got \(5, 2\)",
        ),
        (fnn.Conv2d(2, 3, 3), (2, 5, 2), r"expected x no smaller than the kernel, got \(2, 5, 2\)"),
        (fnn.Flatten(), (5, 2), r"Flatten\(\): expected x of shape .*, got \(5, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap(lambda x, layer=layer: run(layer, x))(jnp.ones(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.Conv2d(0, 3, 3), "Conv2d: expected in_channels to be an integer >= 1, got 0"),
        (lambda: fnn.Conv2d(1, 3, 2.5), "Conv2d: expected kernel_size to be an integer >= 1"),
        (lambda: fnn.Conv2d(1, 3, (1, 2, 3)), "expected kernel_size to be an integer or 2"),
        (lambda: fnn.Conv2d(1, 3, 3, stride=0), "expected stride to be an integer >= 1, got 0"),
        (lambda: fnn.Conv2d(1, 3, 3, padding=-1), "expected padding to be an integer >= 0"),
        (lambda: fnn.Conv2d(1, 3, 3, padding="same"), "expected padding 'VALID', 'SAME', an int"),
    ],
)
def test_constructors_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
