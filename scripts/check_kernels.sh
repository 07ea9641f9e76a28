#!/usr/bin/env bash
# Compiles every kernel variant with nvcc and with NVRTC, with nvcc every other form that the library may ask for at run
# time, and some of those with NVRTC, and reads what ptxas says. Fails on stack, on spilled registers, on warnings that products of the tensor cores are waited
# for one by one, and on an attention kernel without such products.
#
#   scripts/check_kernels.sh               all variants and forms; then --self-test
#   scripts/check_kernels.sh --self-test   only: kernels with each of these faults are found faulty
#
# Needs what `scripts/setup.sh test` installs; no GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

NVCC="${NVCC:-${CUDA_HOME:+$CUDA_HOME/bin/nvcc}}"
NVCC="${NVCC:-$(command -v nvcc || true)}"
[ -x "$NVCC" ] || die "nvcc is missing; scripts/setup.sh test installs it"
CUOBJDUMP="$(dirname "$NVCC")/cuobjdump"
[ -x "$CUOBJDUMP" ] || CUOBJDUMP="$(command -v cuobjdump)" || die "cuobjdump is missing beside $NVCC"

# The same as build.rs has.
FLAGS=(-cubin -gencode=arch=compute_90a,code=sm_90a -O3 -std=c++17 -Xptxas -v "--split-compile=${NVCC_THREADS:-4}")
# C7507 to C7520 say that wgmma is serialised, in different words for different reasons.
SERIALISED='\(C75(07|1[0-9]|20)\)|wgmma\.mma_async instructions are serialized'

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# faults <attention|helper> <log> <cubin>: prints what is wrong, a line each; nothing when all is well.
faults() {
    local kind="$1" log="$2" cubin="$3"
    grep -q 'bytes stack frame' "$log" || echo "the compiler reported no resources"
    { grep -oE '[1-9][0-9]* bytes (stack frame|spill stores|spill loads)' "$log" || true; } | sort | uniq -c |
        sed -E 's/^ *([0-9]+) (.*)/\2 (in \1 kernels)/'
    { grep -E "$SERIALISED" "$log" || true; } | head -n 3
    # Not piped into grep -q, which would end the disassembler early and make that a failure.
    if [ "$kind" = attention ] && [ "$("$CUOBJDUMP" -sass "$cubin" | grep -c HGMMA)" = 0 ]; then
        echo "no HGMMA in its machine code"
    fi
}

# check <label> <attention|helper> <log> <cubin>
failed=0
check() {
    local found
    found="$(faults "$2" "$3" "$4")"
    if [ -n "$found" ]; then
        printf '%s:\n%s\n' "$1" "$(sed 's/^/    /' <<<"$found")" >&2
        failed=1
    fi
}

# nvcc_compile <source> <stem of cubin and log> <flag...>
nvcc_compile() {
    local source="$1" stem="$2"
    shift 2
    "$NVCC" "${FLAGS[@]}" "$@" "$source" -o "$stem.cubin" >"$stem.log" 2>&1 || die "nvcc fails on $source: $(cat "$stem.log")"
}

# Every fault has a kernel that has it; a check that cannot fail is none.
self_test() {
    local name kind want
    mkdir -p "$work/self"
    while read -r name kind want; do
        nvcc_compile "tests/cases/kernels/$name.cu" "$work/self/$name"
        faults "$kind" "$work/self/$name.log" "$work/self/$name.cubin" >"$work/self/$name.faults"
        if [ -z "$want" ]; then
            [ ! -s "$work/self/$name.faults" ] || die "$name.cu as $kind is faulty: $(cat "$work/self/$name.faults")"
        else
            grep -qE "$want" "$work/self/$name.faults" || die "$name.cu as $kind: '$want' was not found"
        fi
    done <<'CASES'
spill helper bytes spill stores
stack helper bytes stack frame
serial attention C7519
plain attention no HGMMA
plain helper
CASES
    : >"$work/self/empty.log"
    [ -n "$(faults helper "$work/self/empty.log" "$work/self/plain.cubin")" ] || die "an empty report passes"
    say "self-test: every fault is found"
}

