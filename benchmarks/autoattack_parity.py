"""Compare AutoAttack with torchattacks and its authors' release on one network.

pip install -e '.[peers,training]' && pip install --no-deps torchattacks
python benchmarks/autoattack_parity.py --workdir=RUN [--data_dir=DIR] [--norms=linf,l2]

The network of a finished run is exported through a safetensors file into PyTorch.  Each
attack alone, and the ensemble, then run on the same test images in three libraries:
ddi_jax, torchattacks (l_inf and l2) and pyautoattack, the PyTorch release of Croce and
Hein.  They run one after another in one process, once for each seed.  torchattacks uses
--steps as well, instead of its default of 10.  PyTorch classifies all points.  A point
outside the ball or the box counts as a failed attack.

With --journal, each result is added to a file, and the same command later reads it from
there.  --ensemble=union does not run the ensemble, but takes each image's worst case
over the attacks.  --ensemble=only runs only the ensemble.

In torchattacks and pyautoattack, Square's windows never reach the last row and column;
--widen_windows draws them over the whole image, as in the paper.  AutoAttack's schedule
of Square is for 10,000 queries, of which it takes the first --queries.  torchattacks
rescales the schedule to --queries, and so do the other two with --rescale_schedule.

The script prints two Markdown tables: robust accuracies with their differences, and
speed.
"""

from collections.abc import Callable, Mapping
import functools
import itertools
import json
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import NamedTuple

from absl import app, flags, logging
import jax
from machine import describe_machine
import numpy as np
from progress import progress
import pyautoattack
import safetensors.numpy
import torch
import torchattacks
import tqdm

