#!/usr/bin/env bash
# Formats Rust, C, C++ and CUDA sources; with --check it only says which are not formatted. The generated header is left out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

check=()
case "${1:-}" in
--check) check=(--check) ;;
"") ;;
*) die "usage: scripts/format.sh [--check]" ;;
esac

cargo fmt --all -- "${check[@]}"
mapfile -d '' files < <(find ctests examples include kernels tests/cases/kernels tests/host_driver tests/host_nccl tests/host_ranks \( -name '*.c' -o -name '*.h' -o -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' \) \
    ! -path include/magi_attn.h -print0 2>/dev/null)
if [ "${#check[@]}" -gt 0 ]; then
    clang-format --dry-run --Werror "${files[@]}"
else
    clang-format -i "${files[@]}"
fi
