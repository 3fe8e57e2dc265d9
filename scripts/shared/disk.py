"""What the scripts on the disk task share: options, network, targets, figures, statistics."""

import functools
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
from shared import figures
from shared.command_line import folder, layer_width, nonnegative_float, num_points, positive_int
from shared.host import jit_on_host

import fnn

CENTER, RADIUS = fnn.datasets.DISK_CENTER, fnn.datasets.DISK_RADIUS
ACTIVATIONS = {
    "tanh": fnn.Tanh, "relu": fnn.ReLU, "leaky_relu": fnn.LeakyReLU, "sigmoid": fnn.Sigmoid
}  # fmt: skip
METRICS = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
REDUCTIONS = ("mean", "sum", "batchmean")


def add_options(
    parser, *, epochs=150, batch_size=1, schedule="constant", reduction="batchmean", output
) -> None:
    """The options of every script on the disk. The defaults are the report's."""
    option = parser.add_argument
    falls = "the learning rate falls to 0 along half a cosine, or is constant"
    squares = "of the squared errors in the loss trained on"
    option("--epochs", type=positive_int, default=epochs, help="passes over the training points")
    option("--batch-size", type=positive_int, default=batch_size, help="points a step")
    option("--schedule", choices=("cosine", "constant"), default=schedule, help=falls)
    option("--momentum", type=nonnegative_float, default=0.0, help="of SGD")
    option("--weight-decay", type=nonnegative_float, default=0.0, help="of SGD")
    option("--hidden", type=layer_width, nargs="+", default=[25, 25, 25], help="layer widths")
    option("--activation", choices=ACTIVATIONS, default="leaky_relu", help="of the hidden layers")
    option("--reduction", choices=REDUCTIONS, default=reduction, help=squares)
    option("--train-size", type=num_points, default=1000, help="training points")
    option("--test-size", type=num_points, default=1000, help="test points")
    option("--output", type=folder, default=output, help="folder for the results")


def check_batch_size(parser, options) -> None:
    """End with an error if a batch does not fit into the training points."""
    size = options.train_size
    parser.check_most("batch-size", options.batch_size, size, f"the {size} training points")


def add_encoding_option(parser) -> None:
    targets = "targets: [1, 0] outside and [0, 1] inside, or the report's [0, 0] and [0, 1]"
    encodings = "one-hot", "report"
    parser.add_argument("--encoding", choices=encodings, default="one-hot", help=targets)


def encode(labels: jax.Array, encoding: str = "one-hot") -> jax.Array:
    """Targets (n, 2) for labels (n,)."""
    one_hot = jax.nn.one_hot(labels, 2)
    return one_hot.at[:, 0].set(0) if encoding == "report" else one_hot


def make_network(hidden, activation: str, dim_in: int = 2, dim_out: int = 2) -> fnn.Layer:
    """Linear layers of these widths, the activation between them, a Sigmoid at the end."""
    layers = []
    for start, end in pairwise([dim_in, *hidden, dim_out]):
        layers += [fnn.Linear(start, end), ACTIVATIONS[activation]()]
    return fnn.Sequential(*layers[:-1], fnn.Sigmoid())


def start(
    options, model, optimizer, seed, *, encoding="one-hot", standardize=False, dtype="float32"
):
    """The training set and the test set, the state before training, and the key of the batches.

    A set is (points, targets, labels).
    """
    train_key, test_key, init_key, epoch_key = jax.random.split(jax.random.key(seed), 4)

    def sample(key, size):
        points, labels = fnn.sample_disk(key, size, dtype=dtype)
        if standardize:  # a uniform variable has mean 1/2 and variance 1/12
            points = (points - 0.5) * math.sqrt(12)
        return points, encode(labels, encoding).astype(dtype), labels

    data = sample(train_key, options.train_size), sample(test_key, options.test_size)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(init_key))
    return data, fnn.TrainState(params, optimizer.init(params)), epoch_key


def count_steps(options, num_examples: int) -> int:
    return options.epochs * math.ceil(num_examples / options.batch_size)


def make_schedule(options, learning_rate, num_examples: int):
    """step -> rate, as the options say; the learning rate may be traced."""
    if options.schedule == "cosine":
        return fnn.cosine_decay(learning_rate, count_steps(options, num_examples))
    return fnn.constant(learning_rate)


def make_optimizer(options, learning_rate, num_examples: int) -> fnn.Optimizer:
    """SGD as the options say; the learning rate may be traced."""
    schedule = make_schedule(options, learning_rate, num_examples)
    return fnn.sgd(schedule, options.momentum, weight_decay=options.weight_decay)


def evaluate(model: fnn.Layer, params, points, targets, labels):
    """Mean squared error over all elements, and accuracy."""
    scores = fnn.predict(model, params, points)
    mse, _ = fnn.MSELoss().forward(scores, targets)
    return mse, fnn.accuracy(scores, labels)


def draw_decision_regions(model: fnn.Layer, params, points, labels) -> tuple[str, list[int]]:
    """The figure of where the network says inside, with its mistakes, and all its answers."""
    cells = jnp.array([(i + 0.5) / 200 for i in range(200)], points.dtype)  # their centres

    @jit_on_host
    def classify(params, cells, points):
        grid = jnp.stack(jnp.meshgrid(cells, cells), axis=-1)
        return [jnp.argmax(fnn.predict(model, params, x), axis=-1) for x in (grid, points)]

    inside, predicted = (part.tolist() for part in classify(params, cells, points))
    answers = zip(points.tolist(), labels.tolist(), predicted, strict=True)
    mistakes = [(point, label) for point, label, answer in answers if answer != label]
    wrong_points, their_labels = zip(*mistakes, strict=True) if mistakes else ((), ())
    figure = figures.decision_regions(inside, wrong_points, their_labels, CENTER, RADIUS)
    return figure, predicted


def confidence_interval(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean over the last axis, and the half-width of its 95 % interval by Student's t.

    The half-width is nan for one value alone and where a value is not finite.
    """
    mean, count = jnp.mean(values, axis=-1), values.shape[-1]
    if count < 2:
        return mean, jnp.full_like(mean, jnp.nan)
    return mean, _student_t(count - 1) * jnp.std(values, axis=-1, ddof=1) / math.sqrt(count)


@functools.cache
def _student_t(freedom: int) -> float:
    """The t with P(|T| > t) = 0.05, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(40):
        t = (low + high) / 2
        tail = jax.scipy.special.betainc(freedom / 2, 0.5, freedom / (freedom + t * t))
        low, high = (t, high) if tail > 0.05 else (low, t)
    return t
