"""Other solvers of min over x of max over k of losses(x)[k], with one interface.

pip install -e '.[peers]'

Every solver starts at `Problem.start` and returns a `Run`.  scipy's SLSQP and
trust-constr and NLopt's solvers minimise t subject to t >= losses.  PyGRANSO minimises
the maximum directly.  The others descend along gradients of the maximum, of its
log-sum-exp with an annealed temperature, or of weighted losses (group DRO).
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import nlopt
import numpy as np
import optax
import scipy.optimize
import torch

# PyGRANSO 1.2.0 imports a name that numpy 2 has removed.
np.core.numeric.Inf = np.inf  # type: ignore[attr-defined]
from pygranso.pygranso import pygranso  # noqa: E402
from pygranso.pygransoStruct import pygransoStruct  # noqa: E402

RATES = (1e-3, 1e-2, 1e-1)  # Rates of Adam.  Only the best one and its time count.


class Problem(NamedTuple):
  """A problem, and the limits for a solver.

  Attributes:
    start: `[n]`, float64.
    losses_fn: `[n]` -> losses `[K]`.
    evaluations: greatest number of evaluations of the losses.
    seconds: greatest time that a solver may take.
  """

  start: np.ndarray
  losses_fn: Callable[[jax.Array], jax.Array]
  evaluations: int
  seconds: float


class Run(NamedTuple):
  """The run of a solver.

  Attributes:
    values: the least value so far of the greatest loss, after each evaluation.
    seconds: total time without compilation.
    iterations: number of iterations, as the solver counts them; -1 if it does not.
  """

  values: np.ndarray
  seconds: float
  iterations: int


class _Stop(BaseException):
  """The evaluations or the time are used up.

  This is not an Exception, because PyGRANSO would catch one.
  """


class _Recorder:
  """The losses and their gradients on the host; counts points as evaluations."""

  def __init__(self, problem: Problem):
    self.problem = problem
    losses_fn = problem.losses_fn

    def smooth(x: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
      losses = losses_fn(x)
      value = temperature * jax.nn.logsumexp(losses / temperature)
      return value, losses

    self._losses = jax.jit(losses_fn)
    self._gradients = jax.jit(jax.jacrev(losses_fn))
    self._greatest = jax.jit(jax.grad(lambda x: jnp.max(losses_fn(x))))
    self._smooth = jax.jit(jax.value_and_grad(smooth, has_aux=True))
    self.num_losses = len(self._losses(problem.start))

  def compile(self, *names: str) -> None:
    """Compile the functions that will be called, so that this time does not count."""
    for name in names:
      arguments = (1.0,) if name == "_smooth" else ()
      jax.block_until_ready(getattr(self, name)(self.problem.start, *arguments))

  def begin(self) -> None:
    self._point, self._at = None, None
    self.values: list[float] = []
    self._began = time.perf_counter()

  def run(self, iterations: int) -> Run:
    seconds = time.perf_counter() - self._began
    return Run(np.minimum.accumulate(self.values), seconds, iterations)

  def _count(self, x: np.ndarray, losses: np.ndarray) -> None:
    self._point, self._at = np.array(x), losses
    worst = losses.max()
    self.values.append(worst if np.isfinite(worst) else np.inf)
    used = time.perf_counter() - self._began
    over = len(self.values) >= self.problem.evaluations
    if over or used > self.problem.seconds:
      raise _Stop

  def losses(self, x: np.ndarray) -> np.ndarray:
    if self._point is None or not np.array_equal(x, self._point):
      self._count(x, np.asarray(self._losses(x)))
    return self._at

  def gradients(self, x: np.ndarray) -> np.ndarray:
    return np.asarray(self._gradients(x))

  def greatest(self, x: np.ndarray) -> tuple[float, np.ndarray]:
    return self.losses(x).max(), np.asarray(self._greatest(x))

  def smooth(self, x: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    (value, losses), gradient = self._smooth(x, temperature)
    self._count(x, np.asarray(losses))
    return float(value), np.asarray(gradient)


def _scipy(problem: Problem, method: str, **options) -> Run:
  """Minimise t subject to t >= losses, over z = (x, t)."""
  recorder = _Recorder(problem)
  recorder.compile("_losses", "_gradients")
  recorder.begin()
  size, steps = len(problem.start), []

  def slack_gradient(z):
    gradients = recorder.gradients(z[:-1])
    return np.hstack([-gradients, np.ones((len(gradients), 1))])

  def slack(z):
    return z[-1] - recorder.losses(z[:-1])

  if method == "SLSQP":
    constraints = {"type": "ineq", "fun": slack, "jac": slack_gradient}
  else:
    constraints = scipy.optimize.NonlinearConstraint(
      slack, 0, np.inf, slack_gradient, scipy.optimize.BFGS()
    )
    options["hess"] = lambda z: np.zeros((size + 1, size + 1))
  try:
    start = np.append(problem.start, recorder.losses(problem.start).max())
    scipy.optimize.minimize(
      lambda z: z[-1],
      start,
      jac=lambda z: np.eye(1, size + 1, size)[0],
      method=method,
      constraints=constraints,
      callback=lambda *_: steps.append(None),
      options={"maxiter": problem.evaluations} | options.pop("options"),
      **options,
    )
  except (_Stop, ValueError, np.linalg.LinAlgError):  # Some of these come from NaN.
    pass
  return recorder.run(len(steps))


def slsqp(problem: Problem) -> Run:
  """scipy: Kraft (1988), sequential quadratic programming with a dense Hessian."""
  return _scipy(problem, "SLSQP", options={"ftol": 1e-15})


def trust_constr(problem: Problem) -> Run:
  """scipy: an interior point method in a trust region (Byrd, Hribar, Nocedal, 1999)."""
  return _scipy(problem, "trust-constr", options={"gtol": 1e-12, "xtol": 1e-15})


def _nlopt(problem: Problem, algorithm: int) -> Run:
  recorder = _Recorder(problem)
  recorder.compile("_losses", "_gradients")
  recorder.begin()
  size = len(problem.start)
  solver = nlopt.opt(algorithm, size + 1)

  def objective(z, gradient):
    if gradient.size:
      gradient[:] = np.eye(1, size + 1, size)[0]
    return float(z[-1])

  def excess(result, z, gradient):
    result[:] = recorder.losses(z[:-1]) - z[-1]
    if gradient.size:
      gradient[:, :-1], gradient[:, -1] = recorder.gradients(z[:-1]), -1

  solver.set_min_objective(objective)
  solver.add_inequality_mconstraint(excess, np.zeros(recorder.num_losses))
  solver.set_xtol_rel(1e-15)
  solver.set_maxtime(problem.seconds)
  try:
    start = recorder.losses(problem.start).max()
    solver.optimize(np.append(problem.start, start))
  except (_Stop, nlopt.RoundoffLimited, RuntimeError, ValueError):
    pass
  return recorder.run(-1)


def granso(problem: Problem) -> Run:
  """PyGRANSO: BFGS on the maximum itself (Curtis, Mitchell and Overton, 2017)."""
  recorder = _Recorder(problem)
  recorder.compile("_losses", "_greatest")
  size = len(problem.start)
  options = pygransoStruct()
  options.x0 = torch.from_numpy(problem.start.reshape(-1, 1).astype(np.float64))
  options.torch_device = torch.device("cpu")
  options.globalAD, options.print_level = False, 0
  options.quadprog_info_msg = False
  options.QPsolver = "osqp"
  options.maxit, options.opt_tol = problem.evaluations, 1e-12
  options.limited_mem_size = 30 if size > 1000 else 0

  def both(variables):
    value, gradient = recorder.greatest(variables.x.numpy().ravel())
    column = torch.from_numpy(np.array(gradient, np.float64).reshape(-1, 1))
    return [float(value), column, None, None, None, None]

  recorder.begin()
  try:
    solution = pygranso({"x": [size, 1]}, both, options)
    steps = int(solution.iters)
  except _Stop:
    steps = -1
  return recorder.run(steps)


def smoothed_lbfgs(problem: Problem) -> Run:
  """L-BFGS on t log sum exp(losses / t), with t decreasing from the losses' spread."""
  recorder = _Recorder(problem)
  recorder.compile("_losses", "_smooth")
  recorder.begin()
  x, steps = problem.start, 0
  try:
    losses = recorder.losses(x)
    spread = max(float(np.ptp(losses)), 1e-3 * abs(float(losses.max())))
    for power in range(0, 9):
      found = scipy.optimize.minimize(
        functools.partial(recorder.smooth, temperature=spread * 10.0**-power),
        x,
        jac=True,
        method="L-BFGS-B",
        options={
          "maxiter": problem.evaluations,
          "maxcor": 30,
          "ftol": 1e-15,
          "gtol": 1e-12,
        },
      )
      x, steps = found.x, steps + found.nit
  except _Stop:
    pass
  return recorder.run(steps)


