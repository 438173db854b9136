# What the machine must have, and how it gets it: apt packages, the compiler, CUDA. Sourced by dev.
# shellcheck shell=bash

missing=()      # apt packages
missing_why=()  # "package (what for)"

want() { # PACKAGE WHAT_FOR
  missing+=("$1")
  missing_why+=("$1 ($2)")
}

need_command() { # COMMAND PACKAGE WHAT_FOR
  command -v "$1" >/dev/null || want "$2" "$3"
}

need_header() { # HEADER PACKAGE WHAT_FOR
  local folder
  for folder in /usr/include /usr/local/include; do
    [ ! -e "$folder/$1" ] || return 0
  done
  want "$2" "$3"
}

at_least() { # VERSION MINIMUM
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

apt_has() { apt-cache show "$1" >/dev/null 2>&1; }

readonly compiler_minimum=12 cmake_minimum=3.22

# The first g++ that is new enough; CXX if the caller has set it.
pick_compiler() {
  [ -z "${CXX:-}" ] || return 0
  local suffix
  for suffix in "" -12 -13 -14 -15 -16; do
    if command -v "g++$suffix" >/dev/null && at_least "$("g++$suffix" -dumpversion)" "$compiler_minimum"; then
      export CXX=g++$suffix CC=gcc$suffix
      return 0
    fi
  done
  return 1
}

need_for_build() {
  pick_compiler || want g++ "the C++20 compiler"
  if ! command -v cmake >/dev/null || ! at_least "$(cmake --version | awk 'NR == 1 { print $3 }')" "$cmake_minimum"; then
    want cmake "the build's configuration, $cmake_minimum or later"
  fi
  need_command ninja ninja-build "the build"
  need_command python3 python3 "the download of Highway, and tests"
  if [ ! -e .cache/highway-1.3.0 ]; then
    python3 -c 'import pip' 2>/dev/null || want python3-pip "the download of Highway"
    [ -e /etc/ssl/certs/ca-certificates.crt ] || want ca-certificates "downloads"
  fi
  need_header fmt/format.h libfmt-dev "text formatting"
  need_header CLI/CLI.hpp libcli11-dev "the flash3 command's arguments"
  need_header nlohmann/json.hpp nlohmann-json3-dev "the flash3 command's files"
}

need_for_tests() {
  need_header gtest/gtest.h libgtest-dev "the C++ tests"
  need_header dlpack/dlpack.h libdlpack-dev "the DLPack tests"
  need_command pkg-config pkg-config "the package test"
  python3 -c 'import ensurepip' 2>/dev/null || want python3-venv "the Python package's tests"
  python3-config --includes >/dev/null 2>&1 || want python3-dev "the Python package"
}

need_for_bench() { need_header benchmark/benchmark.h libbenchmark-dev "the benchmarks"; }

# Versions of clang-format disagree, so it must be 14; clang-tidy may be any.
clang_format() { command -v clang-format-14 || { [ -x .venv/bin/clang-format ] && echo .venv/bin/clang-format; }; }
clang_tidy() { command -v clang-tidy-14 || command -v clang-tidy; }

need_for_format() { clang_format >/dev/null || want clang-format-14 "the format"; }

need_for_lint() {
  need_for_format
  clang_tidy >/dev/null || want clang-tidy-14 "static analysis"
  need_command shellcheck shellcheck "the check of shell scripts"
}

need_for_fuzz() {
  need_command clang++ clang "the fuzzers' compiler"
  compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a' >/dev/null ||
    want libclang-rt-dev "the fuzzers' run-time library"
}

# What a distribution calls differently, once apt's lists are there.
adapt_to_distribution() {
  local i
  for i in "${!missing[@]}"; do
    case ${missing[i]} in
      g++)
        if ! at_least "$(apt-cache policy g++ | sed -n 's/.*Candidate: \([0-9]*:\)\?//p')" "$compiler_minimum"; then
          missing[i]=g++-$compiler_minimum
        fi
        ;;
      clang-format-14) # from PyPI instead, see install_clang_format
        apt_has clang-format-14 || missing[i]=python3-venv
        ;;
      clang-tidy-14) apt_has clang-tidy-14 || missing[i]=clang-tidy ;;
      libclang-rt-dev) # part of libclang-common on some
        apt_has libclang-rt-dev || unset 'missing[i]'
        ;;
    esac
  done
}

install_missing() {
  [ "${#missing[@]}" -gt 0 ] || return 0
  printf 'dev: missing on this machine:\n' >&2
  printf '  %s\n' "${missing_why[@]}" >&2
  command -v apt-get >/dev/null || die "installing needs apt: install what is missing by other means, then run this again"
  local as_root=(env DEBIAN_FRONTEND=noninteractive)
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
      as_root=(sudo "${as_root[@]}")
    else
      die "installing needs root. Run this as root, then run ./dev again:
  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
    fi
  fi
  mkdir -p .cache
  "${as_root[@]}" apt-get update >.cache/apt.log 2>&1 || printf 'dev: apt-get update had errors, see .cache/apt.log\n' >&2
  adapt_to_distribution
  printf 'dev: apt-get install --no-install-recommends %s\n' "${missing[*]}" >&2
  if ! "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}" >>.cache/apt.log 2>&1; then
    tail -n 20 .cache/apt.log >&2
    die "apt-get install failed; its whole output is in .cache/apt.log. flash3 is set up on Debian 12, Ubuntu 22.04 or later"
  fi
  missing=() missing_why=()
}

# For a distribution that has left version 14 behind.
install_clang_format() {
  printf 'dev: installing clang-format 14 from PyPI into .venv\n' >&2
  python3 -m venv .venv && .venv/bin/pip install --quiet --disable-pip-version-check clang-format==14.0.6
}

# set_up PART...: what the parts (build, tests, bench, format, lint, fuzz) need is there after this.
set_up() {
  local part
  for part in "$@"; do "need_for_$part"; done
  install_missing
  if [[ " $* " =~ \ (format|lint)\  ]] && ! clang_format >/dev/null; then install_clang_format; fi
  pick_compiler || die "no g++ $compiler_minimum or later"
  find_cuda
  if command -v ccache >/dev/null; then
    export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache
  fi
}

readonly cuda_from_pypi=.cache/cuda

# CUDACXX, where there is an nvcc: the caller's, PATH's, the toolkit's usual place, or the one from PyPI.
find_cuda() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc \
    "$PWD/$cuda_from_pypi"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc; do
    if [ -n "$nvcc" ] && [ -x "$nvcc" ]; then
      export CUDACXX=$nvcc CUDAHOSTCXX=$CXX
      return 0
    fi
  done
}

# nvcc 13.0 and what it compiles against, as Python wheels, for a machine without the toolkit.
install_cuda_from_pypi() {
  [ ! -e "$cuda_from_pypi/complete" ] || return 0
  python3 -c 'import ensurepip, venv' 2>/dev/null || want python3-venv "a folder for CUDA's wheels"
  [ -e /etc/ssl/certs/ca-certificates.crt ] || want ca-certificates "downloads"
  install_missing
  printf 'dev: installing nvcc 13.0 from PyPI into %s\n' "$cuda_from_pypi" >&2
  python3 -m venv --clear "$cuda_from_pypi"
  "$cuda_from_pypi/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  local toolkit
  for toolkit in "$cuda_from_pypi"/lib/python3*/site-packages/nvidia/cu13; do ln -sfn lib "$toolkit/lib64"; done
  touch "$cuda_from_pypi/complete"
}
