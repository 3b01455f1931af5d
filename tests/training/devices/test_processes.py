"""Training by several real processes that speak over loopback."""

import json
import os
import signal
import socket

from forked_programs import Program
import jax
import numpy as np
import program
from program import command, parameters
import pytest

from ddi_jax import models, training
from ddi_jax.training.devices import processes
from ddi_jax.training.storage import logs

WORKER = "tests/training/devices/host_worker.py"
DEVICES = 4
STEPS_PER_EPOCH = program.SETTINGS["data.limit"] // program.SETTINGS["batch_size"]
SETTINGS = {
  "evaluation.batch_size": 32,
  "evaluation.every_epochs": 1.0,
  "mesh.restart": 2,
  "mesh.data": 2,
}


def free_port():
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    return server.getsockname()[1]


def start(
  folder, num_processes, flags_of=lambda _: [], env_of=lambda _: {}, fresh=False
):
  """Processes that share `DEVICES` virtual devices and the workdir `folder / run`."""
  environment = os.environ | {"NUM_DEVICES": str(DEVICES // num_processes)}
  return [
    Program(
      command(
        folder / "run",
        *flags_of(process),
        program=(WORKER, str(folder / f"labels{process}.json")),
        **SETTINGS,
      ),
      folder,
      environment | env_of(process),
      fresh=fresh,
    )
    for process in range(num_processes)
  ]


def finish(processes, status=0):
  """Their standard outputs."""
  try:
    for process in processes:
      process.wait(timeout=200)
  finally:
    for process in processes:
      process.kill()
  for process in processes:
    assert process.returncode == status, process.stderr
  return [process.stdout for process in processes]


def signalled(lost, name, at):
  """Process `lost` gets a signal when it asks for batch `at`, counted from 0."""

  def environment(process):
    return {"SIGNAL": name, "SIGNAL_AT": str(at)} if process == lost else {}

  return environment


def explicit_flags(num_processes):
  port = free_port()
  return lambda process: [
    "--distributed",
    f"--coordinator=127.0.0.1:{port}",
    f"--num_processes={num_processes}",
    f"--process_id={process}",
  ]


def slurm_environment(num_processes):
  """As `srun` sets it; jax makes the port of the job's number."""
  job = next(job for job in range(os.getpid(), os.getpid() + 100) if is_free(job))
  return lambda process: {
    "SLURM_JOB_ID": str(job),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": str(num_processes),
    "SLURM_PROCID": str(process),
    "SLURM_LOCALID": str(process),
  }


def is_free(job):
  with socket.socket() as server:
    return server.connect_ex(("127.0.0.1", 2**16 - 2**12 + job % 2**12)) != 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """One process with all devices."""
  folder = tmp_path_factory.mktemp("alone")
  finish(start(folder, 1))
  return folder


def assert_same_parameters(folder, alone):
  one, other = (
    {part: saved[part] for part in ("params", "model_state")}
    for saved in (parameters(folder / "run"), parameters(alone / "run"))
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, other
  )


def check_same_run(folder, outputs, alone, num_shares):
  """One result, one writer, and each process's own share of the data."""
  assert_same_parameters(folder, alone)
  records, expected = (
    {(r.pop("step"), r.pop("split")): r for r in logs.read_metrics(path / "run")}
    for path in (folder, alone)
  )
  assert records.keys() == expected.keys()
  for key, record in records.items():
    for name, value in record.items():
      np.testing.assert_allclose(
        value, expected[key][name], rtol=1e-3, atol=1e-5, err_msg=f"{key} {name}"
      )
  assert "this run, best on validation" in outputs[0]
  # The library that connects them prints on all.
  assert not any("danskin" in output for output in outputs[1:])
  assert len(list((folder / "run" / "tensorboard").iterdir())) == 1
  model = training.load_model(folder / "run", "last")  # On one device.
  jax.tree.map(
    np.testing.assert_array_equal,
    models.functional(model)[1],
    parameters(folder / "run")["params"],
  )
  read = [
    json.loads((folder / f"labels{process}.json").read_text())
    for process in range(len(outputs))
  ]
  whole = json.loads((alone / "labels0.json").read_text())
  size = program.SETTINGS["batch_size"] // num_shares
  for process, batches in enumerate(read):
    start_of_share = process * num_shares // len(outputs) * size
    assert batches == [batch[start_of_share : start_of_share + size] for batch in whole]


@pytest.mark.slow
def test_four_processes_found_in_the_environment_with_parameters_split(alone, tmp_path):
  """Two processes read the same half of each batch, for different restarts."""
  flags = ["--distributed", "--config.mesh.fsdp=True"]
  processes = start(tmp_path, 4, lambda _: flags, slurm_environment(4))
  check_same_run(tmp_path, finish(processes), alone, num_shares=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lost_processes_end_the_others_and_any_number_resumes(alone, tmp_path, capsys):
  """Two processes lose the first, then the second; then one of them is told to stop."""
  for lost in (0, 1):
    env = signalled(lost, "SIGKILL", at=STEPS_PER_EPOCH + 1)
    processes = start(tmp_path, 2, explicit_flags(2), env)
    left = processes[1 - lost]
    try:
      processes[lost].wait(timeout=200)
      assert processes[lost].returncode == -signal.SIGKILL
      left.wait(timeout=60)
    finally:
      for process in processes:
        process.kill()
    assert left.returncode == 1
    assert "another process has ended" in left.stderr
    output = processes[0].stdout + processes[1].stdout
    assert f"steps {lost * STEPS_PER_EPOCH} to" in output
  env = signalled(1, "SIGTERM", at=1)
  # Each with its own hash seed, as on two hosts.
  processes = start(tmp_path, 2, explicit_flags(2), env, fresh=True)
  outputs = finish(processes, 128 + signal.SIGTERM)
  assert f"steps {2 * STEPS_PER_EPOCH} to" in outputs[0]
  # Resumed by one process with all devices, and then by one of one device.
  (output,) = finish(
    start(tmp_path, 1, env_of=signalled(0, "SIGTERM", at=0)), 128 + signal.SIGTERM
  )
  assert f"steps {2 * STEPS_PER_EPOCH + 2} to" in output
  config = training.load_config(tmp_path / "run")
  config.mesh.restart = config.mesh.data = 1
  training.train(config, tmp_path / "run")
  assert f"steps {2 * STEPS_PER_EPOCH + 3} to" in capsys.readouterr().out
  assert_same_parameters(tmp_path, alone)


@pytest.mark.slow
def test_what_one_process_cannot_do_stops_all(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.tex").write_text("mine")
  processes = start(tmp_path, 2, explicit_flags(2))
  errors = [process.wait(timeout=300).stderr for process in processes]
  assert all(process.returncode == 1 for process in processes)
  assert "holds something other than a run" in errors[0]
  assert "another process has stopped" in errors[1]


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"coordinator": "a:1"}, "without --num_processes and --process_id"),
    (
      {"coordinator": "here", "num_processes": 2, "process_id": 1},
      "--coordinator must be HOST:PORT, got 'here'",
    ),
    (
      {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
      r"in \[0, num_processes\), got 2 of 2",
    ),
  ],
)
def test_impossible_settings_are_refused(settings, message):
  with pytest.raises(training.ConfigError, match=message):
    processes.initialize(**settings)


def test_a_failure_of_jax_is_the_others_only_where_there_are_others():
  with pytest.raises(jax.errors.JaxRuntimeError), processes.connection_errors():
    raise jax.errors.JaxRuntimeError("out of memory")
  with pytest.raises(KeyError), processes.leaving_at_once():
    raise KeyError


def test_one_process_agrees_with_itself():
  assert processes.is_writer()
  assert [processes.any_process(flag) for flag in (True, False)] == [True, False]
  assert processes.together(lambda: 3) == 3
  with pytest.raises(ZeroDivisionError):
    processes.together(lambda: 1 / 0)
