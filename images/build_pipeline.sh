#!/usr/bin/env bash
# Builds the image of the pipeline's steps; for options and settings see build.sh. Its name must contain "python", because
# KFP's local runner requires it.
#
#   images/engine.sh images/build_pipeline.sh [--base IMAGE] [--tag TAG]
set -euo pipefail

exec "$(dirname "$0")/build.sh" pipeline thinktwice-python "$@"
