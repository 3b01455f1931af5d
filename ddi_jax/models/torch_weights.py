"""Weights to and from PyTorch, as state dictionaries of NumPy or safetensors.

Names and layouts follow the PyTorch definitions that RobustBench uses.  `ResNet18` has
those of kuangliu's pytorch-cifar ("layer1.0.conv1.weight").  `WideResNet` has those of
TRADES ("block1.layer.0.conv1.weight") or, with padding "same", those of DeepMind
("layer.0.block.0.conv_0.weight").  `SmallConvNet` keeps its own names.

Neither PyTorch nor pickle is needed.  On a machine with PyTorch, a `.pt` file can be
converted to safetensors with

    state = torch.load("model.pt", weights_only=True, map_location="cpu")
    safetensors.torch.save_file(state.get("state_dict", state), "model.safetensors")
"""

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
import re
from typing import Any, NamedTuple

from flax import nnx
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ddi_jax.models.resnet import ResNet18
from ddi_jax.models.small import SmallConvNet
from ddi_jax.models.wide_resnet import WideResNet

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
# Prefixes added by torch.nn.DataParallel, and by wrappers that standardise.
_PREFIXES = ("module.", "model.")
# The standardisation of the input, which is not a parameter in this library.
_STANDARDIZATION = {
  **dict.fromkeys(("mean", "mu", "normalize.mean"), "mean"),
  **dict.fromkeys(("std", "sigma", "normalize.std"), "std"),
}
_METADATA = "ddi_jax."
# Weights that some published files contain but their networks never use.
_UNUSED = re.compile(r"sub_block1\.|(.*\.)?num_batches_tracked$")


def to_torch_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
  """Copy a model's weights exactly into a PyTorch state dictionary.

  Args:
    model: a `ResNet18` (or PreActResNet-18), `WideResNet` or `SmallConvNet`.

  Returns:
    Names -> arrays in PyTorch's layout, including BatchNorm's statistics.  The input's
    mean and std are included only for `WideResNet` with padding "same", because its
    PyTorch definition contains them.  For the other models, give the PyTorch model the
    same mean and std as this one.

  Raises:
    ValueError: for another kind of model.

  Example:
    >>> from flax import nnx
    >>> from ddi_jax import models
    >>> from ddi_jax.models import torch_weights
    >>> model = models.SmallConvNet((8, 8, 1), 10, (0.5,), (0.3,), rngs=nnx.Rngs(0))
    >>> state = torch_weights.to_torch_state_dict(model)
    >>> state["conv1.weight"].shape  # OIHW
    (16, 1, 3, 3)
  """
  state = {}
  for name, leaf in _leaves(model).items():
    state[name] = np.ascontiguousarray(leaf.to_torch(np.asarray(leaf.variable[...])))
    if name.endswith("running_mean"):
      counter = name.replace("running_mean", "num_batches_tracked")
      state[counter] = np.zeros((), np.int64)
  if _is_deepmind_s(model):
    for name in ("mean", "std"):
      value = np.asarray(_of_input(model, name), np.float32)
      state[name] = value[:, None, None]
  return state


