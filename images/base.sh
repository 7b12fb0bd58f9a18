#!/usr/bin/env bash
# Builds the base image from Debian packages, for machines with access to a Debian mirror but not to an image registry.
#
#   images/engine.sh images/base.sh [TAG]        (TAG default: thinktwice-base:bookworm)
#
# With a registry, use any Python 3.11 image with a Java runtime instead: `build_predictor.sh --base IMAGE`.
set -euo pipefail

tag="${1:-thinktwice-base:bookworm}"
mirror="${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
command -v debootstrap >/dev/null || { echo "no debootstrap found: install it (Debian: apt-get install debootstrap)" >&2; exit 1; }

rootfs="$(mktemp -d "${TMPDIR:-/tmp}/base.XXXXXX")"
trap 'rm -rf "$rootfs"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

timeout --foreground 900 debootstrap --variant=minbase \
    --include=ca-certificates,python3.11,python3.11-venv,python3-venv,openjdk-17-jre-headless \
    bookworm "$rootfs" "$mirror" >"$rootfs.log" 2>&1 || { tail -n 5 "$rootfs.log" >&2; exit 1; }
rm -f "$rootfs.log"
rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* "$rootfs"/usr/share/doc/* "$rootfs"/usr/share/man/* \
    "$rootfs"/usr/share/locale/*
tar -C "$rootfs" -c . | docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$tag" >/dev/null
docker image inspect --format "{{index .RepoTags 0}} {{.Size}} bytes" "$tag"
