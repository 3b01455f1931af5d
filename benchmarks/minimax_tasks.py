"""Minimax tasks from practice: classification, digital filters and control."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

import ddi_jax

LossesFn = Callable[[jax.Array], jax.Array]  # parameters [n] -> losses [K]


class Task(NamedTuple):
  """Minimise the greatest of the losses.

  Attributes:
    name: the task's name.
    start: `[n]`, float64.
    losses_fn: parameters `[n]` -> losses `[K]`.
  """

  name: str
  start: np.ndarray
  losses_fn: LossesFn


def noisy_digits(noise: float) -> tuple[np.ndarray, np.ndarray]:
  """Noisy images `[1797, 64]` and labels `[1797]` of scikit-learn's digits.

  Args:
    noise: standard deviation of the Gaussian noise, for pixels in [0, 1].
  """
  digits = sklearn.datasets.load_digits()
  rng = np.random.default_rng(0)
  images = digits.data / 16 + noise * rng.normal(size=digits.data.shape)
  return images, digits.target


def class_losses(
  params: jax.Array, widths: Sequence[int], images: jax.Array, labels: jax.Array
) -> jax.Array:
  """The mean cross-entropy of each of ten classes, `[10]`, for a tanh network.

  Args:
    params: `[n]`, all matrices and vectors, layer by layer.
    widths: widths of the hidden layers; without any, the network is softmax regression.
    images: `[B, 64]`.
    labels: `[B]`; all ten classes must occur.
  """
  outputs = images.astype(params.dtype)
  begin = 0
  for index, width in enumerate([*widths, 10]):
    outputs = jnp.tanh(outputs) if index else outputs
    end = begin + outputs.shape[1] * width
    matrix = params[begin:end].reshape(-1, width)
    outputs = outputs @ matrix + params[end : end + width]
    begin = end + width
  members = jax.nn.one_hot(labels, 10, dtype=params.dtype)
  likelihoods = jnp.sum(jax.nn.log_softmax(outputs) * members, axis=1)
  return -(members.T @ likelihoods) / jnp.sum(members, axis=0)


def worst_class(widths: Sequence[int], *, decay: float) -> Task:
  """The task with ten classes of noisy digits, all 1,797 images at once.

  Args:
    widths: widths of the hidden layers.
    decay: factor of half the parameters' squared norm, which is added to every loss.
  """
  images, labels = noisy_digits(noise=0.6)
  rng = np.random.default_rng(0)
  start, rows = [], images.shape[1]
  for width in (*widths, 10):
    matrix = rng.normal(size=rows * width) / np.sqrt(rows)
    start += [matrix if widths else np.zeros(rows * width), np.zeros(width)]
    rows = width

  def losses_fn(params: jax.Array) -> jax.Array:
    losses = class_losses(params, widths, jnp.asarray(images), labels)
    return losses + decay / 2 * jnp.sum(params**2)

  size = sum(len(part) for part in start)
  return Task(f"worst class, n = {size:,}", np.concatenate(start), losses_fn)


def linear_phase_filter() -> Task:
  """A low-pass filter with 31 symmetric taps: equiripple, as in scipy.signal.remez.

  The losses are the error of the amplitude and its negative.  The pass band reaches up
  to 0.2 of the sampling rate.  The stop band begins at 0.25 and has weight 10.
  """
  frequencies = np.concatenate([np.linspace(0, 0.2, 120), np.linspace(0.25, 0.5, 150)])
  passes = frequencies <= 0.2
  cosines = np.cos(2 * np.pi * frequencies[:, None] * np.arange(16))

  def losses_fn(taps: jax.Array) -> jax.Array:
    weights = jnp.where(passes, 1.0, 10.0)
    errors = weights * (jnp.asarray(cosines) @ taps - jnp.asarray(passes * 1.0))
    return jnp.concatenate([errors, -errors])

  return Task("FIR filter, linear phase", np.zeros(16), losses_fn)


def low_delay_filter() -> Task:
  """A low-pass filter with 32 taps and a delay of 10 samples, hence not symmetric.

  The losses are squared distances between the frequency response and the desired one.
  """
  frequencies = np.concatenate([np.linspace(0, 0.2, 120), np.linspace(0.26, 0.5, 150)])
  passes = frequencies <= 0.2
  angles = 2 * np.pi * frequencies[:, None] * (np.arange(32) - 10)

  def losses_fn(taps: jax.Array) -> jax.Array:
    real = jnp.cos(jnp.asarray(angles)) @ taps - jnp.asarray(passes * 1.0)
    imaginary = jnp.sin(jnp.asarray(angles)) @ taps
    return jnp.where(passes, 1.0, 100.0) * (real**2 + imaginary**2)

  return Task("FIR filter, delay of 10", np.zeros(32), losses_fn)


LENGTHS, MASSES = np.meshgrid(np.linspace(1.0, 1.6, 5), np.linspace(1.0, 2.0, 5))
TIME_STEP = 0.025  # In seconds.
LAG = 0.1  # Lag of the motor in seconds.


def simulate_pendulum(
  policy: jax.Array, length: jax.Array, mass: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Simulate three seconds of a pendulum that starts 1 rad from upright.

  Args:
    policy: `[41]`, the parameters of a network with 8 hidden units.  It maps sine and
      cosine of the angle and the speed to the torque, at most 40 Nm.
    length: length in metres.
    mass: mass in kilograms.

  Returns:
    Angles (0 is upright), speeds and torques, `[120]` each, one per `TIME_STEP`.
  """
  inner, bias = policy[:24].reshape(3, 8), policy[24:32]
  outer, offset = policy[32:40], policy[40]

  def wanted(state: jax.Array) -> jax.Array:
    seen = jnp.stack([jnp.sin(state[0]), 1 - jnp.cos(state[0]), state[1]])
    return 40 * jnp.tanh(jnp.tanh(seen @ inner + bias) @ outer + offset)

  def speed_of(state: jax.Array) -> jax.Array:
    angle, speed, torque = state
    gravity = mass * 9.81 * length * jnp.sin(angle)
    acceleration = (gravity + torque - 0.1 * speed) / (mass * length**2)
    return jnp.stack([speed, acceleration, (wanted(state) - torque) / LAG])

  def advance(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    first = speed_of(state)
    second = speed_of(state + TIME_STEP / 2 * first)
    third = speed_of(state + TIME_STEP / 2 * second)
    fourth = speed_of(state + TIME_STEP * third)
    new = state + TIME_STEP / 6 * (first + 2 * second + 2 * third + fourth)
    return new, new

  start = jnp.array([1.0, 0.0, 0.0], policy.dtype)
  _, path = jax.lax.scan(advance, start, None, length=120)
  return path[:, 0], path[:, 1], path[:, 2]


def pendulum_cost(policy: jax.Array, length: jax.Array, mass: jax.Array) -> jax.Array:
  """The cost of a policy for one pendulum.

  It is the mean of angle^2 + 0.1 speed^2 + 0.3 (torque / weight)^2, plus
  0.001 |policy|^2.  The weight is mass * 9.81 * length.
  """
  length, mass = length.astype(policy.dtype), mass.astype(policy.dtype)
  angles, speeds, torques = simulate_pendulum(policy, length, mass)
  shares = torques / (mass * 9.81 * length)
  means = jnp.mean(angles**2 + 0.1 * speeds**2 + 0.3 * shares**2)
  return means + 0.001 * jnp.sum(policy**2)


def pendulums() -> Task:
  """The task to find one policy for 25 pendulums with different lengths and masses.

  The losses are the pendulums' costs, each divided by the cost of a policy that is
  optimised for this pendulum alone.
  """
  start = 0.3 * np.random.default_rng(0).normal(size=41)
  start[32:] = 0  # There is no torque at the start, so all pendulums fall.
  plants = (jnp.asarray(LENGTHS.ravel()), jnp.asarray(MASSES.ravel()))

  @jax.jit
  @jax.vmap
  def least_cost(*plant: jax.Array) -> jax.Array:
    return ddi_jax.minimize_max(
      lambda policy: pendulum_cost(policy, *plant)[None], jnp.asarray(start)
    ).value

  least = np.asarray(least_cost(*plants))

  def losses_fn(policy: jax.Array) -> jax.Array:
    return jax.vmap(functools.partial(pendulum_cost, policy))(*plants) / least

  return Task("25 pendulums", start, losses_fn)


def tasks() -> list[Task]:
  """All tasks."""
  return [
    linear_phase_filter(),
    low_delay_filter(),
    pendulums(),
    worst_class((), decay=0),
    worst_class((64,), decay=1e-3),
    worst_class((320, 256), decay=1e-3),
  ]