def load_torch_state_dict(model: nnx.Module, state: Mapping[str, Any]) -> None:
  """Set a model's weights exactly to those of a PyTorch state dictionary.

  If all names share a prefix "module." or "model.", it is dropped.  Batch counters, and
  the unused "sub_block1" in some WRN files, are ignored.

  If the dictionary contains the input's mean and std, they must equal the model's.
  Otherwise it does not show which ones the network was trained with.  Create the model
  with those, `create_model(mean=..., std=...)`, or with zeros and ones if it was
  trained without standardisation.

  Args:
    model: as for `to_torch_state_dict`; changed in place.
    state: names -> arrays (or CPU tensors) in PyTorch's layout.

  Raises:
    ValueError: for a missing or unexpected name, a wrong shape, values that are not
      finite or not floating point, or another mean or std.  The model is then
      unchanged.

  Example:
    >>> from flax import nnx
    >>> from ddi_jax import models
    >>> from ddi_jax.models import torch_weights
    >>> make = lambda seed: models.SmallConvNet(
    ...     (8, 8, 1), 10, (0.5,), (0.3,), rngs=nnx.Rngs(seed))
    >>> first, second = make(0), make(1)
    >>> torch_weights.load_torch_state_dict(
    ...     second, torch_weights.to_torch_state_dict(first))
    >>> bool((first.conv1.kernel[...] == second.conv1.kernel[...]).all())
    True
  """
  given = {name: np.asarray(value) for name, value in _without_prefixes(state).items()}
  given = {name: value for name, value in given.items() if not _UNUSED.match(name)}
  for name in list(given):
    if name in _STANDARDIZATION:
      _check_standardization(model, name, given.pop(name))
  leaves = _leaves(model)
  missing = sorted(leaves.keys() - given.keys())
  unexpected = sorted(given.keys() - leaves.keys())
  if missing or unexpected:
    raise ValueError(
      f"the weights are not those of this {type(model).__name__}: "
      f"missing {_some(missing)}, unexpected {_some(unexpected)}."
    )
  loaded = {}
  for name, leaf in leaves.items():
    current, value = leaf.variable[...], given[name]
    expected = leaf.to_torch(np.asarray(current)).shape
    if value.shape != expected:
      raise ValueError(f"{name} must have shape {expected}, got {value.shape}.")
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point, got {value.dtype}.")
    with np.errstate(over="ignore"):
      converted = leaf.from_torch(value).astype(current.dtype)
    if not np.all(np.isfinite(converted)):
      raise ValueError(f"{name} must hold finite numbers of {current.dtype}.")
    loaded[name] = jnp.asarray(converted)
  for name, leaf in leaves.items():
    leaf.variable[...] = loaded[name]


def save_safetensors(path: Path | str, model: nnx.Module) -> None:
  """Write `to_torch_state_dict(model)` to a safetensors file.

  The file's metadata contain the input's mean and std, as JSON.

  Example:
    >>> import tempfile
    >>> from flax import nnx
    >>> from ddi_jax import models
    >>> from ddi_jax.models import torch_weights
    >>> model = models.SmallConvNet((8, 8, 1), 10, (0.5,), (0.3,), rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   torch_weights.save_safetensors(f"{folder}/model.safetensors", model)
    ...   torch_weights.load_safetensors(f"{folder}/model.safetensors", model)
  """
  metadata = {
    _METADATA + name: json.dumps(list(_of_input(model, name)))
    for name in ("mean", "std")
  }
  content = safetensors.numpy.save(to_torch_state_dict(model), metadata)
  # Write a temporary file first, so that `path` never holds a partial file.
  temporary = Path(path).with_name(f".{Path(path).name}")
  temporary.write_bytes(content)
  temporary.replace(path)


def load_safetensors(path: Path | str, model: nnx.Module) -> None:
  """Set a model's weights to those in a safetensors file.

  The file may come from `save_safetensors` or from PyTorch.

  Raises:
    ValueError: if the file is no safetensors file or does not fit the model, see
      `load_torch_state_dict`.  The model is then unchanged.
    FileNotFoundError: if the file does not exist.

  Example:
    >>> import tempfile
    >>> from flax import nnx
    >>> from ddi_jax import models
    >>> from ddi_jax.models import torch_weights
    >>> model = models.SmallConvNet((8, 8, 1), 10, (0.5,), (0.3,), rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   torch_weights.save_safetensors(f"{folder}/model.safetensors", model)
    ...   torch_weights.load_safetensors(f"{folder}/model.safetensors", model)
  """
  try:
    with safetensors.safe_open(str(path), framework="numpy") as file:
      metadata = file.metadata() or {}
      state = {name: file.get_tensor(name) for name in file.keys()}
  except FileNotFoundError:
    raise
  except (AttributeError, OSError, TypeError, safetensors.SafetensorError) as error:
    # AttributeError and TypeError come from dtypes that NumPy does not have.
    raise ValueError(f"{path} is no safetensors file ({error}).") from error
  try:
    for name in ("mean", "std"):
      if _METADATA + name in metadata:
        state[name] = _numbers(name, metadata[_METADATA + name])
    load_torch_state_dict(model, state)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _numbers(name: str, text: str) -> np.ndarray:
  try:
    return np.asarray(json.loads(text), np.float64)
  except (RecursionError, TypeError, ValueError) as error:
    raise ValueError(
      f"the metadata's {_METADATA}{name} must be numbers in JSON, got {text[:40]!r}."
    ) from error


class _Leaf(NamedTuple):
  """An array of a model, with the conversions to and from PyTorch's layout."""

  variable: nnx.Variable
  to_torch: Callable[[np.ndarray], np.ndarray]
  from_torch: Callable[[np.ndarray], np.ndarray]


