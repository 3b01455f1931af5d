"""Networks from Flax Linen, Haiku and Equinox as pure functions.

See `models.pure`.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import inspect
import sys
from typing import Any

import chex
from flax import linen
import jax
import jax.numpy as jnp

Apply = Callable[..., tuple[jax.Array, Any]]
Functional = tuple[Apply, chex.ArrayTree, chex.ArrayTree]

_IN_TRAINING = ("train", "training", "is_training")
_IN_EVALUATION = ("deterministic", "inference", "use_running_average")


def is_from(model: Any, library: str) -> bool:
  """Whether a model's class, or one of its base classes, comes from a library."""
  return any(cls.__module__.split(".")[0] == library for cls in type(model).__mro__)


def mode_arguments(
  call: inspect.Signature,
  given: Sequence[str],
  *,
  train: bool,
  key: jax.Array | None = None,
) -> tuple[list[Any], dict[str, Any]]:
  """The arguments that a model takes after its inputs: its mode, and a key.

  Args:
    call: the model's signature.
    given: names of the first arguments, which the caller supplies; used in errors.
    train: whether the model is in training mode.
    key: a key, or None; passed to an argument that is named key or rng.

  Returns:
    (positional arguments, keyword arguments).

  Raises:
    ValueError: for an argument that is neither a mode nor a key, nor has a default.
  """
  positional, named = [], {}
  for parameter in list(call.parameters.values())[len(given) :]:
    name, optional = parameter.name, parameter.default is not parameter.empty
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
      continue
    value: Any
    if name in _IN_TRAINING or name in _IN_EVALUATION:
      value = train == (name in _IN_TRAINING)
    elif name in ("key", "rng") and not (optional and key is None):
      value = key
    elif optional:
      continue
    else:
      modes = ", ".join((*_IN_TRAINING, *_IN_EVALUATION))
      raise ValueError(
        f"the model must be a function of ({', '.join(given)}), with its mode named as "
        f"one of {modes}, and key or rng if it wants one; got the argument {name!r}."
      )
    if parameter.kind is parameter.POSITIONAL_ONLY:
      positional.append(value)
    else:
      named[name] = value
  return positional, named


def missing_key() -> ValueError:
  """The error for a model that draws random numbers but was given no key."""
  return ValueError(
    "the model draws random numbers in training mode (Dropout, for example).  Pass "
    "key= to apply: one for each candidate, or one for all, to drop the same in all."
  )


@contextlib.contextmanager
def _names_missing_key(key: jax.Array | None) -> Iterator[None]:
  """Turn a library's own error about a missing key into `missing_key`."""
  try:
    yield
  except Exception as error:
    said = str(error).lower()
    if key is None and any(word in said for word in ("key", "rng")):
      raise missing_key() from error
    raise


def of_linen(model: linen.Module, inputs: Any, key: jax.Array | None) -> Functional:
  """A Linen module as pure functions; its random streams all derive from the key."""
  key = _check_initial(inputs, key)
  call = inspect.signature(model.__call__)
  positional, named = mode_arguments(call, ("inputs",), train=False)
  variables = dict(model.init(key, inputs, *positional, **named))
  params = variables.pop("params", {})

  def apply(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    inputs: jax.Array,
    *,
    train: bool,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    positional, named = mode_arguments(call, ("inputs",), train=train, key=key)
    # A random stream without its own key uses the key of "params".
    rngs = None if key is None else {"params": key}
    variables = {"params": params, **model_state}
    with _names_missing_key(key):
      logits, changed = model.apply(
        variables, inputs, *positional, rngs=rngs, mutable=list(model_state), **named
      )
    return logits, dict(changed) if train else model_state

  return apply, params, variables


def of_haiku(model: Any, inputs: Any, key: jax.Array | None) -> Functional:
  """The result of `haiku.transform` or `transform_with_state` as pure functions."""
  key = _check_initial(inputs, key)
  call = inspect.signature(model.apply)
  given = [name for name in ("params", "state", "rng") if name in call.parameters]
  given.append("inputs")
  positional, named = mode_arguments(call, given, train=True, key=key)
  has_state = "state" in given
  variables = model.init(key, inputs, *positional, **named)
  params, model_state = variables if has_state else (variables, {})

  def apply(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    inputs: jax.Array,
    *,
    train: bool,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    positional, named = mode_arguments(call, given, train=train, key=key)
    values = {"params": params, "state": model_state, "rng": key, "inputs": inputs}
    with _names_missing_key(key):
      outcome = model.apply(*(values[name] for name in given), *positional, **named)
    logits, changed = outcome if has_state else (outcome, model_state)
    return logits, changed if train else model_state

  return apply, params, model_state


def of_equinox(model: Any, state: Any, axis_name: str) -> Functional:
  """An Equinox module, which maps one example, as pure functions.

  In training mode, each example gets its own key.
  """
  eqx: Any = sys.modules["equinox"]  # Imported already: the model is from Equinox.
  call = inspect.signature(model)
  arrays, static = eqx.partition(model, eqx.is_array)
  params, others = eqx.partition(arrays, eqx.is_inexact_array)
  given = ("inputs",) if state is None else ("inputs", "state")
  # An Equinox state may be used only once, so each call makes it anew from its arrays.
  leaves, structure = jax.tree.flatten(state)

  def apply(
    params: chex.ArrayTree,
    model_state: chex.ArrayTree,
    inputs: jax.Array,
    *,
    train: bool,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    network = eqx.combine(params, model_state["arrays"], static)
    network = eqx.nn.inference_mode(network, value=not train)

    def one(example: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
      positional, named = mode_arguments(call, given, train=train, key=key)
      if state is None:
        return network(example, *positional, **named), None
      before = jax.tree.unflatten(structure, model_state["state"])
      return network(example, before, *positional, **named)

    keys = None if key is None else jax.random.split(key, len(inputs))
    with _names_missing_key(key):
      logits, after = jax.vmap(
        one, (0, None if key is None else 0), (0, None), axis_name=axis_name
      )(inputs, keys)
    changed = {**model_state, "state": jax.tree.leaves(after)}
    return logits, changed if train else model_state

  return apply, params, {"arrays": others, "state": leaves}


def _check_initial(inputs: Any, key: jax.Array | None) -> jax.Array:
  for name, value in (("inputs", inputs), ("key", key)):
    if value is None:
      raise ValueError(
        f"{name} must be given, got None: Linen and Haiku need the inputs' shape and a "
        "key to initialise the parameters."
      )
  return jnp.asarray(key)
