"""Pooling: values by definition and by reduce_window, places of the largest, costs, errors."""

import functools
import random
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw
from test_costs import cost

import fnn


def run(layer, x):
    return layer.forward((), x)


def dx_of(layer, x, dy):
    return layer.backward((), run(layer, x)[1], dy)[1]


class Setting(NamedTuple):
    """Of one axis: of x, of the windows, and how many of these there are."""

    length: int
    window: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    count: int

    @property
    def extra(self):
        """What is missing after the padding, and has to be cut off if it is negative."""
        end = (self.count - 1) * self.stride + self.dilation * (self.window - 1) + 1
        return end - self.length - sum(self.padding)


def draw_setting(rng, largest, dilations, ceil_mode):
    window = rng.choice([1, 2, 3, 4, 9, 11][:largest])
    stride, dilation = rng.choice([window, 1, 2, 3]), rng.choice(dilations)
    extent = dilation * (window - 1) + 1
    length, padding = extent + rng.randrange(5), [rng.randrange(extent // 2 + 1) for _ in range(2)]
    room = length + sum(padding) - extent
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if (count - 1) * stride >= length + padding[0]:  # as PyTorch does
        count -= 1
    return Setting(length, window, stride, dilation, tuple(padding), count)


def draw_settings(kind, number):
    """A layer, and what it was made with."""
    rng = random.Random(number)
    num_axes, ceil_mode, flag = 1 + number % 3, rng.random() < 0.5, rng.random() < 0.5
    axes = [
        draw_setting(rng, (6, 6, 3)[num_axes - 1], [1, 1, 2, 3], ceil_mode) for _ in range(num_axes)
    ]
    _, window, stride, dilation, padding, _ = zip(*axes, strict=True)
    options = {} if kind == "MaxPool" else {"count_include_pad": flag}
    options |= {"padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    layer = getattr(fnn, f"{kind}{num_axes}d")(window, stride, **options)
    return layer, axes, flag


def pool_of_jax(x, axes, start, combine):
    config = [(0, 0), *(setting.padding for setting in axes), (0, 0)]
    extra = [(0, 0, 0), *((0, setting.extra, 0) for setting in axes), (0, 0, 0)]
    padded = jax.lax.pad(
        jnp.pad(x, config, constant_values=start), jnp.asarray(start, x.dtype), extra
    )
    sizes = [(1, *(getattr(s, name) for s in axes), 1) for name in ("window", "stride", "dilation")]
    return jax.lax.reduce_window(
        padded, start, combine, *sizes[:2], "VALID", window_dilation=sizes[2]
    )


def max_by_definition(x, axes):
    """By gathering the places of all windows, of which the first of the largest is taken."""
    config = [(0, 0), *((s.padding[0], s.padding[1] + max(s.extra, 0)) for s in axes), (0, 0)]
    padded = jnp.pad(x, config, constant_values=-jnp.inf)
    in_x = jnp.pad(jnp.ones_like(x), config)
    for axis, s in enumerate(axes):
        starts, places = jnp.arange(s.count) * s.stride, jnp.arange(s.window) * s.dilation
        index = starts.reshape(-1, 1) + places.reshape(1, -1)
        padded, in_x = (jnp.take(array, index, 1 + 2 * axis) for array in (padded, in_x))
    order = [0, *range(1, 2 * len(axes), 2), padded.ndim - 1, *range(2, 2 * len(axes) + 1, 2)]
    shape = [*(padded.shape[i] for i in order[: len(axes) + 2]), -1]
    windows, in_x = (array.transpose(order).reshape(shape) for array in (padded, in_x))
    is_largest = (windows == windows.max(-1, keepdims=True)) & (in_x > 0)
    place = jnp.argmax(is_largest, -1, keepdims=True)
    return jnp.take_along_axis(windows, place, -1)[..., 0]


NUMBERS = [0, 1, 2, 5, 7, 8, 10, 12, 13, 16]  # with large windows, side by side and overlapping


@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool"])
def test_pooling_at_random_settings_is_that_of_reduce_window(kind):
    drawn = [draw_settings(kind, number) for number in NUMBERS]

    def reference(x, axes, flag):
        if kind == "MaxPool":
            return max_by_definition(x, axes)
        width = [(0, 0), *(setting.padding for setting in axes), (0, 0)]
        bare = [s._replace(length=s.length + sum(s.padding), padding=(0, 0)) for s in axes]
        ones = jnp.pad(jnp.ones_like(x), width, constant_values=int(flag))
        count = pool_of_jax(ones, bare, 0.0, jax.lax.add)
        return pool_of_jax(x, axes, 0.0, jax.lax.add) / count

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(arrays):
        return [*passes(arrays)]

    def passes(arrays):
        for (layer, axes, flag), x in zip(drawn, arrays, strict=True):
            y, vjp = jax.vjp(functools.partial(reference, axes=axes, flag=flag), x)
            ours, residuals = layer.forward((), x)
            dy = jnp.cos(jnp.arange(1.0, y.size + 1)).reshape(y.shape)
            largest = pool_of_jax(x, axes, -jnp.inf, jax.lax.max) if kind == "MaxPool" else y
            yield (ours, ours, layer.backward((), residuals, dy)[1]), (y, largest, vjp(dy)[0])

    with jax.enable_x64(True):
        arrays = [
            draw(number, (2, *(setting.length for setting in axes), 2), jnp.float64).round(1)
            for number, (_, axes, _) in enumerate(drawn)
        ]
        # A window of -inf alone, partly in the padding.
        arrays = [x.at[0, ..., :2, 0].set(-jnp.inf) if kind == "MaxPool" else x for x in arrays]
        actual, expected = zip(*both(arrays), strict=True)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("kind", ["MaxPool2d", "AvgPool2d"])
def test_cost_does_not_grow_with_windows_side_by_side(kind):
    def costs(size):
        def passes(x):
            y, residuals = layer.forward((), x)
            return layer.backward((), residuals, y)

        layer = getattr(fnn, kind)(size)
        lowered = jax.jit(passes).lower(jax.ShapeDtypeStruct((4, 60, 60, 8), jnp.float32))
        return cost(passes, jnp.ones((4, 60, 60, 8)))[0], len(lowered.as_text())

    (flops, size), (most_flops, most_size) = costs(20), costs(10)
    assert flops < 1.1 * most_flops
    assert size < 1.1 * most_size


def test_max_pooling_sends_dy_to_the_first_of_the_largest():
    layer, x = fnn.MaxPool2d((2, 3), 2), jnp.array([[1, 4, 4, 0], [4, 2, 1, 9]], float)[..., None]
    y, residuals = run(layer, x)
    assert y.ravel().tolist() == [4]
    _, dx = layer.backward((), residuals, jnp.array([[[5.0]]]))
    assert dx[..., 0].tolist() == [[0, 5, 0, 0], [0, 0, 0, 0]]


def test_pooling_of_overlapping_windows_adds_up_their_cotangents():
    x, dy = jnp.arange(4.0).reshape(1, 4, 1), jnp.array([[[1.0], [2.0], [4.0]]])
    for layer, expected in ((fnn.MaxPool2d((1, 2), 1), [0, 1, 2, 4]),):
        _, dx = layer.backward((), run(layer, x)[1], dy)
        assert dx.ravel().tolist() == expected
    layer = fnn.AvgPool2d((1, 2), 1)
    _, dx = layer.backward((), run(layer, x)[1], dy)
    assert dx.ravel().tolist() == [0.5, 1.5, 3, 2]


def test_pooling_keeps_nan_and_infinities_in_sight():
    x = jnp.array([[jnp.nan, 1.0, -jnp.inf, -jnp.inf], [2.0, 3.0, -jnp.inf, 5.0]])[..., None]
    y, residuals = run(fnn.MaxPool2d((1, 2)), x)
    assert jnp.isnan(y[0, 0, 0])
    assert y.ravel()[1:].tolist() == [-jnp.inf, 3, 5]
    _, dx = fnn.MaxPool2d((1, 2)).backward((), residuals, jnp.ones((2, 2, 1)))
    assert dx[..., 0].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    large, x = fnn.MaxPool2d((1, 100)), jnp.arange(100.0).at[3].set(jnp.nan).reshape(1, 100, 1)
    y, residuals = run(large, x)
    assert jnp.isnan(y.item())
    assert large.backward((), residuals, jnp.ones((1, 1, 1)))[1][0, 0, 0] == 1


@pytest.mark.parametrize("count", [256, 257, 400])
def test_windows_of_more_than_256_places_are_told_apart(count):
    x = jnp.arange(float(count)).reshape(1, count, 1)
    layer = fnn.MaxPool2d((1, count))
    _, dx = jax.jit(lambda x: layer.backward((), run(layer, x)[1], jnp.ones((1, 1, 1))))(x)
    assert jnp.argmax(dx) == count - 1
    assert dx.sum() == 1


def test_means_of_16_bits_are_taken_in_float32():
    """A sum of 324 ones stops at 256 when it accumulates in bfloat16."""
    x, value = jnp.ones((35, 35, 1), jnp.bfloat16), 255 / 128
    for stride in (None, 1):
        layer = fnn.AvgPool2d(18, stride)
        y, residuals = jax.jit(functools.partial(run, layer))(x)
        assert jnp.all(y == 1)
        _, dx = jax.jit(layer.backward)((), residuals, value * y)
        assert dx[17, 17, 0] == jnp.bfloat16(value if stride else value / 324)
        assert dx.dtype == jnp.bfloat16


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("kind", ["MaxPool2d", "AvgPool2d"])
def test_the_program_of_overlapping_windows_does_not_grow_with_them(kind):
    def size_and_flops(size):
        layer = getattr(fnn, kind)(size, 1)

        def passes(x):
            y, residuals = layer.forward((), x)
            return layer.backward((), residuals, y)

        lowered = jax.jit(passes).lower(jax.ShapeDtypeStruct((2, 40, 40, 3), jnp.float32))
        return len(lowered.as_text()), lowered.compile().cost_analysis()["flops"]

    (size, flops), (most_size, most_flops) = size_and_flops(32), size_and_flops(9)
    assert size < 1.5 * most_size
    assert flops < 1.5 * most_flops


def test_a_large_overlapping_window_keeps_nan_and_its_first_place():
    layer, x = fnn.MaxPool2d((1, 70), 2), jnp.arange(72.0).at[30].set(jnp.nan).reshape(1, 72, 1)

    @jax.jit
    def passes(x):
        y, residuals = run(layer, x)
        return y, layer.backward((), residuals, jnp.ones((1, 2, 1)))[1]

    y, dx = jax.device_get(passes(x))
    assert (y != y).all()
    assert dx.ravel().nonzero()[0].tolist() == [0, 2]


@pytest.mark.parametrize("kind", ["MaxPool2d", "AvgPool2d"])
@pytest.mark.parametrize("size", [(2, 1), (9, 2), (9, 9)])
def test_images_without_channels_are_pooled_to_nothing(kind, size):
    layer, x = getattr(fnn, kind)(*size), jnp.ones((2, 20, 20, 0))
    y, residuals = run(layer, x)
    assert layer.backward((), residuals, y)[1].shape == x.shape


def test_residuals_are_a_byte_for_each_window_or_nothing():
    def kept(layer, shape=(10, 8, 8, 3)):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        residuals = jax.tree.leaves(jax.eval_shape(lambda x: run(layer, x)[1], x))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)

    assert kept(fnn.MaxPool2d(2)) == 10 * 4 * 4 * 3
    assert kept(fnn.MaxPool2d(8)) == kept(fnn.GlobalMaxPool()) == 10 * 3
    assert kept(fnn.GlobalMaxPool(), (10, 17, 16, 3)) == 4 * 10 * 3
    assert kept(fnn.AvgPool2d(2)) == kept(fnn.GlobalAvgPool()) == 0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (fnn.MaxPool2d(2), (7, 3, 3, 1)),
        (fnn.MaxPool2d((7, 1), 1), (7, 1, 6, 1)),
        (fnn.AvgPool2d(3, 2), (7, 3, 2, 1)),
        (fnn.MaxPool2d(2, ceil_mode=True), (7, 4, 3, 1)),
        (fnn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (7, 4, 4, 1)),
        (fnn.AvgPool2d(2, 3, padding=((0, 1), (1, 0)), ceil_mode=True), (7, 3, 3, 1)),
        (fnn.MaxPool2d(3, 2, padding="SAME", dilation=2), (7, 4, 3, 1)),
        (fnn.AvgPool1d(4, 1, padding="SAME"), (7, 7, 6, 1)),
        (fnn.MaxPool3d((5, 7, 6)), (1, 1, 1, 1)),
        (fnn.GlobalAvgPool(), (7, 1)),
        (fnn.GlobalMaxPool(3), (1,)),
    ],
)
def test_shapes_follow_from_window_stride_padding_and_dilation(layer, shape):
    x = jax.ShapeDtypeStruct((7, 7, 6, 1), jnp.float32)
    y, _ = jax.eval_shape(lambda x: run(layer, x), x)
    assert y.shape == shape