def _leaves(model: nnx.Module) -> dict[str, _Leaf]:
  """The model's arrays by their names in PyTorch."""
  name_of = _naming(model)
  leaves = {}
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    *parents, leaf = map(str, path)
    name = f"{name_of('.'.join(parents))}.{_LEAVES[leaf]}"
    leaves[name] = _Leaf(variable, *_layouts(model, path, variable.ndim))
  return leaves


def _layouts(
  model: nnx.Module, path: Any, rank: int
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
  """The conversions of an array to PyTorch's layout, and back."""
  if rank == 4:  # HWIO, OIHW
    return lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0)
  if rank == 2 and isinstance(model, SmallConvNet) and path[0] == "hidden":
    # The layer's inputs are flattened images, with the channels last.  In PyTorch the
    # channels come first.
    channels = model.conv2.out_features

    def to_torch(x: Any) -> Any:
      return (
        x.reshape(-1, channels, x.shape[1]).transpose(2, 1, 0).reshape(x.shape[::-1])
      )

    def from_torch(x: Any) -> Any:
      return x.reshape(len(x), channels, -1).transpose(2, 1, 0).reshape(x.shape[::-1])

    return to_torch, from_torch
  return np.transpose, np.transpose


def _naming(model: Any) -> Callable[[str], str]:
  """A function from the dotted path of a layer to its name in PyTorch."""
  if isinstance(model, SmallConvNet):
    return lambda path: path
  if isinstance(model, ResNet18):
    per_stage, block = 2, "layer{stage_1}.{index}"
    names = {
      "stem": "conv1",
      "norm": "bn" if model.preactivation else "bn1",
      "logits": "linear",
      "norm1": "bn1",
      "norm2": "bn2",
      "shortcut": "shortcut.0",
      "shortcut_norm": "shortcut.1",
    }
  elif _is_deepmind_s(model):
    per_stage, block = len(model.blocks) // 3, "layer.{stage}.block.{index}"
    names = {
      "stem": "init_conv",
      "norm": "batchnorm",
      "norm1": "batchnorm_0",
      "conv1": "conv_0",
      "norm2": "batchnorm_1",
      "conv2": "conv_1",
    }
  elif isinstance(model, WideResNet):
    per_stage, block = len(model.blocks) // 3, "block{stage_1}.layer.{index}"
    names = {
      "stem": "conv1",
      "norm": "bn1",
      "logits": "fc",
      "norm1": "bn1",
      "norm2": "bn2",
      "shortcut": "convShortcut",
    }
  else:
    raise ValueError(
      "model must be a ResNet18, WideResNet or SmallConvNet, which have a counterpart "
      f"in PyTorch, got {type(model).__name__}."
    )

  def name_of(path: Any) -> str:
    *parents, layer = path.split(".")
    name = names.get(layer, layer)
    if not parents:
      return name
    stage, index = divmod(int(parents[1]), per_stage)
    return f"{block.format(stage=stage, stage_1=stage + 1, index=index)}.{name}"

  return name_of


def _of_input(model: Any, field: str) -> Any:
  return getattr(model.standardize, field)


def _is_deepmind_s(model: nnx.Module) -> bool:
  return isinstance(model, WideResNet) and model.padding == "same"


def _without_prefixes(state: Mapping[str, Any]) -> Mapping[str, Any]:
  """The state without the prefixes that all names of weights share."""
  for prefix in _PREFIXES:
    weights = [name for name in state if name not in _STANDARDIZATION]
    if weights and all(name.startswith(prefix) for name in weights):
      state = {name.removeprefix(prefix): value for name, value in state.items()}
      return _without_prefixes(state)
  return state


def _check_standardization(model: nnx.Module, name: str, value: np.ndarray) -> None:
  field = _STANDARDIZATION[name]
  expected = np.asarray(_of_input(model, field))
  if value.size != expected.size or not np.allclose(value.ravel(), expected, atol=1e-6):
    theirs = np.round(value.ravel(), 6).tolist()
    raise ValueError(
      f"the weights belong to a model whose input has {name} {theirs}, this one has "
      f"{expected.tolist()}: create it with that {field}."
    )


def _some(names: Sequence[str]) -> str:
  shown = ", ".join(names[:4]) or "none"
  return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
