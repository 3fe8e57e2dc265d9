"""What stands in the place of something else is refused, and the message says what was expected."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

KEY = jax.random.key(0)
model, mse, sgd = fnn.Linear(3, 2), fnn.MSELoss(), fnn.sgd(0.1)
x, target = draw(1, (6, 3)), draw(2, (6, 2))


@pytest.mark.parametrize("make", [fnn.make_train_step, fnn.make_train_epoch])
def test_makers_refuse_what_is_no_model_loss_or_optimizer(make):
    batch_size = (2,) if make is fnn.make_train_epoch else ()
    for arguments, message in (
        ((None, mse, sgd), "expected a Layer at position 0, got None"),
        ((fnn.Linear, mse, sgd), "expected a Layer at position 0, got <function Linear"),
        ((model, fnn.MSELoss, sgd), "expected a Loss such as fnn.MSELoss.., got <function MSELoss"),
        ((model, None, sgd), "expected a Loss such as fnn.MSELoss.., got None"),
        ((model, mse, None), "expected an Optimizer such as fnn.sgd.0.1., got None"),
        ((model, mse, fnn.sgd), "expected an Optimizer such as fnn.sgd.0.1., got <function sgd"),
    ):
        with pytest.raises(ValueError, match=message):
            make(*arguments, *batch_size)


def test_states_are_made_of_a_layer_and_an_optimizer():
    with pytest.raises(ValueError, match="init_train_state: expected a Layer"):
        fnn.init_train_state(None, sgd, KEY)
    with pytest.raises(ValueError, match="init_train_state: expected an Optimizer"):
        fnn.init_train_state(model, fnn.sgd, KEY)
    with pytest.raises(ValueError, match="clip_by_global_norm: expected an Optimizer"):
        fnn.clip_by_global_norm(0.1, 1.0)


def test_one_optimizers_state_given_to_another_is_refused():
    params = model.init(KEY)
    for one, other in ((sgd, fnn.adam(0.1)), (fnn.adam(0.1), sgd)):
        with pytest.raises(
            ValueError, match=r"expected a state of (sgd|adam), got (SGD|Adam)State"
        ):
            one.update(params, other.init(params), params)


@pytest.mark.parametrize("optimizer", [sgd, fnn.adam(0.1)], ids=["sgd", "adam"])
def test_integer_params_are_refused_by_name(optimizer):
    params = {"W": jnp.ones(2), "n": jnp.arange(2)}
    with pytest.raises(ValueError, match=r"expected params\['n'\] of a floating dtype, got int32"):
        optimizer.init(params)
    state = optimizer.init({"W": params["W"], "n": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"expected params\['n'\] of a floating dtype"):
        optimizer.update(params, state, params)


def test_lists_of_examples_are_refused_by_the_epoch():
    epoch = fnn.make_train_epoch(model, mse, sgd, 2)
    state = fnn.init_train_state(model, sgd, KEY)
    with pytest.raises(ValueError, match="make_train_epoch: expected x to be an array, got list"):
        epoch(state, x.tolist(), target, KEY)
    with pytest.raises(ValueError, match="expected target to be an array, got list"):
        epoch(state, x, target.tolist(), KEY)


def one_per_row(layer):
    """The layer with a stray keepdims: dx (n, 1), which broadcasts to (n, 3)."""

    def backward(params, residuals, dy):
        grads, dx = layer.backward(params, residuals, dy)
        return grads, dx.sum(axis=-1, keepdims=True)

    return layer._replace(backward=backward)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (fnn.Residual, r"Residual: expected the layer's dx of shape \(6, 3\), got \(6, 1\)"),
        (
            lambda layer: fnn.Parallel(fnn.Tanh(), layer),
            r"Parallel: expected dx of layer 1 of shape \(6, 3\), got \(6, 1\)",
        ),
        (
            lambda layer: fnn.Parallel(layer, fnn.Tanh(), combine="sum"),
            r"Parallel: expected dx of layer 0 of shape \(6, 3\), got \(6, 1\)",
        ),
        (
            lambda layer: fnn.repeat(layer, 2),
            r"repeat: expected dx to be like dy, float32 of shape \(6, 3\), got .*\(6, 1\)",
        ),
        (lambda layer: fnn.Sequential(fnn.Tanh(), layer), r"expected dy of shape \(6, 3\)"),
    ],
    ids=["Residual", "Parallel", "Parallel-sum", "repeat", "Sequential"],
)
def test_a_dx_that_would_broadcast_is_refused(combine, message, wrap):
    layer = combine(one_per_row(fnn.Linear(3, 3)))
    params = layer.init(KEY)
    y, residuals = layer.forward(params, x)
    with pytest.raises(ValueError, match=message):
        wrap(layer.backward)(params, residuals, y)


def test_a_loss_value_that_is_no_scalar_is_refused():
    rows = fnn.Loss(lambda y, t: (jnp.square(y - t).sum(axis=-1), y - t), lambda d: 2 * d)
    message = r"loss_and_grads: expected a loss value of shape \(\), .*got \(6,\)"
    with pytest.raises(ValueError, match=message):
        fnn.loss_and_grads(model, rows)(model.init(KEY), x, target)
    values = fnn.accumulate_gradients(lambda params, x, t: (x[:, 0], params), 2)
    with pytest.raises(ValueError, match=r"accumulate_gradients: expected a loss value of shape"):
        values(model.init(KEY), x, target)


def test_grads_that_do_not_add_up_are_refused():
    each = fnn.loss_and_grads(fnn.per_example(model), mse)
    with pytest.raises(ValueError, match="accumulate_gradients: expected grads of shapes"):
        fnn.accumulate_gradients(each, 2)(model.init(KEY), x, target)


@pytest.mark.parametrize("make", [fnn.make_train_step, fnn.make_train_epoch])
def test_numbers_as_parameters_compile_once(make):
    def forward(scale, x, key=None):
        return scale * x, x

    numbers = 0.5, jax.device_get(jnp.float32(0.5)), jnp.asarray(0.5)  # NumPy's, weakly typed
    for number in numbers:
        scale = fnn.Layer(
            lambda key, number=number: number, forward, lambda s, x, dy: ((dy * x).sum(), s * dy)
        )
        train = make(scale, mse, sgd, *((3,) if make is fnn.make_train_epoch else ()))
        state = fnn.init_train_state(scale, sgd, KEY)
        for _ in range(2):
            state, _ = train(state, x, x, KEY)
        assert train._cache_size() == 1


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_repeat_draws_as_sequential_with_keys_of_every_kind(impl):
    key, layer = jax.random.key(0, impl=impl), fnn.Linear(3, 3)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *fnn.Sequential(*[layer] * 3).init(key))
    chex.assert_trees_all_equal(fnn.repeat(layer, 3).init(key), stacked)


def test_a_list_can_be_differentiated_through_as_jax_function():
    function = fnn.as_jax_function(fnn.Tanh())
    slopes = jax.grad(lambda values: function((), values).sum())([0.0, 1.0])
    assert jnp.allclose(jnp.array(slopes), 1 - jnp.tanh(jnp.array([0.0, 1.0])) ** 2)


def test_predict_in_batches_is_predict():
    params = model.init(KEY)
    for batch_size in (1, 4, 6, 100):
        y = fnn.predict(model, params, x, batch_size=batch_size)
        chex.assert_trees_all_close(y, fnn.predict(model, params, x), rtol=1e-6)
    with pytest.raises(ValueError, match="predict: expected batch_size to be an integer >= 1"):
        fnn.predict(model, params, x, batch_size=0)
    with pytest.raises(ValueError, match=r"predict: expected x of shape \(n, ...\)"):
        fnn.predict(fnn.Tanh(), (), 1.0, batch_size=2)


@jax.tree_util.register_pytree_node_class
class Box:
    """A node of one's own, which does not know equality."""

    def __init__(self, W):
        self.W = W

    def tree_flatten(self):
        return (self.W,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_params_may_be_any_pytree():
    params = Box(jnp.ones(3))
    for optimizer in (sgd, fnn.adam(0.1), fnn.clip_by_global_norm(fnn.sgd(0.1, 0.9), 1.0)):
        new, _ = optimizer.update(Box(jnp.ones(3)), optimizer.init(params), params)
        assert jnp.all(new.W < 1)
    evaluate = fnn.accumulate_gradients(lambda params, x, target: (jnp.sum(x), params), 2)
    assert evaluate(params, x, target)[1].W.shape == (3,)


def test_large_whole_numbers_are_numbers():
    for make in (
        lambda: fnn.clip_by_global_norm(sgd, 10**10),
        lambda: fnn.clip_gradient(fnn.Tanh(), 10**30),
        lambda: fnn.scale_gradient(fnn.Tanh(), -(10**12)),
    ):
        make()
    with pytest.raises(ValueError, match="expected max_norm to be a finite number above 0, got 1"):
        fnn.clip_by_global_norm(sgd, 10**400)


def test_a_huber_loss_of_the_smallest_delta_has_a_derivative():
    _, d_prediction = fnn.HuberLoss(1e-50, "sum").forward(jnp.ones(3), jnp.zeros(3))
    assert jnp.all(d_prediction > 0)
