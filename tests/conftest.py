"""The strictest configuration of JAX, and eight CPU devices, for every test.

Programs are compiled quickly rather than well, because most tests run theirs once. The larger ones
are kept for the session: scripts under test, some in processes of their own, run the same ones.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile

import jax
import pytest
from two_processes import pytest_configure, pytest_runtestloop  # noqa: F401

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")  # a GPU's default has three digits
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_filtering", "off")  # it takes time where errors are expected
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # it compiles twice as fast so, and later ones have no such flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# A shell ignores SIGINT for what it runs in the background. The processes that tests start would
# inherit that, and those that a test interrupts would go on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes that the tests start need a part of a GPU's memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_collection_finish():
    """Let Python look for garbage less often, and not among what is there from now on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="module")
def on_the_cpu():
    """Everything runs on a CPU device, on a machine with a GPU too."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield
