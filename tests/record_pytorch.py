"""Write what PyTorch computes, in float64, for the layers, losses and optimizers of fnn.

Run it where fnn and PyTorch are installed: PYTHONPATH=scripts python tests/record_pytorch.py FILE

A case has the expression that makes its subject in fnn, inputs, and PyTorch's outputs for them.
Arrays are in fnn's layout: images (..., height, width, channels), kernels (height, width, in, out).
Inputs are multiples of 1/64, which float32 holds exactly, so that many are equal or at a kink.
"""

import functools
import itertools
import json
import pathlib
import re
import warnings

from shared.command_line import Parser, leave, run
from shared.pytorch import import_torch, require_pytorch, train_step

from fnn.files import write_text

NAMES = ("expression", "inputs", "outputs")
KINKS = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 3.25, -3.25]
EXTREMES = [1e4, -1e4, 800.0, -800.0, 90.0, -90.0, 17.0, -17.0, 0.25, -0.25]
GELUS = ["GELU()", "GELU('tanh')"]
ACTIVATIONS = ["ReLU()", "LeakyReLU()", "ELU()", "Tanh()", "Sigmoid()", *GELUS, "SiLU()"]
BENDS = [3.0, -3.0, 6.0]  # further kinks
NEWER = ["SELU()", "CELU(0.5)", "ReLU6()", "Hardtanh()", "Hardtanh(-0.5, 2.0)",
         "Hardswish()", "Mish()", "Softsign()", "LogSigmoid()", "Threshold(0.5, 20.0)",
         "Threshold(0.5, -1.0)", "PReLU()"]  # fmt: skip
DELTAS = ["", "delta=0.5, ", "delta=2.0, "]
ELEMENTWISE = ["MSELoss(", "L1Loss(", *(f"HuberLoss({d}" for d in DELTAS),
               *(f"SmoothL1Loss({b}" for b in ("", "beta=0.5, ", "beta=0.0, "))]  # fmt: skip
CLASS_OPTIONS = ["class_weights=[0.5, 2.0, 1.25], ", "ignore_index=1, ", "label_smoothing=0.25, "]
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
    expression = re.sub(r"(?:class|pos)_weights?=(\[.*?\])", in_torchs_words, expression)
    module = eval(expression, {**vars(import_torch().nn), "tensor": tensor}).double().eval()
    for parameter in module.parameters():
        parameter.data = draw(*parameter.shape)
    return module


