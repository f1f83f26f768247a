#!/usr/bin/env bash
# Sets Takt up on this machine: user, folders, binary, board file, service. Downloads nothing, says every step, may be run again.
set -euo pipefail

usage() {
  cat <<'END'
usage: sudo ./install.sh [options]

  --binary FILE   the binary `takt` for this machine; without it one that a package installed as /usr/bin/takt is used
  --board NAME    board file: a path, or a name in jetson-configs [default: by this machine's device tree; host on any other]
  --isolate       keep the rest of the system off the worker's cores (drop-ins of system.slice, user.slice and init.scope)
  --uninstall     stop the service and remove what this script installed; /etc/takt and /var/lib/takt stay
  --purge         with --uninstall: remove those and the user as well
  --dry-run       say what would be done, change nothing
  --root DIR      work in DIR instead of /, for images and tests: no user is made, no service told
  --help          this text

Afterwards: build an engine into /var/lib/takt, `takt doctor`, `takt calibrate`, `systemctl enable --now takt` (docs/deployment.md).
END
}

binary="" board="" root="" dry_run=no isolate=no uninstall=no purge=no
while [ $# -gt 0 ]; do
  case $1 in
    --binary | --board | --root)
      [ $# -ge 2 ] || { echo "install.sh: $1 needs a value" >&2; exit 2; }
      case $1 in --binary) binary=$2 ;; --board) board=$2 ;; --root) root=${2%/} ;; esac
      shift ;;
    --isolate) isolate=yes ;;
    --uninstall) uninstall=yes ;;
    --purge) purge=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    *) echo "install.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

fail() { echo "install.sh: $*" >&2; exit 1; }
say() { echo "  $*"; }
# Runs a command that changes something, or only says so.
change() {
  local what=$1
  shift
  if [ "$dry_run" = yes ]; then say "would $what"; else say "$what"; "$@"; fi
}

[ "$purge" = no ] || [ "$uninstall" = yes ] || fail "--purge belongs to --uninstall"
[ -z "$root" ] || [ -d "$root" ] || fail "--root $root: no such folder"
if [ -z "$root" ] && [ "$dry_run" = no ] && [ "$(id -u)" != 0 ]; then fail "needs root: sudo $0"; fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
boards=$here/jetson-configs # as packages have it
[ -d "$boards" ] || boards=$here/../jetson-configs
[ -d "$boards" ] || fail "no jetson-configs beside $here"
units=$here/systemd

# --- small steps -----------------------------------------------------------------------------------------------------------------

folder() { # DIR MODE
  [ -d "$root$1" ] || change "make $1" install -d -m "$2" "$root$1"
}

# Writes standard input to DEST unless that is what it holds.
write() { # DEST MODE
  local new
  new=$(mktemp)
  cat >"$new"
  if cmp -s "$new" "$root$1"; then say "keep $1"; else change "write $1" install -D -m "$2" "$new" "$root$1"; fi
  rm -f "$new"
}

# As `write`, for files that people edit: theirs stays, ours lies beside it.
write_once() { # DEST MODE
  if [ -e "$root$1" ]; then
    local new
    new=$(mktemp)
    cat >"$new"
    if cmp -s "$new" "$root$1"; then say "keep $1"; else write "$1.new" "$2" <"$new"; say "keep $1, which was edited: compare it with $1.new"; fi
    rm -f "$new"
  else
    write "$1" "$2"
  fi
}

remove() { # PATH
  if [ -e "$root$1" ] || [ -L "$root$1" ]; then change "remove $1" rm -rf "$root$1"; fi
}

tell_systemd() { # ARGS
  if [ -n "$root" ]; then say "not told, because of --root: systemctl $*"; return; fi
  if ! command -v systemctl >/dev/null; then say "no systemctl here: $*"; return; fi
  change "systemctl $*" systemctl "$@"
}

value_of() { # FILE KEY: a text or number of a board file
  sed -n "s/^$2 = \"\\{0,1\\}\\([^\"#]*[^\"# ]\\)\"\\{0,1\\}.*/\\1/p" "$1" | head -n 1
}

# --- the board -------------------------------------------------------------------------------------------------------------------

