"""Arrange repeated work as a loop, a batch or side by side, whichever is fast."""

from collections.abc import Callable, Iterable, Iterator
import functools
from typing import Any, NamedTuple

import jax
import jax.custom_batching
from jax.extend import core as jax_core
import jax.numpy as jnp

from ddi_jax.numerics import platform


class Arrangement(NamedTuple):
  """How `count` repetitions of a function are computed.

  Attributes:
    batched: whether a group is one batched program (`jax.vmap`).  If not, its members
      stand side by side in one program, each computed as it would be alone.
    group_size: number of repetitions in a group.  The groups follow one another in a
      loop.
    canonical: whether all convolutions in the function have the form that XLA's CPU
      backend runs at full speed inside a loop.
  """

  batched: bool
  group_size: int
  canonical: bool


class Traced:
  """A function that JAX traces once, when this is made.

  A call evaluates its operations, without its Python code, unless `jax.disable_jit`,
  `jax.debug_nans` or `jax.debug_infs` is set to debug that code.  How to repeat a
  function is decided from its operations, and a network is slow to trace.

  Attributes:
    result: the shapes and dtypes of the function's result.
    convolutions: for the convolutions in the function, the set of `_is_canonical`
      values.
  """

  def __init__(self, fn: Callable[..., Any], *args: Any):
    """Trace `fn(*args)`.

    All calls must have arguments of these shapes, dtypes and weak types, which is not
    checked.
    """
    self._fn = fn
    self._program, self.result = jax.make_jaxpr(fn, return_shape=True)(*args)
    self.convolutions = _convolutions(self._program.jaxpr)

  def __call__(self, *args: Any) -> Any:
    config: Any = jax.config
    if config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs:
      return self._fn(*args)
    results = jax_core.jaxpr_as_fun(self._program)(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(self.result), results)


def arrange(count: int, at_a_time: int | None, fn: Traced) -> Arrangement:
  """Decide how to repeat a function, from its operations and the platform.

  Without convolutions, all repetitions are one batched program.  With convolutions,
  they run in a loop, which keeps the program small to compile.  A turn of the loop is
  one repetition on an accelerator.  On a CPU it is two side by side, which uses the
  cores better.

  Inside a loop, XLA's CPU backend runs convolutions at a fraction of their speed unless
  they have one canonical form (jax-ml/jax issue 12868).  If `fn` contains other
  convolutions, there is no loop on a CPU.  docs/benchmarks.md has the measurements.

  Args:
    count: number of repetitions, >= 1.
    at_a_time: upper bound on the size of a group, which is the largest divisor of
      `count` within it; None for the choice above.
    fn: the function.
  """
  kinds = fn.convolutions
  on_cpu = platform.target() == "cpu"
  canonical = False not in kinds
  if at_a_time is None:
    at_a_time = count
    if kinds and (canonical or not on_cpu):
      at_a_time = 2 if on_cpu else 1
  group_size = largest_divisor(count, at_a_time)
  return Arrangement(
    # A vmap over one repetition keeps XLA on a TPU from fusing the network's sums
    # (+36 % cycles).
    batched=group_size > 1 and not (kinds and on_cpu),
    group_size=group_size,
    canonical=canonical,
  )


def largest_divisor(count: int, limit: int) -> int:
  """The largest divisor of `count` that is at most `limit`, both >= 1."""
  return max(size for size in range(1, min(count, limit) + 1) if count % size == 0)


def map_leading(fn: Callable[[Any], Any], xs: Any, at_a_time: int | None = None) -> Any:
  """Apply `fn` to every leading index of the leaves of `xs`, and stack the results.

  Args:
    fn: a function of the leaves at one index.
    xs: leaves `[count, ...]`, count >= 1.
    at_a_time: see `arrange`.
  """
  count = len(jax.tree.leaves(xs)[0])
  if count == 1:
    return _side_by_side(fn, xs)
  traced = Traced(fn, jax.tree.map(lambda x: x[0], xs))
  arrangement = arrange(count, at_a_time, traced)
  together = (
    jax.vmap(traced)
    if arrangement.batched
    else functools.partial(_side_by_side, traced)
  )
  return map_groups(together, xs, arrangement.group_size)


def map_groups(fn: Callable[[Any], Any], xs: Any, size: int) -> Any:
  """Apply `fn` to groups of `size` leading indices of `xs`, and join the results."""
  count = len(jax.tree.leaves(xs)[0])
  if size == count:
    return fn(xs)
  groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), xs)
  return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), jax.lax.map(fn, groups))


