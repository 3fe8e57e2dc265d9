"""Write what PyTorch computes, in float64, for the layers, losses and optimizers of fnn.

Run it where fnn and PyTorch are installed: PYTHONPATH=scripts python tests/record_pytorch.py FILE

A case has the expression that makes its subject in fnn, inputs, and PyTorch's outputs for them.
Arrays are in fnn's layout: images (..., height, width, channels), kernels (height, width, in, out).
Inputs are multiples of 1/64, which float32 holds exactly, so that many are equal or at a kink.
"""

import functools
import json
import pathlib
import warnings

from shared.command_line import Parser, leave, run
from shared.pytorch import import_torch, require_pytorch, train_step

from fnn.files import write_text

NAMES = ("expression", "inputs", "outputs")
KINKS = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 3.25, -3.25]
EXTREMES = [1e4, -1e4, 800.0, -800.0, 90.0, -90.0, 17.0, -17.0, 0.25, -0.25]
GELUS = ["GELU()", "GELU('tanh')"]
ACTIVATIONS = ["ReLU()", "LeakyReLU()", "ELU()", "Tanh()", "Sigmoid()", *GELUS, "SiLU()"]
DELTAS = ["", "delta=0.5, ", "delta=2.0, "]
CHANCES = [0.0, 1.0, 0.25, 1.0, 0.75, 0.0, 0.5, 0.0, 1.0, 0.5]


def parse_options(arguments=None):
    parser = Parser("Write what PyTorch computes, in float64; the tests hold fnn to it.")
    parser.add_argument("file", type=pathlib.Path, help="the JSON file to write")
    options = parser.parse_args(arguments)
    require_pytorch(parser)
    parser.check_output(options.file.parent, [options.file.name], "file")
    return options


def record(options):
    """Write all the cases, one a line. Returns the exit status."""
    torch = import_torch()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
    parts = [f'{{"torch": "{torch.__version__}"']
    for make in (layers, losses, optimizers, trainings, schedules):
        torch.manual_seed(0)
        cases = [json.dumps(dict(zip(NAMES, case, strict=True))) for case in make()]
        parts.append(f'"{make.__name__}": [\n' + ",\n".join(cases) + "\n]")
    write_text(options.file, ",\n".join(parts) + "}\n")
    return 0


def draw(*shape):
    """Normal numbers, rounded to multiples of 1/64."""
    return (import_torch().randn(shape, dtype=float) * 64).round() / 64


def tensor(values, *shape):
    return import_torch().tensor(values, dtype=float).reshape(shape or -1)


def in_torch(expression):
    """What the expression makes of torch.nn's namesakes, with random parameters in float64."""
    expression = expression.replace("'SAME'", "'same'").replace("'VALID'", "'valid'")
    module = eval(expression, vars(import_torch().nn)).double().eval()
    for parameter in module.parameters():
        parameter.data = draw(*parameter.shape)
    return module


