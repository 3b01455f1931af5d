"""Settings: every impossible one is refused by name, before anything starts."""

import inspect
from pathlib import Path
import runpy

import jax.numpy as jnp
import pytest

import ddi_jax
from ddi_jax import data, training
from ddi_jax.training.run import program
from ddi_jax.training.settings import values
from ddi_jax.training.settings.check import (
  check_against_data,
  check_config,
  flatten,
)

CONFIGS = sorted(Path(__file__).parents[3].glob("configs/*.py"))


# What has to be chosen for a setting to be used.
CHOICES = {
  "proximal": {"method": "proximal"},
  "mgda": {"method": "mgda"},
  "cagrad": {"method": "cagrad"},
  "radii": {"sources": ("linf", "l2", "l1")},
  "spatial": {"sources": ("spatial",)},
  "warm": {"sources": ("warm",)},
  "model.layers": {"model.name": "mlp"},
  "model.depth": {"model.name": "wide_resnet"},
  "model.widening": {"model.name": "wide_resnet"},
  "model.norm_groups": {"model.normalization": "group"},
  "optimizer.milestones": {"optimizer.schedule": "step"},
  "optimizer.decay": {"optimizer.schedule": "step"},
}


def changed(field, value):
  """A config in which the setting has the value, and is used."""
  config = training.default_config()
  choices = CHOICES.get(field, CHOICES.get(field.split(".")[0], {}))
  with config.ignore_type():
    config.update_from_flattened_dict(choices | {field: value})
  return config


@pytest.mark.slow
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
    ("danskin.bundle_step", 0.0, "None or a number > 0"),
    ("danskin.loss_tolerance", -1.0, "None or a number >= 0"),
    ("sources", ("pgd",), ".*NAME one of uniform, targeted"),
    ("sources", ("uniform:0",), "a tuple of NAME or NAME:K with K >= 1"),
    ("sources", ("msd:2",), "such that msd makes one candidate"),
    ("sources", "spatial", "a tuple of NAME"),
    ("sources", ("warm:2", "warm"), "such that warm is there at most once"),
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
    ("danskin.solver", "newton", "one of active_set, projected_gradient"),
    ("danskin.tolerance", -1.0, "None or a finite number >= 0"),
    ("danskin.max_iterations", 0, "None or an integer >= 1"),
    ("mgda.normalization", "l1", r"one of l2, loss, loss\+"),
    ("cagrad.radius", 1.0, r"in \[0, 1\)"),
    ("data.name", "imagenet", "one of digits, mnist, cifar10.*or module:name"),
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
    ("model.depth", 18, r"6 n \+ 4 with n >= 1"),
    ("model.depth", 4, r"6 n \+ 4 with n >= 1"),
    ("model.widening", 0, "an integer >= 1"),
    ("attack.norm", "l3", "one of linf, l2, l1"),
    ("attack.epsilon", -0.1, "a finite number >= 0"),
    ("attack.epsilon", float("nan"), "a finite number >= 0"),
    ("attack.warmup_epochs", -1.0, "a finite number >= 0"),
    ("attack.steps", 0, "an integer >= 1"),
    ("attack.step_size", 0.0, "a finite number > 0 or None"),
    ("attack.iterate", "first", "one of last, best"),
    ("attack.stop_below", 1.0, r"None or in \[0, 1\)"),
    ("attack.dtype", "float16", "one of float32, bfloat16"),
    ("attack.batch_norm", "frozen", "one of train, eval"),
    ("gradient.batch_norm", "frozen", "one of train, eval"),
    ("gradient.loss_keys", "same", "one of per_candidate, shared"),
    ("optimizer.name", "lion", "one of sgd, adam"),
    ("optimizer.learning_rate", 0.0, "a finite number > 0"),
    ("optimizer.momentum", 1.0, r"in \[0, 1\)"),
    ("optimizer.weight_decay", -1.0, "a finite number >= 0"),
    ("optimizer.schedule", "linear", "one of constant, cosine, step"),
    ("optimizer.milestones", (0.7, 0.5), r"increasing fractions in \(0, 1\)"),
    ("optimizer.decay", 0.0, r"in \(0, 1\]"),
    ("evaluation.every_epochs", 0.0, "a finite number > 0"),
    ("evaluation.batch_size", 0, "an integer >= 1"),
    ("evaluation.steps", 0, "an integer >= 1"),
    ("evaluation.step_size", -1.0, "a finite number > 0 or None"),
    ("evaluation.restarts", 0, "an integer >= 1"),
    ("evaluation.validation_limit", 0, "an integer >= 1 or None"),
    ("evaluation.test_limit", 0, "an integer >= 1 or None"),
    ("restarts_at_a_time", 0, "an integer >= 1 or None"),
  ],
)
def test_impossible_values_are_named(field, value, allowed):
  with pytest.raises(training.ConfigError, match=rf"config\.{field} must be {allowed}"):
    check_config(changed(field, value))