def _by_gradients(problem: Problem, direction: Callable, rates=RATES) -> Run:
  """Run a compiled loop with several rates; return the run that ends lowest."""
  runs = []
  start = jnp.asarray(problem.start)
  losses = problem.losses_fn(start)
  spread = jnp.maximum(jnp.ptp(losses), 1e-3 * jnp.abs(jnp.max(losses)))
  count = problem.evaluations
  transform, weigh = direction(count, spread)

  @jax.jit
  def run(rate):
    def advance(carry, index):
      x, state, memory = carry
      weights_of, memory_of = weigh(index, memory)
      losses, pullback = jax.vjp(problem.losses_fn, x)
      (gradient,) = pullback(weights_of(losses))
      updates, state = transform.update(gradient, state, x)
      return (x - rate * updates, state, memory_of(losses)), jnp.max(losses)

    carry = (start, transform.init(start), jnp.zeros_like(losses))
    return jax.lax.scan(advance, carry, jnp.arange(count))[1]

  compiled = run.lower(1.0).compile()
  for rate in rates:
    began = time.perf_counter()
    values = np.asarray(compiled(jnp.asarray(rate, start.dtype)))
    seconds = time.perf_counter() - began
    values = np.where(np.isfinite(values), values, np.inf)
    runs.append(Run(np.minimum.accumulate(values), seconds, count))
  return min(runs, key=lambda run: run.values[-1])


