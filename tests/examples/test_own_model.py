"""The script for an own network: it learns, and what it saves comes back."""

import importlib.util
from pathlib import Path

from flax import nnx
import jax
import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "examples" / "own_model.py"


def load_example():
  spec = importlib.util.spec_from_file_location("own_model", PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
def test_trains_saves_and_restores(tmp_path, capsys):
  example = load_example()
  (images, labels), (test_images, test_labels) = example.load()
  network = example.Network(nnx.Rngs(0))
  with jax.numpy_rank_promotion("allow"):  # flax adds biases so.
    example.train(network, images, labels, epochs=2)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[1] < losses[0]
    example.save(network, tmp_path / "saved")
    restored = example.restore(tmp_path / "saved")
    network.eval()
    restored.eval()
    logits = network(test_images[:50])
    np.testing.assert_array_equal(restored(test_images[:50]), logits)
    assert np.mean(np.argmax(logits, axis=1) == test_labels[:50]) > 0.7
    assert np.any(restored.norm.mean[...])  # The running statistics, too.
