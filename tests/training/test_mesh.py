"""The step on several devices: the same numbers, and what it sends between them."""

import json
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddi_jax import training
from ddi_jax.training import mesh as meshes
from ddi_jax.training.config import check_config
from ddi_jax.training.packing import Packing, split_dimension

WORKER = Path(__file__).with_name("mesh_worker.py")


def work(**task):
  """What the worker prints, from a process of its own with 8 virtual devices."""
  result = subprocess.run(
    [sys.executable, str(WORKER), json.dumps(task)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


def mesh(restart, data, fsdp=False):
  return {"mesh.restart": restart, "mesh.data": data, "mesh.fsdp": fsdp}


def assert_close(results):
  """To 1e-6, as the candidates are float32; of the rest, 1e-13 was seen."""
  for setting, changes, distances in results:
    programs = distances.pop("programs")
    assert programs == 0, f"{setting} on {changes} was compiled again"
    assert max(distances.values()) < 1e-6, f"{setting} on {changes}: {distances}"


@pytest.mark.slow
def test_every_mesh_computes_what_one_device_does():
  """Gradients, inner products, direction, and ten steps, with BatchNorm, in float64."""
  shapes = [
    *(mesh(1, 2), mesh(2, 1)),
    *(mesh(1, 4, fsdp=True), mesh(2, 2), mesh(4, 1)),
    *(mesh(1, 8), mesh(2, 4, fsdp=True), mesh(4, 2), mesh(8, 1)),
  ]
  results = work(
    what="train", settings=[{"model.normalization": "batch"}], meshes=shapes
  )
  assert len(results) == len(shapes)
  assert_close(results)


@pytest.mark.slow
def test_other_settings_compute_what_one_device_does():
  """Whatever looks at the whole batch, or at all restarts."""
  settings = [
    {"method": "worst_restart", "model.normalization": "batch"},
    {
      "method": "pcgrad",
      "attack.norm": "l2",
      "attack.iterate": "best",
      "attack.stop_below": 0.3,
      "model.normalization": "group",
    },
    {
      "danskin.loss_tolerance": 0.01,
      "attack.norm": "l1",
      "attack.batch_norm": "eval",
      "gradient.batch_norm": "eval",
      "model.normalization": "batch",
    },
  ]
  assert_close(work(what="train", settings=settings, meshes=[mesh(2, 4)]))


@pytest.mark.slow
def test_sources_and_the_proximal_form_compute_what_one_device_does():
  setting = {
    "method": "proximal",
    "sources": ["linf", "l2", "warm:2"],
    "evaluation.norms": ["linf", "l2"],
    "model.normalization": "batch",
  }
  assert_close(work(what="train", settings=[setting], meshes=[mesh(1, 4)]))


@pytest.mark.slow
def test_the_compiled_step_sends_what_the_formulas_say():
  shapes = [mesh(2, 4), mesh(4, 2, fsdp=True), mesh(8, 1), mesh(1, 8)]
  for changes, result in zip(shapes, work(what="sent", meshes=shapes), strict=True):
    text = f"{changes}: {result}"
    found, expected = result["found"], result["expected"]
    # Never the K gradients, nor two of them, on one device.
    assert result["largest_gathered"] <= 4 * result["parameters"], text
    for kind in ("all-to-all", "reduce-scatter"):
      np.testing.assert_allclose(found.get(kind, 0), expected[kind], err_msg=text)
    # Perhaps without the padding; of augmentation and metrics, a few for each image.
    gathered = found["all-gather"] - expected["all-gather"]
    assert -4 * result["padding"] <= gathered < 4 * 16 * 36, text
    # The inner products, their scale, and metrics.
    assert found["all-reduce"] < 4 * 8**2 * 10, text


def test_packing_is_undone_by_unpacking():
  shapes = {"a": (3, 3, 2, 8), "b": (7,), "c": (), "d": (4, 12), "e": (8, 8)}
  rng = np.random.default_rng(0)
  params = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
  gradients = {n: rng.normal(size=(3, *s)) for n, s in shapes.items()}
  gradients = jax.tree.map(lambda x: x.astype(np.float32), gradients)
  packing = Packing(params, 4)
  rows = packing.pack(gradients)
  assert rows.shape == (3, 4, packing.num_columns)
  assert rows.size / 3 == sum(p.size for p in params.values()) + 1 + 3
  for k in range(3):
    jax.tree.map(
      np.testing.assert_array_equal,
      packing.unpack(rows[k]),
      jax.tree.map(lambda x, k=k: x[k], gradients),
    )
  # Row i has the i-th part of a leaf that is split.
  np.testing.assert_array_equal(rows[0, 1, :36], gradients["a"][0, ..., 2:4].ravel())
  assert [split_dimension(s, 4) for s in shapes.values()] == [3, None, None, 1, 1]


def test_padding_changes_no_inner_product():
  params = {"w": jnp.ones(5), "b": jnp.ones((2, 3))}
  gradients = {"w": jnp.arange(10.0).reshape(2, 5), "b": jnp.ones((2, 2, 3))}
  rows = Packing(params, 8).pack(gradients)
  flat = np.concatenate([np.reshape(g, (2, -1)) for g in gradients.values()], axis=1)
  np.testing.assert_allclose(
    training.mesh.ddi_jax.gram_matrix(rows), flat @ flat.T, rtol=1e-6
  )


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
    ({"mesh.restart": 2, "loops.restarts": "merge"}, "loops.restarts must be other"),
  ],
)
def test_impossible_meshes_are_refused(changes, field):
  config = training.default_config()
  config.update_from_flattened_dict(changes)
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
