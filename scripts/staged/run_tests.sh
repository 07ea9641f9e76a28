#!/usr/bin/env bash
# Runs the staged test programs, one after the other, each in a process of its own.
#
#   run_tests.sh [PATTERN...]     only programs whose name holds one of the patterns
#   MAGI_TEST_LOGS=FOLDER         where the outputs go (logs/ beside this script)
#
# Exit code 0: none failed, and not all were skipped.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
logs="${MAGI_TEST_LOGS:-$here/logs}"
mkdir -p "$logs" || exit 2

if [ -e "$here/tests/rust.tar.xz" ]; then
    # Python's library reads it where there is no xz.
    (cd "$here/tests" && { tar -xJf rust.tar.xz 2>/dev/null || python3 -c 'import tarfile; tarfile.open("rust.tar.xz").extractall()'; } && rm rust.tar.xz) || exit 2
fi

wanted() {
    local name="$1" pattern
    shift
    [ "$#" -gt 0 ] || return 0
    for pattern in "$@"; do
        case "$name" in *"$pattern"*) return 0 ;; esac
    done
    return 1
}

# A program that goes on behind its end would use the device beside whatever comes next.
running=
trap '[ -z "$running" ] || kill "$running" 2>/dev/null; wait; exit 143' TERM INT

pass=0 skip=0 failed=()
while read -r name folder seconds; do
    wanted "$name" "$@" || continue
    log="$logs/$name.log"
    begin="$(date +%s%N)"
    (cd "$here" && LD_LIBRARY_PATH="$here/$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec timeout -k 5 "$seconds" "tests/$name") >"$log" 2>&1 </dev/null &
    running=$!
    wait "$running"
    code=$?
    took="$((($(date +%s%N) - begin) / 1000000)) ms"
    case "$code" in
    0) pass=$((pass + 1)) && printf 'PASS %s (%s)\n' "$name" "$took" ;;
    77) skip=$((skip + 1)) && printf 'SKIP %s: %s\n' "$name" "$(tail -n 1 "$log")" ;;
    *)
        failed+=("$name")
        [ "$code" != 124 ] || echo "stopped after $seconds s" >>"$log"
        printf 'FAIL %s: exit code %s (%s)\n' "$name" "$code" "$took"
        tail -n 15 "$log" | sed 's/^/    /'
        ;;
    esac
done <"$here/tests.txt"

printf '== %s: %d passed, %d skipped, %d failed\n' "$(cat "$here/COMMIT")" "$pass" "$skip" "${#failed[@]}"
[ "${#failed[@]}" = 0 ] || printf '== failed: %s\n' "${failed[*]}"
[ "${#failed[@]}" = 0 ] && [ "$pass" -gt 0 ]
