#!/usr/bin/env bash
# Fuzzes with coverage counters, on the stable toolchain: scripts/fuzz.sh [--seconds N] [--seed N] [target...]
# The arguments are those of fuzz/src/main.rs. Crashing inputs are saved in fuzz/artifacts/<target>/crash.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

host="$(rustc -vV | sed -n 's/^host: //p')"
# With --target the flags reach the code under test and not the build scripts, which have no runtime for the counters.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cdebug-assertions -Coverflow-checks"
cargo build --release --locked --package magi_attn_fuzz --target "$host" --target-dir target/fuzz
exec "target/fuzz/$host/release/magi_attn_fuzz" "$@"
