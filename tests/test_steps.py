"""What training steps need and report: keys, reports, and predictions in batches."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw, make_network

import fnn
from fnn._numerics import global_norm

model, mse = make_network(), fnn.MSELoss()
x, target = draw(1, (23, 3)), draw(2, (23, 2))


def state_of(optimizer):
    return fnn.init_train_state(model, optimizer, jax.random.key(0))


DROPPING = fnn.Sequential(fnn.Linear(3, 2), fnn.Residual(fnn.remat(fnn.Dropout(0.5))))


@pytest.mark.parametrize("make", [fnn.make_train_step, fnn.make_train_epoch])
def test_a_model_that_uses_a_key_is_not_trained_without_a_key(make):
    optimizer = fnn.sgd(0.1)
    options = {"batch_size": 5, "shuffle": False} if make is fnn.make_train_epoch else {}
    state = fnn.init_train_state(DROPPING, optimizer, jax.random.key(0))
    train = make(DROPPING, mse, optimizer, **options)
    message = rf"{make.__name__}: expected a key, .* because Dropout\(0.5\) needs it"
    with pytest.raises(ValueError, match=message):
        train(state, x, target)
    train(state, x, target, jax.random.key(0))
    fnn.loss_and_grads(DROPPING, mse)(state.params, x, target)
    fnn.predict(DROPPING, state.params, x)


def test_a_layer_uses_a_key_as_the_layers_inside_until_its_forward_is_replaced():
    layer = fnn.Dropout(0.5)
    assert DROPPING.uses_key
    assert not model.uses_key
    assert DROPPING._replace(backward=DROPPING.backward).uses_key
    assert not DROPPING._replace(forward=lambda params, x, key=None: (x, None)).uses_key
    assert not fnn.Layer(*layer).uses_key
    assert fnn.Layer(*layer, uses_key=True).uses_key
    assert fnn.repeat(layer, 2).uses_key
    assert fnn.observe(layer, print).uses_key


@pytest.mark.parametrize("batch_size", [5, 23, 100])
def test_an_epoch_reports_what_each_step_had(batch_size):
    def report(grads, state):
        return {"norm": global_norm(grads), "W": state.params[0]["W"], "one": 1.0}

    optimizer = fnn.sgd(0.1)
    key = jax.random.key(1)
    epoch = fnn.make_train_epoch(model, mse, optimizer, batch_size, shuffle=False, report=report)
    state, losses, reports = epoch(state_of(optimizer), x, target, key)
    plain = fnn.make_train_epoch(model, mse, optimizer, batch_size, shuffle=False)
    chex.assert_trees_all_close((state, losses), plain(state_of(optimizer), x, target, key))
    assert reports["norm"].shape == reports["one"].shape == losses.shape
    step = fnn.make_train_step(model, mse, optimizer, report=report)
    state = state_of(optimizer)
    for number in range(len(losses)):
        batch = slice(number * batch_size, (number + 1) * batch_size)
        params = state.params
        state, _, reported = step(state, x[batch], target[batch])
        of_epoch = jax.tree.map(lambda leaf, number=number: leaf[number], reports)
        chex.assert_trees_all_close(of_epoch, reported, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(reported["W"], params[0]["W"])


@pytest.mark.parametrize("key", [0, None, jnp.arange(2), jax.random.split(jax.random.key(0))])
def test_what_is_no_key_is_refused_with_the_call_that_makes_one(key):
    message = r"init_train_state: expected a key such as jax.random.key\(0\), got "
    with pytest.raises(ValueError, match=message):
        state_of_key(key)
    if key is not None:
        for train in (
            fnn.make_train_step(model, mse, fnn.sgd(0.1)),
            fnn.make_train_epoch(model, mse, fnn.sgd(0.1), 5),
        ):
            with pytest.raises(ValueError, match=r"expected a key such as jax\.random\.key"):
                train(state_of(fnn.sgd(0.1)), x, target, key)


def state_of_key(key):
    return fnn.init_train_state(model, fnn.sgd(0.1), key)


def test_keys_of_the_older_kind_are_keys():
    chex.assert_trees_all_equal(
        state_of_key(jax.random.PRNGKey(3)), state_of_key(jax.random.key(3))
    )


def test_predict_gives_a_layer_batches_of_the_size_that_is_asked_for():
    seen = []

    def forward(params, x, key=None):
        seen.append(x.shape)
        return x, None

    layer = fnn.Layer(lambda key: (), forward, None)
    for batch_size, shapes in ((5, [(5, 3), (3, 3)]), (23, [(23, 3)]), (100, [(23, 3)])):
        seen.clear()
        chex.assert_trees_all_equal(fnn.predict(layer, (), x, batch_size=batch_size), x)
        assert seen == shapes
    assert fnn.predict(layer, (), x[:0], batch_size=5).shape == (0, 3)
