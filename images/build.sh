#!/usr/bin/env bash
# Builds an image from this checkout: first the wheelhouse (the only step with network), then the image, without network.
# Called by build_predictor.sh and build_pipeline.sh with the kind and the name of their image. The image contains its software bill of
# materials, /opt/sbom.json, which follows from the lock.
#
#   images/engine.sh images/build.sh predictor|pipeline NAME [--base IMAGE] [--tag TAG] [--torch-index URL]
#
# --base  an image with Python 3.11 (including venv), for the predictor also Java >= 17; the default is built by images/base.sh
#         if it is missing.
# --tag   name of the image (default NAME:0.1.0, the version in pyproject.toml)
# --torch-index  (pipeline) index of a CUDA build of the pinned torch, for the image of training steps; this build has network
# Settings: PYTHON (default .venv/bin/python, the environment of the lock), WHEELHOUSE (kept between builds).
set -euo pipefail

case "${1:-}" in predictor|pipeline) ;; *) echo "usage: images/build.sh predictor|pipeline NAME [--base IMAGE] [--tag TAG]" >&2; exit 2 ;; esac
kind="$1" name="${2:?name of the image}"
shift 2
root="$(cd "$(dirname "$0")/.." && pwd)"
cd "$root"
python="${PYTHON:-$root/.venv/bin/python}"
version="$("$python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')"
base=thinktwice-base:bookworm
tag="$name:$version"
network=(--network none)
cuda=()
revision="$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown)"
while [ $# -gt 0 ]; do
    case "$1" in
        --base) base="$2"; shift 2 ;;
        --tag) tag="$2"; shift 2 ;;
        --torch-index)
            [ "$kind" = pipeline ] || { echo "--torch-index is for the image of the pipeline" >&2; exit 2; }
            network=(--build-arg "TORCH_INDEX=$2") cuda=(--cuda); shift 2 ;;
        *) echo "unknown argument $1: use --base IMAGE, --tag TAG, --torch-index URL" >&2; exit 2 ;;
    esac
done

wheelhouse="${WHEELHOUSE:-$root/.thinktwice/images/wheelhouse}"
mkdir -p "$wheelhouse" "$root/.thinktwice/images"
context="$(mktemp -d "$root/.thinktwice/images/context.XXXXXX")"
trap 'rm -rf "$context"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! docker image inspect "$base" >/dev/null 2>&1; then
    if [ "$base" = thinktwice-base:bookworm ]; then
        echo "base image $base is missing: making it" >&2
        images/base.sh "$base"
    else
        timeout --foreground 900 docker pull "$base"
    fi
fi

echo "wheelhouse" >&2
"$python" images/requirements.py --lock requirements.lock --project pyproject.toml --image "$kind" >"$context/requirements.txt"
# `pip wheel` rather than `pip download`: kfp-server-api is published only as source.
timeout --foreground 900 "$python" -m pip wheel -qq --no-deps --no-build-isolation --find-links "$wheelhouse" --wheel-dir "$wheelhouse" \
    --requirement "$context/requirements.txt"

# Only the pinned wheels go into the build, without others left in the wheelhouse by older builds. Hard links take no space.
mkdir -p "$context/wheelhouse" "$context/source"
"$python" - "$context/requirements.txt" "$wheelhouse" "$context/wheelhouse" <<'PYTHON'
import os, sys
from pathlib import Path
from packaging.utils import canonicalize_name, parse_wheel_filename

pins, store, target = map(Path, sys.argv[1:])
wanted = {(canonicalize_name(name), version) for name, version in (line.split("==") for line in pins.read_text().split())}
for wheel in store.glob("*.whl"):
    name, version, _, _ = parse_wheel_filename(wheel.name)
    if (name, version.public) in wanted or (name, str(version)) in wanted:
        os.link(wheel, target / wheel.name)
        wanted -= {(name, version.public), (name, str(version))}
if wanted:
    sys.exit(f"the wheelhouse {store} lacks {sorted(wanted)}: delete it and run again")
PYTHON

# The wheel of the project is built from a copy, so that no build folder appears in the checkout.
cp pyproject.toml "$context/source/"
for entry in README.md LICENSE thinktwice feature_repo components pipelines serving; do
    [ ! -e "$entry" ] || cp -R "$entry" "$context/source/"
done
"$python" -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir "$context/wheel" "$context/source"
rm -rf "$context/source"

if [ "$kind" = predictor ]; then
    cp -R images/predictor "$context/predictor"
    chmod 0755 "$context"/predictor "$context"/predictor/*.sh
    chmod 0644 "$context"/predictor/*.py "$context"/predictor/*.properties "$context"/predictor/*.xml
fi
"$python" images/sbom.py --pins "$context/requirements.txt" --name "$name" --version "$version" "${cuda[@]}" \
    >"$context/sbom.json"
chmod 0644 "$context/sbom.json"
cp "images/$kind.Containerfile" "$context/Containerfile"
echo "build" >&2
# The classic builder is available in every engine, and sufficient.
DOCKER_BUILDKIT=0 timeout --foreground 3600 docker build --quiet "${network[@]}" --force-rm --build-arg "BASE=$base" --tag "$tag" \
    --label "org.opencontainers.image.title=$name" --label "org.opencontainers.image.version=$version" \
    --label "org.opencontainers.image.revision=$revision" --label "org.opencontainers.image.licenses=Apache-2.0" \
    --label "org.opencontainers.image.base.name=$base" \
    --file "$context/Containerfile" "$context" >"$context/built" || { cat "$context/built" >&2; exit 1; }
docker image inspect --format "image {{index .RepoTags 0}} user {{.Config.User}} size {{.Size}} bytes" "$tag"
