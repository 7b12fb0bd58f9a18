#!/usr/bin/env bash
# Runs the whole training pipeline in its image under the restrictions of a cluster; prints the results.
#
#   images/engine.sh images/check_pipeline.sh OUT [--tag TAG] [--data PATH] [ARGUMENT of `thinktwice pipeline run`...]
#
# OUT     folder for the work and the champion (OUT/state/champion), which check_predictor.sh takes; it is made writable for user 1000
# --data  file or folder that the container sees as /data, read-only
# Without arguments a simulated log of 40,000 rows is trained with the recipe `tiny`.
#
# Every step is the process that Kubeflow Pipelines starts (`python3 -m kfp.dsl.executor_main`), as user 1000 without capabilities and without
# network; the root file system is read-only, written are only OUT and /tmp.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
. "$root/images/checks.sh"
out="" tag="" data=()
while [ $# -gt 0 ]; do
    case "$1" in
        --tag) tag="$2"; shift 2 ;;
        --data) data=(--volume "$(realpath "$2"):/data:ro"); shift 2 ;;
        -*) break ;;
        *) [ -z "$out" ] || break; out="$1"; shift ;;
    esac
done
[ -n "$out" ] || { echo "usage: images/check_pipeline.sh OUT [--tag TAG] [--data PATH] [ARGUMENT of thinktwice pipeline run...]" >&2; exit 2; }
[ $# -gt 0 ] || set -- --source sim --limit 40000 --recipe tiny
tag="$(image "$tag" thinktwice-python build_pipeline.sh)"
mkdir -p "$out"
out="$(realpath "$out")"
chown 1000:1000 "$out" 2>/dev/null || chmod 0777 "$out"

name="pipeline-check-$$"
trap 'timeout --foreground 60 docker rm --force "$name" >/dev/null 2>&1 || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
restricted() {
    docker run --rm --name "$name" --network none --read-only --user 1000:1000 --cap-drop ALL --security-opt no-new-privileges \
        --memory 8g --cpus 2 --tmpfs /tmp:size=2g,mode=1777 --tmpfs /dev/shm:size=1g,mode=1777 "${data[@]}" \
        --volume "$out:/var/lib/thinktwice" --env OMP_NUM_THREADS=1 "$tag" "$@"
}

say "image" "$tag"
say "image size, MB" "$(($(docker image inspect --format '{{.Size}}' "$tag") / 1000000))"
say "packages in its SBOM" "$(restricted python3 -c 'import json; print(len(json.load(open("/opt/sbom.json"))["components"]))')"
expect "user" "$(restricted id -u)" 1000
expect "capabilities" "$(restricted sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)" 0000000000000000
expect "write to the root file system" "$(restricted sh -c 'touch /opt/x 2>/dev/null && echo possible || echo refused')" refused
expect "installing a package" "$(restricted sh -c 'python3 -m pip --version >/dev/null 2>&1 && echo possible || echo refused')" refused
begin="$(date +%s%N)"
restricted python3 -P -m thinktwice pipeline run --work /var/lib/thinktwice "$@" && code=0 || code=$?
expect "exit status of the pipeline" "$code" 0
say "pipeline, s" "$(seconds)"
expect "champion" "$([ -f "$out/state/champion/ctr.mar" ] && echo deployed || echo missing)" deployed
[ -z "$failed" ] || { echo "the pipeline is not as it should be: see the lines marked above" >&2; exit 1; }