all_variants() {
    local name kind defines count=0
    mkdir -p "$work/nvrtc" "$work/nvcc"
    MAGI_KERNEL_OUT="$work/nvrtc" cargo test --quiet --locked --test kernel_compile -- \
        --exact --ignored every_variant_compiles_with_nvrtc
    while read -r name kind defines; do
        read -ra defines <<<"$defines"
        nvcc_compile "$work/nvrtc/$name.cu" "$work/nvcc/$name" "${defines[@]/#/-D}"
        check "$name, nvcc" "$kind" "$work/nvcc/$name.log" "$work/nvcc/$name.cubin"
        check "$name, NVRTC" "$kind" "$work/nvrtc/$name.log" "$work/nvrtc/$name.cubin"
        count=$((count + 1))
    done <"$work/nvrtc/variants"
    [ "$count" -gt 0 ] || die "no variants"
    [ "$failed" = 0 ] || die "kernels are faulty, see above"
    say "$count variants, each with nvcc and NVRTC: no stack, no spills, no serialised products"
}

# Forms of the attention kernels that are not listed: the listed head dimensions with any of the switches that the source names
# in a line "// Switches: ...". Lines: source, defines.
forms() {
    local line source dims switches set i listed
    listed="$(grep -E '^[a-z0-9_]+ +attention ' kernels/variants.txt | sed -E 's/^[^ ]+ +attention +([^ ]+) +[^ ]+ +/\1 /; s/ *$/ /')"
    grep -E '^[a-z0-9_]+ +attention ' kernels/variants.txt | grep -vE 'DTYPE_F16|[A-Z]=[01]( |$)' | while read -r line; do
        source="$(grep -oE '[a-z_]+\.cu' <<<"$line")"
        dims="$(grep -oE 'HEAD_DIM(_V)?=[0-9]+' <<<"$line" | tr '\n' ' ')"
        read -ra switches <<<"$(sed -n 's|^// Switches: ||p' "kernels/$source")"
        for ((set = 0; set < 1 << ${#switches[@]}; set++)); do
            local defines="$dims"
            for i in "${!switches[@]}"; do
                ((set >> i & 1)) && defines+="${switches[i]} "
            done
            printf '%s %s\n' "$source" "$defines"
        done
    done | sort -u | grep -vxF "$listed"
}

# form <number> <source> <define...>: compiles one; prints what is wrong.
form() {
    local stem="$work/forms/$1" source="$2" found
    shift 2
    nvcc_compile "kernels/$source" "$stem" "${@/#/-D}"
    found="$(faults attention "$stem.log" "$stem.cubin")"
    rm -f "$stem.cubin"
    [ -z "$found" ] || printf '%s %s:\n%s\n' "$source" "$*" "$(sed 's/^/    /' <<<"$found")"
}

all_forms() {
    local count=0 running=0 line
    mkdir -p "$work/forms"
    forms >"$work/forms/list"
    while read -ra line; do
        count=$((count + 1))
        form "$count" "${line[@]}" >"$work/forms/$count.faults" &
        running=$((running + 1))
        if [ "$running" -ge "$JOBS" ]; then
            wait -n || die "a form does not compile"
            running=$((running - 1))
        fi
        [ ! -t 2 ] || printf '\r%d of %d forms' "$count" "$(wc -l <"$work/forms/list")" >&2
    done <"$work/forms/list"
    while [ "$running" -gt 0 ]; do
        wait -n || die "a form does not compile"
        running=$((running - 1))
    done
    [ "$count" -gt 0 ] || die "no forms"
    cat "$work"/forms/*.faults >"$work/forms/faults"
    if [ -s "$work/forms/faults" ]; then
        cat "$work/forms/faults" >&2
        die "kernels are faulty, see above"
    fi
    say "$count forms with nvcc: no stack, no spills, no serialised products"
}

# Users get these forms from NVRTC alone. It has the same ptxas behind a front end of its own, so some of each kind do: every fifth,
# which goes through all combinations of switches in turn.
some_forms() {
    local count=0 line
    mkdir -p "$work/nvrtc-forms"
    sed -n '1~5p' "$work/forms/list" >"$work/nvrtc-forms/list"
    MAGI_KERNEL_OUT="$work/nvrtc-forms" cargo test --quiet --locked --test kernel_compile -- \
        --exact --ignored forms_compile_with_nvrtc
    while read -r line; do
        count=$((count + 1))
        check "$line, NVRTC" attention "$work/nvrtc-forms/$count.log" "$work/nvrtc-forms/$count.cubin"
    done <"$work/nvrtc-forms/list"
    [ "$count" -gt 0 ] || die "no forms"
    [ "$failed" = 0 ] || die "kernels are faulty, see above"
    say "$count of those forms with NVRTC: no stack, no spills, no serialised products"
}

case "${1:-}" in
"")
    all_variants
    all_forms
    some_forms
    ;;
--self-test) ;;
*) die "usage: scripts/check_kernels.sh [--self-test]" ;;
esac
self_test
