"""The training program in a process of its own, on a run of seconds."""

from pathlib import Path

from forked_programs import run_program
import jax
import orbax.checkpoint as ocp

from ddi_jax import training

ROOT = Path(__file__).parents[2]
SETTINGS = {
  "batch_size": 16,
  "num_restarts": 2,
  "num_epochs": 3.0,
  "attack.steps": 2,
  "data.limit": 64,
  "evaluation.steps": 2,
}
CONVOLUTIONAL = {
  "model.width": 2,
  "model.hidden": 8,
  "model.normalization": "batch",
}
MLP = {"model.name": "mlp", "model.layers": (8,)}


def small_config(**changes):
  config = training.default_config()
  config.update_from_flattened_dict(SETTINGS | CONVOLUTIONAL | changes)
  return training.drop_unused(config, keep=changes)


def command(
  workdir,
  *extra,
  program=("launch.py",),
  model=CONVOLUTIONAL,
  **changes,
):
  settings = SETTINGS | model | changes
  flags = [f"--config.{name}={value}" for name, value in settings.items()]
  return [
    str(ROOT / program[0]),
    *program[1:],
    f"--config={ROOT / 'configs/digits.py'}",
    f"--workdir={workdir}",
    *flags,
    *extra,
  ]


def launch(workdir, *extra, fresh=False, **options):
  return run_program(command(workdir, *extra, **options), workdir.parent, fresh=fresh)


def parameters(workdir):
  """All arrays of the latest checkpoint, read without the program."""
  directory = (workdir / "checkpoints").absolute()
  with ocp.CheckpointManager(directory) as manager:
    folder = directory / str(manager.latest_step()) / "state"
  checkpointer = ocp.StandardCheckpointer()
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return checkpointer.restore(
    folder,
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
      checkpointer.metadata(folder).item_metadata.tree,
    ),
  )
