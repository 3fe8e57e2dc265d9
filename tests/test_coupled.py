"""reversible: gradients from outputs alone, and a memory that does not grow with the blocks."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import cast, draw
from test_costs import cost, num_bytes

import fnn

pytestmark = pytest.mark.usefixtures("on_the_cpu")

key = jax.random.key(0)
block = fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh())


def by_hand(layer):
    def run(params, x, dy, key=None):
        y, residuals = layer.forward(params, x, key)
        return y, *layer.backward(params, residuals, dy)

    return run


def by_jax(layer):
    def run(params, x, dy, key=None):
        y, vjp = jax.vjp(lambda *args: layer.forward(*args, key)[0], params, x)
        return y, *vjp(dy)

    return run


def test_blocks_are_those_of_the_formula():
    f, g = fnn.Linear(2, 2), fnn.Tanh()
    layer, x = fnn.reversible(f, g, 2), draw(1, (5, 4))
    params = layer.init(key)
    a, b = x[:, :2], x[:, 2:]
    for i in range(2):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params[0])
        chex.assert_trees_all_equal(own, f.init(jax.random.fold_in(jax.random.fold_in(key, i), 0)))
        a = a + f.forward(own, b)[0]
        b = b + jnp.tanh(a)
    y, residuals = layer.forward(params, x)
    chex.assert_trees_all_close(y, jnp.concatenate([a, b], axis=1), rtol=1e-6)
    assert num_bytes(residuals) == y.nbytes


@pytest.mark.parametrize(
    ("f", "g"),
    [
        (block, fnn.Sequential(fnn.LayerNorm(3), fnn.Linear(3, 3), fnn.Dropout(0.5))),
        (fnn.remat(fnn.BatchNorm(3)), fnn.repeat(block, 2)),
    ],
    ids=["dropout", "batch-norm"],
)
def test_gradients_are_exact_in_float64_with_and_without_a_key(f, g):
    """BatchNorm too: y of a block gives back the whole batch, and so its mean and variance."""
    layer = fnn.reversible(f, g, 3)
    with jax.enable_x64(True):
        params = cast(layer.init(key), jnp.float64)
        x, dy = draw(1, (4, 6), jnp.float64), draw(2, (4, 6), jnp.float64)

        @jax.jit
        def run(*args):
            keys = (), (jax.random.key(1),)
            return [[passes(layer)(*args, *k) for k in keys] for passes in (by_hand, by_jax)]

        (without, with_key), expected = run(params, x, dy)
        chex.assert_trees_all_close([without, with_key], expected, rtol=1e-10, atol=1e-12)
        assert not jnp.allclose(without[0], with_key[0])


def test_depth_64_has_gradients_within_a_ten_thousandth_in_float32():
    inner = fnn.Sequential(fnn.LayerNorm(16), fnn.Linear(16, 16), fnn.Tanh())
    layer = fnn.reversible(inner, inner, 64)
    args = layer.init(key), draw(1, (8, 32)), draw(2, (8, 32))
    actual, expected = (jax.jit(passes(layer))(*args) for passes in (by_hand, by_jax))
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert jnp.max(jnp.abs(a - b)) < 1e-4 * jnp.max(jnp.abs(b))


def test_the_memory_does_not_grow_with_the_number_of_blocks():
    """Beside the grads, which are as large as params; those of repeat grow with it."""
    inner = fnn.Sequential(fnn.Linear(16, 16), fnn.Tanh())

    def memory(make, n):
        layer = make(n)
        x = jax.ShapeDtypeStruct((256, 32), jnp.float32)
        return cost(by_hand(layer), jax.eval_shape(layer.init, key), x, x)[1]

    few, many = (memory(lambda n: fnn.reversible(inner, inner, n), n) for n in (4, 64))
    assert many < 1.01 * few + 64 * 16
    wide = fnn.Sequential(fnn.Linear(32, 32), fnn.Tanh())
    assert memory(lambda n: fnn.repeat(wide, n), 64) > 5 * many


def test_a_single_example_and_vmap():
    layer = fnn.reversible(block, block, 2)
    params, x, dy = layer.init(key), draw(1, (4, 6)), draw(2, (4, 6))
    y, grads, dx = by_hand(layer)(params, x, dy)
    each = jax.vmap(by_hand(layer), (None, 0, 0))(params, x, dy)
    summed = each[0], jax.tree.map(lambda leaf: jnp.sum(leaf, 0), each[1]), each[2]
    chex.assert_trees_all_close(summed, (y, grads, dx), rtol=1e-5, atol=1e-6)


def test_statistics_and_observe_look_inside():
    layer = fnn.reversible(block, block, 2)
    params, x = layer.init(key), draw(1, (4, 6))
    norms = fnn.squared_norms(layer).backward(params, layer.forward(params, x)[1], x)[0]
    assert {leaf.shape for leaf in jax.tree.leaves(norms)} == {(2, 4)}
    assert "reversible" in repr(layer)
    assert "n=2" in repr(layer)
    fnn.check_layer(layer, x, key)


def test_errors_tell_what_was_expected():
    def attempt(f, g, shape):
        layer = fnn.reversible(f, g, 2)
        params = jax.eval_shape(layer.init, key)
        jax.eval_shape(layer.forward, params, jax.ShapeDtypeStruct(shape, jnp.float32))

    with pytest.raises(ValueError, match="reversible: expected a Layer at position 1, got"):
        fnn.reversible(block, fnn.Tanh, 2)
    for n in (0, 1.0, True):
        with pytest.raises(ValueError, match=f"expected n to be an integer >= 1, got {n}"):
            fnn.reversible(block, block, n)
    with pytest.raises(ValueError, match=r"expected x with an even last axis, got \(4, 5\)"):
        attempt(block, block, (4, 5))
    with pytest.raises(ValueError, match=r"reversible: expected x of shape \(..., 2 \* features\)"):
        attempt(block, block, ())
    with pytest.raises(ValueError, match=r"reversible: expected y of g of shape \(4, 3\), got"):
        attempt(block, fnn.Linear(3, 4), (4, 6))
    with pytest.raises(ValueError, match=r"Linear\(3, 3\): expected x of shape") as info:
        attempt(block, block, (4, 8))
    assert "in f of reversible" in info.value.__notes__
    layer = fnn.reversible(block, block, 2)
    params, x = layer.init(key), draw(1, (4, 6))
    with pytest.raises(
        ValueError, match=r"reversible: expected dy of shape \(4, 6\), got \(3, 6\)"
    ):
        layer.backward(params, layer.forward(params, x)[1], x[:3])
    with pytest.raises(ValueError, match="reversible: expected params with a first axis of 2, got"):
        layer.forward(fnn.reversible(block, block, 3).init(key), x)
