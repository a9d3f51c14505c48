#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# tests/fuzz.sh [CALLS]
#
# Some 200,000 random ioctls of several threads to several devices, on files of two file systems and
# on each other. Each returns a result that the C driver can return, none hangs, the kernel reports
# no bug, and at the end no device, file or module is in use. See programs/fuzz.c. A run can be
# repeated with its SEED, except for the scheduling of the threads.
. "$(dirname "$0")/lib.sh"

# Slow kernels take ten times as long.
calls=${1-$((rounds * (${slow:-0} ? 50000 : 200000)))}
exec {progress}>&1
ignore_loglevel=/sys/module/printk/parameters/ignore_loglevel

# Makes images of one size, so that one can replace another; some have partitions.
images() {
	local kind number image table=$'label: dos\nstart=64,size=512\nstart=1024,size=512'
	for kind in ext4 tmpfs; do
		for number in 1 2; do
			image=$(backing "$kind" 1 "image$number")
			noise "$image" 1
			[[ $number == 1 ]] || sfdisk -q "$image" <<<"$table"
			echo "$image"
		done
	done
}

# fuzz CALLS SEED
fuzz() {
	local program files
	program=$(program fuzz -pthread)
	mapfile -t files < <(images)
	"$program" "$2" "$1" "$driver" "${files[@]}" | tee "/dev/fd/$progress" >"$scratch/out" ||
		fail "the fuzzer: $(tail -n 3 "$scratch/out")"
	count calls "$1"
	udevadm settle
	nothing_bound || fail "devices stay bound: $(echo /sys/block/loop*/loop)"
	umount "$scratch"/{ext4,tmpfs}
	wait_for 10 unload_driver
	load_driver
}

# Each change of a device sends an event, and udev would take most of the time.
without_udev() {
	local status=0
	end_udev
	# Changes of the size are logged on the console.
	echo N >"$ignore_loglevel"
	dmesg -n 5
	(fuzz "$@") || status=$?
	echo Y >"$ignore_loglevel"
	/usr/lib/systemd/systemd-udevd --daemon
	return "$status"
}

some=$((calls / 20)) another=$((seed + 1))
check "$some calls beside udev, seed $another" fuzz $some $another
check "$calls calls, seed $seed" without_udev "$calls" "$seed"
run_checks
