"""The sources of candidates by name, for `config.sources`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

import ddi_jax
from ddi_jax import sources
from ddi_jax.sources import Source
from ddi_jax.threat_models import ThreatModel
from ddi_jax.training.methods import METHODS
from ddi_jax.training.methods import num_candidates as num_restarts
from ddi_jax.training.threats import THREAT_MODELS


class Setting(NamedTuple):
  """What a source is made from.

  Attributes:
    config: the run's.
    number: K.
    warmth: what radii and steps are multiplied by.
    threat_model: of `config.attack`, its radius warmed up.
    pgd: the arguments of `ddi_jax.pgd` but the threat model.
    loops: the form and size of a loop over restarts.
  """

  config: ml_collections.ConfigDict
  number: int
  warmth: jax.Array
  threat_model: ThreatModel
  pgd: dict[str, Any]
  loops: dict[str, Any]


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


def num_candidates(config: ml_collections.ConfigDict) -> int:
  """How many candidates a step of the run makes."""
  if config.sources and METHODS[config.method].attacked:
    return sum(parse(entry)[1] for entry in config.sources)
  return num_restarts(config.method, config.num_restarts)


def create_source(
  config: ml_collections.ConfigDict,
  warmth: jax.Array,
  threat_model: ThreatModel,
  pgd_settings: dict[str, Any],
) -> Source:
  """The sources of `config.sources`, combined; see `Setting` for the arguments."""
  loops = {"loop": config.loops.restarts, "at_a_time": config.restarts_at_a_time}
  made = []
  for entry in config.sources:
    name, count = parse(entry)
    setting = Setting(config, count, warmth, threat_model, pgd_settings, loops)
    made.append(SOURCES[name](setting))
  return sources.combine(*made)
