"""Data sets of one's own, given as arrays; what labels stand for."""

import numpy as np
import pytest

from ddi_jax import data


def arrays(train=30, test=10, shape=(5, 6, 3), classes=4):
  rng = np.random.default_rng(0)
  parts = []
  for count in (train, test):
    parts.append(rng.integers(0, 256, (count, *shape), np.uint8))
    parts.append(np.arange(count) % classes)
  return tuple(parts)


def split(given, **changes):
  settings = {"name": "mine", "validation_size": 8} | changes
  return data.split_arrays(given, **settings)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_is_held_out_for_validation(channels):
  given = arrays(shape=(5, 6, channels))
  splits = split(given)
  assert [len(part) for part in splits[:3]] == [22, 8, 10]
  for part in splits[:3]:
    assert part.image_shape == (5, 6, channels)
    assert part.images.dtype == np.uint8
    assert part.labels.dtype == np.int32
  assert (splits.max_value, splits.num_classes) == (255, 4)
  np.testing.assert_array_equal(splits.test.images, given[2])
  np.testing.assert_array_equal(splits.test.labels, given[3])
  by_image = {image.tobytes(): label for image, label in zip(*given[:2], strict=True)}
  held_out = [*splits.train.images, *splits.validation.images]
  assert {image.tobytes() for image in held_out} == set(by_image)
  for part in splits[:2]:
    for image, label in zip(part.images, part.labels, strict=True):
      assert by_image[image.tobytes()] == label


def test_mean_and_deviation_are_those_of_the_training_images():
  given = arrays()
  splits = split(given)
  scaled = given[0] / 255
  np.testing.assert_allclose(splits.mean, scaled.mean((0, 1, 2)))
  np.testing.assert_allclose(splits.std, scaled.std((0, 1, 2)))
  assert all(isinstance(value, float) for value in (*splits.mean, *splits.std))
  black = (np.zeros_like(given[0]), *given[1:])
  assert split(black).std == (1e-6,) * 3  # It can be divided by.


def test_the_greatest_label_of_either_set_counts():
  given = arrays()
  assert split((*given[:3], given[3] + 5)).num_classes == 9


def test_split_seed_and_limit():
  given = arrays()
  first, again, other = (split(given, split_seed=seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.validation.images, again.validation.images)
  assert not np.array_equal(first.validation.images, other.validation.images)
  limited = split(given, limit=5)
  assert [len(part) for part in limited[:3]] == [5, 5, 5]
  np.testing.assert_array_equal(limited.train.images, first.train.images[:5])


def test_batches_of_ones_own_data():
  splits = split(arrays())
  (batch,) = data.training_batches(splits.train, 6, 0, start=0, stop=1)
  assert batch["image"].shape == (6, 5, 6, 3)
  assert batch["label"].dtype == np.int32


def changed(index, change):
  given = list(arrays())
  given[index] = change(given[index])
  return tuple(given)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (list(arrays()), r"\(training images, .*, got list"),
    (arrays()[:3], r"\(training images, .*, got tuple"),
    (changed(0, lambda x: x / 255), r"uint8 \[N, H, W, C\].*got float64 \(30, 5, 6, 3"),
    (changed(2, lambda x: x.astype(int)), r"uint8 .*, got int64 \(10, 5, 6, 3\)"),
    (changed(0, lambda x: x[..., 0]), r"C of 1 or 3, got uint8 \(30, 5, 6\)"),
    (changed(0, lambda x: x[..., :2]), r"C of 1 or 3, got uint8 \(30, 5, 6, 2\)"),
    (changed(1, lambda x: x[:-1]), r"labels, integers \[30\], got int64 \(29,\)"),
    (changed(3, lambda x: x * 1.0), r"labels, integers \[10\], got float64 \(10,\)"),
    (changed(1, lambda x: x - 1), "labels >= 0, got -1"),
    (changed(2, lambda x: x[:, 1:]), r"one shape, got \(5, 6, 3\) and \(4, 6, 3\)"),
    ((*arrays()[:2], *(x[:0] for x in arrays()[2:])), r"N >= 1 .* uint8 \(0, 5, 6, 3"),
  ],
)
def test_arrays_of_another_form_are_refused(given, message):
  with pytest.raises(ValueError, match=f"data.name 'mine' must return .*{message}"):
    split(given)


@pytest.mark.parametrize("size", [0, 30, 31])
def test_impossible_validation_sizes(size):
  message = rf"validation_size must be in \[1, 29\] for mine, got {size}"
  with pytest.raises(ValueError, match=message):
    split(arrays(), validation_size=size)


def test_class_names():
  names = data.class_names("cifar10", 10)
  assert len(names) == 10
  assert names[0] == "airplane"
  assert data.class_names("mine", 3) == data.class_names("mnist", 3) == ("0", "1", "2")
