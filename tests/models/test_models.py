"""The networks: shapes, settings, and what BatchNorm's modes change."""

import math

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_sums_agree

from ddi_jax import models
from ddi_jax.models import layers

CIFAR = {
  "image_shape": (32, 32, 3),
  "num_classes": 10,
  "mean": (0.5, 0.5, 0.4),
  "std": (0.2, 0.3, 0.2),
}
IMAGES = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))


LAYERED = [name for name in models.MODELS if name != "mlp"]  # May be normalised.
SHALLOW = {"wide_resnet": {"depth": 10, "widening": 2}}


def create(name="resnet18", seed=0, **settings):
  settings = {"width": 4, "norm_groups": 2, **SHALLOW.get(name, {}), **settings}
  model = models.create_model(name, settings=settings, seed=seed, **CIFAR)
  apply, params, state = models.functional(model)
  return jax.jit(apply, static_argnames="train"), params, state


@pytest.mark.slow
@pytest.mark.parametrize("normalization", models.NORMALIZATIONS)
@pytest.mark.parametrize("name", LAYERED)
def test_logits_at_initialisation_are_moderate(name, normalization):
  apply, params, state = create(name, normalization=normalization)
  logits, _ = apply(params, state, IMAGES, train=False)
  assert logits.shape == (4, 10)
  assert 1e-3 < jnp.abs(logits).max() < 30
  assert bool(jax.tree.leaves(state)) == (normalization == "batch")


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(), (8,), (16, 8)])
def test_the_mlp_is_what_its_layers_say(layers):
  model = models.create_model(
    "mlp", settings={"layers": layers, "activation": "celu"}, seed=0, **CIFAR
  )
  _, params, _ = models.functional(model)
  x = (IMAGES - np.asarray(CIFAR["mean"])) / np.asarray(CIFAR["std"])
  x = x.reshape(4, -1)
  for index, units in enumerate(layers):
    layer = params["hidden"][index]
    assert layer["kernel"].shape == (x.shape[1], units)
    x = jax.nn.celu(x @ layer["kernel"] + layer["bias"])
  logits = x @ params["logits"]["kernel"] + params["logits"]["bias"]
  assert_sums_agree(model(IMAGES), logits, 32 * 32 * 3 + sum(layers))
  assert 1e-3 < jnp.abs(logits).max() < 30


@pytest.mark.slow
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_activations(activation):
  apply, params, state = create("small", activation=activation)
  relu_logits, _ = create("small", activation="relu")[0](
    params, state, IMAGES, train=False
  )
  logits, _ = apply(params, state, IMAGES, train=False)
  assert np.all(np.isfinite(logits))
  assert np.allclose(logits, relu_logits) == (activation == "relu")


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [1, 3, 6])
def test_group_norm_is_that_of_flax(num_groups):
  ours = layers.GroupNorm(6, num_groups, rngs=nnx.Rngs(0))
  theirs = nnx.GroupNorm(6, num_groups=num_groups, epsilon=1e-5, rngs=nnx.Rngs(0))
  for module in (ours, theirs):
    module.scale[...] = jnp.arange(1.0, 7.0)
    module.bias[...] = jnp.arange(6.0)
  images = 1 + jax.random.normal(jax.random.key(0), (3, 4, 5, 6))

  def value_and_gradient(module):
    return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(module(x))))(images)

  terms = 2 * images[0].size // num_groups  # Those of the mean and of the variance.
  assert_sums_agree(ours(images), theirs(images), terms)
  found, expected = map(value_and_gradient, (ours, theirs))
  assert_sums_agree(found, expected, terms + images.size)
  narrow = images.astype(jnp.bfloat16)
  assert ours(narrow).dtype == theirs(narrow).dtype == jnp.float32
  assert_sums_agree(ours(narrow), theirs(narrow), terms)


@pytest.mark.slow
def test_celu_is_that_of_jax():
  points = jnp.concatenate([jnp.linspace(-20, 20, 999), jnp.array([0.0, 1e-8, -1e-8])])
  # Both take exponentials that are at most 1 and right to two units in the last place.
  rounding = 4 * np.finfo(np.float32).eps
  np.testing.assert_allclose(layers.celu(points), jax.nn.celu(points), atol=rounding)
  for differentiate in (jax.grad, jax.jacfwd):
    found, expected = (
      jax.vmap(differentiate(celu))(points) for celu in (layers.celu, jax.nn.celu)
    )
    np.testing.assert_allclose(found, expected, atol=rounding)
  assert np.isnan(layers.celu(jnp.nan))


def count_parameters(build):
  state = nnx.state(nnx.eval_shape(build), nnx.Param)
  return sum(leaf.size for leaf in jax.tree.leaves(state))