def in_torchs_words(weights):
    name = "weight" if weights[0].startswith("class") else "pos_weight"
    return f"{name}=tensor({weights[1]})"


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
    for expression, x in [
        ("LayerNorm((2, 3))", draw(4, 2, 3)),
        ("RMSNorm((2, 3), eps=0.1)", draw(4, 2, 3)),
        ("GroupNorm(2, 4)", draw(2, 3, 2, 4)),
        ("GroupNorm(1, 3, num_axes=0)", features),
        ("InstanceNorm(2, num_axes=1)", draw(2, 3, 2)),
        ("BatchNorm(3)", features),
        ("BatchNorm(3, eps=0.1)", draw(2, 2, 2, 3)),
        ("in_training(BatchNorm(3))", features),
        ("in_training(BatchNorm(3))", draw(2, 2, 2, 3)),
    ]:
        yield record_norm(expression, x)
    yield from sequences()
    for expression in ("Softmax(-1)", "Softmax(1)", "LogSoftmax(-1)", "LogSoftmax(1)"):
        x = torch.stack([draw(2, 5), tensor(EXTREMES, 2, 5)])
        yield record_layer(expression, x, in_torch(expression))
    for expression in ACTIVATIONS:
        for x in (points, extremes):
            yield record_layer(expression, x, in_torch(expression))
    for expression in NEWER:
        for x in (torch.cat([points, tensor(BENDS)]), extremes):
            yield record_layer(expression, x, in_torch(expression))
    identity, relu6 = in_torch("Identity()"), torch.nn.functional.relu6
    for x in (torch.cat([points, tensor(BENDS)]), extremes):  # PyTorch rounds 1 / 6 to float32
        yield record_layer("Hardsigmoid()", x, identity, lambda x: relu6(x + 3) / 6)
    yield record_layer("PReLU(3)", features, in_torch("PReLU(3)"))
    # A float32 sigmoid is 1 for 17 already. Beside 1e4 the slope that it loses there would count.
    extreme_gates = torch.stack(
        [tensor(EXTREMES[:5] + KINKS[:5]), tensor(KINKS[:5] + EXTREMES[:5])]
    )
    for axis, x in ((-1, extreme_gates), (-1, draw(2, 2, 4)), (1, draw(2, 4, 3))):
        yield record_layer(f"GLU({axis})", x, in_torch(f"GLU({axis})"))
    yield record_layer("Maxout(3)", draw(4, 6), identity, lambda x: x.view(4, 2, 3).amax(-1))
    for x in (points, extremes):  # beyond PyTorch's threshold, else 20, y is x itself
        yield record_layer("Softplus()", x, in_torch("Softplus(threshold=40)"))

    linear = in_torch("Linear(3, 3)")
    yield record_layer("Residual(Linear(3, 3))", features, linear, lambda x: x + linear(x))
    yield record_layer("StochasticDepth(Linear(3, 3), 0.5)", features, linear)
    several = in_torch("ModuleList([Linear(3, 2), Sequential(Linear(3, 2), Tanh())])")
    expression = "Parallel(Linear(3, 2), Sequential(Linear(3, 2), Tanh()), combine="
    joins = {
        "'concat')": lambda ys: torch.cat(ys, dim=-1),
        "'concat', axis=-2)": lambda ys: torch.cat(ys, dim=-2),
        "'sum')": sum,
        "'product')": lambda ys: ys[0] * ys[1],
    }
    for end, join in joins.items():
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

    signal, image, volume = draw(1, 6, 2), draw(1, 4, 5, 1), draw(1, 2, 3, 2, 1)
    zeros_and_ones = torch.randint(2, (1, 5, 4, 1)).double()
    for expression, in_pytorch, x in [
        ("MaxPool1d(3, stride=2, padding=1, dilation=2)", None, signal),
        ("MaxPool2d(3, stride=2, padding=1, ceil_mode=True)", None, zeros_and_ones),
        ("MaxPool2d((2, 3), stride=1, padding=(0, 1), dilation=(2, 1))", None, image),
        ("MaxPool3d(2, stride=(1, 2, 1), padding=1, ceil_mode=True)", None, volume),
        ("AvgPool1d(3, stride=2, padding=1, ceil_mode=True)", None, signal),
        ("AvgPool2d((3, 2), stride=2, padding=(1, 0), ceil_mode=True)", None, image),
        ("AvgPool2d(2, padding=1, ceil_mode=True, count_include_pad=False)", None, image),
        ("AvgPool3d(2, padding=1)", None, volume),
        ("GlobalAvgPool()", "AdaptiveAvgPool2d(1)", image),
        ("GlobalMaxPool(1)", "AdaptiveMaxPool1d(1)", signal),
        ("Upsample(2)", "Upsample(scale_factor=2)", image),
        ("Upsample((3,), 'linear')", "Upsample(scale_factor=3, mode='linear')", signal),
        ("Upsample((2, 3), 'linear')", "Upsample(scale_factor=(2, 3), mode='bilinear')", image),
        ("Upsample((2, 1, 2), 'linear')", "Upsample(None, (2, 1, 2), 'trilinear')", volume),
        ("Pad(((1, 2), (0, 1)), value=0.5)", "ConstantPad2d((0, 1, 1, 2), 0.5)", image),
        ("Pad(((1, 2), 3), 'reflect')", "ReflectionPad2d((3, 3, 1, 2))", image),
        ("Pad((2,), 'edge')", "ReplicationPad1d(2)", signal),
    ]:
        layer = in_torch(in_pytorch or expression)
        forward = functools.partial(lambda f, x: f(x.movedim(-1, 1)).movedim(1, -1), layer)
        if expression.startswith("Global"):
            forward = functools.partial(lambda f, x: f(x.movedim(-1, 1)).flatten(1), layer)
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
    grads = in_fnn(module, lambda leaf: leaf.grad if leaf.requires_grad else 0 * leaf)
    inputs = {"params": in_fnn(module), "x": x.tolist(), "dy": dy.tolist()}
    return expression, inputs, {"y": y.tolist(), "grads": grads, "dx": dx.tolist()}


