"""Statistics: exact for every layer, in every nesting, and in the shapes and dtypes told."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, VARIANTS, LayerCase, cast, draw, draw_integers, layer_inputs
from jax.sharding import AxisType
from shared import text
from test_costs import cost

import fnn

mse = fnn.MSELoss("sum")


def squares(grads):
    """|grad|^2 of each example, from grads (batch, ...)."""
    return jax.tree.map(lambda g: jnp.sum(jnp.square(g), range(1, g.ndim)), grads)


def sums_of_squares(grads):
    return jax.tree.map(lambda g: jnp.sum(jnp.square(g), 0), grads)


def gradients_by_jax(layer, params, x, dy):
    def of_example(x, dy):
        return jax.grad(lambda p: jnp.vdot(layer.forward(p, x)[0], dy))(params)

    return jax.vmap(of_example)(x, dy)


def statistic(changed, params, x, dy):
    """(grads, dx) of one forward and one backward pass."""
    return changed.backward(params, changed.forward(params, x)[1], dy)


HAVE_PARAMS = {
    name: case
    for name, case in {**LAYERS, **VARIANTS}.items()
    if jax.tree.leaves(jax.eval_shape(case.make().init, jax.random.key(0)))
    and not case.make().couples_examples
    and not name.startswith("BatchNorm")
}
CASES = HAVE_PARAMS | {
    "Linear-few-positions": LayerCase(lambda: fnn.Linear(6, 5), (3, 6), (3, 5)),
    "Linear-many-positions": LayerCase(lambda: fnn.Linear(2, 3), (3, 2, 2), (3, 2, 3)),
    "Embedding-of-a-number": LayerCase(lambda: fnn.Embedding(5, 3), (), (3,), num_indices=5),
    "Embedding-repeated": LayerCase(lambda: fnn.Embedding(3, 2), (2, 4), (2, 4, 2), num_indices=5),
    "ConvTranspose1d-groups": LayerCase(
        lambda: fnn.ConvTranspose1d(6, 4, 2, groups=2), (3, 6), (4, 4)
    ),
    "Conv2d-few-positions": LayerCase(lambda: fnn.Conv2d(3, 4, 2), (3, 2, 3), (2, 1, 4)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_squared_norms_and_second_moments_are_those_of_vmapped_jax_grads(case):
    with jax.enable_x64(True):
        layer, *given = layer_inputs(case, dtype=jnp.float64)

        @jax.jit
        def run(*given):
            grads = gradients_by_jax(layer, *given)
            ours = statistic(fnn.squared_norms(layer), *given)
            moments, _ = statistic(fnn.second_moments(layer), *given)
            return (*ours, moments), (
                squares(grads),
                statistic(layer, *given)[1],
                sums_of_squares(grads),
            )

        chex.assert_trees_all_close(*run(*given), rtol=1e-10, atol=1e-13)


def test_invalid_indices_count_in_no_statistic():
    layer = fnn.Embedding(3, 2)
    params, dy = layer.init(jax.random.key(0)), draw(1, (1, 4, 2))
    with_invalid = statistic(fnn.squared_norms(layer), params, jnp.array([[-1, 1, 7, 1]]), dy)
    moments, _ = statistic(fnn.second_moments(layer), params, jnp.array([[-1, 1, 7, 1]]), dy)
    row = dy[0, 1] + dy[0, 3]
    chex.assert_trees_all_close(with_invalid[0]["W"], jnp.vdot(row, row)[None], rtol=1e-6)
    chex.assert_trees_all_close(moments["W"], jnp.stack([0 * row, row**2, 0 * row]), rtol=1e-6)


def scale():
    """A layer of one's own: y = a x."""
    return fnn.Layer(
        lambda key: {"a": jax.random.normal(key, ())},
        lambda params, x, key=None: (params["a"] * x, x),
        lambda params, x, dy: ({"a": jnp.vdot(x, dy)}, params["a"] * dy),
    )


