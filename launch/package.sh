#!/usr/bin/env bash
# Builds the Debian packages: `launch/package.sh [amd64] [arm64]`, both without arguments. They appear in target/debian.
# Needs cargo-deb (`cargo install cargo-deb`) and dpkg; for arm64 on another machine also gcc-aarch64-linux-gnu and the Rust target.
set -euo pipefail
cd "$(dirname "$0")/.."

# What packages may need of the C library: as much as JetPack 6 (Ubuntu 22.04) has. The same number stands in node/Cargo.toml.
most_glibc=2.35
target_folder=${CARGO_TARGET_DIR:-target}

fail() { echo "package.sh: $*" >&2; exit 1; }
command -v cargo-deb >/dev/null || fail "cargo-deb is missing: cargo install cargo-deb --version '^3' --locked"

build() { # DEBIAN_ARCHITECTURE RUST_TARGET
  local package="$target_folder/debian/takt_$1.deb" program="$target_folder/$2/release/takt" newest
  if [ "$1" = "$(dpkg --print-architecture)" ]; then
    program="$target_folder/release/takt" # shared with `cargo build --release`
    cargo deb --package takt-node --strip --output "$package"
  else
    cargo deb --package takt-node --strip --target "$2" --output "$package"
  fi
  # Read from the program itself: the package names its dependency by hand.
  newest=$(objdump_of "$1" -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
  [ "$(printf '%s\n' "$most_glibc" "${newest#GLIBC_}" | sort -V | tail -n 1)" = "$most_glibc" ] ||
    fail "$package needs $newest, more than the $most_glibc it names: build on an older system"
  [ "$(dpkg-deb -f "$package" Architecture)" = "$1" ] || fail "$package is not for $1"
  echo "$package ($(du -h "$package" | cut -f 1), needs $newest)"
}

objdump_of() { # DEBIAN_ARCHITECTURE ARGS
  local cross=objdump
  if [ "$1" = arm64 ] && [ "$(uname -m)" != aarch64 ]; then cross=aarch64-linux-gnu-objdump; fi
  if [ "$1" = amd64 ] && [ "$(uname -m)" != x86_64 ]; then cross=x86_64-linux-gnu-objdump; fi
  "$cross" "${@:2}"
}

[ $# -gt 0 ] || set -- amd64 arm64
for architecture in "$@"; do
  case $architecture in
    amd64) build amd64 x86_64-unknown-linux-gnu ;;
    arm64)
      if [ "$(uname -m)" != aarch64 ]; then
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=${CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER:-aarch64-linux-gnu-gcc}
        export CC_aarch64_unknown_linux_gnu=${CC_aarch64_unknown_linux_gnu:-aarch64-linux-gnu-gcc}
      fi
      build arm64 aarch64-unknown-linux-gnu ;;
    *) fail "unknown architecture $architecture: amd64 or arm64" ;;
  esac
done
