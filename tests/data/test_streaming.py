"""Data sets read as they are needed: batches as from memory, in any shards."""

import io
import json

import numpy as np
import pytest

from ddi_jax import data
from ddi_jax.data import datasets, resizing


def batches(dataset, batch_size=12, seed=3, start=0, stop=3, **shard):
  return list(
    data.training_batches(dataset, batch_size, seed, start=start, stop=stop, **shard)
  )


def assert_same(first, second):
  assert len(first) == len(second) > 0
  for one, other in zip(first, second, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
      assert one[name].dtype == other[name].dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_streamed_examples_are_those_in_memory(name, data_dir):
  settings = {"data_dir": data_dir, "validation_size": 100, "limit": 40}
  kept = data.load(name, streaming="never", **settings)
  streamed = data.load(name, streaming="always", **settings)
  for one, other in zip(kept[:3], streamed[:3], strict=True):
    assert isinstance(one, data.Dataset)
    assert isinstance(other, data.StreamedDataset)
    assert one.image_shape == other.image_shape
    assert len(one) == len(other) == 40
    assert_same(
      list(data.evaluation_batches(one, 16)), list(data.evaluation_batches(other, 16))
    )
  assert_same(batches(kept.train, stop=7), batches(streamed.train, stop=7))
  assert_same(batches(kept.train, start=5, stop=7), batches(streamed.train, stop=7)[5:])
  assert_same(batches(kept.train.first(13)), batches(streamed.train.first(13)))


def test_shards_one_after_another_are_the_batch():
  labels = np.arange(30, dtype=np.int32)
  dataset = data.Dataset(labels.astype(np.uint8)[:, None, None, None], labels)
  whole = batches(dataset)
  for num_shards in (1, 2, 3, 12):
    parts = [
      batches(dataset, shard=shard, num_shards=num_shards)
      for shard in range(num_shards)
    ]
    joined = [
      {name: np.concatenate([part[name] for part in step]) for name in step[0]}
      for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)
  with pytest.raises(ValueError, match=r"must divide batch_size \(12\)"):
    batches(dataset, num_shards=5)
  with pytest.raises(ValueError, match="shard 3"):
    batches(dataset, shard=3, num_shards=3)


def test_large_sets_are_streamed_and_not_forced_into_memory(monkeypatch, data_dir):
  settings = {"data_dir": data_dir, "validation_size": 100, "limit": 40}
  needed = 3 * 40 * 28 * 28
  monkeypatch.setattr(datasets, "host_memory", lambda: 2 * needed)
  assert isinstance(data.load("mnist", **settings).train, data.Dataset)
  monkeypatch.setattr(datasets, "host_memory", lambda: needed - 1)
  assert isinstance(data.load("mnist", **settings).train, data.StreamedDataset)
  with pytest.raises(ValueError, match=r"must be auto or always for mnist.* fit into"):
    data.load("mnist", streaming="never", **settings)


def test_settings_that_a_set_has_not(data_dir):
  with pytest.raises(ValueError, match=r"data\.resolution must be None for digits"):
    data.load("digits", validation_size=10, resolution=8)
  with pytest.raises(
    ValueError, match=r"data\.streaming must be auto or never for dig"
  ):
    data.load("digits", validation_size=10, streaming="always")
  with pytest.raises(ValueError, match=r"one of auto, always, never; got 'maybe'"):
    data.load("digits", validation_size=10, streaming="maybe")


def test_a_damaged_file_is_named_while_streaming(damaged_mnist):
  root, damage = damaged_mnist
  splits = data.load(
    "mnist", data_dir=str(root), validation_size=10, streaming="always"
  )
  path = damage("test")
  with pytest.raises(data.DataError) as error:
    list(data.evaluation_batches(splits.test, 64))
  assert str(path) in str(error.value)
  assert "prepare it again" in str(error.value)


@pytest.fixture
def imagenet(tmp_path):
  """Six pictures of three sizes, prepared as TFDS would, under ImageNet's name."""
  writer = pytest.importorskip("array_record.python.array_record_module")
  image_module = pytest.importorskip("PIL.Image")
  protos = pytest.importorskip("tensorflow_datasets.proto")
  folder = tmp_path / "imagenet2012" / "5.1.0"
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for split in ("train", "validation"):
    path = folder / f"imagenet2012-{split}.array_record-00000-of-00001"
    file = writer.ArrayRecordWriter(str(path), "group_size:1")
    for index in range(6):
      size = ((40, 60), (64, 48), (33, 33))[index % 3]
      # Smooth, as JPEG likes it.
      coarse = rng.integers(0, 255, (4, 4, 3), np.uint8)
      picture = image_module.fromarray(coarse).resize(size)
      encoded = io.BytesIO()
      picture.save(encoded, "JPEG")
      example = protos.tf_example_pb2.Example()
      features = example.features.feature
      features["image"].bytes_list.value.append(encoded.getvalue())
      features["label"].int64_list.value.append(100 * index)
      features["file_name"].bytes_list.value.append(b"picture.JPEG")
      file.write(example.SerializeToString())
    file.close()
  class_name = "tensorflow_datasets.core.features"
  info = {
    "fileFormat": "array_record",
    "moduleName": "tensorflow_datasets.datasets.imagenet2012",
    "name": "imagenet2012",
    "version": "5.1.0",
    "splits": [
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": "1000",
        "shardLengths": ["6"],
      }
      for split in ("train", "validation")
    ],
  }
  features = {
    "pythonClassName": f"{class_name}.features_dict.FeaturesDict",
    "featuresDict": {
      "features": {
        "image": {
          "pythonClassName": f"{class_name}.image_feature.Image",
          "image": {
            "dtype": "uint8",
            "shape": {"dimensions": ["-1", "-1", "3"]},
            "encodingFormat": "jpeg",
          },
        },
        "label": {
          "pythonClassName": f"{class_name}.class_label_feature.ClassLabel",
          "classLabel": {"numClasses": "1000"},
        },
        "file_name": {
          "pythonClassName": f"{class_name}.text_feature.Text",
          "text": {},
        },
      }
    },
  }
  (folder / "dataset_info.json").write_text(json.dumps(info))
  (folder / "features.json").write_text(json.dumps(features))
  return str(tmp_path)


