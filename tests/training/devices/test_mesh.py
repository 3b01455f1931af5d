"""The step on several devices: the same numbers, and what it sends between them."""

import json
from pathlib import Path

from forked_programs import run_program
import jax
import numpy as np
import pytest

from ddi_jax import training
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings.check import check_config

WORKER = Path(__file__).with_name("mesh_worker.py")


def work(**task):
  """What the worker prints, from a process of its own with 8 virtual devices."""
  result = run_program([WORKER, json.dumps(task)], WORKER.parent)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


def mesh(restart, data, fsdp=False):
  return {"mesh.restart": restart, "mesh.data": data, "mesh.fsdp": fsdp}


# By name: settings, and the meshes to train on.  The settings use everything that
# depends on the whole batch or on all restarts.
CASES = {
  "danskin": (
    {"model.normalization": "batch"},
    [mesh(1, 8), mesh(2, 4, fsdp=True), mesh(8, 1), mesh(2, 2)],
  ),
  "worst restart": (
    {"method": "worst_restart", "model.normalization": "batch"},
    [mesh(2, 4)],
  ),
  "pcgrad": (
    {
      "method": "pcgrad",
      "attack.norm": "l2",
      "attack.iterate": "best",
      "attack.stop_below": 0.3,
      "model.normalization": "group",
    },
    [mesh(2, 4)],
  ),
  "active set": (
    {
      "danskin.loss_tolerance": 0.01,
      "attack.norm": "l1",
      "attack.batch_norm": "eval",
      "gradient.batch_norm": "eval",
      "model.normalization": "batch",
    },
    [mesh(2, 4)],
  ),
  "proximal": (
    {
      "method": "proximal",
      "sources": ["linf", "l2", "warm:2"],
      "evaluation.norms": ["linf", "l2"],
      "model.normalization": "batch",
    },
    [mesh(1, 4)],
  ),
}


@pytest.fixture(scope="module")
def trained():
  """By setting and mesh: the distances from one device, after one step and ten."""
  results = work(what="train", settings=list(CASES.values()))
  return dict(zip(CASES, results, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(600)  # The first of them trains for all.
@pytest.mark.parametrize("name", CASES)
def test_meshes_compute_what_one_device_does(trained, name):
  """In float64, to 1e-6, as the candidates are float32; of the rest, 1e-13 was seen."""
  for changes, distances in zip(CASES[name][1], trained[name], strict=True):
    assert distances["programs"] == 0, f"{changes} was compiled again"
    assert max(distances.values()) < 1e-6, f"{changes}: {distances}"


@pytest.mark.slow
def test_the_compiled_step_sends_no_images_and_gathers_one_direction():
  """Only sums of gradients, their exchange, one direction, and small change."""
  sizes = {"model.width": 8, "model.hidden": 8}  # Most tensors can be split by 8.
  shapes = [
    shape | sizes
    for shape in (mesh(2, 4), mesh(4, 2, fsdp=True), mesh(8, 1), mesh(1, 8))
  ]
  for changes, result in zip(shapes, work(what="sent", meshes=shapes), strict=True):
    text = f"{changes}: {result}"
    size = 4 * result["parameters"]
    by_kind = {}
    for kind, num_bytes, _ in result["collectives"]:
      by_kind.setdefault(kind, []).append(num_bytes)
    # One direction (or, with fsdp, the parameters); augmentation sends a little more.
    assert sum(by_kind["all-gather"]) < 1.1 * size + 4000, text
    # A device's own gradients, one at a time, summed over the batch.
    own = 8 // changes["mesh.restart"] * size
    assert sum(by_kind["all-reduce"]) < 1.1 * own + 4000, text
    # What they are exchanged for: shares of all gradients.
    exchanged = sum(by_kind.get("all-to-all", [0]))
    assert exchanged <= 8 * size / changes["mesh.data"] / changes["mesh.restart"] + 4000


def test_leaves_are_split_along_their_longest_dimension():
  abstract = jax.sharding.AbstractMesh((2, 2), meshes.ALL)
  shapes = {"a": (3, 3, 2, 8), "b": (7,), "c": (), "d": (4, 12), "e": (8, 8)}
  tree = {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}
  specs = {
    n: tuple(s.spec) for n, s in meshes.shardings(tree, abstract, split=True).items()
  }
  assert specs == {
    "a": (None, None, None, meshes.ALL),
    "b": (),
    "c": (),
    "d": (None, meshes.ALL),
    "e": (None, meshes.ALL),
  }


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"num_restarts": 3, "mesh.restart": 2}, "mesh.restart must be a divisor of 3"),
    ({"method": "pgd", "mesh.restart": 2}, "mesh.restart must be a divisor of 1"),
    ({"mesh.restart": 0}, "mesh.restart"),
    ({"method": "proximal", "mesh.restart": 2}, "mesh.restart must be 1 with"),
    ({"batch_size": 9, "mesh.data": 2}, r"mesh.data must be a divisor of .* \(9\)"),
    (
      {"mesh.data": 4, "evaluation.batch_size": 6},
      "evaluation.batch_size must be a multiple of 4",
    ),
    ({"mesh.data": 2, "gradients_at_a_time": 1}, "gradients_at_a_time must be None"),
  ],
)
def test_impossible_meshes_are_refused(changes, field):
  config = training.default_config()
  config.update_from_flattened_dict(changes)
  config = training.drop_unused(config, keep=changes)
  with pytest.raises(training.ConfigError, match=field):
    check_config(config)


def test_more_devices_than_there_are_is_refused():
  config = training.default_config()
  config.mesh.data = 64
  with pytest.raises(
    training.ConfigError, match=r"at most \d+, the number of .*1 \* 64"
  ):
    meshes.create_mesh(config)
  config.mesh.data = 1
  assert meshes.create_mesh(config) is None
