#!/usr/bin/env bash
# Makes the two base images of deploy/Dockerfile from Debian's packages and the Rust toolchain of
# this machine, so that the images can be built where no registry of images is reached:
#   limbeck/base:local   a minimal Debian                       (RUNTIME_IMAGE)
#   limbeck/rust:local   the same with gcc, cargo and rustc     (BUILD_IMAGE)
# Needs root, a Docker engine, debootstrap, and cargo's registry filled by one build here.
set -euo pipefail
suite=bookworm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo_home=${CARGO_HOME:-$HOME/.cargo}
toolchain=$(rustc --print sysroot)

# Should this fail, none shall be left that holds the sources of other dependencies.
docker image rm --force limbeck/base:local limbeck/rust:local >/dev/null 2>&1 || true

debootstrap --variant=minbase "$suite" "$work/base" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
tar -C "$work/base" -c . | docker import - limbeck/base:local >/dev/null

chroot "$work/base" apt-get install -y -qq --no-install-recommends gcc g++ libc6-dev >"$work/log" 2>&1 \
    || { cat "$work/log"; exit 1; }
mkdir -p "$work/base/opt/rust" "$work/base/opt/cargo"
cp -a "$toolchain/." "$work/base/opt/rust/"
rm -rf "$work/base/opt/rust/share"
cp -a "$cargo_home/registry" "$work/base/opt/cargo/"
tar -C "$work/base" -c . | docker import \
    --change 'ENV PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV CARGO_HOME=/opt/cargo' --change 'ENV CARGO_NET_OFFLINE=true' \
    - limbeck/rust:local >/dev/null
docker image ls 'limbeck/*'
