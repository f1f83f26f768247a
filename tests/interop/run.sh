#!/usr/bin/env bash
# A running `takt serve` against CycloneDDS (its Python binding) and Fast DDS (a program built here), over real DDS traffic
# on the loopback interface.
# Usage: tests/interop/run.sh [PATH OF takt [WORDS]]; without one, the release build; with WORDS only the cases whose vendor, file
# or name has one of them. Needs Python 3.9+ with venv; the binding is installed into target/interop-venv. Without g++ and libfastrtps-dev the Fast DDS cases are left out, which is said, or
# an error if TAKT_REQUIRE_FASTDDS is set. Exits 1 if anything failed.
set -euo pipefail
cd "$(dirname "$0")/../.."

cyclonedds=11.0.1
target="${CARGO_TARGET_DIR:-target}"
venv="$target/interop-venv"
takt="${1:-$target/release/takt}"

if [ ! -x "$takt" ]; then
  echo "no $takt: build it with 'cargo build --release', or give the path of takt" >&2
  exit 2
fi
if ! "$venv/bin/python" -c "from importlib.metadata import version; assert version('cyclonedds') == '$cyclonedds'" 2>/dev/null; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "cyclonedds==$cyclonedds"
fi
peer="$target/interop-fastdds-peer"
status=0
tests/interop/fastdds/build.sh "$peer" || status=$?
if [ "$status" = 0 ]; then
  TAKT_FASTDDS_PEER="$(realpath "$peer")"
  export TAKT_FASTDDS_PEER
elif [ "$status" = 3 ] && [ -z "${TAKT_REQUIRE_FASTDDS:-}" ]; then
  echo "the Fast DDS cases are left out: it is not installed"
  unset TAKT_FASTDDS_PEER
else
  exit "$status"
fi
exec "$venv/bin/python" tests/interop/run.py "$takt" "${@:2}"
