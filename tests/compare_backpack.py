"""Compares fnn's statistics with BackPACK's on PyTorch: the same numbers, and the times.

Both compute them for one network with the same parameters and examples. The times are the shortest
of the calls, and the differences are relative to a parameter's largest number. BackPACK draws the
second of its Kronecker factors at random, so only the first ones, means of x x^T, are compared.

    pip install torch backpack-for-pytorch
    PYTHONPATH=scripts python tests/compare_backpack.py

These figures are of one run on two shared cores of an AMD EPYC, with JAX 0.10.2, PyTorch 2.13.0 and
BackPACK 1.7.1, on 27 November 2026. They are the shortest of 9 turns, with one thread each. The
numbers agree to 3e-6.

    ms on one core, fnn / BackPACK         784-512-512-10, batch 256    the MNIST CNN, batch 64
    the gradient alone                          4.35 / 10.07                5.92 / 14.89
    squared_norms / batch_l2                    2.26 / 10.40                7.90 / 19.70
    second_moments / sum_grad_squared           4.36 / 14.11                9.22 / 19.50
    ggn_diagonal / diag_ggn_exact              30.96 / 42.12               72.34 / 92.11
    kronecker_factors / kfac                    7.16 / 32.45               11.13 / 34.53

In units of its own plain step fnn's ggn_diagonal takes longer than BackPACK's: 7.1 against 4.2, and
12.2 against 6.2.

These are time and memory of fnn's functions and of vmapped jax.grad, in units of fnn's plain step.
They are of one run on one core, and the shortest of 7 turns. The compiler counted the memory. This
program does not print them.

                                784-512-512-10,    the MNIST CNN,    attention block,
                                batch 256          batch 64          32 x 64 x 128
    squared_norms               0.54, 1.0          1.2, 1.7          0.94, 1.0
        vmapped jax.grad        32, 1.7            2.1, 1.0          1.2, 1.0
    second_moments              1.0, 2.2           1.3, 1.75         1.3, 1.4
        vmapped jax.grad        165, 1.0           11.5, 1.0         1.6, 1.0
    clipped_loss_and_grads      1.1, 1.3           1.8, 1.9          1.3, 1.0

Depthwise convolutions (2.7), Embedding (2.6 for the moments) and the clipped gradients of an LSTM
(3.3) take longer.
"""

import functools

import jax
from shared.command_line import Parser
from shared.measure import describe_machine, take_turns
from shared.pytorch import import_torch, require_pytorch, tensors

import fnn

summed, mean = fnn.CrossEntropyLoss("sum"), fnn.CrossEntropyLoss()


def make_mlp():
    """784-512-512-10, a batch of 256."""
    nn = import_torch().nn
    ours = fnn.Linear(784, 512), fnn.ReLU(), fnn.Linear(512, 512), fnn.ReLU(), fnn.Linear(512, 10)
    theirs = nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    return ours, theirs, (256, 784)


def make_cnn():
    """Two convolutions of 16 and 32 channels, a dense layer of 128; a batch of 64 images."""
    nn = import_torch().nn
    ours = [
        *(fnn.Conv2d(1, 16, 3, padding=1), fnn.ReLU(), fnn.MaxPool2d(2)),
        *(fnn.Conv2d(16, 32, 3, padding=1), fnn.ReLU(), fnn.MaxPool2d(2)),
        *(fnn.Flatten(), fnn.Linear(1568, 128), fnn.ReLU(), fnn.Linear(128, 10)),
    ]
    theirs = [
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 10)),
    ]
    return ours, theirs, (64, 28, 28, 1)


def as_pytorch(array):
    """A tensor: images, kernels and the rows after Flatten in PyTorch's order of axes."""
    if array.shape[1:] == (1568,):
        array = array.reshape(-1, 7, 7, 32).transpose(0, 3, 1, 2).reshape(array.shape)
    if array.ndim == 4:
        is_kernel = array.shape[0] == array.shape[1] == 3
        array = array.transpose((3, 2, 0, 1) if is_kernel else (0, 3, 1, 2))
    return tensors([array])[0]


