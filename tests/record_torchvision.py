"""Write what torchvision's models compute, in float64, for those of tests/architectures.py.

Run it where fnn, PyTorch and torchvision are installed ('pip install torchvision' installs both):
PYTHONPATH=scripts python tests/record_torchvision.py FILE

The file holds, for each model in evaluation and in training mode, the outputs, the loss, and the
norm and a weighted sum of each array of derivatives. The models have no dropout.
"""

import importlib
import json
import pathlib

from architectures import IMAGES, NUM_CLASSES, SMALL, STATISTICS, digest, draw_images, draw_params
from shared.command_line import Parser, leave, run
from shared.pytorch import import_torch

from fnn.files import write_text


def parse_options(arguments=None):
    parser = Parser("Write what torchvision's models compute; the tests hold fnn to it.")
    parser.add_argument("file", type=pathlib.Path, help="the JSON file to write")
    options = parser.parse_args(arguments)
    require_torchvision(parser)
    parser.check_output(options.file.parent, [options.file.name], "file")
    return options


def require_torchvision(parser):
    """End with an error where torchvision is not installed."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        parser.error("torchvision is not installed; 'pip install torchvision' installs it")


def record(options):
    """Write all the results. Returns the exit status."""
    import_torch().set_num_threads(1)
    recorded = {}
    for name, make in SMALL.items():
        like, numbers = draw_params(make())
        modes = {"evaluation": False, "training": True}
        recorded[name] = {mode: compute(name, like, numbers, on) for mode, on in modes.items()}
    write_text(options.file, json.dumps(recorded, indent=0) + "\n")
    return 0


def make_model(name):
    """torchvision's class with few channels, and without Dropout and stochastic depth."""
    from torchvision.models import efficientnet, mobilenetv3

    if name == "resnet18":
        return make_resnet()
    if name == "mobilenet_v3_small":
        setting, last_channel = mobilenetv3._mobilenet_v3_conf(name, width_mult=0.25)
        return mobilenetv3.MobileNetV3(setting, last_channel, NUM_CLASSES, dropout=0.0)
    setting, last_channel = efficientnet._efficientnet_conf(name, width_mult=0.25, depth_mult=1.0)
    options = {"dropout": 0.0, "stochastic_depth_prob": 0.0, "last_channel": last_channel}
    return efficientnet.EfficientNet(setting, num_classes=NUM_CLASSES, **options)


def make_resnet():
    """ResNet-18 with an eighth of the channels, for which torchvision's class has no argument."""
    from torchvision.models import resnet

    nn = import_torch().nn

    class Narrow(resnet.ResNet):
        def _make_layer(self, block, planes, *arguments, **options):
            self.inplanes = 8 if planes == 64 else self.inplanes
            return super()._make_layer(block, planes // 8, *arguments, **options)

    model = Narrow(resnet.BasicBlock, [2, 2, 2, 2], NUM_CLASSES)
    model.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
    model.bn1, model.fc = nn.BatchNorm2d(8), nn.Linear(64, NUM_CLASSES)
    return model


def compute(name, like, numbers, training):
    """The entry of the file for one model in one mode, with fnn's parameters."""
    torch = import_torch()
    model = make_model(name).double().train(training)
    for module in model.modules():
        if isinstance(module, torch.nn.Hardsigmoid):  # PyTorch rounds 1 / 6 to float32
            module.forward = lambda x: torch.nn.functional.relu6(x + 3) / 6
    learned = set_parameters(model, like, numbers)
    images = torch.tensor(draw_images(), dtype=float).reshape(IMAGES).requires_grad_()
    y = model(images.permute(0, 3, 1, 2))
    value = torch.nn.CrossEntropyLoss()(y, torch.arange(len(y)) % NUM_CLASSES)
    value.backward()
    grads = [digest(in_fnns_order(parameter.grad, shape)) for parameter, shape in learned]
    dx = digest(images.grad.flatten().tolist())
    return {"y": y.flatten().tolist(), "loss": value.item(), "dx": dx, "grads": grads}


def set_parameters(model, like, numbers):
    """Give the model fnn's numbers.

    Convolutions, norms and linear layers stand in the same order in both. torchvision's gates have
    convolutions of one place, (out, in, 1, 1), for fnn's Linear.

    Returns:
        The learned parameters in the order of fnn's leaves, each with the leaf's shape.
    """
    torch = import_torch()
    kinds = torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    numbers, learned = iter(numbers), []
    with torch.no_grad():
        for module, leaves in zip(modules, each_layer(like), strict=True):
            parts = parts_of(module)
            assert set(leaves) == set(parts), f"{module} has {set(parts)}, fnn {set(leaves)}"
            for entry in sorted(leaves):  # the order of jax.tree
                part, shape = parts[entry], leaves[entry].shape
                array = torch.tensor(next(numbers), dtype=float).reshape(shape)
                array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array
                part.copy_(array.reshape(part.shape))
                learned += [] if entry in STATISTICS else [(part, shape)]
    return learned


def in_fnns_order(array, shape):
    """A list of the numbers. fnn's kernels are (height, width, in, out)."""
    return (array.permute(2, 3, 1, 0) if len(shape) == 4 else array).flatten().tolist()


def parts_of(module):
    """The module's tensors by their names in fnn."""
    if isinstance(module, import_torch().nn.BatchNorm2d):
        statistics = {"mean": module.running_mean, "var": module.running_var}
        return {"scale": module.weight, "bias": module.bias, **statistics}
    return {"W": module.weight} | ({} if module.bias is None else {"b": module.bias})


def each_layer(params):
    """The dictionaries in a tree of tuples: the parameters of each layer, in order."""
    if isinstance(params, dict):
        yield params
        return
    for part in params:
        yield from each_layer(part)


def main(arguments=None):
    return run(record, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
