"""The strictest configuration of JAX, and eight CPU devices, for every test.

Programs are compiled quickly rather than well, because most tests run theirs once.
"""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)
