"""Bad arguments: refused early, by name, with what is allowed."""

import functools

import jax
from jax.experimental import checkify
import jax.numpy as jnp
from linear_model import KEY, problem
import numpy as np
import pytest

import ddi_jax
from ddi_jax import attacks, candidates, losses

BALL = ddi_jax.linf(0.1)


def bad_losses(params):
  return jnp.stack([params.sum(), -params.sum()])


def effects(step_lengths):
  return ddi_jax.step_effects(
    losses.cross_entropy,
    {"first": ddi_jax.TriedDirection(ddi_jax.first_restart_direction())},
    step_lengths,
    attack=ddi_jax.pgd(BALL, steps=1, step_size=0.1),
    num_restarts=1,
    evaluation_attack=ddi_jax.pgd(BALL, steps=1, step_size=0.1),
    evaluation_restarts=1,
  )


def curve(epsilons=(0.1,), **settings):
  inputs, labels = jnp.full((2, 4), 0.5), jnp.array([0, 1])
  return ddi_jax.robustness_curve(
    KEY, lambda x: x, inputs, labels, ddi_jax.linf, epsilons, **settings
  )


# Of every public function with a numerical setting: a call of that setting, and what is
# out of its range.  Strings, arrays of rank 1 and Booleans are in no range.
SETTINGS = {
  "epsilon": [(ddi_jax.linf, [-1]), (ddi_jax.l2, [-1]), (ddi_jax.l1, [-1])],
  "top_fraction": [(lambda v: ddi_jax.l1(1.0, top_fraction=v), [-0.1, 1.1])],
  "step_size": [(lambda v: ddi_jax.pgd(BALL, steps=1, step_size=v), [0, -1])],
  "stop_below": [
    (lambda v: ddi_jax.pgd(BALL, steps=1, step_size=1.0, stop_below=v), [-0.1, 1.0])
  ],
  "bundle_step": [(lambda v: ddi_jax.danskin_direction(bundle_step=v), [0, -1])],
  "loss_tolerance": [(lambda v: ddi_jax.danskin_direction(loss_tolerance=v), [-1])],
  "tolerance": [
    (lambda v: ddi_jax.danskin_direction(tolerance=v), [-1]),
    (lambda v: ddi_jax.min_norm_weights(jnp.eye(2), tolerance=v), [-1]),
    (lambda v: ddi_jax.minimize_max(bad_losses, jnp.ones(2), tolerance=v), [0, -1]),
  ],
  "radius": [(lambda v: ddi_jax.cagrad_direction(radius=v), [-0.1, 1.0])],
  "step_ratio": [(lambda v: candidates.r_fgsm(0.1, 2, step_ratio=v), [0, -1])],
  r"step_sizes\[0\]": [
    (lambda v: candidates.msd([BALL], steps=1, step_sizes=[v]), [0])
  ],
  "max_degrees": [(lambda v: candidates.spatial(2, max_degrees=v), [-1, 181])],
  "max_shift": [(lambda v: candidates.spatial(2, max_shift=v), [-1, 1.5])],
  "rho": [(lambda v: attacks.apgd(BALL, rho=v), [-0.1, 1.1])],
  "p_init": [(lambda v: attacks.square(BALL, p_init=v), [0, 1.1])],
  "alpha_max": [(lambda v: attacks.fab(BALL, alpha_max=v), [-0.1, 1.1])],
  "eta": [(lambda v: attacks.fab(BALL, eta=v), [0.9])],
  "beta": [(lambda v: attacks.fab(BALL, beta=v), [0, 1])],
  r"step_lengths\[0\]": [(lambda v: effects([v]), [-1])],
  r"epsilons\[0\]": [(lambda v: curve(epsilons=[v]), [-1])],
  "confidence": [(lambda v: ddi_jax.wilson_interval(1, 2, confidence=v), [0, 1])],
}
CASES = [(name, *case) for name, cases in SETTINGS.items() for case in cases]


