"""Train a network on MNIST, or on any other images and labels in four files of its format."""

import argparse
import functools
import hashlib
import math
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until training.run handles them

import jax
import jax.numpy as jnp
from shared import devices, distributed, figures, mnist, pictures, training
from shared.command_line import (
    Parser,
    UserError,
    folder,
    fraction,
    leave,
    nonnegative_float,
    positive_int,
    seed,
    write_text,
)

import fnn

COLUMNS = ["train_loss", "validation_loss", "validation_accuracy"]
FIGURES = ["curves.svg", "mistakes.svg"]
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
        type=folder,
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
    option("--output", type=folder, default="runs/mnist", help="folder for the results")
    training.add_options(parser, checkpoint_every=1)
    options = parser.parse_args(arguments)
    training.check_options(parser, options, FIGURES)
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
device    {devices.describe()}
output    {options.output}"""


def train(options, interruption):
    """Train, and write the results as it goes. Returns the exit status."""
    start_time = time.monotonic()
    split_key, init_key, epoch_key = jax.random.split(jax.random.key(jnp.uint32(options.seed)), 3)
    mesh = devices.make_mesh(options, batch_size=options.batch_size)
    with distributed.together(options.epoch_timeout):
        (path, labels), test_set, num_classes = mnist.read(options.data)
    labels_and_tests = training.checksum((labels, test_set))
    with open(path, "rb") as file:
        images_digest = hashlib.file_digest(file, "sha256").hexdigest()
    distributed.agree(options.epoch_timeout, {"data": (labels_and_tests, images_digest)})
    numbers = jnp.arange(len(labels))
    sets = mnist.hold_out(split_key, numbers, labels, multiple=mesh.size if mesh else 1)
    sizes = [len(labels) for _, labels in (*sets, test_set)]
    num_examples, batch_size = sizes[0], options.batch_size
    if batch_size > num_examples:
        raise UserError(
            f"argument --batch-size: expected at most the {num_examples} training images, "
            f"got {batch_size}"
        )
    image_shape = test_set[0].shape[1:]
    model = mnist.MODELS[options.model](*image_shape, num_classes, options.dropout)
    training.remove_older_checkpoint(options)
    read = functools.partial(mnist.read_examples, path)
    placed = [devices.place_examples(options.epoch_timeout, mesh, part, read) for part in sets]
    data = [(images, labels) for images, labels, _ in placed]
    with distributed.epoch_deadline(options.epoch_timeout):
        checksum = int(sum(jnp.sum(checksums, dtype=jnp.uint32) for _, _, checksums in placed))

    num_steps = options.epochs * math.ceil(num_examples / batch_size)
    schedule = fnn.cosine_decay(options.learning_rate, num_steps)
    optimizer = fnn.adam(schedule, weight_decay=options.weight_decay)
    loss = fnn.CrossEntropyLoss()
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size)
    state = jax.jit(functools.partial(fnn.init_train_state, model, optimizer))(init_key)
    epoch_key = devices.place(mesh, epoch_key)

    @jax.jit
    def run_epoch(data, epoch_key, state, number):
        train_set, validation_set = data
        state, losses = train_epoch(state, *train_set, jax.random.fold_in(epoch_key, number))
        train_loss = mnist.mean_over_examples(losses, num_examples, batch_size)
        validation_loss, accuracy, _ = mnist.evaluate(model, state.params, *validation_set)
        return state, losses, (train_loss, validation_loss, accuracy)

    def diagnose(state, number):
        batches = *data[0], jax.random.fold_in(epoch_key, number)
        return fnn.find_nonfinite_in_epoch(model, loss, optimizer, batch_size, state, *batches)

    params, table, status = training.run_epochs(
        options,
        lambda state, number: run_epoch(data, epoch_key, state, number),
        state,
        COLUMNS,
        mesh=mesh,
        data_checksum=[checksum, labels_and_tests],
        interruption=interruption,
        diagnose=diagnose,
        description=describe(options, model, image_shape, sizes, num_classes, num_steps),
        format_row=lambda *metrics: [f"{value:.6g}" for value in metrics],
        format_progress=lambda metrics, rest: (
            "train loss {:.4f}  val loss {:.4f} acc {:7.2%}  ".format(*metrics) + rest
        ),
        remedy="lower --learning-rate",
    )
    if jax.process_index() > 0:
        return status
    fnn.save(options.output / "params.npz", params)
    draw_curves(options, table)
    if status:
        return status
    test = jax.jit(functools.partial(mnist.test, model, most_mistakes=MOST_MISTAKES))
    test_loss, test_accuracy, predicted, *mistakes = jax.device_get(test(params, *test_set))
    draw_mistakes(options, sizes[-1], *mistakes)
    print(
        f"test accuracy {test_accuracy:.2%}, test loss {test_loss:.5f}, {options.epochs} epochs, "
        f"{num_steps} steps, {time.monotonic() - start_time:.1f} seconds"
        + training.collapse(predicted.tolist(), test_set[1].tolist())
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
    return training.run(train, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
