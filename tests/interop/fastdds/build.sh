#!/usr/bin/env bash
# Builds the Fast DDS peer. Usage: build.sh OUTPUT. Needs g++ and Fast DDS 2.x with its headers (Debian: libfastrtps-dev).
# Exits 3 if Fast DDS is not installed.
set -euo pipefail
here="$(dirname "$0")"
out="$1"

if ! echo '#include <fastdds/dds/domain/DomainParticipant.hpp>' | g++ -std=c++17 -E -x c++ - >/dev/null 2>&1; then
  echo "no Fast DDS 2.x: install g++, libfastrtps-dev and libfastcdr-dev" >&2
  exit 3
fi
if [ ! "$out" -nt "$here/peer.cpp" ]; then
  g++ -std=c++17 -O1 -Wall -Wextra -Werror -o "$out" "$here/peer.cpp" -lfastrtps -lfastcdr
fi
