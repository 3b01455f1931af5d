"""Results print as small tables, whatever arrays they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import data, tables
from ddi_jax.attacks import AutoAttackResult, Progress
from ddi_jax.training.step.state import TrainState

SIZE = 200  # Of every array: printed whole they would fill many lines.
MANY = np.linspace(0, 1, SIZE * 30).reshape(SIZE, 30)


def attacked(name="apgd-ce", warnings=(), faced=1):
  return AutoAttackResult(
    attacks=(name,),
    clean_correct=np.arange(SIZE) > 9,
    broken_by=np.where(np.arange(SIZE) < 50, 0, -1),
    faced=np.full(SIZE, faced),
    adversarial=MANY,
    warnings=warnings,
  )


def evaluated(**settings):
  pgd = ("pgd", "pgd-calibrated", "pgd-calibrated/10", "pgd-calibrated*10")
  result = attacked(**settings)
  return ddi_jax.RobustnessEvaluation(
    0.9, 2.0, {name: attacked(name) for name in pgd}, result, result.warnings
  )


def curve(**settings):
  return ddi_jax.RobustnessCurve((0.1,), ("apgd-ce",), attacked(**settings))


JUDGED = {"attack": attacked, "evaluation": evaluated, "curve": curve}
RESULTS = {
  **{name: make() for name, make in JUDGED.items()},
  "progress": Progress("apgd-ce", SIZE, SIZE, attacked(), np.arange(SIZE)),
  "maximum": ddi_jax.MinimaxSolution(
    {"w": MANY}, *jnp.ones((1,)), MANY[0], MANY[0], *jnp.ones((3,)), jnp.array(1)
  ),
  "worst case": ddi_jax.WorstCaseSolution(
    MANY, *jnp.ones((2,)), MANY, MANY[0], MANY[0], *jnp.ones((4,))
  ),
  "candidates": ddi_jax.RestartInfo(MANY, MANY, {"mean": MANY, "none": None}),
  "proximal": ddi_jax.ProximalInfo(MANY, MANY, None, *jnp.ones((4,))),
  "steps": ddi_jax.StepEffects(MANY, MANY, MANY, (MANY, MANY), MANY),
  "state": TrainState(jnp.array(3), MANY, {}, (MANY, jax.random.key(0))),
  "data": data.Dataset(MANY, MANY[0]),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_prints_in_a_few_short_lines(name):
  for text in (repr(RESULTS[name]), str(RESULTS[name])):
    lines = text.splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 88


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "data"])
def test_a_notebook_shows_the_same_cells(name):
  html = RESULTS[name]._repr_html_()
  assert html.count("<tr>") == html.count("</tr>") > 1
  table = getattr(type(RESULTS[name]), "table", tables.table_of_fields)
  rows, _ = table(RESULTS[name])
  for row in rows:
    for cell in row:
      assert f"<td>{cell}</td>" in html


def test_html_is_escaped():
  result = attacked(name="<script>", warnings=("a < b",))
  assert "<script>" not in result._repr_html_()
  assert "a &lt; b" in result._repr_html_()


@pytest.mark.parametrize("name", JUDGED)
def test_a_doubtful_figure_is_called_an_upper_bound(name):
  figure = "0.750"  # 50 of 200 examples are broken.
  assert "upper bound" not in repr(JUDGED[name]())
  assert f" {figure}" in repr(JUDGED[name]())
  said = repr(JUDGED[name](warnings=("the gradient is exactly zero",)))
  assert f"<= {figure}" in said
  assert "upper bounds" in said and "the gradient is exactly zero" in said
  stopped = repr(JUDGED[name](faced=0))
  assert "<= " in stopped
  assert "were stopped: robust accuracies are upper bounds" in stopped


@pytest.mark.parametrize(
  ("value", "said"),
  [
    (0.123456789, "0.123457"),
    (jnp.float32(0.5), "0.5"),
    (jnp.array([1.0, 2.0]), "[1., 2.]"),
    (MANY, f"float64[{SIZE}, 30], 0 to 1"),
    (np.zeros(SIZE, bool), f"bool[{SIZE}], 0 true"),
    (jnp.zeros((0, 3)), "float32[0, 3]"),
    (jax.ShapeDtypeStruct((2, 3), jnp.float32), "float32[2, 3]"),
    (jnp.full((3, 3), jnp.nan, jnp.bfloat16), "bfloat16[3, 3], nan to nan"),
    (jax.random.key(0), "key<fry>[]"),
    ({"w": MANY, "b": MANY[0]}, f"2 leaves, {31 * 200 - 170:,} values"),
    (None, "-"),
  ],
)
def test_summary(value, said):
  assert tables.summary(value) == said


def test_a_result_that_is_traced_can_be_printed():
  @jax.jit
  def solve(start):
    info = ddi_jax.RestartInfo(start, start.sum(), None)
    assert "float32[9]" in repr(info)
    return info

  solve(jnp.zeros(9))


@pytest.mark.slow
def test_the_status_of_a_minimum_is_a_word():
  solution = ddi_jax.minimize_max(lambda x: jnp.stack([x, -x]), jnp.array(1.0))
  assert repr(solution).splitlines()[-1].split() == ["status", "CONVERGED"]
