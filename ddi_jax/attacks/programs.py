"""The compiled programs of a model, kept from one evaluation to the next."""

from collections.abc import Callable, Iterator
import functools
import hashlib
import re
from typing import Any, NamedTuple

import jax
from jax.extend import core as jax_core
import numpy as np

from ddi_jax.attacks import classifier
from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.numerics.loops import inner_jaxprs
from ddi_jax.records import record_of

# The programs of this many models are kept.  They hold the arrays that a model closes
# over.
_MOST_MODELS = 2


class Programs(NamedTuple):
  """Jitted functions, which compile when they are first called.

  Attributes:
    classify: (keys `[B]`, logits_fn, inputs, labels) -> (whether each is misclassified
      `[B]`, logits `[B, C]`).
    attack: (attack, keys, logits_fn, inputs, labels) -> points, where the attack is a
      pytree, see `jax.tree_util.Partial`.
    pull_back: (logits_fn, inputs, key or None) -> (logits, function: cotangents of the
      logits -> gradients).
    num_classes: C.
  """

  classify: Callable[..., tuple[jax.Array, jax.Array]]
  attack: Callable[..., jax.Array]
  pull_back: Callable[..., tuple[jax.Array, Any]]
  num_classes: int


def as_partial(function: Callable[..., Any]) -> jax.tree_util.Partial:
  """A function as a pytree whose leaves are its bound arguments, if any."""
  if isinstance(function, jax.tree_util.Partial):
    return function
  return jax.tree_util.Partial(function)


def programs_of(
  logits_fn: jax.tree_util.Partial, inputs: Any, *, randomised: bool
) -> Programs:
  """The programs of a model, taken from an earlier evaluation of the same model.

  A model is the same if it is the same function and also computes the same, that is,
  has the same operations and closes over the same arrays.  The model is traced to find
  this out, so that a model whose parameters were changed in place is compiled again.

  Args:
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`.  Its bound arguments become
      arguments of the programs.
    inputs: a batch, or its shape and dtype.
    randomised: whether `logits_fn` takes (inputs, key).

  Raises:
    ValueError: for a model that does not return logits.
  """
  draw = (jax.random.key(0),) if randomised else ()

  def trace(logits_fn: LogitsFn, inputs: Any) -> jax.Array:  # New, so not cached.
    logits = logits_fn(inputs, *draw)
    classifier.check_logits(logits, len(inputs))
    return logits

  traced = jax.make_jaxpr(trace)(logits_fn, inputs)
  return _programs(
    logits_fn.func, _fingerprint(traced), randomised, traced.out_avals[0].shape[1]
  )


@functools.lru_cache(maxsize=_MOST_MODELS)
def _programs(
  model: Callable[..., Any], fingerprint: str, randomised: bool, num_classes: int
) -> Programs:
  """New jitted functions, whose programs are freed with this entry of the cache."""
  del model, fingerprint

  def classify(
    keys: jax.Array, logits_fn: LogitsFn, inputs: Any, labels: Any
  ) -> tuple[jax.Array, jax.Array]:
    draw = (jax.random.fold_in(keys[0], 1),) if randomised else ()
    logits = logits_fn(inputs, *draw)
    return classifier.misclassified(logits, labels), logits

  def attack(attack: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
    return attack(*arguments)

  def pull_back(
    logits_fn: LogitsFn, inputs: jax.Array, key: jax.Array | None
  ) -> tuple[jax.Array, Any]:
    draw = () if key is None else (key,)
    return jax.vjp(lambda points: logits_fn(points, *draw), inputs)

  return Programs(jax.jit(classify), jax.jit(attack), jax.jit(pull_back), num_classes)


def _fingerprint(traced: Any) -> str:
  """A digest of a traced function's operations and of the arrays that it holds."""
  # A jaxpr's functions, such as derivative rules, are printed with their addresses.
  operations = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))
  held = [*traced.consts, *_literals(traced.jaxpr)]
  # JAX wraps numpy's arrays, in some versions in a type that is not an array.
  arrays = record_of(
    {"": [x if isinstance(x, jax.Array) else np.asarray(x) for x in held]}
  )
  return hashlib.sha256(f"{operations} {arrays}".encode()).hexdigest()


def _literals(jaxpr: jax_core.Jaxpr) -> Iterator[Any]:
  """Yield the literal numbers and arrays in a jaxpr."""
  for equation in jaxpr.eqns:
    for variable in equation.invars:
      if isinstance(variable, jax_core.Literal):
        yield variable.val
    for inner in inner_jaxprs(equation.params.values()):
      yield from _literals(inner)
