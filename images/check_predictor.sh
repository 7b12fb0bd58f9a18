#!/usr/bin/env bash
# Runs the predictor image as in a cluster and sends it requests; prints the results and stops the container.
#
#   images/engine.sh images/check_predictor.sh STORE [REQUEST.json] [--tag TAG]
#
# STORE         a release (ctr.mar, feature_store/, release.json), as `thinktwice pipeline run` writes it to .thinktwice/state/champion
# REQUEST.json  body for /v1/models/ctr:predict; without it one empty row is scored
#
# The container runs as user 1000 without capabilities; its root file system and the store are read-only, and its only network is
# loopback. 127.0.0.2 represents another machine: a listener on all addresses answers there, one bound to 127.0.0.1 does not.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
. "$root/images/checks.sh"
store="" request="" tag=""
while [ $# -gt 0 ]; do
    case "$1" in
        --tag) tag="$2"; shift 2 ;;
        -*) echo "unknown argument $1: use STORE [REQUEST.json] [--tag TAG]" >&2; exit 2 ;;
        *) if [ -z "$store" ]; then store="$1"; else request="$1"; fi; shift ;;
    esac
done
[ -n "$store" ] || { echo "usage: images/check_predictor.sh STORE [REQUEST.json] [--tag TAG]" >&2; exit 2; }
[ -f "$store/ctr.mar" ] || { echo "no model archive $store/ctr.mar: run the pipeline first" >&2; exit 1; }
tag="$(image "$tag" thinktwice-predictor build_predictor.sh)"

begin_container predictor-check
# The files that a storage initializer would place in the pod, readable by all users.
models="$scratch"
cp "$store/ctr.mar" "$models/"
for part in feature_store release.json release-signature.json; do
    [ ! -e "$store/$part" ] || cp -R "$store/$part" "$models/"
done
chmod -R a+rX "$models"

begin="$(date +%s%N)"
started=yes
docker run --detach --name "$name" --network none --read-only --user 1000:1000 --cap-drop ALL \
    --security-opt no-new-privileges --memory 2g --cpus 2 \
    --tmpfs /tmp:size=768m,mode=1777 --tmpfs /var/lib/predictor/work:size=64m,uid=1000 --tmpfs /var/lib/predictor/logs:size=64m,uid=1000 \
    --volume "$models:/mnt/models:ro" "$tag" >/dev/null
probe=(/opt/venv/bin/python -I -S /opt/predictor/probe.py)
until reason="$(inside "${probe[@]}" --score 2>&1)"; do
    alive "$reason"
    sleep 0.5
done
say "image" "$tag"
say "image size, MB" "$(($(docker image inspect --format '{{.Size}}' "$tag") / 1000000))"
say "run to first score, s" "$(seconds)"

if [ -n "$request" ]; then body="$(cat "$request")"; else body='{"instances": [{"rows": [{}]}]}'; fi
ask='
import http.client, sys, time
port, address, method, path, body = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5].encode() or None
connection = http.client.HTTPConnection(address, port, timeout=30)
try:
    connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
    answer = connection.getresponse()
    print(answer.status, answer.read().decode())
except OSError as error:
    print(type(error).__name__)
'
call() { inside /opt/venv/bin/python -I -S -c "$ask" "$@"; }
status() { call "$@" | cut -d' ' -f1 | head -n 1; }
answer="$(call 8080 127.0.0.2 POST /v1/models/ctr:predict "$body")"
say "question" "$(printf %s "$body" | tr -d '\n' | cut -c1-400)"
say "answer" "$(printf %s "$answer" | tr -d '\n' | cut -c1-900)"
expect "status of the answer" "${answer%% *}" 200
expect "status of a bad question" "$(status 8080 127.0.0.2 POST /v1/models/ctr:predict '{"instances": 3}')" 400
expect "open inference, live" "$(status 8080 127.0.0.2 GET /v2/health/live '')" 200
expect "metrics from outside" "$(status 8082 127.0.0.2 GET /metrics '')" 200
expect "TorchServe's counters from outside" "$(status 8084 127.0.0.2 GET /metrics '')" ConnectionRefusedError
expect "management from outside" "$(status 8081 127.0.0.2 GET /models '')" ConnectionRefusedError
expect "management from inside" "$(status 8081 127.0.0.1 GET /models '')" 200
expect "registering a model" "$(status 8081 127.0.0.1 POST '/models?url=ctr.mar' '')" 405
expect_restricted
expect "process 1" "$(inside cat /proc/1/comm)" java
expect "write to the model store" "$(inside sh -c 'touch /mnt/models/x 2>/dev/null && echo possible || echo refused')" refused
expect "installing a package" "$(inside sh -c '/opt/venv/bin/python -m pip --version >/dev/null 2>&1 && echo possible || echo refused')" refused
say "memory of all processes, MB" "$(memory_mb)"
say "files written" "$(inside sh -c 'find /tmp /var/lib/predictor -type f | wc -l; du -sk /tmp /var/lib/predictor/work /var/lib/predictor/logs | tr "\n\t" "  "' | tr '\n' ' ')"

begin="$(date +%s%N)"
timeout --foreground 60 docker stop --time 40 "$name" >/dev/null
# 143: the server ended by SIGTERM; 137 would be a kill after the grace period.
expect "exit code after a stop" "$(docker inspect --format '{{.State.ExitCode}}' "$name")" 143
say "stop, s" "$(seconds)"
[ -z "$failed" ] || { echo "the predictor is not as it should be: see the lines marked above" >&2; exit 1; }
