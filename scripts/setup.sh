#!/usr/bin/env bash
# Sets up what the scripts need and the machine lacks. Starts from cargo, a C compiler, and pip or apt.
#
#   scripts/setup.sh quickstart   only what quickstart.sh needs (nothing is installed)
#   scripts/setup.sh test         cmake, ninja, a C++ compiler, valgrind, nvcc and NVRTC
#   scripts/setup.sh              all of it: test, and clang-format, ruff, rustfmt and clippy
#
# cmake, ninja, clang-format, ruff and CUDA's compilers go to .tools/ inside the project; nothing else of the machine is touched, except
# that packages come from apt when this runs as root. Running it again does nothing and takes no time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

# Pinned: another clang-format formats differently. Any cmake from 3.22 and any ninja would do.
CMAKE_VERSION=3.31.10
NINJA_VERSION=1.13.0
CLANG_FORMAT_VERSION=21.1.8
RUFF_VERSION=0.17.6
# Kernels are checked as these compile them; no GPU and no driver is needed.
CUDA_WHEELS=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86)

apt_updated=0
# Installs packages when that is possible; says so when not.
apt_install() {
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        return 1
    fi
    say "apt-get install $*"
    if [ "$apt_updated" = 0 ]; then
        apt-get update -qq </dev/null || true
        apt_updated=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

# pip_install <package> <version> <path of the program inside the wheel> <program>
# The native program is linked straight into .tools/bin, so that no Python environment has to be active to run it.
pip_install() {
    have python3 && python3 -m pip --version >/dev/null 2>&1 || return 1
    say "pip: $1 $2 into .tools/"
    python3 -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore --upgrade --only-binary=:all: \
        --target ".tools/$1" "$1==$2" </dev/null || return 1
    mkdir -p .tools/bin
    ln -sfn "../$1/$3" ".tools/bin/$4"
    "$ROOT/.tools/bin/$4" --version >/dev/null
}

# Whether the program is there and `--version` prints a version of at least $2 (major.minor).
at_least() {
    local found
    have "$1" || return 1
    found="$("$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+' | head -n 1)"
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$2" "$found" | sort -V | head -n 1)" = "$2" ]
}

need_cargo() {
    have cargo || die "cargo is missing: install Rust 1.95 or later with rustup"
    at_least cargo 1.95 || die "cargo is too old: $(cargo --version); 1.95 or later is needed (rustup update stable)"
}

need_cc() {
    have cc || apt_install gcc libc6-dev || die "a C compiler (cc) is missing"
}

need_cxx() {
    have c++ || apt_install g++ || say "no C++ compiler: tests of the header as C++ will be left out"
}

need_cmake() {
    at_least cmake 3.22 || pip_install cmake "$CMAKE_VERSION" cmake/data/bin/cmake cmake || apt_install cmake ||
        die "cmake 3.22 or later is missing, and neither pip nor apt (as root) could install it"
    # ctest comes with cmake; a wheel's lies beside it.
    if [ -e .tools/bin/cmake ] && [ ! -e .tools/bin/ctest ]; then
        ln -sfn ../cmake/cmake/data/bin/ctest .tools/bin/ctest
    fi
    have ctest || die "ctest is missing beside $(command -v cmake)"
}

need_ninja() {
    have ninja || pip_install ninja "$NINJA_VERSION" bin/ninja ninja || apt_install ninja-build ||
        have make || apt_install make || die "neither ninja nor make is there, nor could pip or apt install one"
}

need_valgrind() {
    have valgrind || apt_install valgrind || say "no valgrind: the C programs are checked with AddressSanitizer instead"
}

need_pkg_config() {
    have pkg-config || apt_install pkg-config || say "no pkg-config: its test will be skipped"
}

need_clang_format() {
    if ! clang-format --version 2>/dev/null | grep -q " $CLANG_FORMAT_VERSION"; then
        pip_install clang-format "$CLANG_FORMAT_VERSION" clang_format/data/bin/clang-format clang-format ||
            die "clang-format $CLANG_FORMAT_VERSION is missing, and pip could not install it"
    fi
}

need_ruff() {
    at_least ruff "${RUFF_VERSION%.*}" || pip_install ruff "$RUFF_VERSION" bin/ruff ruff ||
        die "ruff $RUFF_VERSION is missing, and pip could not install it"
}

# nvcc, NVRTC and the disassemblers, below .tools/cuda/nvidia/cu13. A toolkit that CUDA_HOME names is used instead.
need_nvcc() {
    if [ -x "${CUDA_HOME:-/nonexistent}/bin/nvcc" ]; then
        return 0
    fi
    if [ "$(uname -s)" != Linux ]; then
        say "no CUDA compilers for $(uname -s): kernels are not checked"
        return 0
    fi
    # A folder that is half there would be taken for whole: it gets its name at the end.
    say "pip: CUDA 13.0 compilers into .tools/cuda"
    rm -rf .tools/cuda .tools/cuda.part
    if have python3 && python3 -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore \
        --only-binary=:all: --target .tools/cuda.part "${CUDA_WHEELS[@]}" </dev/null; then
        mv .tools/cuda.part .tools/cuda
        CUDA_HOME="$ROOT/.tools/cuda/nvidia/cu13"
        "$CUDA_HOME/bin/nvcc" --version >/dev/null || die "nvcc was installed into .tools/cuda and does not run"
    else
        die "nvcc is missing (CUDA_HOME), and pip could not install it"
    fi
}

need_rust_components() {
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt || die "rustfmt is missing"
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy || die "clippy is missing"
}

need_cargo
need_cc
case "${1:-all}" in
quickstart) ;;
test | all)
    need_cxx
    need_cmake
    need_ninja
    need_pkg_config
    need_valgrind
    need_nvcc
    if [ "${1:-all}" = all ]; then
        need_clang_format
        need_ruff
        need_rust_components
    fi
    ;;
*) die "usage: scripts/setup.sh [quickstart|test|all]" ;;
esac
say "set up for ${1:-all}: cargo $(cargo --version | cut -d' ' -f2), $(cc --version | head -n 1)"
