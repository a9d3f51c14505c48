#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# With PARTSCAN, partitions appear as block devices with the image's data, and disappear at detach,
# however they were made: stale partitions of an earlier image once appeared on the next one, and
# rescans failed with EBUSY.
. "$(dirname "$0")/lib.sh"

# Makes two partitions, at 1 and at 5 MiB, with random data.
partitioned() {
	local image
	image=$(backing "$1" 8)
	noise "$image" 8
	sfdisk -q "$image" <<-EOT
		label: $2
		start=2048, size=8192
		start=10240, size=4096
	EOT
	echo "$image"
}

partitions() { find "/sys/block/${1#/dev/}/" -maxdepth 1 -name "${1#/dev/}p*" -printf '%f\n' | sort | xargs; }

# has DEVICE PARTITION...: waits until these are the partitions of the device. After a close by a
# writer udev makes the kernel scan once more, which removes all partitions and adds them again.
has() {
	wait_for 10 has_now "$@" || equal partitions "$(partitions "$1")" "${*:2}"
}

has_now() { [[ $(partitions "$1") == "${*:2}" ]]; }

# both DEVICE IMAGE: both partitions exist, with nodes, and have the data of the image.
both() {
	has "$1" "${1#/dev/}p1" "${1#/dev/}p2"
	wait_for 10 test -b "${1}p2" || fail "no ${1}p2"
	wait_for 10 test -b "${1}p1" || fail "no ${1}p1"
	equal 'start of p2' "$(attribute "$1" "${1#/dev/}p2/start")" 10240
	equal 'size of p1' "$(attribute "$1" "${1#/dev/}p1/size")" 8192
	cmp -i 1M:0 -n 4M "$2" "${1}p1"
	cmp -i 5M:0 -n 2M "$2" "${1}p2"
}

scanned() {
	local image device
	image=$(partitioned ext4 "$1")
	device=$(attach -P --direct-io="$2" "$image")
	equal partscan "$(attribute "$device" loop/partscan)" 1
	both "$device" "$image"
	detach "$device"
	equal 'partitions after detach' "$(partitions "$device")" ''
	wait_for 10 test ! -e "${device}p1" || fail "${device}p1 still exists"
}

not_scanned() {
	local image device
	image=$(partitioned tmpfs dos)
	device=$(attach "$image")
	udevadm settle
	equal partitions "$(partitions "$device")" ''
	refuse 'Invalid argument' blockdev --rereadpt "$device"
	# User space can still add partitions.
	partx -a "$device"
	both "$device" "$image"
	detach "$device"
	equal 'partitions after detach' "$(partitions "$device")" ''
}

scanned_again() {
	local image device
	image=$(partitioned tmpfs gpt)
	device=$(attach -P "$image")
	both "$device" "$image"
	sfdisk -q --delete "$device" 2
	has "$device" "${device#/dev/}p1"
	detach "$device"
	# Another image on the same device has no partitions.
	equal device "$(attach -P "$(backing tmpfs 8 other)")" "$device"
	equal partitions "$(partitions "$device")" ''
}

written_through() {
	local image device
	image=$(partitioned xfs dos)
	device=$(attach -P --direct-io=on "$image")
	wait_for 10 test -b "${device}p2"
	mkfs.ext4 -q "${device}p2"
	mount "${device}p2" "$mnt"
	dd if=/dev/urandom of="$mnt/file" bs=1k count=500 status=none
	cp "$mnt/file" "$scratch/copy"
	# A mounted partition keeps the device bound.
	losetup -d "$device"
	sync
	cmp "$mnt/file" "$scratch/copy"
	umount "$mnt"
	wait_for 10 unbound "$device" || fail "still bound after the partition is unmounted"
	mount -o loop,offset=5M,sizelimit=2M "$image" "$mnt"
	cmp "$mnt/file" "$scratch/copy"
}

# An open partition keeps its device bound and working.
open_partition() {
	local image device
	image=$(partitioned tmpfs dos)
	device=$(attach -P "$image")
	wait_for 10 test -b "${device}p1"
	exec {held}<"${device}p1"
	udevadm settle
	losetup -d "$device"
	! unbound "$device" || fail "detached under an open partition"
	cmp -i 1M:0 -n 4M "$image" - <&"$held"
	exec {held}<&-
	wait_for 10 unbound "$device" || fail "still bound after the last close"
	equal 'partitions after detach' "$(partitions "$device")" ''
}

check "-P finds a DOS table's partitions" scanned dos off
check "-P finds a GPT's partitions, direct I/O" scanned gpt on
check "without -P there are none; partx adds them, and detach removes them" not_scanned
check "a changed table is scanned again, and the next image has its own partitions" scanned_again
check "writes to a file system on a partition reach the image" written_through
check "an open partition keeps the device bound" open_partition
run_checks
