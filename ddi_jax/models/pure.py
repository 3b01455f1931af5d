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
  """Split a network once into a pure function and its trees of arrays.

  The network may have a mode of training: an NNX module's `train()` and `eval()`,
  Equinox's `inference`, or an argument named train, training, is_training,
  deterministic, inference or use_running_average.

  Args:
    model: inputs `[B, ...]` -> logits `[B, C]`: an NNX or Linen module, Haiku's
      `transform` or `transform_with_state` of a function, or an Equinox module, which
      maps one example.
    inputs: `[B, ...]` with any B >= 1; Linen and Haiku initialise with their shape.
    key: of the initial parameters, for Linen and Haiku; consumed.
    state: of an Equinox module with BatchNorm, from `equinox.nn.make_with_state`.
    axis_name: of the batch, for an Equinox module with BatchNorm.

  Returns:
    (apply, params, model_state): trees of arrays, and `apply(params, model_state,
    inputs, *, train, key=None) -> (logits, new model_state)`.  `model_state` holds what
    is neither a parameter nor random (BatchNorm's running statistics); it changes only
    with `train=True`.  The key is consumed; with the same key, Dropout drops the same.
    Without a key, `train=True` is an error for a model that draws random numbers.

  Raises:
    ValueError: for a model of another kind, or where inputs or key are missing.

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
  call = inspect.signature(model)  # Read once, not whenever it is traced.

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
  """Every random stream of a module begun afresh, with a key of its own."""
  leaves, structure = jax.tree.flatten(random_state)
  fresh = []
  for index, leaf in enumerate(leaves):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      own = jax.random.fold_in(key, index)
      fresh.append(jax.random.split(own, leaf.shape) if leaf.shape else own)
    else:
      fresh.append(jnp.zeros_like(leaf))  # How many keys were drawn from it.
  return jax.tree.unflatten(structure, fresh)


class FunctionalModule(nnx.Module):
  """A network of another library as an NNX module, for the training program.

  It maps inputs to logits in evaluation mode; training calls its `functional`.

  Args:
    apply: see `functional`, like the trees.
    params: its arrays become `nnx.Param`s, named by their place in the tree.
    model_state: its arrays become `nnx.Variable`s.
  """

  def __init__(
    self, apply: Apply, params: chex.ArrayTree, model_state: chex.ArrayTree
  ) -> None:
    """Hold the arrays as variables, and all else as it is."""
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
    """As `functional`, with trees of dictionaries by name."""
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
    Leaves `[...]`: means of what is floating point, of all else (counters, for example)
    the first candidate's.

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
  """The same function, cheaper and with a relative error of about 1e-2.

  For attacks: parameters, inputs and all that is between them are bfloat16, the logits
  float32.  On a CPU, whose elementwise operations gain nothing from it, only the
  factors of convolutions are, which saves time on processors with AMX.

  Args:
    apply: see `functional`.

  Returns:
    An `apply` of the same arguments.  The new model state is as imprecise as the rest.

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