import ddi_jax
from ddi_jax import attacks, data, models, training
from ddi_jax.models import torch_weights
from ddi_jax.training.settings.model import model_settings

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import networks

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished run of launch.py.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "See config.data.data_dir.")
_NORMS = flags.DEFINE_list("norms", ["linf", "l2"], "Norms: linf, l2 or l1.")
_EPSILONS = flags.DEFINE_list("epsilons", None, "Radii; for defaults see _EPSILON.")
_ATTACKS = flags.DEFINE_list(
  "attacks", ["apgd-ce", "apgd-t", "fab-t", "square"], "The ensemble's, in order."
)
_IMAGES = flags.DEFINE_integer("images", 1000, "Number of test images.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 250, "Images at a time.")
_SEEDS = flags.DEFINE_integer("seeds", 2, "Number of runs of each attack.")
_STEPS = flags.DEFINE_integer("steps", 100, "Steps of APGD and FAB.")
_QUERIES = flags.DEFINE_integer("queries", 5000, "Queries of Square.")
_JOURNAL = flags.DEFINE_string("journal", None, "A file to add to and resume from.")
_TOTAL = flags.DEFINE_enum(
  "ensemble", "run", ["run", "union", "only"], "See the docstring of this module."
)
_WIDEN = flags.DEFINE_bool("widen_windows", False, "Widen the peers' Square windows.")
_RESCALE = flags.DEFINE_bool(
  "rescale_schedule",
  False,
  "Rescale the schedule of Square's windows to --queries, as torchattacks does.",
)
_CPU_TIME = flags.DEFINE_bool(
  "cpu_time", False, "Measure CPU time instead of wall time, for one busy core."
)
flags.mark_flag_as_required("workdir")

_EPSILON = {  # Radii of RobustBench.  For l_inf the radius is the run's.
  "l2": 0.5,
  "l1": 12.0,
}
_THREAT_MODELS = {"linf": ddi_jax.linf, "l2": ddi_jax.l2, "l1": ddi_jax.l1}
_THEIR_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_ENSEMBLE = "standard"

# (names of attacks, seed) -> images [N, H, W, C]
Run = Callable[[list[str], int], np.ndarray]


class Case(NamedTuple):
  """The network and the images to attack, and the threat model."""

  threat_model: ddi_jax.ThreatModel
  model: jax.tree_util.Partial
  network: torch.nn.Module
  images: np.ndarray  # [N, H, W, C] in [0, 1]
  labels: np.ndarray


class Outcome(NamedTuple):
  """The results of one attack in one library, by seed."""

  robust: list[np.ndarray]  # Whether each image is robust; each array is [N].
  seconds: list[float]


class ChannelsLast(torch.nn.Module):
  """A network in its faster layout, for attacks that use the ordinary layout."""

  def __init__(self, network):
    super().__init__()
    self.network = network.to(memory_format=torch.channels_last)

  def forward(self, inputs):
    inputs = inputs.view_as(inputs)
    if inputs.requires_grad:
      inputs.register_hook(torch.Tensor.contiguous)
    return self.network(inputs.contiguous(memory_format=torch.channels_last))


def in_torch(config, model, description):
  """The same network in PyTorch, with weights passed through a file."""
  settings = (description.num_classes, description.mean, description.std)
  options = model_settings(config)
  channels = description.image_shape[-1]
  if config.model.name == "small":
    network = networks.SmallConvNet(description.image_shape, *settings, **options)
  elif config.model.name == "wide_resnet":
    network = networks.WideResNet(channels, *settings, **options)
  else:
    preactivation = config.model.name == "preact_resnet18"
    network = networks.ResNet18(
      channels, *settings, preactivation=preactivation, **options
    )
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "weights.safetensors"
    torch_weights.save_safetensors(path, model)
    networks.load_weights(network, safetensors.numpy.load_file(path))
  return ChannelsLast(network).eval().requires_grad_(False)


def here(case: Case) -> Run:
  """The attacks of ddi_jax; an ensemble is compiled when it first runs."""
  threat_model, steps = case.threat_model, _STEPS.value
  sparse = threat_model.norm == "l1"
  known = {
    "apgd-ce": attacks.apgd(threat_model, steps=steps, restarts=5 if sparse else 1),
    "apgd-t": attacks.apgd(
      threat_model, loss="targeted_dlr", steps=steps, targets=5 if sparse else 9
    ),
    "fab-t": attacks.fab(threat_model, steps=steps, nearest=False),
    "square": attacks.square(
      threat_model,
      queries=_QUERIES.value,
      schedule_queries=None if _RESCALE.value else 10_000,
    ),
  }
  evaluates: dict[tuple[str, ...], Callable] = {}

  def run(names, seed):
    evaluate = evaluates.setdefault(
      tuple(names),
      ddi_jax.autoattack(
        threat_model,
        {name: known[name] for name in names},
        batch_size=_BATCH_SIZE.value,
      ),
    )
    key = jax.random.key(seed)
    return evaluate(key, case.model, case.images, case.labels).adversarial

  return run


def in_torchattacks(case: Case) -> Run:
  """The attacks of torchattacks with our number of steps."""

  def run(names, seed):
    ensemble = torchattacks.AutoAttack(
      case.network,
      norm=_THEIR_NORMS[case.threat_model.norm],
      eps=case.threat_model.epsilon,
      n_classes=10,
      seed=seed,
    )
    order = ("apgd-ce", "apgd-t", "fab-t", "square")
    known = dict(zip(order, ensemble._autoattack.attacks, strict=True))
    for name, attack in known.items():
      if name == "square":
        attack.n_queries = _QUERIES.value
      else:
        attack.steps = _STEPS.value
    chosen = known[names[0]]
    if len(names) > 1:
      chosen = torchattacks.MultiAttack([known[name] for name in names])
    size = _BATCH_SIZE.value
    points = [
      chosen(
        *_to_torch(case.images[start : start + size], case.labels[start : start + size])
      )
      for start in range(0, len(case.images), size)
    ]
    return torch.cat(points).detach().permute(0, 2, 3, 1).numpy()

  return run


def in_pyautoattack(case: Case) -> Run:
  """The attacks of the authors' release."""
  inputs, labels = _to_torch(case.images, case.labels)

  def run(names, seed):
    ensemble = pyautoattack.AutoAttack(
      case.network,
      norm=_THEIR_NORMS[case.threat_model.norm],
      eps=case.threat_model.epsilon,
      seed=seed,
      version="standard",
      device="cpu",
    )
    ensemble.attacks_to_run = names
    for attack in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
      attack.n_iter = _STEPS.value
    ensemble.square.n_queries = _QUERIES.value
    ensemble.square.rescale_schedule = _RESCALE.value
    points = ensemble.run_standard_evaluation(
      inputs, labels, batch_size=_BATCH_SIZE.value
    )
    points = points[0] if isinstance(points, tuple) else points
    return points.detach().permute(0, 2, 3, 1).numpy()

  return run


def widen_windows(square) -> None:
  """Let a peer's Square draw the last possible corner of a window too."""
  draw = square.random_int
  square.random_int = lambda self, low=0, high=1, shape=(1,): draw(
    self, low, high + 1, list(shape)
  )


def accuracy(case: Case, points: np.ndarray) -> np.ndarray:
  """Whether PyTorch still classifies each image correctly, `[N]`."""
  epsilon = case.threat_model.epsilon
  sizes = np.asarray(case.threat_model.size(points - case.images))
  allowed = (sizes <= epsilon * 1.001) & (points.min((1, 2, 3)) >= 0)
  allowed &= points.max((1, 2, 3)) <= 1
  inputs, _ = _to_torch(
    np.where(allowed[:, None, None, None], points, case.images), case.labels
  )
  return case.network(inputs).argmax(1).numpy() == case.labels


def recorded(case: Case, library: str, name: str, seed: int, measure: Callable):
  """Read (robust, seconds) from the journal, or measure them and add them to it."""
  what = {
    "norm": case.threat_model.norm,
    "epsilon": case.threat_model.epsilon,
    "attack": name,
    "library": library,
    "seed": seed,
    "images": len(case.images),
    "settings": [
      _WORKDIR.value,
      _ATTACKS.value if name == _ENSEMBLE else [],
      _BATCH_SIZE.value,
      _STEPS.value,
      _QUERIES.value,
      _CPU_TIME.value,
      _WIDEN.value,
      _RESCALE.value,
    ],
  }
  path = None if _JOURNAL.value is None else Path(_JOURNAL.value)
  if path is not None and path.exists():
    for line in path.read_text().splitlines():
      entry = json.loads(line)
      if all(entry[key] == value for key, value in what.items()):
        return np.array(entry["robust"], bool), entry["seconds"]
  robust, seconds = measure()
  if path is not None:
    entry = what | {"seconds": seconds, "robust": robust.astype(int).tolist()}
    with path.open("a") as file:
      file.write(json.dumps(entry) + "\n")
  return robust, seconds


def compare(case: Case, runs: Mapping[str, Run]) -> dict[tuple[str, str], Outcome]:
  """Run all attacks: (attack, library) -> outcome.  The libraries take turns."""
  clock = time.process_time if _CPU_TIME.value else time.perf_counter

  def measure(run, chosen, seed):
    began = clock()
    points = run(chosen, seed)
    seconds = clock() - began
    return accuracy(case, points), seconds

  names = _ATTACKS.value
  sets = {} if _TOTAL.value == "only" else {name: [name] for name in names}
  if _TOTAL.value != "union":
    sets[_ENSEMBLE] = names
  outcomes = {(name, library): Outcome([], []) for name in sets for library in runs}
  cases = list(itertools.product(range(_SEEDS.value), sets.items(), runs.items()))
  for seed, (name, chosen), (library, run) in progress(cases):
    outcome = outcomes[name, library]
    robust, seconds = recorded(
      case, library, name, seed, functools.partial(measure, run, chosen, seed)
    )
    outcome.robust.append(robust)
    outcome.seconds.append(seconds)
    tqdm.tqdm.write(
      f"{case.threat_model.norm} {name} seed {seed} {library}: "
      f"{outcome.robust[-1].mean():.4f}, {seconds:.1f} s",
      file=sys.stderr,
    )
  if _TOTAL.value == "union":
    for library in runs:
      alone = [outcomes[name, library].robust for name in names]
      seconds = [outcomes[name, library].seconds for name in names]
      outcomes[_ENSEMBLE, library] = Outcome(
        list(np.all(alone, axis=0)), list(np.sum(seconds, axis=0))
      )
  return outcomes


def parity_rows(case, outcomes, libraries):
  """Rows of robust accuracies (per cent, means over seeds) and their differences."""
  ours, *others = libraries
  for name in dict.fromkeys(name for name, _ in outcomes):
    robust = {
      library: 100 * np.mean(outcomes[name, library].robust, axis=0)
      for library in libraries
    }
    cells = [case.threat_model.norm, name, f"{robust[ours].mean():.2f}"]
    for library in others:
      difference = robust[ours] - robust[library]
      error = difference.std() / np.sqrt(len(difference))
      cells += [
        f"{robust[library].mean():.2f}",
        f"{difference.mean():+.2f} ± {error:.2f}",
      ]
    yield cells


def speed_rows(case, outcomes, libraries):
  """Rows with the seconds of a run and images per second; our first run compiles."""
  ours, *others = libraries
  for name in dict.fromkeys(name for name, _ in outcomes):
    first, *rest = outcomes[name, ours].seconds
    seconds = {ours: np.median(rest or [first])}
    for library in others:
      seconds[library] = np.median(outcomes[name, library].seconds)
    cells = [case.threat_model.norm, name]
    for library in libraries:
      rate = len(case.images) / seconds[library]
      cells += [f"{seconds[library]:.1f}", f"{rate:.1f}"]
    cells += [f"{seconds[library] / seconds[ours]:.1f}" for library in others]
    cells.append(f"{first - seconds[ours]:.1f}" if rest else "in the time")
    yield cells


def print_table(header, rows):
  """Print a Markdown table."""
  for cells in (header, ["---"] * len(header), *rows):
    print("|", " | ".join(cells), "|")
  print(flush=True)


def main(_):
  """Print the tables."""
  logging.set_verbosity(logging.ERROR)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  if _WIDEN.value:
    widen_windows(torchattacks.attacks.square.Square)
    widen_windows(pyautoattack.square.SquareAttack)
  config = training.load_config(_WORKDIR.value)
  model = training.load_model(_WORKDIR.value)
  description = data.DATASETS[config.data.name]
  test = data.load(
    config.data.name,
    data_dir=_DATA_DIR.value or config.data.data_dir,
    validation_size=config.data.validation_size,
  ).test
  images = test.images[: _IMAGES.value].astype(np.float32) / description.max_value
  labels = test.labels[: _IMAGES.value]
  network = in_torch(config, model, description)
  apply, params, model_state = models.functional(model)
  logits_fn = jax.tree_util.Partial(
    lambda trees, inputs: apply(*trees, inputs, train=False)[0], (params, model_state)
  )
  agreement = networks.check_agreement(
    network, apply, params, model_state, images[:8], labels[:8]
  )
  libraries = {
    "here": here,
    "torchattacks": in_torchattacks,
    "pyautoattack": in_pyautoattack,
  }
  machine = describe_machine("jax", "torch", "torchattacks", "pyautoattack")
  print(
    f"{config.model.name} on {config.data.name}, {len(images)} test images in batches "
    f"of {_BATCH_SIZE.value}; {_STEPS.value} steps, {_QUERIES.value} queries, "
    f"{_SEEDS.value} seed(s){', the peers windows widened' if _WIDEN.value else ''}"
    f"{', schedule rescaled' if _RESCALE.value else ''}; "
    f"{'CPU' if _CPU_TIME.value else 'wall'} time; {machine}.\n"
    f"Relative differences between the networks in float64: logits {agreement[0]:.1g}, "
    f"input gradients {agreement[1]:.1g}.\n",
    flush=True,
  )
  for index, norm in enumerate(_NORMS.value):
    epsilon = _EPSILON.get(norm, config.attack.epsilon)
    if _EPSILONS.value:
      epsilon = float(_EPSILONS.value[index])
    threat_model = _THREAT_MODELS[norm](epsilon)
    case = Case(threat_model, logits_fn, network, images, labels)
    chosen = {
      name: make(case)
      for name, make in libraries.items()
      if not (name == "torchattacks" and norm == "l1")
    }
    clean = accuracy(case, images).mean()
    print(f"{norm}, epsilon {epsilon:.4g}; clean accuracy {clean:.2%}\n")
    outcomes = compare(case, chosen)
    ours, *others = chosen
    header = ["norm", "attack", f"{ours} (%)"]
    for name in others:
      header += [f"{name} (%)", "difference"]
    print_table(header, parity_rows(case, outcomes, chosen))
    header = ["norm", "attack"]
    for name in chosen:
      header += [f"{name} (s)", "images/s"]
    header += [f"{name} / {ours}" for name in others]
    print_table([*header, "compilation (s)"], speed_rows(case, outcomes, chosen))


def _to_torch(images, labels):
  return networks.to_torch(images).contiguous(), torch.from_numpy(labels).long()


if __name__ == "__main__":
  app.run(main)