@pytest.mark.parametrize(
  "as_type", [float, np.float32, np.array, jnp.float32, jnp.array]
)
@pytest.mark.parametrize(("name", "call", "values"), CASES)
def test_numbers_out_of_range_are_refused_by_name(name, call, values, as_type):
  infinite = [] if name in ("bundle_step", "loss_tolerance") else [float("inf")]
  for value in [*values, float("nan"), *infinite]:
    with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
      call(as_type(value))


@pytest.mark.parametrize("value", ["0.5", True, [0.5], np.ones(1), jnp.ones(2), 0.5j])
@pytest.mark.parametrize(("name", "call", "values"), CASES)
def test_what_is_no_number_is_refused_by_name(name, call, values, value):
  del values
  with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
    call(value)


@pytest.mark.slow
@pytest.mark.parametrize(
  "call",
  [
    lambda v: ddi_jax.danskin_direction(bundle_step=v),
    lambda v: ddi_jax.danskin_direction(loss_tolerance=v),
    lambda v: ddi_jax.cagrad_direction(radius=v),
  ],
)
def test_a_traced_setting_passes(call):
  gradients, losses_of_k = jnp.eye(2), jnp.array([1.0, 0.5])

  @jax.jit
  def update(value):
    direction = call(value)
    return direction.update(gradients, direction.init(None), losses=losses_of_k)[0]

  expected, _ = call(0.25).update(gradients, call(0.25).init(None), losses=losses_of_k)
  np.testing.assert_allclose(update(0.25), expected, rtol=1e-5)
  np.testing.assert_allclose(
    call(jnp.float32(0.25)).update(gradients, None, losses=losses_of_k)[0], expected
  )


def test_counts_are_integers_of_python_or_numpy():
  ddi_jax.pgd(BALL, steps=np.int64(3), step_size=0.1)
  for value in (np.float32(3), np.int64(0), np.bool_(True), jnp.int32(3)):
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got"):
      ddi_jax.pgd(BALL, steps=value, step_size=0.1)


@pytest.mark.parametrize("not_a_ball", [0.1, None, "linf", ddi_jax.linf])
def test_a_threat_model_is_asked_for(not_a_ball):
  p = problem()
  for make in (
    functools.partial(ddi_jax.pgd, steps=1, step_size=0.1),
    attacks.apgd,
    attacks.fab,
    attacks.square,
    functools.partial(attacks.multi_targeted_pgd, steps=1, step_size=0.1),
    ddi_jax.autoattack,
    lambda ball: candidates.msd([ball], steps=1, step_sizes=[0.1]),
    lambda ball: candidates.warm_restarts(ball, p.inputs[None], steps=1, step_size=0.1),
    lambda ball: ddi_jax.evaluate(KEY, p.logits_fn, p.inputs, p.labels, ball),
  ):
    with pytest.raises(ValueError, match="threat_model must be one such as ddi"):
      make(not_a_ball)


@pytest.mark.parametrize("not_a_key", [0, None, 1.5, "key", np.int64(3), jnp.zeros(2)])
def test_a_key_is_asked_for(not_a_key):
  p = problem()
  pgd = ddi_jax.pgd(BALL, steps=1, step_size=0.1)

  def loss_fn(params, inputs, labels):
    return losses.cross_entropy(inputs @ params, labels)

  for call in (
    lambda key: pgd(key, lambda x: x.sum(1), p.inputs),
    lambda key: ddi_jax.restart_candidates(pgd, loss_fn, p.inputs, p.labels, key, 2),
    lambda key: ddi_jax.restart_gradients(loss_fn, pgd, 2)(
      p.weights, p.inputs, p.labels, key
    ),
    lambda key: candidates.restarts(pgd, 2)(key, p.logits_fn, p.inputs, p.labels),
    lambda key: attacks.apgd(BALL)(key, p.logits_fn, p.inputs, p.labels),
    lambda key: attacks.square(BALL)(key, p.logits_fn, p.inputs, p.labels),
    lambda key: ddi_jax.autoattack(BALL)(key, p.logits_fn, p.inputs, p.labels),
    lambda key: ddi_jax.evaluate(key, p.logits_fn, p.inputs, p.labels, BALL),
    lambda key: ddi_jax.robustness_curve(
      key, p.logits_fn, p.inputs, p.labels, ddi_jax.linf, [0.1]
    ),
    lambda key: ddi_jax.minimize_worst_case(
      lambda slope, x: (slope * x).sum(), pgd, jnp.ones(()), jnp.full(2, 0.5), key
    ),
  ):
    with pytest.raises(
      ValueError, match=r"key must be a key such as jax.random.key\(0\)"
    ):
      call(not_a_key)


