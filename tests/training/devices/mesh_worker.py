"""Run in a process of its own with virtual devices: the step on meshes of them.

Prints, as JSON, what every mesh computed beside one device, and what its program sends.
"""

import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from ddi_jax import data, training
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.step.state import create_train_state
from ddi_jax.training.step.train_step import state_shardings

IMAGES = np.random.default_rng(0).integers(0, 17, (48, 6, 6, 1), np.uint8)
LABELS = np.arange(48, dtype=np.int32) % 10
BATCH = 16
STEPS = 10
SETTINGS = {
  "num_restarts": 8,
  "restarts_at_a_time": 1,
  "batch_size": BATCH,
  "num_epochs": STEPS / 3,
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


class Built(NamedTuple):
  """A config's run on its mesh, its state in float64."""

  config: Any
  mesh: Any
  experiment: Any
  state: Any


def build(changes, dtype):
  config = training.default_config()
  config.update_from_flattened_dict(SETTINGS | changes)
  config = training.drop_unused(config, keep=changes)
  training.check_config(config)
  examples = data.Dataset(IMAGES, LABELS)
  splits = data.Splits(examples, examples, examples, 16, 10, (0.3,), (0.4,))
  mesh = meshes.create_mesh(config)
  experiment = training.create_experiment(config, splits, mesh)
  state = experiment.start()
  params, model_state = jax.tree.map(
    lambda leaf: np.asarray(leaf, dtype), (state.params, state.model_state)
  )
  fresh = create_train_state(params, model_state, experiment.parts.optimizer)
  state = fresh._replace(memory=state.memory)
  where = jax.devices()[0]
  if mesh is not None:
    where = state_shardings(state, mesh, config.mesh.fsdp)
  return Built(config, mesh, experiment, jax.device_put(state, where))


def batch_for(mesh):
  index = np.arange(BATCH)[::-1].copy()
  batch = {"image": IMAGES[index], "label": LABELS[index], "index": index}
  return meshes.to_devices(mesh, meshes.DATA, batch)


def train(changes):
  """The metrics and the parameters of the first step and of the last."""
  built = build(changes, np.float64)
  state, experiment = built.state, built.experiment

  def take_steps(state, number):
    for _ in range(number):
      state, metrics = experiment.train_step(
        state, batch_for(built.mesh), experiment.hyperparameters
      )
    return state, metrics

  state, first_metrics = take_steps(state, 1)
  first_params = jax.tree.map(np.asarray, state.params)
  state, metrics = take_steps(state, STEPS - 1)
  dataset = data.Dataset(IMAGES[:13], LABELS[:13])
  results = {
    "first metrics": first_metrics,  # Those of the inner products among them.
    "first parameters": first_params,
    "loss": metrics["loss"],
    "robust_accuracy": metrics["robust_accuracy"],
    "parameters": state.params,
    "statistics": state.model_state,
    "validation": list(experiment.validate(state, dataset)),
    "programs": experiment.train_step._cache_size(),
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
  """The collectives of the compiled step: [kind, bytes of the result, group size]."""
  sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
  import compiled_program  # noqa: PLC0415  (a folder of scripts, not a package)

  built = build(changes, np.float32)
  program = built.experiment.train_step.lower(
    built.state, batch_for(built.mesh), built.experiment.hyperparameters
  )
  compiled = program.compile(compiler_options={"xla_disable_hlo_passes": ""})
  found = compiled_program.find_collectives(compiled.as_text())
  return {
    "collectives": [[c.name, c.result_bytes, c.group_size] for c in found],
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(built.state.params)),
  }


def main():
  jax.config.update("jax_num_cpu_devices", 8)
  task = json.loads(sys.argv[1])
  jax.config.update("jax_enable_x64", task["what"] == "train")
  if task["what"] == "sent":
    print(json.dumps([sent(changes) for changes in task["meshes"]]))
    return
  results = []
  for setting, shapes in task["settings"]:
    reference = train(setting)
    results.append([distance(train(setting | mesh), reference) for mesh in shapes])
  print(json.dumps(results))


if __name__ == "__main__":
  main()