def make_sequence_network():
    heads = fnn.Sequential(fnn.LayerNorm(4), fnn.MultiHeadAttention(4, 2, causal=True))
    blocks = fnn.repeat(fnn.remat(fnn.Residual(heads)), 2)
    both = fnn.Parallel(fnn.Linear(3, 2), fnn.Sequential(scale(), fnn.Tanh()))
    return fnn.Sequential(
        fnn.Embedding(7, 4),
        fnn.freeze(fnn.PositionalEmbedding(6, 4)),
        blocks,
        fnn.with_compute_dtype(fnn.GRU(4, 3), jnp.float64),
        fnn.LastStep(),
        fnn.StochasticDepth(fnn.scale_gradient(both, 2.0), 0.5),
        fnn.Linear(5, 3),
    )


def make_image_network():
    return fnn.Sequential(
        fnn.Conv2d(2, 4, 3, padding=1, stride=(1, 2)),
        fnn.GELU(),
        fnn.Conv2d(4, 6, 2, groups=2, dilation=(1, 2)),
        fnn.MaxPool2d((2, 1)),
        fnn.GroupNorm(1, 6),
        fnn.Flatten(),
        fnn.Linear(12, 4),
        fnn.reversible(fnn.Linear(2, 2), fnn.Sequential(fnn.Tanh(), fnn.Linear(2, 2)), 2),
    )


def totals(norms, num_examples):
    """(batch,), over all leaves; in a repeat they are (n, batch)."""
    return sum(jnp.sum(leaf.reshape(-1, num_examples), 0) for leaf in jax.tree.leaves(norms))


@pytest.mark.parametrize("make", [make_sequence_network, make_image_network])
def test_a_nested_models_statistics_are_exact_under_jit_and_vmap(make):
    model = make()
    with jax.enable_x64(True):
        params = [cast(model.init(jax.random.key(seed)), jnp.float64) for seed in (0, 1)]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        is_text = make is make_sequence_network
        x = draw_integers(1, (5, 6), 7) if is_text else draw(1, (5, 6, 6, 2), jnp.float64)
        target = draw(2, (5, 3 if is_text else 4), jnp.float64)
        norms_of, moments_of = (
            fnn.loss_and_grads(change(model), mse)
            for change in (fnn.squared_norms, fnn.second_moments)
        )

        def run(params, x, target):
            def of_example(x, target):
                # Not jax.grad of forward, because freeze and scale_gradient change backward.
                return fnn.loss_and_grads(model, mse)(params, x[None], target[None])[1]

            grads = jax.vmap(of_example)(x, target)
            norms, moments = (f(params, x, target)[1] for f in (norms_of, moments_of))
            expected = totals(squares(grads), len(x))
            return (totals(norms, len(x)), moments), (expected, sums_of_squares(grads))

        pair = jax.jit(jax.vmap(run, (0, None, None)))(params, x, target)
        chex.assert_trees_all_close(*pair, rtol=1e-10, atol=1e-13)


def test_the_leaves_of_a_repeat_are_one_for_each_copy():
    model, x = fnn.repeat(fnn.Linear(3, 3), 2), draw(1, (5, 3))
    params = model.init(jax.random.key(0))
    norms, _ = statistic(fnn.squared_norms(model), params, x, x)
    moments, _ = statistic(fnn.second_moments(model), params, x, x)
    factors, _ = statistic(fnn.kronecker_factors(model), params, x, x)
    assert jax.tree.map(jnp.shape, norms) == {"W": (2, 5), "b": (2, 5)}
    assert jax.tree.map(jnp.shape, moments) == {"W": (2, 3, 3), "b": (2, 3)}
    assert jax.tree.map(jnp.shape, factors) == {"W": ((2, 4, 4), (2, 3, 3)), "b": None}


def test_a_mean_divides_each_examples_gradient():
    model = fnn.Linear(3, 1)
    args = model.init(jax.random.key(0)), draw(1, (4, 3)), draw(2, (4, 1))
    for change, power in ((fnn.squared_norms, 2), (fnn.second_moments, 2)):
        of_sum, of_mean = (
            fnn.loss_and_grads(change(model), fnn.MSELoss(reduction))(*args)[1]
            for reduction in ("sum", "mean")
        )
        scaled = jax.tree.map(lambda leaf, power=power: leaf * 4**power, of_mean)
        chex.assert_trees_all_close(of_sum, scaled, rtol=1e-5)