def test_keys_of_both_kinds_pass():
  attack = ddi_jax.pgd(BALL, steps=1, step_size=0.1)
  points = jnp.full((2, 2), 0.5)
  for key in (jax.random.key(0), jax.random.PRNGKey(0)):
    attack(key, lambda x: x.sum(axis=1), points)


def loss_fn(params, inputs, labels):
  return losses.cross_entropy(inputs @ params, labels)


def training_calls():
  """fn(inputs, labels), of what a user trains with; not jitted."""
  p = problem()
  pgd = ddi_jax.pgd(BALL, steps=1, step_size=0.1)
  ordinary = ddi_jax.restart_gradients(loss_fn, pgd, 2)
  msd = candidates.msd([BALL], steps=1, step_sizes=[0.1])
  return {
    "gradients": lambda x, y: ordinary(p.weights, x, y, KEY),
    "pgd": lambda x, y: pgd(KEY, lambda points: loss_fn(p.weights, points, y), x),
    "msd": lambda x, y: msd(KEY, p.logits_fn, x, y),
  }


def evaluation_calls():
  """fn(inputs, labels), of what a user evaluates with."""
  p = problem()
  return {
    "apgd": lambda x, y: attacks.apgd(BALL, steps=1)(KEY, p.logits_fn, x, y),
    "fab": lambda x, y: attacks.fab(BALL, steps=1)(KEY, p.logits_fn, x, y),
    "square": lambda x, y: attacks.square(BALL, queries=1)(KEY, p.logits_fn, x, y),
    "autoattack": lambda x, y: ddi_jax.autoattack(BALL)(KEY, p.logits_fn, x, y),
    "evaluate": lambda x, y: ddi_jax.evaluate(KEY, p.logits_fn, x, y, BALL),
    "curve": lambda x, y: ddi_jax.robustness_curve(
      KEY, p.logits_fn, x, y, ddi_jax.linf, [0.1]
    ),
  }


CALLS = training_calls() | evaluation_calls()


