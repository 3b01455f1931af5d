"""A training step of a tiny network for 8x8 images, built as the program builds it."""

from ddi_jax import models
from ddi_jax.training import step as step_lib
from ddi_jax.training import warm
from ddi_jax.training.config import model_settings


def build(config, *, num_images=6, steps_per_epoch=10):
  """The network, the state with a memory of so many images, and the step."""
  model = models.create_model(
    config.model.name,
    image_shape=(8, 8, 1),
    num_classes=10,
    mean=(0.3,),
    std=(0.4,),
    settings=model_settings(config),
    seed=0,
  )
  apply, params, model_state = models.functional(model)
  schedule = step_lib.create_schedule(config, 10)
  optimizer = step_lib.create_optimizer(config, schedule)
  state = step_lib.create_train_state(params, model_state, optimizer)
  state = state._replace(moves=warm.create_moves(config, num_images, (8, 8, 1)))
  step = step_lib.create_train_step(
    config,
    apply,
    optimizer,
    schedule,
    steps_per_epoch=steps_per_epoch,
    max_value=16,
  )
  return apply, state, step
