#!/usr/bin/env bash
# One run on a Cloud TPU VM with one host (8 chips of a v5e), from a clone in which `uv build --wheel` was run. Needs gcloud
# with a project. The training goes on when the connection of this script breaks; start the script again to follow it.
# A spot VM may be taken away: the folder of the run is copied to BUCKET each 10 minutes, and from there when the script
# is started again.
#
#   BUCKET=gs://NAME/quickstart ./tpu_vm.sh
set -euo pipefail
: "${BUCKET:?give BUCKET=gs://NAME/FOLDER}"
NAME=${NAME:-jaxboost}
ZONE=${ZONE:-us-central1-a}
KIND=${KIND:-v5litepod-8}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}

tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
state() { tpu describe --format='value(state)' 2>/dev/null || true; }

# What was taken away stays as a resource, and keeps the name.
case $(state) in
  PREEMPTED | TERMINATED) tpu delete --quiet ;;
esac
[ -n "$(state)" ] || tpu create --accelerator-type="$KIND" --version="$VERSION" --spot
gcloud compute tpus tpu-vm scp dist/jaxboost-*.whl "$NAME": --zone="$ZONE"

# `train.sh` belongs to no connection; its end is in the file `code`.
tpu ssh --command="
set -eu
if [ -e train.pid ] && kill -0 \$(cat train.pid) 2>/dev/null; then exit; fi
rm -f code
cat > train.sh <<'END'
set -u
train() {
  set -e
  pip install --quiet uv
  PATH=\$HOME/.local/bin:\$PATH
  uv venv --quiet --clear --python 3.12 env
  uv pip install --quiet --python env \"\$(ls jaxboost-*.whl)[tpu,quickstart]\"
  mkdir -p runs
  gcloud storage rsync --recursive $BUCKET runs || true
  exec env/bin/jaxboost train --config quickstart --workdir runs/quickstart
}
(train) &
child=\$!
while kill -0 \$child 2>/dev/null; do
  sleep 600 &
  wait -n \$child \$! || true
  [ ! -d runs/quickstart ] || gcloud storage rsync --recursive runs $BUCKET
done
wait \$child
echo \$? > code
END
nohup setsid bash train.sh > train.log 2>&1 < /dev/null &
echo \$! > train.pid
"
until code=$(tpu ssh --command="cat code" 2>/dev/null); do
  case $(state) in
    PREEMPTED | TERMINATED) echo "the VM was taken away: start this script again" >&2; exit 1 ;;
  esac
  tpu ssh --command='tail -n 20 -F --pid=$(cat train.pid) train.log' || sleep 30
done
echo "the VM goes on costing: gcloud compute tpus tpu-vm delete $NAME --zone=$ZONE"
exit "$code"
