#!/bin/sh
# The one-shot: enrols the sites and the evaluator, gives each site its rows, runs the demo's job to its end and exports
# the best model.
set -eu

demo=/usr/share/fedtune/demo
rows=$demo/data/train.csv

say() { echo "== $*"; }
fail() { echo "error: $*" >&2; exit 1; }

# The service's name has one address for each replica.
replicas() { getent ahostsv4 site | awk '{ print $1 }' | sort -u | wc -l; }

# The demo's own sites, in order. The column `site` is the last one.
hospitals() { awk -F, 'NR > 1 { print $NF }' $rows | sort -u; }

# The name of the site in place $1.
name_of() {
    if [ "$sites" = "$(hospitals | wc -l)" ]; then hospitals | sed -n "$1p"; else echo "site-$1"; fi
}

# The rows of the site in place $1: a demo site's own, or for another number of sites every so-many-th one.
rows_of() {
    if [ "$sites" = "$(hospitals | wc -l)" ]; then
        awk -F, -v site="$(name_of "$1")" 'NR == 1 || $NF == site' $rows
    else
        awk -v sites="$sites" -v place="$1" 'NR == 1 || (NR - 1) % sites == place % sites' $rows
    fi
}

# Makes the bundle of the participant in place $1; its name and role follow. It may begin once `enrolled` is there.
enrol() {
    [ ! -e "/sites/$1/enrolled" ] || return 0
    mkdir -p "/sites/$1"
    [ "$3" = evaluator ] || rows_of "$1" >"/sites/$1/train.csv"
    fedtune-server site add "$2" --role "$3" --config /federation/server.toml --out "/sites/$1/bundle"
    echo "$2" >"/sites/$1/.enrolled"
    mv "/sites/$1/.enrolled" "/sites/$1/enrolled"
}

online() { fedtune-server site list --output json | grep -c '"online": true' || true; }

sites=$(replicas)
[ "$sites" -gt 0 ] || fail "no site is running"
enrolled=$(cat /sites/count 2>/dev/null || echo "$sites")
[ "$sites" = "$enrolled" ] || fail "this federation has $enrolled sites, and $sites are running; \
start with --scale site=$enrolled, or remove it first (docker compose down --volumes)"
# Rows are told apart by lines below.
awk 'gsub(/"/, "\"") % 2 { exit 1 }' $rows || fail "$rows: a quoted line break; rows cannot be split by lines"

say "enrolling $sites sites and an evaluator"
echo "$sites" >/sites/count
enrol evaluator evaluator evaluator
place=1
while [ $place -le "$sites" ]; do
    enrol $place "$(name_of $place)" site
    place=$((place + 1))
done

say "waiting until all are online"
tries=240
until [ "$(online)" -eq $((sites + 1)) ]; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { fedtune-server site list; fail "not every site came online in two minutes"; }
    sleep 0.5
done
fedtune-server site list

say "running the demo's job"
sed -e "s|^path = .*|path = \"$demo/model\"|" -e "s/^quorum = .*/quorum = $sites/" -e "s/^count = .*/count = $ROUNDS/" \
    $demo/job.toml >/tmp/job.toml
job=$(fedtune-server job submit /tmp/job.toml)
echo "job $job"
until fedtune-server job watch "$job"; do
    # 7: the aggregator is away. It is started again, and the job goes on.
    [ $? -eq 7 ] || fail "the job did not complete"
    sleep 1
done

say "result"
fedtune-server job show "$job"
fedtune-server model export "$job@best" --to "/results/$job"
fedtune-server job show "$job" --output json >"/results/$job/job.json"
say "done"
