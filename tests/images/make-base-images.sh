#!/bin/sh
# Makes the base images that the Dockerfile names, where they are absent and cannot be pulled (a machine without a
# container registry). What exists is left as it is, so this can be run any number of times.
#
#   tests/images/make-base-images.sh            both
#   tests/images/make-base-images.sh debian     only debian:bookworm-slim, all that the compose test needs
#   tests/images/make-base-images.sh rust       only rust:1.95-bookworm (2 GB)
#
# Runs as root and needs a Docker engine, debootstrap and a Debian mirror (DEBIAN_MIRROR names another than
# debootstrap's own). The Rust toolchain is this machine's own, from `rustc --print sysroot`.
# Exit codes: 0 the images are there; 3 something this needs is missing; any other, a step failed.
set -eu

DEBIAN=debian:bookworm-slim
RUST=rust:1.95-bookworm

say() { echo "make-base-images: $*" >&2; }
lacks() { say "$*"; exit 3; }
there() { docker image inspect "$1" >/dev/null 2>&1; }
pulled() { timeout 300 docker pull --quiet "$1" >/dev/null 2>&1; }

# A root folder with a minimal Debian.
bootstrap() {
    command -v debootstrap >/dev/null || lacks "debootstrap is not installed (apt-get install debootstrap)"
    [ "$(id -u)" = 0 ] || lacks "debootstrap needs root"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    root=$work/debian
    say "debootstrap: a minimal Debian 12"
    debootstrap --variant=minbase bookworm "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        lacks "debootstrap failed; is a Debian mirror reachable?"
    }
}

# Imports the root folder under a name; more arguments are for docker import.
import() {
    name=$1; shift
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/usr/share/doc/* \
        "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/tmp/*
    tar --numeric-owner -C "$root" -c . | docker import "$@" - "$name" >/dev/null
    say "$name is made"
}

have() {
    there "$1" && { say "$1 is there"; return 0; }
    pulled "$1" && { say "$1 is pulled"; return 0; }
    return 1
}

make_debian() {
    have $DEBIAN && return
    bootstrap
    import $DEBIAN --change 'CMD ["bash"]'
}

make_rust() {
    have $RUST && return
    command -v rustc >/dev/null || lacks "no rustc, whose toolchain the image would hold"
    case $(rustc --version) in
        "rustc 1.95."*) ;;
        *) lacks "$RUST needs Rust 1.95, and this machine has $(rustc --version)" ;;
    esac
    toolchain=$(rustc --print sysroot)
    bootstrap
    say "packages: a C compiler"
    chroot "$root" sh -ec '
        export DEBIAN_FRONTEND=noninteractive
        apt-get update
        apt-get install --yes --no-install-recommends gcc g++ libc6-dev make pkg-config ca-certificates git
    ' >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; lacks "apt-get failed; is a Debian mirror reachable?"; }
    # Certificates that this machine trusts beside the usual ones, for cargo behind a proxy.
    [ -z "${SSL_CERT_FILE:-}" ] || cp "$SSL_CERT_FILE" "$root/etc/ssl/certs/ca-certificates.crt"
    say "the toolchain: $(rustc --version)"
    tar -C "$toolchain" --exclude=share/doc --exclude=share/man --exclude=lib/rustlib/src -c . |
        tar -C "$root/usr/local" -x
    mkdir -p "$root/usr/local/cargo"
    import $RUST --change 'ENV CARGO_HOME=/usr/local/cargo' --change 'CMD ["bash"]' \
        --change 'ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

docker info >/dev/null 2>&1 || lacks "no Docker engine answers"
case ${1:-all} in
    debian) make_debian ;;
    rust) make_rust ;;
    # In subshells, for each has its own folder to remove.
    all) (make_debian); (make_rust) ;;
    *) say "found $1; expected debian, rust or nothing"; exit 2 ;;
esac