def array_calls():
  """(fn(value), argument): what each public function takes as an array."""
  p = problem()
  x, y, logits = p.inputs, p.labels, p.logits_fn(p.inputs)
  pgd = ddi_jax.pgd(BALL, steps=1, step_size=0.1)
  ordinary = ddi_jax.restart_gradients(loss_fn, pgd, 2)
  sources = {
    "restarts": candidates.restarts(pgd, 2),
    "targeted": candidates.targeted(pgd, 2),
    "msd": candidates.msd([BALL], steps=1, step_sizes=[0.1]),
    "combine": candidates.combine(candidates.restarts(pgd, 1)),
    "warm": candidates.warm_restarts(BALL, x[None] * 0, steps=1, step_size=0.1),
    "spatial": candidates.spatial(1, tries=2),
    "apgd": attacks.apgd(BALL, steps=1),
    "fab": attacks.fab(BALL, steps=1),
    "square": attacks.square(BALL, queries=1),
    "classifier_attack": attacks.classifier_attack(pgd),
    "multi_targeted": attacks.multi_targeted_pgd(BALL, steps=1, step_size=0.1),
  }
  calls = {
    "pgd": (lambda v: pgd(KEY, lambda z: z.sum(axis=1), v), "inputs"),
    "pgd's objective": (lambda v: pgd(KEY, lambda z: v, x), "the value of the obj"),
    "restart_candidates": (
      lambda v: ddi_jax.restart_candidates(pgd, lambda z, _: z.sum(1), v, y, KEY, 2),
      "inputs",
    ),
    "restart_gradients": (lambda v: ordinary(p.weights, v, y, KEY), "inputs"),
    "its labels": (lambda v: ordinary(p.weights, x, v, KEY), "labels"),
    "candidate_gradients": (
      lambda v: ddi_jax.candidate_gradients(loss_fn, p.weights, v, y),
      "candidates",
    ),
    "its loss_fn": (
      lambda v: ddi_jax.candidate_gradients(lambda *_: v, p.weights, x[None], y),
      "the losses of loss_fn",
    ),
    "recomputed_gradients": (
      lambda v: ddi_jax.recomputed_gradients(loss_fn, p.weights, v, y),
      "candidates",
    ),
    "proximal": (
      lambda v: ddi_jax.proximal_danskin_gradient(loss_fn, p.weights, v, y, step=0.1),
      "candidates",
    ),
    "worst_candidate": (lambda v: ddi_jax.worst_candidate(v, x[None, :, 0]), "cand"),
    "its losses": (lambda v: ddi_jax.worst_candidate(x[None], v), "losses"),
    "warm_restarts": (
      lambda v: candidates.warm_restarts(BALL, v, steps=1, step_size=0.1),
      "perturbations",
    ),
    "a user's source": (
      lambda v: candidates.combine(lambda *_: v)(KEY, p.logits_fn, x, y),
      "the candidates of source 0",
    ),
    "temperature": (lambda v: ddi_jax.calibrate_temperature(v, y), "logits"),
    "check_examples": (ddi_jax.check_examples, "inputs"),
    "kl_divergence": (lambda v: losses.kl_divergence(logits, v), "reference_logits"),
    "targeted_dlr": (lambda v: losses.targeted_dlr(logits, y, v), "targets"),
  }
  for ball in (BALL, ddi_jax.l2(0.1), ddi_jax.l1(0.1)):
    calls |= {
      f"{ball.norm}, size": (ball.size, "perturbations"),
      f"{ball.norm}, project": (lambda v, b=ball: b.project(v, x, None), "points"),
      f"{ball.norm}, centers": (lambda v, b=ball: b.project(x, v, None), "centers"),
      f"{ball.norm}, start": (
        lambda v, b=ball: b.random_start(KEY, v, None),
        "centers",
      ),
      f"{ball.norm}, ascent": (
        lambda v, b=ball: b.steepest_ascent(v, x, None),
        "gradients",
      ),
    }
  for name, source in sources.items():
    images = x[:, None, :, None] if name == "spatial" else x
    calls[f"{name}, inputs"] = (
      lambda v, source=source: source(KEY, p.logits_fn, v, y),
      "inputs",
    )
    calls[f"{name}, labels"] = (
      lambda v, source=source, images=images: source(KEY, p.logits_fn, images, v),
      "labels",
    )
  for loss in (losses.cross_entropy, losses.margin, losses.dlr):
    calls[f"{loss.__name__}, logits"] = (lambda v, loss=loss: loss(v, y), "logits")
    calls[f"{loss.__name__}, labels"] = (lambda v, loss=loss: loss(logits, v), "labels")
  return calls


ARRAY_CALLS = array_calls()


@pytest.mark.slow
@pytest.mark.parametrize("name", ARRAY_CALLS)
def test_a_list_in_place_of_an_array_is_refused_by_name(name):
  call, argument = ARRAY_CALLS[name]
  # jax.jit, of calibrate_temperature, refuses strings itself; None is its empty tree.
  others = [] if name == "temperature" else ["x", ([0.5], [0.5])]
  for value in ([[0.5] * 10] * 16, None, *others):
    kind = type(value).__name__
    expected = rf"^{argument}.* must be an array of jax or numpy, got {kind}; jnp.asarr"
    if isinstance(value, tuple) and name in ("pgd's objective", "its loss_fn"):
      expected = "got .*2"  # Of (losses, aux) it says what to do.
    with pytest.raises(ValueError, match=expected):
      call(value)


