"""The sources of candidates by name, for `config.sources`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

import ddi_jax
from ddi_jax import candidates
from ddi_jax.attacks import LogitsFn
from ddi_jax.candidates import Source
from ddi_jax.threat_models import ThreatModel
from ddi_jax.training.settings import pieces
from ddi_jax.training.settings.methods import find_method, num_attacks
from ddi_jax.training.settings.threats import NORMS, THREAT_MODELS, step_size

WARM = "warm"
OWN_SETTINGS = "source_settings"


class SourceContext(NamedTuple):
  """What is needed in addition to the config to make a source for a training step.

  Attributes:
    number: the number of candidates K from this source.
    epsilon_fraction: factor of radii and step sizes, in (0, 1].
    perturbations: for the source warm, the stored perturbations of the batch's images,
      `[K, B, H, W, C]`; otherwise None.
  """

  number: int
  epsilon_fraction: jax.Array | float
  perturbations: jax.Array | None = None


CreateFn = Callable[[ml_collections.ConfigDict, SourceContext], Source]


class SourceKind(NamedTuple):
  """A source that a config can name.

  Attributes:
    create: (config, context) -> source.
    fields: dotted names of the settings that the source uses.
    same_attack: whether its candidates come from the same attack and differ only in
      their random starts.
  """

  create: CreateFn
  fields: tuple[str, ...]
  same_attack: bool = True


def attack_threat_model(
  config: ml_collections.ConfigDict, epsilon_fraction: Any
) -> ThreatModel:
  """The threat model of `config.attack`, with its radius times a fraction."""
  epsilon = epsilon_fraction * config.attack.epsilon
  return pieces.call(THREAT_MODELS[config.attack.norm], {"epsilon": epsilon}, "attack")


def pgd_settings(
  config: ml_collections.ConfigDict, epsilon_fraction: Any
) -> dict[str, Any]:
  """The arguments of `ddi_jax.pgd` that all sources share."""
  attack = config.attack
  return {
    "steps": attack.steps,
    "step_size": epsilon_fraction * step_size(attack, attack.epsilon),
    "iterate": attack.iterate,
    "stop_below": attack.stop_below,
  }


def _uniform(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
  return candidates.restarts(
    _attack(config, context), context.number, at_a_time=config.restarts_at_a_time
  )


def _targeted(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
  return candidates.targeted(
    _attack(config, context), context.number, at_a_time=config.restarts_at_a_time
  )


def _attack(
  config: ml_collections.ConfigDict, context: SourceContext
) -> ddi_jax.Attack:
  fraction = context.epsilon_fraction
  settings = pgd_settings(config, fraction)
  return ddi_jax.pgd(attack_threat_model(config, fraction), **settings)


def _warm(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
  fraction = context.epsilon_fraction
  settings = pgd_settings(config, fraction)
  assert context.perturbations is not None
  if config.warm.steps is not None:
    settings["steps"] = config.warm.steps
  return candidates.warm_restarts(
    attack_threat_model(config, fraction),
    context.perturbations,
    at_a_time=config.restarts_at_a_time,
    **settings,
  )


def _r_fgsm(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
  epsilon = context.epsilon_fraction * config.attack.epsilon
  return candidates.r_fgsm(epsilon, context.number)


def _spatial(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
  return pieces.call(candidates.spatial, config.spatial, "spatial", context.number)


def _threat(
  config: ml_collections.ConfigDict, norm: str, context: SourceContext
) -> tuple[ThreatModel, jax.Array]:
  """The threat model with radius config.radii.NORM, and its step size."""
  epsilon = context.epsilon_fraction * config.radii[norm]
  return THREAT_MODELS[norm](epsilon), 2.5 * epsilon / config.attack.steps


def _in_norm(norm: str) -> CreateFn:
  def create(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
    threat_model, length = _threat(config, norm, context)
    settings = pgd_settings(config, context.epsilon_fraction)
    attack = ddi_jax.pgd(threat_model, **(settings | {"step_size": length}))
    return candidates.restarts(
      attack, context.number, at_a_time=config.restarts_at_a_time
    )

  return create


def _msd(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
  threats = [_threat(config, norm, context) for norm in THREAT_MODELS]
  threat_models, step_sizes = zip(*threats, strict=True)
  return candidates.msd(threat_models, steps=config.attack.steps, step_sizes=step_sizes)


_BALL = ("attack.norm", "attack.epsilon")
_ENDS = ("attack.iterate", "attack.stop_below")
_PGD = (*_BALL, "attack.steps", "attack.step_size", *_ENDS)
SOURCES: dict[str, SourceKind] = {
  "uniform": SourceKind(_uniform, _PGD),
  "targeted": SourceKind(_targeted, _PGD, same_attack=False),
  # PGD that starts where it ended in the last epoch, see training/step/warm_memory.py.
  WARM: SourceKind(_warm, (*_PGD, "warm.steps", "warm.reset_epochs")),
  "r_fgsm": SourceKind(_r_fgsm, _BALL),
  "spatial": SourceKind(
    _spatial,
    ("spatial.max_degrees", "spatial.max_shift", "spatial.tries"),
    same_attack=False,
  ),
  # PGD in the norm of this name, with the radius config.radii.NAME.
  "linf": SourceKind(_in_norm("linf"), ("radii.linf", "attack.steps", *_ENDS)),
  "l2": SourceKind(_in_norm("l2"), ("radii.l2", "attack.steps", *_ENDS)),
  "l1": SourceKind(_in_norm("l1"), ("radii.l1", "attack.steps", *_ENDS)),
  # One attack in the union of these three norms; it always makes one candidate.
  "msd": SourceKind(_msd, (*(f"radii.{norm}" for norm in NORMS), "attack.steps")),
}


def parse(entry: str) -> tuple[str, int]:
  """Parse "NAME" or "NAME:K" into (name, K).

  NAME may be a user's own source, "module:name".

  Raises:
    ValueError: if there is no source of this name, or K is not an integer >= 1.
  """
  parts = entry.split(":")
  count = "1"
  if len(parts) > (1 if parts[0] in SOURCES else 2):
    count = parts.pop()
  name = ":".join(parts)
  known = name in SOURCES or (len(parts) == 2 and all(parts))
  if not known or not (count.isdecimal() and int(count)):
    raise ValueError(f"{entry!r} is not NAME or NAME:K.")
  return name, int(count)


def entries(config: ml_collections.ConfigDict) -> list[tuple[str, int]]:
  """The (name, K) of each source in `config.sources`.

  Raises:
    ConfigError: if an entry is not well formed.
  """
  given = config.sources
  try:
    if not isinstance(given, str):
      return [parse(entry) for entry in given]
  except (AttributeError, TypeError, ValueError):  # A wrong type, or not a source.
    pass
  raise pieces.ConfigError(
    "config.sources must be a tuple of NAME or NAME:K with K >= 1, NAME one of "
    f"{', '.join(SOURCES)} or your own module:name, got {given!r}."
  )


def find_source(name: str) -> SourceKind:
  """Find the source of this name.

  A user's own factory is called as `factory(count, **settings)`.

  Raises:
    ConfigError: if there is no source of this name.
  """
  piece = pieces.find("sources", name, SOURCES)
  if isinstance(piece, SourceKind):
    return piece

  def create(config: ml_collections.ConfigDict, context: SourceContext) -> Source:
    settings = config[OWN_SETTINGS]
    return pieces.call(piece, settings, OWN_SETTINGS, context.number)

  return SourceKind(create, (OWN_SETTINGS,), same_attack=False)


def used_fields(config: ml_collections.ConfigDict) -> set[str]:
  """The settings that the sources of `config.sources` use."""
  return {field for name, _ in entries(config) for field in find_source(name).fields}


def num_candidates(config: ml_collections.ConfigDict) -> int:
  """The number of candidates in a step of the run."""
  if config.sources and find_method(config).attacked:
    return sum(count for _, count in entries(config))
  return num_attacks(config)


def are_unequal(config: ml_collections.ConfigDict) -> bool:
  """Whether the candidates are expected to differ in how well they maximise."""
  names = {name for name, _ in entries(config)}
  return len(names) > 1 or not all(find_source(name).same_attack for name in names)


def create_source(
  config: ml_collections.ConfigDict,
  epsilon_fraction: jax.Array,
  perturbations: jax.Array | None,
) -> Source:
  """The sources of `config.sources`, combined; see `SourceContext`."""
  return candidates.combine(
    *(
      _checked(
        find_source(name).create(
          config, SourceContext(count, epsilon_fraction, perturbations)
        ),
        name,
        count,
      )
      for name, count in entries(config)
    )
  )


def positions(config: ml_collections.ConfigDict, wanted: str) -> slice:
  """The slice of a step's candidates that come from the source `wanted`."""
  start = 0
  for name, count in entries(config):
    if name == wanted:
      return slice(start, start + count)
    start += count
  raise ValueError(f"{wanted!r} is not in config.sources, {config.sources}.")


def _checked(source: Source, name: str, count: int) -> Source:
  """The source, with a check that it makes as many candidates as the config says."""

  def checked(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    points = source(key, logits_fn, inputs, labels)
    if jnp.ndim(points) < 1 or len(points) != count:
      raise pieces.ConfigError(
        f"config.sources: {name!r} must make {count} candidate(s) [K, B, ...], got "
        f"shape {jnp.shape(points)}."
      )
    return points

  return checked
