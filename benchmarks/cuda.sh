#!/usr/bin/env bash
# The rows of a GPU, in at most 8 minutes: parity of the original's fp16 mix, and speed from one image to saturation.
#
#   benchmarks/cuda.sh [FOLDER]    # results.json and results.png of each step go there (default: build/cuda)
#
# Weights are random: nothing is downloaded. A step that takes too long is cut off and named, and the next one runs.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
folder=${1:-build/cuda}
failed=()

step() { # seconds, name, command
  local seconds=$1 name=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" || failed+=("$name (status $?)")
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
  echo "PyTorch sees no GPU: install its build for CUDA, or set PYTHON" >&2
  exit 1
}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
step 60 "parity of the fp16 mix with the original" "$python" -m benchmarks.cuda
step 150 "images and texts" "$python" -m benchmarks encode --models ViT-B/32,RN50 --batches 1,16,256 --rounds 5 \
  --no-compiled --device cuda --output "$folder/encode"
step 150 "torch.compile" "$python" -m benchmarks encode --models ViT-B/32 --batches 1,64 --rounds 5 \
  --device cuda --output "$folder/compiled"
step 60 "zero-shot" "$python" -m benchmarks zero-shot --rounds 3 --device cuda --output "$folder/zero-shot"
step 50 "the nine" "$python" -m benchmarks.nine --device cuda
if [ ${#failed[@]} -gt 0 ]; then
  printf 'not finished: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "done: $folder"