def repeat(
  count: int, body: Callable[[Any, Any], Any], init: Any, repeated: Traced
) -> Any:
  """`jax.lax.fori_loop(0, count, body, init)`, unrolled where a loop is slow.

  Args:
    count: number of turns.
    body: (index, state) -> state.
    init: the first state.
    repeated: the expensive function that the body calls.
  """
  if _loops_well(repeated):
    return jax.lax.fori_loop(0, count, body, init)
  state = init
  for index in range(count):
    state = body(index, state)
  return state


def scan(
  body: Callable[[Any, Any], Any], init: Any, xs: Any, fn: Callable[[Any], Any]
) -> Any:
  """The final state of a scan over `fn(x)`, unrolled where a loop is slow.

  Args:
    body: (state, fn(x)) -> state.
    init: the first state.
    xs: leaves `[count, ...]`.
    fn: the expensive function, of the leaves at one index.
  """
  traced = Traced(fn, jax.tree.map(lambda x: x[0], xs))

  def turn(state: Any, x: Any) -> tuple[Any, None]:
    return body(state, traced(x)), None

  return jax.lax.scan(turn, init, xs, unroll=not _loops_well(traced))[0]


def _loops_well(fn: Traced) -> bool:
  return platform.target() != "cpu" or arrange(1, None, fn).canonical


def _side_by_side(fn: Callable[..., Any], xs: Any) -> Any:
  count = len(jax.tree.leaves(xs)[0])
  results = [fn(jax.tree.map(lambda x: x[i], xs)) for i in range(count)]  # noqa: B023
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def repeated_by_vmap(
  objective: Callable[[jax.Array], jax.Array], like: jax.Array
) -> Callable[[jax.Array], jax.Array]:
  """The same objective, which `jax.vmap` repeats instead of batching.

  A vmapped attack then evaluates the network several times in one turn of its loop,
  each time as it would be alone.  The objective maps one array to one array, and can be
  differentiated once, in reverse mode.

  Args:
    objective: the function; it may close over tracers.
    like: an example of its argument.
  """
  closed = jax.make_jaxpr(objective)(like)

  def evaluate(constants: Any, point: jax.Array) -> jax.Array:
    return jax.core.eval_jaxpr(closed.jaxpr, constants, point)[0]

  def pull_back(constants: Any, point: jax.Array, cotangent: jax.Array) -> jax.Array:
    _, pull = jax.vjp(lambda point: evaluate(constants, point), point)
    return pull(cotangent)[0]

  def backward(residuals: Any, cotangent: jax.Array) -> tuple[None, jax.Array]:
    traced = Traced(pull_back, *residuals, cotangent)
    return None, _repeated_by_vmap(traced)(*residuals, cotangent)

  value = _repeated_by_vmap(evaluate)
  repeated = jax.custom_vjp(value)
  repeated.defvjp(
    lambda constants, point: (value(constants, point), (constants, point)), backward
  )
  return lambda point: repeated(closed.consts, point)


def _repeated_by_vmap(fn: Callable[..., Any]) -> Callable[..., jax.Array]:
  """A function from pytrees to an array that `jax.vmap` calls repeatedly."""
  batched = jax.custom_batching.custom_vmap(fn)

  @batched.def_vmap
  def rule(size: Any, are_batched: Any, *args: Any) -> tuple[jax.Array, bool]:
    def call(index: Any) -> jax.Array:
      return fn(
        *jax.tree.map(
          lambda x, is_batched: x[index] if is_batched else x, args, tuple(are_batched)
        )
      )

    return jnp.stack([call(index) for index in range(size)]), True

  return batched


def _convolutions(jaxpr: Any) -> set[bool]:
  """For the convolutions in a jaxpr, the set of `_is_canonical` values."""
  kinds = set()
  for equation in jaxpr.eqns:
    if equation.primitive.name == "conv_general_dilated":
      kinds.add(_is_canonical(equation.params))
    for inner in inner_jaxprs(equation.params.values()):
      kinds |= _convolutions(inner)
  return kinds


def inner_jaxprs(values: Iterable[Any]) -> Iterator[jax_core.Jaxpr]:
  """The jaxprs among an equation's parameters, including those in lists."""
  for value in values:
    if isinstance(value, jax_core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, jax_core.Jaxpr):
      yield value
    elif isinstance(value, (list, tuple)):
      yield from inner_jaxprs(value)


def _is_canonical(params: Any) -> bool:
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
