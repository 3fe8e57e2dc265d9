import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import cast, draw, make_network

import fnn

model, mse = make_network(), fnn.MSELoss()
params = model.init(jax.random.key(0))
x, target = draw(1, (23, 3)), draw(2, (23, 2))


def loss_by_jax(params, x, target):
    return mse.forward(model.forward(params, x)[0], target)[0]


def state_of(optimizer):
    return fnn.init_train_state(model, optimizer, jax.random.key(0))


def test_loss_and_grads_match_jax():
    with jax.enable_x64(True):
        wide = cast((params, x, target), jnp.float64)

        @jax.jit
        def by_hand_and_by_jax(*args):
            return fnn.loss_and_grads(model, mse)(*args), jax.value_and_grad(loss_by_jax)(*args)

        chex.assert_trees_all_close(*by_hand_and_by_jax(*wide), rtol=1e-10)


def test_jvp_of_loss_and_grads_is_the_hessian_vector_product():
    with jax.enable_x64(True):
        wide, x64, target64 = cast((params, x, target), jnp.float64)
        vector = jax.tree.map(lambda leaf: draw(leaf.size, leaf.shape, jnp.float64), wide)

        @jax.jit
        def by_hand_and_by_jax(wide, vector):
            both = fnn.loss_and_grads(model, mse), jax.value_and_grad(loss_by_jax)
            grads = [lambda p, f=f: f(p, x64, target64)[1] for f in both]
            return [jax.jvp(function, (wide,), (vector,))[1] for function in grads]

        chex.assert_trees_all_close(*by_hand_and_by_jax(wide, vector), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_gradients_are_those_of_the_whole_batch(reduction):
    with jax.enable_x64(True):
        args = cast((params, x[:20], target[:20]), jnp.float64)
        whole = jax.jit(fnn.loss_and_grads(model, fnn.MSELoss(reduction)))
        for count in (1, 5, 20):
            parts = fnn.accumulate_gradients(whole, count, reduction=reduction)
            chex.assert_trees_all_close(jax.jit(parts)(*args), whole(*args), rtol=1e-10, atol=1e-15)


def test_each_part_of_a_batch_draws_from_its_own_key():
    def value(params, x, target, key=None):
        return (jnp.zeros(()) if key is None else jax.random.normal(key)), params

    key = jax.random.key(0)
    total, _ = fnn.accumulate_gradients(value, 4, reduction="sum")(0.0, x[:20], target[:20], key)
    expected = sum(jax.random.normal(jax.random.fold_in(key, part)) for part in range(4))
    assert jnp.allclose(total, expected)
    assert fnn.accumulate_gradients(value, 4)(jnp.ones(2), x[:20], target[:20])[0] == 0


def test_a_part_has_every_so_manieth_example():
    evaluate = fnn.accumulate_gradients(lambda params, x, t: (jnp.prod(x), params), 2)
    assert evaluate(1.0, jnp.array([1.0, 2.0, 3.0, 4.0]), x[:4])[0] == (1 * 3 + 2 * 4) / 2


def test_16_bit_gradients_accumulate_in_float32():
    """A sum of 1024 ones stops at 256 when it accumulates in bfloat16."""
    ones = jnp.ones((1024, 1), jnp.bfloat16)
    layer = fnn.Linear(1, 1, bias=False, dtype=jnp.bfloat16)
    total = fnn.Loss(lambda y, t: (jnp.sum(t), t), lambda t: t)
    run = fnn.accumulate_gradients(fnn.loss_and_grads(layer, total), 1024, reduction="sum")
    value, grads = run(layer.init(jax.random.key(0)), ones, ones)
    assert (value, grads["W"].item()) == (1024, 1024)
    assert value.dtype == grads["W"].dtype == jnp.bfloat16


def test_accumulate_gradients_takes_lists_and_integer_params():
    params = {"W": jnp.ones((2, 1)), "n": jnp.arange(2)}

    def value(params, x, target):
        return jnp.mean((x @ params["W"] - target) ** 2)

    def evaluate(params, x, target):
        value_, grad = jax.value_and_grad(lambda W: value({"W": W}, x, target))(params["W"])
        return value_, {"W": grad, "n": jnp.zeros_like(params["n"])}

    x, target = [[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.0]]
    actual = fnn.accumulate_gradients(evaluate, 2)(params, x, target)
    chex.assert_trees_all_close(actual, evaluate(params, jnp.array(x), jnp.array(target)))
    chex.assert_trees_all_equal_dtypes(actual[1], params)


def test_accumulate_gradients_refuses_what_it_cannot_divide():
    evaluate = fnn.loss_and_grads(model, mse)
    with pytest.raises(ValueError, match="a number of examples that 4 divides, got 23"):
        fnn.accumulate_gradients(evaluate, 4)(params, x, target)
    with pytest.raises(ValueError, match="accumulate_gradients: expected x and target with the"):
        fnn.accumulate_gradients(evaluate, 1)(params, x, target[:20])
    with pytest.raises(ValueError, match="num_microbatches to be an integer >= 1, got 0"):
        fnn.accumulate_gradients(evaluate, 0)
    with pytest.raises(ValueError, match="expected reduction 'mean' or 'sum', got 'batchmean'"):
        fnn.accumulate_gradients(evaluate, 2, reduction="batchmean")


def test_predict_is_forward_without_a_key():
    chex.assert_trees_all_equal(fnn.predict(model, params, x), model.forward(params, x)[0])


def test_a_step_is_one_update_and_returns_the_loss_before_it():
    optimizer = fnn.sgd(0.1, momentum=0.9)
    state = state_of(optimizer)
    new, value = fnn.make_train_step(model, mse, optimizer)(state, x, target)

    @jax.jit
    def by_hand(state):
        value, grads = fnn.loss_and_grads(model, mse)(state.params, x, target)
        return fnn.TrainState(*optimizer.update(grads, state.opt_state, state.params)), value

    chex.assert_trees_all_close((new, value), by_hand(state), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 5, 22, 23, 100])
