#!/usr/bin/env bash
# The Python package's tests: builds the wheel, installs it beside pinned frameworks into .cache, runs pytest.
# Usage: tests/python/run.sh [pytest arguments]
#
# A framework that cannot be had here is left out, loudly and by name; where CI is set, that is an error for NumPy.
#   PYTHON          the interpreter to test (default python3)
#   FLASH3_CUDA     whether the wheel holds the CUDA kernels (default OFF: these tests run on the CPU)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cache=$root/.cache/python-tests
environment=$cache/$version
mkdir -p "$cache"

say() { printf 'python tests: %s\n' "$*" >&2; }

# install NAME PIP-ARGUMENTS...: once for each wording of the arguments and each content of the pinned list.
install() {
  local name=$1
  shift
  local stamp want
  stamp=$environment/installed-$name
  want="$* $(cat "$here/requirements.txt")"
  [[ -f $stamp && $(cat "$stamp") == "$want" ]] && return 0
  say "installing $name"
  if ! "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@" > "$cache/pip.log" 2>&1; then
    cat "$cache/pip.log" >&2
    return 1
  fi
  printf '%s' "$want" > "$stamp"
}

[[ -x $environment/bin/python ]] || "$python" -m venv "$environment"
if ! install base -r "$here/requirements.txt"; then
  say "NOT RUN: NumPy and the build tools of requirements.txt could not be installed"
  [[ -z ${CI:-} ]] || exit 1
  exit 0
fi

# PyTorch without its 3 GB of CUDA libraries: what it loads at import comes from a CUDA toolkit, where there is one, and
# from the wheels of three small libraries.
if ! install torch --no-deps torch==2.11.0 nvidia-cufile==1.20.0.107 nvidia-cusparselt-cu13==0.8.0 \
  nvidia-nvshmem-cu13==3.4.5 ||
  ! install torch-needs filelock fsspec jinja2 networkx sympy typing_extensions; then
  say "LEFT OUT: PyTorch could not be installed"
fi
libraries=$(printf '%s:' /usr/local/cuda/lib64 "$environment"/lib/python*/site-packages/nvidia/*/lib)
export LD_LIBRARY_PATH=${libraries%:}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export TORCHINDUCTOR_CACHE_DIR=$cache/inductor
if ! "$environment/bin/python" -c 'import torch' 2> "$cache/torch.log"; then
  say "LEFT OUT: PyTorch cannot be imported here: $(tail -n 1 "$cache/torch.log")"
fi

install jax jax==0.10.2 jaxlib==0.10.2 || say "LEFT OUT: JAX could not be installed"
install transformers transformers==5.23.0 || say "LEFT OUT: Hugging Face transformers could not be installed"

pip() { "$environment/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }

say "building the wheel"
rm -rf "$cache/dist"
settings=(build-dir="$root/build/python-$version" cmake.define.FLASH3_CUDA="${FLASH3_CUDA:-OFF}")
if command -v ccache > /dev/null; then settings+=(cmake.define.CMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
pip wheel --no-build-isolation --no-deps --wheel-dir "$cache/dist" "${settings[@]/#/--config-settings=}" "$root"
FLASH3_WHEEL=$(echo "$cache"/dist/flash3-*.whl)
export FLASH3_WHEEL
pip install --no-deps --force-reinstall "$FLASH3_WHEEL"

cd "$here"
exec "$environment/bin/python" -m pytest -q -p no:cacheprovider -W ignore::DeprecationWarning "$@"
