#!/usr/bin/env bash
# Runs every test there is, after setting up what they need. Ends with the number of seconds each step took.
#
#   MAGI_FUZZ_SECONDS   seconds for each fuzz target (5)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$ROOT/scripts/steps.sh"
cd "$ROOT"

configure() {
    local generator=()
    # A build tree keeps the generator it was made with.
    if [ ! -e build/CMakeCache.txt ] && have ninja; then
        generator=(-G Ninja)
    fi
    cmake -S . -B build "${generator[@]}" -DBUILD_TESTING=ON
}

c_tests() { ctest --test-dir build --output-on-failure --parallel "$JOBS" --label-exclude memcheck --no-tests=error; }
# The benchmark's tools need a GPU for figures only. The library is the one that cmake has built.
bench_tools() {
    if have python3; then
        python3 bench/test_bench.py --library build/lib/libmagi_attn.so
        python3 bench/attention.py --device cpu --tokens 256 --check --library build/lib/libmagi_attn.so
        python3 bench/distributed.py --device cpu --tokens 256 --check --library build/lib/libmagi_attn.so
    else
        say "no python3: the benchmark's tools are not tested"
    fi
}
memcheck() { ctest --test-dir build --output-on-failure --parallel "$JOBS" --label-regex memcheck; }

step "set-up" scripts/setup.sh test
# The whole workspace: the library, its header and the fuzzer. Then once more with the fault hook built in.
step "cargo test" cargo test --workspace --locked
step "cargo test, fault hook" cargo test --locked --features fault --lib --test comm_fault --test comm_failures --test comm_arena --test ranks_faults
step "cmake" configure
step "build" cmake --build build --parallel "$JOBS"
step "ctest" c_tests
step "ctest, memory errors" memcheck
step "benchmark tools" bench_tools
step "fuzz" scripts/fuzz.sh --seconds "${MAGI_FUZZ_SECONDS:-5}"
step_summary
