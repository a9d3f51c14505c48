#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Concurrent attaches, detaches, mounts and reads of sysfs, with udev in between: no task waits for
# ever, no device stays bound, and each process reads its own image from its device. churn.py adds
# and removes devices at the same time.
. "$(dirname "$0")/lib.sh"

# Each of several processes attaches an image of its own again and again, and reads it.
attaching() {
	local number jobs=() job
	for number in {0..3}; do
		head -c 1M /dev/urandom >"$(backing tmpfs 1 "image$number")"
		attacher "$scratch/tmpfs/image$number" "$1" &
		jobs+=($!)
	done
	for job in "${jobs[@]}"; do wait "$job"; done
}

attacher() {
	local round device
	for ((round = 0; round < $2; round++)); do
		device=$(attach --direct-io=on "$1")
		cmp "$1" "$device"
		losetup -d "$device"
	done
}

mounting() {
	local number jobs=() job
	for number in {0..3}; do
		mkdir -p "$mnt/$number"
		mkfs.ext2 -q "$(backing ext4 2 "image$number")"
		mounter "$number" "$1" &
		jobs+=($!)
	done
	for job in "${jobs[@]}"; do wait "$job"; done
	wait_for 10 nothing_bound || fail "bound after umount"
	umount "$scratch/ext4"
}

mounter() {
	local round
	for ((round = 0; round < $2; round++)); do
		mount -o loop "$scratch/ext4/image$1" "$mnt/$1"
		echo "$round" >"$mnt/$1/file"
		umount "$mnt/$1"
	done
}

# Readers of sysfs race with attach and detach.
looking() {
	local looker
	{
		while :; do
			cat /sys/block/loop*/loop/* /sys/block/loop*/size || :
			losetup -l || :
		done >/dev/null 2>&1
	} &
	looker=$!
	attaching "$1"
	kill "$looker"
	wait "$looker" || :
}

# has_partitions DEVICE NUMBER
has_partitions() {
	(($(find "/sys/block/${1#/dev/}/" -maxdepth 1 -name 'loop*p*' | wc -l) == $2))
}

# partitioned ROUNDS SECONDS: all partitions are there SECONDS after an attach.
partitioned() {
	local image round device
	image=$(backing tmpfs 8)
	sfdisk -q "$image" <<-EOT
		label: gpt
		start=2048, size=2048
		start=4096, size=2048
		start=6144, size=2048
		start=8192, size=2048
	EOT
	# Other tests scan in vain on purpose.
	dmesg -C
	for ((round = 0; round < $1; round++)); do
		device=$(attach -P "$image")
		wait_for "$2" has_partitions "$device" 4 || fail "there are not 4 partitions in round $round"
		losetup -d "$device"
		wait_for 10 unbound "$device" || fail "bound in round $round"
		has_partitions "$device" 0 || fail "there are partitions after detach in round $round"
	done
	# The kernel logs rescans that fail.
	! dmesg | grep -E 'partition scan (of|failed)' || fail "a partition scan failed"
}

without_udev() {
	stop_udev
	"$@"
}

check "four processes attach and detach" attaching 12
check "four processes mount and umount" mounting 8
check "sysfs is read during attach and detach" looking 6
# udev rereads the table of a device that was open for writing.
check "a partitioned image is attached again and again" partitioned 12 10
check "without udev, partitions are there after each attach" without_udev partitioned 12 0
run_checks