def test_resnet18_has_the_published_size():
  # 11,173,962 parameters: the CIFAR ResNet-18 (BatchNorm, width 64, 3x3 stem).
  assert (
    count_parameters(lambda: models.ResNet18(*CIFAR.values(), rngs=nnx.Rngs(0)))
    == 11_173_962
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("depth", "widening", "millions"),
  [(28, 10, 36.5), (40, 4, 8.9), (16, 8, 11.0), (34, 10, 46.2)],
)
def test_wide_resnets_have_the_published_sizes(depth, widening, millions):
  """Zagoruyko and Komodakis (2016), tables 4 and 5; WRN-34-10 as in Zhang (2019)."""

  def build():
    settings = {"depth": depth, "widening": widening}
    return models.WideResNet(*CIFAR.values(), **settings, rngs=nnx.Rngs(0))

  assert count_parameters(build) == pytest.approx(millions * 1e6, abs=0.05e6)


@pytest.mark.slow
def test_wide_resnet_s_paddings():
  """They differ in the stages that halve the image, and only by a shift."""
  outputs = []
  for padding in ("symmetric", "same"):
    layer = layers.conv(3, 4, 3, 2, padding=padding, rngs=nnx.Rngs(0))
    shift = 0 if padding == "symmetric" else 1
    outputs.append(layer(jnp.roll(IMAGES, shift, (1, 2))))
  np.testing.assert_allclose(outputs[0][:, 1:-1, 1:-1], outputs[1][:, 1:-1, 1:-1])
  symmetric = create("wide_resnet")
  same, params, state = create("wide_resnet", padding="same")
  jax.tree.map(np.testing.assert_array_equal, params, symmetric[1])
  assert not np.allclose(
    *(apply(params, state, IMAGES, train=False)[0] for apply in (same, symmetric[0]))
  )


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"depth": 18}, r"depth must be 6 n \+ 4 with n >= 1, and at most 1000, got 18"),
    ({"depth": 4}, "depth must be"),
    ({"widening": 0}, "widening must be an integer >= 1, got 0"),
    ({"padding": "valid"}, "padding must be one of symmetric, same; got 'valid'"),
  ],
)
def test_impossible_wide_resnets(settings, message):
  with pytest.raises(ValueError, match=message):
    models.WideResNet(*CIFAR.values(), **settings, rngs=nnx.Rngs(0))


IMPOSSIBLE = {
  "width": (0, "width must be an integer >= 1, got 0"),
  "activation": ("tanh", "activation must be one of relu, celu, .*; got 'tanh'"),
  "normalization": ("layer", "normalization must be one of none, group, batch; got"),
  "norm_groups": (
    3,
    r"norm_groups must be a divisor of width \(16\) with normalization 'group', got 3",
  ),
}


@pytest.mark.parametrize("setting", IMPOSSIBLE)
@pytest.mark.parametrize("name", LAYERED)
def test_impossible_settings_that_the_networks_share(name, setting):
  value, message = IMPOSSIBLE[setting]
  settings = {"width": 16, "normalization": "group", "norm_groups": 4, setting: value}
  with pytest.raises(ValueError, match=message):
    models.MODELS[name](*CIFAR.values(), **settings, rngs=nnx.Rngs(0))


def test_groups_count_only_with_group_normalization():
  settings = {"width": 16, "normalization": "batch", "norm_groups": 3}
  nnx.eval_shape(
    lambda: models.SmallConvNet(*CIFAR.values(), **settings, rngs=nnx.Rngs(0))
  )


@pytest.mark.parametrize(
  ("name", "settings", "message"),
  [
    ("small", {"strides": (0, 1)}, r"strides must be two integers >= 1, got \(0, 1\)"),
    ("small", {"strides": (1.5, 1)}, "strides must be two integers >= 1"),
    ("small", {"strides": (1, 1, 1)}, "strides must be two integers >= 1"),
    ("small", {"hidden": 0}, "hidden must be an integer >= 1, got 0"),
    ("mlp", {"layers": (8, 0)}, r"layers must be a tuple of integers >= 1, got \(8, 0"),
    ("mlp", {"layers": (8.5,)}, "layers must be a tuple of integers >= 1"),
    ("mlp", {"layers": 8}, "layers must be a tuple of integers >= 1, got 8"),
    ("mlp", {"layers": "88"}, "layers must be a tuple of integers >= 1, got '88'"),
    ("mlp", {"activation": "tanh"}, "activation must be one of relu"),
  ],
)
def test_impossible_settings_of_one_network(name, settings, message):
  with pytest.raises(ValueError, match=message):
    models.create_model(name, settings=settings, seed=0, **CIFAR)


