# /// script
# requires-python = ">=3.11"
# dependencies = ["fnn", "jax", "torch"]
#
# [tool.uv.sources]
# fnn = { path = "..", editable = true }
# ///
"""Train the disk network in fnn and in PyTorch, from the same parameters on the same batches."""

import math
import time
from itertools import pairwise

import jax
import jax.numpy as jnp
from shared import disk, figures
from shared.command_line import (
    Parser,
    leave,
    nonnegative_float,
    run,
    seed,
    tell,
    write_rows,
    write_text,
)

import fnn

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def parse_options(arguments=None):
    parser = Parser(
        "Train the disk network in fnn and in PyTorch, from the same initial parameters on the "
        "same batches in the same order, and compare them. Losses are means over all elements."
    )
    option = parser.add_argument
    option("--seed", type=seed, default=0, help="of data, parameters and batches")
    option("--rates", type=nonnegative_float, nargs="+", default=[0.01], help="learning rates")
    option("--torch-rate", type=nonnegative_float, help="PyTorch's rate, if not fnn's")
    option("--torch-reduction", choices=disk.REDUCTIONS, help="PyTorch's reduction, if not fnn's")
    option("--dtype", choices=("float32", "float64"), default="float32", help="of all arithmetic")
    disk.add_encoding_option(parser)
    disk.add_training_options(parser, **disk.REPORT_PROTOCOL, output="runs/compare")
    options = parser.parse_args(arguments)
    disk.check_batch_size(parser, options)
    if len({f"{rate:g}" for rate in options.rates}) < len(options.rates):
        message = f"expected rates that print differently, got {options.rates}"
        parser.error(f"argument --rates: {message}")
    require_pytorch(parser)
    figure_names = [f"curves_{rate:g}.svg" for rate in options.rates]
    parser.check_output(options.output, ["comparison.csv", *figure_names])
    return options


def import_torch():
    """PyTorch, which is imported where it is used, and by the scripts that compare alone."""
    import torch

    return torch


def require_pytorch(parser):
    """End with an error where PyTorch is not installed."""
    try:
        import_torch()
    except ImportError:
        parser.error("PyTorch is not installed; 'pip install torch' installs it")


def compare(options):
    """Train in both frameworks at every rate, and report. Returns the exit status."""
    widths = "-".join(map(str, [2, *options.hidden, 2]))
    print(
        f"network {widths}, {options.activation}, {options.dtype}; {options.encoding} targets; "
        f"seed {options.seed}\n{options.epochs} epochs, batch size {options.batch_size}, "
        f"momentum {options.momentum:g}, weight decay {options.weight_decay:g}"
    )
    columns = [f"{framework}_{name}" for framework in ("fnn", "torch") for name in METRICS]
    rows = [["learning_rate", "epoch", *columns, "largest_difference"]]
    with jax.enable_x64(options.dtype == "float64"):
        for rate in options.rates:
            table = compare_at(options, rate)
            for epoch, (ours, theirs, difference) in enumerate(table, 1):
                metrics = *disk.format_metrics(*ours), *disk.format_metrics(*theirs)
                rows.append([rate, epoch, *metrics, f"{difference:.3g}"])
            write_rows(options.output / "comparison.csv", rows)
            title = f"Training in both frameworks, learning rate {rate:g}, seed {options.seed}"
            write_text(options.output / f"curves_{rate:g}.svg", draw_curves(table, title))
            ours, theirs, _ = table[-1]
            if not all(map(math.isfinite, (*ours, *theirs))):
                tell(f"losses are not finite at rate {rate:g}: lower --rates")
                return 1
    return 0


def draw_curves(table, title):
    """Training loss and accuracy over the epochs in both frameworks."""
    panels = []
    for index, y_label in enumerate(("training MSE", "training accuracy, %")):
        ours = figures.Curve("fnn", [metrics[index] for metrics, _, _ in table])
        theirs = figures.Curve("PyTorch", [metrics[index] for _, metrics, _ in table], dashed=True)
        panels.append((y_label, (ours, theirs)))
    return figures.learning_curves(panels, title)


