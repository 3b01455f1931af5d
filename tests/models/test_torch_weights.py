"""Weights to and from PyTorch: names, shapes, and, where PyTorch is, equal networks."""

import functools
import importlib.util
import os
from pathlib import Path
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ddi_jax import models
from ddi_jax.models import torch_weights

IMAGE_SHAPE, MEAN, STD = (8, 8, 3), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
WIDE = {"depth": 10, "widening": 2, "width": 4}
preact_resnet18 = functools.partial(models.ResNet18, preactivation=True)
NETWORKS = {
  "resnet18": (models.ResNet18, {"width": 4}),
  "preact": (preact_resnet18, {"width": 4}),
  "preact-plain": (
    preact_resnet18,
    {"width": 4, "activated_shortcut": False, "final_norm": False},
  ),
  "group": (models.ResNet18, {"width": 4, "normalization": "group", "norm_groups": 2}),
  "none": (preact_resnet18, {"width": 4, "normalization": "none"}),
  "wide": (models.WideResNet, WIDE),
  "wide-same": (models.WideResNet, {**WIDE, "padding": "same", "activation": "silu"}),
  "small": (
    models.SmallConvNet,
    {"width": 2, "hidden": 5, "strides": (1, 2), "normalization": "batch"},
  ),
}


def create(kind, seed=0, image_shape=IMAGE_SHAPE, **settings):
  """A model whose every array is random (and nothing has to be compiled for it)."""
  build, defaults = NETWORKS[kind]
  settings = {**defaults, **settings}
  graph, state = nnx.split(
    nnx.eval_shape(
      lambda: build(image_shape, 10, MEAN, STD, rngs=nnx.Rngs(0), **settings)
    )
  )
  rng = np.random.default_rng(seed)

  def draw(leaf):
    low = 0.1 if len(leaf.shape) == 1 else -0.2  # Variances are positive.
    return jnp.asarray(rng.uniform(low, 0.3, leaf.shape), leaf.dtype)

  return nnx.merge(graph, jax.tree.map(draw, state))


def arrays(model):
  return jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))


