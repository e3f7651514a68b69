#!/usr/bin/env bash
# One run on a Cloud TPU VM with one host (8 chips of a v5e), from a clone in which `uv build --wheel` was run. Needs gcloud
# with a project. A spot VM may be taken away: the folder of the run is copied to BUCKET each 10 minutes, and from there
# when the script is started again.
#
#   BUCKET=gs://NAME/quickstart ./tpu_vm.sh
set -euo pipefail
: "${BUCKET:?give BUCKET=gs://NAME/FOLDER}"
NAME=${NAME:-jaxboost}
ZONE=${ZONE:-us-central1-a}
KIND=${KIND:-v5litepod-8}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}

gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$KIND" --version="$VERSION" --spot
gcloud compute tpus tpu-vm scp dist/jaxboost-*.whl "$NAME": --zone="$ZONE"
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --command="
set -eu
pip install --quiet uv
PATH=\$HOME/.local/bin:\$PATH
uv venv --quiet --python 3.12 env
uv pip install --quiet --python env \"\$(ls jaxboost-*.whl)[tpu,quickstart]\"
mkdir -p runs
gcloud storage rsync --recursive $BUCKET runs || true
env/bin/jaxboost train --config quickstart --workdir runs/quickstart &
child=\$!
while kill -0 \$child 2>/dev/null; do
  sleep 600 &
  wait -n \$child \$! || true
  gcloud storage rsync --recursive runs $BUCKET
done
wait \$child
"
echo "the VM goes on costing: gcloud compute tpus tpu-vm delete $NAME --zone=$ZONE"
