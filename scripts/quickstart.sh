#!/usr/bin/env bash
# Builds the library and runs examples/quickstart.c against it, with nothing but cargo and a C compiler.
# Arguments go to the program.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

scripts/setup.sh quickstart

say "building the library"
cargo build --release --locked
target="${CARGO_TARGET_DIR:-target}/release"
# The name that programs ask the loader for; an installed library has it too.
ln -sfn libmagi_attn.so "$target/libmagi_attn.so.0"

say "building and running examples/quickstart.c"
cc -std=c11 -O2 -Wall -Wextra -D_POSIX_C_SOURCE=200809L -Iinclude examples/quickstart.c -o "$target/quickstart" \
    -L"$target" -lmagi_attn -Wl,-rpath,"$(cd "$target" && pwd)" -lm -pthread
exec "$target/quickstart" "$@"