# rules


def double(layer, params, residuals, dy):
    return {"a": 2 * jnp.ones(len(dy))}


def test_a_given_rule_is_met_by_the_layers_name():
    model = fnn.Sequential(scale(), fnn.Residual(fnn.Linear(3, 3)))
    x = draw(1, (5, 3))
    params = model.init(jax.random.key(0))
    by_rule, _ = statistic(fnn.squared_norms(model, rules={"scale": double}), params, x, x)
    without, _ = statistic(fnn.squared_norms(model), params, x, x)
    assert by_rule[0]["a"].tolist() == [2.0] * 5
    chex.assert_trees_all_equal(by_rule[1], without[1])
    given = {"Linear": lambda layer, params, x, dy: jax.tree.map(jnp.zeros_like, params)}
    zeros, _ = statistic(fnn.second_moments(model, rules=given), params, x, x)
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros[1]))


def Linear():
    """Of fnn's name, but with W as (dim_in, dim_out)."""
    return fnn.Layer(
        lambda key: {"W": jax.random.normal(key, (3, 3))},
        lambda params, x, key=None: (x @ params["W"], (x, x)),
        lambda params, kept, dy: ({"W": jnp.outer(kept[0], dy)}, dy @ params["W"].T),
    )


def test_fnns_rules_are_for_fnns_passes_alone():
    """A layer of the same name, and one with another learning rule, have their own gradients."""
    layer = fnn.Linear(3, 3)

    def backward(params, x, dy):
        grads, dx = layer.backward(params, x, dy)
        return jax.tree.map(jnp.sign, grads), dx

    x, dy = draw(1, (5, 3)), draw(2, (5, 3))
    for other in (Linear(), layer._replace(backward=backward)):
        params = other.init(jax.random.key(0))
        grads, _ = statistic(fnn.per_example(other), params, x, dy)
        norms, _ = statistic(fnn.squared_norms(other), params, x, dy)
        moments, _ = statistic(fnn.second_moments(other), params, x, dy)
        chex.assert_trees_all_close((norms, moments), (squares(grads), sums_of_squares(grads)))
        factors, _ = statistic(fnn.kronecker_factors(other), params, x, dy)
        assert not jax.tree.leaves(factors)


# kronecker_factors


@pytest.mark.parametrize("bias", [True, False])
def test_the_kronecker_factors_of_linear_are_means_and_sums_of_outer_products(bias):
    layer, x, dy = fnn.Linear(3, 2, bias=bias), draw(1, (4, 5, 3)), draw(2, (4, 5, 2))
    params = layer.init(jax.random.key(0))
    factors, dx = statistic(fnn.kronecker_factors(layer), params, x, dy)
    rows, dys = x.reshape(20, 3), dy.reshape(20, 2)
    rows = jnp.concatenate([rows, jnp.ones((20, 1))], axis=1) if bias else rows
    expected = {"W": (rows.T @ rows / 20, dys.T @ dys)} | ({"b": None} if bias else {})
    chex.assert_trees_all_close(factors, expected, rtol=1e-5)
    chex.assert_trees_all_equal(dx, layer.backward(params, x, dy)[1])
    wrapped = fnn.with_compute_dtype(fnn.remat(layer), jnp.float32)
    chex.assert_trees_all_close(
        statistic(fnn.kronecker_factors(wrapped), params, x, dy)[0], factors
    )


def test_the_kronecker_factors_of_one_example_give_its_gradients_outer_product():
    layer, x, dy = fnn.Linear(3, 2), draw(1, (1, 3)), draw(2, (1, 2))
    params = layer.init(jax.random.key(0))
    (A, G), _ = statistic(fnn.kronecker_factors(layer), params, x, dy)[0].values()
    grads, _ = layer.backward(params, x, dy)
    vector = jnp.concatenate([grads["W"], grads["b"][:, None]], axis=1).ravel()
    chex.assert_trees_all_close(jnp.kron(G, A), jnp.outer(vector, vector), rtol=1e-5)


