"""The precision in which gradients and their inner products are computed."""

import jax
import jax.numpy as jnp


def at_least_float32(array: jax.Array) -> jax.Array:
  """Cast half precision to float32; leave float32 and float64 unchanged."""
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def accumulation_dtype() -> jnp.dtype:
  """float64 if x64 is enabled, otherwise float32."""
  return jnp.result_type(float)


def matmul(first: jax.Array, second: jax.Array) -> jax.Array:
  """`jnp.matmul` in full precision, even if the default is tf32 or bfloat16."""
  return jnp.matmul(first, second, precision="highest")