def quantities(model, network, examples, labels):
    """For each quantity two calls, and the attribute of BackPACK's results."""
    from backpack import backpack, extend, extensions

    nn = import_torch().nn
    x, target = as_pytorch(examples), tensors([labels])[0].long()
    network = extend(network)
    losses = {loss: extend(nn.CrossEntropyLoss(reduction=loss)) for loss in ("sum", "mean")}

    def theirs(*extension, reduction="sum"):
        network.zero_grad()
        with backpack(*extension):
            losses[reduction](network(x), target).backward()

    def ours(change):
        return fnn.loss_and_grads(change(model), summed)

    diagonal = functools.partial(theirs, extensions.DiagGGNExact(), reduction="mean")
    return {
        "the gradient alone": (ours(lambda model: model), theirs, "grad"),
        "squared_norms": (
            ours(fnn.squared_norms),
            functools.partial(theirs, extensions.BatchL2Grad()),
            "batch_l2",
        ),
        "second_moments": (
            ours(fnn.second_moments),
            functools.partial(theirs, extensions.SumGradSquared()),
            "sum_grad_squared",
        ),
        "ggn_diagonal": (fnn.ggn_diagonal(model, mean), diagonal, "diag_ggn_exact"),
        "kronecker_factors": (
            ours(fnn.kronecker_factors),
            functools.partial(theirs, extensions.KFAC()),
            "kfac",
        ),
    }


def largest_difference(ours, theirs, attribute):
    """Over all parameters, relative to a parameter's largest number."""
    differences = []
    for statistic, module in zip(ours, theirs, strict=True):
        for name, weight in (("W", module.weight), ("b", module.bias)):
            actual, expected = statistic[name], getattr(weight, attribute)
            if attribute == "kfac":
                # The numbers of a patch, and of an image after Flatten, have another order there.
                if actual is None or weight.ndim == 4 or weight.shape[1] == 1568:
                    continue
                actual, expected = actual[0][:-1, :-1], expected[1]  # without the bias
            difference = (as_pytorch(actual) - expected.detach()).abs().max()
            differences.append((difference / expected.abs().max()).item())
    return max(differences)


def main():
    parser = Parser("Compare fnn's statistics with BackPACK's on PyTorch.")
    parser.add_argument("--rounds", type=int, default=9, help="measured calls of each")
    options = parser.parse_args()
    require_pytorch(parser)
    torch = import_torch()
    print(describe_machine(), "threads of PyTorch:", torch.get_num_threads())
    for make in (make_mlp, make_cnn):
        layers, modules, shape = make()
        model, network = fnn.Sequential(*layers), torch.nn.Sequential(*modules)
        params, keys = model.init(jax.random.key(0)), jax.random.split(jax.random.key(1))
        x = jax.random.normal(keys[0], shape)
        labels = jax.random.randint(keys[1], shape[:1], 0, 10)
        with_params = [module for module in network if hasattr(module, "weight")]
        for own, module in zip(filter(None, params), with_params, strict=True):
            module.weight.data, module.bias.data = as_pytorch(own["W"]), as_pytorch(own["b"])
        print(f"\n{make.__doc__}")
        for name, (ours, theirs, attribute) in quantities(model, network, x, labels).items():
            ours = functools.partial(jax.jit(ours), params, x, labels)
            result = ours() if name == "ggn_diagonal" else ours()[1]
            theirs()
            difference = largest_difference(filter(None, result), with_params, attribute)
            turns = take_turns({"fnn": ours, "BackPACK": theirs}, options.rounds, 0.02)
            shortest = {who: 1e3 * min(seconds) for who, seconds in turns.items()}
            times = ", ".join(f"{who} {ms:7.2f} ms" for who, ms in shortest.items())
            print(f"  {name:<18} {times}; they differ by {difference:.0e}", flush=True)


if __name__ == "__main__":
    main()
