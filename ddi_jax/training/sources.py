"""The sources of candidates by name, for `config.sources`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_collections

import ddi_jax
from ddi_jax import sources
from ddi_jax.sources import Source
from ddi_jax.threat_models import ThreatModel
from ddi_jax.training.methods import METHODS, num_attacks
from ddi_jax.training.threats import THREAT_MODELS

WARM = "warm"


class Setting(NamedTuple):
  """What a source is made from.

  Attributes:
    config: the run's.
    number: K.
    warmth: what radii and steps are multiplied by.
    threat_model: of `config.attack`, its radius warmed up.
    pgd: the arguments of `ddi_jax.pgd` but the threat model.
    loops: the form and size of a loop over restarts.
    moves: of the batch, for the source warm: what its images remember,
      `[B, K, H, W, C]`; else ().
  """

  config: ml_collections.ConfigDict
  number: int
  warmth: jax.Array
  threat_model: ThreatModel
  pgd: dict[str, Any]
  loops: dict[str, Any]
  moves: chex.ArrayTree


def _uniform(setting):
  attack = ddi_jax.pgd(setting.threat_model, **setting.pgd)
  return sources.restarts(attack, setting.number, **setting.loops)


def _of_starts(setting):
  """Settings of a source that chooses PGD's starts."""
  pgd_settings = dict(setting.pgd)
  return setting.loops | {"pgd_loop": pgd_settings.pop("loop")} | pgd_settings


def _spread(start):
  def make(setting):
    return sources.spread_restarts(
      setting.threat_model, setting.number, start=start, **_of_starts(setting)
    )

  return make


def _targeted(setting):
  attack = ddi_jax.pgd(setting.threat_model, **setting.pgd)
  return sources.targeted(attack, setting.number, **setting.loops)


def _output_diversified(setting):
  return sources.output_diversified(
    setting.threat_model, setting.number, **_of_starts(setting)
  )


def _warm(setting):
  settings = _of_starts(setting)
  if setting.config.warm.steps is not None:
    settings["steps"] = setting.config.warm.steps
  moves = jnp.swapaxes(setting.moves, 0, 1)
  return sources.warm_restarts(setting.threat_model, moves, **settings)


def _trajectory(setting):
  return sources.trajectory(
    setting.threat_model,
    setting.number,
    **{name: setting.pgd[name] for name in ("steps", "step_size", "loop")},
  )


def _one_step(make):
  return lambda setting: make(setting.threat_model.epsilon, setting.number)


def _spatial(setting):
  settings = setting.config.spatial
  return sources.spatial(
    setting.number,
    max_degrees=settings.max_degrees,
    max_shift=settings.max_shift,
    tries=settings.tries,
  )


def _threat(setting, norm):
  """(Threat model of config.radii.NORM, step size)."""
  epsilon = setting.warmth * setting.config.radii[norm]
  return THREAT_MODELS[norm](epsilon), 2.5 * epsilon / setting.pgd["steps"]


def _in_norm(norm):
  def make(setting):
    threat_model, step_size = _threat(setting, norm)
    attack = ddi_jax.pgd(threat_model, **(setting.pgd | {"step_size": step_size}))
    return sources.restarts(attack, setting.number, **setting.loops)

  return make


def _msd(setting):
  threats = [_threat(setting, norm) for norm in THREAT_MODELS]
  threat_models, step_sizes = zip(*threats, strict=True)
  return sources.msd(
    threat_models,
    steps=setting.pgd["steps"],
    step_sizes=step_sizes,
    loop=setting.pgd["loop"],
  )


SOURCES: dict[str, Callable[[Setting], Source]] = {
  "uniform": _uniform,
  "corner": _spread("corner"),
  "orthogonal": _spread("orthogonal"),
  "targeted": _targeted,
  "output_diversified": _output_diversified,
  # PGD from where the last epoch's ended, see ddi_jax/training/warm.py.
  WARM: _warm,
  "trajectory": _trajectory,
  "r_fgsm": _one_step(sources.r_fgsm),
  "n_fgsm": _one_step(sources.n_fgsm),
  "spatial": _spatial,
  # PGD in a norm of its own, with the radius config.radii.NAME.
  "linf": _in_norm("linf"),
  "l2": _in_norm("l2"),
  "l1": _in_norm("l1"),
  # One attack in the union of these three; always one candidate.
  "msd": _msd,
}


def parse(entry: str) -> tuple[str, int]:
  """("NAME" or "NAME:K") -> (name, K).

  Raises:
    ValueError: if it names no source or K is no integer >= 1.
  """
  name, _, count = entry.partition(":")
  if name not in SOURCES or (":" in entry and not (count.isdigit() and int(count))):
    raise ValueError(f"{entry!r} is not NAME or NAME:K.")
  return name, int(count or 1)


# Which draw for the whole batch whatever part of it they attack.
_BLIND_TO_DEVICES = {
  "uniform",
  "targeted",
  "linf",
  "l2",
  "l1",
  "msd",
  WARM,
}

# Whose candidates are not the ends of attacks that are all alike.
_UNEQUAL = {"targeted", "trajectory", "spatial"}


def entries(config: ml_collections.ConfigDict) -> list[tuple[str, int]]:
  """(Name, K) of each of `config.sources`."""
  return [parse(entry) for entry in config.sources]


def places(config: ml_collections.ConfigDict, wanted: str) -> slice:
  """Where among a step's candidates those of a source are, which is there once."""
  start = 0
  for name, count in entries(config):
    if name == wanted:
      return slice(start, start + count)
    start += count
  raise ValueError(f"{wanted!r} is not in config.sources, {config.sources}.")


def num_candidates(config: ml_collections.ConfigDict) -> int:
  """How many candidates a step of the run makes."""
  if config.sources and METHODS[config.method].attacked:
    return sum(count for _, count in entries(config))
  return num_attacks(config.method, config.num_restarts)


def are_unequal(config: ml_collections.ConfigDict) -> bool:
  """Whether the candidates are expected to differ in how well they maximise."""
  names = {name for name, _ in entries(config)}
  return len(names) > 1 or bool(names & _UNEQUAL)


def create_source(
  config: ml_collections.ConfigDict,
  warmth: jax.Array,
  threat_model: ThreatModel,
  pgd_settings: dict[str, Any],
  moves: chex.ArrayTree,
) -> Source:
  """The sources of `config.sources`, combined; see `Setting` for the arguments.

  On a mesh, sources that place their own starts draw other random numbers on each
  device, so that what they find depends on the number of devices.
  """
  loops = {"loop": config.loops.restarts, "at_a_time": config.restarts_at_a_time}
  batch_axis = pgd_settings["batch_axis"]
  made = []
  for name, count in entries(config):
    setting = Setting(config, count, warmth, threat_model, pgd_settings, loops, moves)
    source = SOURCES[name](setting)
    if batch_axis is not None and name not in _BLIND_TO_DEVICES:
      source = _with_own_noise(source, batch_axis)
    made.append(source)
  return sources.combine(*made)


def _with_own_noise(source: Source, batch_axis: str) -> Source:
  def of_share(key, logits_fn, inputs, labels):
    key = jax.random.fold_in(key, jax.lax.axis_index(batch_axis))
    return source(key, logits_fn, inputs, labels)

  return of_share
