#!/usr/bin/env bash
# Runs the feedback service in the predictor's image under the restrictions of its manifest, sends it events; prints the results.
#
#   images/engine.sh images/check_feedback.sh FEATURE_STORE [--tag TAG]
#
# FEATURE_STORE  of a model with statistics.instant and online values in SQLite, for example OUT/state/champion/feature_store of
#                check_pipeline.sh with --source ml-100k; a copy of it is updated
#
# The container runs the command of manifests/components/feedback as user 1000 without capabilities; its root file system is read-only, and
# its only network is loopback.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
store="" tag=""
while [ $# -gt 0 ]; do
    case "$1" in
        --tag) tag="$2"; shift 2 ;;
        -*) echo "unknown argument $1: use FEATURE_STORE [--tag TAG]" >&2; exit 2 ;;
        *) store="$1"; shift ;;
    esac
done
[ -n "$store" ] || { echo "usage: images/check_feedback.sh FEATURE_STORE [--tag TAG]" >&2; exit 2; }
[ -f "$store/data/log_instant.parquet" ] || { echo "$store is not the feature store of a model with statistics.instant" >&2; exit 1; }
tag="${tag:-thinktwice-predictor:$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml" | head -n 1)}"
docker image inspect "$tag" >/dev/null 2>&1 || { echo "no image $tag: build it with images/build_predictor.sh" >&2; exit 1; }

name="feedback-check-$$" started="" failed=""
work="$(mktemp -d "${TMPDIR:-/tmp}/feedback.XXXXXX")"
finish() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$started" ]; then
        [ "$code" = 0 ] || docker logs --tail 20 "$name" >&2 2>&1 || true
        timeout --foreground 60 docker rm --force --volumes "$name" >/dev/null 2>&1 || true
    fi
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$work/events" "$work/model"
cp -R "$store" "$work/model/feature_store"
chmod -R a+rwX "$work"

say() { printf '%-34s %s\n' "$1" "$2"; }
expect() { # expect WHAT VALUE WANTED
    say "$1" "$2"
    [ "$2" = "$3" ] || { echo "  wanted: $3" >&2; failed=yes; }
}
inside() { timeout --foreground 60 docker exec "$name" "$@"; }

begin="$(date +%s%N)"
started=yes
docker run --detach --name "$name" --network none --read-only --user 1000:1000 --cap-drop ALL --security-opt no-new-privileges \
    --memory 1g --cpus 1 --tmpfs /tmp:size=256m,mode=1777 --volume "$work/events:/var/lib/feedback/events" \
    --volume "$work/model:/var/lib/feedback/model" --entrypoint /opt/venv/bin/python "$tag" -P -m thinktwice feedback run \
    --log /var/lib/feedback/events/log --store /var/lib/feedback/model/feature_store --host 0.0.0.0 --port 8090 >/dev/null
until docker logs "$name" 2>/dev/null | grep -q "^ready "; do
    [ "$(docker inspect --format '{{.State.Running}}' "$name")" = true ] || { echo "the container ended" >&2; exit 1; }
    [ $(($(date +%s%N) - begin)) -lt 180000000000 ] || { echo "not ready within 180 s" >&2; exit 1; }
    sleep 0.5
done
say "image" "$tag"
say "run to ready, s" "$(awk -v n=$(($(date +%s%N) - begin)) 'BEGIN {printf "%.1f", n / 1e9}')"
ask='
import http.client, json, sys, time
connection = http.client.HTTPConnection("127.0.0.2", 8090, timeout=30)
event = {"kind": "impression", "at": time.time(), "request_id": "check", "user_id": "1", "item_id": "1", "values": {}}
method, path = sys.argv[1:3]
connection.request(method, path, json.dumps({"events": [event]}) if method == "POST" else None, {"Content-Type": "application/json"})
answer = connection.getresponse()
print(answer.status, answer.read().decode().replace("\n", " ")[:300])
'
call() { inside /opt/venv/bin/python -I -S -c "$ask" "$@"; }
answer="$(call POST /v1/events)"
say "answer" "$answer"
expect "status of the answer" "${answer%% *}" 202
expect "health" "$(call GET /healthz | cut -d' ' -f1)" 200
expect "metrics" "$(call GET /metrics | cut -d' ' -f1)" 200
expect "user" "$(inside id -u)" 1000
expect "capabilities" "$(inside sed -n 's/^CapEff:[[:space:]]*//p' /proc/1/status)" 0000000000000000
expect "no new privileges" "$(inside sed -n 's/^NoNewPrivs:[[:space:]]*//p' /proc/1/status)" 1
expect "write to the root file system" "$(inside sh -c 'touch /opt/x 2>/dev/null && echo possible || echo refused')" refused
say "memory of all processes, MB" "$(inside sh -c 'cat /proc/[0-9]*/smaps_rollup 2>/dev/null' | awk '/^Pss:/ {sum += $2} END {printf "%.0f", sum / 1000}')"
timeout --foreground 90 docker stop --time 45 "$name" >/dev/null
expect "exit code after a stop" "$(docker inspect --format '{{.State.ExitCode}}' "$name")" 0
expect "event log" "$([ -n "$(find "$work/events/log" -type f -size +0)" ] && echo written || echo empty)" written
[ -z "$failed" ] || { echo "the feedback service is not as it should be: see the lines marked above" >&2; exit 1; }
