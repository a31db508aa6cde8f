# shellcheck shell=bash
# Sourced by the other scripts: messages, and what a build needs where it is missing.

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$*"
    exit 1
}

# debian PACKAGE…: installs them, or says what to install.
debian() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "missing on this machine: $* (Debian's names); install them, or run this as root on Debian"
    fi
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# toolchain: Rust must be there; a C compiler is installed (zstd, ring and psm are C in part).
toolchain() {
    command -v cargo >/dev/null || die "no cargo on the PATH; get Rust $(
        sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer from https://rustup.rs"
    command -v cc >/dev/null || debian gcc libc6-dev
}
