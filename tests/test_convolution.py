import re

import chex
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
    for layer in (fnn.Conv2d(3, 4, 1, padding=3, stride=2), fnn.ConvTranspose2d(3, 4, 3)):
        with pytest.raises(ValueError, match="expected x of height and width above 0, got"):
            run(layer, jnp.ones((2, 0, 5, 3)))


@pytest.mark.parametrize(
    ("groups", "sizes"), [(1, (2, 3)), (2, (6, 4)), (3, (3, 3)), (3, (3, 12)), (2, (2, 12))]
)
def test_groups_are_convolutions_side_by_side(groups, sizes):
    """Narrow groups are computed in another way than wide ones."""
    (channels, features), options = sizes, {"stride": (2, 1), "dilation": (1, 2), "padding": 1}
    x = draw(1, (3, 5, 6, channels))
    layer = fnn.Conv2d(channels, features, (3, 2), groups=groups, bias=False, **options)
    one = fnn.Conv2d(channels // groups, features // groups, (3, 2), bias=False, **options)
    params = {"W": draw(3, (3, 2, channels // groups, features))}

    @jax.jit
    def both(params, x):
        y, vjp = jax.vjp(lambda params, x: layer.forward(params, x)[0], params, x)
        parts = [
            one.forward({"W": W}, part)[0]
            for W, part in zip(
                jnp.split(params["W"], groups, -1), jnp.split(x, groups, -1), strict=True
            )
        ]
        grads, dx = layer.backward(params, x, jnp.cos(y))
        return (y, grads, dx), (jnp.concatenate(parts, -1), *vjp(jnp.cos(y)))

    chex.assert_trees_all_close(*both(params, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "sizes", "options"),
    [
        ("1d", (2, 3), {"stride": 2, "dilation": 2, "padding": [(2, 1)]}),
        ("2d", (4, 2), {"stride": (2, 3), "padding": (1, 0), "groups": 2}),
        ("3d", (2, 1), {"padding": 2}),
    ],
)
def test_a_transposed_convolution_is_the_dx_of_a_convolution(kind, sizes, options):
    (num_in, num_out), num_axes = sizes, int(kind[0])
    there = getattr(fnn, f"Conv{kind}")(num_out, num_in, 3, bias=False, **options)
    back = getattr(fnn, f"ConvTranspose{kind}")(num_in, num_out, 3, bias=False, **options)
    params = {"W": draw(3, there.init(KEY)["W"].shape)}
    transposed = {"W": params["W"].swapaxes(-1, -2)}
    small = draw(1, (2, *[3] * num_axes, num_in))
    large, _ = back.forward(transposed, small)
    _, dx = there.backward(params, jnp.zeros(large.shape), small)
    chex.assert_trees_all_close(large, dx, rtol=1e-5, atol=1e-5)


def test_groups_of_a_transposed_convolution_start_as_those_of_a_convolution():
    """So that what one output sums has the same variance; its fan_in is c / groups."""
    there = fnn.Conv2d(6, 4, 3, groups=2, weight_init=fnn.kaiming_normal).init(KEY)["W"]
    back = fnn.ConvTranspose2d(6, 4, 3, groups=2, weight_init=fnn.kaiming_normal).init(KEY)["W"]
    assert back.shape == (3, 3, 6, 2)
    for group in range(2):
        inputs, outputs = slice(3 * group, 3 * group + 3), slice(2 * group, 2 * group + 2)
        assert jnp.all(back[:, :, inputs] == there[..., outputs])


def test_output_padding_beyond_the_last_window_holds_the_bias():
    layer = fnn.ConvTranspose1d(1, 1, 1, dilation=4, output_padding=3)
    y, _ = layer.forward({"W": jnp.ones((1, 1, 1)), "b": jnp.array([0.5])}, jnp.ones((2, 1)))
    assert y.ravel().tolist() == [1.5, 1.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_see_no_nan_of_another_group_and_take_an_empty_batch(groups):
    layer = fnn.Conv2d(4, 16 // groups, 3, padding=1, groups=groups)
    params, x = layer.init(KEY), draw(1, (2, 4, 4, 4)).at[0, 1, 1, 0].set(jnp.nan)

    @jax.jit
    def passes(params, x):
        y, residuals = layer.forward(params, x)
        return y, *layer.backward(params, residuals, y)

    y, grads, dx = passes(params, x)
    clean = 16 // groups // groups
    for array in (y, grads["W"]):
        assert jnp.isnan(array[..., :clean]).any()
        assert not jnp.isnan(array[..., clean:]).any()
    assert not jnp.isnan(dx[..., 4 // groups :]).any()
    assert not jax.tree.leaves(passes(params, x[:0]))[1].any()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d"])
def test_groups_take_16_bits_and_a_batch_over_explicit_axes(kind, groups):
    layer = getattr(fnn, kind)(4, 8, 3, stride=2, padding=1, groups=groups)
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Explicit,),
                         devices=jax.devices("cpu")[:2])  # fmt: skip

    def passes(params, x):
        y, residuals = layer.forward(params, x)
        return y, *layer.backward(params, residuals, y)

    params, x = jax.device_get((layer.init(KEY), draw(1, (4, 5, 5, 4), jnp.bfloat16)))
    x, params = fnn.shard_batch(mesh, x), fnn.replicate(mesh, params)
    y, grads, dx = jax.eval_shape(passes, params, x)
    assert (y.dtype, dx.dtype, grads["W"].dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert y.sharding.spec[0] == dx.sharding.spec[0] == "data"
    assert not any(grads["W"].sharding.spec)


def test_the_name_shows_the_options_that_are_not_usual():
    for layer, name in (
        (fnn.Conv2d(8, 8, 3, padding=0, groups=8), "Conv2d(8, 8, (3, 3), groups=8)"),
        (
            fnn.Conv1d(2, 3, 5, stride=2, padding="SAME"),
            "Conv1d(2, 3, (5,), stride=2, padding='SAME')",
        ),
        (
            fnn.ConvTranspose2d(2, 3, 3, dilation=(1, 2)),
            "ConvTranspose2d(2, 3, (3, 3), dilation=(1, 2))",
        ),
    ):
        assert repr(layer) == name


def test_the_network_in_the_docstring_removes_noise():
    lines = fnn.ConvTranspose2d.__doc__.split("is clean::\n")[1].splitlines()
    code = [line[8:] for line in lines if line.startswith(" " * 8)]
    assert len(code) == 10
    names = {"fnn": fnn, "jax": jax}
    allow = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with allow[0], allow[1]:
        exec("\n".join(code), names)
    model, clean, noisy, target = (names[name] for name in ("model", "clean", "noisy", "target"))

    def distance(params, images):
        return jnp.mean((fnn.predict(model, params, noisy) - images) ** 2)

    params = names["state"].params
    assert names["losses"].mean() < 0.7 * distance(model.init(names["keys"][0]), target)
    assert distance(params, clean) < jnp.mean((noisy - clean) ** 2) / 30


def test_convolutions_have_the_order_of_axes_that_is_fast():
    """XLA's CPU compiler puts another order right outside of loops alone."""
    layer = fnn.Sequential(
        fnn.Conv2d(4, 6, 3, stride=2, padding=1), fnn.ConvTranspose2d(6, 8, 3, groups=2)
    )
    params, x = layer.init(KEY), draw(1, (4, 6, 5, 4))

    def passes(params, x):
        y, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, y)

    text = jax.jit(passes).lower(params, x).as_text()
    orders = re.findall("stablehlo.convolution.* dim_numbers = (.*?), window", text)
    assert orders == ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"] * 6


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (fnn.Conv2d(1, 2, 3), (7, 5, 4, 2)),
        (fnn.Conv2d(1, 2, 3, padding="SAME"), (7, 7, 6, 2)),
        (fnn.Conv2d(1, 2, 3, stride=2, padding="SAME"), (7, 4, 3, 2)),
        (fnn.Conv2d(1, 2, (7, 1), stride=[1, 4]), (7, 1, 2, 2)),
        (fnn.Conv2d(1, 2, 3, padding=5), (7, 15, 14, 2)),
        (fnn.Conv2d(1, 2, 3, padding=[(0, 2), 1], dilation=(4, 1)), (7, 1, 6, 2)),
        (fnn.Conv2d(1, 2, 3, stride=2, padding="SAME", dilation=2), (7, 4, 3, 2)),
        (fnn.Conv1d(1, 2, 3, padding=1), (7, 7, 6, 2)),
        (fnn.Conv3d(1, 2, (3, 1, 2)), (5, 7, 5, 2)),
        (fnn.ConvTranspose2d(1, 2, 4, stride=2, padding=1), (7, 14, 12, 2)),
        (fnn.ConvTranspose2d(1, 2, 3, stride=2, output_padding=(1, 0)), (7, 16, 13, 2)),
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
        (fnn.Conv1d(2, 3, 3), (5, 3), r"Conv1d.*: expected x of shape \(..., length, 2\), got"),
        (fnn.Conv3d(2, 3, 1), (4, 4, 2), r"\(..., depth, height, width, 2\), got \(4, 4, 2\)"),
        (fnn.Conv1d(2, 3, 3, dilation=2), (4, 2), r"dilation=2\): expected x no smaller than the"),
        (
            fnn.ConvTranspose1d(2, 3, 1, padding=1),
            (2, 2),
            "expected x large enough for a y without",
        ),
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
        (
            lambda: fnn.Conv1d(4, 3, 3, groups=2),
            "Conv1d: expected out_channels to be a multiple of",
        ),
        (
            lambda: fnn.Conv3d(3, 4, 3, groups=2),
            "expected in_channels to be a multiple of groups=2",
        ),
        (lambda: fnn.Conv2d(1, 3, 3, groups=0), "expected groups to be an integer >= 1, got 0"),
        (lambda: fnn.Conv2d(1, 3, 3, dilation=0), "expected dilation to be an integer >= 1, got 0"),
        (
            lambda: fnn.ConvTranspose2d(1, 3, 3, padding="SAME"),
            "ConvTranspose2d: expected padding an integer, or 2 integers or pairs, got 'SAME'",
        ),
        (
            lambda: fnn.ConvTranspose2d(1, 3, 3, stride=(2, 3), output_padding=2),
            "expected output_padding below the larger of stride and dilation, got 2",
        ),
    ],
)
def test_constructors_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