def layers():
    """For each layer: params, x and dy; PyTorch's y, grads and dx (0 for integers)."""
    torch = import_torch()
    features, image, images = draw(4, 3), draw(4, 5, 2), draw(2, 4, 5, 2)
    points, extremes = torch.cat([tensor(KINKS), draw(10)]), tensor(EXTREMES)
    for expression, x in [
        ("Linear(3, 4)", features),
        ("Linear(3, 4)", draw(3)),
        ("Linear(3, 2, bias=False)", draw(2, 3, 3)),
        ("Embedding(5, 3)", torch.tensor([[0, 2, 2], [4, 0, 2]])),
        ("Flatten()", draw(2, 2, 3, 2)),
        ("Identity()", features),
        ("Dropout(0.3)", features),
        ("Sequential(Linear(3, 4), Tanh(), Linear(4, 2))", features),
        ("LayerNorm(3, eps=0.1)", features),
        ("RMSNorm(3, eps=0.1)", features),
        ("LayerNorm(4)", tensor([2.0] * 4)),
        ("RMSNorm(4, eps=1e-6)", tensor([0.0] * 4)),
        ("LeakyReLU(2.0)", points),
        ("ELU(0.3)", points),
    ]:
        yield record_layer(expression, x, in_torch(expression))
    for expression in ("LayerNorm(4)", "RMSNorm(4, eps=1e-6)"):
        for x in (draw(2, 2, 4), 1e4 * draw(4)):
            yield record_layer(expression, x, in_torch(expression))
    for expression in ("Softmax(-1)", "Softmax(1)", "LogSoftmax(-1)", "LogSoftmax(1)"):
        x = torch.stack([draw(2, 5), tensor(EXTREMES, 2, 5)])
        yield record_layer(expression, x, in_torch(expression))
    for expression in ACTIVATIONS:
        for x in (points, extremes):
            yield record_layer(expression, x, in_torch(expression))
    for x in (points, extremes):  # beyond PyTorch's threshold, else 20, y is x itself
        yield record_layer("Softplus()", x, in_torch("Softplus(threshold=40)"))

    linear = in_torch("Linear(3, 3)")
    yield record_layer("Residual(Linear(3, 3))", features, linear, lambda x: x + linear(x))
    several = in_torch("ModuleList([Linear(3, 2), Sequential(Linear(3, 2), Tanh())])")
    expression = "Parallel(Linear(3, 2), Sequential(Linear(3, 2), Tanh()), combine="
    for end, join in {"'concat')": lambda ys: torch.cat(ys, dim=-1), "'sum')": sum}.items():
        forward = functools.partial(lambda join, x: join([part(x) for part in several]), join)
        yield record_layer(expression + end, features, several, forward)

    for expression, x in [
        ("Conv2d(2, 3, 3)", image),
        ("Conv2d(2, 3, (2, 3), padding='VALID')", image),
        ("Conv2d(2, 2, (2, 3), stride=2)", images),
        ("Conv2d(2, 2, 3, stride=(3, 2), padding=1)", images),
        ("Conv2d(2, 2, (3, 1), padding=(2, 0), bias=False)", image),
        ("Conv2d(2, 2, (3, 5), padding='SAME')", image),
        ("Conv2d(2, 2, (2, 4), padding='SAME')", image),
        ("Conv2d(2, 2, (2, 3), padding=(2, 1), dilation=(3, 2))", image),
        ("Conv2d(2, 4, 2, padding='SAME', dilation=3, groups=2)", image),
        ("Conv2d(2, 2, 3, stride=2, padding=1, groups=2)", image),
        ("Conv2d(4, 6, 2, groups=2)", draw(3, 2, 4)),
        ("ConvTranspose2d(2, 3, 3)", image),
        ("ConvTranspose2d(2, 2, (3, 2), stride=2, padding=1, output_padding=(1, 0))", images),
        ("ConvTranspose2d(2, 4, 2, dilation=3, output_padding=2, groups=2, bias=False)", image),
        ("MaxPool2d(2)", images),
        ("MaxPool2d(3, stride=1)", image),
        ("MaxPool2d((2, 3), stride=(3, 1))", image),
        ("MaxPool2d(2)", torch.randint(2, images.shape).double()),
        ("MaxPool2d((3, 2), stride=(1, 2))", torch.randint(2, images.shape).double()),
        ("AvgPool2d(2)", images),
        ("AvgPool2d((3, 2), stride=(1, 3))", image),
    ]:
        layer = in_torch(expression)
        forward = functools.partial(lambda f, x: f(x.movedim(-1, -3)).movedim(-3, -1), layer)
        yield record_layer(expression, x, layer, forward)

    for expression, x in [
        ("Conv1d(2, 3, 2, stride=2, padding=1)", draw(2, 4, 2)),
        ("Conv3d(1, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0))", draw(2, 3, 2, 1)),
        ("ConvTranspose1d(2, 1, 3, stride=2, padding=1, output_padding=1)", draw(2, 3, 2)),
        ("ConvTranspose3d(1, 1, 2, stride=(2, 1, 3))", draw(2, 1, 2, 1)),
    ]:
        layer, axis = in_torch(expression), -1 - int(expression.partition("d(")[0][-1])
        forward = functools.partial(
            lambda f, axis, x: f(x.movedim(-1, axis)).movedim(axis, -1), layer, axis
        )
        yield record_layer(expression, x, layer, forward)


