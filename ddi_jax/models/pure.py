"""A network of any library as a pure function over trees of arrays."""

import inspect
from typing import Any

import chex
from flax import linen, nnx
import jax
import jax.numpy as jnp

from ddi_jax.models import other_libraries
from ddi_jax.models.other_libraries import Apply, Functional, mode_arguments
from ddi_jax.numerics import platform

_STATISTICS = nnx.Not(nnx.Any(nnx.Param, nnx.RngState))


def functional(
  model: Any,
  inputs: Any = None,
  *,
  key: jax.Array | None = None,
  state: Any = None,
  axis_name: str = "batch",
) -> Functional:
  """Split a network into a pure function and its trees of arrays.

  The network may have a training mode: an NNX module's `train()` and `eval()`,
  Equinox's `inference`, or an argument named train, training, is_training,
  deterministic, inference or use_running_average.

  Args:
    model: a map from inputs `[B, ...]` to logits `[B, C]`: an NNX or Linen module, or
      the result of Haiku's `transform` or `transform_with_state`.  An Equinox module
      maps a single example instead.
    inputs: `[B, ...]` with any B >= 1.  Linen and Haiku need their shape to initialise
      the parameters.
    key: key for the initial parameters, for Linen and Haiku; consumed.
    state: the state of an Equinox module with BatchNorm, from
      `equinox.nn.make_with_state`.
    axis_name: name of the batch axis, for an Equinox module with BatchNorm.

  Returns:
    (apply, params, model_state): trees of arrays, and `apply(params, model_state,
    inputs, *, train, key=None) -> (logits, new model_state)`.  `model_state` holds the
    arrays that are neither parameters nor random states, such as BatchNorm's running
    statistics.  It changes only with `train=True`.  The key is consumed.  With the same
    key, Dropout drops the same units.  Without a key, `train=True` is an error for a
    model that draws random numbers.

  Raises:
    ValueError: for a model of another kind, or if inputs or key are missing.

  Example:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from ddi_jax import models
    >>> apply, params, state = models.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> logits, _ = apply(params, state, jnp.ones((4, 3)), train=False)
    >>> logits.shape
    (4, 2)
  """
  if isinstance(model, FunctionalModule):
    return model.functional()
  if isinstance(model, nnx.Module):
    return _of_nnx(model)
  if isinstance(model, linen.Module):
    return other_libraries.of_linen(model, inputs, key)
  if other_libraries.is_from(model, "haiku"):
    return other_libraries.of_haiku(model, inputs, key)
  if other_libraries.is_from(model, "equinox"):
    return other_libraries.of_equinox(model, state, axis_name)
  given = (
    f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
  )
  raise ValueError(
    "model must be an instance of a module of Flax NNX, Flax Linen or Equinox, or "
    f"transformed by Haiku; got {given}."
  )


