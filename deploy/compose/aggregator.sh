#!/bin/sh
# The aggregator: makes the federation at the first start, then serves it.
set -eu
cd /federation
[ -e server.toml ] || fedtune-server init --dir . --host aggregator >/dev/null
exec fedtune-server run --config server.toml
