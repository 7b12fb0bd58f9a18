#!/usr/bin/env bash
# Builds the predictor image; for options and settings see build.sh.
#
#   images/engine.sh images/build_predictor.sh [--base IMAGE] [--tag TAG]
set -euo pipefail

exec "$(dirname "$0")/build.sh" predictor thinktwice-predictor "$@"