def test_means_at_the_border_count_what_they_are_told():
    x = jnp.array([[4.0], [8.0], [12.0]])
    for options, expected in (
        ({"padding": 1}, [4, 20 / 3]),  # ONNX's and PyTorch's default
        ({"padding": 1, "count_include_pad": False}, [6, 10]),
        ({"padding": "SAME", "count_include_pad": False}, [6, 10]),  # TensorFlow's
        ({"padding": ((0, 2),)}, [8, 4]),
        ({"padding": ((0, 1),), "ceil_mode": True}, [8, 6]),  # one place after the padding
    ):
        y, _ = run(fnn.AvgPool1d(3, 2, **options), x)
        assert y.ravel().tolist() == pytest.approx(expected), options


@pytest.mark.parametrize("window", [3, 9])
def test_padding_is_never_the_largest(window):
    """Not even of windows of -inf or NaN alone: dy arrives in x."""
    layer = fnn.MaxPool1d(window, window // 2, padding=window // 2)
    for value in (-jnp.inf, jnp.nan, -3e38):
        x = jnp.full((window, 1), value)
        y, residuals = run(layer, x)
        assert jnp.array_equal(y, jnp.full_like(y, value), equal_nan=True)
        dx = layer.backward((), residuals, jnp.ones_like(y))[1]
        assert dx.sum() == y.size
        assert dx[0] >= 1


def test_global_pools_are_pools_of_one_window():
    x, dy = draw(1, (2, 3, 4, 5)).round(), draw(2, (2, 5))
    for layer, reduce in ((fnn.GlobalMaxPool(), jnp.max), (fnn.GlobalAvgPool(), jnp.mean)):
        y, _ = run(layer, x)
        assert jnp.allclose(y, reduce(x, (1, 2)), atol=1e-6)
        one = getattr(fnn, layer.name[6:9] + "Pool2d")((3, 4))
        expected = dx_of(one, x, dy.reshape(2, 1, 1, 5))
        assert jnp.array_equal(dx_of(layer, x, dy), expected)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_messages_say_what_was_expected_and_what_came(wrap):
    for layer, x, message in (
        (fnn.MaxPool2d(3), (2, 5, 2), r"MaxPool2d.* no smaller than the window, got \(2, 5, 2\)"),
        (fnn.MaxPool2d(3, dilation=3), (6, 7, 2), r"no smaller than the window, got \(6, 7, 2\)"),
        (fnn.AvgPool2d(3), (5, 2), r"AvgPool2d.*: expected x of shape \(..., height, width, chan"),
        (
            fnn.AvgPool1d(3),
            (2,),
            r"AvgPool1d.*: expected x of shape \(..., length, channels\), got",
        ),
        (fnn.MaxPool1d(2, padding=2), (5, 2), r"each window to have a place in x.* \(\(2, 2\),\)"),
        (fnn.MaxPool1d(2, dilation=2, padding=1), (1, 2), "each window to have a place in x"),
        (fnn.AvgPool1d(2, padding=1), (0, 2), "each window to have a place in x"),
        (fnn.GlobalAvgPool(), (0, 3, 2), r"GlobalAvgPool\(2\): expected x of at least \(1, 1\) pl"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap(lambda x, layer=layer: run(layer, x))(jnp.ones(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.MaxPool2d(0), "MaxPool2d: expected window to be an integer >= 1, got 0"),
        (lambda: fnn.AvgPool2d(2, (1, 0)), "AvgPool2d: expected stride to be an integer >= 1"),
        (lambda: fnn.MaxPool1d((2, 2)), "MaxPool1d: expected window to be an integer or 1, got"),
        (lambda: fnn.MaxPool2d(2, dilation=0), "MaxPool2d: expected dilation to be an integer >="),
        (lambda: fnn.MaxPool3d(2, padding=(1, 1)), "MaxPool3d: expected padding 'VALID', 'SAME'"),
        (lambda: fnn.AvgPool2d(2, padding=-1), "AvgPool2d: expected padding to be an integer >= 0"),
        (lambda: fnn.MaxPool2d(2, ceil_mode=1), "MaxPool2d: expected ceil_mode to be True or"),
        (lambda: fnn.AvgPool2d(2, count_include_pad=None), "AvgPool2d: expected count_include_pad"),
        (lambda: fnn.GlobalMaxPool(0), "GlobalMaxPool: expected num_axes to be an integer >= 1"),
    ],
)
def test_constructors_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