def compare_at(options, rate):
    """Train at one rate. An entry an epoch: fnn's METRICS, PyTorch's, the largest difference."""
    data, state, epoch_key, train, evaluate = start_fnn(options, rate)
    network, torch_epoch = start_torch(options, rate, state.params)
    torch_data = [to_torch(part) for part in data]

    @jax.jit
    def shuffle(epoch):
        points, targets, _ = data[0]
        order = jax.random.permutation(jax.random.fold_in(epoch_key, epoch), options.train_size)
        return points[order], targets[order]

    @jax.jit
    def largest_difference(params, others):
        pairs = zip(jax.tree.leaves(params), others, strict=True)
        return jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)) for a, b in pairs]))

    jax.block_until_ready(train(state, *shuffle(0)))  # compile, untimed
    table, seconds = [], [0.0, 0.0]
    for epoch in range(1, options.epochs + 1):
        batches = jax.block_until_ready(shuffle(epoch))
        started = time.perf_counter()
        state, _ = jax.block_until_ready(train(state, *batches))
        seconds[0] += time.perf_counter() - started
        batches = to_torch(batches)
        started = time.perf_counter()
        torch_epoch(*batches)
        seconds[1] += time.perf_counter() - started
        ours = [float(m) for part in data for m in evaluate(state.params, part)]
        theirs = [float(m) for part in torch_data for m in torch_evaluate(network, *part)]
        others = [jnp.asarray(p.detach().numpy()) for p in network.parameters()]
        difference = float(largest_difference(state.params, others))
        table.append((ours, theirs, difference))
        print(f"epoch {epoch}/{options.epochs}  largest parameter difference {difference:.2e}")

    print("\nframework  training loss  accuracy   test loss  accuracy   training time")
    for framework, metrics, spent in zip(("fnn", "PyTorch"), table[-1][:2], seconds, strict=True):
        line = "{:<9}  {:13.5f}  {:8.2%}  {:10.5f}  {:8.2%}  {:12.3f} s"
        print(line.format(framework, *metrics, spent))
    print(f"PyTorch's time / fnn's: {seconds[1] / seconds[0]:.1f}", flush=True)
    return table


def start_fnn(options, rate):
    """Both sets of points, the state, the batches' key, the compiled epoch and evaluation."""
    num_steps = disk.count_steps(options, options.train_size)
    model = disk.make_network(options.hidden, options.activation)
    loss, optimizer = fnn.MSELoss(options.reduction), disk.make_optimizer(options, rate, num_steps)

    @jax.jit
    def start(seed):
        train_key, test_key, init_key, epoch_key = disk.split_keys(seed)
        data = []
        for key, size in ((train_key, options.train_size), (test_key, options.test_size)):
            points, labels = fnn.sample_disk(key, size, dtype=options.dtype)
            targets = disk.encode(labels, options.encoding).astype(options.dtype)
            data.append((points, targets, labels))
        params = jax.tree.map(lambda leaf: leaf.astype(options.dtype), model.init(init_key))
        return data, fnn.TrainState(params, optimizer.init(params)), epoch_key

    print(f"\nfnn: learning rate {rate:g}, reduction {options.reduction}")
    train = fnn.make_train_epoch(model, loss, optimizer, options.batch_size, shuffle=False)
    evaluate = jax.jit(lambda params, part: disk.evaluate(model, params, *part))
    return *start(jnp.uint32(options.seed)), train, evaluate


def start_torch(options, rate, params):
    """The network with these params, and a function that trains it for an epoch."""
    import torch

    torch.set_num_threads(1)  # its fastest on a network this small
    network = torch_network(options.hidden, options.activation, to_torch(jax.tree.leaves(params)))
    rate = rate if options.torch_rate is None else options.torch_rate
    reduction = options.torch_reduction or options.reduction
    optimizer = torch.optim.SGD(
        network.parameters(), 0.0, options.momentum, weight_decay=options.weight_decay
    )
    num_steps = disk.count_steps(options, options.train_size)
    schedule = disk.make_schedule(options, rate, num_steps)
    rates = iter(jax.vmap(schedule)(jnp.arange(num_steps)).tolist())

    def epoch(points, targets):
        batches = points.split(options.batch_size), targets.split(options.batch_size)
        for x, target in zip(*batches, strict=True):
            optimizer.param_groups[0]["lr"] = next(rates)
            torch_step(network, optimizer, reduction, x, target)

    print(f"PyTorch: learning rate {rate:g}, reduction {reduction}")
    return network, epoch


def to_torch(arrays):
    """JAX arrays as torch tensors."""
    import torch

    return [torch.tensor(jax.device_get(array)) for array in arrays]


def torch_network(hidden, activation, weights):
    """torch.nn's counterpart of disk.make_network, with the given tensors W, b, W, b, ..."""
    import torch

    make_activation = getattr(torch.nn, disk.ACTIVATIONS[activation].__name__)  # the same name
    layers = []
    for dim_in, dim_out in pairwise([2, *hidden, 2]):
        layers += [torch.nn.Linear(dim_in, dim_out), make_activation()]
    network = torch.nn.Sequential(*layers[:-1], torch.nn.Sigmoid())
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        parameter.data = weight
    return network


def torch_step(network, optimizer, reduction, x, target):
    """One step of PyTorch's; returns the loss before it."""
    from torch.nn.functional import mse_loss

    optimizer.zero_grad()
    summed = reduction == "batchmean"
    loss = mse_loss(network(x), target, reduction="sum" if summed else reduction)
    loss = loss / len(x) if summed else loss
    loss.backward()
    optimizer.step()
    return loss


def torch_evaluate(network, points, targets, labels):
    """Mean squared error over all elements, and accuracy."""
    import torch
    from torch.nn.functional import mse_loss

    with torch.no_grad():
        scores = network(points)
        return mse_loss(scores, targets), (scores.argmax(dim=-1) == labels).float().mean()


def main(arguments=None):
    options = parse_options(arguments)
    return run(compare, options, options.output)


if __name__ == "__main__":
    leave(main())
