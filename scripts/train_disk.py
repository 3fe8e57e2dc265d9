"""Train a small network to tell the points inside a disk from those outside it."""

import csv
import math
import pathlib
import sys
import time
from itertools import pairwise

import jax
import jax.numpy as jnp
from command_line import Parser, nonnegative_float, positive_int, progress, seed

import fnn

ACTIVATIONS = {
    "tanh": fnn.Tanh,
    "relu": fnn.ReLU,
    "leaky_relu": fnn.LeakyReLU,
    "sigmoid": fnn.Sigmoid,
}


def parse_options(arguments=None):
    parser = Parser(
        "Train a network of Linear layers on the disk task: points of the unit square, labelled "
        "by whether they are inside a disk that covers half of it. The losses reported are means "
        "over all elements, whatever the reduction trained on."
    )
    option = parser.add_argument
    option("--seed", type=seed, default=0, help="of data, parameters and batches")
    option("--epochs", type=positive_int, default=150, help="passes over the training points")
    option("--batch-size", type=positive_int, default=5, help="points a step")
    option("--learning-rate", type=nonnegative_float, default=0.5, help="at its highest")
    option(
        "--schedule",
        choices=("cosine", "constant"),
        default="cosine",
        help="the learning rate falls to 0 along half a cosine, or is constant",
    )
    option("--momentum", type=nonnegative_float, default=0.0, help="of SGD")
    option("--weight-decay", type=nonnegative_float, default=0.0, help="of SGD")
    option("--hidden", type=positive_int, nargs="+", default=[25, 25, 25], help="layer widths")
    option("--activation", choices=ACTIVATIONS, default="leaky_relu", help="of the hidden layers")
    option(
        "--reduction",
        choices=("mean", "sum", "batchmean"),
        default="mean",
        help="of the squared errors in the loss trained on",
    )
    option("--train-size", type=positive_int, default=1000, help="training points")
    option("--test-size", type=positive_int, default=1000, help="test points")
    option("--output", type=pathlib.Path, default="runs/disk", help="folder for the results")
    option("--quiet", action="store_true", help="print the summary line alone")
    options = parser.parse_args(arguments)
    if options.batch_size > options.train_size:
        parser.error(
            f"argument --batch-size: expected at most the {options.train_size} training points, "
            f"got {options.batch_size}"
        )
    parser.check_output(options.output, ["metrics.csv", "params.npz"])
    return options


def make_network(hidden, activation):
    """Linear layers 2-hidden-2, the activation between them, a Sigmoid at the end."""
    layers = []
    for dim_in, dim_out in pairwise([2, *hidden, 2]):
        layers += [fnn.Linear(dim_in, dim_out), ACTIVATIONS[activation]()]
    return fnn.Sequential(*layers[:-1], fnn.Sigmoid())


def describe(options, params, num_steps):
    """What is about to run, as text."""
    widths = "-".join(map(str, [2, *options.hidden, 2]))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0]
    return f"""\
network   {widths}, {options.activation}, sigmoid at the end: {num_params} parameters
data      {options.train_size} training points, {options.test_size} test points
loss      MSE, reduction {options.reduction}
SGD       learning rate {options.learning_rate:g} ({options.schedule}), \
momentum {options.momentum:g}, weight decay {options.weight_decay:g}
run       {options.epochs} epochs, batch size {options.batch_size}: {num_steps} steps; \
seed {options.seed}
device    {device.platform} ({device.device_kind})
output    {options.output}"""


def train(options):
    """Train, and write the results as it goes. Returns the exit status."""
    start_time = time.monotonic()
    num_epochs = options.epochs
    num_steps = num_epochs * math.ceil(options.train_size / options.batch_size)
    rate = options.learning_rate
    model = make_network(options.hidden, options.activation)
    loss = fnn.MSELoss(options.reduction)
    optimizer = fnn.sgd(
        fnn.cosine_decay(rate, num_steps) if options.schedule == "cosine" else rate,
        options.momentum,
        weight_decay=options.weight_decay,
    )
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)

    @jax.jit
    def start(seed):
        train_key, test_key, init_key, epoch_key = jax.random.split(jax.random.key(seed), 4)
        train_set = fnn.sample_disk(train_key, options.train_size)
        test_set = fnn.sample_disk(test_key, options.test_size)
        return train_set, test_set, fnn.init_train_state(model, optimizer, init_key), epoch_key

    def evaluate(params, points, labels):
        scores = fnn.predict(model, params, points)
        mse, _ = fnn.MSELoss().forward(scores, jax.nn.one_hot(labels, 2))
        return mse, fnn.accuracy(scores, labels)

    @jax.jit
    def run_epoch(state, train_set, test_set, epoch_key, epoch):
        points, labels = train_set
        key = jax.random.fold_in(epoch_key, epoch)
        state, losses = train_epoch(state, points, jax.nn.one_hot(labels, 2), key)
        metrics = *evaluate(state.params, *train_set), *evaluate(state.params, *test_set)
        finite = jnp.isfinite(jnp.sum(losses) + metrics[0] + metrics[2])
        return state, metrics, finite

    train_set, test_set, state, epoch_key = start(options.seed)
    if not options.quiet:
        print(describe(options, state.params, num_steps), flush=True)
    problem, status = None, 0
    with (
        open(options.output / "metrics.csv", "w", newline="") as file,
        progress(num_epochs, options.quiet) as report,
    ):
        writer = csv.writer(file)
        writer.writerow(["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"])
        try:
            for epoch in range(1, num_epochs + 1):
                new_state, *results = run_epoch(state, train_set, test_set, epoch_key, epoch)
                metrics, finite = jax.device_get(results)
                writer.writerow([epoch, *(f"{metric:.8g}" for metric in metrics)])
                if not finite:
                    problem = f"the loss is not finite in epoch {epoch}: lower --learning-rate"
                    status = 1
                    break
                state = new_state
                report(
                    epoch,
                    f"epoch {epoch}/{num_epochs}  "
                    "train loss {:.5f} acc {:.2%}  test loss {:.5f} acc {:.2%}".format(*metrics),
                )
        except KeyboardInterrupt:
            problem, status = f"interrupted in epoch {epoch}", 130
    fnn.save(options.output / "params.npz", state.params)
    if problem:
        print(f"train_disk.py: {problem}; {options.output} has the results so far", file=sys.stderr)
        return status
    _, _, test_loss, test_accuracy = metrics
    print(
        f"test accuracy {test_accuracy:.2%}, test MSE {test_loss:.5f}, {num_epochs} epochs, "
        f"{num_steps} steps, {time.monotonic() - start_time:.1f} seconds"
    )
    return 0


def main(arguments=None):
    options = parse_options(arguments)
    try:
        return train(options)
    except (OSError, jax.errors.JaxRuntimeError) as error:
        print(f"train_disk.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
