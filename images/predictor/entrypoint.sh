#!/bin/sh
# Becomes the TorchServe front end (exec): its end is the end of the container, and a SIGTERM reaches it.
# The `torchserve` launcher of the package stays in front of the server as a parent that ignores signals when it is process 1.
# Takes the launcher's own words for what a runtime may choose; everything else is fixed in config.properties.
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

# The release is checked, and unpacked into a folder of ours, before Java starts: Java gets that folder and never the archive, and
# whatever is written to the store afterwards is not read. -P: nothing is imported from the working folder.
name=${models%%=*}
staged=$TEMP/release
rm -rf "$staged"
mkdir -m 700 "$staged"
/opt/venv/bin/python -P -m serving.stage --archive "$archive" --into "$staged/$name"

# The workers share their numbers in this folder; what a container before left there does not count. Named here and not in the
# image: the KServe predictor of the same image is one process, and fails where a folder is named that nobody made.
export PROMETHEUS_MULTIPROC_DIR=/tmp/metrics
rm -rf "$PROMETHEUS_MULTIPROC_DIR"
mkdir -p "$PROMETHEUS_MULTIPROC_DIR"

# Where the front end tells its worker how long requests waited (log4j2.xml).
export THINKTWICE_QUEUE_PORT=8085

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
home=$(dirname "$(/opt/venv/bin/python -I -S -c 'import glob; print(glob.glob("/opt/venv/lib/python3*/site-packages/ts")[0])')")

# A small young part of the heap, in memory that is there: collections under load pause for milliseconds. The heap grows only
# where a form is sent, which the front end takes apart: with less, one of two million fields stops it for minutes.
# shellcheck disable=SC2086  # token_auth is one word or none
exec "$java" -Xms64m -Xmx768m -XX:NewSize=16m -XX:+AlwaysPreTouch -XX:+UseSerialGC \
    -Dmodel_server_home="$home" -Djava.io.tmpdir="$TEMP" \
    -Dlog4j.configurationFile=file:///opt/predictor/log4j2.xml \
    -cp ".:$home/ts/frontend/*" org.pytorch.serve.ModelServer \
    --python /opt/predictor/worker.sh -f /opt/predictor/config.properties -s "$staged" -ncs $token_auth -m "$name=$name"