# The file whose `model` the device tree names; of several, the one whose memory is nearest.
find_board() {
  local model="" total_gib=0 best="" best_distance=100000 file wanted distance
  if [ -r "$root/proc/device-tree/model" ]; then model=$(tr -d '\0' <"$root/proc/device-tree/model"); fi
  if [ -r "$root/proc/meminfo" ]; then total_gib=$(awk '/^MemTotal:/ { printf "%d", ($2 + 524288) / 1048576 }' "$root/proc/meminfo"); fi
  for file in "$boards"/*.toml; do
    wanted=$(value_of "$file" model)
    [ -n "$wanted" ] || continue
    case ${model,,} in *"${wanted,,}"*) ;; *) continue ;; esac
    distance=$(($(value_of "$file" memory_gib) - total_gib))
    distance=${distance#-}
    if [ "$distance" -lt "$best_distance" ]; then best=$file best_distance=$distance; fi
  done
  echo "${best:-$boards/host.toml}"
}

choose_board() {
  if [ -z "$board" ]; then find_board; return; fi
  if [ -f "$board" ]; then echo "$board"; return; fi
  [ -f "$boards/$board.toml" ] || fail "--board $board: no such file; there are: $(cd "$boards" && echo *.toml | sed 's/\.toml//g')"
  echo "$boards/$board.toml"
}

# Cores of the worker, `4 5 6 7`.
worker_cores() { sed -n 's/^cores = \[\([0-9, ]*\)\].*/\1/p' "$1" | head -n 1 | tr -d ','; }

# All cores that are not the worker's.
other_cores() { # WORKER_CORES
  local last core others=""
  last=$(sed 's/.*[-,]//' "$root/sys/devices/system/cpu/possible" 2>/dev/null || echo 0)
  for ((core = 0; core <= last; core++)); do
    case " $1 " in *" $core "*) ;; *) others="$others $core" ;; esac
  done
  echo "${others# }"
}

# --- what is done ----------------------------------------------------------------------------------------------------------------

make_user() {
  if [ -n "$root" ]; then say "no user is made, because of --root"; return; fi
  if id -u takt >/dev/null 2>&1; then
    say "keep user takt"
  else
    change "make user takt" useradd --system --user-group --home-dir /var/lib/takt --no-create-home --shell /usr/sbin/nologin takt
  fi
  local group
  for group in video render; do # whoever may use a Jetson's GPU
    if getent group "$group" >/dev/null && ! id -nG takt 2>/dev/null | grep -qw "$group"; then
      change "add takt to group $group" usermod -aG "$group" takt
    fi
  done
}

install_binary() {
  if [ -n "$binary" ]; then
    [ -f "$binary" ] || fail "--binary $binary: no such file"
    folder /opt/takt/bin 755
    write /opt/takt/bin/takt 755 <"$binary"
    if [ "$(readlink "$root/usr/local/bin/takt" 2>/dev/null || true)" != /opt/takt/bin/takt ]; then
      folder /usr/local/bin 755
      change "link /usr/local/bin/takt" ln -sfn /opt/takt/bin/takt "$root/usr/local/bin/takt"
    fi
  elif [ -e "$root/usr/bin/takt" ]; then
    say "keep /usr/bin/takt, of the package"
  else
    fail "no /usr/bin/takt here: give the binary with --binary FILE (cargo build --release, or launch/package.sh)"
  fi
}

install_service() {
  local program=/usr/bin/takt
  if [ -n "$binary" ]; then program=/opt/takt/bin/takt; fi
  if [ -z "$binary" ] && [ -e "$root/usr/lib/systemd/system/takt.service" ]; then
    say "keep takt.service and takt.slice, of the package"
  else
    sed "s#^ExecStart=/usr/bin/takt #ExecStart=$program #" "$units/takt.service" | write /etc/systemd/system/takt.service 644
    write /etc/systemd/system/takt.slice 644 <"$units/takt.slice"
  fi
  write /etc/security/limits.d/99-takt-limits.conf 644 <"$units/99-takt-limits.conf"
}