def record_layer(expression, x, module, forward=None):
    """One forward and one backward pass of the module, or of a function that calls it."""
    module.zero_grad()
    x = x.clone().requires_grad_(x.is_floating_point())
    y = (forward or module)(x)
    dy = draw(*y.shape)
    y.backward(dy)
    dx = x.grad if x.requires_grad else 0 * x
    grads = in_fnn(module, lambda parameter: parameter.grad)
    inputs = {"params": in_fnn(module), "x": x.tolist(), "dy": dy.tolist()}
    return expression, inputs, {"y": y.tolist(), "grads": grads, "dx": dx.tolist()}


def in_fnn(module, read=lambda parameter: parameter):
    """What is read of each parameter, named and nested as in fnn."""
    nn = import_torch().nn
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [in_fnn(part, read) for part in module]
    is_norm = isinstance(module, nn.LayerNorm | nn.RMSNorm)
    names = {"weight": "scale", "bias": "bias"} if is_norm else {"weight": "W", "bias": "b"}
    leaves = {names[name]: read(leaf) for name, leaf in module.named_parameters()}
    if (
        "Conv" in type(module).__name__
    ):  # (out, in, kernel...), and of a transposed one (in, out, ...)
        kernel = leaves["W"].moveaxis((0, 1), (-1, -2))
        leaves["W"] = kernel.mT if module.transposed else kernel
    return {name: leaf.tolist() for name, leaf in leaves.items()} or []


def losses():
    """For each loss: prediction and target; PyTorch's value and d_prediction."""
    torch = import_torch()
    target, chances = draw(2, 5), tensor(CHANCES, 2, 5)
    for reduction, values in (("mean", tensor(KINKS, 2, 5)), ("sum", tensor(EXTREMES, 2, 5))):
        for start in ("MSELoss(", "L1Loss(", *(f"HuberLoss({d}" for d in DELTAS)):
            yield record_loss(f"{start}reduction='{reduction}')", target + values, target)
        yield record_loss(f"BCEWithLogitsLoss(reduction='{reduction}')", values, chances)
        for shape in ((), (4,), (2, 2)):
            scores = draw(*shape, 3) * (1 if reduction == "mean" else 5000)
            scores[..., 0] = scores[..., 1]
            for classes in (torch.randint(3, shape), draw(*shape, 3).relu()):
                yield record_loss(f"CrossEntropyLoss(reduction='{reduction}')", scores, classes)


def record_loss(expression, prediction, target):
    loss = in_torch(expression)
    prediction = prediction.clone().requires_grad_()
    arrays = [prediction, target]
    if "CrossEntropy" in expression and prediction.ndim > 2:  # classes on axis 1
        arrays = [a.movedim(-1, 1) if a.is_floating_point() else a for a in arrays]
    value = loss(*arrays)
    value.backward()
    inputs = {"prediction": prediction.tolist(), "target": target.tolist()}
    outputs = {"value": value.item(), "d_prediction": prediction.grad.tolist()}
    return expression, inputs, outputs


