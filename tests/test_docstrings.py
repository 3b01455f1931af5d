"""Every public function has an example in its docstring, which runs as a doctest."""

import inspect

import pytest

import ddi_jax
from ddi_jax import attacks, candidates, data, losses, models, training
from ddi_jax.models import torch_weights


@pytest.mark.parametrize(
  "module",
  [ddi_jax, attacks, candidates, losses, models, torch_weights, data, training],
  ids=lambda module: module.__name__,
)
def test_public_functions_have_an_example(module):
  names = getattr(module, "__all__", dir(module))
  functions = {
    name: getattr(module, name)
    for name in names
    if inspect.isfunction(getattr(module, name))
    and not name.startswith("_")
    and getattr(module, name).__module__.startswith(module.__name__)
  }
  assert functions
  without = [name for name, fn in functions.items() if ">>>" not in (fn.__doc__ or "")]
  assert not without