@pytest.mark.slow
def test_candidates_of_another_shape_are_named():
  p = problem()
  y = p.labels
  for gradients_of in (
    ddi_jax.candidate_gradients,
    ddi_jax.recomputed_gradients,
    functools.partial(ddi_jax.proximal_danskin_gradient, step=0.1),
  ):
    for points in (p.inputs, p.inputs[None, :3], p.inputs[:0, None], p.inputs[0]):
      with pytest.raises(
        ValueError,
        match=r"^candidates must be \[K, 16, \.\.\.\], K >= 1 copies of the ba",
      ):
        gradients_of(loss_fn, p.weights, points, y)
    gradients_of(loss_fn, p.weights, p.inputs[None], y)
    # What is no class of each example is the loss's own affair.
    gradients_of(
      lambda params, x, y: ((x @ params - y[None]) ** 2).sum(1),
      p.weights,
      p.inputs[None],
      jnp.zeros(5),
    )


def test_an_example_without_a_candidate_is_named():
  p = problem()
  valid = np.ones((2, 16), bool)
  valid[:, [3, 7]] = False
  with pytest.raises(
    ValueError, match="got none for example 3, the first of 2 such examples"
  ):
    ddi_jax.proximal_danskin_gradient(
      loss_fn, p.weights, jnp.stack([p.inputs] * 2), p.labels, step=0.1, valid=valid
    )


def test_an_objective_of_the_best_iterate_is_checked_like_another():
  attack = ddi_jax.pgd(BALL, steps=1, step_size=0.1, iterate="best")
  with pytest.raises(ValueError, match=r"objective must return losses \[B\]"):
    attack(KEY, lambda x: (x.sum(axis=1), None), problem().inputs)


@pytest.mark.parametrize("name", CALLS)
def test_inputs_outside_the_box_are_refused(name):
  p, call = problem(), CALLS[name]
  inside = r"inputs must lie inside bounds = \(0, 1\), got values from .*1 / 255"
  with pytest.raises(ValueError, match=inside):
    call(255 * p.inputs, p.labels)
  with pytest.raises(ValueError, match=inside):
    call(p.inputs - 0.5, p.labels)
  with pytest.raises(ValueError, match="inputs must be finite, got values from nan"):
    call(p.inputs.at[0, 0].set(jnp.nan), p.labels)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range_are_refused(name, label):
  p = problem()
  expected = r"labels must be in \[0, 5\), one class per logit, got values from"
  with pytest.raises(ValueError, match=expected):
    CALLS[name](p.inputs, p.labels.at[0].set(label))


@pytest.mark.parametrize("make", [ddi_jax.linf, ddi_jax.l2, ddi_jax.l1])
def test_a_radius_larger_than_the_box_is_refused(make):
  p = problem()
  expected = r"epsilon must be at most the l.* diameter of the box \(0, 1\)"
  for attack in (
    lambda ball: candidates.restarts(ddi_jax.pgd(ball, steps=1, step_size=0.1), 2),
    lambda ball: candidates.msd([ball], steps=1, step_sizes=[0.1]),
    lambda ball: attacks.apgd(ball, steps=1),
    lambda ball: attacks.square(ball, queries=1),
  ):
    with pytest.raises(ValueError, match=expected):
      attack(make(11.0))(KEY, p.logits_fn, p.inputs, p.labels)
  # All of the box, no box, and FAB, which measures distances, are as they were.
  ddi_jax.pgd(ddi_jax.linf(1.0), steps=1, step_size=0.1)
  ddi_jax.pgd(ddi_jax.linf(8.0), steps=1, step_size=0.1, bounds=None)
  attacks.fab(ddi_jax.linf(8.0))


