"""Train a network on MNIST, or on any other images and labels in four files of its format."""

import argparse
import functools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
from shared import distributed, epochs, figures, mnist, pictures, resumable
from shared.command_line import (
    Parser,
    UserError,
    fraction,
    leave,
    nonnegative_float,
    positive_int,
    seed,
    time_left,
    write_text,
)

import fnn

COLUMNS = ["train_loss", "validation_loss", "validation_accuracy"]
FIGURES = ["curves.svg", "mistakes.svg"]
FILES = ["metrics.csv", "params.npz", resumable.CHECKPOINT]
MOST_MISTAKES = 24  # drawn


def parse_options(arguments=None):
    parser = Parser(
        "Train a network to classify grey images. The data are four IDX files, plain or "
        "compressed, in one folder: train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte. Image size and number of classes are "
        "theirs. One in twelve of the training images, drawn at random, is held out for "
        "validation; the test images are looked at once, at the end."
    )
    option = parser.add_argument
    option(
        "--data",
        type=pathlib.Path,
        required=True,
        default=argparse.SUPPRESS,
        help="folder with the four files",
    )
    option("--model", choices=mnist.MODELS, default="mlp", help="dense, or convolutional")
    option("--seed", type=seed, default=0, help="of held-out images, parameters and batches")
    option("--epochs", type=positive_int, default=15, help="passes over the training images")
    option("--batch-size", type=positive_int, default=100, help="images a step")
    option(
        "--learning-rate",
        type=nonnegative_float,
        default=0.002,
        help="of Adam, at its highest; it falls to 0 along half a cosine",
    )
    option("--weight-decay", type=nonnegative_float, default=0.0, help="of Adam, decoupled")
    option("--dropout", type=fraction, default=0.3, help="share of the hidden units dropped")
    option("--output", type=pathlib.Path, default="runs/mnist", help="folder for the results")
    resumable.add_options(parser, checkpoint_every=1)
    distributed.add_options(parser)
    option("--quiet", action="store_true", help="print the summary line alone")
    options = parser.parse_args(arguments)
    distributed.check_options(parser, options)
    if not options.process_id:
        parser.check_output(options.output, [*FILES, *FIGURES])
    return options


def describe(options, model, image_shape, sizes, num_classes, num_steps):
    """What is about to run, as text; sizes are the numbers of images in the three sets."""
    height, width = image_shape
    num_training, num_validation, num_tests = sizes
    return f"""\
{fnn.summary(model, (options.batch_size, height, width), jnp.uint8)}

data      {options.data}: {num_classes} classes, {height} by {width} pixels
images    {num_training} to train on, {num_validation} for validation, {num_tests} for the test
Adam      learning rate {options.learning_rate:g} (cosine), \
weight decay {options.weight_decay:g}, dropout {options.dropout:g}
run       {options.epochs} epochs, batch size {options.batch_size}: {num_steps} steps; \
seed {options.seed}
device    {distributed.describe()}
output    {options.output}"""


def make_programs(options, model, num_steps):
    """The compiled start(key) -> state, and run_epoch(data, key, state, epoch).

    And find_nonfinite, of the latter's arguments.
    """
    schedule = fnn.cosine_decay(options.learning_rate, num_steps)
    optimizer = fnn.adam(schedule, weight_decay=options.weight_decay)
    loss = fnn.CrossEntropyLoss()
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)

    @jax.jit
    def start(key):
        return fnn.init_train_state(model, optimizer, key)

    @jax.jit
    def run_epoch(data, epoch_key, state, epoch):
        train_set, validation_set = data
        state, losses = train_epoch(state, *train_set, jax.random.fold_in(epoch_key, epoch))
        validation_loss, accuracy, _ = mnist.evaluate(model, state.params, *validation_set)
        return state, (jnp.mean(losses), validation_loss, accuracy), losses

    def find_nonfinite(data, epoch_key, state, epoch):
        batches = *data[0], jax.random.fold_in(epoch_key, epoch)
        return epochs.find_nonfinite(model, loss, optimizer, options.batch_size, state, *batches)

    return start, run_epoch, find_nonfinite


