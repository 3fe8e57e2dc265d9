"""Train a small network to tell the points inside a disk from those outside it."""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until training.run handles them

import jax
import jax.numpy as jnp
from shared import devices, disk, figures, training
from shared.command_line import Parser, UserError, leave, nonnegative_float, seed, write_text

import fnn

COLUMNS = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
FIGURES = ["data.svg", "network.svg", "curves.svg", "decision_regions.svg"]


def parse_options(arguments=None):
    parser = Parser(
        "Train a network of Linear layers on the disk task: points of the unit square, labelled "
        "by whether they are inside a disk that covers half of it. The losses reported are means "
        "over all elements, whatever the reduction trained on."
    )
    option = parser.add_argument
    option("--seed", type=seed, default=0, help="of data, parameters and batches")
    option("--learning-rate", type=nonnegative_float, default=0.5, help="at its highest")
    disk.add_training_options(
        parser,
        epochs=150,
        batch_size=5,
        schedule="cosine",
        reduction="mean",
        output="runs/disk",
    )
    training.add_options(parser, checkpoint_every=50)
    options = parser.parse_args(arguments)
    disk.check_batch_size(parser, options)
    training.check_options(parser, options, FIGURES)
    return options


def describe(options, params, num_steps):
    """What is about to run, as text."""
    widths = "-".join(map(str, [2, *options.hidden, 2]))
    return f"""\
network   {widths}, {options.activation}, sigmoid at the end: {fnn.count_params(params)} parameters
data      {options.train_size} training points, {options.test_size} test points
loss      MSE, reduction {options.reduction}
SGD       learning rate {options.learning_rate:g} ({options.schedule}), \
momentum {options.momentum:g}, weight decay {options.weight_decay:g}
run       {options.epochs} epochs, batch size {options.batch_size}: {num_steps} steps; \
seed {options.seed}
device    {devices.describe()}
output    {options.output}"""


def train(options, interruption):
    """Train, and write the results as it goes. Returns the exit status."""
    start_time = time.monotonic()
    mesh = devices.make_mesh(options, batch_size=options.batch_size, train_size=options.train_size)
    training.remove_older_checkpoint(options)
    num_steps = disk.count_steps(options, options.train_size)
    model = disk.make_network(options.hidden, options.activation)
    loss = fnn.MSELoss(options.reduction)
    optimizer = disk.make_optimizer(options, options.learning_rate, num_steps)
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)

    @jax.jit
    def start(seed):
        train_key, test_key, init_key, epoch_key = disk.split_keys(seed)
        train_set = fnn.sample_disk(train_key, options.train_size)
        test_set = fnn.sample_disk(test_key, options.test_size)
        return (train_set, test_set), epoch_key, fnn.init_train_state(model, optimizer, init_key)

    data, epoch_key, state = start(jnp.uint32(options.seed))
    if not fnn.is_finite(data):
        raise UserError("the points have NaN or infinity among their coordinates")
    placed = [devices.place_examples(options.epoch_timeout, mesh, part) for part in data]
    epoch_key = devices.place(mesh, epoch_key)

    @jax.jit
    def run_epoch(data, epoch_key, state, number):
        key = jax.random.fold_in(epoch_key, number)
        (points, labels), (test_points, test_labels) = data
        targets, test_targets = disk.encode(labels), disk.encode(test_labels)
        state, losses = train_epoch(state, points, targets, key)
        train_metrics = disk.evaluate(model, state.params, points, targets, labels)
        test_metrics = disk.evaluate(model, state.params, test_points, test_targets, test_labels)
        return state, losses, (*train_metrics, *test_metrics)

    def diagnose(state, number):
        points, labels = placed[0]
        batches = points, disk.encode(labels), jax.random.fold_in(epoch_key, number)
        return fnn.find_nonfinite_in_epoch(
            model, loss, optimizer, options.batch_size, state, *batches
        )

    params, table, status = training.run_epochs(
        options,
        lambda state, number: run_epoch(placed, epoch_key, state, number),
        state,
        COLUMNS,
        mesh=mesh,
        data_checksum=training.checksum(data),
        interruption=interruption,
        diagnose=diagnose,
        description=describe(options, state.params, num_steps),
        format_row=disk.format_metrics,
        format_progress=lambda metrics, rest: (
            "train loss {:.5f} acc {:7.2%}  test loss {:.5f} acc {:7.2%}".format(*metrics)
        ),
        remedy="lower --learning-rate, or --momentum or --weight-decay if they are high",
    )
    if jax.process_index() > 0:
        return status
    fnn.save(options.output / "params.npz", params)
    inside, predicted = disk.classify(model, params, data[1][0])
    draw(options, params, table, *data, inside, predicted)
    if status:
        return status
    _, _, test_loss, test_accuracy = table[-1]
    print(
        f"test accuracy {test_accuracy:.2%}, test MSE {test_loss:.5f}, {options.epochs} epochs, "
        f"{num_steps} steps, {time.monotonic() - start_time:.1f} seconds"
        + training.collapse(predicted, data[1][1].tolist())
    )
    return 0


def draw(options, params, table, train_set, test_set, inside, predicted):
    """Write the figures; table has a row (train loss, accuracy, test loss, accuracy) an epoch."""
    names = [options.activation] * len(options.hidden)
    train_loss, train_accuracy, test_loss, test_accuracy = zip(*table, strict=True)
    panels = [
        (y_label, [figures.Curve("training points", train), figures.Curve("test points", test)])
        for y_label, train, test in (
            ("MSE", train_loss, test_loss),
            ("accuracy, %", train_accuracy, test_accuracy),
        )
    ]
    points, labels = (array.tolist() for array in train_set)
    drawn = (
        figures.disk_data(points, labels, disk.CENTER, disk.RADIUS),
        figures.network(params, [*names, "sigmoid"]),
        figures.learning_curves(panels, f"Training, seed {options.seed}"),
        disk.draw_decision_regions(inside, predicted, *test_set),
    )
    for name, text in zip(FIGURES, drawn, strict=True):
        write_text(options.output / name, text)


def main(arguments=None):
    return training.run(train, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