@pytest.mark.parametrize(
  ("model", "message"),
  [
    (lambda x: x[:, :1], r"C >= 2, got C = 1\.  .*jnp.zeros_like\(z\), z\], axis=1"),
    (lambda x: x.argmax(axis=1), r"logits \[16, C\].*got int32 \(16,\).*class ids"),
    (lambda x: (x, x), r"logits \[16, C\].*got tuple"),
    (lambda x: x.astype(int), r"logits \[16, C\].*got int32 \(16, 10\)"),
  ],
)
def test_what_is_no_logits_is_refused(model, message):
  p = problem()
  for call in (
    attacks.apgd(BALL, steps=1),
    attacks.fab(BALL, steps=1),
    attacks.square(BALL, queries=1),
    ddi_jax.autoattack(BALL),
    lambda *arguments: ddi_jax.evaluate(*arguments, BALL),
    lambda *arguments: ddi_jax.robustness_curve(*arguments, ddi_jax.linf, [0.1]),
  ):
    with pytest.raises(ValueError, match=message):
      call(KEY, model, p.inputs, p.labels)


def test_one_logit_says_how_to_make_two():
  with pytest.raises(ValueError, match=r"at least 2 classes, got 1.*zeros_like"):
    losses.cross_entropy(jnp.zeros((2, 1)), jnp.array([0, 1]))


def test_aux_and_has_aux_belong_together():
  p = problem()

  def with_aux(params, inputs, labels):
    return loss_fn(params, inputs, labels), inputs

  attack = ddi_jax.pgd(BALL, steps=1, step_size=0.1)
  for has_aux, fn, message in (
    (False, with_aux, r"got a tuple of 2\.  Pass has_aux=True"),
    (True, loss_fn, r"loss_fn must return a tuple \(losses, aux\), got one value"),
  ):
    for call in (
      lambda: ddi_jax.restart_gradients(fn, attack, 2, has_aux=has_aux)(  # noqa: B023
        p.weights, p.inputs, p.labels, KEY
      ),
      lambda: ddi_jax.candidate_gradients(
        fn,  # noqa: B023
        p.weights,
        p.inputs[None],
        p.labels,
        has_aux=has_aux,  # noqa: B023
      ),
      lambda: ddi_jax.recomputed_gradients(
        fn,  # noqa: B023
        p.weights,
        p.inputs[None],
        p.labels,
        has_aux=has_aux,  # noqa: B023
      ),
      lambda: ddi_jax.proximal_danskin_gradient(
        fn,  # noqa: B023
        p.weights,
        p.inputs[None],
        p.labels,
        step=0.1,
        has_aux=has_aux,  # noqa: B023
      ),
    ):
      with pytest.raises(ValueError, match=message):
        call()
  with pytest.raises(
    ValueError, match=r"objective must return losses \[B\], one array"
  ):
    attack(KEY, lambda x: (x.sum(axis=1), None), p.inputs)


class TestCheckExamples:
  """The check for batches of a jitted step."""

  def test_outside_jit_it_raises(self):
    ddi_jax.check_examples(jnp.ones((2, 3)), jnp.array([0, 4]), num_classes=5)
    ddi_jax.check_examples(jnp.full((2, 3), 255.0), bounds=None)
    with pytest.raises(ValueError, match="inputs must lie inside"):
      ddi_jax.check_examples(jnp.full((2, 3), 255.0))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 5\)"):
      ddi_jax.check_examples(jnp.ones((2, 3)), jnp.array([0, 5]), num_classes=5)
    with pytest.raises(ValueError, match="bounds must be"):
      ddi_jax.check_examples(jnp.ones((2, 3)), bounds=(1.0, 0.0))

  def test_inside_jit_checkify_throws(self):
    @jax.jit
    def step(inputs, labels):
      ddi_jax.check_examples(inputs, labels, num_classes=5)
      return loss_fn(jnp.ones((3, 5)), inputs, labels).mean()

    checked = checkify.checkify(step)
    good, labels = jnp.ones((2, 3)), jnp.array([0, 4])
    error, _ = checked(good, labels)
    error.throw()
    for inputs, wrong, message in (
      (255 * good, labels, r"inside bounds = \(0.0, 1.0\), got values from 255.0"),
      (good.at[0, 0].set(jnp.nan), labels, "must be finite"),
      (good, labels + 1, r"labels must be in \[0, 5\), got values from 1 to 5"),
    ):
      error, _ = checked(inputs, wrong)
      with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


