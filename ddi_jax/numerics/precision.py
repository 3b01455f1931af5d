"""The precision that gradients and their inner products are computed in."""

import jax
import jax.numpy as jnp


def at_least_float32(array: jax.Array) -> jax.Array:
  """Casts half precision to float32; leaves float32 and float64 as they are."""
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def accumulation_dtype() -> jnp.dtype:
  """float64 where x64 is enabled, else float32."""
  return jnp.result_type(float)


def matmul(first: jax.Array, second: jax.Array) -> jax.Array:
  """`jnp.matmul` in full precision, also where the default is tf32 or bfloat16."""
  return jnp.matmul(first, second, precision="highest")
