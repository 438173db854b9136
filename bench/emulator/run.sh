#!/usr/bin/env bash
# Runs every forward kernel on the emulator under many schedules, and writes one JSON file with what came of it. No GPU needed;
# 1,000 seeds take some twenty minutes of one core.
#
#   bench/emulator/run.sh [SEEDS] [OUT.json]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
seeds=${1:-1000}
out=${2:-$root/bench/results/$(date -u +%F)-emulator-seeds.json}
cmake -S "$root" --preset release -DFLASH3_CUDA=OFF -B "$root/build/emulator" >/dev/null
cmake --build "$root/build/emulator" --parallel --target forward_emulator_seeds
FLASH3_COMMIT=${FLASH3_COMMIT:-$(git -C "$root" rev-parse HEAD)} \
  nice "$root/build/emulator/tests/forward/forward_emulator_seeds" --seeds "$seeds" --json "$out"
