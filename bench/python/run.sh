#!/usr/bin/env bash
# Checks the Python package on this machine's Hopper GPU and times a call's cost on the host: installs a wheel into a temporary
# folder beside whatever PyTorch, JAX and transformers there are, runs tests/python/test_cuda.py with pytest where there is
# one, then bench/python/host_time.py; one JSON file with both.
#
#   bench/python/run.sh --wheel FILE [--json FILE]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
wheel=
json=python-result.json
while [ $# -gt 0 ]; do
  case $1 in
    --wheel) wheel=$2; shift 2 ;;
    --json) json=$2; shift 2 ;;
    *) echo "run.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
[ -f "$wheel" ] || { echo "run.sh: --wheel '$wheel' is no file" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-index \
  --target "$work/site" "$wheel"
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} FLASH3_GPU_TESTS=required
status=0
if python3 -c 'import pytest' 2>/dev/null; then
  (cd "$root/tests/python" && timeout "${FLASH3_PYTHON_TESTS_SECONDS:-300}" python3 -m pytest -q -p no:cacheprovider \
    -W ignore --tb=short --show-capture=no --durations=8 --junitxml="$work/tests.xml" test_cuda.py test_streams.py) || status=$?
else
  echo "run.sh: no pytest here: the Python tests are left out" >&2
fi
python3 "$here/host_time.py" --json "$work/times.json" || status=$?
python3 - "$work" "$json" <<'END'
import json, pathlib, sys
import xml.etree.ElementTree as xml
work, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
tests = []
if (work / "tests.xml").exists():
    for case in xml.parse(work / "tests.xml").iter("testcase"):
        outcome = next((c.tag for c in case if c.tag in ("failure", "error", "skipped")), "passed")
        tests.append({"name": case.get("name"), "outcome": outcome, "seconds": float(case.get("time"))})
times = json.loads((work / "times.json").read_text()) if (work / "times.json").exists() else None
out.write_text(json.dumps({"host_time": times, "tests": tests}, indent=1) + "\n")
print(f"{out}: {sum(t['outcome'] == 'passed' for t in tests)} of {len(tests)} Python tests passed")
END
exit "$status"
