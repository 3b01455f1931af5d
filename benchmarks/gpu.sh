#!/usr/bin/env bash
# All that is measured on a GPU, one after another, as Markdown in a folder.
#
#   benchmarks/gpu.sh RESULTS DATA_DIR    # CIFAR-10 in TFDS' form in DATA_DIR
#   TINY=1 benchmarks/gpu.sh RESULTS      # tries every command with tiny sizes, on any machine
#
# Needs the extras `experiments`, `test` and `peers`.  A command that fails is named at the end, and
# does not stop the others.
set -uo pipefail
results=$(realpath -m "${1:?usage: benchmarks/gpu.sh RESULTS [DATA_DIR]}")
data=${2:-}
cd "$(dirname "$0")/.."
mkdir -p "$results"
failed=()

run() {  # NAME COMMAND...: the output goes to RESULTS/NAME.md
  local name=$1
  shift
  echo "== $name: $*" >&2
  { echo "    $*"; echo; "$@"; } >"$results/$name.md" 2>"$results/$name.log" || failed+=("$name")
}

if [[ ${TINY:-} ]]; then
  size=(--model=small --width=8 --batch_size=8 --steps=2 --repeats=1)
  counts=(1 2)
  grid=(--counts=1,2 --batch_sizes=8,16 --widths=8,16)
  memory=(--counts=2 --restarts_at_a_time=1,2 --gradients_at_a_time=0,1)
else
  size=(--model=resnet18 --width=64 --batch_size=128 --steps=10 --repeats=5)
  counts=(1 2 4 10)
  grid=(--counts=1,2,4,8,16 --batch_sizes=32,64,128,256,512 --widths=16,32,64,128)
  memory=(--counts=2,4,8,16 --restarts_at_a_time=1,2,4 --gradients_at_a_time=0,1,2)
fi

nvidia-smi >"$results/device.txt" 2>/dev/null || echo "no GPU" >"$results/device.txt"
run parity python -m pytest -q --numprocesses=0 -rs tests/training/devices/test_gpu.py
for count in "${counts[@]}"; do
  # One restart after another, all in one vmapped program; float32 and bfloat16 attacks.
  run "step-$count" python benchmarks/step.py "${size[@]}" --num_restarts="$count"
  run "forms-$count" python benchmarks/loop_forms.py "${size[@]}" --num_restarts="$count"
  run "bfloat16-$count" python benchmarks/step.py "${size[@]}" --num_restarts="$count" \
    --attack_dtype=bfloat16
done
# jax's default on a GPU is TF32; its time beside that of full float32.
run float32 env JAX_DEFAULT_MATMUL_PRECISION=highest python benchmarks/step.py "${size[@]}"
run memory python benchmarks/memory.py "${size[@]}" "${memory[@]}"
run growth python benchmarks/growth.py "${size[@]}" "${grid[@]}" --picture="$results/growth.png"
run cold_start python benchmarks/cold_start.py --notraining
if [[ $data ]]; then
  run training python launch.py --config=configs/cifar10.py --config.data.data_dir="$data" \
    --config.num_epochs=3.0 --workdir="$results/cifar10"
  run small python launch.py --config=configs/cifar10_small.py --config.data.data_dir="$data" \
    --config.method=pgd --config.model.activation=relu --config.num_epochs=3.0 \
    --workdir="$results/small"
  run autoattack python benchmarks/autoattack_parity.py --workdir="$results/small" \
    --data_dir="$data" --seeds=1
fi
if ((${#failed[@]})); then
  echo "failed: ${failed[*]} (see $results/NAME.log)" >&2
  exit 1
fi
