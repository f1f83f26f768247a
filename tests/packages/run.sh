#!/usr/bin/env bash
# Holds the Debian packages of `launch/package.sh` to what they promise: contents, installing, setting up, upgrading, removing and purging in a
# folder that plays the machine, the programs starting, the unit being one that systemd understands.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${CARGO_TARGET_DIR:-target}/debian
machine=$(mktemp -d)
trap 'rm -rf "$machine"' EXIT
fail() { echo "packages: $*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

for architecture in amd64 arm64; do
  package=$folder/takt_$architecture.deb
  [ -f "$package" ] || fail "$package is missing: launch/package.sh $architecture"
  contents=$(dpkg-deb -c "$package" | awk '{ print $6 }')
  for path in usr/bin/takt usr/lib/systemd/system/takt.service usr/lib/systemd/system/takt.slice usr/share/takt/install.sh \
    usr/share/takt/systemd/takt.env usr/share/takt/jetson-configs/{host,thor-128gb,agx-orin-64gb,agx-orin-32gb,orin-nx-16gb,orin-nano-8gb}.toml \
    usr/share/takt/ros/takt_bringup/launch/takt.launch.py usr/share/takt/ros/takt_bringup/package.xml usr/share/takt/ros/takt_msgs/srv/Ask.srv \
    usr/share/takt/jetson-configs/README.md usr/share/doc/takt/{deployment.md,ros2.md,copyright,LICENSE-MIT,LICENSE-APACHE}; do
    grep -qxF "./$path" <<<"$contents" || fail "$package lacks $path"
  done
  if grep -E '__pycache__|\.pyc$' <<<"$contents"; then fail "$package has compiled Python"; fi
  [ "$(dpkg-deb -f "$package" Architecture)" = "$architecture" ] || fail "$package is for another architecture"
  scripts=$(dpkg-deb -I "$package" | grep -oE ' (preinst|postinst|prerm|postrm) ' | tr -d ' \n' || true)
  [ "$scripts" = prerm ] || fail "$package has the maintainer scripts '$scripts'; prerm alone is tested here"
  dpkg-deb -x "$package" "$machine/$architecture"
done

echo "programs"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
if [ "$(dpkg --print-architecture)" = amd64 ]; then
  [ "$("$machine/amd64/usr/bin/takt" --version)" = "takt $version" ] || fail "the amd64 program does not start"
fi
if [ "$(dpkg --print-architecture)" = arm64 ]; then
  [ "$("$machine/arm64/usr/bin/takt" --version)" = "takt $version" ] || fail "the arm64 program does not start"
elif command -v qemu-aarch64 >/dev/null; then
  # Orin's cores: dot products, no 8-bit matrix multiplication.
  found=$(qemu-aarch64 -cpu cortex-a76 -L /usr/aarch64-linux-gnu "$machine/arm64/usr/bin/takt" --version)
  [ "$found" = "takt $version" ] || fail "the arm64 program does not start: $found"
else
  echo "  the arm64 program was not started: no qemu-aarch64"
fi

echo "install, set up, upgrade, remove, purge"
native=$(dpkg --print-architecture)
root=$machine/root
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates" "$root/proc/device-tree" "$root/sys/devices/system/cpu"
touch "$root/var/lib/dpkg/status"
printf 'NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0' >"$root/proc/device-tree/model"
echo "MemTotal: 16000000 kB" >"$root/proc/meminfo"
echo 0-7 >"$root/sys/devices/system/cpu/possible"
# The package's script runs with DPKG_ROOT: the folder has no shell to change root to.
in_root() { as_root dpkg --root="$root" --force-depends --force-script-chrootless --log=/dev/null "$@" 2>&1 | sed 's/^/  /'; }
in_root -i "$folder/takt_$native.deb"
[ "$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Status}' takt)" = "install ok installed" ] || fail "not installed"
as_root "$root/usr/share/takt/install.sh" --root "$root" --isolate >"$machine/told"
grep -q "Takt on Jetson Orin NX 16 GB" "$machine/told" || fail "the installer did not know the board: $(cat "$machine/told")"
grep -qx "CPUAffinity=3 4 5 6 7" "$root/etc/systemd/system/takt.service.d/10-board.conf" || fail "no core affinity"
[ ! -e "$root/etc/systemd/system/takt.service" ] || fail "the package's unit was copied beside itself"
in_root -i "$folder/takt_$native.deb"
[ -e "$root/etc/systemd/system/user.slice.d/50-takt-cores.conf" ] || fail "an upgrade gave the cores back"
in_root -r takt
left=$(cd "$root/etc" && find . \( -type f -o -type l \) ! -path './takt/*')
[ -z "$left" ] || fail "left behind after removing: $left"
[ -e "$root/etc/takt/board.toml" ] || fail "removing took the settings along"
in_root -i "$folder/takt_$native.deb"
as_root "$root/usr/share/takt/install.sh" --root "$root" --isolate >/dev/null
as_root "$root/usr/share/takt/install.sh" --root "$root" --uninstall --purge >/dev/null
in_root -P takt
left=$(cd "$root" && find . -path ./var/lib/dpkg -prune -o -path ./proc -prune -o -path ./sys -prune -o \( -type f -o -type l \) -print)
[ -z "$left" ] || fail "left behind after purging: $left"

echo "launch file"
python3 -c 'import sys; compile(open(sys.argv[1]).read(), sys.argv[1], "exec")' launch/takt_bringup/launch/takt.launch.py

echo "unit"
if command -v systemd-analyze >/dev/null; then
  units=$machine/units
  mkdir "$units"
  cp launch/systemd/takt.slice "$units"
  # systemd looks for the program where the unit says.
  sed "s#/usr/bin/takt#$(realpath "$machine/$native")/usr/bin/takt#" launch/systemd/takt.service >"$units/takt.service"
  systemd-analyze verify --man=no "$units/takt.service" || fail "systemd does not understand takt.service"
else
  echo "  takt.service was not verified: no systemd-analyze"
fi
echo "packages hold"
