#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Attach, detach, mount and look from all sides at once, with udev in between: nobody waits for ever,
# nothing stays bound, and whoever got a device reads its own image from it. See churn.py for devices
# that are added and removed meanwhile.
. "$(dirname "$0")/lib.sh"

# Each of some processes attaches an image of its own again and again, and reads it.
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

# Those who look race with those who change.
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
		equal partitions "$(find "/sys/block/${device#/dev/}/" -maxdepth 1 -name 'loop*p*' | wc -l)" 4
		losetup -d "$device"
		wait_for 10 unbound "$device" || fail "bound in round $round"
		equal 'partitions after detach' "$(find "/sys/block/${device#/dev/}/" -maxdepth 1 -name 'loop*p*' | wc -l)" 0
	done
	# Rescans that fail are in the log.
	! dmesg | grep -E 'partition scan (of|failed)' || fail "a partition scan failed"
}

check "four processes attach and detach" attaching 12
check "four processes mount and umount" mounting 8
check "others look at it" looking 6
check "a partitioned image again and again" partitioned 12
run_checks
