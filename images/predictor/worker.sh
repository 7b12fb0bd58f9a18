#!/bin/sh
# What the front end takes for its Python: it starts our worker, whatever script of TorchServe's it is given. Isolated (-I), because
# the front end puts the folder of the unpacked archive on the path for imports, and no code may come from there.
set -eu
exec /opt/venv/bin/python -I -B -m serving.adapters.torchserve_worker "$@"