def tiny_network(takes_moments):
  """A class from outside, which standardises only if it takes mean and std."""

  class Tiny(nnx.Module):
    def __init__(self, image_shape, num_classes, *, rngs, scale=1.0, mean=0.0, std=1.0):
      self.mean, self.std, self.scale = mean, std, scale
      self.layer = nnx.Linear(math.prod(image_shape), num_classes, rngs=rngs)

    def __call__(self, images):
      images = (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)
      return self.scale * self.layer(images.reshape(len(images), -1))

  class Plain(Tiny):
    def __init__(self, image_shape, num_classes, *, rngs, scale=1.0):
      super().__init__(image_shape, num_classes, rngs=rngs, scale=scale)

  return Tiny if takes_moments else Plain


@pytest.mark.parametrize("takes_moments", [True, False])
def test_a_class_from_outside_is_a_model(takes_moments):
  model = models.create_model(
    tiny_network(takes_moments), settings={"scale": 2.0}, seed=0, **CIFAR
  )
  expected = (CIFAR["mean"], CIFAR["std"]) if takes_moments else (0.0, 1.0)
  assert (model.mean, model.std) == expected
  x = IMAGES
  if takes_moments:
    x = (x - np.asarray(CIFAR["mean"])) / np.asarray(CIFAR["std"])
  apply, params, state = models.functional(model)
  chex.assert_shape(params["layer"]["kernel"], (32 * 32 * 3, 10))
  logits = x.reshape(4, -1) @ params["layer"]["kernel"] + params["layer"]["bias"]
  found, same_state = apply(params, state, IMAGES, train=True)
  assert_sums_agree(found, 2 * logits, 32 * 32 * 3)
  assert same_state == state


def test_a_name_is_the_class_of_that_name():
  settings = {"layers": (4,)}
  by_name, by_class = (
    models.create_model(model, settings=settings, seed=0, **CIFAR)
    for model in ("mlp", models.MLP)
  )
  chex.assert_trees_all_equal(*(nnx.state(model) for model in (by_name, by_class)))
  abstract = models.create_model(
    models.MLP, settings=settings, seed=0, abstract=True, **CIFAR
  )
  assert isinstance(nnx.state(abstract).logits.bias.get_value(), jax.ShapeDtypeStruct)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "wide_resnet"])
def test_batch_norm_modes(name):
  apply, params, state = create(name, normalization="batch")
  evaluated, same_state = apply(params, state, IMAGES, train=False)
  trained, new_state = apply(params, state, IMAGES, train=True)
  assert not np.allclose(evaluated, trained)
  jax.tree.map(np.testing.assert_array_equal, same_state, state)
  moved = jax.tree.map(lambda a, b: not np.allclose(a, b), new_state, state)
  assert all(jax.tree.leaves(moved))
  # Only in training mode does one example's output depend on the others.
  alone, _ = apply(params, state, IMAGES[:1], train=False)
  np.testing.assert_allclose(alone[0], evaluated[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_batch_norm_statistics_are_a_moving_average():
  apply, params, state = create(normalization="batch")
  _, new_state = apply(params, state, IMAGES, train=True)
  stem = jax.lax.conv_general_dilated(
    (IMAGES - jnp.array(CIFAR["mean"]).reshape(1, 1, 1, 3))
    / jnp.array(CIFAR["std"]).reshape(1, 1, 1, 3),
    params["stem"]["kernel"],
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(
    new_state["norm"]["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-3, atol=1e-5
  )
  np.testing.assert_allclose(
    new_state["norm"]["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-3
  )


@pytest.mark.slow
def test_seed_decides_the_parameters():
  first, again, other = (create("small", seed=seed)[1] for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.allclose(first["logits"]["kernel"], other["logits"]["kernel"])


def test_standardize():
  standardized = models.Standardize((0.5, 0.1, 0.2), (0.2, 0.5, 1.0))(IMAGES)
  expected = (np.asarray(IMAGES) - [0.5, 0.1, 0.2]) / [0.2, 0.5, 1.0]
  np.testing.assert_allclose(standardized, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERED)
def test_channels_that_come_first_are_named(name):
  apply, params, state = create(name)
  with pytest.raises(ValueError, match=r"must be \[B, H, W, 3\], .*\(4, 3, 32, 32\)"):
    apply(params, state, jnp.moveaxis(IMAGES, -1, 1), train=False)


def test_one_channel_that_comes_first_is_named():
  standardize = models.Standardize((0.5,), (0.2,))
  with pytest.raises(ValueError, match=r"channels last, got shape \(2, 1, 28, 28\)"):
    standardize(jnp.ones((2, 1, 28, 28)))
  assert standardize(jnp.ones((2, 28, 28, 3))).shape == (2, 28, 28, 3)