def train(options, interruption):
    """Train, and write the results as it goes. Returns the exit status."""
    start_time = time.monotonic()
    split_key, init_key, epoch_key = jax.random.split(jax.random.key(jnp.uint32(options.seed)), 3)
    mesh = distributed.make_mesh(options, batch_size=options.batch_size)
    with distributed.together(options):
        (path, labels), test_set, num_classes = mnist.read(options.data)
    labels_and_tests = resumable.checksum((labels, test_set))
    distributed.agree(options, "labels or test images", labels_and_tests)
    numbers = jnp.arange(len(labels))
    sets = mnist.hold_out(split_key, numbers, labels, multiple=mesh.size if mesh else 1)
    sizes = [len(labels) for _, labels in (*sets, test_set)]
    if options.batch_size > sizes[0]:
        raise UserError(
            f"argument --batch-size: expected at most the {sizes[0]} training images, "
            f"got {options.batch_size}"
        )
    read = functools.partial(mnist.read_examples, path)
    placed = [distributed.place_examples(options, mesh, part, read) for part in sets]
    with distributed.epoch_deadline(options):
        checksum = sum(jnp.sum(checksums, dtype=jnp.uint32) for _, _, checksums in placed)
        options.data_checksum = [int(checksum), labels_and_tests]
    data = [(images, labels) for images, labels, _ in placed]
    image_shape = test_set[0].shape[1:]
    model = mnist.MODELS[options.model](*image_shape, num_classes, options.dropout)
    num_steps = options.epochs * math.ceil(sizes[0] / options.batch_size)
    start, run_epoch, find_nonfinite = make_programs(options, model, num_steps)
    state, table = distributed.restore(options, start(init_key), COLUMNS)
    num_done = len(table)
    if not options.quiet:
        print(describe(options, model, image_shape, sizes, num_classes, num_steps), flush=True)
    loop_start = time.monotonic()

    def format_progress(epoch, metrics):
        rest = time_left(loop_start, epoch - num_done, options.epochs - num_done)
        return "train loss {:.4f}  val loss {:.4f} acc {:.2%}  ".format(*metrics) + rest

    epoch_key = distributed.place(mesh, epoch_key)
    state, status = epochs.run_epochs(
        options,
        functools.partial(run_epoch, data, epoch_key),
        distributed.place(mesh, state),
        table,
        columns=COLUMNS,
        format_row=lambda *metrics: [f"{value:.6g}" for value in metrics],
        format_progress=format_progress,
        remedy="lower --learning-rate",
        find_nonfinite=functools.partial(find_nonfinite, data, epoch_key),
        interruption=interruption,
    )
    if jax.process_index() > 0:
        return status
    state = jax.device_get(state)
    fnn.save(options.output / "params.npz", state.params)
    draw_curves(options, table)
    if status:
        return status
    test = jax.jit(functools.partial(mnist.test, model, most_mistakes=MOST_MISTAKES))
    test_loss, test_accuracy, *mistakes = jax.device_get(test(state.params, *test_set))
    draw_mistakes(options, sizes[-1], *mistakes)
    print(
        f"test accuracy {test_accuracy:.2%}, test loss {test_loss:.5f}, {options.epochs} epochs, "
        f"{num_steps} steps, {time.monotonic() - start_time:.1f} seconds"
    )
    return 0


def draw_curves(options, table):
    """Write the curves; table has a row (train loss, validation loss, accuracy) an epoch."""
    train_loss, validation_loss, validation_accuracy = zip(*table, strict=True)
    validation = "validation images"
    panels = [
        (
            "cross-entropy",
            [
                figures.Curve(validation, validation_loss),
                figures.Curve("training images, with dropout", train_loss),
            ],
        ),
        ("accuracy, %", [figures.Curve(validation, validation_accuracy)]),
    ]
    curves = figures.learning_curves(panels, f"Training, {options.model}, seed {options.seed}")
    write_text(options.output / "curves.svg", curves)


def draw_mistakes(options, num_tests, num_mistakes, mistakes):
    """Write the picture of the most confident mistakes, of num_mistakes in all."""
    mistakes = [part.tolist()[:num_mistakes] for part in mistakes]
    title = (
        f"The {len(mistakes[0])} most confident of {num_mistakes} mistakes among {num_tests} "
        "test images"
    )
    write_text(options.output / "mistakes.svg", pictures.mistakes(*mistakes, title))


def main(arguments=None):
    return distributed.run(resumable.interruptible(train), parse_options(arguments))


if __name__ == "__main__":
    leave(main())
