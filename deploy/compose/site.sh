#!/bin/sh
# One site, or with the argument `evaluator` the evaluator: takes a place, waits until run.sh has enrolled it, joins.
#
# A place is a folder below /sites: 1, 2, 3, ... and evaluator. Taking one is locking it, so no two replicas have the
# same one, and the kernel frees it when the replica ends, however it ends. Work that was left there is gone on with.
set -eu

take() {
    mkdir -p "/sites/$1"
    exec 9>"/sites/$1/lock"
    flock --nonblock 9
}

if [ $# -gt 0 ]; then
    place=$1
    data='test = "/usr/share/fedtune/demo/data/test.csv"'
    take "$place" || { echo "error: another container is the $place" >&2; exit 1; }
else
    place=1
    data='train = "train.csv"'
    until take $place; do place=$((place + 1)); done
fi

cd "/sites/$place"
echo "place $place is taken; waiting to be enrolled"
until [ -e enrolled ]; do sleep 0.2; done
echo "enrolled as $(cat enrolled)"
cat >site.toml <<TOML
[aggregator]
address = "$FEDTUNE_ADDRESS"
bundle = "bundle"

[data]
$data
TOML
# The lock's descriptor stays open in the client.
exec fedtune-client run --config site.toml