def kinds():
  """(Setting, type, whether it may be None); a group's fields are never all unused."""
  config = training.default_config()
  for field, default in flatten(config).items():
    group, _, name = field.rpartition(".")
    section = config[group] if group else config
    yield field, section.get_type(name), default is None


NUMBERS = [field for field, kind, _ in kinds() if kind in (int, float)]
# Of any size that an int32 can hold: they take time only, or limit something.
COUNTS = {
  *("seed", "num_epochs", "evaluation.every_epochs", "warm.reset_epochs"),
  *("proximal.memory", "data.split_seed", "data.validation_size"),
  *("data.limit", "evaluation.validation_limit", "evaluation.test_limit"),
  *("restarts_at_a_time", "gradients_at_a_time"),
}


class DataReadError(Exception):
  """The data were about to be read."""


@pytest.fixture
def no_data(monkeypatch):
  def load_data(config):
    raise DataReadError

  monkeypatch.setattr(program, "load_data", load_data)


@pytest.mark.slow
@pytest.mark.parametrize("field", NUMBERS)
def test_impossible_sizes_are_refused_before_the_data_are_read(
  field, no_data, tmp_path
):
  is_float = {name: kind for name, kind, _ in kinds()}[field] is float
  for value in (1e39, -1e39) if is_float else (2**31, 10**30, 10**400):
    with pytest.raises(training.ConfigError, match=rf"config\.{field} must be"):
      training.train(changed(field, value), tmp_path / "run")
  if not is_float and field not in COUNTS:
    with pytest.raises(training.ConfigError, match=rf"config\.{field}\b"):
      training.train(changed(field, 10**9 + 8), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", values.LOOPS)
def test_a_loop_that_would_take_years_is_refused(field):
  check_config(changed(field, 10**6))
  with pytest.raises(
    training.ConfigError, match=rf"config\.{field} must be <= 1000000, got 1000001"
  ):
    check_config(changed(field, 10**6 + 1))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_restarts": 10**6, "gradients_at_a_time": 1}, "inner products of gradients"),
    ({"data.pad": 10**5}, "padded images"),
    ({"num_epochs": 1e30}, r"< 2\*\*31, got 1e\+30"),
    ({"attack.warmup_epochs": 1e30}, r"< 2\*\*31, got 1e\+30"),
    ({"sources": ("uniform:1000000000000",)}, "candidate"),
    ({"sources": ("warm:1000000000000",)}, "candidate"),
    ({"model.name": "wide_resnet", "model.depth": 600_004}, "and at most 1000"),
    ({"model.name": "mlp", "model.layers": (8,) * 1001}, "at most 1000 names or num"),
    ({"model.name": "mlp", "model.layers": (2**31,)}, "at most 1000 names or numbers"),
    ({"sources": ("spatial",), "spatial.tries": 10**9}, r"in \[1, 1000000\]"),
    ({"optimizer.schedule": "step", "optimizer.milestones": ("a",)}, "fractions in"),
    ({"model.width": 2**30, "model.hidden": 2**30}, "needs at least"),
  ],
)
def test_impossible_sizes_in_combination(changes, message, no_data, tmp_path):
  config = training.default_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(training.ConfigError, match=message):
    training.train(config, tmp_path / "run")


