"""Data sets, batches and augmentation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

from ddi_jax import data
from ddi_jax.data import tfds_source


@pytest.fixture(scope="module")
def digits():
  return data.load("digits", validation_size=200)


def test_digits(digits):
  sizes = [len(part.labels) for part in digits[:3]]
  assert sizes == [1797 - 360 - 200, 200, 360]
  assert digits.train.images.shape[1:] == (8, 8, 1)
  assert digits.train.images.max() == digits.max_value
  images = digits.train.images / digits.max_value
  np.testing.assert_allclose(images.mean(), digits.mean[0], atol=0.01)
  np.testing.assert_allclose(images.std(), digits.std[0], atol=0.01)


def test_the_digits_are_those_that_scikit_learn_loads(digits):
  inputs, labels = sklearn.datasets.load_digits(return_X_y=True)
  expected = sorted(zip(inputs.tolist(), labels.tolist(), strict=True))
  found = sorted(
    (image.ravel().tolist(), int(label))
    for part in digits[:3]
    for image, label in zip(part.images, part.labels, strict=True)
  )
  assert found == expected


def test_parts_are_disjoint_and_the_split_seed_moves_only_validation(digits):
  def rows(dataset):
    return {image.tobytes() for image in dataset.images}

  assert len(rows(digits.train) & rows(digits.validation)) <= 2  # equal drawings exist
  assert len(rows(digits.train) & rows(digits.test)) <= 2
  other = data.load("digits", validation_size=200, split_seed=1)
  np.testing.assert_array_equal(other.test.images, digits.test.images)
  assert rows(other.validation) != rows(digits.validation)
  assert rows(other.validation) | rows(other.train) == (
    rows(digits.validation) | rows(digits.train)
  )


def test_limit(digits):
  limited = data.load("digits", validation_size=200, limit=50)
  np.testing.assert_array_equal(limited.train.images, digits.train.images[:50])
  assert [len(part.labels) for part in limited[:3]] == [50, 50, 50]


@pytest.mark.slow
def test_tfds_mnist(data_dir):
  splits = data.load(
    "mnist", data_dir=data_dir, validation_size=10_000, streaming="always"
  )
  assert [len(part) for part in splits[:3]] == [50_000, 10_000, 10_000]
  assert {part.image_shape for part in splits[:3]} == {(28, 28, 1)}
  images = splits.train.read(np.arange(10_000))["image"] / splits.max_value
  np.testing.assert_allclose(images.mean((0, 1, 2)), splits.mean, atol=2e-3)
  np.testing.assert_allclose(images.std((0, 1, 2)), splits.std, atol=2e-3)
  labels = splits.test.read(np.arange(300))["label"]
  np.testing.assert_array_equal(np.unique(labels), np.arange(10))


def test_tfds_cifar10_reads_a_part(data_dir):
  split = tfds_source.open_split("cifar10", "test", data_dir)
  assert (split.size, split.image_shape) == (10_000, (32, 32, 3))
  images, labels = split.read(range(300), None)
  assert images.shape == (300, 32, 32, 3)
  assert images.dtype == np.uint8
  assert labels.shape == (300,)
  assert len(np.unique(labels)) == 10


def test_unknown_name_and_impossible_validation_size():
  with pytest.raises(ValueError, match="cifar10, imagenet2012; got 'imagenet'"):
    data.load("imagenet", validation_size=1)
  with pytest.raises(ValueError, match=r"validation_size must be in \[1, 1436\]"):
    data.load("digits", validation_size=1437)


def lacking(monkeypatch, *packages):
  monkeypatch.setattr(tfds_source, "_installed", lambda name: name not in packages)


def test_missing_data_set_says_what_to_do(monkeypatch, tmp_path):
  lacking(monkeypatch, "tensorflow", "importlib_resources")
  with pytest.raises(data.DataError) as error:
    data.load("cifar10", data_dir=str(tmp_path), validation_size=10)
  message = str(error.value)
  assert f"cifar10 is not prepared in {tmp_path}" in message
  assert "data.data_dir" in message
  assert "pip install tensorflow importlib_resources, then python -c" in message
  lacking(monkeypatch)
  with pytest.raises(data.DataError, match="with internet, python -c"):
    data.load("cifar10", data_dir=str(tmp_path), validation_size=10)


def test_missing_packages_say_what_to_do(monkeypatch, tmp_path):
  lacking(monkeypatch, "array_record")
  with pytest.raises(data.DataError, match=r"needs array_record: pip install 'ddi_jax"):
    data.load("mnist", data_dir=str(tmp_path), validation_size=10)
  lacking(monkeypatch, "PIL", "cv2")
  with pytest.raises(data.DataError, match=r"decoding .* pip install pillow"):
    data.load("mnist", data_dir=str(tmp_path), validation_size=10)


def test_damaged_data_set_says_what_to_do(monkeypatch, tmp_path):
  (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
  (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{")
  with pytest.raises(data.DataError, match="could not be read"):
    data.load("mnist", data_dir=str(tmp_path), validation_size=10)


def test_a_file_cut_short_is_named(damaged_mnist):
  root, damage = damaged_mnist
  path = damage("train")
  with pytest.raises(data.DataError) as error:
    data.load("mnist", data_dir=str(root), validation_size=10, limit=100)
  assert f"{path} could not be read" in str(error.value)
  assert f"delete {root / 'mnist'} and prepare it again" in str(error.value)


def epoch(dataset, **changes):
  settings = {"batch_size": 100, "seed": 3, "start": 0, "stop": 24} | changes
  return list(data.training_batches(dataset, **settings))


def test_a_step_s_batch_depends_on_seed_and_step_alone(digits):
  whole = epoch(digits.train)
  resumed = epoch(digits.train, start=17)
  assert (len(whole), len(resumed)) == (24, 7)
  for first, second in zip(whole[17:], resumed, strict=True):
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["label"], second["label"])
  assert not np.array_equal(whole[0]["image"], epoch(digits.train, seed=4)[0]["image"])


def test_each_epoch_is_a_new_order_of_the_same_examples():
  numbered = data.Dataset(
    np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1), np.arange(12, dtype=np.int32)
  )
  batches = epoch(numbered, batch_size=4, stop=6)
  labels = [batch["label"] for batch in batches]
  for batch in batches:
    np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])
  first, second = np.concatenate(labels[:3]), np.concatenate(labels[3:])
  assert set(first) == set(second) == set(range(12))
  assert not np.array_equal(first, second)


def test_batch_larger_than_the_data(digits):
  with pytest.raises(ValueError, match=r"batch_size must be in \[1, 1237\].*got 2000"):
    epoch(digits.train, batch_size=2000)


def test_evaluation_covers_every_example_once(digits):
  batches = list(data.evaluation_batches(digits.test, 100))
  assert {batch["image"].shape for batch in batches} == {(100, 8, 8, 1)}
  labels = np.concatenate([batch["label"][batch["valid"]] for batch in batches])
  np.testing.assert_array_equal(labels, digits.test.labels)


def test_shards_one_after_another_are_the_batch(digits):
  for read in (
    lambda **part: epoch(digits.train, stop=14, **part),
    lambda **part: list(data.evaluation_batches(digits.test, 100, **part)),
  ):
    shards = [read(shard=shard, num_shards=4) for shard in range(4)]
    for whole, *parts in zip(read(), *shards, strict=True):
      assert {len(part["label"]) for part in parts} == {25}
      for name, array in whole.items():
        np.testing.assert_array_equal(
          np.concatenate([part[name] for part in parts]), array
        )
  with pytest.raises(ValueError, match=r"num_shards must divide batch_size \(100\)"):
    epoch(digits.train, num_shards=3)


def test_pad_crop_flip():
  images = jax.random.randint(jax.random.key(0), (64, 6, 6, 2), 1, 255, jnp.uint8)
  augment = jax.jit(data.pad_crop_flip, static_argnames=("pad", "flip"))
  changed = augment(jax.random.key(1), images, pad=1, flip=True)
  assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
  seen = set()
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  for image, found in zip(padded, np.asarray(changed), strict=True):
    options = {}
    for row, column, flip in itertools.product(range(3), range(3), (False, True)):
      crop = image[row : row + 6, column : column + 6]
      options[(row, column, flip)] = crop[:, ::-1] if flip else crop
    matches = [key for key, value in options.items() if np.array_equal(value, found)]
    assert len(matches) == 1
    seen.add(matches[0])
  assert len(seen) > 12  # of 18
  same = augment(jax.random.key(1), images, pad=0, flip=False)
  np.testing.assert_array_equal(same, images)


@pytest.mark.slow
@pytest.mark.parametrize(("pad", "flip"), [(2, True), (0, True), (1, False)])
def test_a_crop_is_put_back(pad, flip):
  key, images = jax.random.key(1), jnp.arange(1.0, 2 * 36 + 1).reshape(2, 6, 6, 1)
  images = jnp.tile(images, (16, 1, 1, 1))
  augment = jax.jit(data.pad_crop_flip, static_argnames=("pad", "flip"))
  found = augment(key, images, pad=pad, flip=flip)
  whole = data.undo_pad_crop_flip(key, found, -images, pad=pad, flip=flip)
  covered = whole == images
  assert jnp.all(covered | (whole == -images))
  assert jnp.all(covered.sum(axis=(1, 2, 3)) == (found != 0).sum(axis=(1, 2, 3)))
