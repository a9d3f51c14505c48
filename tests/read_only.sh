#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# A read-only device never changes its image, whether it became read-only by losetup -r, by a
# read-only file, or by blockdev --setro.
. "$(dirname "$0")/lib.sh"

# unwritable DEVICE IMAGE
unwritable() {
	local before
	equal ro "$(attribute "$1" ro)" 1
	equal 'blockdev --getro' "$(blockdev --getro "$1")" 1
	before=$(sha256sum <"$2")
	refuse 'Operation not permitted' dd if=/dev/zero of="$1" bs=4k count=1 oflag=direct conv=notrunc status=none
	(($(attribute "$1" queue/discard_max_bytes) == 0)) || refuse 'not permitted' blkdiscard "$1"
	cmp "$1" "$2"
	equal 'the image' "$(sha256sum <"$2")" "$before"
}

asked_for() {
	local image device
	image=$(backing "$1" 4)
	noise "$image" 4
	device=$(attach -r --direct-io="$2" "$image")
	equal 'RO of losetup' "$(losetup -nO RO "$device" | xargs)" 1
	unwritable "$device" "$image"
}

# losetup opens the file read-only if it cannot be opened for writing.
file_on_read_only_mount() {
	local image device
	image=$(backing ext4 4)
	noise "$image" 4
	mount -o remount,ro "$scratch/ext4"
	device=$(attach "$image")
	unwritable "$device" "$image"
	detach "$device"
	mount -o remount,rw "$scratch/ext4"
}

mounted() {
	local image
	image=$(backing tmpfs 8)
	mkfs.ext4 -q "$image"
	mount -o loop,ro "$image" "$mnt"
	refuse 'Read-only file system' touch "$mnt/file"
	refuse 'cannot remount' mount -o remount,rw "$mnt"
}

set_later() {
	local image device
	image=$(backing tmpfs 4)
	noise "$image" 4
	device=$(attach "$image")
	blockdev --setro "$device"
	unwritable "$device" "$image"
	blockdev --setrw "$device"
	dd if=/dev/zero of="$device" bs=4k count=1 oflag=direct conv=notrunc status=none
	cmp -n 4096 "$image" /dev/zero
}

writable_again() {
	local image device
	image=$(backing tmpfs 4)
	device=$(attach -r "$image")
	detach "$device"
	equal 'next device' "$(attach "$image")" "$device"
	equal ro "$(attribute "$device" ro)" 0
	dd if=/dev/urandom of="$device" bs=4k count=1 oflag=direct conv=notrunc status=none
	cmp -n 4096 "$image" "$device"
}

check "losetup -r, buffered" asked_for ext4 off
check "losetup -r, direct" asked_for ext4 on
check "losetup -r of a block device" asked_for block on
check "a file on a read-only mount" file_on_read_only_mount
check "mount -o loop,ro" mounted
check "blockdev --setro and --setrw" set_later
check "the next attach is writable" writable_again
run_checks