# Threads beside the worker's (ROS 2, signals) get the core below it: beside SCHED_FIFO on one core they would starve.
pin_service() { # BOARD_FILE
  local cores first
  cores=$(worker_cores "$1")
  if [ -z "$cores" ]; then
    remove /etc/systemd/system/takt.service.d/10-board.conf
    return
  fi
  first=${cores%% *}
  write /etc/systemd/system/takt.service.d/10-board.conf 644 <<END
# Written by install.sh from the board file: the worker's cores, and one below them for everything else of Takt.
[Service]
CPUAffinity=$((first > 0 ? first - 1 : 0)) $cores
END
}

slices="system.slice user.slice init.scope"

keep_others_off() { # BOARD_FILE
  local cores others unit section
  cores=$(worker_cores "$1")
  [ -n "$cores" ] || fail "--isolate: the board file names no cores"
  others=$(other_cores "$cores")
  [ -n "$others" ] || fail "--isolate: no core would be left for the system (worker: $cores)"
  for unit in $slices; do
    section=${unit##*.}
    write "/etc/systemd/system/$unit.d/50-takt-cores.conf" 644 <<END
# Written by install.sh --isolate: cores $cores are Takt's.
[${section^}]
AllowedCPUs=$others
END
  done
}

install_all() {
  local file title
  file=$(choose_board)
  title=$(value_of "$file" name)
  echo "Takt on ${title:-a machine without a board file of its own} ($(basename "$file"))${root:+, in $root}"
  make_user
  install_binary
  folder /etc/takt 755
  folder /var/lib/takt 750
  folder /var/lib/takt/engines 750
  if [ -z "$root" ] && [ "$dry_run" = no ]; then chown takt:takt /var/lib/takt /var/lib/takt/engines; fi
  write_once /etc/takt/board.toml 644 <"$file"
  write_once /etc/takt/takt.env 644 <"$units/takt.env"
  if [ -n "$binary" ]; then
    folder /opt/takt/jetson-configs 755
    local name
    for name in $(cd "$boards" && echo *.toml); do write "/opt/takt/jetson-configs/$name" 644 <"$boards/$name"; done
  fi
  install_service
  # The file in force may have been edited.
  if [ -f "$root/etc/takt/board.toml" ]; then file=$root/etc/takt/board.toml; fi
  pin_service "$file"
  if [ "$isolate" = yes ]; then keep_others_off "$file"; fi
  tell_systemd daemon-reload
  cat <<END
next:
  takt build CHECKPOINT -o /var/lib/takt/engines/NAME     then TAKT_ENGINE=… in /etc/takt/takt.env, chown -R takt: /var/lib/takt/engines
  takt doctor --board /etc/takt/board.toml                what the board still lacks
  sudo systemd-run --pty --uid=takt --slice=takt.slice -p LimitRTPRIO=60 -p LimitMEMLOCK=infinity \\
    takt calibrate /var/lib/takt/engines/NAME --config /etc/takt/board.toml
  sudo systemctl enable --now takt
END
}

uninstall_all() {
  echo "removing Takt${root:+ from $root}"
  if [ -n "$root" ] || { command -v systemctl >/dev/null && systemctl cat takt.service >/dev/null 2>&1; }; then
    tell_systemd disable --now takt.service
  fi
  local path unit
  for path in /etc/systemd/system/takt.service /etc/systemd/system/takt.service.d /etc/systemd/system/takt.slice \
    /etc/security/limits.d/99-takt-limits.conf /opt/takt; do remove "$path"; done
  for unit in $slices; do remove "/etc/systemd/system/$unit.d/50-takt-cores.conf"; done
  if [ "$(readlink "$root/usr/local/bin/takt" 2>/dev/null || true)" = /opt/takt/bin/takt ]; then remove /usr/local/bin/takt; fi
  if [ "$purge" = yes ]; then
    remove /etc/takt
    remove /var/lib/takt
    if [ -z "$root" ] && id -u takt >/dev/null 2>&1; then change "remove user takt" userdel takt; fi
  else
    say "/etc/takt and /var/lib/takt stay (--purge removes them)"
  fi
  tell_systemd daemon-reload
}

if [ "$uninstall" = yes ]; then uninstall_all; else install_all; fi