def test_the_two_kinds_of_attack_are_told_apart():
  p = problem()
  pgd = ddi_jax.pgd(BALL, steps=1, step_size=0.1)
  with pytest.raises(ValueError, match=r"attack 'pgd' must be .*classifier_attack"):
    ddi_jax.autoattack(BALL, {"pgd": pgd})
  for call in (
    attacks.classifier_attack,
    lambda attack: ddi_jax.restart_candidates(
      attack, lambda x, y: x.sum(axis=1), p.inputs, p.labels, KEY, 2
    ),
  ):
    for attack in (attacks.apgd(BALL), BALL):
      with pytest.raises(ValueError, match="attack must be a function"):
        call(attack)


def test_integer_losses_are_refused():
  p = problem()

  def wrong(params, inputs, labels):
    return jnp.argmax(inputs @ params, axis=1)

  with pytest.raises(ValueError, match="floating point; got int32"):
    ddi_jax.candidate_gradients(wrong, p.weights, p.inputs[None], p.labels)
  pgd = ddi_jax.pgd(BALL, steps=1, step_size=0.1)
  with pytest.raises(ValueError, match="floating point; got int32"):
    pgd(KEY, lambda x: jnp.argmax(x, axis=1), p.inputs)


def test_old_keys_half_precision_and_no_examples():
  p = problem()
  evaluate = ddi_jax.autoattack(BALL, {"mine": lambda key, fn, x, y: x})
  for dtype in (np.float16, jnp.bfloat16):
    inputs = np.asarray(p.inputs).astype(dtype)
    result = evaluate(jax.random.PRNGKey(0), p.logits_fn, inputs, p.labels)
    assert result.adversarial.dtype == np.float32
  with pytest.raises(ValueError, match=r"N >= 1 examples, got shape \(0, 10\)"):
    evaluate(KEY, p.logits_fn, p.inputs[:0], p.labels[:0])
  with pytest.raises(ValueError, match=r"N >= 1 examples, got shape \(0, 10\)"):
    attacks.apgd(BALL)(KEY, p.logits_fn, p.inputs[:0], p.labels[:0])
  with pytest.raises(ValueError, match=r"a single key, got keys of shape \(3,\)"):
    evaluate(jax.random.split(KEY, 3), p.logits_fn, p.inputs, p.labels)


def test_slips_of_a_call_are_named():
  p = problem()
  ball = ddi_jax.linf(0.1)
  curve = functools.partial(
    ddi_jax.robustness_curve, KEY, p.logits_fn, p.inputs, p.labels
  )
  for call, message in (
    (lambda: curve(ball, [0.1]), "make_threat_model must be a function"),
    (lambda: curve(ddi_jax.linf, 0.1), "epsilons must be a list of numbers, got 0.1"),
    (lambda: curve(ddi_jax.linf, [0.1], attacks="square"), "must be a list of names"),
    (lambda: ddi_jax.autoattack(ball, "square"), "or a list of attacks' names"),
    (lambda: ddi_jax.autoattack(ball, None), "must be a list of names"),
    (lambda: candidates.r_fgsm(ball, 2), "epsilon must be a finite number > 0"),
    (lambda: candidates.msd(ball, steps=1, step_sizes=[1]), "must be lists"),
    (lambda: candidates.combine([1]), "as arguments, .* got list as number 0"),
    (
      lambda: ddi_jax.check_examples(p.inputs, p.labels * 1.0, num_classes=5),
      "integers",
    ),
    (lambda: ddi_jax.pgd(ball, steps=jnp.int32(2), step_size=1), "Pass int"),
  ):
    with pytest.raises(ValueError, match=message):
      call()


def test_bounds_of_jax_scalars_work_under_jit():
  p = problem()
  bounds = (jnp.float32(0), jnp.float32(1))
  attack = ddi_jax.pgd(BALL, steps=1, step_size=0.1, bounds=bounds)
  found = jax.jit(lambda x: attack(KEY, lambda z: z.sum(axis=1), x))(p.inputs)
  plain = ddi_jax.pgd(BALL, steps=1, step_size=0.1)
  np.testing.assert_allclose(found, plain(KEY, lambda z: z.sum(axis=1), p.inputs))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, np.array(2), None])