BLOCK_18 = {
  "conv1.weight": (8, 4, 3, 3),
  "conv2.weight": (8, 8, 3, 3),
  "shortcut.0.weight": (8, 4, 1, 1),
}
EXPECTED = {
  # What PyTorch definitions in wide use call them, with the shapes that width 4 gives.
  "resnet18": (
    20 + 20 * 5 + 2,
    {
      "conv1.weight": (4, 3, 3, 3),
      "bn1.running_mean": (4,),
      "layer1.0.bn1.weight": (4,),
      "layer1.1.bn2.num_batches_tracked": (),
      "layer2.0.shortcut.1.running_var": (8,),
      "layer4.1.conv2.weight": (32, 32, 3, 3),
      "linear.weight": (10, 32),
      "linear.bias": (10,),
      **{f"layer2.0.{name}": shape for name, shape in BLOCK_18.items()},
    },
  ),
  "preact": (
    20 + 17 * 5 + 2,
    {
      "conv1.weight": (4, 3, 3, 3),
      "layer2.0.bn1.weight": (4,),
      "layer2.0.bn2.weight": (8,),
      "bn.running_var": (32,),
      "linear.weight": (10, 32),
      **{f"layer2.0.{name}": shape for name, shape in BLOCK_18.items()},
    },
  ),
  "preact-plain": (20 + 16 * 5 + 2, {"layer4.0.shortcut.0.weight": (32, 16, 1, 1)}),
  "wide": (
    10 + 7 * 5 + 2,
    {
      "conv1.weight": (4, 3, 3, 3),
      "block1.layer.0.bn1.weight": (4,),
      "block1.layer.0.convShortcut.weight": (8, 4, 1, 1),
      "block3.layer.0.conv2.weight": (32, 32, 3, 3),
      "bn1.running_mean": (32,),
      "fc.weight": (10, 32),
    },
  ),
  "wide-same": (
    10 + 7 * 5 + 2 + 2,
    {
      "mean": (3, 1, 1),
      "std": (3, 1, 1),
      "init_conv.weight": (4, 3, 3, 3),
      "layer.0.block.0.batchnorm_0.weight": (4,),
      "layer.2.block.0.conv_1.weight": (32, 32, 3, 3),
      "layer.1.block.0.shortcut.weight": (16, 8, 1, 1),
      "batchnorm.running_mean": (32,),
      "logits.weight": (10, 32),
    },
  ),
  "group": (20 + 20 * 2 + 2, {"layer2.0.shortcut.1.bias": (8,)}),
  "none": (20 * 2 + 2, {"layer2.0.shortcut.0.bias": (8,)}),
  "small": (
    2 + 2 * 5 + 4,
    {
      "conv2.weight": (4, 2, 3, 3),
      "norm1.running_var": (2,),
      "hidden.weight": (5, 4 * 4 * 4),
      "logits.bias": (10,),
    },
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_names_and_shapes(kind):
  state = torch_weights.to_torch_state_dict(create(kind))
  count, expected = EXPECTED[kind]
  assert len(state) == count
  assert {name: state[name].shape for name in expected} == expected


def test_every_block_of_a_deep_network_has_its_name():
  state = torch_weights.to_torch_state_dict(create("wide", depth=16, widening=1))
  blocks = {
    match[0] for name in state if (match := re.match(r"block\d\.layer\.\d", name))
  }
  assert blocks == {f"block{s}.layer.{i}" for s in (1, 2, 3) for i in (0, 1)}
  assert not any("block1" in name and "convShortcut" in name for name in state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_round_trip_through_a_file(kind, tmp_path):
  model, other = create(kind), create(kind, seed=1)
  assert not any(map(np.array_equal, arrays(model), arrays(other)))
  path = tmp_path / "weights.safetensors"
  torch_weights.save_safetensors(path, model)
  torch_weights.load_safetensors(path, other)
  jax.tree.map(np.testing.assert_array_equal, arrays(model), arrays(other))


def test_layouts():
  state = torch_weights.to_torch_state_dict(model := create("small"))
  kernel = np.asarray(model.conv2.kernel[...])
  assert state["conv2.weight"][3, 1, 0, 2] == kernel[0, 2, 1, 3]
  hidden = np.asarray(model.hidden.kernel[...])
  # Channel 3, row 1, column 2 of a 4 x 4 image with 4 channels.
  assert state["hidden.weight"][0, 3 * 16 + 1 * 4 + 2] == hidden[(1 * 4 + 2) * 4 + 3, 0]
  assert state["logits.weight"][7, 2] == np.asarray(model.logits.kernel[...])[2, 7]
  assert all(array.flags.c_contiguous for array in state.values())


@pytest.mark.slow
@pytest.mark.parametrize(
  "wrap",
  [
    lambda s: {f"module.{k}": v for k, v in s.items()},
    lambda s: {f"module.model.{k}": v for k, v in s.items()},
    lambda s: {
      **{f"model.{k}": v for k, v in s.items()},
      "normalize.mean": np.reshape(MEAN, (1, 3, 1, 1)),
      "normalize.std": np.reshape(STD, (1, 3, 1, 1)),
    },
    lambda s: {**s, "mu": np.array(MEAN, np.float32), "sigma": np.array(STD)},
    lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    lambda s: {**s, "sub_block1.layer.0.conv1.weight": np.zeros(1)},
  ],
)
def test_what_published_files_add(wrap):
  model, other = create("wide"), create("wide", seed=1)
  state = wrap(torch_weights.to_torch_state_dict(model))
  torch_weights.load_torch_state_dict(other, state)
  jax.tree.map(np.testing.assert_array_equal, arrays(model), arrays(other))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"fc.bias": None}, r"WideResNet: missing fc\.bias, unexpected none"),
    ({"fc.extra": np.zeros(1)}, r"missing none, unexpected fc\.extra"),
    (
      {"fc.weight": np.zeros((100, 32))},
      r"fc\.weight must have shape \(10, 32\), got \(100, 32\)",
    ),
    ({"fc.bias": np.zeros(10, int)}, r"fc\.bias must be floating point, got int64"),
    ({"mu": np.zeros(3)}, r"input has mu \[0\.0, 0\.0, 0\.0\], this one has \[0\.5,"),
    ({"sigma": np.ones(1)}, r"sigma \[1\.0\].* create it with that std"),
  ],
)
def test_wrong_states_change_nothing(change, message):
  model = create("wide")
  before = arrays(model)
  state = torch_weights.to_torch_state_dict(create("wide", seed=1)) | change
  state = {name: value for name, value in state.items() if value is not None}
  with pytest.raises(ValueError, match=message):
    torch_weights.load_torch_state_dict(model, state)
  jax.tree.map(np.testing.assert_array_equal, arrays(model), before)


