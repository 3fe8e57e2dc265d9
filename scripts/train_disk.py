"""Train a small network to tell the points inside a disk from those outside it."""

import functools
import time

import jax
import jax.numpy as jnp
from shared import disk, distributed, epochs, figures, resumable
from shared.command_line import Parser, UserError, leave, nonnegative_float, seed, write_text

import fnn

COLUMNS = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
FIGURES = ["data.svg", "network.svg", "curves.svg", "decision_regions.svg"]
FILES = ["metrics.csv", "params.npz", resumable.CHECKPOINT]


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
    resumable.add_options(parser, checkpoint_every=50)
    distributed.add_options(parser)
    option("--quiet", action="store_true", help="print the summary line alone")
    options = parser.parse_args(arguments)
    disk.check_batch_size(parser, options)
    distributed.check_options(parser, options)
    if not options.process_id:
        parser.check_output(options.output, [*FILES, *FIGURES])
    return options


def describe(options, params, num_steps):
    """What is about to run, as text."""
    widths = "-".join(map(str, [2, *options.hidden, 2]))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"""\
network   {widths}, {options.activation}, sigmoid at the end: {num_params} parameters
data      {options.train_size} training points, {options.test_size} test points
loss      MSE, reduction {options.reduction}
SGD       learning rate {options.learning_rate:g} ({options.schedule}), \
momentum {options.momentum:g}, weight decay {options.weight_decay:g}
run       {options.epochs} epochs, batch size {options.batch_size}: {num_steps} steps; \
seed {options.seed}
device    {distributed.describe()}
output    {options.output}"""


def make_programs(options, model, num_steps):
    """The compiled start(seed) -> data, key, state, and run_epoch(data, key, state, epoch).

    And find_nonfinite, of the latter's arguments.
    """
    optimizer = disk.make_optimizer(options, options.learning_rate, num_steps)
    loss = fnn.MSELoss(options.reduction)
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)

    @jax.jit
    def start(seed):
        train_key, test_key, init_key, epoch_key = jax.random.split(jax.random.key(seed), 4)
        train_set = fnn.sample_disk(train_key, options.train_size)
        test_set = fnn.sample_disk(test_key, options.test_size)
        state = fnn.init_train_state(model, optimizer, init_key)
        return (train_set, test_set), epoch_key, state

    @jax.jit
    def run_epoch(data, epoch_key, state, epoch):
        key = jax.random.fold_in(epoch_key, epoch)
        (points, labels), (test_points, test_labels) = data
        targets, test_targets = disk.encode(labels), disk.encode(test_labels)
        state, losses = train_epoch(state, points, targets, key)
        evaluate = functools.partial(disk.evaluate, model, state.params)
        metrics = (
            *evaluate(points, targets, labels),
            *evaluate(test_points, test_targets, test_labels),
        )
        return state, metrics, losses

    def find_nonfinite(data, epoch_key, state, epoch):
        (points, labels), _ = data
        batches = points, disk.encode(labels), jax.random.fold_in(epoch_key, epoch)
        return epochs.find_nonfinite(model, loss, optimizer, options.batch_size, state, *batches)

    return start, run_epoch, find_nonfinite


def train(options, interruption):
    """Train, and write the results as it goes. Returns the exit status."""
    start_time = time.monotonic()
    num_steps = disk.count_steps(options, options.train_size)
    model = disk.make_network(options.hidden, options.activation)
    start, run_epoch, find_nonfinite = make_programs(options, model, num_steps)
    mesh = distributed.make_mesh(
        options, batch_size=options.batch_size, train_size=options.train_size
    )
    data, epoch_key, state = start(jnp.uint32(options.seed))
    if not resumable.is_finite(data):
        raise UserError("the points have NaN or infinity among their coordinates")
    options.data_checksum = resumable.checksum(data)
    state, table = distributed.restore(options, state, COLUMNS)
    state = distributed.place(mesh, state)
    parts = [distributed.place_examples(options, mesh, part) for part in data]
    epoch_key = distributed.place(mesh, epoch_key)
    if not options.quiet:
        print(describe(options, state.params, num_steps), flush=True)
    state, status = epochs.run_epochs(
        options,
        functools.partial(run_epoch, parts, epoch_key),
        state,
        table,
        columns=COLUMNS,
        format_row=disk.format_metrics,
        format_progress=lambda epoch, metrics: (
            "train loss {:.5f} acc {:.2%}  test loss {:.5f} acc {:.2%}".format(*metrics)
        ),
        remedy="lower --learning-rate, or --momentum or --weight-decay if they are high",
        find_nonfinite=functools.partial(find_nonfinite, parts, epoch_key),
        interruption=interruption,
    )
    if jax.process_index() > 0:
        return status
    params = jax.device_get(state.params)
    fnn.save(options.output / "params.npz", params)
    draw(options, model, params, table, *data)
    if status:
        return status
    _, _, test_loss, test_accuracy = table[-1]
    print(
        f"test accuracy {test_accuracy:.2%}, test MSE {test_loss:.5f}, {options.epochs} epochs, "
        f"{num_steps} steps, {time.monotonic() - start_time:.1f} seconds"
    )
    return 0


def draw(options, model, params, table, train_set, test_set):
    """Write the figures; table has a row (train loss, accuracy, test loss, accuracy) an epoch."""
    names = [options.activation] * len(options.hidden)
    train_loss, train_accuracy, test_loss, test_accuracy = zip(*table, strict=True)
    panels = [
        (
            y_label,
            [figures.Curve("training points", train), figures.Curve("test points", test)],
        )
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
        disk.draw_decision_regions(model, params, *test_set),
    )
    for name, text in zip(FIGURES, drawn, strict=True):
        write_text(options.output / name, text)


def main(arguments=None):
    return distributed.run(resumable.interruptible(train), parse_options(arguments))


if __name__ == "__main__":
    leave(main())
