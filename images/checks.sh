#!/usr/bin/env bash
# What the checks of the images share; sourced by check_predictor.sh, check_feedback.sh and check_pipeline.sh, which set `root`.
set -euo pipefail

failed=""  # "yes" once an expectation was not met

say() { printf '%-34s %s\n' "$1" "$2"; }
expect() { # expect WHAT VALUE WANTED
    say "$1" "$2"
    [ "$2" = "$3" ] || { echo "  wanted: $3" >&2; failed=yes; }
}

# image TAG NAME SCRIPT: prints the image that is checked, TAG or else NAME in the version of the checkout; SCRIPT builds it.
image() {
    local tag="${1:-$2:$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml" | head -n 1)}"
    docker image inspect "$tag" >/dev/null 2>&1 || { echo "no image $tag: build it with images/$3" >&2; return 1; }
    echo "$tag"
}

# A container in the background: `name`, with files in the folder `scratch`. Both are removed on every exit, its last lines shown on failure.
name="" scratch="" started=""
finish() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$started" ]; then
        [ "$code" = 0 ] || docker logs --tail 20 "$name" >&2 2>&1 || true
        timeout --foreground 60 docker rm --force --volumes "$name" >/dev/null 2>&1 || true
    fi
    rm -rf "$scratch" 2>/dev/null || true  # files of the container's user may stay where this one may not delete them
    exit "$code"
}
begin_container() { # begin_container NAME
    name="$1-$$"
    scratch="$(mktemp -d "${TMPDIR:-/tmp}/$1.XXXXXX")"
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}
inside() { timeout --foreground 60 docker exec "$name" "$@"; }
begin="$(date +%s%N)"
seconds() { awk -v n=$(($(date +%s%N) - begin)) 'BEGIN {printf "%.1f", n / 1e9}'; }
alive() { # alive WHY: fails if the container ended, or 180 s have passed
    [ "$(docker inspect --format '{{.State.Running}}' "$name")" = true ] || { echo "the container ended: $1" >&2; return 1; }
    [ $(($(date +%s%N) - begin)) -lt 180000000000 ] || { echo "not ready within 180 s: $1" >&2; return 1; }
}
expect_restricted() {
    expect "user" "$(inside id -u)" 1000
    expect "capabilities" "$(inside sed -n 's/^CapEff:[[:space:]]*//p' /proc/1/status)" 0000000000000000
    expect "no new privileges" "$(inside sed -n 's/^NoNewPrivs:[[:space:]]*//p' /proc/1/status)" 1
    expect "write to the root file system" "$(inside sh -c 'touch /opt/x 2>/dev/null && echo possible || echo refused')" refused
}
memory_mb() { inside sh -c 'cat /proc/[0-9]*/smaps_rollup 2>/dev/null' | awk '/^Pss:/ {sum += $2} END {printf "%.0f", sum / 1000}'; }