@pytest.mark.parametrize(("field", "kind", "optional"), list(kinds()))
def test_a_value_of_another_type_is_refused(field, kind, optional):
  others = {bool: 1, int: True, float: "x", str: 3, tuple: 3}
  for value in (others[kind], *(() if optional else (None,))):
    with pytest.raises(training.ConfigError, match=rf"config\.{field} must be"):
      check_config(changed(field, value))


@pytest.mark.parametrize("field", ["num_epochs", "attack.warmup_epochs"])
def test_steps_are_counted_in_int32(field):
  splits = data.load("digits", validation_size=200)
  check_against_data(changed(field, 2.0**31 / 9 * 0.99), splits.train)
  message = rf"config\.{field} must be < 2.38609e\+08, for less .*\(9 an epoch\)"
  with pytest.raises(training.ConfigError, match=message):
    check_against_data(changed(field, 2.0**31 / 9), splits.train)


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


def test_groups_must_divide_the_width():
  config = changed("model.normalization", "group")
  config.model.norm_groups = 5
  with pytest.raises(
    training.ConfigError, match=r"config\.model\.norm_groups must be a divisor of width"
  ):
    check_config(config)


def test_restarts_that_would_all_be_the_same():
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


def test_the_two_forms_of_danskin_exclude_each_other():
  config = changed("danskin.bundle_step", 0.1)
  check_config(config)
  config.danskin.loss_tolerance = 0.1
  with pytest.raises(
    training.ConfigError, match=r"config\.danskin\.bundle_step and loss_tolerance are"
  ):
    check_config(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"method": "pgd", "sources": ("l2", "l1")}, "must be one candidate with method"),
    ({"method": "standard", "sources": ("l2",)}, r"must be \(\) with method standard"),
    ({"attack.norm": "l2", "sources": ("r_fgsm",)}, "without r_fgsm where"),
    (
      {"sources": ("msd",), "attack.iterate": "best"},
      r"attack\.iterate is 'best', but config\.sources \('msd',\) does not use it",
    ),
    (
      {"sources": ("l2",), "attack.random_start": False},
      r"attack\.random_start is False, but config\.sources \('l2',\) does not",
    ),
    (
      {"sources": ("warm",), "data.name": "imagenet2012", "data.resolution": 64},
      "without warm for config.data.name imagenet2012, whose images are cropped",
    ),
    (
      {"method": "proximal", "gradients_at_a_time": 1},
      "gradients_at_a_time is 1, but config.method 'proximal' does not use it",
    ),
    (
      {"evaluation.norms": ("l2",), "evaluation.step_size": 0.1},
      r"evaluation\.step_size is 0\.1, but config\.evaluation\.norms \('l2',\) does",
    ),
  ],
)
def test_settings_that_exclude_each_other(changes, message):
  config = training.default_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(training.ConfigError, match=message):
    check_config(config)


def test_one_source_of_one_candidate_suits_single_attacks():
  config = training.default_config()
  config.method = "pgd"
  for name in ("msd", "l2", "spatial"):
    config.sources = (name,)
    check_config(config)


@pytest.mark.parametrize(
  ("changes", "unused", "takes"),
  [
    ({"method": "pgd", "num_restarts": 8}, "num_restarts", "attack.batch_norm"),
    ({"method": "pgd", "danskin.bundle_step": 0.1}, "danskin.bundle_step", "attack."),
    ({"sources": ("l2",), "num_restarts": 8}, "num_restarts", "radii.l2"),
    (
      {"sources": ("l2",), "attack.epsilon": 0.3, **{"evaluation.norms": ("l2",)}},
      "attack.epsilon",
      "radii.l2",
    ),
    ({"model.name": "mlp", "model.width": 8}, "model.width", "model.layers"),
    (
      {"optimizer.name": "adam", "optimizer.momentum": 0.5},
      "optimizer.momentum",
      "optimizer.weight_decay",
    ),
    ({"optimizer.decay": 0.5}, "optimizer.decay", "optimizer.momentum"),
    ({"warm.steps": 2}, "warm.steps", "no setting"),
    ({"mgda.normalization": "loss"}, "mgda.normalization", "danskin"),
    ({"radii.l2": 2.0}, "radii.l2", "no setting"),
    (
      {"method": "proximal", "gradient.loss_keys": "shared"},
      "gradient.loss_keys",
      "proximal",
    ),
    ({"method": "standard", "attack.steps": 3}, "attack.steps", "unit_norm"),
    ({"data.data_dir": "somewhere"}, "data.data_dir", "data.flip"),
  ],
)
def test_a_setting_that_nothing_uses_is_an_error(changes, unused, takes):
  config = training.default_config()
  config.update_from_flattened_dict(changes)
  message = rf"config\.{unused} is .* does not use it; it takes .*{takes}"
  with pytest.raises(training.ConfigError, match=message):
    check_config(config)
  check_config(training.drop_unused(config))
  kept = training.drop_unused(config, keep=changes)
  assert flatten(kept) == flatten(config)


