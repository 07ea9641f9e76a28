#!/usr/bin/env bash
# run.sh install|cmake|pkg_config <build tree> <work folder>: installs the build tree, moves what was installed to
# another place, and builds and runs a program against it, found by CMake's find_package or by pkg-config.
# ctest sets CMAKE, CMAKE_GENERATOR and CXX.
set -euo pipefail
step="$1"
build="$2"
work="$3"
here="$(cd "$(dirname "$0")" && pwd)"
prefix="$work/moved/here"

if [ "$step" != install ] && ! command -v "${CXX:-c++}" >/dev/null; then
    echo "skipped: no C++ compiler"
    exit 77
fi

case "$step" in
install)
    rm -rf "$work"
    "$CMAKE" --install "$build" --prefix "$work/first"
    mkdir -p "$work/moved"
    mv "$work/first" "$prefix"
    if grep -rIl -e "$work/first" -e "$build" "$prefix"; then
        echo "the files above name a place they were moved from" >&2
        exit 1
    fi
    library="$(find "$prefix" -name libmagi_attn.so)"
    [ "$(readlink "$library")" = libmagi_attn.so.0 ]
    [ "$(readlink "$library.0" | grep -cE '^libmagi_attn\.so\.0\.[0-9]+\.[0-9]+$')" = 1 ]
    ;;
cmake)
    "$CMAKE" -S "$here" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix"
    "$CMAKE" --build "$work/cmake"
    "$work/cmake/consumer"
    ;;
pkg_config)
    if ! command -v pkg-config >/dev/null; then
        echo "skipped: no pkg-config"
        exit 77
    fi
    PKG_CONFIG_PATH="$(dirname "$(find "$prefix" -name magi_attn.pc)")"
    export PKG_CONFIG_PATH
    flags="$(pkg-config --cflags --libs magi_attn)"
    version="$(pkg-config --modversion magi_attn)"
    # shellcheck disable=SC2086 # the flags are words
    "${CXX:-c++}" -std=c++17 "$here/main.cpp" $flags -o "$work/with_pkg_config"
    LD_LIBRARY_PATH="$(pkg-config --variable=libdir magi_attn)" "$work/with_pkg_config" | tee "$work/output"
    grep -qx "magi_attn $version" "$work/output"
    ;;
*)
    echo "unknown step $step" >&2
    exit 2
    ;;
esac
