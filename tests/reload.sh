#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The module is loaded and unloaded fifty times (ten on slow kernels), with udev at work on its
# devices and I/O in between. It cannot be unloaded while a device is bound or open. Unloading waits
# for references to its disks, which may outlive the last close, and openers wait while the module
# is being loaded.
. "$(dirname "$0")/lib.sh"

times=50
[[ -z $slow ]] || times=10

reload() {
	local image round device
	image=$(backing tmpfs 4)
	noise "$image" 1
	for ((round = 0; round < times; round++)); do
		wait_for 10 unload_driver 2>/dev/null || fail "cannot unload in round $round: $(unload_driver 2>&1)"
		[[ ! -e /sys/block/loop0 && ! -e /dev/loop-control ]] || fail "a device exists after unloading"
		! grep -q ' loop$' /proc/devices || fail "major 7 is registered after unloading"
		load_driver
		[[ -c /dev/loop-control ]]
		# Every second time it is unloaded while udev opens its new devices.
		((round % 2)) || continue
		device=$(attach --direct-io="$(((round % 4) - 1 ? 1 : 0))" "$image" 2>/dev/null || attach "$image")
		cmp "$image" "$device"
		dd if=/dev/urandom of="$device" bs=64k count=4 oflag=direct status=none
		losetup -d "$device"
	done
}

# The module is unloaded before udev has seen all its devices.
at_once() {
	local round
	for round in {1..5}; do
		wait_for 10 unload_driver 2>/dev/null || fail "cannot unload in round $round"
		load_driver max_loop=24
	done
	wait_for 10 unload_driver 2>/dev/null
	load_driver
}

busy_when_bound() {
	local image device
	image=$(backing tmpfs 4)
	device=$(attach "$image")
	udevadm settle
	refuse 'in use' unload_driver
	cmp "$image" "$device"
	detach "$device"
	exec {held}<"$device"
	refuse 'in use' unload_driver
	exec {held}<&-
	wait_for 10 unload_driver
	load_driver
}

busy_when_mounted() {
	local image
	image=$(backing tmpfs 8)
	mkfs.ext4 -q "$image"
	mount -o loop "$image" "$mnt"
	refuse 'in use' unload_driver
	umount "$mnt"
	wait_for 10 unload_driver
	load_driver
}

busy_when_controlled() {
	exec {held}<>/dev/loop-control
	refuse 'in use' unload_driver
	exec {held}<&-
	wait_for 10 unload_driver
	load_driver
}

# keep_disk DEVICE: leaves the device detached, and a task, `keeper`, with a reference to the disk
# until something writes to $scratch/fifo. While it looks up the FIFO, in the same system call, the
# task reads from a file system on the device, more than io.cost allows its cgroup: it will be
# throttled when that call returns (current->throttle_disk).
keep_disk() {
	local image number groups=/sys/fs/cgroup
	number=$(<"/sys/block/${1#/dev/}/dev")
	image=$(backing tmpfs 8)
	mkfs.ext4 -q "$image"
	losetup "$1" "$image"
	mount "$1" "$mnt"
	mkdir -p "$mnt/a/b"
	umount "$mnt"
	udevadm settle
	echo +io >"$groups/cgroup.subtree_control"
	mkdir "$groups/keeper"
	echo "$number enable=1 ctrl=user" >"$groups/io.cost.qos"
	echo "$number ctrl=user model=linear rbps=4096 rseqiops=1 rrandiops=1 wbps=4096 wseqiops=1 wrandiops=1" \
		>"$groups/io.cost.model"
	# Mounted again, so that nothing is cached.
	mount "$1" "$mnt"
	mkfifo "$scratch/fifo"
	# shellcheck disable=SC2016  # expanded by the inner shell
	bash -c 'echo $$ >"$1/cgroup.procs"; exec cat "$2"' - "$groups/keeper" "$mnt/a/b/../../../fifo" &
	keeper=$!
	wait_for 10 waits_in wait_for_partner || fail "the keeper is in $(<"/proc/$keeper/wchan")"
	umount "$mnt"
	detach "$1"
	udevadm settle
}

waits_in() { [[ $(<"/proc/$keeper/wchan") == "$1" ]]; }

release_keeper() {
	echo >"$scratch/fifo"
	wait "$keeper"
	rm "$scratch/fifo"
	rmdir /sys/fs/cgroup/keeper
	echo -io >/sys/fs/cgroup/cgroup.subtree_control
}

unload_waits() {
	local keeper unloading
	dmesg -C
	keep_disk /dev/loop0
	wait_for 10 unload_driver 2>/dev/null &
	unloading=$!
	wait_for 20 told_of_waiting || fail "nothing in the log"
	kill -0 "$unloading" || fail "unloaded before its disk was released"
	[[ ! -e /sys/block/loop1 ]] || fail "other devices wait for that disk"
	release_keeper
	wait "$unloading"
	load_driver
}

told_of_waiting() { [[ $(dmesg) == *'rnull_loop: loop0: removed, but still in use: waiting'* ]]; }

remove_does_not_wait() {
	local keeper unloading
	python3 "$tests/lib.py" LOOP_CTL_ADD 77
	keep_disk /dev/loop77
	timeout 10 python3 "$tests/lib.py" LOOP_CTL_REMOVE 77
	timeout 10 python3 "$tests/lib.py" LOOP_CTL_ADD 77
	wait_for 10 timeout 10 python3 "$tests/lib.py" LOOP_CTL_REMOVE 77
	wait_for 10 unload_driver 2>/dev/null &
	unloading=$!
	sleep 2
	kill -0 "$unloading" || fail "unloaded before its disk was released"
	release_keeper
	wait "$unloading"
	load_driver
}

# Two tasks open the control node as soon as it exists.
open_early() {
	local round opener openers
	for round in {1..10}; do
		wait_for 10 unload_driver 2>/dev/null || fail "cannot unload in round $round"
		openers=()
		for _ in 1 2; do
			/usr/bin/python3 -c '
import fcntl, os
while True:
    try:
        fd = os.open("/dev/loop-control", os.O_RDWR)
        break
    except FileNotFoundError:
        pass
fcntl.ioctl(fd, 0x4C82)' &
			openers+=($!)
		done
		sleep 0.2
		load_driver
		for opener in "${openers[@]}"; do wait "$opener" || fail "refused in round $round"; done
	done
}

check "the module is reloaded $times times with I/O" reload
check "the module is unloaded at once after loading" at_once
check "unloading fails while a device is bound or open" busy_when_bound
check "unloading fails while an image is mounted" busy_when_mounted
check "unloading fails while the control node is open" busy_when_controlled
check "unloading waits for a reference to a disk, and logs it" unload_waits
check "LOOP_CTL_REMOVE does not wait for a reference to the disk, unloading does" remove_does_not_wait
check "an opener of the control node waits while the module is being loaded" open_early
run_checks