def test_the_kronecker_factors_of_a_convolution_are_those_of_its_patches():
    layer = fnn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=1, dilation=(2, 1))
    params, x = layer.init(jax.random.key(0)), draw(1, (2, 5, 4, 2))
    y, residuals = layer.forward(params, x)
    dy = draw(2, y.shape)
    (A, G), b = fnn.kronecker_factors(layer).backward(params, residuals, dy)[0].values()
    patches = jax.lax.conv_general_dilated_patches(
        x,
        (2, 3),
        (1, 2),
        [(1, 1)] * 2,
        rhs_dilation=(2, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    patches = patches.reshape(-1, 2, 6).swapaxes(1, 2).reshape(-1, 12)
    rows = jnp.concatenate([patches, jnp.ones((len(patches), 1))], axis=1)
    chex.assert_trees_all_close(A, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(G, jnp.einsum("bijo,bijp->op", dy, dy), rtol=1e-5)
    assert b is None
    grouped = fnn.Sequential(fnn.Conv1d(2, 2, 1, groups=2), fnn.LayerNorm(2))
    params, x = grouped.init(jax.random.key(0)), draw(1, (2, 5, 2))
    assert not jax.tree.leaves(statistic(fnn.kronecker_factors(grouped), params, x, x)[0])


def twice(layer):
    """A combinator of one's own, whose layer has one set of parameters and two places."""

    def forward(params, x, key=None):
        y, first = layer.forward(params, x, key)
        y, second = layer.forward(params, y, key)
        return y, (first, second)

    def backward(params, residuals, dy):
        grads, dy = layer.backward(params, residuals[1], dy)
        others, dx = layer.backward(params, residuals[0], dy)
        return jax.tree.map(jnp.add, grads, others), dx

    return fnn.Layer(layer.init, forward, backward, layers=(layer,), rebuild=twice)


def test_combinators_that_share_parameters_are_taken_as_a_whole():
    sizes = {"layers": 1, "dim": 4, "heads": 2, "context": 5}
    tied, tokens = text.make_gpt(6, **sizes), draw_integers(1, (3, 5), 6)
    pairs = (twice(fnn.Linear(3, 3)), draw(1, (4, 3))), (tied, tokens)
    for layer, x in pairs:
        params = layer.init(jax.random.key(0))
        dy = draw(2, jax.eval_shape(layer.forward, params, x)[0].shape)

        @jax.jit
        def run(params, x, dy, layer=layer):
            grads = gradients_by_jax(layer, params, x, dy)
            norms, moments = (
                statistic(change(layer), params, x, dy)[0]
                for change in (fnn.squared_norms, fnn.second_moments)
            )
            return (norms, moments), (squares(grads), sums_of_squares(grads))

        chex.assert_trees_all_close(*run(params, x, dy), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_moments_of_float16_arithmetic_neither_vanish_nor_overflow(scale):
    layer = fnn.with_compute_dtype(fnn.Linear(2, 1), jnp.float16)
    params, x, dy = layer.init(jax.random.key(0)), jnp.ones((4, 2)), jnp.full((4, 1), scale)
    moments, _ = statistic(fnn.second_moments(layer), params, x, dy)
    expected = 4 * jnp.square(dy[0].astype(jnp.float16).astype(jnp.float32))
    assert jnp.allclose(moments["W"], expected.reshape(1, 1), rtol=1e-3)
    assert jnp.allclose(moments["b"], expected, rtol=1e-3)


# shapes, dtypes, meshes and errors

MIXED = ["Linear", "Linear-many-positions", "Embedding", "Conv2d", "Conv2d-groups"]
MIXED += ["ConvTranspose2d", "LayerNorm", "LSTM", "Sequential-of-images"]
STATISTICS = [fnn.squared_norms, fnn.second_moments, fnn.kronecker_factors]


@pytest.mark.parametrize("name", MIXED)
def test_statistics_of_16_bits_and_of_no_examples(name):
    for dtype, num_examples in ((jnp.bfloat16, 1), (jnp.float32, 0)):
        layer, params, x, dy = layer_inputs(CASES[name], (num_examples,), dtype)
        norms, moments, factors = (
            jax.jit(functools.partial(statistic, change(layer)))(params, x, dy)[0]
            for change in STATISTICS
        )
        for leaf in jax.tree.leaves(norms):
            assert (leaf.shape, leaf.dtype) == ((num_examples,), jnp.float32)
        chex.assert_trees_all_equal_shapes_and_dtypes(moments, cast(params, jnp.float32))
        if num_examples == 0:
            assert not any(leaf.any() for leaf in jax.tree.leaves((moments, factors)))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", MIXED)
def test_statistics_over_a_mesh_are_those_of_one_device(name, axis_type):
    layer, params, x, dy = layer_inputs(CASES[name], (8,))
    mesh = jax.make_mesh((4,), ("data",), (axis_type,), devices=jax.devices("cpu")[:4])

    @jax.jit
    def run(*given):
        return [statistic(change(layer), *given) for change in STATISTICS]

    expected = run(params, x, dy)
    with jax.set_mesh(mesh):  # JAX 0.11 needs it for a scan under vmap
        actual = run(fnn.replicate(mesh, params), *fnn.shard_batch(mesh, (x, dy)))
    actual, expected = jax.device_get((actual, expected))
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (fnn.Linear(64, 64), (64,)),
        (fnn.Linear(64, 64), (16, 64)),
        (fnn.Conv2d(8, 16, 3), (10, 10, 8)),
        (fnn.MultiHeadAttention(32, 4), (16, 32)),
    ],
    ids=["Linear", "Linear-of-sequences", "Conv2d", "MultiHeadAttention"],
)
def test_statistics_need_hardly_more_operations_than_gradients(layer, shape):
    model = fnn.Sequential(layer, fnn.Tanh())
    x = jax.ShapeDtypeStruct((32, *shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    target, _ = jax.eval_shape(model.forward, params, x)
    plain, norms, moments = (
        cost(fnn.loss_and_grads(changed, mse), params, x, target)[0]
        for changed in (model, fnn.squared_norms(model), fnn.second_moments(model))
    )
    assert norms < 1.1 * plain
    assert moments < 1.2 * plain


def test_statistics_refuse_layers_whose_examples_depend_on_each_other():
    model = fnn.Sequential(fnn.Linear(3, 4), fnn.repeat(fnn.BatchNorm(4), 2))
    for change in STATISTICS:
        name = change.__name__
        with pytest.raises(ValueError, match=rf"{name}: expected each .* got BatchNorm\(4\)"):
            change(model)
        with pytest.raises(ValueError, match=f"{name}: expected a Layer at position 0, got"):
            change(fnn.Linear)


def test_an_example_without_a_batch_axis_is_refused():
    """Where the rows of an image would pass for examples, too."""
    image = fnn.Conv2d(2, 2, 3, padding=1), (5, 5, 2)
    for layer, shape in (image, (fnn.Linear(3, 3), (3,)), (scale(), ())):
        given = jax.eval_shape(layer.init, jax.random.key(0)), *[draw(1, shape)] * 2
        with pytest.raises(ValueError, match=r"expected x of shape \(batch, ...\).*, got"):
            jax.eval_shape(functools.partial(statistic, fnn.second_moments(layer)), *given)


@pytest.mark.parametrize("name", ["Linear-many-positions", "Embedding", "Conv2d-groups"])
def test_statistics_are_the_same_without_jit_and_without_nans(name):
    layer, *given = layer_inputs(CASES[name])

    def run(*given):
        return [statistic(change(layer), *given) for change in STATISTICS]

    compiled = jax.jit(run)(*given)
    with jax.disable_jit(), jax.debug_nans(True):
        chex.assert_trees_all_close(run(*given), compiled, rtol=1e-5, atol=1e-6)