def sequences():
    """Layers over (batch, time, features)."""
    torch = import_torch()
    for expression, options in {"2": {}, "2, causal=True": {"is_causal": True}}.items():
        attend = functools.partial(by_scaled_dot_products, 2, options)
        yield record_layer(f"Attention({expression})", draw(2, 4, 12), torch.nn.Identity(), attend)
    attention = in_torch("MultiheadAttention(4, 2, batch_first=True)")
    yield record_layer(
        "MultiHeadAttention(4, 2)", draw(2, 3, 4), attention, attend_to_itself(attention)
    )
    for expression in ("RNN(3, 2)", "RNN(3, 2, activation='relu')", "LSTM(3, 2)", "GRU(3, 2)"):
        module = in_torch(
            expression.replace("activation", "nonlinearity")[:-1] + ", batch_first=True)"
        )
        yield record_layer(expression, draw(2, 4, 3), module, lambda x, module=module: module(x)[0])
    pair = in_torch("LSTM(3, 2, batch_first=True, bidirectional=True)")
    expression = "Parallel(LSTM(3, 2), reverse_time(LSTM(3, 2)))"
    yield record_layer(expression, draw(2, 4, 3), pair, lambda x: pair(x)[0])


def by_scaled_dot_products(num_heads, options, x):
    functional = import_torch().nn.functional
    parts = (part.unflatten(-1, (num_heads, -1)).transpose(-3, -2) for part in x.chunk(3, -1))
    y = functional.scaled_dot_product_attention(*parts, **options)
    return y.transpose(-3, -2).flatten(-2)


def attend_to_itself(attention):
    return lambda x: attention(x, x, x, need_weights=False)[0]


def record_norm(expression, x):
    """A norm whose name in torch.nn has the number of axes, or not; channels first there."""
    in_nn = re.sub(r"in_training|, num_axes=\d", "", expression)
    in_nn = re.sub(r"(Batch|Instance)Norm", rf"\1Norm{max(1, x.ndim - 2)}d", in_nn)
    in_nn = re.sub(r"(InstanceNorm.*)\)", r"\1, affine=True)", in_nn)
    module = in_torch(in_nn)
    if "Batch" in expression:
        module.running_mean, module.running_var = draw(x.shape[-1]), draw(x.shape[-1]).abs() + 0.5
        module.momentum = 0.0
    if "in_training" in expression:
        module.train()
    has_channels = not expression.startswith(("LayerNorm", "RMSNorm"))
    forward = functools.partial(on_channels_last, module) if has_channels else None
    return record_layer(expression, x, module, forward)


def on_channels_last(module, x):
    return module(x.movedim(-1, 1)).movedim(1, -1)


def in_fnn(module, read=lambda parameter: parameter):
    """What is read of each parameter, named and nested as in fnn."""
    nn = import_torch().nn
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [in_fnn(part, read) for part in module]
    if isinstance(module, nn.MultiheadAttention):
        projection = {
            "W": read(module.in_proj_weight).tolist(),
            "b": read(module.in_proj_bias).tolist(),
        }
        return [projection, [], in_fnn(module.out_proj, read)]
    if isinstance(module, nn.RNNBase):
        directions = [recurrent_in_fnn(module, end, read) for end in ("", "_reverse")]
        return directions if module.bidirectional else directions[0]
    is_norm = "Norm" in type(module).__name__
    names = {"weight": "scale", "bias": "bias"} if is_norm else {"weight": "W", "bias": "b"}
    leaves = {names[name]: read(leaf) for name, leaf in module.named_parameters()}
    if "Conv" in type(module).__name__:
        # W is (out, in, kernel...), and that of a transposed one (in, out, kernel...).
        kernel = leaves["W"].moveaxis((0, 1), (-1, -2))
        leaves["W"] = kernel.mT if module.transposed else kernel
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        statistics = {"mean": module.running_mean, "var": module.running_var}
        leaves |= {name: read(leaf) for name, leaf in statistics.items()}
    return {name: leaf.tolist() for name, leaf in leaves.items()} or []


