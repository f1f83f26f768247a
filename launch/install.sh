#!/usr/bin/env bash
# Sets Takt up on this machine: user, folders, binary, board file, service. Downloads nothing, says every step, may be run again.
set -euo pipefail

usage() {
  cat <<'END'
usage: sudo ./install.sh [options]

  --binary FILE   the binary `takt` for this machine [default: a package's /usr/bin/takt, or the one given before]
  --board NAME    board file: a path, or a name in jetson-configs [default: the one named before, or by this machine's device tree; host
                  on any other]. It takes the place of /etc/takt/board.toml; an edited one is kept as board.toml.old
  --isolate       keep the rest of the system, shells included, off the worker's cores (drop-ins of system.slice, user.slice and
                  init.scope); stays in force when the script is run again, until --uninstall
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
docs=$here/../docs
[ -d "$docs" ] || docs=$here/../doc/takt # as packages have it
own_unit=/etc/systemd/system/takt.service
wanted_link=/etc/systemd/system/multi-user.target.wants/takt.service

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

# What was put into /etc/takt, so that a file nobody edited can follow an upgrade: lines of a name and a checksum or a board's name.
memory_file=/etc/takt/.installed
memory="# Written by install.sh: checksums of what it put here, and the board that was asked for."
remembered() { # NAME
  if [ -r "$root$memory_file" ]; then sed -n "s#^$1 ##p" "$root$memory_file"; fi
}
remember() { # NAME VALUE
  if [ -n "$2" ]; then memory+=$'\n'"$1 $2"; fi
}
checksum() { sha256sum <"$1" | cut -d ' ' -f 1; } # FILE

# Whether what is at PATH is neither NEW nor what was last put there.
is_edited() { # PATH NEW
  [ -e "$root$1" ] && ! cmp -s "$2" "$root$1" && [ "$(checksum "$root$1")" != "$(remembered "$1")" ]
}

# As `write`, for files that people edit: theirs stays, ours lies beside it.
write_once() { # DEST MODE NEW
  if is_edited "$1" "$3"; then
    write "$1.new" "$2" <"$3"
    if [ -n "$(remembered "$1")" ]; then
      say "keep $1, which was edited: compare it with $1.new"
    else
      say "keep $1, which this script did not write: compare it with $1.new"
    fi
    remember "$1" "$(remembered "$1")"
  else
    write "$1" "$2" <"$3"
    remove "$1.new"
    remember "$1" "$(checksum "$3")"
  fi
}

remove() { # PATH
  if [ -e "$root$1" ] || [ -L "$root$1" ]; then change "remove $1" rm -rf "$root$1"; fi
}

remove_empty() { # DIR
  if [ -d "$root$1" ] && [ -z "$(ls -A "$root$1")" ]; then change "remove $1" rmdir "$root$1"; fi
}

tell_systemd() { # ARGS
  if [ -n "$root" ]; then say "not told, because of --root: systemctl $*"; return; fi
  if [ ! -d /run/systemd/system ]; then say "systemd does not run here: systemctl $*"; return; fi
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

# Sets `board_name`, the board that was asked for, now or before; `board_file`, the file for it; `in_force`, the one that will count.
choose_board() {
  board_name=${board:-$(remembered board)}
  if [ -z "$board_name" ]; then
    board_file=$(find_board)
  elif [ -n "$board" ] && [ -f "$board" ]; then
    board_file=$board
    board_name=$(realpath "$board")
    if [ "$(dirname "$board_name")" = "$(realpath "$boards")" ]; then board_name=$(basename "$board_name" .toml); fi
  elif [ -f "$boards/$board_name.toml" ]; then
    board_file=$boards/$board_name.toml
  elif [ -n "$board" ]; then
    fail "--board $board: no such file; there are: $(cd "$boards" && echo *.toml | sed 's/\.toml//g')"
  elif [ -f "$board_name" ]; then
    board_file=$board_name
  else
    board_file=$root/etc/takt/board.toml # asked for before, and no longer there
    [ -f "$board_file" ] || fail "$board_name, asked for before, is gone: name a board with --board"
  fi
  in_force=$board_file
  if [ -z "$board" ] && is_edited /etc/takt/board.toml "$board_file"; then in_force=$root/etc/takt/board.toml; fi
}

# Cores that this machine may have, `0 1 2 3`; nothing where no kernel says so, as in an image.
machine_cores() {
  local file=$root/sys/devices/system/cpu/possible parts part core cores=""
  [ -r "$file" ] || return 0
  IFS=, read -ra parts <"$file" || true
  for part in "${parts[@]}"; do
    for ((core = ${part%-*}; core <= ${part#*-}; core++)); do cores="$cores $core"; done
  done
  echo "${cores# }"
}

# Cores of the worker, `4 5 6 7`; nothing where the file names none. Refuses what it cannot read: the service would be pinned elsewhere than
# its worker.
worker_cores() { # BOARD_FILE
  local text key='(^|[^A-Za-z0-9_-])cores"?[[:space:]]*=[[:space:]]*' list='\[([0-9,[:space:]]*)\]' cores core machine
  text=$(sed 's/#.*//' "$1" | tr '\n\r\t' '   ')
  [[ $text =~ $key ]] || return 0
  [[ $text =~ $key$list ]] || fail "$1: cannot read \`cores\`; expected a list of numbers, as cores = [4, 5, 6, 7]"
  read -ra cores <<<"${BASH_REMATCH[2]//,/ }"
  machine=$(machine_cores)
  for core in ${machine:+"${cores[@]}"}; do
    case " $machine " in *" $core "*) ;; *) fail "$1: \`cores\` names core $core; this machine has $machine" ;; esac
  done
  echo "${cores[*]}"
}

# All cores that are not the worker's.
other_cores() { # WORKER_CORES
  local core others=""
  for core in $(machine_cores); do
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

# Sets `program`, the one the service starts.
choose_program() {
  if [ -n "$binary" ]; then
    [ -f "$binary" ] || fail "--binary $binary: no such file"
    program=/opt/takt/bin/takt
  elif [ -e "$root/usr/bin/takt" ]; then
    program=/usr/bin/takt
  elif [ -e "$root/opt/takt/bin/takt" ]; then
    program=/opt/takt/bin/takt
  else
    fail "no /usr/bin/takt here: give the binary with --binary FILE (cargo build --release, or launch/package.sh)"
  fi
}

install_program() {
  if [ "$program" = /usr/bin/takt ]; then
    say "keep /usr/bin/takt, of the package"
    return
  fi
  if [ -n "$binary" ]; then
    folder /opt/takt/bin 755
    write /opt/takt/bin/takt 755 <"$binary"
  else
    say "keep /opt/takt/bin/takt"
  fi
  if [ "$(readlink "$root/usr/local/bin/takt" 2>/dev/null || true)" != /opt/takt/bin/takt ]; then
    folder /usr/local/bin 755
    change "link /usr/local/bin/takt" ln -sfn /opt/takt/bin/takt "$root/usr/local/bin/takt"
  fi
  local file
  folder /opt/takt/jetson-configs 755
  for file in "$boards"/*.toml "$boards/README.md"; do
    if [ -f "$file" ]; then write "/opt/takt/jetson-configs/${file##*/}" 644 <"$file"; fi
  done
  for file in "$docs/deployment.md" "$docs/ros2.md"; do
    if [ -f "$file" ]; then write "/opt/takt/doc/${file##*/}" 644 <"$file"; fi
  done
}

# What an earlier --binary left hides the package's unit and program behind its own.
remove_program_of_ours() {
  if grep -qs '^ExecStart=/opt/takt/bin/takt ' "$root$own_unit"; then
    remove "$own_unit"
    remove /etc/systemd/system/takt.slice
    if [ -L "$root$wanted_link" ]; then
      change "link $wanted_link" ln -sfn /usr/lib/systemd/system/takt.service "$root$wanted_link"
    fi
  fi
  remove_link
  remove /opt/takt/bin/takt
  remove /opt/takt/jetson-configs
  remove /opt/takt/doc
  remove_empty /opt/takt/bin
  remove_empty /opt/takt
}

remove_link() {
  if [ "$(readlink "$root/usr/local/bin/takt" 2>/dev/null || true)" = /opt/takt/bin/takt ]; then remove /usr/local/bin/takt; fi
}

install_service() {
  if [ "$program" = /usr/bin/takt ] && [ -e "$root/usr/lib/systemd/system/takt.service" ]; then
    say "keep takt.service and takt.slice, of the package"
    remove_program_of_ours
  else
    local guide=/usr/share/doc/takt/
    if [ "$program" = /opt/takt/bin/takt ]; then guide=/opt/takt/doc/; fi
    sed -e "s#^ExecStart=/usr/bin/takt #ExecStart=$program #" -e "s#^Documentation=file:/usr/share/doc/takt/#Documentation=file:$guide#" \
      "$units/takt.service" | write "$own_unit" 644
    write /etc/systemd/system/takt.slice 644 <"$units/takt.slice"
  fi
  write /etc/security/limits.d/99-takt-limits.conf 644 <"$units/99-takt-limits.conf"
}

# Threads beside the worker's (ROS 2, signals) get the core below it: beside SCHED_FIFO on one core they would starve.
pin_service() { # CORES
  if [ -z "$1" ]; then
    remove /etc/systemd/system/takt.service.d/10-board.conf
    remove_empty /etc/systemd/system/takt.service.d
    return
  fi
  local first=${1%% *}
  write /etc/systemd/system/takt.service.d/10-board.conf 644 <<END
# Written by install.sh from the board file: the worker's cores, and one below them for everything else of Takt.
[Service]
CPUAffinity=$((first > 0 ? first - 1 : 0)) $1
END
}

slices="system.slice user.slice init.scope"

is_isolated() {
  local unit
  for unit in $slices; do
    if [ -e "$root/etc/systemd/system/$unit.d/50-takt-cores.conf" ]; then return 0; fi
  done
  return 1
}

keep_others_off() { # CORES OTHERS
  local unit section
  for unit in $slices; do
    section=${unit##*.}
    write "/etc/systemd/system/$unit.d/50-takt-cores.conf" 644 <<END
# Written by install.sh --isolate: cores $1 are Takt's.
[${section^}]
AllowedCPUs=$2
END
  done
}

let_others_on() {
  local unit
  for unit in $slices; do
    remove "/etc/systemd/system/$unit.d/50-takt-cores.conf"
    remove_empty "/etc/systemd/system/$unit.d"
  done
}

install_board() {
  if [ "$board_file" = "$root/etc/takt/board.toml" ]; then
    say "keep /etc/takt/board.toml: $board_name, asked for before, is gone"
    remember /etc/takt/board.toml "$(remembered /etc/takt/board.toml)"
  else
    if [ -n "$board" ] && is_edited /etc/takt/board.toml "$board_file"; then
      change "keep the edited /etc/takt/board.toml as board.toml.old" \
        mv --backup=numbered "$root/etc/takt/board.toml" "$root/etc/takt/board.toml.old"
    fi
    write_once /etc/takt/board.toml 644 "$board_file"
  fi
  remember board "$board_name"
}

install_all() {
  local title cores others=""
  # All that may be refused, before anything changes.
  choose_board
  choose_program
  cores=$(worker_cores "$in_force")
  if [ "$isolate" = yes ]; then [ -n "$cores" ] || fail "--isolate: the board file names no cores"; fi
  if is_isolated; then isolate=yes; fi # by an earlier run: for the cores of now
  if [ "$isolate" = yes ] && [ -n "$cores" ]; then
    others=$(other_cores "$cores")
    [ -n "$(machine_cores)" ] || fail "--isolate: which cores this machine has is not known here: no /sys/devices/system/cpu/possible"
    [ -n "$others" ] || fail "--isolate: no core would be left for the system (worker: $cores)"
  fi

  title=$(value_of "$in_force" name)
  echo "Takt on ${title:-a machine without a board file of its own} ($(basename "$in_force"))${root:+, in $root}"
  make_user
  install_program
  folder /etc/takt 755
  folder /var/lib/takt 750
  folder /var/lib/takt/engines 750
  if [ -z "$root" ] && [ "$dry_run" = no ]; then chown takt:takt /var/lib/takt /var/lib/takt/engines; fi
  install_board
  write_once /etc/takt/takt.env 644 "$units/takt.env"
  write "$memory_file" 644 <<<"$memory"
  install_service
  pin_service "$cores"
  if [ -n "$others" ]; then keep_others_off "$cores" "$others"; elif is_isolated; then let_others_on; fi
  tell_systemd daemon-reload
  cat <<END
next:
  takt build CHECKPOINT -o /var/lib/takt/engines/NAME     then TAKT_ENGINE=… in /etc/takt/takt.env, chown -R takt: /var/lib/takt/engines
  takt doctor --board /etc/takt/board.toml                what the board still lacks
  sudo systemd-run --pty --uid=takt --slice=takt.slice -p LimitRTPRIO=60 -p LimitMEMLOCK=infinity \\
    takt calibrate /var/lib/takt/engines/NAME --config /etc/takt/board.toml
  sudo systemctl enable --now takt                        after an upgrade: sudo systemctl restart takt
END
  if [ -n "$others" ]; then echo "Shells do not get cores $cores, which are Takt's; commands in takt.slice do, as calibrate above."; fi
}

uninstall_all() {
  echo "removing Takt${root:+ from $root}"
  if [ -n "$root" ] || [ ! -d /run/systemd/system ] || systemctl cat takt.service >/dev/null 2>&1; then
    tell_systemd disable --now takt.service
  fi
  local path
  for path in "$wanted_link" "$own_unit" /etc/systemd/system/takt.service.d/10-board.conf /etc/systemd/system/takt.slice \
    /etc/security/limits.d/99-takt-limits.conf /opt/takt; do remove "$path"; done
  remove_empty /etc/systemd/system/takt.service.d # not what `systemctl edit` put there
  let_others_on
  remove_link
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
