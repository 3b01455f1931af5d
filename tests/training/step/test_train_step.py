"""The training step: one code path for all methods."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from one_step import build
import optax
from platforms import compiling_for
import pytest

import ddi_jax
from ddi_jax import losses, models, training
from ddi_jax.data import Dataset
from ddi_jax.numerics import loops
from ddi_jax.training.devices.compilation import compilation_cache_in
from ddi_jax.training.settings import sources
from ddi_jax.training.settings.check import check_config
from ddi_jax.training.settings.methods import METHODS
from ddi_jax.training.settings.optimizers import create_schedule
from ddi_jax.training.step import validation
from ddi_jax.training.step.state import random_key

IMAGES = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 1), np.uint8)
LABELS = np.arange(6, dtype=np.int32)


MLP = {"model.name": "mlp", "model.layers": (4,)}


def small_config(**changes):
  config = training.default_config()
  config.num_restarts = 3
  config.batch_size = 6
  config.model.width = 2
  config.model.hidden = 8
  config.attack.steps = 2
  config.update_from_flattened_dict(changes)
  return training.drop_unused(config, keep=changes)


def copy(tree):
  return jax.tree.map(jnp.copy, tree)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("method", "model"),
  [
    *((method, {"model.normalization": "batch"}) for method in list(METHODS)[:7]),
    *((method, {"model.normalization": "none"}) for method in ("danskin", "proximal")),
    # These differ from the others in their weights alone.
    *((method, MLP) for method in list(METHODS)[7:]),
  ],
)
def test_every_method_trains_and_updates_statistics(method, model):
  config = small_config(method=method, **model)
  _, state, step = build(config)
  before = copy(state)
  first_loss = None
  for _ in range(5):
    state, metrics = step(state, IMAGES, LABELS)
    first_loss = first_loss or metrics["loss"]
  assert int(state.step) == 5
  assert metrics["loss"] < first_loss
  chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
  moved = jax.tree.map(
    lambda a, b: not np.allclose(a, b),
    (state.params, state.model_state),
    (before.params, before.model_state),
  )
  assert all(jax.tree.leaves(moved))
  assert all(np.isfinite(value) for value in metrics.values())
  accuracy = "accuracy" if method == "standard" else "robust_accuracy"
  diagnostic = "proximal/gap" if method == "proximal" else "direction/cosine"
  assert set(metrics) >= {"loss", accuracy, diagnostic}
  assert ("epsilon" in metrics) == (method != "standard")
  assert step.num_programs() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [{"danskin.bundle_step": 1e-12}, {"danskin.loss_tolerance": 0.0}],
  ids=["bundle", "active set"],
)
def test_forms_of_danskin_see_the_losses(changes):
  """In their limits they take the candidate of greatest loss alone."""
  plain, formed = small_config(**MLP), small_config(**MLP, **changes)
  _, state, step = build(plain)
  _, metrics = step(state, IMAGES, LABELS)
  _, state, step = build(formed)
  _, formed_metrics = step(state, IMAGES, LABELS)
  assert metrics["direction/support"] > 1
  assert formed_metrics["direction/support"] == 1
  assert formed_metrics["direction/norm"] > metrics["direction/norm"]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("changes", "like", "share"),
  [
    ({"proximal.step": 1e-9}, {"method": "worst_restart"}, 1.0),
    (
      {"proximal.per": "batch", "proximal.tolerance": 1e-5},
      {"method": "danskin", "danskin.bundle_step": 0.1},
      None,
    ),
  ],
  ids=["no step", "per batch at the learning rate"],
)
def test_proximal_in_its_limits(changes, like, share):
  states = []
  for settings in (changes | {"method": "proximal"}, like):
    _, state, step = build(small_config(**MLP, **settings))
    state, metrics = step(state, IMAGES, LABELS)
    states.append((state.params, metrics))
  (found, metrics), (expected, other_metrics) = states[0], states[1]
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(metrics["loss"], other_metrics["loss"], rtol=1e-4)
  assert metrics["proximal/predicted_decrease"] > 0
  assert metrics["proximal/gap"] <= 0.1 * metrics["proximal/predicted_decrease"]
  if share is not None:
    assert metrics["proximal/share_of_worst"] == share
    assert metrics["proximal/iterations"] == 0
    assert metrics["proximal/passes"] == 3 * 3 + 3


@pytest.mark.slow
def test_candidates_of_every_source():
  names = (*sources.SOURCES, "uniform:2")
  config = small_config(method="proximal", sources=names, **MLP, **{"attack.steps": 1})
  check_config(config)
  _, state, step = build(config)
  before = copy(state.params)
  state, metrics = step(state, IMAGES, LABELS, np.arange(6))
  count = len(sources.SOURCES) + 2
  assert sources.num_candidates(config) == count
  iterations = metrics["proximal/iterations"]
  assert metrics["proximal/passes"] == count + (iterations + 1) * (3 + 2 * count)
  moved = jax.tree.map(lambda a, b: not np.allclose(a, b), state.params, before)
  assert all(jax.tree.leaves(moved))


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_recomputed_gradients_train_alike(normalization):
  states = []
  for at_a_time in (None, 1):
    config = small_config(
      gradients_at_a_time=at_a_time, **{"model.normalization": normalization}
    )
    _, state, step = build(config)
    state, _ = step(state, IMAGES, LABELS)
    states.append((state.params, state.model_state))
  chex.assert_trees_all_close(*states, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_statistics_do_not_depend_on_the_gradient_s_mode(mode):
  """FACTS of the official code: statistics updated for one method and not another."""
  config = small_config(
    method="standard",
    **{"model.normalization": "batch", "gradient.batch_norm": mode},
  )
  apply, state, step = build(config)
  expected_logits, expected = apply(
    state.params, state.model_state, IMAGES.astype(np.float32) / 16, train=True
  )
  del expected_logits
  new_state, _ = step(state, IMAGES, LABELS)
  chex.assert_trees_all_close(new_state.model_state, expected, rtol=1e-5)


@pytest.mark.slow
def test_batch_norm_modes_change_attack_and_gradient():
  results = {}
  for attack in ("train", "eval"):
    for gradient in ("train", "eval"):
      config = small_config(
        method="pgd",
        **{
          "model.normalization": "batch",
          "attack.batch_norm": attack,
          "gradient.batch_norm": gradient,
        },
      )
      _, state, step = build(config)
      _, metrics = step(state, IMAGES, LABELS)
      results[attack, gradient] = float(metrics["loss"])
  assert len(set(results.values())) == 4


@pytest.mark.slow
def test_step_is_the_method_written_out():
  """The danskin step against a plain Python version of it."""
  config = small_config(unit_norm=True, **{"optimizer.weight_decay": 0.1})
  apply, state, step = build(config)
  inputs = jnp.asarray(IMAGES, jnp.float32) / 16

  def loss_fn(params, inputs, labels):
    logits, _ = apply(params, state.model_state, inputs, train=True)
    return losses.cross_entropy(logits, labels)

  key = random_key(config.seed, "training", 0)
  _, attack_key = jax.random.split(key)
  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=2.5 * 0.1 / 2)
  gradients, _ = jax.jit(ddi_jax.restart_gradients(loss_fn, attack, 3))(
    state.params, inputs, LABELS, attack_key
  )
  direction, _ = ddi_jax.danskin_direction(normalize=True).update(gradients, None)
  norm = optax.tree_utils.tree_norm(direction)
  np.testing.assert_allclose(norm, 1, rtol=1e-5)
  expected = jax.tree.map(lambda p, d: p - 0.1 * (d + 0.1 * p), state.params, direction)
  new_state, metrics = step(state, IMAGES, LABELS)
  chex.assert_trees_all_close(new_state.params, expected, atol=1e-6)
  np.testing.assert_allclose(metrics["direction/norm"] > 0, True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_attack_in_bfloat16_is_nearly_the_same(backend):
  changes = {"attack.epsilon": 0.3, "model.width": 32}
  apply, state, _ = build(small_config(**changes))
  inputs = jnp.asarray(IMAGES / 16, jnp.float32)
  half = models.in_bfloat16(apply)

  def loss(network, inputs):
    logits, _ = network(state.params, state.model_state, inputs, train=True)
    assert logits.dtype == jnp.float32
    return losses.cross_entropy(logits, LABELS).mean()

  with compiling_for(backend):
    exact, rounded = (
      jax.grad(lambda x, network=network: loss(network, x))(inputs)
      for network in (apply, half)
    )
  error = jnp.linalg.norm(exact - rounded) / jnp.linalg.norm(exact)
  assert 1e-5 < error < 0.05


@pytest.mark.slow
def test_training_with_cheaper_attacks():
  config = small_config(**{"attack.dtype": "bfloat16", "attack.stop_below": 0.1})
  _, state, step = build(config)
  losses_seen = []
  for _ in range(3):
    state, metrics = step(state, IMAGES, LABELS)
    losses_seen.append(float(metrics["loss"]))
  assert losses_seen[-1] < losses_seen[0]


@pytest.mark.slow
def test_no_pass_through_the_network_is_wasted(monkeypatch):
  # XLA's count of operations: K (steps input gradients + 1 parameter gradient).
  config = small_config(**{"model.width": 16, "attack.steps": 3})
  # In one program without loops, whose bodies would count once.
  monkeypatch.setattr(loops, "_loops_well", lambda *args: False)
  config.restarts_at_a_time = config.num_restarts
  apply, state, step = build(config)
  inputs = jnp.asarray(IMAGES / 16, jnp.float32)

  def loss(params, inputs):
    logits, _ = apply(params, state.model_state, inputs, train=True)
    return losses.cross_entropy(logits, LABELS).mean()

  def flops(fn, *args):
    return fn.lower(*args).compile().cost_analysis()["flops"]

  of_parameters, of_inputs = (
    flops(jax.jit(jax.grad(loss, argnums=argument)), state.params, inputs)
    for argument in (0, 1)
  )
  counted = flops(step, state, IMAGES, LABELS)
  expected = config.num_restarts * (config.attack.steps * of_inputs + of_parameters)
  assert 0.9 < counted / expected < 1.1


@pytest.mark.slow
@pytest.mark.usefixtures("no_compilation_cache")
def test_runs_of_other_seeds_and_learning_rates_share_a_program(tmp_path):
  hits = []

  def count(event, **details):
    del details
    hits.append(event == "/jax/compilation_cache/cache_hits")

  jax.monitoring.register_event_listener(count)
  try:
    for seed, learning_rate in ((0, 0.1), (7, 0.3)):
      rate = {"optimizer.learning_rate": learning_rate}
      config = small_config(seed=seed, **MLP, **rate)
      _, state, step = build(config)
      hits.clear()
      with compilation_cache_in(tmp_path):
        _, metrics = step(state, IMAGES, LABELS)
      assert any(hits) == (seed == 7)
      assert metrics["learning_rate"] == np.float32(learning_rate)
  finally:
    jax.monitoring.unregister_event_listener(count)


@pytest.mark.slow
def test_warm_up_scales_the_radius():
  config = small_config(method="pgd", **MLP, **{"attack.epsilon": 0.5})
  results = []
  for config.attack.warmup_epochs in (0.0, 1.0):
    apply, state, step = build(config, steps_per_epoch=1000)
    results.append(float(step(copy(state), IMAGES, LABELS)[1]["loss"]))
  clean, _ = apply(state.params, state.model_state, IMAGES / np.float32(16), train=True)
  clean_loss = losses.cross_entropy(clean, LABELS).mean()
  np.testing.assert_allclose(results[1], clean_loss, rtol=1e-2)
  assert results[0] > 1.1 * clean_loss


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("constant", [1, 1, 1, 1]),
    ("step", [1, 0.1, 0.01, 0.01]),
    ("cosine", [1, 0.5, 0.146, 0.0]),
  ],
)
def test_schedules(name, expected):
  config = small_config(**{"optimizer.schedule": name})
  schedule = create_schedule(config, 100)
  fractions = [float(schedule(step)) for step in (0, 50, 75, 100)]
  np.testing.assert_allclose(fractions, expected, atol=1e-3)


def test_step_schedule_of_a_short_run_keeps_every_decay():
  schedule = create_schedule(small_config(**{"optimizer.schedule": "step"}), 3)
  np.testing.assert_allclose(schedule(3), 0.01, rtol=1e-5)


@pytest.mark.slow
def test_evaluation_counts_every_example_once():
  sizes = {"evaluation.batch_size": 4, "evaluation.restarts": 2}
  config = small_config(**MLP, **sizes)
  apply, state, _ = build(config)
  evaluate = validation.create_validate(config, apply, 16)
  result = evaluate(state, Dataset(IMAGES, LABELS))
  logits, _ = apply(
    state.params, state.model_state, IMAGES / np.float32(16), train=False
  )
  np.testing.assert_allclose(
    result.clean_accuracy, np.mean(np.argmax(logits, 1) == LABELS), rtol=1e-6
  )
  np.testing.assert_allclose(
    result.clean_loss, losses.cross_entropy(logits, LABELS).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    result.mean_confidence, jax.nn.softmax(logits).max(1).mean(), rtol=1e-5
  )
  assert result.robust_accuracy <= result.clean_accuracy
  assert result.robust_loss >= result.clean_loss
  assert evaluate(state, Dataset(IMAGES, LABELS)) == result
  assert evaluate(state, Dataset(IMAGES, LABELS), lambda: True) is None


@pytest.mark.slow
def test_evaluation_in_a_union_is_the_worst_of_each_example():
  radii = {"radii.linf": 0.02, "radii.l2": 0.3, "radii.l1": 2.0}
  config = small_config(**MLP, **radii, **{"evaluation.batch_size": 4})
  config.evaluation.norms = ("linf", "l2", "l1")
  check_config(config)
  apply, state, _ = build(config)
  dataset = Dataset(IMAGES, LABELS)
  result = validation.create_validate(config, apply, 16)(state, dataset)
  assert set(result.by_norm) == {"linf", "l2", "l1"}
  assert result.robust_accuracy <= min(result.by_norm.values())
  assert max(result.by_norm.values()) <= result.clean_accuracy
  assert result.numbers()["robust_accuracy_l2"] == result.by_norm["l2"]
  # The first norm's attack has the keys that it has alone.
  alone = small_config(**MLP, **{"attack.epsilon": 0.02, "evaluation.batch_size": 4})
  single = validation.create_validate(alone, apply, 16)(state, dataset)
  assert single.robust_accuracy == result.by_norm["linf"]
  assert "robust_accuracy_linf" not in single.numbers()
  assert result.robust_loss > single.robust_loss
  assert "linf epsilon 0.02 and l2 epsilon 0.3 and l1 epsilon 2" in (
    validation.describe_attack(config)
  )


@pytest.mark.slow
def test_evaluation_with_zero_radius_is_clean():
  config = small_config(**MLP, **{"attack.epsilon": 0.0})
  apply, state, _ = build(config)
  result = validation.create_validate(config, apply, 16)(state, Dataset(IMAGES, LABELS))
  assert result.robust_accuracy == result.clean_accuracy
  np.testing.assert_allclose(result.robust_loss, result.clean_loss, rtol=1e-5)
