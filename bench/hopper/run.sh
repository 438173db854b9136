#!/usr/bin/env bash
# Builds where nvcc is found (or takes what --build DIR holds), checks the forward kernels on this machine's Hopper GPU, times
# them beside the rivals that PyTorch brings, and writes one JSON file with all of it.
#
#   bench/hopper/run.sh [--build DIR] [--wheel FILE] [--out result.json] [-- arguments for rivals.py]
#
# --wheel: a wheel of the Python package with the CUDA part, whose tests and host times join the result (bench/python/run.sh).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=
wheel=
out=hopper-result.json
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --wheel) wheel=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --) shift; break ;;
    *) echo "run.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
if [ -z "$build" ]; then
  build=$root/build/hopper
  cmake -S "$root" -B "$build" -DFLASH3_CUDA=ON -DFLASH3_TESTS=ON -DFLASH3_TOOLS=OFF >/dev/null
  cmake --build "$build" --parallel --target flash3 flash3_gpu_tests
fi
tests=$(find "$build" -name flash3_gpu_tests -type f | head -n 1)
library=$(find "$build" -name 'libflash3.so*' -type f | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
"$tests" --repeats "${FLASH3_REPEATS:-200}" --json "$work/tests.json" 2>/dev/null || status=$?
python3 "$here/rivals.py" --library "$library" --json "$work/times.json" "$@" || echo "timing failed" >&2
[ -z "$wheel" ] || "$root/bench/python/run.sh" --wheel "$wheel" --json "$work/python.json" || status=$?
commit=${FLASH3_COMMIT:-$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)} \
  python3 - "$work" "$out" <<'END'
import json, os, pathlib, sys
work, out = pathlib.Path(sys.argv[1]), sys.argv[2]
read = lambda name: json.loads((work / name).read_text()) if (work / name).exists() else None
result = {"commit": os.environ["commit"], "times": read("times.json"), "tests": read("tests.json"), "python": read("python.json")}
pathlib.Path(out).write_text(json.dumps(result, indent=1) + "\n")
passed = sum(t["ok"] for t in result["tests"] or [])
print(f"{out}: {passed} of {len(result['tests'] or [])} tests passed")
END
exit $status
