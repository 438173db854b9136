#!/usr/bin/env bash
# Runs the GPU tests whose names hold one of a few texts under compute-sanitizer's tools, and writes what came of it.
#
#   bench/hopper/sanitize.sh PATH_OF_COMPUTE_SANITIZER|none FLASH3_GPU_TESTS OUT.json
set -euo pipefail
sanitizer=$1 tests=$2 out=$3
if [ "$sanitizer" = none ]; then
  echo "compute-sanitizer: not found, left out"
  exit 0
fi
# Every way that a kernel reads and writes: whole tiles, edges, other sequences' rows, a NaN to be mended, grouped heads.
filters=("bfloat16 128x128 full 300" "bfloat16 64x64 causal 130 on 391" "bfloat16 256x256 full 300"
  "float16 192x128 variable length, causal" "bfloat16 96x96 NaN" "bfloat16 161x77" "bfloat16 128x128 MQA 16")
failed=0 rows=()
for tool in memcheck racecheck synccheck; do
  for filter in "${filters[@]}"; do
    log=$(mktemp)
    status=0
    "$sanitizer" --tool "$tool" --error-exitcode 9 --kernel-name kns=forward_kernel "$tests" --filter "$filter" \
      --seconds 300 --repeats 1 >"$log" 2>&1 || status=$?
    summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//' | tr -d '"' || true)
    printf '%s, %s: exit %s, %s\n' "$tool" "$filter" "$status" "${summary:-no summary}"
    [ "$status" -eq 0 ] || { failed=1; grep -E '^=========' "$log" | head -n 20 || true; }
    rows+=("{\"tool\": \"$tool\", \"tests\": \"$filter\", \"exit\": $status, \"summary\": \"$summary\"}")
    rm -f "$log"
  done
done
(IFS=,; printf '[%s]\n' "${rows[*]}") >"$out"
exit $failed
