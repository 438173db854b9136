#!/usr/bin/env bash
# Installs flash3, moves the installation, and uses it from other projects: CMake in C++ (shared and static), CMake in C
# alone, the examples, pkg-config.
#   package_test.sh BUILD_FOLDER SOURCE_FOLDER WORK_FOLDER VERSION
set -euo pipefail
build=$1 source=$2 work=$3 version=$4
prefix=$work/moved

fail() {
  printf 'package_test: %s\n' "$*" >&2
  exit 1
}

# configure_and_build NAME SOURCE: a consumer of the installation, in $work/NAME.
configure_and_build() {
  if ! {
    cmake -S "$2" -B "$work/$1" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DEXPECTED_VERSION="$version" \
      -DEXAMPLES="$source/examples" && cmake --build "$work/$1"
  } >"$work/$1.log" 2>&1; then
    cat "$work/$1.log"
    fail "$1 does not build against the installed package"
  fi
}

expect_output() {
  local words=$1
  shift
  "$@" >"$work/output" || fail "$* failed"
  grep -q -- "$words" "$work/output" || { cat "$work/output"; fail "$* does not print '$words'"; }
}

rm -rf "$work"
mkdir -p "$work"
cmake --install "$build" --prefix "$work/installed" >"$work/install.log" || { cat "$work/install.log"; fail "install"; }
mv "$work/installed" "$prefix"

diff <(cd "$source/include" && find . -type f | sort) <(cd "$prefix/include" && find . -type f | sort) ||
  fail "the installed headers are not those of include/"

shared=$(find "$prefix" -name 'libflash3.so')
[ -n "$shared" ] || fail "no shared library"
foreign=$(nm -D --defined-only "$shared" | awk '$3 !~ /flash3/ { print $3 }')
[ -z "$foreign" ] || fail "the shared library shows symbols that are not flash3's: $foreign"

configure_and_build consumer "$source/tests/package/consumer"
expect_output 'engine' "$work/consumer/consumer_flash3"
expect_output 'engine' "$work/consumer/consumer_static"
! readelf -d "$work/consumer/consumer_static" | grep -q libflash3 || fail "the static consumer needs libflash3.so"

configure_and_build consumer_c "$source/tests/package/consumer_c"
expect_output 'out      3.0000 4.0000' "$work/consumer_c/consumer_c"

configure_and_build examples "$source/examples"
expect_output 'last of d_query' "$work/examples/attention"
expect_output 'out      3.0000 4.0000' "$work/examples/attention_c"

if command -v pkg-config >/dev/null; then
  PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name flash3.pc)")
  export PKG_CONFIG_PATH
  [ "$(pkg-config --modversion flash3)" = "$version" ] || fail "pkg-config's version is not $version"
  read -ra flags <<<"$(pkg-config --cflags --libs flash3)"
  "${CC:-cc}" -std=c99 "$source/examples/attention.c" "${flags[@]}" -Wl,-rpath,"$(dirname "$shared")" -o "$work/pkg"
  expect_output 'out      3.0000 4.0000' "$work/pkg"
fi
echo "package_test: all consumers build and run"
