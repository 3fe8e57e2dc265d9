"""What fit refuses before a training begins, and what it takes."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw, draw_integers

import fnn

KEY = jax.random.key(0)
mse, cross_entropy = fnn.MSELoss(), fnn.CrossEntropyLoss()
model = fnn.Sequential(fnn.Linear(3, 8), fnn.Tanh(), fnn.Linear(8, 2))
x, target = draw(1, (23, 3)), draw(2, (23, 2))
labels = draw_integers(2, (23,), 2)
host_x = jax.device_get(x)
BAD = [
    ({"target": target[:20]}, r"fit: expected x and target with the same number of examples"),
    ({"x": x.tolist()}, "fit: expected x to be an array, got list"),
    ({"batch_size": 24}, "fit: expected batch_size to be an integer from 1 to 23, got 24"),
    ({"batch_size": 0}, "fit: expected batch_size to be an integer from 1 to 23, got 0"),
    ({"batch_size": 20, "validation": 0.5}, "batch_size to be an integer from 1 to 11, got 20"),
    ({"epochs": 0}, "fit: expected epochs to be an integer >= 1, got 0"),
    ({"key": 0}, "fit: expected a key such as jax.random.key.0., got 0"),
    ({"key": jax.random.split(KEY, 3)}, r"expected a key such as .* got key<fry> of shape \(3,\)"),
    ({"x": x.at[4, 1].set(jnp.nan)}, r"fit: expected x of finite numbers, got nan at \(4, 1\)"),
    ({"x": host_x.astype("float64") * 1e300}, r"expected x of finite numbers, got -?inf at \(0, 0"),
    ({"target": target.at[6, 0].set(jnp.inf)}, r"target of finite numbers, got inf at \(6, 0\)"),
    ({"x": x[:, :2]}, r"Linear\(3, 8\): expected x of shape \(..., 3\), got \(23, 2\)"),
    ({"target": target[:, 0]}, r"MSELoss: expected target of shape \(23, 2\), got \(23,\)"),
    ({"target": labels}, r"MSELoss: expected target of shape \(23, 2\), got \(23,\)"),
    ({"loss": cross_entropy, "target": labels.astype(float)}, "expected integer labels of shape"),
    ({"loss": cross_entropy, "target": labels.at[9].set(2)}, r"labels from 0 to 1, .* got 2 at"),
    ({"loss": cross_entropy, "target": labels.at[9].set(-1)}, r"got -1 at \(9,\)"),
    ({"validation": (x, target[:5])}, "fit, validation: expected x and target with the same"),
    ({"validation": (x.at[0, 0].set(jnp.nan), target)}, "fit, validation: expected x of finite"),
    ({"validation": (x, target[:, :1])}, r"MSELoss: expected target of shape \(23, 2\)"),
    ({"validation": 1.5}, "expected validation to be .x, target. or a fraction between 0 and 1"),
    ({"validation": True}, "expected validation to be .x, target. or a fraction"),
    ({"patience": 3}, "fit: expected validation with patience, got None"),
    ({"patience": 0, "validation": 0.2}, "expected patience to be an integer >= 1, got 0"),
    ({"resume": True}, "fit: expected checkpoint with resume=True, got None"),
    ({"metrics": {"loss": fnn.accuracy}}, "with names other than .loss., got 'loss'"),
    ({"metrics": {"accuracy": 0.5}}, "expected metrics to be .name: function., .* got 'accuracy'"),
    ({"metrics": [fnn.accuracy]}, "expected metrics to be .name: function., got .<function"),
    (
        {"metrics": {"rows": jnp.subtract}},
        r"a metric to be a real number, got float32 of shape \(23, 2",
    ),
    ({"metrics": {"none": lambda prediction, target: None}}, "expected a metric to be an array"),
    (
        {"metrics": {"wave": lambda p, t: jax.lax.complex(p, t)[0, 0]}},
        "a real number, got complex64 of shape",
    ),
    ({"callback": 3}, "fit: expected callback to be a function, got 3"),
    ({"checkpoint": 3}, "fit: expected checkpoint to be a path, got 3"),
    ({"metrics": {"accuracy": fnn.accuracy}}, "accuracy: expected labels of an integer dtype"),
    ({"optimizer": fnn.sgd}, "expected an Optimizer such as fnn.sgd.0.1., got <function sgd"),
    ({"optimizer": lambda steps: None}, "expected an Optimizer such as fnn.sgd"),
    ({"model": fnn.Linear}, "fit: expected a Layer at position 0, got <function Linear"),
    ({"loss": fnn.MSELoss}, "fit: expected a Loss such as fnn.MSELoss"),
    ({"checkpoint_every": 0}, "expected checkpoint_every to be an integer >= 1"),
]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # where 64 bits become 32
@pytest.mark.parametrize(
    ("change", "message"), BAD, ids=[f"{i}-{'-'.join(c)}" for i, (c, _) in enumerate(BAD)]
)
def test_what_makes_no_sense_is_told_before_the_training(change, message):
    ran = []
    given = {"model": model, "loss": mse, "optimizer": fnn.sgd(0.1), "x": x, "target": target}
    given |= {"epochs": 1, "batch_size": 5, "key": KEY, "progress": False, **change}
    with pytest.raises(ValueError, match=message):
        fnn.fit(**{"callback": ran.append, **given})
    assert not ran


def broken(prediction, target):
    raise RuntimeError("broken")


@pytest.mark.parametrize(("metric", "error"), [(broken, RuntimeError), (jnp.subtract, ValueError)])
def test_a_refused_metric_leaves_the_older_checkpoint(metric, error, tmp_path):
    path = tmp_path / "run.npz"
    run = functools.partial(
        fnn.fit, model, mse, fnn.sgd(0.1), x, target, epochs=1, batch_size=5, key=KEY,
        progress=False, checkpoint=path,
    )  # fmt: skip
    run()
    before = path.read_bytes()
    with pytest.raises(error) as caught:
        run(metrics={"mine": metric})
    assert "in fit, in the metric 'mine'" in caught.value.__notes__
    assert path.read_bytes() == before


def test_a_fraction_may_be_a_numpy_scalar():
    half = jax.device_get(jnp.float32(0.5))[()]
    results = [
        fnn.fit(
            model, mse, fnn.sgd(0.1), x, target, epochs=1, batch_size=5, key=KEY, progress=False,
            validation=fraction,
        )
        for fraction in (half, 0.5)
    ]  # fmt: skip
    assert type(half).__name__ == "float32"
    chex.assert_trees_all_equal(*results)


def test_errors_about_examples_say_which():
    with pytest.raises(ValueError, match="MSELoss") as caught:
        fnn.fit(
            model, mse, fnn.sgd(0.1), x, target, epochs=1, batch_size=5, key=KEY,
            validation=(x, target[:, :1]),
        )  # fmt: skip
    assert caught.value.__notes__[-1] == "in fit, with the validation examples"


def test_a_loss_of_ones_own_may_know_more_labels():
    def forward(scores, labels):
        value, kept = cross_entropy.forward(scores, jnp.maximum(labels, 0))
        return value, kept * jnp.expand_dims(labels >= 0, -1).astype(kept.dtype)

    ignoring = fnn.Loss(forward, cross_entropy.backward)
    fnn.fit(
        model, ignoring, fnn.sgd(0.1), x, labels.at[3].set(-100), epochs=1, batch_size=5, key=KEY,
        progress=False,
    )  # fmt: skip


def test_arrays_may_be_numpys_of_64_bits():
    wide = host_x.astype("float64"), jax.device_get(labels).astype("int64")
    options = {"epochs": 1, "batch_size": 5, "key": KEY, "progress": False}
    results = [
        fnn.fit(model, cross_entropy, fnn.sgd(0.1), *arrays, **options)
        for arrays in (wide, (x, labels))
    ]
    chex.assert_trees_all_equal(*results)
