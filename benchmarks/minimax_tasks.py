"""Minimax tasks from practice: classes, digital filters, plants to control."""

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
    name: of the task.
    start: `[n]`, float64.
    losses_fn: parameters `[n]` -> losses `[K]`.
  """

  name: str
  start: np.ndarray
  losses_fn: LossesFn


def noisy_digits(noise: float) -> tuple[np.ndarray, np.ndarray]:
  """scikit-learn's digits with Gaussian noise: images `[1797, 64]`, labels `[1797]`.

  Args:
    noise: standard deviation, of pixels in [0, 1].
  """
  digits = sklearn.datasets.load_digits()
  rng = np.random.default_rng(0)
  images = digits.data / 16 + noise * rng.normal(size=digits.data.shape)
  return images, digits.target


def class_losses(
  params: jax.Array, widths: Sequence[int], images: jax.Array, labels: jax.Array
) -> jax.Array:
  """The mean cross-entropy of each of ten classes, `[10]`, of a network of tanh.

  Args:
    params: `[n]`, all matrices and vectors, layer by layer.
    widths: of the hidden layers; none is softmax regression.
    images: `[B, 64]`.
    labels: `[B]`, of all ten classes.
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
  """Ten classes of noisy digits, all 1,797 images at once.

  Args:
    widths: of the hidden layers.
    decay: times half the squared length of the parameters, added to every loss.
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
  """A low-pass filter of 31 symmetric taps: equiripple, as scipy.signal.remez has it.

  Losses: the error of the amplitude and its negative, pass band up to 0.2 of the
  sampling rate, stop band from 0.25 on, weighted by 10.
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
  """A low-pass filter of 32 taps with a delay of 10 samples, so not symmetric.

  Losses: the squared distance between the frequency response and the wanted one.
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
TIME_STEP = 0.025  # seconds
LAG = 0.1  # seconds, of the motor


def simulate_pendulum(
  policy: jax.Array, length: jax.Array, mass: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Three seconds of a pendulum that starts 1 rad from upright, under one policy.

  Args:
    policy: `[41]`, of a network with 8 hidden units: sine and cosine of the angle and
      the speed -> torque, at most 40 Nm.
    length: in metres.
    mass: in kilograms.

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
  """Of one plant: the mean of angle^2 + 0.1 speed^2 + 0.3 (torque / weight)^2.

  The weight is mass * 9.81 * length; 0.001 |policy|^2 comes on top.
  """
  length, mass = length.astype(policy.dtype), mass.astype(policy.dtype)
  angles, speeds, torques = simulate_pendulum(policy, length, mass)
  shares = torques / (mass * 9.81 * length)
  means = jnp.mean(angles**2 + 0.1 * speeds**2 + 0.3 * shares**2)
  return means + 0.001 * jnp.sum(policy**2)


def pendulums() -> Task:
  """One policy for 25 pendulums of unlike length and mass.

  Losses: the cost of each, divided by what a policy made for it alone would cost.
  """
  start = 0.3 * np.random.default_rng(0).normal(size=41)
  start[32:] = 0  # No torque: all fall.
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
  """All of them."""
  return [
    linear_phase_filter(),
    low_delay_filter(),
    pendulums(),
    worst_class((), decay=0),
    worst_class((64,), decay=1e-3),
    worst_class((320, 256), decay=1e-3),
  ]
