#!/usr/bin/env bash
# Builds the image of the pipeline's steps; options and settings are those of build.sh. Its name must contain "python",
# because KFP's local runner looks for that word.
#
#   images/engine.sh images/build_pipeline.sh [--base IMAGE] [--tag TAG]
set -euo pipefail

exec "$(dirname "$0")/build.sh" pipeline thinktwice-python "$@"
