#!/bin/bash
# 64 hosts with 8 GPUs each, one process per GPU:  sbatch examples/slurm.sh
# SLURM tells the processes of each other; nothing but --distributed is needed.
# The restarts (K = 10) are split over 2 GPUs of a host, the batch over 256 such pairs.
# The workdir must be on a file system that all hosts see.  SIGTERM comes two minutes
# before the time is up: the run saves itself, and the same command resumes it.
#SBATCH --job-name=ddi_jax
#SBATCH --nodes=64
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail

srun --kill-on-bad-exit=1 python launch.py \
  --config=configs/cifar10.py \
  --config.data.data_dir="${TFDS_DATA_DIR:?the prepared data sets}" \
  --workdir="${WORKDIR:?a folder that all hosts see}" \
  --config.batch_size=4096 \
  --config.evaluation.batch_size=4096 \
  --config.mesh.restart=2 \
  --config.mesh.data=256 \
  --distributed
