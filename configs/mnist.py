from ddi_jax import training


def get_config(variant: str = "full"):
  config = training.default_config()
  config.data.name = "mnist"
  config.data.validation_size = 10_000
  config.attack.epsilon = 0.3
  config.attack.steps = 10
  config.attack.warmup_epochs = 2.0
  config.attack.step_size = 0.075
  config.model.strides = (2, 2)
  config.model.hidden = 100
  config.num_epochs = 5.0
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = "cosine"
  config.evaluation.every_epochs = 1.0
  config.evaluation.validation_limit = 1000
  return config
