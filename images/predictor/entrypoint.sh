#!/bin/sh
# Becomes the TorchServe front end (exec): the container ends with it, and a SIGTERM reaches it.
# TorchServe's own launcher would stay as a parent process, which ignores signals as process 1.
# Accepts the launcher's options for the settings of a runtime; all other settings are fixed in config.properties.
set -eu

store=/mnt/models
models=ctr=ctr.mar
token_auth=
for argument in "$@"; do
    case "$argument" in
        --model-store=*) store=${argument#*=} ;;
        --models=*) models=${argument#*=} ;;
        --disable-token-auth) token_auth=--disable-token-auth ;;
        *)
            echo "unknown argument $argument: use --model-store=DIR, --models=NAME=FILE.mar, --disable-token-auth" >&2
            exit 2
            ;;
    esac
done

archive=$store/${models#*=}
[ -r "$archive" ] || {
    echo "no readable model archive $archive: storageUri must hold ${models#*=} beside feature_store/" >&2
    exit 1
}

# The release is checked and unpacked into a private folder before Java starts: Java gets that folder and never the archive, and later
# changes of the store are not read. -P: nothing is imported from the working folder.
name=${models%%=*}
staged=$TEMP/release
rm -rf "$staged"
mkdir -m 700 "$staged"
/opt/venv/bin/python -P -m serving.stage --archive "$archive" --into "$staged/$name"

# The workers share their metrics in this folder, which is emptied because a previous container may have used it. Set here and not in
# the image: the KServe predictor of the same image is one process, and fails if the folder does not exist.
export PROMETHEUS_MULTIPROC_DIR=/tmp/metrics
rm -rf "$PROMETHEUS_MULTIPROC_DIR"
mkdir -p "$PROMETHEUS_MULTIPROC_DIR"

# UDP port to which the front end sends the waiting times of requests (log4j2.xml).
export THINKTWICE_QUEUE_PORT=8085

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
home=$(dirname "$(/opt/venv/bin/python -I -S -c 'import glob; print(glob.glob("/opt/venv/lib/python3*/site-packages/ts")[0])')")

# A small, pre-touched young generation: collections under load pause for milliseconds. The heap grows only when a form is sent, which
# the front end parses: with a smaller heap, a form of two million fields blocks it for minutes.
# shellcheck disable=SC2086  # token_auth is one word or none
exec "$java" -Xms64m -Xmx768m -XX:NewSize=16m -XX:+AlwaysPreTouch -XX:+UseSerialGC \
    -Dmodel_server_home="$home" -Djava.io.tmpdir="$TEMP" \
    -Dlog4j.configurationFile=file:///opt/predictor/log4j2.xml \
    -cp ".:$home/ts/frontend/*" org.pytorch.serve.ModelServer \
    --python /opt/predictor/worker.sh -f /opt/predictor/config.properties -s "$staged" -ncs $token_auth -m "$name=$name"
