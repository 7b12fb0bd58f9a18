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
. "$root/images/checks.sh"
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
tag="$(image "$tag" thinktwice-predictor build_predictor.sh)"

begin_container feedback-check
work="$scratch"
mkdir "$work/events" "$work/model"
cp -R "$store" "$work/model/feature_store"
chmod -R a+rwX "$work"

begin="$(date +%s%N)"
started=yes
docker run --detach --name "$name" --network none --read-only --user 1000:1000 --cap-drop ALL --security-opt no-new-privileges \
    --memory 1g --cpus 1 --tmpfs /tmp:size=256m,mode=1777 --volume "$work/events:/var/lib/feedback/events" \
    --volume "$work/model:/var/lib/feedback/model" --entrypoint /opt/venv/bin/python "$tag" -P -m thinktwice feedback run \
    --log /var/lib/feedback/events/log --store /var/lib/feedback/model/feature_store --host 0.0.0.0 --port 8090 >/dev/null
until docker logs "$name" 2>/dev/null | grep -q "^ready "; do
    alive "see its log"
    sleep 0.5
done
say "image" "$tag"
say "run to ready, s" "$(seconds)"
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
expect_restricted
say "memory of all processes, MB" "$(memory_mb)"
timeout --foreground 90 docker stop --time 45 "$name" >/dev/null
expect "exit code after a stop" "$(docker inspect --format '{{.State.ExitCode}}' "$name")" 0
expect "event log" "$([ -n "$(find "$work/events/log" -type f -size +0)" ] && echo written || echo empty)" written
[ -z "$failed" ] || { echo "the feedback service is not as it should be: see the lines marked above" >&2; exit 1; }
