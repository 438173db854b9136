#!/usr/bin/env bash
# Builds where nvcc is found (or takes what --build DIR holds), checks the forward kernels on this machine's Hopper GPU, times
# them beside the rivals that are installed, and writes one JSON file with all of it.
#
#   bench/hopper/run.sh [--build DIR] [--wheel FILE] [--out result.json] [--no-tests] [--sanitizer PATH|none]
#       [-- arguments for rivals.py]
#
# Where compute-sanitizer is found, or given, its tools run over a few small tests (sanitize.sh).
# --wheel: a wheel of the Python package with the CUDA part, whose tests and host times join the result (bench/python/run.sh).
#
# For example: bench/hopper/run.sh -- --sections grid,gqa,varlen --dtypes bf16,fp16
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=
wheel=
out=hopper-result.json
tests=yes
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || echo none)
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --wheel) wheel=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --no-tests) tests=no; shift ;;
    --sanitizer) sanitizer=$2; shift 2 ;;
    --) shift; break ;;
    *) echo "run.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
commit=${FLASH3_COMMIT:-$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)}
status=0

build_all() {
  build=$root/build/hopper
  cmake -S "$root" -B "$build" -DFLASH3_CUDA=ON -DFLASH3_TESTS=ON -DFLASH3_TOOLS=OFF >/dev/null
  cmake --build "$build" --parallel --target flash3 flash3_gpu_tests hopper_device_tests
}

program() { find "$build" -name "$1" -type f | head -n 1; } # NAME

check_kernels() {
  "$(program flash3_gpu_tests)" --repeats "${FLASH3_REPEATS:-200}" --json "$work/tests.json" 2>/dev/null
}

# The instruction room: what each instruction does on this GPU.
check_instructions() {
  local tests
  tests=$(program hopper_device_tests)
  [ -z "$tests" ] || "$tests" --gtest_brief=1 --gtest_output="json:$work/room.json"
}

check_memory() { "$here/sanitize.sh" "$sanitizer" "$(program flash3_gpu_tests)" "$work/sanitizer.json"; }

time_kernels() {
  local library
  library=$(find "$build" -name 'libflash3.so*' -type f | head -n 1)
  python3 "$here/rivals.py" --library "$library" --commit "$commit" --json "$work/times.json" "$@"
}

# Each part leaves its JSON in $work, whether or not the others did well.
write_result() {
  python3 - "$work" "$out" "$commit" <<'END'
import json, pathlib, sys
work, out, commit = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
read = lambda name: json.loads((work / name).read_text()) if (work / name).exists() else None
room = [{"test": f"{suite['name']}.{t['name']}", "ok": not t.get("failures")}
        for suite in (read("room.json") or {}).get("testsuites", []) for t in suite["testsuite"]]
result = {"commit": commit, "times": read("times.json"), "tests": read("tests.json"), "instructions": room,
          "sanitizer": read("sanitizer.json"), "python": read("python.json")}
pathlib.Path(out).write_text(json.dumps(result, indent=1) + "\n")
passed = sum(t["ok"] for t in result["tests"] or [])
print(f"{out}: {passed} of {len(result['tests'] or [])} tests passed, {sum(t['ok'] for t in room)} of {len(room)} of instructions")
END
}

[ -n "$build" ] || build_all
if [ "$tests" = yes ]; then
  check_instructions || status=$?
  check_kernels || status=$?
  check_memory || status=$?
fi
time_kernels "$@" || { echo "timing failed" >&2; status=1; }
[ -z "$wheel" ] || "$root/bench/python/run.sh" --wheel "$wheel" --json "$work/python.json" || status=$?
write_result
exit "$status"