def test_images_of_many_sizes(imagenet):
  settings = {"data_dir": imagenet, "validation_size": 1}
  splits = data.load("imagenet2012", resolution=16, **settings)
  assert splits.train.image_shape == (16, 16, 3)
  assert (len(splits.train), splits.num_classes) == (5, 1000)
  whole = batches(splits.train, batch_size=4, stop=3)
  assert {batch["image"].shape for batch in whole} == {(4, 16, 16, 3)}
  # The crops too are functions of (seed, step), and the same for any shards.
  assert_same(batches(splits.train, batch_size=4, start=2), whole[2:])
  halves = [
    batches(splits.train, batch_size=4, shard=shard, num_shards=2) for shard in (0, 1)
  ]
  joined = [
    {name: np.concatenate([one[name], other[name]]) for name in one}
    for one, other in zip(*halves, strict=True)
  ]
  assert_same(joined, whole)
  views = {
    image.tobytes()
    for batch in whole
    for image, label in zip(batch["image"], batch["label"], strict=True)
    if label == whole[0]["label"][0]
  }
  assert len(views) > 1
  # Evaluation sees the centre, always the same.
  first, second = (list(data.evaluation_batches(splits.test, 6)) for _ in range(2))
  assert_same(first, second)
  np.testing.assert_array_equal(first[0]["label"], 100 * np.arange(6))

  with pytest.raises(ValueError, match=r"data\.resolution must be an integer"):
    data.load("imagenet2012", **settings)
  with pytest.raises(ValueError, match="cropped anew"):
    data.load("imagenet2012", resolution=16, streaming="never", **settings)


def test_crops():
  row, column = np.mgrid[:60, :90]
  image = np.stack([2 * column, 2 * row], axis=-1).astype(np.uint8)
  image = np.concatenate([image, image[..., :1]], axis=-1)
  centre = resizing.central_crop(image, 15)
  # The side is 224/256 of 60; the image's centre stays in the centre.
  np.testing.assert_allclose(centre.mean((0, 1))[:2], (2 * 44.5, 2 * 29.5), atol=1)
  step = np.diff(centre[0, :, 0].astype(int)).mean()
  assert abs(step - 2 * 60 * 224 / 256 / 15) < 0.2
  crops = [resizing.random_resized_crop(image, 15, seed) for seed in range(200)]
  np.testing.assert_array_equal(crops[7], resizing.random_resized_crop(image, 15, 7))
  widths = [np.ptp(crop[7, :, 0].astype(int)) / 2 * 15 / 14 for crop in crops]
  heights = [np.ptp(crop[:, 7, 1].astype(int)) / 2 * 15 / 14 for crop in crops]
  shares = np.multiply(widths, heights) / (60 * 90)
  assert 0.05 < shares.min() < 0.2
  assert 0.75 < shares.max() < 1.1
  ratios = np.divide(widths, heights)
  assert 0.6 < ratios.min() < 0.85
  assert 1.2 < ratios.max() < 1.5
  # Far from every allowed ratio: the central square.
  strip = np.zeros((4, 400, 1), np.uint8)
  strip[:, 198:202] = 255
  assert resizing.random_resized_crop(strip, 4, 0).min() == 255
