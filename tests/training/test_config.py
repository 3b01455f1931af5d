"""Settings: every impossible one is refused by name, before anything starts."""

from pathlib import Path
import runpy

import ml_collections
import pytest

from ddi_jax import data, training
from ddi_jax.training.config import check_against_data, check_config

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.py"))


def changed(field, value):
  config = training.default_config()
  with config.ignore_type():
    config.update_from_flattened_dict({field: value})
  return config


@pytest.mark.parametrize("variant", ["full", "debug"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_sound(path, variant):
  module = runpy.run_path(str(path))
  config = module["get_config"](variant)
  check_config(config)
  assert f"--config=configs/{path.name}" in module["__doc__"]
  with pytest.raises(AttributeError, match="epsilonn"):
    config.attack.epsilonn = 1.0
  with pytest.raises(training.ConfigError, match="full or debug, got 'fast'"):
    module["get_config"]("fast")


@pytest.mark.parametrize(
  ("field", "value", "allowed"),
  [
    ("seed", -1, r"an integer in \[0, 2\*\*31\)"),
    ("method", "trades", "one of standard, pgd, average, worst_restart, danskin"),
    ("num_restarts", 0, "an integer >= 1"),
    ("batch_size", 0, "an integer >= 1"),
    ("gradients_at_a_time", 0, "an integer >= 1 or None"),
    ("num_epochs", 0.0, "a finite number > 0"),
    ("danskin.bundle_step", 0.0, "a finite number > 0 or None"),
    ("danskin.loss_tolerance", -1.0, "a finite number >= 0 or None"),
    ("sources", ("pgd",), ".*NAME one of uniform, corner"),
    ("sources", ("uniform:0",), "a tuple of NAME or NAME:K with K >= 1"),
    (
      "sources",
      ("trajectory:3",),
      "such that K of trajectory:K divides config.attack.steps .7.",
    ),
    ("sources", ("msd:2",), "such that msd makes one candidate"),
    ("sources", "spatial", "a tuple of NAME"),
    ("sources", ("warm:2", "warm"), "with warm at most once"),
    ("sources", ("targeted:10",), r"such that K of targeted:K is less .*\(10\)"),
    ("warm.steps", 0, "an integer >= 1 or None"),
    ("warm.reset_epochs", 0, "an integer >= 1 or None"),
    ("evaluation.norms", ("l2", "l3"), "a tuple without repetition of linf, l2, l1"),
    ("evaluation.norms", ("l2", "l2"), "a tuple without repetition"),
    ("evaluation.norms", "l2", "a tuple without repetition"),
    ("radii.linf", -0.1, "a finite number > 0"),
    ("radii.l2", 0.0, "a finite number > 0"),
    ("radii.l1", float("inf"), "a finite number > 0"),
    ("spatial.max_degrees", 200.0, r"in \[0, 180\]"),
    ("spatial.max_shift", 2.0, r"in \[0, 1\]"),
    ("spatial.tries", 0, "an integer >= 1"),
    ("proximal.step", 0.0, "a finite number > 0 or None"),
    ("proximal.per", "class", "one of example, batch"),
    ("proximal.iterations", -1, "an integer >= 0"),
    ("proximal.tolerance", -0.1, "a finite number >= 0"),
    ("proximal.memory", 0, "an integer >= 1"),
    ("mesh.restart", 3, "a divisor of 4"),
    ("mesh.data", 3, r"a divisor of config.batch_size \(128\)"),
    ("mesh.fsdp", 1, "True or False"),
    ("danskin.method", "newton", "one of active_set, projected_gradient"),
    ("mgda.normalization", "l1", r"one of l2, loss, loss\+"),
    ("cagrad.radius", 1.0, r"a number in \[0, 1\)"),
    ("data.name", "imagenet", "one of digits, mnist, cifar10"),
    ("data.validation_size", 0, "an integer >= 1"),
    ("data.split_seed", -1, "an integer >= 0"),
    ("data.limit", 0, "an integer >= 1 or None"),
    ("data.resolution", 0, "an integer >= 1 or None"),
    ("data.streaming", "sometimes", "one of auto, always, never"),
    ("data.pad", -1, "an integer >= 0"),
    ("model.name", "vgg", "one of small, mlp, resnet18, preact_resnet18, "),
    ("model.activation", "tanh", "one of relu, celu, silu, gelu, softplus"),
    ("model.normalization", "layer", "one of none, group, batch"),
    ("model.width", 0, "an integer >= 1"),
    ("model.norm_groups", 0, "an integer >= 1"),
    ("model.hidden", 0, "an integer >= 1"),
    ("model.strides", (1, 2, 3), "two integers >= 1"),
    ("model.layers", (64, 0), "a tuple of integers >= 1"),
    ("model.layers", "64", "a tuple of integers >= 1"),
    ("model.depth", 18, r"6 n \+ 4, n >= 1"),
    ("model.depth", 4, r"6 n \+ 4, n >= 1"),
    ("model.widening", 0, "an integer >= 1"),
    ("attack.norm", "l3", "one of linf, l2, l1"),
    ("attack.epsilon", -0.1, "a finite number >= 0"),
    ("attack.epsilon", float("nan"), "a finite number >= 0"),
    ("attack.warmup_epochs", -1.0, "a finite number >= 0"),
    ("attack.steps", 0, "an integer >= 1"),
    ("attack.step_size", 0.0, "a finite number > 0 or None"),
    ("attack.iterate", "first", "one of last, best"),
    ("attack.stop_below", 1.0, r"in \[0, 1\), or None"),
    ("attack.dtype", "float16", "one of float32, bfloat16"),
    ("attack.batch_norm", "frozen", "one of train, eval"),
    ("gradient.batch_norm", "frozen", "one of train, eval"),
    ("optimizer.name", "lion", "one of sgd, adam"),
    ("optimizer.learning_rate", 0.0, "a finite number > 0"),
    ("optimizer.momentum", 1.0, r"in \[0, 1\)"),
    ("optimizer.weight_decay", -1.0, "a finite number >= 0"),
    ("optimizer.schedule", "linear", "one of constant, step, cosine"),
    ("optimizer.milestones", (0.7, 0.5), r"increasing fractions in \(0, 1\)"),
    ("optimizer.decay", 0.0, r"in \(0, 1\]"),
    ("evaluation.every_epochs", 0.0, "a finite number > 0"),
    ("evaluation.batch_size", 0, "an integer >= 1"),
    ("evaluation.steps", 0, "an integer >= 1"),
    ("evaluation.step_size", -1.0, "a finite number > 0 or None"),
    ("evaluation.restarts", 0, "an integer >= 1"),
    ("evaluation.validation_limit", 0, "an integer >= 1 or None"),
    ("evaluation.test_limit", 0, "an integer >= 1 or None"),
    ("loops.gradients", "merge", "one of auto, unroll, loop, vmap"),
    ("loops.restarts", "scan", "one of auto, unroll, loop, vmap, merge"),
    ("restarts_at_a_time", 0, "an integer >= 1 or None"),
    ("loops.steps", "vmap", "one of auto, unroll, loop"),
  ],
)
def test_impossible_values_are_named(field, value, allowed):
  with pytest.raises(training.ConfigError, match=rf"config\.{field} must be {allowed}"):
    check_config(changed(field, value))


def test_every_setting_is_checked():
  """A setting that no check knows would be silently accepted with any value."""
  unchecked = {"data.data_dir", "data.flip", "unit_norm", "attack.random_start"}
  cases = next(
    mark.args[1]
    for mark in test_impossible_values_are_named.pytestmark
    if mark.name == "parametrize"
  )
  fields = set(flatten(training.default_config()))
  assert fields == {case[0] for case in cases} | unchecked


def flatten(config, prefix=""):
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from flatten(value, f"{prefix}{name}.")
    else:
      yield prefix + name


def test_groups_must_divide_the_width():
  config = changed("model.normalization", "group")
  config.model.norm_groups = 5
  with pytest.raises(
    training.ConfigError, match=r"divisor of config.model.width \(16\)"
  ):
    check_config(config)


def test_the_mlp_has_no_normalization():
  config = changed("model.normalization", "group")
  config.model.name = "mlp"
  with pytest.raises(training.ConfigError, match=r"'none' with config\.model"):
    check_config(config)


def test_settings_that_contradict_each_other():
  config = changed("loops.restarts", "merge")
  check_config(config)
  config.model.normalization = "batch"
  with pytest.raises(
    training.ConfigError, match=r"config\.loops\.restarts must be other"
  ):
    check_config(config)
  config.attack.batch_norm = "eval"
  check_config(config)
  config = changed("restarts_at_a_time", 2)
  check_config(config)
  config.loops.gradients = "unroll"
  with pytest.raises(
    training.ConfigError, match=r"config\.restarts_at_a_time must be None with"
  ):
    check_config(config)
  config = changed("attack.random_start", False)
  with pytest.raises(training.ConfigError, match=r"config\.attack\.random_start must"):
    check_config(config)
  config.method = "pgd"
  check_config(config)


def test_batch_larger_than_the_data():
  config = changed("batch_size", 2000)
  splits = data.load("digits", validation_size=200)
  with pytest.raises(
    training.ConfigError, match=r"batch_size must be in \[1, 1237\].*digits, got 2000"
  ):
    check_against_data(config, splits.train)


def test_more_orthogonal_starts_than_pixels():
  config = changed("sources", ("orthogonal:65",))
  splits = data.load("digits", validation_size=200)
  with pytest.raises(
    training.ConfigError, match=r"at most the number of an image's coordinates \(64\)"
  ):
    check_against_data(config, splits.train)


def test_the_two_forms_of_danskin_exclude_each_other():
  config = changed("danskin.bundle_step", 0.1)
  check_config(config)
  config.danskin.loss_tolerance = 0.1
  with pytest.raises(
    training.ConfigError, match=r"danskin.loss_tolerance must be.*0.1"
  ):
    check_config(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"method": "pgd", "sources": ("l2", "l1")}, "must be one candidate with method"),
    ({"method": "standard", "sources": ("l2",)}, r"must be \(\) with method standard"),
    ({"attack.norm": "l2", "sources": ("n_fgsm",)}, "without r_fgsm and n_fgsm where"),
    ({"sources": ("msd",), "attack.iterate": "best"}, "without trajectory, msd"),
    ({"sources": ("l2",), "attack.random_start": False}, "random_start is False"),
    (
      {"sources": ("warm",), "data.name": "imagenet2012", "data.resolution": 64},
      "without it for config.data.name imagenet2012, whose images are cropped",
    ),
    ({"sources": ("l2",), "loops.restarts": "merge"}, "loops.restarts is merge"),
    (
      {"method": "proximal", "gradients_at_a_time": 1},
      "gradients_at_a_time must be None with method proximal",
    ),
    (
      {"evaluation.norms": ("l2",), "evaluation.step_size": 0.1},
      "config.evaluation.step_size must be None",
    ),
  ],
)
def test_settings_that_exclude_each_other(changes, message):
  config = training.default_config()
  config.num_restarts = 1
  config.update_from_flattened_dict(changes)
  with pytest.raises(training.ConfigError, match=message):
    check_config(config)


def test_one_source_of_one_candidate_suits_single_attacks():
  config = training.default_config()
  config.method = "pgd"
  for name in ("msd", "l2", "spatial"):
    config.sources = (name,)
    check_config(config)
