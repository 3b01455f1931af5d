"""Time a DDi training step and its parts, ours and PyTorch's, on the CPU.

pip install -e '.[peers]' && pip install --no-deps torchattacks
python benchmarks/peers/step.py --width=16 --batch_size=64 --num_restarts=4 --steps=7

Both sides use the same network, parameters, images, K and attack, in one process.
PyTorch runs channels-last.  Its K attacks are merged into one on a batch of K copies,
or run one by one; its K parameter gradients are computed one by one.  With --compile,
torch.compile around the network and its loss is timed as well.  During an attack no
parameter requires a gradient, so none is computed.  torchattacks and foolbox get the
copies and the eager network.  For foolbox only the attack is run, without the check of
success that its call would add.

With --attack_dtype=bfloat16, the attacks of both sides are in bfloat16: ours with
`ddi_jax.models.in_bfloat16`, PyTorch's under torch.autocast.  The checks stay float32.

All parts take turns, round after round, so that a busy machine slows all of them.
Before that, the script compares logits, gradients and candidates.  It prints a Markdown
table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import importlib.metadata
from pathlib import Path
import sys
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import networks
import numpy as np
import scipy.optimize
import torch
from torch.nn import functional

import ddi_jax
from ddi_jax import losses, models
from ddi_jax.training.settings.model import model_settings
from ddi_jax.training.settings.threats import step_size

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import workload

try:
  import torchattacks
except ImportError:
  torchattacks = None
try:
  import foolbox
except ImportError:
  foolbox = None

_COMPILE = flags.DEFINE_bool("compile", False, "Whether to time torch.compile as well.")
_COLUMNS = ("ours", "PyTorch eager channels-last", "PyTorch compiled")
_LIBRARIES = ("torchattacks", "foolbox")
_STEP, _ATTACKS = "the whole step", "K attacks"
_MERGED, _ONE_BY_ONE = ", merged", ", one by one"
_PARAMETER_GRADIENT, _INPUT_GRADIENT = "one parameter gradient", "one input gradient"
_ROWS = {  # Part of PyTorch's step -> the same part of ours.
  _STEP + _MERGED: _STEP,
  _STEP + _ONE_BY_ONE: _STEP,
  _ATTACKS + _MERGED: _ATTACKS,
  _ATTACKS + _ONE_BY_ONE: _ATTACKS,
  **{f"{_ATTACKS}, {name}": _ATTACKS for name in _LIBRARIES},
  _PARAMETER_GRADIENT: _PARAMETER_GRADIENT,
  _INPUT_GRADIENT: _INPUT_GRADIENT,
}


class Peer:
  """The step in PyTorch, on its own network.

  Attributes:
    network: its parameters require gradients only inside `parameter_gradient`.
  """

  def __init__(self, work: workload.Workload, *, compiled: bool):
    config = work.config
    self.network = _network(config)
    networks.load_params(
      self.network, work.model, work.state.params, work.state.model_state
    )
    self.network.requires_grad_(False)
    self._parameters = list(self.network.parameters())
    self._optimizer = torch.optim.SGD(
      self._parameters,
      lr=config.optimizer.learning_rate,
      momentum=config.optimizer.momentum,
      weight_decay=config.optimizer.weight_decay,
    )
    self._num_restarts = config.num_restarts
    self._epsilon = config.attack.epsilon
    self._steps = config.attack.steps
    self._step_size = _step_size(config)
    self._in_bfloat16 = config.attack.dtype == "bfloat16"

    def mean_loss(inputs, labels):
      return functional.cross_entropy(self.network(inputs), labels)

    self._mean_loss: Callable[..., torch.Tensor] = (
      torch.compile(mean_loss, dynamic=False) if compiled else mean_loss
    )

  def step(
    self, images: np.ndarray, labels: np.ndarray, *, merge: bool
  ) -> torch.Tensor:
    """Update the parameters for uint8 images `[B, H, W, C]`; return losses `[K]`."""
    inputs, targets = _to_torch(images, labels)
    return self.update(self.attacks(inputs, targets, merge=merge), targets)

  def attacks(
    self, inputs: torch.Tensor, labels: torch.Tensor, *, merge: bool
  ) -> Sequence[torch.Tensor]:
    """K candidates, from one attack on K copies of the batch or from K attacks."""
    if merge:
      copies = _copies(inputs, labels, self._num_restarts)
      return self.attack(*copies).split(len(inputs))
    return [self.attack(inputs, labels) for _ in range(self._num_restarts)]

  def attack(
    self,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int | None = None,
    random_start: bool = True,
    in_bfloat16: bool | None = None,
  ) -> torch.Tensor:
    """Run PGD in the l_inf ball and the box, by default with the config's settings."""
    low = (inputs - self._epsilon).clamp(min=0)
    high = (inputs + self._epsilon).clamp(max=1)
    points = inputs
    if random_start:
      noise = torch.empty_like(inputs).uniform_(-self._epsilon, self._epsilon)
      points = torch.clamp(inputs + noise, low, high)
    in_bfloat16 = self._in_bfloat16 if in_bfloat16 is None else in_bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
      for _ in range(self._steps if steps is None else steps):
        ascent = self.input_gradient(points, labels).sign()
        points = torch.clamp(points + self._step_size * ascent, low, high)
    return points

  def update(
    self, candidates: Iterable[torch.Tensor], labels: torch.Tensor
  ) -> torch.Tensor:
    """Take an SGD step along Danskin's direction; return the K candidates' losses."""
    values, gradients = [], []
    for inputs in candidates:
      value, gradient = self.parameter_gradient(inputs, labels)
      values.append(value)
      gradients.append(torch.cat([leaf.reshape(-1) for leaf in gradient]))
    matrix = torch.stack(gradients)
    weights = min_norm_weights((matrix @ matrix.T).numpy())
    direction = torch.from_numpy(weights.astype(np.float32)) @ matrix
    direction /= torch.linalg.vector_norm(direction)
    pieces = direction.split([parameter.numel() for parameter in self._parameters])
    for parameter, piece in zip(self._parameters, pieces, strict=True):
      parameter.grad = piece.view(parameter.shape)
    self._optimizer.step()
    return torch.stack(values)

  def parameter_gradient(
    self, inputs: torch.Tensor, labels: torch.Tensor
  ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """The mean loss and its gradient."""
    self.network.requires_grad_(True)
    value = self._mean_loss(inputs, labels)
    gradient = torch.autograd.grad(value, self._parameters)
    self.network.requires_grad_(False)
    return value.detach(), gradient

  def input_gradient(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of the mean loss in the inputs."""
    points = inputs.detach().requires_grad_()
    return torch.autograd.grad(self._mean_loss(points, labels), points)[0]


def min_norm_weights(gram: np.ndarray) -> np.ndarray:
  """The exact min-norm weights of a Gram matrix, by non-negative least squares."""
  values, vectors = np.linalg.eigh(gram.astype(np.float64) / gram.max())
  factor = vectors * np.sqrt(np.maximum(values, 0))
  system = np.concatenate([factor.T, np.ones((1, len(gram)))])
  weights, _ = scipy.optimize.nnls(system, np.append(np.zeros(len(gram)), 1.0))
  return weights / weights.sum()


def _network(config):
  return networks.ResNet18(
    3,
    10,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    preactivation=config.model.name == "preact_resnet18",
    **model_settings(config),
  ).eval()


def _step_size(config):
  return step_size(config.attack, config.attack.epsilon)


def _to_torch(images, labels):
  return networks.to_torch(images).float() / 255, torch.from_numpy(labels).long()


def _copies(inputs, labels, count):
  return torch.cat([inputs] * count), labels.repeat(count)


def _libraries(config, network, steps: int, random_start: bool):
  """The attacks (inputs, labels) -> candidates of the installed libraries, by name."""
  attacks: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {}
  if torchattacks is not None:
    attacks["torchattacks"] = torchattacks.PGD(
      network,
      eps=config.attack.epsilon,
      alpha=_step_size(config),
      steps=steps,
      random_start=random_start,
    )
  if foolbox is not None:
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    pgd = foolbox.attacks.LinfPGD(
      abs_stepsize=_step_size(config), steps=steps, random_start=random_start
    )
    attacks["foolbox"] = lambda inputs, labels: pgd.run(
      model,
      inputs,
      foolbox.criteria.Misclassification(labels),
      epsilon=config.attack.epsilon,
    )
  return attacks


def _our_parts(work):
  """Calls of our step's parts by name, and the result of one step from the images."""
  config = work.config
  params = jax.tree.map(jnp.copy, work.state.params)  # A step donates its own.
  inputs, labels = jnp.asarray(work.images / 255.0, jnp.float32), work.labels

  def loss_fn(params, inputs, labels, apply=work.apply):
    logits, _ = apply(params, work.state.model_state, inputs, train=True)
    return losses.cross_entropy(logits, labels)

  def mean_loss(params, inputs):
    return loss_fn(params, inputs, labels).mean()

  def attack_of(steps, random_start, num_restarts, apply=work.apply):
    attack = ddi_jax.pgd(
      ddi_jax.linf(config.attack.epsilon),
      steps=steps,
      step_size=_step_size(config),
      random_start=random_start,
    )

    @jax.jit
    def candidates_of(params, inputs, key):
      return ddi_jax.restart_candidates(
        attack,
        lambda points, labels: loss_fn(params, points, labels, apply),
        inputs,
        labels,
        key,
        num_restarts,
      )

    return candidates_of

  key = jax.random.key(0)
  half = config.attack.dtype == "bfloat16"
  attacks = attack_of(
    config.attack.steps,
    True,
    config.num_restarts,
    models.in_bfloat16(work.apply) if half else work.apply,
  )
  parameter_gradient = jax.jit(jax.grad(mean_loss))
  input_gradient = jax.jit(jax.grad(mean_loss, argnums=1))
  stepped = attack_of(1, False, 1)(params, inputs, key)[0]
  return {
    _ATTACKS: lambda: attacks(params, inputs, key),
    _PARAMETER_GRADIENT: lambda: parameter_gradient(params, inputs),
    _INPUT_GRADIENT: lambda: input_gradient(params, inputs),
  }, stepped


def _check(
  work: workload.Workload,
  peers: Mapping[str, Peer],
  our_gradient: Any,
  our_candidates: jax.Array,
) -> str:
  """Compare both sides before their first step; return the result as text.

  Raises:
    AssertionError: if they do not compute the same thing.
  """
  config, state = work.config, work.state
  inputs, labels = _to_torch(work.images, work.labels)
  network = peers[_COLUMNS[1]].network
  same_network = max(
    networks.check_agreement(
      network,
      work.apply,
      state.params,
      state.model_state,
      work.images / 255,
      work.labels,
    )
  )
  reference = _network(config)
  networks.load_params(reference, work.model, our_gradient, state.model_state)
  expected = [parameter.detach() for parameter in reference.parameters()]
  candidates = {}
  same_gradients = 0.0
  for name, peer in peers.items():
    _, gradient = peer.parameter_gradient(inputs, labels)
    same_gradients = max(
      same_gradients, *map(networks.relative_difference, expected, gradient)
    )
    candidates[name] = peer.attack(
      inputs, labels, steps=1, random_start=False, in_bfloat16=False
    )
  if not same_gradients < 1e-3:
    raise AssertionError(f"the parameter gradients differ by {same_gradients:.2g}.")
  for name, attack in _libraries(config, network, 1, False).items():
    candidates[name] = attack(inputs, labels)
  unequal = 0.0
  for name, points in candidates.items():
    distances = np.abs(points.permute(0, 2, 3, 1).numpy() - our_candidates)
    share = float((distances > 1e-6).mean())
    # A gradient that is zero up to rounding may have either sign.
    if not share < 1e-3:
      raise AssertionError(
        f"{share:.2%} of the candidates' pixels differ from {name}'s."
      )
    unequal = max(unequal, share)
  return (
    f"Relative differences: logits and input gradients {same_network:.1g} in float64, "
    f"parameter gradients {same_gradients:.1g} in float32. After one step from the "
    f"images, at most {unequal:.3%} of the candidates' pixels differ."
  )


def _peers(work: workload.Workload) -> dict[str, Peer]:
  """The peers by column; ends the program if torch.compile does not work."""
  peers = {_COLUMNS[1]: Peer(work, compiled=False)}
  if _COMPILE.value:
    peer = Peer(work, compiled=True)
    try:
      peer.input_gradient(*_to_torch(work.images, work.labels))
    except torch._dynamo.exc.TorchDynamoException as error:
      sys.exit(
        "torch.compile does not work here; it needs a C++ compiler, g++ or the one in "
        f"the variable CXX. Run without --compile, or see:\n{error}"
      )
    peers[_COLUMNS[2]] = peer
  return peers


def _their_parts(work: workload.Workload, peer: Peer):
  """Calls of PyTorch's step and its parts, by name."""
  inputs, labels = _to_torch(work.images, work.labels)
  return {
    _STEP + _MERGED: lambda: peer.step(work.images, work.labels, merge=True),
    _STEP + _ONE_BY_ONE: lambda: peer.step(work.images, work.labels, merge=False),
    _ATTACKS + _MERGED: lambda: peer.attacks(inputs, labels, merge=True),
    _ATTACKS + _ONE_BY_ONE: lambda: peer.attacks(inputs, labels, merge=False),
    _PARAMETER_GRADIENT: lambda: peer.parameter_gradient(inputs, labels)[1],
    _INPUT_GRADIENT: lambda: peer.input_gradient(inputs, labels),
  }


def _describe_peers() -> str:
  installed = ["torch"] + [name for name in _LIBRARIES if globals()[name] is not None]
  versions = ", ".join(
    f"{name} {importlib.metadata.version(name)}" for name in installed
  )
  return f"{versions}; {torch.get_num_threads()} threads of torch."


def main(_):
  """Check, time and print."""
  jax.config.update("jax_platforms", "cpu")
  work = workload.create("danskin", {"unit_norm": True, "optimizer.weight_decay": 5e-4})
  if work.config.model.name == "small":
    raise app.UsageError("--model must be resnet18 or preact_resnet18.")
  print(workload.describe(), _describe_peers(), sep="\n", flush=True)
  ours, our_candidates = _our_parts(work)
  peers = _peers(work)
  print(
    _check(work, peers, ours[_PARAMETER_GRADIENT](), our_candidates) + "\n", flush=True
  )

  calls = {(_STEP, _COLUMNS[0]): workload.CompiledStep(work)}
  calls |= {(part, _COLUMNS[0]): call for part, call in ours.items()}
  for column, peer in peers.items():
    calls |= {(part, column): call for part, call in _their_parts(work, peer).items()}
  copies = _copies(*_to_torch(work.images, work.labels), work.config.num_restarts)
  libraries = _libraries(
    work.config, peers[_COLUMNS[1]].network, work.config.attack.steps, True
  )
  for name, attack in libraries.items():
    calls[f"{_ATTACKS}, {name}", _COLUMNS[1]] = lambda attack=attack: attack(*copies)
  seconds = workload.median_seconds(calls)

  print(f"| part | {' (s) | '.join(_COLUMNS)} (s) | ours / best PyTorch |")
  print("|---|---|---|---|---|")
  for name, part in _ROWS.items():
    ours_seconds = seconds[part, _COLUMNS[0]]
    eager, compiled = (seconds.get((name, column)) for column in _COLUMNS[1:])
    timed = [value for value in (eager, compiled) if value is not None]
    cells = [
      name,
      f"{ours_seconds:.3g}",
      "not installed" if eager is None else f"{eager:.3g}",
      "" if compiled is None else f"{compiled:.3g}",
      f"{ours_seconds / min(timed):.2f}" if timed else "",
    ]
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
  app.run(main)