def test_other_counts_are_integers_too(value):
  with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
    curve(batch_size=value)
  if value is not None:
    with pytest.raises(ValueError, match="num_classes must be None or an integer >= 1"):
      ddi_jax.check_examples(jnp.ones((2, 3)), jnp.array([7, 8]), num_classes=value)
  if value != 0:
    with pytest.raises(ValueError, match="successes must be an integer >= 0"):
      ddi_jax.wilson_interval(value, 3)


def test_settings_that_a_program_is_built_from_are_not_traced():
  for call in (
    lambda v: ddi_jax.l1(0.1, top_fraction=v).epsilon,
    lambda v: attacks.square(BALL, p_init=v) and 0.0,
  ):
    with pytest.raises(ValueError, match="known when the program is traced"):
      jax.jit(call)(0.5)


def test_the_check_of_a_model_checks_its_data():
  def check(**changes):
    data = {"inputs": jnp.full((2, 4), 0.5), "labels": jnp.array([0, 1])}
    return attacks.check_model(lambda x: x, **data | changes)

  for labels, message in (
    (jnp.array([0, 9]), r"labels must be in \[0, 4\)"),
    (jnp.array([0, 1, 2]), r"labels must be integers of shape \(2,\)"),
  ):
    with pytest.raises(ValueError, match=message):
      check(labels=labels)
  with pytest.raises(ValueError, match="inputs must be finite"):
    check(inputs=jnp.full((2, 4), jnp.nan))
  with pytest.raises(ValueError, match=r"got uint8.  Scale images in 0..255"):
    check(inputs=jnp.ones((2, 4), jnp.uint8))
  for bounds in ((1, 0), (0, 0), (jnp.nan, 1.0), "ab", 1.0, (None, 1.0)):
    with pytest.raises(ValueError, match="bounds must be None or two numbers"):
      check(bounds=bounds)


def test_what_is_no_model_is_named():
  inputs, labels = jnp.full((2, 4), 0.5), jnp.array([0, 1])
  for call in (
    lambda: ddi_jax.evaluate(KEY, inputs, inputs, labels, BALL),
    lambda: attacks.apgd(BALL, steps=1)(KEY, 1.0, inputs, labels),
    lambda: attacks.check_model({"w": 1}, inputs, labels),
  ):
    with pytest.raises(ValueError, match=r"logits_fn must be a function of \(inputs\)"):
      call()


def test_gradients_and_their_info_are_told_apart():
  params, inputs, labels = jnp.ones(3), jnp.ones((2, 3)) / 2, jnp.zeros(2)
  both = ddi_jax.candidate_gradients(
    lambda p, x, y: (x @ p - y) ** 2, params, inputs[None], labels
  )
  direction = ddi_jax.danskin_direction()
  with pytest.raises(ValueError, match="gradients, info = gradients_fn"):
    direction.update(both, direction.init(params), params)


@pytest.mark.parametrize("kind", [list, tuple])
def test_losses_in_a_list_or_with_too_much_beside_them(kind):
  def loss_fn(params, x, y):
    return kind([x @ params, y, 0][: 2 if kind is list else 3])

  with pytest.raises(ValueError, match=f"{kind.__name__} of [23]"):
    ddi_jax.candidate_gradients(
      loss_fn, jnp.ones(3), jnp.ones((1, 2, 3)), jnp.zeros(2), has_aux=True
    )


def test_a_key_for_random_losses_is_asked_for():
  gradients_fn = ddi_jax.restart_gradients(
    lambda p, x, y, key: (x @ p - y) ** 2,
    ddi_jax.pgd(BALL, steps=1, step_size=0.1),
    2,
    loss_keys="shared",
  )
  with pytest.raises(ValueError, match=r"key must be a key such as jax.random.key"):
    gradients_fn(jnp.ones(3), jnp.ones((2, 3)) / 2, jnp.zeros(2), 0)