def optimizers():
    """For each optimizer: params, and grads step by step; PyTorch's params after each step."""
    torch = import_torch()
    params = {"W": draw(2, 3), "b": draw(2)}
    grads = {"W": draw(5, 2, 3), "b": draw(5, 2)}
    grads["W"][:, 0] = tensor([0.0, 1e-7, 1e4])
    grads["b"][:, 0] = tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    rates = [0.1, 0.1, 0.5, 0.02, 0.0]
    schedule = "piecewise_constant([2, 3, 4], [0.1, 0.5, 0.02, 0.0])"
    for arguments, options in {
        "": {},
        ", b1=0.5, b2=0.9": {"betas": (0.5, 0.9)},
        ", b1=0.0, b2=0.9999, eps=1e-3": {"betas": (0.0, 0.9999), "eps": 1e-3},
        ", weight_decay=0.1": {"weight_decay": 0.1},
        ", 0.8, 0.99, 1e-5, 0.01": {"betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.01},
    }.items():
        adamw = functools.partial(torch.optim.AdamW, **({"weight_decay": 0.0} | options))
        yield record_steps(f"adam({schedule}{arguments})", adamw, params, grads, rates)

    params = {"W": tensor([0.0] * 6, 2, 3), "b": tensor([0.0] * 2)}
    for scale, max_norm in ((1, 0.5), (1, 100.0), (1e-4, 1e-5), (0, 1.0)):
        grads = {"W": scale * draw(1, 2, 3), "b": scale * draw(1, 2)}
        expression = f"clip_by_global_norm(sgd(1.0), {max_norm})"
        clipping = functools.partial(sgd_with_clipping, max_norm)
        yield record_steps(expression, clipping, params, grads, [1.0])


def sgd_with_clipping(max_norm, leaves):
    """SGD on gradients times min(1, max_norm / norm); PyTorch's own divisor is norm + 1e-6."""
    torch = import_torch()

    def clip(*_):
        norm = torch.nn.utils.get_total_norm([leaf.grad for leaf in leaves]).item()
        bound = max_norm * (norm + 1e-6) / norm if norm else max_norm
        torch.nn.utils.clip_grad_norm_(leaves, bound)

    optimizer = torch.optim.SGD(leaves)
    optimizer.register_step_pre_hook(clip)
    return optimizer


def record_steps(expression, make, params, grads, rates):
    """A step of the optimizer make(leaves) for each of the rates and of the grads."""
    leaves = {name: leaf.clone() for name, leaf in params.items()}
    optimizer = make(list(leaves.values()))
    after = {name: [] for name in leaves}
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        for name, leaf in leaves.items():
            leaf.grad = grads[name][step].clone()
        optimizer.step()
        for name, leaf in leaves.items():
            after[name].append(leaf.tolist())
    params = {name: leaf.tolist() for name, leaf in params.items()}
    grads = {name: leaf.tolist() for name, leaf in grads.items()}
    return expression, {"params": params, "grads": grads}, {"params": after}


def trainings():
    """For each setting: params and batches; PyTorch's losses, params after first and last step."""
    torch = import_torch()
    x, target = draw(6, 3, 2), draw(6, 3, 2)
    for activation, reduction, options in [
        ("Tanh()", "mean", {}),
        ("LeakyReLU()", "mean", {}),
        ("LeakyReLU()", "sum", {}),
        ("LeakyReLU()", "batchmean", {}),
        ("LeakyReLU()", "mean", {"momentum": 0.9}),
        ("LeakyReLU()", "mean", {"momentum": 0.9, "nesterov": True}),
        ("LeakyReLU()", "mean", {"weight_decay": 0.1}),
        ("Tanh()", "mean", {"momentum": 0.5, "nesterov": True, "weight_decay": 0.01}),
    ]:
        layers = f"Linear(2, 4), {activation}, Linear(4, 3), {activation}, Linear(3, 2), Sigmoid()"
        network = in_torch(f"Sequential({layers})")
        optimizer = torch.optim.SGD(network.parameters(), 0.1, **options)
        losses, params = [], [in_fnn(network)]
        for batch in zip(x, target, strict=True):
            losses.append(train_step(network, optimizer, reduction, *batch).item())
            params.append(in_fnn(network))
        arguments = ", ".join(["0.1", *(f"{name}={value}" for name, value in options.items())])
        expression = f"Sequential({layers}), MSELoss('{reduction}'), sgd({arguments})"
        inputs = {"params": params[0], "x": x.tolist(), "target": target.tolist()}
        yield expression, inputs, {"losses": losses, "first": params[1], "last": params[-1]}


def schedules():
    """For each schedule: steps; PyTorch's rates at these."""
    optim = import_torch().optim
    values = [0.5, 0.5 * 0.1, 0.5 * 0.1**2, 0.5 * 0.1**3]
    for expression, make, *arguments in (
        ("exponential_decay(0.5, 1, 0.9)", optim.lr_scheduler.ExponentialLR, 0.9),
        ("exponential_decay(0.5, 4, 0.3)", optim.lr_scheduler.ExponentialLR, 0.3**0.25),
        (
            f"piecewise_constant([2, 3, 7], {values})",
            optim.lr_scheduler.MultiStepLR,
            [2, 3, 7],
            0.1,
        ),
        ("cosine_decay(0.5, 11)", optim.lr_scheduler.CosineAnnealingLR, 11),
        ("constant(0.5)", optim.lr_scheduler.ConstantLR, 1.0),
    ):
        optimizer = optim.SGD([draw(1)], 0.5)
        schedule, steps, rates = make(optimizer, *arguments), list(range(12)), []
        for _ in steps:
            rates += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        yield expression, {"steps": steps}, {"rates": rates}


def main(arguments=None):
    return run(record, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