def test_own_settings_of_a_piece_that_is_not_there_are_an_error():
  config = training.default_config()
  config.model_settings.width = 3
  with pytest.raises(training.ConfigError, match=r"config\.model_settings\.width is 3"):
    check_config(config)
  assert not training.drop_unused(config).model_settings


def own_source(count, size=1.0):
  return lambda key, logits_fn, inputs, labels: jnp.stack([inputs] * count)


def own_model(image_shape, num_classes, *, mean, rngs):
  raise AssertionError


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"sources": (f"{__name__}:own_source:2",)}, "source_settings.count"),
    ({"model.name": f"{__name__}:own_model"}, "model_settings.rngs"),
    ({"model.name": f"{__name__}:own_model"}, "model_settings.num_classes"),
    ({"model.name": f"{__name__}:own_model"}, "model_settings.mean"),
  ],
)
def test_a_setting_that_the_program_passes_itself_is_refused(changes, field):
  config = training.default_config()
  config.update_from_flattened_dict(changes)
  group, name = field.split(".")
  config[group][name] = 3
  with pytest.raises(
    training.ConfigError,
    match=rf"^config\.{field} cannot be set: ddi_jax passes it to own_.* leave it out",
  ):
    training.check_config(config)


@pytest.mark.parametrize(
  ("field", "name", "message"),
  [
    ("method", "nowhere:median", "cannot be imported"),
    ("method", "optax:nothing", "cannot be imported .*nothing"),
    ("model.name", "nowhere:Net", "cannot be imported"),
    ("data.name", "nowhere:load", "cannot be imported"),
    ("sources", ("nowhere:source:2",), "cannot be imported"),
    ("method", "ddi_jax:wilson_interval", "_settings.successes must be set"),
    ("method", "ddi_jax.training:default_config", "must make an optax transform"),
    ("method", "os:sep", "must name a function or a class, got 'os:sep', a str"),
    ("model.name", "json:loads", "loads must take 2 positional argument"),
    ("sources", ("ddi_jax.training:default_config",), "must take 1 positional argum"),
  ],
)
def test_pieces_that_are_not_there(field, name, message):
  with pytest.raises(training.ConfigError, match=rf"config\.{field[:6]}.*{message}"):
    check_config(changed(field, name))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(("sources", value) for value in ("spatial", ("(3",), ("uniform:0",), (1,))),
    ("optimizer.name", "lion"),
    ("optimizer.schedule", "linear"),
    ("evaluation.norms", ("l3",)),
  ],
)
def test_pieces_that_do_not_exist_are_refused_where_settings_are_dropped(field, value):
  """The program drops what a replaced piece used before it checks the config."""
  with pytest.raises(training.ConfigError, match=rf"config\.{field} must be"):
    training.drop_unused(changed(field, value))


def test_groups_have_the_defaults_of_what_they_feed():
  config = training.default_config()
  solver = inspect.signature(ddi_jax.danskin_direction).parameters["solver"].default
  assert config.danskin.solver == solver
  tries = inspect.signature(ddi_jax.candidates.spatial).parameters["tries"].default
  assert config.spatial.tries == tries
  assert config.model.width is None  # Each network has its own.


def test_drop_unused_keeps_what_is_asked_for():
  config = training.default_config()
  config.num_restarts = 8
  config.method = "pgd"
  assert training.drop_unused(config, keep={"num_restarts"}).num_restarts == 8
  assert training.drop_unused(config).num_restarts == 4
  assert config.num_restarts == 8
