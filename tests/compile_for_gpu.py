"""What XLA makes of fnn's passes for a GPU, compiled on a machine that has none.

The NVIDIA plugin of JAX compiles for a GPU that is described to it, here an H200:

    pip install "jax[cuda13]"
    PYTHONPATH=scripts python tests/compile_for_gpu.py

For layers and networks it prints how many kernels both passes launch, how many MB these read and
write, and how many MB of temporary memory they need: with fnn's backward, and with the one that
jax.vjp derives of the same forward. "least" are the MB of params, x, y and their derivatives, each
once. No time is measured: a kernel without products takes about the time of its bytes. The body of
a loop, such as an LSTM's, counts once. Products and convolutions are those of cuBLAS and cuDNN,
because other choices are tuned on a GPU.

With JAX 0.11.2, on 27 November 2026:

                                                   fnn                 jax.vjp
                                       least kernels     MB  temp. kernels     MB  temp.
    ReLU()                               537       2    671      0       2    671      0
    GELU()                               537       2    671      0       2    940      0
    Softmax()                            537       2    671      0       7   1209      0
    LogSoftmax()                         537       2    671      0       8   1075      0
    LayerNorm(2048)                      537      12   1214      2      14   1349      2
    RMSNorm(2048)                        537       9   1211      1       9   1211      1
    GroupNorm(8,64)                      268      15    605      0      19    740      0
    MaxPool2d(2)                         168       3    176      4       2    302     34
    MaxPool2d(3,2)                       164       7    253      4       7    626     90
    AvgPool2d(2)                         168       2    168      0       2    168      0
    Conv2d(64,64,3,padding=1)            269       7    471      0       7    471      0
    Conv2d(64,64,3,stride=2,padding=1)   168       7    270      0       7    270      0
    ConvTranspose2d(64,64,2,stride=2)    671       8   1813      0      10   2484    269
    MultiHeadAttention(512,8)             42      20    801    117      22   1180    193
    LSTM(512,512)                         50      19    881    126      16   1082    176
    GRU(512,512)                          46      18    856    134      18    870    143
    the cnn of train_mnist.py                     30    409     75      29    406     73
    ResNet-18                                    204    775     81     213    812     82
    GPT, 4 blocks of 512                         246  12496   1250     318  17113   2150
"""

import functools
import math
import os
import re

if __name__ == "__main__":
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0 "
        "--xla_gpu_enable_triton_gemm=false",
    }

import architectures
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from shared import mnist, text

import fnn

H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 62914560
  memory_bandwidth: 4800000000000
  device_memory_size: 150754820096
}
platform_name: "CUDA"
runtime_version { major: 13 }
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H200"
"""
ROWS, IMAGES, SEQUENCES = (16384, 2048), (256, 32, 32, 64), (8, 512, 512)
LAYERS = {
    ROWS: "ReLU() GELU() Softmax() LogSoftmax() LayerNorm(2048) RMSNorm(2048)",
    IMAGES: "GroupNorm(8,64) MaxPool2d(2) MaxPool2d(3,2) AvgPool2d(2) "
    "Conv2d(64,64,3,padding=1) Conv2d(64,64,3,stride=2,padding=1) "
    "ConvTranspose2d(64,64,2,stride=2)",
    SEQUENCES: "MultiHeadAttention(512,8) LSTM(512,512) GRU(512,512)",
}


def networks():
    """(name, model, x) for whole networks."""
    yield "the cnn of train_mnist.py", mnist.make_cnn(28, 28, 10, 0.0), ((512, 28, 28), jnp.uint8)
    yield "ResNet-18", architectures.resnet18(64), ((128, 32, 32, 3), jnp.float32)
    sizes = {"layers": 4, "dim": 512, "heads": 8, "context": 256}
    yield "GPT, 4 blocks of 512", text.make_gpt(90, **sizes), ((32, 256), jnp.int32)


def num_bytes(shape):
    """The bytes of all arrays in the text of a shape, such as (f32[2,3]{1,0}, s32[])."""
    return sum(
        math.prod(map(int, filter(None, dims.split(",")))) * max(8, int(bits or 8)) // 8
        for bits, dims in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", shape)
    )


def kernels(program):
    """The bytes that each kernel of a compiled program reads and writes."""
    (entry,) = re.findall(r"^ENTRY .*?\n(.*?)^\}", program, re.DOTALL | re.MULTILINE)
    sizes, moved = {}, []
    for line in entry.splitlines():
        name, shape, kind, rest = re.match(
            r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line
        ).groups()
        sizes[name] = num_bytes(shape)
        if kind not in ("parameter", "get-tuple-element", "tuple", "bitcast", "constant"):
            read = re.findall(r"%([\w.-]+)", rest.partition("), ")[0])
            moved.append(sum(sizes[array] for array in read) + sizes[name])
    return moved


def measure(sharding, function, *args):
    """(kernels, MB read and written, MB of temporary memory) of the compiled function."""
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), args
    )
    compiled = jax.jit(function).lower(*shapes).compile()
    moved = kernels(compiled.as_text())
    return len(moved), sum(moved) / 1e6, compiled.memory_analysis().temp_size_in_bytes / 1e6


def by_fnn(layer, params, x, dy):
    y, residuals = layer.forward(params, x)
    y, dy = jax.lax.optimization_barrier((y, dy))  # as in a training, where dy comes of y
    return y, layer.backward(params, residuals, dy)


def by_vjp(layer, params, x, dy):
    y, vjp = jax.vjp(lambda *args: layer.forward(*args)[0], params, x)
    y, dy = jax.lax.optimization_barrier((y, dy))
    return y, vjp(dy)


def grads_by_fnn(model, params, x, target):
    return fnn.loss_and_grads(model, fnn.CrossEntropyLoss())(params, x, target)


def grads_by_jax(model, params, x, target):
    def value(params):
        return fnn.CrossEntropyLoss().forward(model.forward(params, x)[0], target)[0]

    return jax.value_and_grad(value)(params)


def main():
    (device,) = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=H200
    ).devices
    sharding = NamedSharding(Mesh([device], ["one"]), PartitionSpec())
    columns = f"{'kernels':>8}{'MB':>7}{'temp.':>7}"
    print(f"{'':40}{'fnn':>10}{'jax.vjp':>24}\n{'':34}{'least':>6}{columns}{columns}")

    def show(name, candidates, args, least=None):
        line = f"{name:34}{'' if least is None else f'{least / 1e6:.0f}':>6}"
        for function in candidates:
            count, moved, temporary = measure(sharding, function, *args)
            line += f"{count:8}{moved:7.0f}{temporary:7.0f}"
        print(line, flush=True)

    for shape, names in LAYERS.items():
        for name in names.split():
            layer = eval(name, vars(fnn))
            x = jax.ShapeDtypeStruct(shape, jnp.float32)
            params = jax.eval_shape(layer.init, jax.random.key(0))
            y, _ = jax.eval_shape(layer.forward, params, x)
            least = 2 * sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((params, x, y)))
            passes = [functools.partial(function, layer) for function in (by_fnn, by_vjp)]
            show(name, passes, (params, x, y), least)
    for name, model, (shape, dtype) in networks():
        x = jax.ShapeDtypeStruct(shape, dtype)
        params = jax.eval_shape(model.init, jax.random.key(0))
        y, _ = jax.eval_shape(model.forward, params, x)
        target = jax.ShapeDtypeStruct(y.shape[:-1], jnp.int32)
        grads = [functools.partial(function, model) for function in (grads_by_fnn, grads_by_jax)]
        show(name, grads, (params, x, target))


if __name__ == "__main__":
    main()
