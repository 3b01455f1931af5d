"""A training run that is interrupted once and then resumed."""

from ddi_jax import training


def train_in_parts(config, workdir, monkeypatch, stop_at=3):
  """The summary of a run that stops when it asks for the `stop_at`-th time, resumed."""
  calls = []

  class StopsOnce(training.run.interruption.Interruption):
    def __call__(self):
      calls.append(1)
      return len(calls) == stop_at

  with monkeypatch.context() as patched:
    patched.setattr(training.run.program, "Interruption", StopsOnce)
    assert training.train(config, workdir) is None
  return training.train(config, workdir)
