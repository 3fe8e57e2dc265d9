"""Train a small network to tell the points inside a disk from those outside it."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until training.run handles them

import functools

import jax
import jax.numpy as jnp
from shared import disk, distributed, figures, training
from shared.backprop import snapshots
from shared.backprop.page import epochs_to_keep, page
from shared.command_line import Parser, UserError, leave, nonnegative_float, seed
from shared.figures import Curve
from shared.host import jit_on_host

import fnn
from fnn.files import write_text

PAGE = "backprop.html"
FIGURES = ["data.svg", "network.svg", "curves.svg", "decision_regions.svg"]


def parse_options(arguments=None):
    parser = Parser(
        "Train a network of Linear layers on the disk task: points of the unit square, labelled "
        "by whether they are inside a disk that covers half of it. The losses reported are means "
        "over all elements, whatever the reduction trained on. Let "
        "JAX_COMPILATION_CACHE_DIR name a folder, and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS "
        "be 0: then JAX keeps its compiled programs, and the next run starts a second sooner."
    )
    option = parser.add_argument
    option("--seed", type=seed, default=0, help="of data, parameters and batches")
    option("--learning-rate", type=nonnegative_float, default=0.5, help="at its highest")
    defaults = {"batch_size": 5, "schedule": "cosine", "reduction": "mean"}
    disk.add_options(parser, **defaults, output="runs/disk")
    without = f"write no {PAGE}, which plays the training back"
    option("--no-page", action="store_true", help=without)
    training.add_options(parser, checkpoint_every=50)
    options = parser.parse_args(arguments)
    disk.check_batch_size(parser, options)
    of_page = [] if options.no_page else [PAGE, snapshots.FILE]
    training.check_options(parser, options, [*FIGURES, *of_page])
    return options


def describe_network(options):
    widths = "-".join(map(str, [2, *options.hidden, 2]))
    return f"{widths}, {options.activation}, sigmoid at the end"


def train(options, run_epochs):
    """Train, and return what report needs. See training.run."""
    model = disk.make_network(options.hidden, options.activation)
    loss = fnn.MSELoss(options.reduction)
    optimizer = disk.make_optimizer(options, options.learning_rate, options.train_size)
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)

    start = jit_on_host(functools.partial(disk.start, options, model, optimizer))
    data, state, key = start(jnp.uint32(options.seed))
    if not fnn.is_finite(data):
        raise UserError("the points have NaN or infinity among their coordinates")

    def run_epoch(data, state, key):
        train_set, test_set = data
        points, targets, _ = train_set
        state, losses = train_epoch(state, points, targets, key)
        train_metrics = disk.evaluate(model, state.params, *train_set)
        test_metrics = disk.evaluate(model, state.params, *test_set)
        return state, losses, (*train_metrics, *test_metrics)

    settings, params_by_epoch = training.settings(options), {}
    kept = epochs_to_keep(options.epochs, fnn.count_params(state.params))

    def watch(number, params):
        if options.no_page:
            return
        if options.resume and not params_by_epoch:
            params_by_epoch.update(snapshots.load(options.output, params, settings))
        if number in kept or not params_by_epoch:
            params_by_epoch[number] = jax.device_get(params)
        has_news = max(params_by_epoch) > number - options.checkpoint_every  # since the last one
        if number % options.checkpoint_every == 0 and has_news:
            snapshots.save(options.output, params_by_epoch, settings)

    trained = run_epochs(
        run_epoch,
        (model, loss, optimizer),
        state,
        [distributed.place_examples(options, part) for part in data],
        key,
        data_checksum=training.checksum([(points, labels) for points, _, labels in data]),
        description=f"""\
network   {describe_network(options)}: {fnn.count_params(state.params)} parameters
data      {options.train_size} training points, {options.test_size} test points
loss      MSE, reduction {options.reduction}
SGD       learning rate {options.learning_rate:g} ({options.schedule}), \
momentum {options.momentum:g}, weight decay {options.weight_decay:g}""",
        columns=disk.METRICS,
        progress="train loss {:.5f} acc {:7.2%}  test loss {:.5f} acc {:7.2%}",
        remedy="lower --learning-rate, or --momentum or --weight-decay if they are high",
        watch=watch,
    )
    return trained, (model, loss, data, params_by_epoch)


def report(options, trained, results):
    """Write figures and page. Returns the parts of the summary line if the training is complete."""
    model, loss, (train_set, test_set), params_by_epoch = results
    points, _, labels = train_set
    test_points, _, test_labels = test_set
    regions, predicted = disk.draw_decision_regions(model, trained.params, test_points, test_labels)
    train_loss, train_accuracy, test_loss, test_accuracy = zip(*trained.table, strict=True)
    train, test = "training points", "test points"
    panels = [
        ("MSE", [Curve(train, train_loss), Curve(test, test_loss)]),
        ("accuracy, %", [Curve(train, train_accuracy), Curve(test, test_accuracy)]),
    ]
    names = [options.activation] * len(options.hidden)
    drawn = (
        figures.disk_data(points.tolist(), labels.tolist(), disk.CENTER, disk.RADIUS),
        figures.network(trained.params, [*names, "sigmoid"]),
        figures.learning_curves(panels, f"Training, seed {options.seed}"),
        regions,
    )
    for name, text in zip(FIGURES, drawn, strict=True):
        write_text(options.output / name, text)
    if not options.no_page:
        snapshots.save(options.output, params_by_epoch, training.settings(options))
        text = page(
            model,
            params_by_epoch,
            points,
            labels,
            loss=loss,
            class_names=("outside", "inside"),
            title=f"Backpropagation: {describe_network(options)}",
        )
        write_text(options.output / PAGE, text)
    if trained.status:
        return None
    text = f"test accuracy {test_accuracy[-1]:.2%}, test MSE {test_loss[-1]:.5f}"
    return text, predicted, test_labels.tolist()


def main(arguments=None):
    return training.run(train, report, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
