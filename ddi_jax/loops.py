"""The form of a loop: which one a backend runs fast depends on what it repeats."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
from typing import Any

import jax
import jax.custom_batching
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


def group_size(count: int, at_a_time: int | None, form: str) -> int:
  """How many of `count` to compute in one turn: the largest divisor within bounds.

  At most `at_a_time`.  None means all of them for "vmap" and "merge"; for "loop" 2 on
  the CPU, where XLA computes side by side what stands side by side, and much of the
  rest on one core only, and 1 elsewhere.
  """
  if at_a_time is None:
    if form != "loop":
      return count
    at_a_time = 2 if jax.default_backend() == "cpu" else 1
  return max(
    size for size in range(1, count + 1) if count % size == 0 and size <= at_a_time
  )


def map_leading(
  fn: Callable[[Any], Any], xs: Any, form: str, at_a_time: int | None = None
) -> Any:
  """`fn` on every leading index of the leaves of `xs`, results stacked.

  Args:
    fn: of one index.
    xs: leaves `[count, ...]`.
    form: "unroll", "loop" or "vmap".
    at_a_time: see `group_size`; not for "unroll".
  """
  count = len(jax.tree.leaves(xs)[0])
  if form == "unroll":
    return _unrolled(fn, xs)
  size = group_size(count, at_a_time, form)
  together = jax.vmap(fn) if form == "vmap" else functools.partial(_unrolled, fn)
  return map_groups(together, xs, size)


def map_resolved(
  fn: Callable[[Any], Any], xs: Any, form: str, at_a_time: int | None = None
) -> Any:
  """`map_leading` in the form that `resolve` finds, with `at_a_time` never unrolled."""
  if len(jax.tree.leaves(xs)[0]) == 1:
    return _unrolled(fn, xs)
  form = resolve(form, fn, jax.tree.map(lambda x: x[0], xs))
  if form == "unroll" and at_a_time is not None:
    form = "loop"
  return map_leading(fn, xs, form, at_a_time)


def map_groups(fn: Callable[[Any], Any], xs: Any, size: int) -> Any:
  """`fn` on `size` leading indices of the leaves of `xs` at a time, joined again."""
  count = len(jax.tree.leaves(xs)[0])
  if size == count:
    return fn(xs)
  groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), xs)
  return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), jax.lax.map(fn, groups))


def _unrolled(fn, xs):
  count = len(jax.tree.leaves(xs)[0])
  results = [fn(jax.tree.map(lambda x: x[i], xs)) for i in range(count)]  # noqa: B023
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def side_by_side(
  objective: Callable[[jax.Array], jax.Array], like: jax.Array
) -> Callable[[jax.Array], jax.Array]:
  """The same objective, which `jax.vmap` repeats instead of batching.

  A vmapped attack then evaluates a network several times in one turn of its loop, each
  time as it would be alone.  One array in, one out; differentiable once, in reverse.

  Args:
    objective: may close over tracers.
    like: an example of its argument.
  """
  closed = jax.make_jaxpr(objective)(like)

  def evaluate(constants, point):
    return jax.core.eval_jaxpr(closed.jaxpr, constants, point)[0]

  @_repeated_by_vmap
  def value(constants, point):
    return evaluate(constants, point)

  @_repeated_by_vmap
  def pull_back(constants, point, cotangent):
    _, pull = jax.vjp(lambda point: evaluate(constants, point), point)
    return pull(cotangent)[0]

  @jax.custom_vjp
  def repeated(constants, point):
    return value(constants, point)

  repeated.defvjp(
    lambda constants, point: (value(constants, point), (constants, point)),
    lambda residuals, cotangent: (None, pull_back(*residuals, cotangent)),
  )
  return lambda point: repeated(closed.consts, point)


def _repeated_by_vmap(fn):
  """A function of pytrees to an array, whose batching rule is to call it repeatedly."""
  batched = jax.custom_batching.custom_vmap(fn)

  @batched.def_vmap
  def rule(size, are_batched, *args):
    def call(index):
      return fn(
        *jax.tree.map(
          lambda x, is_batched: x[index] if is_batched else x, args, tuple(are_batched)
        )
      )

    return jnp.stack([call(index) for index in range(size)]), True

  return batched


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
