"""Time of one DDi training step against K PGD steps, for every loop form.

python benchmarks/step.py --width=16 --batch_size=64 --num_restarts=4

Prints a Markdown table.  The forms are timed in turn, round after round, so that a busy
machine slows all of them; reported is the median.  With --convolution=lax the model
uses `jax.lax.conv_general_dilated`, as a user's own model would.
"""

import importlib.metadata
import os
import platform
import statistics
import time

from absl import app, flags
import jax
import numpy as np

from ddi_jax import models, training
from ddi_jax.models import layers
from ddi_jax.training import step as step_lib
from ddi_jax.training.config import model_settings

_WIDTH = flags.DEFINE_integer("width", 16, "Channels of ResNet-18's stem.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images.")
_NUM_RESTARTS = flags.DEFINE_integer("num_restarts", 4, "K.")
_STEPS = flags.DEFINE_integer("steps", 7, "Steps of the attack.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed rounds after one of warm-up.")
_FORMS = flags.DEFINE_list(
  "forms", ["auto", "loop", "merge", "unroll", "vmap"], "Loop forms to time."
)
_CONVOLUTION = flags.DEFINE_enum("convolution", "ddi_jax", ["ddi_jax", "lax"], "Whose.")

# Form -> the three loops of a step.
_LOOPS = {
  "auto": {},
  "loop": {"gradients": "loop", "restarts": "loop", "steps": "loop"},
  "merge": {"gradients": "loop", "restarts": "merge", "steps": "loop"},
  "unroll": {"gradients": "unroll", "restarts": "unroll", "steps": "unroll"},
  "vmap": {"gradients": "vmap", "restarts": "vmap", "steps": "loop"},
}


class _Timed:
  """A compiled training step with its own state."""

  def __init__(self, method, loops, images, labels):
    config = training.default_config()
    config.method = method
    config.num_restarts = _NUM_RESTARTS.value
    config.model.name = "resnet18"
    config.model.width = _WIDTH.value
    config.model.activation = "celu"
    config.model.normalization = "group"
    config.attack.epsilon = 0.031
    config.attack.steps = _STEPS.value
    config.loops.update(loops)
    model = models.create_model(
      "resnet18",
      image_shape=images.shape[1:],
      num_classes=10,
      mean=(0.5,) * 3,
      std=(0.25,) * 3,
      settings=model_settings(config),
      seed=0,
    )
    apply, params, model_state = models.functional(model)
    schedule = step_lib.create_schedule(config, 1000)
    optimizer = step_lib.create_optimizer(config, schedule)
    step = step_lib.create_train_step(
      config, apply, optimizer, schedule, warmup_steps=1, max_value=255
    )
    self._state = step_lib.create_train_state(params, model_state, optimizer)
    self._batch = (images, labels)
    began = time.perf_counter()
    self._step = step.lower(self._state, images, labels).compile()
    self.compile_seconds = time.perf_counter() - began
    self.seconds = []

  def run(self):
    began = time.perf_counter()
    self._state, metrics = self._step(self._state, *self._batch)
    jax.block_until_ready((self._state, metrics))
    self.seconds.append(time.perf_counter() - began)

  @property
  def median(self):
    return statistics.median(self.seconds[1:])


def main(_):
  """Times and prints."""
  if _CONVOLUTION.value == "lax":
    layers.conv_general_dilated = jax.lax.conv_general_dilated
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (_BATCH_SIZE.value, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, _BATCH_SIZE.value).astype(np.int32)
  versions = " ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "jaxlib"))
  print(
    f"ResNet-18 (CELU, GroupNorm), width {_WIDTH.value}, batch {_BATCH_SIZE.value}, "
    f"K = {_NUM_RESTARTS.value}, PGD-{_STEPS.value}, {_CONVOLUTION.value} convolution; "
    f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}, "
    f"{versions}, {time.strftime('%Y-%m-%d')}; median of {_REPEATS.value}.\n",
    flush=True,
  )
  single = {form: _LOOPS[form] for form in _FORMS.value}
  pgd = {
    form: _Timed("pgd", loops, images, labels)
    for form, loops in single.items()
    if form in ("auto", "loop", "unroll")
  }
  ddi = {
    form: _Timed("danskin", loops, images, labels) for form, loops in single.items()
  }
  for _ in range(_REPEATS.value + 1):
    for timed in (*pgd.values(), *ddi.values()):
      timed.run()
  reference = _NUM_RESTARTS.value * min(timed.median for timed in pgd.values())
  best = min(timed.median for timed in ddi.values())
  print("| loop form | DDi step (s) | / best form | / (K PGD steps) | compile (s) |")
  print("|---|---|---|---|---|")
  for form, timed in ddi.items():
    print(
      f"| {form} | {timed.median:.2f} | {timed.median / best:.2f} | "
      f"{timed.median / reference:.2f} | {timed.compile_seconds:.0f} |"
    )
  print(
    f"\nK times one PGD step: {reference:.2f} s (the fastest of "
    + ", ".join(f"{form} {timed.median:.2f} s" for form, timed in pgd.items())
    + " a step)."
  )


if __name__ == "__main__":
  app.run(main)