def test_another_network_s_weights_are_refused_in_one_line():
  state = torch_weights.to_torch_state_dict(create("wide"))
  with pytest.raises(
    ValueError, match=r"missing bn\.bias, .* and \d+ more, unexpected"
  ):
    torch_weights.load_torch_state_dict(create("preact"), state)
  with pytest.raises(ValueError, match="a ResNet18, WideResNet or SmallConvNet"):
    torch_weights.to_torch_state_dict(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def test_files_remember_the_standardisation(tmp_path):
  path = tmp_path / "weights.safetensors"
  model = create("small")
  torch_weights.save_safetensors(path, model)
  model.standardize.mean = (0.0, 0.0, 0.0)
  with pytest.raises(ValueError, match=r"mean \[0\.5, 0\.4, 0\.3\], this one"):
    torch_weights.load_safetensors(path, model)


def test_a_file_that_is_no_safetensors(tmp_path):
  path = tmp_path / "weights.pt"
  path.write_bytes(b"PK not this")
  with pytest.raises(ValueError, match=r"weights\.pt is no safetensors file"):
    torch_weights.load_safetensors(path, create("small"))
  with pytest.raises(FileNotFoundError):
    torch_weights.load_safetensors(tmp_path / "none", create("small"))


WEIGHT = "conv1.weight"
SHAPE = (2, 3, 3, 3)


@pytest.mark.parametrize(
  ("changes", "metadata", "message"),
  [
    ({WEIGHT: np.zeros((1, 3, 3, 3))}, {}, rf"{WEIGHT} must have shape \(2, 3, 3, 3\)"),
    ({WEIGHT: np.zeros(SHAPE, int)}, {}, f"{WEIGHT} must be floating point, got int64"),
    ({WEIGHT: np.full(SHAPE, np.nan)}, {}, f"{WEIGHT} must hold finite numbers of fl"),
    ({WEIGHT: np.full(SHAPE, 1e300)}, {}, f"{WEIGHT} must hold finite numbers of fl"),
    ({"more": np.zeros(1)}, {}, "missing none, unexpected more"),
    ({"mean": np.zeros(3)}, {}, r"has mean \[0.0, 0.0, 0.0\]"),
    ({}, {"ddi_jax.mean": "{"}, "metadata's ddi_jax.mean must be numbers in JSON"),
    ({}, {"ddi_jax.mean": '{"a": 1}'}, "metadata's ddi_jax.mean must be numbers"),
    ({}, {"ddi_jax.std": '["a"]'}, "metadata's ddi_jax.std must be numbers in JSON"),
    ({}, {"ddi_jax.std": "[[1], [1, 2]]"}, "metadata's ddi_jax.std must be numbers"),
    ({}, {"ddi_jax.std": "[" * 100_000}, "metadata's ddi_jax.std must be numbers in"),
  ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, changes, metadata, message):
  model = create("small")
  before = arrays(model)
  path = tmp_path / "weights.safetensors"
  state = torch_weights.to_torch_state_dict(model) | changes
  safetensors.numpy.save_file(state, path, metadata)
  with pytest.raises(ValueError, match=rf"weights\.safetensors: .*{message}"):
    torch_weights.load_safetensors(path, model)
  jax.tree.map(np.testing.assert_array_equal, arrays(model), before)


@pytest.mark.parametrize(
  ("header", "data"),
  [
    (b"", b""),
    (b"{}", b"too much"),
    (b'{"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}', b"0"),
    (b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"0000"),
    (b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', b"0000"),
  ],
)
def test_a_forged_file_is_no_safetensors(tmp_path, header, data):
  path = tmp_path / "weights.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + data)
  with pytest.raises(ValueError, match="is no safetensors file"):
    torch_weights.load_safetensors(path, create("small"))
  with pytest.raises(ValueError, match="is no safetensors file"):
    torch_weights.load_safetensors(tmp_path, create("small"))


def test_who_may_read_a_file_of_weights_is_the_user_s_choice(tmp_path):
  before = os.umask(0o027)
  try:
    torch_weights.save_safetensors(tmp_path / "weights.safetensors", create("small"))
  finally:
    os.umask(before)
  (path,) = tmp_path.iterdir()
  assert path.stat().st_mode & 0o777 == 0o640


def peer_networks():
  """benchmarks/peers/networks.py; skips without PyTorch."""
  pytest.importorskip("torch")
  path = Path(__file__).parents[2] / "benchmarks" / "peers" / "networks.py"
  spec = importlib.util.spec_from_file_location("networks", path)
  networks = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(networks)
  return networks


def in_torch(networks, kind, image_shape):
  build, settings = NETWORKS[kind]
  if build is models.SmallConvNet:
    return networks.SmallConvNet(image_shape, 10, MEAN, STD, **settings)
  if build is models.WideResNet:
    return networks.WideResNet(3, 10, MEAN, STD, **settings)
  preactivation = build is preact_resnet18
  return networks.ResNet18(3, 10, MEAN, STD, preactivation=preactivation, **settings)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_in_pytorch_is_the_same(kind, tmp_path):
  """In logits and input gradients, with random weights, exported and imported."""
  networks = peer_networks()
  # Not square for the small network, whose flattened images must keep their order.
  image_shape = (8, 12, 3) if kind == "small" else IMAGE_SHAPE
  model = create(kind, image_shape=image_shape)
  path = tmp_path / "weights.safetensors"
  torch_weights.save_safetensors(path, model)
  network = in_torch(networks, kind, image_shape).eval()
  networks.load_weights(network, safetensors.numpy.load_file(path))
  images = np.random.default_rng(0).uniform(size=(3, *image_shape))
  labels = np.arange(3, dtype=np.int32)
  apply, params, model_state = models.functional(model)
  networks.check_agreement(
    network, apply, params, model_state, images, labels, tolerance=1e-6
  )
  logits, _ = jax.jit(apply, static_argnames="train")(
    params, model_state, images.astype(np.float32), train=False
  )
  theirs = network(networks.to_torch(images).float()).detach()
  assert networks.relative_difference(logits, theirs) < 1e-5

  again = create(kind, seed=1, image_shape=image_shape)
  torch_weights.load_torch_state_dict(again, network.state_dict())
  jax.tree.map(np.testing.assert_array_equal, arrays(model), arrays(again))