def _greatest(losses):
  return jax.nn.one_hot(jnp.argmax(losses), len(losses), dtype=losses.dtype)


def _adam(count: int) -> optax.GradientTransformation:
  schedule = optax.cosine_decay_schedule(1.0, count)
  return optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(schedule))


def subgradient(problem: Problem) -> Run:
  """Steps of length rate / sqrt(step) along the gradient of a greatest loss."""

  def direction(count, spread):
    del count, spread
    step = optax.chain(
      optax.normalize_by_update_norm(),
      optax.scale_by_schedule(lambda index: 1 / jnp.sqrt(index + 1.0)),
    )
    return step, lambda index, memory: (_greatest, lambda losses: memory)

  return _by_gradients(problem, direction, rates=(1e-2, 1e-1, 1.0))


def adam(problem: Problem) -> Run:
  """Adam with a cosine schedule, along the gradient of a greatest loss."""

  def direction(count, spread):
    del spread
    return _adam(count), lambda index, memory: (_greatest, lambda losses: memory)

  return _by_gradients(problem, direction)


def smoothed_adam(problem: Problem) -> Run:
  """Adam with a cosine schedule on log-sum-exp; the temperature falls by 1e6."""

  def direction(count, spread):
    def weigh(index, memory):
      temperature = spread * 10.0 ** (-6 * index / count)
      return lambda losses: jax.nn.softmax(losses / temperature), lambda _: memory

    return _adam(count), weigh

  return _by_gradients(problem, direction)


def group_dro(problem: Problem) -> Run:
  """Adam with weights that grow by e^(0.1 loss / spread) (Sagawa et al., 2020)."""

  def direction(count, spread):
    def weigh(index, memory):
      del index

      def grown(losses):
        return memory + 0.1 * losses / spread

      return lambda losses: jax.nn.softmax(grown(losses)), grown

    return _adam(count), weigh

  return _by_gradients(problem, direction)


SOLVERS: dict[str, Callable[[Problem], Run]] = {
  "SLSQP (scipy)": slsqp,
  "trust-constr (scipy)": trust_constr,
  "SLSQP (NLopt)": functools.partial(_nlopt, algorithm=nlopt.LD_SLSQP),
  "MMA (NLopt)": functools.partial(_nlopt, algorithm=nlopt.LD_MMA),
  "CCSAQ (NLopt)": functools.partial(_nlopt, algorithm=nlopt.LD_CCSAQ),
  "PyGRANSO": granso,
  "L-BFGS on log-sum-exp": smoothed_lbfgs,
  "Adam on log-sum-exp": smoothed_adam,
  "Adam on the maximum": adam,
  "subgradient": subgradient,
  "group DRO, Adam": group_dro,
}
# These solvers store n^2 numbers.
DENSE = ("SLSQP (scipy)", "trust-constr (scipy)", "SLSQP (NLopt)")
