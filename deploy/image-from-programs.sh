#!/bin/sh
# Makes the image out of programs that are built already, instead of compiling in a container.
#
#   cargo build --release --bins
#   deploy/image-from-programs.sh target/release           makes fedtune
#   deploy/image-from-programs.sh target/release NAME      makes NAME
#
# The programs must run on Debian 12: built for the engine's processor, on a Linux whose C library is 2.36 or older.
set -eu

[ $# -ge 1 ] || { echo "usage: $0 FOLDER [IMAGE]" >&2; exit 2; }
programs=$1
image=${2:-fedtune}
root=$(cd "$(dirname "$0")/.." && pwd)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
trap 'exit 130' INT TERM

for program in fedtune-server fedtune-client; do
    cp "$programs/$program" "$context/"
    strip "$context/$program" 2>/dev/null || echo "no strip here; $program goes in with its symbols" >&2
done
docker build --quiet --target runtime --tag "$image-runtime" "$root"
printf '%s\n' "FROM $image-runtime" "COPY fedtune-server fedtune-client /usr/local/bin/" >"$context/Dockerfile"
docker build --quiet --tag "$image" "$context"
docker run --rm "$image" fedtune-client --version
