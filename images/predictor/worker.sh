#!/bin/sh
# Configured as the front end's Python: starts our worker, whatever TorchServe script it is given. Isolated (-I), because the front
# end puts the folder of the unpacked archive on the import path, and no code may be loaded from there.
set -eu
exec /opt/venv/bin/python -I -B -m serving.adapters.torchserve_worker "$@"