def _of_nnx(model: nnx.Module) -> Functional:
  graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
  params, random_state, model_state = states
  call = inspect.signature(model)  # Read once, not at every trace.

  def apply(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    inputs: jax.Array,
    *,
    train: bool,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    if train and key is None and jax.tree.leaves(random_state):
      raise other_libraries.missing_key()
    drawn = random_state if key is None else _reseeded(random_state, key)
    module = nnx.merge(graph, params, drawn, model_state)
    if train:
      module.train()
    else:
      module.eval()
    positional, named = mode_arguments(call, ("inputs",), train=train, key=key)
    logits = module(inputs, *positional, **named)
    return logits, nnx.to_pure_dict(nnx.state(module, _STATISTICS))

  return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


def _reseeded(random_state: nnx.State, key: jax.Array) -> nnx.State:
  """The module's random streams, each restarted with its own key."""
  leaves, structure = jax.tree.flatten(random_state)
  fresh = []
  for index, leaf in enumerate(leaves):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      own = jax.random.fold_in(key, index)
      fresh.append(jax.random.split(own, leaf.shape) if leaf.shape else own)
    else:
      fresh.append(jnp.zeros_like(leaf))  # The number of keys drawn from a stream.
  return jax.tree.unflatten(structure, fresh)


class FunctionalModule(nnx.Module):
  """A network from another library as an NNX module, for the training program.

  Calling it maps inputs to logits in evaluation mode.  Training uses its `functional`.

  Args:
    apply: see the function `functional`.
    params: a tree whose arrays become `nnx.Param`s, named by their path in the tree.
    model_state: a tree whose arrays become `nnx.Variable`s.
  """

  def __init__(
    self, apply: Apply, params: chex.ArrayTree, model_state: chex.ArrayTree
  ) -> None:
    """Keep the arrays as variables, and everything else unchanged."""
    self._apply = apply
    self._trees: tuple[tuple[tuple[str, ...], Any], ...] = ()
    for prefix, tree, kind in (
      ("params", params, nnx.Param),
      ("state", model_state, nnx.Variable),
    ):
      leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
      names = tuple(f"{prefix}.{_name_of(path)}" for path, _ in leaves)
      for name, (_, leaf) in zip(names, leaves, strict=True):
        setattr(self, name, kind(leaf))
      self._trees += ((names, structure),)

  def functional(self) -> Functional:
    """The same as the function `functional`, with dictionaries of arrays as trees."""
    apply, trees = self._apply, self._trees
    state_names, _ = trees[1]

    def apply_to_named(
      params: chex.ArrayTree,
      model_state: chex.ArrayTree,
      inputs: jax.Array,
      *,
      train: bool,
      key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
      arguments = [
        jax.tree.unflatten(structure, [named[name] for name in names])
        for (names, structure), named in zip(trees, (params, model_state), strict=True)
      ]
      logits, new_state = apply(*arguments, inputs, train=train, key=key)
      return logits, dict(zip(state_names, jax.tree.leaves(new_state), strict=True))

    params, model_state = nnx.state(self, nnx.Param, ...)
    return apply_to_named, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Inputs `[B, ...]` -> logits `[B, C]`."""
    apply, *trees = self.functional()
    return apply(*trees, inputs, train=False)[0]


def _name_of(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def mean_state(model_states: chex.ArrayTree) -> chex.ArrayTree:
  """Average the model states of K candidates, where they can be averaged.

  Args:
    model_states: leaves `[K, ...]`, such as the auxiliary output of
      `ddi_jax.restart_gradients`.

  Returns:
    Leaves `[...]`: the means of floating-point leaves, and the first candidate's value
    of all others (counters, for example).

  Example:
    >>> import jax.numpy as jnp
    >>> from ddi_jax import models
    >>> models.mean_state({"mean": jnp.array([1.0, 2.0]), "count": jnp.array([7, 7])})
    {'count': Array(7, dtype=int32), 'mean': Array(1.5, dtype=float32)}
  """

  def mean(leaf: jax.Array) -> jax.Array:
    return leaf.mean(axis=0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[0]

  return jax.tree.map(mean, model_states)


def in_bfloat16(apply: Apply) -> Apply:
  """The same network in bfloat16: cheaper, with a relative error of about 1e-2.

  Use it for attacks.  Parameters, inputs and all intermediate arrays are bfloat16, and
  the logits are float32.  On a CPU, elementwise operations gain nothing from bfloat16,
  so only the factors of convolutions are rounded to it.  This saves time on processors
  with AMX.

  Args:
    apply: see `functional`.

  Returns:
    An `apply` with the same arguments.  Its new model state has the same error.

  Example:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from ddi_jax import models
    >>> apply, params, state = models.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> cheaper = models.in_bfloat16(apply)
    >>> cheaper(params, state, jnp.ones((4, 3)), train=False)[0].dtype
    dtype('float32')
  """

  def half(tree: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)

  def cheaper(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    inputs: jax.Array,
    **mode: Any,
  ) -> tuple[jax.Array, Any]:
    if platform.target() == "cpu":
      with jax.default_matmul_precision("bfloat16"):
        return apply(params, model_state, inputs, **mode)
    logits, new_state = apply(half(params), model_state, half(inputs), **mode)
    return logits.astype(jnp.float32), new_state

  return cheaper
