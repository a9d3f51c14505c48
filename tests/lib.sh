# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
# Shared by the shell tests: scratch file systems, loop devices, and the clean-up after each case.
# New tests are in Python, see lib.py.
#
# A test sources this file, names its cases with `check`, and ends with `run_checks`. A case is a
# function that runs in a subshell under `set -e`: the first command that fails fails the case. At
# its end, everything it has attached, mounted or mapped is removed, and the settings it has changed
# (see state.sh) are restored. A case fails if it leaves something that cannot be restored.

set -Eeuo pipefail
shopt -s inherit_errexit
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
scratch=/tmp/${0##*/}.scratch
# Removed at the end of a case.
mnt=$scratch/mnt
# shellcheck source=state.sh
. "$tests/state.sh"
state=$(show_state) state_of_cases=$(show_state "$scratch")
# The RAM disks and their uses. XFS needs at least 300 MiB.
# shellcheck disable=SC2034  # for tests
ram_ext4=/dev/ram0 ram_xfs=/dev/ram1 ram_block=/dev/ram2 ram_spare=/dev/ram3
ram_mib=320

# lib.py has these as well: the seed, the number of repetitions, the driver, slow kernels, and the
# options of fio. Each is a line or two, and to ask Python for them would take a process more.

# The seed of everything random in a test, which shows it in the names of its cases; and the number
# of repetitions, as a multiple of the number that suits a run of all tests.
# shellcheck disable=SC2034  # for tests
seed=${SEED-$((RANDOM << 15 | RANDOM))} rounds=${ROUNDS-1}

# Set on the lab's own kernels, whose checks make everything several times slower.
# shellcheck disable=SC2034  # for tests
slow=$([[ $(uname -r) != *-@(debug|kcsan) ]] || echo 1)

driver=none
for name in loop rnull_loop; do
	[[ ! -e /sys/module/$name ]] || driver=$name
done

# --- KTAP

names=() commands=() reasons=()

# check DESCRIPTION COMMAND...: declares a case.
check() {
	names+=("$1")
	reasons+=('')
	shift
	commands+=("$(printf '%q ' "$@")")
}

# check_better REASON DESCRIPTION COMMAND...: declares a case that the C driver is known to fail.
check_better() {
	check "${@:2}"
	[[ $driver != loop ]] || reasons[-1]=$1
}

# Skips the case. Commands of a case never return the status 77 by themselves (ktap.py knows it).
skip() {
	echo "SKIP: $*"
	exit 77
}

# skip_all REASON: skips the whole test, and cleans up.
skip_all() {
	clean_up
	printf 'TAP version 13\n1..0 # SKIP %s\n' "$*"
	exit 4
}

fail() {
	echo "$*"
	blame 1 "${FUNCNAME[1]}"
}

# Runs the cases. One process of ktap.py reports all of them, because Python takes 0.3 s to start on
# the debug kernel. Cases do not inherit its pipes: bash closes those of a coprocess in subshells.
run_checks() {
	local number chosen status left start input pid
	mkdir -p "$mnt"
	: >>"$scratch/counts"
	trap clean_up EXIT
	trap 'exit 143' TERM
	trap 'exit 130' INT
	{ coproc KTAP { exec python3 "$tests/ktap.py" "$seed" "$scratch" 3>&1 >&4 4>&-; }; } 4>&1
	pid=$KTAP_PID input=${KTAP[1]}
	for number in "${!names[@]}"; do printf '%s\t%s\n' "${names[number]}" "${reasons[number]}"; done >&"$input"
	echo >&"$input"
	read -r -a chosen -u "${KTAP[0]}"
	for number in "${chosen[@]}"; do
		start=${EPOCHREALTIME/./}
		set +e
		(
			trap - EXIT
			trap 'blame "$?" "$BASH_COMMAND"' ERR
			set -e
			eval "${commands[number]}"
		) >"$scratch/log" 2>&1 </dev/null
		status=$?
		clean_case >>"$scratch/log" 2>&1
		left=$?
		set -e
		printf '%d\t%d\t%d\n' "$status" "$left" $(((${EPOCHREALTIME/./} - start) / 1000)) >&"$input"
		# The result is printed.
		read -r -u "${KTAP[0]}"
	done
	exec {input}>&-
	wait "$pid" || exit
	exit 0
}

# count WHAT NUMBER: adds to a count of the case (operations, faults, cuts, bytes, ...). The sums
# over all cases are printed at the end, for the summary of scripts/soak.
count() { echo "$1 $2" >>"$scratch/counts"; }

# blame STATUS COMMAND: reports the line of the test (not of this file) that failed, and ends the
# case.
blame() {
	local frame
	for frame in "${!BASH_LINENO[@]}"; do
		[[ ${BASH_SOURCE[frame + 1]-} != */"${0##*/}" ]] || break
	done
	echo "line ${BASH_LINENO[frame]}: status $1: ${2%%$'\n'*}"
	exit "$1"
}

# --- cleaning up

clean_case() {
	local status=0 tree
	cd /
	unmount_below "$mnt" || status=1
	losetup -D || : # it may race with the last close
	wait_for 10 nothing_mapped || status=1
	for tree in "$scratch"/{ext4,xfs,tmpfs,small}; do
		[[ ! -d $tree ]] || rm -rf "${tree:?}"/*
	done
	rm -rf "${mnt:?}"/*
	restore_state "$state_of_cases" "$scratch" || status=1
	return $status
}

# Removes all mappings. udev may have one open for a moment.
nothing_mapped() {
	compgen -G '/sys/block/dm-*' >/dev/null || return 0
	dmsetup remove_all
	return 1
}

# Needs wait_for, because udev may still have a device open after an attach.
nothing_bound() { ! compgen -G '/sys/block/loop*/loop/backing_file' >/dev/null; }

clean_up() {
	clean_case >&2 || :
	unmount_below "$scratch" >&2 || :
	restore_state "$state" | sed 's/^/# left behind: /'
	rm -rf "$scratch"
}

# stop_udev: stops udev for the whole test, because it would open each of many devices.
stop_udev() {
	udevadm settle
	end_udev
	# dmsetup would wait for udev.
	export DM_DISABLE_UDEV=1
}

end_udev() {
	udevadm control --exit
	wait_for 15 no_udev && return
	# A task that waits in the kernel survives this, too.
	pkill -KILL -x "$udev" || :
	wait_for 15 no_udev || fail 'udev does not end'
}

# The workers of udev may live on for a moment.
udev='systemd-udevd|\(udev-worker\)'
no_udev() { ! pgrep -x "$udev" >/dev/null; }

# unmount_below DIR: unmounts the file systems below DIR, the last mounted first.
unmount_below() {
	local dir dirs=()
	while read -r _ dir _; do
		[[ $dir/ != "$1"/* ]] || dirs=("$dir" "${dirs[@]}")
	done </proc/self/mounts
	for dir in "${dirs[@]}"; do
		umount "$dir" || umount -l "$dir"
	done
}

# --- waiting and comparing

# wait_for SECONDS COMMAND...: repeats COMMAND until it succeeds; the time limit is longer on slow
# kernels.
wait_for() {
	local deadline=$((SECONDS + $1 * (slow ? 4 : 1)))
	shift
	until "$@"; do
		((SECONDS < deadline)) || return 1
		sleep 0.1
	done
}

# equal WHAT GOT WANTED: fails unless GOT is WANTED.
equal() { [[ $2 == "$3" ]] || fail "$1: got '$2', wanted '$3'"; }

# refuse PATTERN COMMAND...: COMMAND must fail, with output that matches PATTERN.
refuse() {
	local pattern=$1 output
	shift
	! output=$("$@" 2>&1) || fail "succeeded: $*"
	[[ $output == *$pattern* ]] || fail "$*: said '$output', wanted '$pattern'"
}

# --- backings

load_brd() {
	[[ -e /sys/module/brd ]] || modprobe brd rd_nr=4 rd_size=$((ram_mib << 10))
}

# place KIND: prints the directory for files of a kind: ext4, xfs or tmpfs.
place() {
	local dir=$scratch/$1
	if ! mountpoint -q "$dir"; then
		mkdir -p "$dir"
		case $1 in
		ext4)
			load_brd
			mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,nodiscard $ram_ext4
			mount $ram_ext4 "$dir"
			;;
		xfs)
			load_brd
			mkfs.xfs -q -K $ram_xfs
			mount $ram_xfs "$dir"
			;;
		tmpfs) mount -t tmpfs tmpfs "$dir" ;;
		esac
	fi
	echo "$dir"
}

# backing KIND MIB [NAME]: makes a backing (ext4, xfs, tmpfs: a new sparse file; block: a RAM disk,
# with its old content) and prints its path.
backing() {
	local file
	if [[ $1 == block ]]; then
		load_brd
		echo $ram_block
		return
	fi
	file=$(place "$1")/${3-image}
	rm -f "$file"
	truncate -s "$2M" "$file"
	echo "$file"
}

# noise FILE MIB: fills the beginning of FILE with random data.
noise() { dd if=/dev/urandom of="$1" bs=1M count="$2" conv=notrunc,fsync status=none; }

# program NAME [FLAG...]: builds tests/programs/NAME.c, and prints the path of the program.
program() {
	gcc-14 -O2 -Wall -Wextra -Werror -static "${@:2}" -o "$scratch/$1" "$tests/programs/$1.c"
	echo "$scratch/$1"
}

# The options by which fio verifies its writes, and fails at the first difference. Overlapping
# writes in flight take effect in any order (docs/differences.md), so fio must not submit any.
verified=(--verify=crc32c --verify_fatal=1 --verify_state_save=0 --serialize_overlap=1)

# verified_writes DEVICE [ARGUMENT...]: runs random writes of fio by the seed, and verifies them.
verified_writes() {
	fio --name=load --filename="$1" --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bsrange=4k-128k \
		"${verified[@]}" --randseed="$seed" --output-format=terse "${@:2}"
}

# --- watching the kernel

tracing=/sys/kernel/tracing
mount_tracing() { mountpoint -q "$tracing" || mount -t tracefs tracefs "$tracing"; }

# --- loop devices

# attach LOSETUP-ARGUMENT...: prints the name of the device.
attach() { losetup -f --show "$@"; }

# detach DEVICE: returns when the device is unbound.
detach() {
	losetup -d "$1"
	wait_for 10 unbound "$1" || fail "$1 is still bound 10 s after losetup -d"
}

# The file is closed a moment later: losetup -d waits for that only if it closes the device last.
unbound() { [[ ! -e /sys/block/${1#/dev/}/loop ]]; }

# row DEVICE COLUMN...: prints losetup's columns of a device.
row() {
	local columns
	columns=$(IFS=, && echo "${*:2}")
	losetup --noheadings --raw --output "$columns" "$1"
}

# bytes DEVICE SIZE: the device must have that size.
bytes() { equal "size of $1" "$(blockdev --getsize64 "$1")" "$2"; }

# attribute DEVICE NAME: prints an attribute in sysfs, such as `ro` or `loop/dio`.
attribute() { cat "/sys/block/${1#/dev/}/$2"; }

# load_driver [PARAMETER...]: loads rnull_loop by its file, or the C driver by its name.
# shellcheck disable=SC2120  # mostly without
load_driver() {
	case $driver in
	rnull_loop) insmod "$tests/../rnull-loop.ko" "$@" ;;
	loop) modprobe loop "$@" ;;
	none) skip_all "no loop driver is loaded" ;;
	esac
}

# An opener of a node that is left must not load the C driver.
unload_driver() {
	mkdir -p /run/modprobe.d
	echo 'blacklist loop' >/run/modprobe.d/loop.conf
	rmmod "$driver"
}
