"""A part held out, and features of mean 0 and standard deviation 1."""

import statistics

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

KEY = jax.random.key(0)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 5), (0.01, 1), (0.99, 19), (0.32, 6)])
def test_split_holds_a_fraction_of_the_examples_out(fraction, held_out):
    x, labels = jnp.arange(40.0).reshape(20, 2), jnp.arange(20)
    (rest, rest_labels), (part, part_labels) = fnn.split(KEY, x, labels, fraction=fraction)
    assert (len(rest), len(part)) == (20 - held_out, held_out)
    assert sorted([*rest_labels.tolist(), *part_labels.tolist()]) == [*range(20)]
    for array, numbers in ((rest, rest_labels), (part, part_labels)):
        assert jnp.all(array == x[numbers])


def test_split_depends_on_the_key_alone():
    x = jnp.arange(20)
    one, same = (fnn.split(KEY, x, fraction=0.5) for _ in range(2))
    other = fnn.split(jax.random.key(1), jax.device_get(x), fraction=0.5)
    chex.assert_trees_all_equal(one, same)
    assert jnp.any(one[1][0] != other[1][0])
    assert jnp.any(one[0][0][1:] < one[0][0][:-1])


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((), {}, r"expected arrays with the same number of examples, two or more, got \[\]"),
        (((5,), (4, 2)), {}, r"two or more, got \[\(5,\), \(4, 2\)\]"),
        (((1, 2),), {}, r"two or more, got \[\(1, 2\)\]"),
        (((),), {}, "two or more"),
        (((5,),), {"fraction": 1}, "expected fraction to be between 0 and 1, got 1"),
        (((5,),), {"fraction": 0.0}, "expected fraction to be between 0 and 1, got 0.0"),
        (((5,),), {"fraction": "half"}, "expected fraction to be a finite number, got 'half'"),
        (((5,),), {"key": 0}, "split: expected a key such as jax.random.key.0., got 0"),
    ],
)
def test_split_refuses_what_it_cannot_divide(arrays, options, message):
    arrays = [jnp.ones(shape) for shape in arrays]
    options = {"key": KEY, "fraction": 0.5, **options}
    with pytest.raises(ValueError, match=message):
        fnn.split(options.pop("key"), *arrays, **options)


def test_lists_are_arrays_too():
    (rest,), (part,) = fnn.split(KEY, [1, 2, 3], fraction=0.3)
    assert sorted([*rest.tolist(), *part.tolist()]) == [1, 2, 3]
    assert fnn.standardize([[1, 2], [3, 6]])[0].tolist() == [2, 4]


def test_split_refuses_integers_that_jax_would_change():
    wide = jax.device_get(jnp.arange(4)).astype("int64")
    (rest,), (part,) = fnn.split(KEY, wide, fraction=0.5)
    assert sorted([*rest.tolist(), *part.tolist()]) == [0, 1, 2, 3]
    message = "split: expected integers that fit into int32, got int64 from 0 to 3298534883328"
    with pytest.raises(ValueError, match=message):
        fnn.split(KEY, wide << 40, fraction=0.5)


def test_integers_of_64_bits_are_standardized_as_they_are():
    wide = jax.device_get(jnp.arange(3)[:, None]).astype("int64") << 40
    mean, std = fnn.standardize(wide)
    assert mean.dtype == jnp.float32
    assert mean.tolist() == [2.0**40]
    assert float(std[0]) == pytest.approx(2**40 * (2 / 3) ** 0.5, rel=1e-6)


def test_no_features_have_no_mean():
    mean, std = fnn.standardize(jnp.zeros((5, 0)))
    assert mean.shape == std.shape == (0,)


def test_standardized_features_have_mean_0_and_deviation_1():
    x = draw(1, (50, 3)) * jnp.array([[0.01, 5.0, 300.0]]) + jnp.array([[1.0, -2.0, 4000.0]])
    mean, std = fnn.standardize(x)
    for index, column in enumerate(x.T.tolist()):
        assert float(mean[index]) == pytest.approx(statistics.fmean(column), rel=1e-6)
        assert float(std[index]) == pytest.approx(statistics.pstdev(column), rel=1e-5)
    y, _ = fnn.Standardize(mean, std).forward((), x)
    chex.assert_trees_all_close(jax.device_get(jnp.std(y, axis=0)), jnp.ones(3), rtol=1e-4)
    assert jnp.all(jnp.abs(jnp.mean(y, axis=0)) < 1e-4)


@pytest.mark.parametrize("value", [0.1, 3e38, -1e-30, 0.0])
def test_a_constant_feature_becomes_0(value):
    x = jnp.full((37, 2), value)
    mean, std = fnn.standardize(x)
    assert std.tolist() == [1, 1]
    y, _ = fnn.Standardize(mean, std).forward((), x)
    assert jnp.all(jnp.abs(y) <= 1e-6 * abs(value))


def test_no_sum_of_large_features_overflows():
    x = jnp.array([[8e37], [-8e37]] * 10)
    mean, std = fnn.standardize(x)
    assert abs(float(mean[0])) < 1e32
    assert float(std[0]) == pytest.approx(8e37, rel=1e-6)


def test_images_are_standardized_by_channel_and_bytes_as_floats():
    images = (jnp.abs(draw(1, (5, 4, 3, 2))) * 100 % 256).astype(jnp.uint8)
    mean, std = fnn.standardize(images)
    expected = fnn.standardize(images.astype(jnp.float32).reshape(-1, 2))
    chex.assert_trees_all_close((mean, std), expected, rtol=1e-6)
    assert mean.shape == std.shape == (2,)
    assert mean.dtype == jnp.float32


def test_standardize_refuses_what_has_no_examples():
    for shape in ((), (0, 3)):
        with pytest.raises(ValueError, match=r"standardize: expected x of shape \(..., features\)"):
            fnn.standardize(jnp.zeros(shape))


def test_standardize_refuses_complex_numbers():
    with pytest.raises(ValueError, match="standardize: expected x of real numbers, got complex64"):
        fnn.standardize(jnp.ones((3, 2), "complex64"))


def test_the_layer_keeps_no_array_and_divides_what_comes_back():
    layer = fnn.Standardize([1.0, -2.0], [2.0, 0.5])
    y, residuals = layer.forward((), jnp.array([[3.0, -2.0]]))
    assert y.tolist() == [[1.0, 0.0]]
    assert not jax.tree.leaves(residuals)
    assert layer.backward((), residuals, jnp.ones((1, 2)))[1].tolist() == [[0.5, 2.0]]
    assert str(layer) == "Standardize(2)"


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0], [1.0, 1.0], r"expected std of shape \(1,\), got \(2,\)"),
        (0.0, 1.0, r"expected mean of shape \(features,\), got \(\)"),
        ([0.0], [0.0], "expected a finite mean, and a finite std above 0"),
        ([0.0], [-1.0], "std above 0"),
        ([float("nan")], [1.0], "a finite mean"),
        ([0], [1.0], "expected mean of a floating dtype"),
    ],
)
def test_the_layer_refuses_what_does_not_standardize(mean, std, message):
    with pytest.raises(ValueError, match=message):
        fnn.Standardize(mean, std)


def test_mean_and_std_may_be_traced():
    @jax.jit
    def run(x):
        return fnn.Standardize(*fnn.standardize(x)).forward((), x)[0]

    x = draw(1, (10, 3))
    eager, _ = fnn.Standardize(*fnn.standardize(x)).forward((), x)
    chex.assert_trees_all_close(run(x), eager, rtol=1e-5, atol=1e-6)
