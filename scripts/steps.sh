# Sourced by scripts that run many steps: announces each, measures it, and prints the durations at the end.
# Needs env.sh.

STEP_TIMES=()

# step <name> <command...>
step() {
    local name="$1" start="$SECONDS"
    shift
    say "$name"
    "$@" </dev/null
    STEP_TIMES+=("$(printf '%5d s  %s' "$((SECONDS - start))" "$name")")
}

step_summary() {
    say "durations"
    printf '%s\n' "${STEP_TIMES[@]}"
}