def test_an_unshuffled_epoch_is_its_steps_in_order(batch_size):
    optimizer = fnn.sgd(0.1, momentum=0.5)
    step = fnn.make_train_step(model, mse, optimizer)
    epoch = fnn.make_train_epoch(model, mse, optimizer, batch_size, shuffle=False)
    state, losses = state_of(optimizer), []
    for start in range(0, 23, batch_size):
        batch = slice(start, start + batch_size)
        state, value = step(state, x[batch], target[batch])
        losses.append(value)
    actual = epoch(state_of(optimizer), x, target, jax.random.key(1))
    chex.assert_trees_all_close(actual, (state, jnp.stack(losses)), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(epoch(state_of(optimizer), x, target)[1], actual[1])


def recorder():
    """A model and a loss that leave the parameters alone; the loss is the one x of the batch."""
    identity = fnn.Layer(
        lambda key: jnp.zeros(1), lambda p, x, key=None: (x, x), lambda p, x, dy: (0 * p, dy)
    )
    return identity, fnn.Loss(lambda y, t: (jnp.sum(y), y), jnp.ones_like)


def test_a_shuffled_epoch_sees_every_pair_once():
    layer, _ = recorder()
    both = fnn.Loss(lambda y, t: (jnp.sum(y) + 1000 * jnp.sum(t), y), jnp.ones_like)
    optimizer = fnn.sgd(0.1)
    epoch = fnn.make_train_epoch(layer, both, optimizer, 1)
    state = fnn.init_train_state(layer, optimizer, jax.random.key(0))
    numbers = jnp.arange(23.0)[:, None]
    orders = [epoch(state, numbers, numbers, jax.random.key(seed))[1] for seed in (0, 0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == [1001.0 * number for number in range(23)]
    assert jnp.all(orders[0] == orders[1])
    assert jnp.any(orders[0] != orders[2])
    assert jnp.any(orders[0] != jnp.sort(orders[0]))


def test_a_shuffled_order_is_nothing_like_the_given_one():
    layer, total = recorder()
    optimizer = fnn.sgd(0.1)
    epoch = fnn.make_train_epoch(layer, total, optimizer, 1)
    state = fnn.init_train_state(layer, optimizer, jax.random.key(0))
    numbers = jnp.arange(1000.0)[:, None]
    order = epoch(state, numbers, numbers, jax.random.key(0))[1]
    assert 0.4 < jnp.mean(order[1:] > order[:-1]) < 0.6
    assert abs(jnp.corrcoef(order, numbers[:, 0])[0, 1]) < 0.15


def test_nothing_is_dropped_when_the_batch_size_does_not_divide():
    layer, total = recorder()
    optimizer = fnn.sgd(0.1)
    epoch = fnn.make_train_epoch(layer, total, optimizer, 5)
    state = fnn.init_train_state(layer, optimizer, jax.random.key(0))
    ones = jnp.ones((23, 1))
    assert epoch(state, ones, ones, jax.random.key(0))[1].tolist() == [5, 5, 5, 5, 3]


def test_an_epoch_runs_without_jit_too():
    layer, optimizer = fnn.Linear(3, 2), fnn.sgd(0.1)
    for batch_size in (12, 100):
        epoch = fnn.make_train_epoch(layer, mse, optimizer, batch_size)
        state = fnn.init_train_state(layer, optimizer, jax.random.key(0))
        expected = epoch(state, x, target, jax.random.key(0))
        with jax.disable_jit():
            actual = epoch(state, x, target, jax.random.key(0))
        chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_every_step_of_an_epoch_has_its_own_key():
    def forward(params, x, key=None):
        return (x if key is None else jnp.full(x.shape, jax.random.normal(key) / len(x))), x

    noise = fnn.Layer(lambda key: jnp.zeros(1), forward, lambda p, x, dy: (0 * p, dy))
    _, total = recorder()
    optimizer = fnn.sgd(0.1)
    state = fnn.init_train_state(noise, optimizer, jax.random.key(0))
    ones = jnp.ones((39, 1))
    run = functools.partial(fnn.make_train_epoch, noise, total, optimizer, 2)
    losses = run()(state, ones, ones, jax.random.key(0))[1]
    assert len(jnp.unique(losses.round(5))) == 20
    assert run(shuffle=False)(state, ones, ones)[1].tolist() == [2] * 19 + [1]


@pytest.mark.parametrize("make", [fnn.make_train_step, fnn.make_train_epoch])
def test_second_call_compiles_nothing_and_trains(make):
    optimizer = fnn.sgd(fnn.cosine_decay(0.1, 100), momentum=0.9)
    extra = (5,) if make is fnn.make_train_epoch else ()
    train = make(model, mse, optimizer, *extra)
    state = fnn.init_train_state(model, optimizer, jax.random.key(0))
    before, *_ = jax.tree.leaves(train(state, x, target, jax.random.key(1))[1])
    for seed in range(20):
        state, losses = train(state, x, target, jax.random.key(seed))
    assert train._cache_size() == 1
    assert jnp.mean(losses) < jnp.mean(before)


@pytest.mark.parametrize("make", [fnn.make_train_step, fnn.make_train_epoch])
def test_donation_gives_the_states_buffers_away(make):
    optimizer = fnn.sgd(0.1, momentum=0.9)
    extra = (5,) if make is fnn.make_train_epoch else ()
    kept = make(model, mse, optimizer, *extra)(state_of(optimizer), x, target, jax.random.key(1))
    state = state_of(optimizer)
    given = make(model, mse, optimizer, *extra, donate=True)(state, x, target, jax.random.key(1))
    chex.assert_trees_all_equal(given, kept)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_many_rates_and_seeds_train_in_one_program():
    def train(rate, seed):
        optimizer = fnn.sgd(rate)
        epoch = fnn.make_train_epoch(model, mse, optimizer, 5)
        state = fnn.init_train_state(model, optimizer, jax.random.key(seed))
        return epoch(state, x, target, jax.random.key(seed))

    rates, seeds = jnp.array([0.01, 0.1]), jnp.arange(3)
    grid = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))(rates, seeds)
    one = jax.tree.map(lambda leaf: leaf[1, 2], grid)
    chex.assert_trees_all_close(one, jax.jit(train)(0.1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("x_shape", "target_shape"), [((23, 3), (22, 2)), ((0, 3), (0, 2)), ((), (23, 2)), ((3,), ())]
)
def test_epoch_refuses_examples_that_do_not_match(x_shape, target_shape):
    epoch = fnn.make_train_epoch(model, mse, fnn.sgd(0.1), 5)
    with pytest.raises(ValueError, match="expected x and target with the same number of examples"):
        epoch(state_of(fnn.sgd(0.1)), jnp.ones(x_shape), jnp.ones(target_shape), jax.random.key(0))


def test_epoch_refuses_a_missing_key_and_a_wrong_batch_size():
    with pytest.raises(ValueError, match="expected a key to shuffle with"):
        fnn.make_train_epoch(model, mse, fnn.sgd(0.1), 5)(state_of(fnn.sgd(0.1)), x, target)
    for batch_size in (0, -1, 2.5, None):
        with pytest.raises(ValueError, match="expected batch_size to be an integer >= 1"):
            fnn.make_train_epoch(model, mse, fnn.sgd(0.1), batch_size)


def test_training_runs_in_float64_and_bfloat16():
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float64):
            layer = fnn.Sequential(fnn.Linear(3, 2, dtype=dtype), fnn.Tanh())
            optimizer = fnn.sgd(fnn.cosine_decay(0.1, 10), momentum=0.9)
            state = fnn.init_train_state(layer, optimizer, jax.random.key(0))
            epoch = fnn.make_train_epoch(layer, mse, optimizer, 5)
            new, losses = epoch(state, x.astype(dtype), target.astype(dtype), jax.random.key(0))
            chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
            assert losses.dtype == dtype
