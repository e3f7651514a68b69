#!/usr/bin/env bash
# A study as one array of Slurm jobs: 8 at the same time, each with a GPU. Start it on a login node, in a folder that the
# nodes see. It shows the state and makes the report at the end; Ctrl-C leaves the jobs alone, and the same command shows
# them again.
set -euo pipefail
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/compiled}

jaxboost study --study ladder --out studies/ladder \
  --slurm --partition=gpu --time=04:00:00 --tasks=8 --gpus=1 --cpus=4 --mem=16G \
  --setup='module load cuda' --sbatch=--constraint=a100
