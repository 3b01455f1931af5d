"""K gradients as pytrees and as matrices, and all the directions made from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import ddi_jax

DIRECTIONS = {
  "danskin": ddi_jax.danskin_direction,
  "bundle": functools.partial(ddi_jax.danskin_direction, bundle_step=0.1),
  "active set": functools.partial(ddi_jax.danskin_direction, loss_tolerance=0.5),
  "average": ddi_jax.average_direction,
  "first": ddi_jax.first_restart_direction,
  "mgda": ddi_jax.mgda_direction,
  "mgda loss": functools.partial(ddi_jax.mgda_direction, normalization="loss"),
  "mgda loss+": functools.partial(ddi_jax.mgda_direction, normalization="loss+"),
  "upgrad": ddi_jax.upgrad_direction,
  "cagrad": ddi_jax.cagrad_direction,
  "pcgrad": ddi_jax.pcgrad_direction,
  "dual projection": ddi_jax.dual_projection_direction,
  "aligned mtl": ddi_jax.aligned_mtl_direction,
  "imtl-g": ddi_jax.imtl_g_direction,
  "conflict free": ddi_jax.conflict_free_direction,
  "nash mtl": ddi_jax.nash_mtl_direction,
}


def random_gradients(seed, size=4):
  rng = np.random.default_rng(seed)
  shift = rng.choice([0.0, 1.0, 5.0])
  scales = np.exp(rng.choice([0.0, 1.0]) * rng.normal(size=(size, 1)))
  flat = scales * (rng.normal(size=(size, 11)) + shift * rng.normal(size=11))
  return as_tree(jnp.asarray(flat, jnp.float32))


def as_tree(flat):
  """[K, 11] as the gradients of three parameters."""
  return {
    "a": flat[:, :6].reshape(-1, 2, 3),
    "b": [flat[:, 6:10], flat[:, 10]],
  }


def as_matrix(tree):
  return np.concatenate(
    [np.asarray(leaf, float).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)],
    axis=1,
  )


def as_vector(tree):
  return np.concatenate(
    [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)]
  )


PARAMS = jax.tree.map(lambda leaf: leaf[0], random_gradients(0))


def combine(transformation, gradients, params=None, losses=None):
  """(Direction, state), with losses 2 to 1 unless others are given."""
  if losses is None:
    losses = jnp.linspace(2.0, 1.0, jax.tree.leaves(gradients)[0].shape[0])
  state = transformation.init(PARAMS)
  return transformation.update(
    gradients, state, params, losses=losses, key=jax.random.key(0)
  )
