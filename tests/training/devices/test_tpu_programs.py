"""The estimate for TPUs: how a compiled program is read, and a small case of it."""

import importlib.util
import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "benchmarks"))
import compiled_program  # noqa: E402  (a folder of scripts, not a package)

PARTS = ("attack", "gradients", "direction", "optimizer")

_LOOP = """
%body (p: (s32[])) -> (s32[]) {
  %copy.1 = f32[8] copy(%x), backend_config={"estimated_cycles":"10"}
  %add.1 = f32[8] add(%x), metadata={op_name="gradients/add"}, {"estimated_cycles":"7"}
}
%cond (p: (s32[])) -> pred[] {
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %copy.2 = f32[8] copy(%x), backend_config={"estimated_cycles":"3"}
  %while.1 = (s32[]) while(%t), condition=%cond, body=%body, \
metadata={op_name="jit(f)/attack/while"}, "known_trip_count":{"n":"5"}
}
"""


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("wrt", [None, 0, 1])
def test_flops_of_a_convolution_and_its_gradients_are_those_of_xla(stride, wrt):
  def conv(images, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(
      images, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers
    )
    return out if wrt is None else out.sum()

  fn = conv if wrt is None else jax.grad(conv, argnums=wrt)
  lowered = jax.jit(fn).lower(jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 5)))
  found = list(compiled_program.operations(lowered.compile().as_text()))
  flops = sum(each.times * each.flops for each in found)
  assert flops == pytest.approx(lowered.cost_analysis()["flops"], rel=0.2)
  assert flops > 0


def test_operations_of_a_loop_count_as_often_as_it_turns_and_have_its_part():
  found = {each.name: each for each in compiled_program.operations(_LOOP, PARTS)}
  assert found["copy.1"].times == found["add.1"].times == 5
  parts = {name: each.part for name, each in found.items()}
  assert parts == {"copy.1": "attack", "add.1": "gradients", "copy.2": "other"}
  assert compiled_program.estimated_cycles(_LOOP) == 5 * (10 + 7) + 3


@pytest.mark.slow
def test_a_step_is_compiled_for_chips_that_are_not_there():
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu, the compiler for TPUs, is not installed")
  command = [
    *(sys.executable, str(ROOT / "benchmarks" / "tpu_estimate.py")),
    *("--config=configs/digits.py", "--config.model.name=mlp", "--topology=v5e:2x2"),
    *("--num_restarts=2", "--attack_dtypes=bfloat16", "--restarts=vmapped"),
  ]
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  environment.pop("XLA_FLAGS", None)  # Those of the tests are for the CPU's compiler.
  result = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr
  titles, _, line = (
    [cell.strip() for cell in row.strip("| ").split(" | ")]
    for row in result.stdout.splitlines()
    if row.startswith("|")
  )
  cells = dict(zip(titles, line, strict=True))
  assert cells["restart x data"] == "1 x 4"
  assert cells["K"] == "2"
  assert float(cells["step, ms"]) > 0
  for title in titles[6:9]:  # Attack, gradients and direction.
    assert float(re.match(r"[\d.e-]+", cells[title])[0]) > 0, title
  assert "all-gather" in cells["sent, MB"]
