#!/usr/bin/env bash
# Collects what a GPU machine without cargo needs: the library with its kernels, the C tests, the benchmarks and the cases, in one
# folder that git ignores.
#
#   scripts/stage.sh [--rust NAME]... [FOLDER]     FOLDER: .stage-gpu
#
# --rust also stages the Rust test program tests/NAME.rs. There, run_tests.sh and run_bench.sh run what was staged.
# Needs nvcc (scripts/setup.sh test), so that the kernels are inside the library.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

LIMIT_MIB=48
BUILD="target/stage"
rust=()
while [ "${1:-}" = --rust ]; do
    rust+=("${2:?--rust needs the name of a test}")
    shift 2
done
stage="${1:-.stage-gpu}"
[ "$#" -le 1 ] || die "usage: scripts/stage.sh [--rust NAME]... [FOLDER]"

have_nvcc() {
    [ -x "${NVCC:-/nonexistent}" ] || [ -x "${CUDA_HOME:-/nonexistent}/bin/nvcc" ] || [ -x "${CUDA_PATH:-/nonexistent}/bin/nvcc" ] || have nvcc
}

build() {
    local generator=()
    if [ ! -e "$BUILD/CMakeCache.txt" ] && have ninja; then
        generator=(-G Ninja)
    fi
    # run_tests.sh says where the library is; a path of this machine has no place in the programs.
    cmake -S . -B "$BUILD" "${generator[@]}" -DBUILD_TESTING=ON -DCMAKE_BUILD_TYPE=Release -DCMAKE_SKIP_RPATH=ON >"$BUILD.log"
    cmake --build "$BUILD" --parallel "$JOBS"
}

# copy_library <folder of the build tree> <folder of the stage>: with its links, without symbols that nothing looks up.
copy_library() {
    mkdir -p "$2"
    cp -P "$1"/libmagi_attn.so* "$2/"
    find "$2" -type f -name 'libmagi_attn.so*' -exec strip --strip-unneeded {} +
}

# Lines of tests.txt: name, folder of its library, seconds it may take.
copy_tests() {
    local program name source folder seconds
    mkdir -p "$stage/tests"
    for program in "$BUILD"/ctests/{c,cpp,fault,example}_*; do
        [ -f "$program" ] && [ -x "$program" ] || continue
        name="${program##*/}"
        case "$name" in
        fault_*) source="ctests/${name#fault_}.c" folder=lib-fault ;;
        cpp_*) source="ctests/${name#cpp_}.cpp" folder=lib ;;
        example_*) source="examples/${name#example_}.c" folder=lib ;;
        *) source="ctests/${name#c_}.c" folder=lib ;;
        esac
        # The build tree keeps programs whose source is gone.
        [ -f "$source" ] || continue
        seconds="$(grep -oE 'timeout: [0-9]+' "$source" | head -n 1 | cut -d' ' -f2 || true)"
        cp "$program" "$stage/tests/"
        printf '%s %s %s\n' "$name" "$folder" "${seconds:-60}"
    done
    cp scripts/staged/bench_tools "$stage/tests/"
    echo "bench_tools lib 300"
    for source in tests/gpu/*.py; do
        name="gpu_$(basename "$source" .py)"
        cp scripts/staged/gpu_test "$stage/tests/$name"
        printf '%s lib 500\n' "$name"
    done
    for name in "${rust[@]}"; do
        program="$(cargo test --release --locked --no-run --test "$name" --message-format=json |
            grep -oE '"executable":"[^"]+"' | tail -n 1 | cut -d'"' -f4)"
        cp "$program" "$stage/tests/rust_$name"
        printf 'rust_%s lib 600\n' "$name"
    done
}

have_nvcc || die "nvcc is missing, kernels would not be inside the library; scripts/setup.sh test installs it"
say "building"
mkdir -p "$BUILD"
build

say "collecting into $stage"
# The folder is emptied, so it must be one of this script's.
[ ! -e "$stage" ] || [ -e "$stage/COMMIT" ] || die "$stage is there and was not made by this script"
rm -rf "$stage"
mkdir -p "$stage/tests/cases" "$stage/bench"
git describe --always --dirty --abbrev=12 --exclude '*' >"$stage/COMMIT"
copy_library "$BUILD/lib" "$stage/lib"
copy_library "$BUILD/fault" "$stage/lib-fault"
copy_tests >"$stage/tests.txt"
find "$stage/tests" -maxdepth 1 -type f ! -name bench_tools ! -name 'gpu_*' -exec strip {} +
# Every Rust program has the kernels inside: together they are hardly larger than one.
if [ "${#rust[@]}" -gt 0 ] && have xz; then
    (cd "$stage/tests" && tar -cf - rust_* | xz -6 --lzma2=preset=6,dict=64MiB >rust.tar.xz && rm rust_*)
fi
cp tests/cases/*.json "$stage/tests/cases/"
cp -r tests/gpu "$stage/tests/gpu"
cp bench/*.py "$stage/bench/"
cp -r include "$stage/include"
cp scripts/staged/run_tests.sh scripts/staged/run_bench.sh "$stage/"
# Every C source has become a program; those of C++ need a compiler that may be missing.
sources="$(find ctests -maxdepth 1 -name '*.c' | wc -l)"
programs="$(grep -cE '^(c|fault)_' "$stage/tests.txt")"
[ "$programs" = "$sources" ] || die "$sources C sources in ctests/, $programs programs of them in $BUILD/ctests"

size="$(du -sm "$stage" | cut -f1)"
[ "$size" -le "$LIMIT_MIB" ] || die "$stage has $size MiB, more than $LIMIT_MIB"
say "$stage: $(cat "$stage/COMMIT"), $(wc -l <"$stage/tests.txt") tests, $size MiB"
