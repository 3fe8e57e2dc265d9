"""Train a small network to tell the points inside a disk from those outside it."""

import csv
import functools
import sys
import time

import disk
import figures
import jax
import jax.numpy as jnp
from command_line import Parser, nonnegative_float, progress, run, seed

import fnn

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
    option("--quiet", action="store_true", help="print the summary line alone")
    options = parser.parse_args(arguments)
    disk.check_batch_size(parser, options)
    parser.check_output(options.output, ["metrics.csv", "params.npz", *FIGURES])
    return options


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
    num_steps = disk.count_steps(options, options.train_size)
    model = disk.make_network(options.hidden, options.activation)
    loss = fnn.MSELoss(options.reduction)
    optimizer = disk.make_optimizer(options, options.learning_rate, num_steps)
    train_epoch = fnn.make_train_epoch(model, loss, optimizer, options.batch_size)

    @jax.jit
    def start(seed):
        train_key, test_key, init_key, epoch_key = jax.random.split(jax.random.key(seed), 4)
        train_set = fnn.sample_disk(train_key, options.train_size)
        test_set = fnn.sample_disk(test_key, options.test_size)
        return train_set, test_set, fnn.init_train_state(model, optimizer, init_key), epoch_key

    @jax.jit
    def run_epoch(state, train_set, test_set, epoch_key, epoch):
        key = jax.random.fold_in(epoch_key, epoch)
        (points, labels), (test_points, test_labels) = train_set, test_set
        targets, test_targets = disk.encode(labels), disk.encode(test_labels)
        state, losses = train_epoch(state, points, targets, key)
        evaluate = functools.partial(disk.evaluate, model, state.params)
        metrics = (
            *evaluate(points, targets, labels),
            *evaluate(test_points, test_targets, test_labels),
        )
        finite = jnp.isfinite(jnp.sum(losses) + metrics[0] + metrics[2])
        return state, metrics, finite

    train_set, test_set, state, epoch_key = start(jnp.uint32(options.seed))
    if not options.quiet:
        print(describe(options, state.params, num_steps), flush=True)
    table = []
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
                writer.writerow([epoch, *disk.format_metrics(*metrics)])
                table.append(metrics)
                if not finite:
                    problem = (
                        f"the loss is not finite in epoch {epoch}: lower --learning-rate, "
                        "or --momentum or --weight-decay if they are high"
                    )
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
    if table:
        draw(options, model, state.params, table, train_set, test_set)
    if problem:
        print(f"train_disk.py: {problem}; {options.output} has the results so far", file=sys.stderr)
        return status
    _, _, test_loss, test_accuracy = metrics
    print(
        f"test accuracy {test_accuracy:.2%}, test MSE {test_loss:.5f}, {num_epochs} epochs, "
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
        (options.output / name).write_text(text)


def main(arguments=None):
    return run(train, parse_options(arguments))


if __name__ == "__main__":
    sys.exit(main())
