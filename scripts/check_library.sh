#!/usr/bin/env bash
# check_library.sh <libmagi_attn.so> <magi_attn.h>: the library exports what the header declares and nothing else, has
# its SONAME, and needs nothing but libc and libgcc.
set -euo pipefail
library="$1"
header="$2"
failed=0
complain() {
    printf '%s: %s\n' "$library" "$*" >&2
    failed=1
}

exported="$(nm -D --defined-only "$library" | awk '{ print $NF }' | sort -u)"
declared="$(grep -oE '\bmagi_[a-z0-9_]+\(' "$header" | tr -d '(' | sort -u)"
[ -n "$exported" ] && [ -n "$declared" ] || complain "no symbols found"

foreign="$(grep -vE '^magi_' <<<"$exported" || true)"
[ -z "$foreign" ] || complain "exports names that are not ours:" $foreign
hooks="$(grep -E '^magi_test_' <<<"$exported" || true)"
[ -z "$hooks" ] || complain "exports test hooks:" $hooks
hidden="$(comm -13 <(echo "$declared") <(echo "$exported"))"
[ -z "$hidden" ] || complain "exports what the header does not declare:" $hidden
absent="$(comm -23 <(echo "$declared") <(echo "$exported"))"
[ -z "$absent" ] || complain "lacks what the header declares:" $absent

soname="$(readelf -d "$library" | sed -n 's/.*Library soname: \[\(.*\)\]/\1/p')"
[ "$soname" = libmagi_attn.so.0 ] || complain "SONAME is '$soname', must be libmagi_attn.so.0"

# The loader is part of glibc, and named where thread-local storage is used. Old C libraries keep threads and dl apart.
for needed in $(readelf -d "$library" | sed -n 's/.*Shared library: \[\(.*\)\]/\1/p'); do
    case "$needed" in
    libc.so.6 | libpthread.so.0 | libdl.so.2 | ld-linux-*.so.* | libgcc_s.so.1) ;;
    *) complain "needs $needed" ;;
    esac
    echo "needs $needed"
done
echo "$(wc -w <<<"$exported") functions exported"
exit "$failed"
