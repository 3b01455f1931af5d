"""Time of one DDi training step against K PGD steps, for every loop form.

python benchmarks/loop_forms.py --width=16 --batch_size=64 --num_restarts=4

Prints a Markdown table.  With --convolution=lax the model uses
`jax.lax.conv_general_dilated`, as a user's own model would.
"""

from absl import app, flags
import workload

_FORMS = flags.DEFINE_list(
  "forms", ["auto", "loop", "merge", "unroll", "vmap"], "Loop forms to time."
)

# Form -> the three loops of a step.
_LOOPS = {
  "auto": {},
  "loop": {"gradients": "loop", "restarts": "loop", "steps": "loop"},
  "merge": {"gradients": "loop", "restarts": "merge", "steps": "loop"},
  "unroll": {"gradients": "unroll", "restarts": "unroll", "steps": "unroll"},
  "vmap": {"gradients": "vmap", "restarts": "vmap", "steps": "loop"},
}


def _compiled(method, form):
  return workload.CompiledStep(workload.create(method, _LOOPS[form]))


def main(_):
  """Times and prints."""
  print(workload.describe() + "\n", flush=True)
  forms = _FORMS.value
  pgd = {
    f"pgd {form}": _compiled("pgd", form)
    for form in forms
    if form in ("auto", "loop", "unroll")
  }
  ddi = {form: _compiled("danskin", form) for form in forms}
  seconds = workload.median_seconds({**pgd, **ddi})
  num_restarts = flags.FLAGS.num_restarts
  reference = num_restarts * min(seconds[name] for name in pgd)
  best = min(seconds[form] for form in forms)
  print("| loop form | DDi step (s) | / best form | / (K PGD steps) | compile (s) |")
  print("|---|---|---|---|---|")
  for form, compiled in ddi.items():
    print(
      f"| {form} | {seconds[form]:.2f} | {seconds[form] / best:.2f} | "
      f"{seconds[form] / reference:.2f} | {compiled.compile_seconds:.0f} |"
    )
  print(
    f"\nK times one PGD step: {reference:.2f} s (the fastest of "
    + ", ".join(f"{name} {seconds[name]:.2f} s" for name in pgd)
    + " a step)."
  )


if __name__ == "__main__":
  app.run(main)
