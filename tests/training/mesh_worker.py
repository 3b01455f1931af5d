"""Run in a process of its own with virtual devices: the step on meshes of them.

Prints, as JSON, what every mesh computed beside one device, and what its program sends.
"""

import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import ddi_jax
from ddi_jax import models, training
from ddi_jax.data import Dataset
from ddi_jax.training import evaluation, warm
from ddi_jax.training import mesh as meshes
from ddi_jax.training import step as step_lib
from ddi_jax.training.config import check_config, model_settings
from ddi_jax.training.methods import METHODS, num_attacks
from ddi_jax.training.packing import Packing

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import collectives

IMAGES = np.random.default_rng(0).integers(0, 17, (16, 6, 6, 1), np.uint8)
LABELS = np.arange(16, dtype=np.int32) % 10
STEPS = 10
SETTINGS = {
  "num_restarts": 8,
  "restarts_at_a_time": 1,
  "batch_size": 16,
  "model.width": 2,
  "model.hidden": 7,
  "model.norm_groups": 2,
  "attack.steps": 2,
  "attack.warmup_epochs": 1.0,
  "data.pad": 1,
  "data.flip": True,
  "optimizer.weight_decay": 0.01,
  "evaluation.batch_size": 16,
  "evaluation.steps": 2,
}


class Seen(NamedTuple):
  """What passed through the direction in the last step."""

  gradients: Any
  gram: jax.Array
  direction: Any


def watched(config, mesh):
  """The config's direction, with what it sees and gives as its state."""
  inner = METHODS[config.method].direction(config)

  def update_inside(updates, state, params=None, **extra_args):
    if mesh is None:
      updates = ddi_jax.KeptGradients(updates)
    products, scale = updates.inner
    out, _ = inner.update(updates, state, params, **extra_args)
    return out, products.gram() * scale**2

  direction = optax.GradientTransformationExtraArgs(inner.init, update_inside)
  if mesh is not None:
    direction = meshes.split_direction(direction, mesh, fsdp=config.mesh.fsdp)
  one = config.method in ("worst_restart", "proximal")
  count = 1 if one else num_attacks(config.method, config.num_restarts)

  def init(params):
    gradients = jax.tree.map(lambda p: np.zeros((count, *p.shape)), params)
    return Seen(gradients, np.zeros((count, count)), params)

  def update(updates, state, params=None, **extra_args):
    del state
    out, gram = direction.update(updates, None, params, **extra_args)
    if mesh is not None:
      updates = jax.vmap(Packing(params, mesh.size).unpack)(updates)
    return out, Seen(updates, gram, out)

  return optax.GradientTransformationExtraArgs(init, update)


class Built(NamedTuple):
  """A config, ready to run."""

  config: Any
  mesh: Any
  state: Any
  step: Any
  evaluate: Any


def build(changes, *, watch):
  config = training.default_config()
  config.update_from_flattened_dict(SETTINGS | changes)
  check_config(config)
  mesh = meshes.create_mesh(config)
  model = models.create_model(
    config.model.name,
    image_shape=IMAGES.shape[1:],
    num_classes=10,
    mean=(0.3,),
    std=(0.4,),
    settings=model_settings(config),
    seed=0,
  )
  apply, params, model_state = models.functional(
    model, batch_axis=meshes.batch_axis(mesh)
  )
  schedule = step_lib.create_schedule(config, STEPS)
  optimizer = step_lib.create_optimizer(config, schedule, mesh)
  if watch:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    optimizer = optax.chain(
      watched(config, mesh),
      optax.add_decayed_weights(config.optimizer.weight_decay),
      optax.sgd(0.1, momentum=0.9),
    )
  state = step_lib.create_train_state(params, model_state, optimizer)
  state = state._replace(moves=warm.create_moves(config, 16, (6, 6, 1)))
  where = jax.devices()[0]
  if mesh is not None:
    where = step_lib.state_shardings(state, mesh, config.mesh.fsdp)
  step = step_lib.create_train_step(
    config, apply, optimizer, schedule, steps_per_epoch=3, max_value=16, mesh=mesh
  )
  return Built(
    config,
    mesh,
    jax.device_put(state, where),
    step,
    evaluation.create_evaluate(config, apply, 16, mesh),
  )


def batch_for(mesh):
  batch = {"image": IMAGES, "label": LABELS, "index": np.arange(16)[::-1]}
  batch = meshes.to_devices(mesh, meshes.DATA, batch)
  return batch["image"], batch["label"], batch["index"]


def train(changes):
  """What the first step saw, and the state after ten."""
  built = build(changes, watch=True)
  state, results = built.state, {}
  for number in range(STEPS):
    state, metrics = built.step(state, *batch_for(built.mesh))
    if number == 0:
      for name in Seen._fields:
        results[name] = metrics[f"direction/{name}"]
  results |= {
    "loss": metrics["loss"],
    "robust_accuracy": metrics["robust_accuracy"],
    "params": state.params,
    "statistics": state.model_state,
    "evaluation": list(built.evaluate(state, Dataset(IMAGES[:13], LABELS[:13]))),
    "programs": built.step._cache_size(),
  }
  return jax.tree.map(np.asarray, results)


def distance(result, reference):
  """By part: the norm of the difference over that of the reference, at worst."""

  def relative(a, b):
    scale = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / (scale if scale else 1))

  return {
    name: max(
      jax.tree.leaves(jax.tree.map(relative, result[name], reference[name])),
      default=0.0,
    )
    for name in reference
  }


def sent(changes):
  """Bytes that a device sends by kind, as compiled and as docs/scaling.md has it."""
  built = build(changes, watch=False)
  program = built.step.lower(built.state, *batch_for(built.mesh)).compile().as_text()
  found = list(collectives.find_collectives(program))
  rows = Packing(built.state.params, built.mesh.size)
  size = rows.num_rows * rows.num_columns
  mesh = built.config.mesh
  return {
    "found": collectives.sent_by_kind(program),
    "expected": collectives.expected_bytes(8, size, mesh.restart, mesh.data),
    "parameters": size,
    "padding": size - sum(leaf.size for leaf in jax.tree.leaves(built.state.params)),
    "largest_gathered": max(
      (c.result_bytes for c in found if c.name == "all-gather"), default=0
    ),
  }


def main():
  jax.config.update("jax_num_cpu_devices", 8)
  task = json.loads(sys.argv[1])
  jax.config.update("jax_enable_x64", task["what"] == "train")
  if task["what"] == "sent":
    print(json.dumps([sent(changes) for changes in task["meshes"]]))
    return
  results = []
  for setting in task["settings"]:
    reference = train(setting)
    for mesh in task["meshes"]:
      results.append([setting, mesh, distance(train(setting | mesh), reference)])
  print(json.dumps(results))


if __name__ == "__main__":
  main()