def recurrent_in_fnn(module, end, read):
    """b is the sum of PyTorch's two biases, whose gradients are equal; c is apart in a GRU."""
    if not hasattr(module, f"weight_ih_l0{end}"):
        return None
    W, U, b, b_hidden = (
        getattr(module, f"{name}_l0{end}")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    leaves = {"W": read(W), "U": read(U), "b": read(b)}
    shared = len(b) * 2 // 3 if type(module).__name__ == "GRU" else len(b)
    if read(b) is b:  # the values, not the gradients
        leaves["b"] = b + import_torch().cat([b_hidden[:shared], 0 * b_hidden[shared:]])
    if shared < len(b):
        leaves["c"] = read(b_hidden)[shared:]
    return {name: leaf.tolist() for name, leaf in leaves.items()}


def losses():
    """For each loss: prediction and target; PyTorch's value and d_prediction."""
    torch = import_torch()
    target, chances = draw(2, 5), tensor(CHANCES, 2, 5)
    for reduction, values in (("mean", tensor(KINKS, 2, 5)), ("sum", tensor(EXTREMES, 2, 5))):
        for start in ELEMENTWISE:
            yield record_loss(f"{start}reduction='{reduction}')", target + values, target)
        yield record_loss(f"BCEWithLogitsLoss(reduction='{reduction}')", values, chances)
        for shape in ((), (4,), (2, 2)):
            scores = draw(*shape, 3) * (1 if reduction == "mean" else 5000)
            scores[..., 0] = scores[..., 1]
            for classes in (torch.randint(3, shape), draw(*shape, 3).relu()):
                yield record_loss(f"CrossEntropyLoss(reduction='{reduction}')", scores, classes)

    labels, spread = torch.tensor([[0, 1], [2, 1]]), draw(2, 2, 3).relu()
    for chosen in itertools.product(*((option, "") for option in CLASS_OPTIONS)):
        arguments, scores = "".join(chosen), draw(2, 2, 3)
        yield record_loss(f"CrossEntropyLoss({arguments}reduction='mean')", scores, labels)
        if not chosen[1]:
            yield record_loss(f"CrossEntropyLoss({arguments}reduction='mean')", scores, spread)
        if not chosen[2]:
            yield record_loss(f"NLLLoss({arguments}reduction='mean')", scores, labels)
    for reduction in ("sum", "none"):
        end = f"reduction='{reduction}')"
        for target in (labels, spread):
            arguments = "".join(CLASS_OPTIONS[::2] if target is spread else CLASS_OPTIONS)
            yield record_loss(f"CrossEntropyLoss({arguments}{end}", draw(2, 2, 3), target)
        yield record_loss(f"NLLLoss({''.join(CLASS_OPTIONS[:2])}{end}", draw(2, 2, 3), labels)
        yield record_loss(f"SmoothL1Loss({end}", draw(2, 5), draw(2, 5))

    probabilities = torch.cat([chances[1:], tensor([0.75] * 5, 1, 5)])
    inside = (chances + 0.125) / 1.25
    for reduction in ("mean", "sum", "batchmean", "none"):
        end, log_p = f"reduction='{reduction}')", -draw(2, 5).abs()
        yield record_loss(f"KLDivLoss({end}", log_p, chances)
        yield record_loss(f"KLDivLoss(log_target=True, {end}", log_p, -draw(2, 5).abs())
        if reduction == "batchmean":
            continue
        for p in (inside, probabilities):  # the second with p of 0 and 1
            yield record_loss(f"BCELoss({end}", p, chances)
        weights = "pos_weight=[0.5, 2.0, 1.0, 3.0, 0.0], "
        yield record_loss(f"BCEWithLogitsLoss({weights}{end}", 4 * draw(2, 5), chances)
        cosine = functools.partial(cosine_distance, reduction)
        yield record_loss(f"CosineDistanceLoss({end}", 16 * draw(2, 5), 16 * draw(2, 5), cosine)


def record_loss(expression, prediction, target, loss=None):
    loss = loss or in_torch(expression)
    prediction = prediction.clone().requires_grad_()
    arrays = [prediction, target]
    if expression.startswith(("CrossEntropy", "NLL")) and prediction.ndim > 2:  # classes on axis 1
        arrays = [a.movedim(-1, 1) if a.is_floating_point() else a for a in arrays]
    value = loss(*arrays)
    value.sum().backward()
    inputs = {"prediction": prediction.tolist(), "target": target.tolist()}
    outputs = {"value": value.tolist(), "d_prediction": prediction.grad.tolist()}
    return expression, inputs, outputs


def cosine_distance(reduction, prediction, target):
    """For vectors so long that PyTorch's addition of 1e-12 to their squares changes nothing."""
    loss = import_torch().nn.CosineEmbeddingLoss(reduction=reduction)
    return loss(prediction, target, tensor([1.0]))


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
    for arguments, options in {
        "": {},
        ", 0.9, 1e-3": {"alpha": 0.9, "eps": 1e-3},
        ", momentum=0.5, weight_decay=0.1": {"momentum": 0.5, "weight_decay": 0.1},
        ", 0.8, centered=True": {"alpha": 0.8, "centered": True},
        ", 0.5, 1e-5, 0.9, True, 0.01": {
            "alpha": 0.5,
            "eps": 1e-5,
            "momentum": 0.9,
            "centered": True,
            "weight_decay": 0.01,
        },
    }.items():
        make = functools.partial(torch.optim.RMSprop, **options)
        yield record_steps(f"rmsprop({schedule}{arguments})", make, params, grads, rates)
    for expression, make in {
        f"adagrad({schedule})": torch.optim.Adagrad,
        f"with_l2(adagrad({schedule}, 0.25, 1e-3), 0.1)": functools.partial(
            torch.optim.Adagrad, initial_accumulator_value=0.25, eps=1e-3, weight_decay=0.1
        ),
        f"with_l2(adam({schedule}), 0.1)": functools.partial(torch.optim.Adam, weight_decay=0.1),
        f"only(adam({schedule}, weight_decay=0.1), lambda path, leaf: leaf.ndim > 1, "
        f"adam({schedule}))": adamw_with_decay_of_matrices,
        f"only(adam({schedule}), {{'W': False, 'b': True}})": lambda leaves: torch.optim.Adam(
            leaves[1:]
        ),
    }.items():
        yield record_steps(expression, make, params, grads, rates)

    params = {"W": tensor([0.0] * 6, 2, 3), "b": tensor([0.0] * 2)}
    for scale, max_norm in ((1, 0.5), (1, 100.0), (1e-4, 1e-5), (0, 1.0)):
        grads = {"W": scale * draw(1, 2, 3), "b": scale * draw(1, 2)}
        expression = f"clip_by_global_norm(sgd(1.0), {max_norm})"
        clipping = functools.partial(sgd_with_clipping, max_norm)
        yield record_steps(expression, clipping, params, grads, [1.0])


def adamw_with_decay_of_matrices(leaves):
    groups = [{"params": [leaf], "weight_decay": 0.1 if leaf.ndim > 1 else 0.0} for leaf in leaves]
    return import_torch().optim.AdamW(groups)


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
        for group in optimizer.param_groups:
            group["lr"] = rate
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
        ("linear_decay(0.5, 8)", optim.lr_scheduler.LinearLR, 1.0, 0.0, 8),
        ("linear_decay(0.5, 20, 0.1)", optim.lr_scheduler.LinearLR, 1.0, 0.2, 20),
        ("one_cycle(0.5, 12)", one_cycle),
        (
            "one_cycle(0.5, 13, pct_start=0.4, div_factor=4, final_div_factor=10)",
            functools.partial(one_cycle, total_steps=13, pct_start=0.4),
            *(4, 10),
        ),
        ("warmup(cosine_decay(0.5, 7), 4)", warmup_and_cosine),
    ):
        optimizer = optim.SGD([draw(1)], 0.5)
        schedule, steps, rates = make(optimizer, *arguments), list(range(12)), []
        for _ in steps:
            rates += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        yield expression, {"steps": steps}, {"rates": rates}


def one_cycle(optimizer, div_factor=25.0, final_div_factor=1e4, total_steps=12, pct_start=0.3):
    return import_torch().optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, total_steps, pct_start=pct_start, cycle_momentum=False,
        div_factor=div_factor, final_div_factor=final_div_factor,
    )  # fmt: skip


def warmup_and_cosine(optimizer):
    schedulers = import_torch().optim.lr_scheduler
    warmup = schedulers.LambdaLR(optimizer, lambda step: step / 4)
    cosine = schedulers.CosineAnnealingLR(optimizer, 7)
    return schedulers.SequentialLR(optimizer, [warmup, cosine], [4])


def main(arguments=None):
    return run(record, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
