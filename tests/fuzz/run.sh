#!/usr/bin/env bash
# Builds the fuzzers with clang and runs each for so many seconds from its corpus; what breaks is left in build/fuzz.
#   tests/fuzz/run.sh [SECONDS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-60}
build=build/fuzz
targets=(safetensors npy check)

cmake --preset fuzz -DFLASH3_FUZZ=ON >/dev/null
cmake --build "$build" --target "${targets[@]/#/fuzz_}"

pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true' EXIT
for target in "${targets[@]}"; do
  found=$build/corpus/$target # new inputs land here, not in the sources
  mkdir -p "$found" "$build/broken"
  "$build/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=4096 \
    -artifact_prefix="$build/broken/$target-" "$found" "tests/fuzz/corpus/$target" >"$build/$target.log" 2>&1 &
  pids+=($!)
done
failed=0
for i in "${!targets[@]}"; do
  if wait "${pids[i]}"; then
    tail -n 1 "$build/${targets[i]}.log" | sed "s/^/fuzz_${targets[i]}: /"
  else
    failed=1
    printf 'fuzz_%s: broken\n' "${targets[i]}"
    tail -n 40 "$build/${targets[i]}.log"
  fi
done
pids=()
exit "$failed"
