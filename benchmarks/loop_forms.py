"""Time a DDi training step by the number of restarts that are computed at once.

python benchmarks/loop_forms.py --width=16 --batch_size=64 --num_restarts=4

The script times the program's step for several values of `config.restarts_at_a_time`,
where "auto" is its default, None.  It also times K PGD steps for comparison.  It prints
a Markdown table.  With --convolution=lax the model uses
`jax.lax.conv_general_dilated`, as a user's own model would.
"""

from absl import app, flags
import workload

_AUTO, _ALL = "auto", "K"
_AT_A_TIME = flags.DEFINE_list(
  "restarts_at_a_time", [_AUTO, "1", "2", _ALL], "Numbers, auto or K (all of them)."
)


def _settings(num_restarts: int) -> dict[str, int | None]:
  """The values of `config.restarts_at_a_time` by title, without repetition."""
  numbers: dict[str, int | None] = {}
  for text in _AT_A_TIME.value:
    if text == _AUTO:
      numbers[text] = None
    else:
      number = num_restarts if text == _ALL else int(text)
      numbers[str(number)] = number
  return numbers


def main(_):
  """Time and print."""
  print(workload.describe() + "\n", flush=True)
  num_restarts = flags.FLAGS.num_restarts
  steps = {"pgd": workload.CompiledStep(workload.create("pgd"))}
  for title, number in _settings(num_restarts).items():
    changes = {"restarts_at_a_time": number}
    steps[title] = workload.CompiledStep(workload.create("danskin", changes))
  seconds = workload.median_seconds(steps)
  reference = num_restarts * seconds["pgd"]
  titles = [title for title in steps if title != "pgd"]
  best = min(seconds[title] for title in titles)
  print(
    "| restarts at a time | DDi step (s) | / best | / (K PGD steps) | memory (MiB) | "
    "compile (s) |\n|---|---|---|---|---|---|"
  )
  for title in titles:
    step = steps[title]
    print(
      f"| {title} | {seconds[title]:.2f} | {seconds[title] / best:.2f} | "
      f"{seconds[title] / reference:.2f} | {step.bytes / 2**20:.0f} | "
      f"{step.compile_seconds:.0f} |"
    )
  print(f"\nK times one PGD step of {seconds['pgd']:.2f} s: {reference:.2f} s.")


if __name__ == "__main__":
  app.run(main)
