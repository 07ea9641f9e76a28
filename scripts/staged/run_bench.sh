#!/usr/bin/env bash
# Runs a staged benchmark; arguments go to bench/attention.py. Results go to $OUT where that is set, else to bench/results.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONUNBUFFERED=1
out=()
case " $* " in
*" --out "* | *" --out="* | *" --check "*) ;;
*) [ -z "${OUT:-}" ] || out=(--out "$OUT/attention.json") ;;
esac
exec python3 "$here/bench/attention.py" --library "$here/lib/libmagi_attn.so" "${out[@]}" "$@"
