"""The form of a loop: which one a backend runs fast depends on what it repeats."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core as jax_core
import jax.numpy as jnp


def check_form(name: str, form: str, allowed: Sequence[str]) -> None:
  """Raises ValueError unless `form` is one of the `allowed` loop forms."""
  if form not in allowed:
    raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {form!r}.")


def resolve(form: str, fn: Callable[..., Any], *args: Any) -> str:
  """The concrete loop form for repeating `fn(*args)`: "unroll", "loop" or "vmap".

  "auto" is decided from what `fn` contains (docs/benchmarks.md has the measurements):
  without convolutions "vmap", one batched program; with them "loop", small to
  compile.  On the CPU, XLA runs convolutions in a loop at a fraction of their speed
  unless they stand in one canonical form (jax-ml/jax issue 12868); where a gradient
  holds others, "unroll".
  """
  if form != "auto":
    return form
  kinds = _convolutions(jax.make_jaxpr(fn)(*args).jaxpr)
  if not kinds:
    return "vmap"
  return "unroll" if jax.default_backend() == "cpu" and False in kinds else "loop"


def map_leading(fn: Callable[[Any], Any], xs: Any, form: str) -> Any:
  """`fn` on every leading index of the leaves of `xs`, results stacked."""
  if form == "vmap":
    return jax.vmap(fn)(xs)
  if form == "loop":
    return jax.lax.map(fn, xs)
  count = len(jax.tree.leaves(xs)[0])
  results = [fn(jax.tree.map(lambda x: x[i], xs)) for i in range(count)]  # noqa: B023
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _convolutions(jaxpr) -> set[bool]:
  """Whether each convolution of a jaxpr is canonical, as a set of booleans."""
  found = set()
  for equation in jaxpr.eqns:
    if equation.primitive.name == "conv_general_dilated":
      found.add(_is_canonical(equation.params))
    for inner in _inner_jaxprs(equation.params.values()):
      found |= _convolutions(inner)
  return found


def _inner_jaxprs(values: Iterable[Any]) -> Iterator[jax_core.Jaxpr]:
  for value in values:
    if isinstance(value, jax_core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, jax_core.Jaxpr):
      yield value
    elif isinstance(value, (list, tuple)):
      yield from _inner_jaxprs(value)


def _is_canonical(params) -> bool:
  """Whether a convolution is NHWC x HWIO -> NHWC without dilation or groups."""
  numbers = params["dimension_numbers"]
  rank = len(numbers.lhs_spec)
  spatial = tuple(range(1, rank - 1))
  return (
    numbers.lhs_spec == (0, rank - 1, *spatial)
    and numbers.rhs_spec == (rank - 1, rank - 2, *range(rank - 2))
    and numbers.out_spec == (0, rank - 1, *spatial)
    and all(d == 1 for d in (*params["lhs_dilation"], *params["rhs_dilation"]))
    and params["feature_group_count"] == params["batch_group_count"] == 1
  )
