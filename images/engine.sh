#!/usr/bin/env bash
# Runs a command with a Docker engine: a running one, or a private one that is stopped after the command.
#
#   images/engine.sh COMMAND [ARGUMENT...]
#
# The private engine has its own socket, data root and exec root, changes no firewall, bridge or forwarding setting of the
# machine, and is stopped and unmounted on every exit. Its data root (images, layers) is kept for the next run.
# Settings: ENGINE_DIR (default .thinktwice/images/engine), DOCKER_HOST (use that engine and start none).
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: images/engine.sh COMMAND [ARGUMENT...]" >&2; exit 2; }
command -v docker >/dev/null || { echo "no docker client found: install it (Debian: apt-get install docker.io)" >&2; exit 1; }

if timeout 10 docker info >/dev/null 2>&1; then
    exec "$@"
fi
if [ -n "${DOCKER_HOST:-}" ]; then
    echo "the Docker engine at DOCKER_HOST=$DOCKER_HOST does not answer: start it, or unset DOCKER_HOST" >&2
    exit 1
fi
command -v dockerd >/dev/null || { echo "no Docker engine answers and no dockerd is installed: start an engine, or install docker.io" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "a private Docker engine needs root: run as root, or set DOCKER_HOST to an engine you may use" >&2; exit 1; }

root="$(cd "$(dirname "$0")/.." && pwd)"
home="${ENGINE_DIR:-$root/.thinktwice/images/engine}"
mkdir -p "$home/data"
# The socket path is limited to about 100 characters, so short-lived files go to a temporary folder.
run="$(mktemp -d /tmp/engine.XXXXXX)"
engine="" command="" up=""

stop() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$command" ] && kill -TERM -- "-$command" 2>/dev/null; then
        wait "$command" 2>/dev/null || true
    fi
    if [ -n "$engine" ] && kill -0 "$engine" 2>/dev/null; then
        kill "$engine"
        for _ in $(seq 60); do kill -0 "$engine" 2>/dev/null || break; sleep 0.5; done
        kill -9 "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
    fi
    # The engine leaves mounts of network namespaces and layers behind.
    awk -v a="$run/" -v b="$home/data/" 'index($2, a) == 1 || index($2, b) == 1 {print $2}' /proc/mounts | sort -r |
        while read -r mount; do umount -l "$mount" || true; done
    [ -n "$up" ] || tail -n 5 "$run/dockerd.log" >&2 || true
    rm -rf "$run"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# setsid: a Ctrl-C at the terminal reaches this script and the command, and only this script stops the engine.
setsid dockerd --host "unix://$run/docker.sock" --data-root "$home/data" --exec-root "$run/exec" --pidfile "$run/docker.pid" \
    --iptables=false --ip6tables=false --bridge=none --ip-forward=false >"$run/dockerd.log" 2>&1 &
engine=$!
export DOCKER_HOST="unix://$run/docker.sock"
for _ in $(seq 60); do
    timeout 5 docker info >/dev/null 2>&1 && break
    kill -0 "$engine" 2>/dev/null || { echo "the private Docker engine ended at once; its last lines:" >&2; exit 1; }
    sleep 0.5
done
timeout 5 docker info >/dev/null 2>&1 || { echo "the private Docker engine did not answer within 30 s; its last lines:" >&2; exit 1; }
up=yes
# In the background and in its own process group: a signal to this script is handled at once, and ends the whole command.
set -m
"$@" &
command=$!
set +m
wait "$command"
