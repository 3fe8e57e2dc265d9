"""Programs that run a few times: on the CPU, and compiled quickly rather than well."""

from collections.abc import Callable
from typing import Any

import jax

QUICKLY = {"xla_backend_optimization_level": 0}


def jit_on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """jax.jit(function) for a program that takes longer to compile than to run.

    It runs on the CPU, also where there is a GPU, and is compiled in about half the time. Its
    results may be rounded otherwise than those of jax.jit. Where there is a GPU they are committed
    to the first one: place them before you mix them with arrays on a mesh.
    """
    compiled = jax.jit(function, compiler_options=QUICKLY)

    def run(*args):
        if jax.default_backend() == "cpu":
            return compiled(*args)
        try:
            cpu = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX_PLATFORMS may name the GPU alone
            return compiled(*args)
        return jax.device_put(compiled(*jax.device_put(args, cpu)), jax.local_devices()[0])

    return run
