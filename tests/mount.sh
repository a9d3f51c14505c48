#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# File systems in images: mkfs, mount, use, umount. The device of `mount -o loop` is unbound, and
# its file closed, before umount returns: `umount inner && umount outer` must work at once
# (asynchronous autoclear broke that once, bf23747ee053). A device that is detached while mounted is
# unbound at umount.
. "$(dirname "$0")/lib.sh"

tree=/usr/lib/udev/rules.d

# on INNER OUTER on|off: makes a file system on a device, fills it, and finds the same data again.
on() {
	local image device
	image=$(backing "$2" 310)
	device=$(attach --direct-io="$3" "$image")
	"mkfs.$1" -q "$device"
	mount "$device" "$mnt"
	cp -r "$tree" "$mnt/tree"
	dd if=/dev/urandom of="$mnt/noise" bs=1M count=8 status=none
	cp "$mnt/noise" "$scratch/copy"
	umount "$mnt"
	detach "$device"
	mount -o loop "$image" "$mnt"
	cmp "$mnt/noise" "$scratch/copy"
	diff -r "$tree" "$mnt/tree"
	umount "$mnt"
	check_file_system "$1" "$image"
}

check_file_system() {
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac
}

squashfs() {
	local image
	image=$(backing tmpfs 0)
	mksquashfs "$tree" "$image" -quiet -no-progress -noappend
	mount -o loop "$image" "$mnt"
	refuse 'Read-only file system' touch "$mnt/file"
	diff -r "$tree" "$mnt"
}

autoclear() {
	local image device try
	image=$(backing ext4 8)
	mkfs.ext4 -q "$image"
	for try in {1..10}; do
		mount -o loop "$image" "$mnt"
		device=$(findmnt -no SOURCE "$mnt")
		equal autoclear "$(attribute "$device" loop/autoclear)" 1
		echo "$try" >"$mnt/file"
		# Only the mount has the device open.
		udevadm settle
		umount "$mnt"
		umount "$scratch/ext4"
		unbound "$device" || fail "$device is still bound"
		mount "$ram_ext4" "$scratch/ext4"
	done
}

detached_while_mounted() {
	local image device
	image=$(backing ext4 8)
	mkfs.ext4 -q "$image"
	device=$(attach "$image")
	mount "$device" "$mnt"
	losetup -d "$device"
	equal autoclear "$(attribute "$device" loop/autoclear)" 1
	dd if=/dev/urandom of="$mnt/file" bs=64k count=8 conv=fsync status=none
	cp "$mnt/file" "$scratch/copy"
	losetup -d "$device"
	equal 'still listed' "$(losetup -nl -O NAME "$device" | xargs)" "$device"
	refuse 'Device or resource busy' losetup "$device" "$image"
	umount "$mnt"
	# udev opens a device after losetup had it open for writing, and may be the last to close
	# it.
	wait_for 10 unbound "$device" || fail "still bound 10 s after umount"
	mount -o loop "$image" "$mnt"
	cmp "$mnt/file" "$scratch/copy"
}

same_image_twice() {
	local image
	image=$(backing tmpfs 8)
	mkfs.ext4 -q "$image"
	mkdir "$mnt"/{a,b}
	mount -o loop "$image" "$mnt/a"
	mount -o loop "$image" "$mnt/b"
	echo here >"$mnt/a/file"
	equal 'the other mount' "$(<"$mnt/b/file")" here
	equal devices "$(losetup -nl -O NAME -j "$image" | wc -l)" 1
}

many_at_once() {
	local number image jobs=() job
	mkdir "$mnt"/{1..12}
	for number in {1..12}; do
		image=$(backing tmpfs 2 "image$number")
		mkfs.ext2 -q "$image"
	done
	for number in {1..12}; do
		mount -o loop "$scratch/tmpfs/image$number" "$mnt/$number" &
		jobs+=($!)
	done
	for job in "${jobs[@]}"; do wait "$job"; done
	for number in {1..12}; do
		mountpoint -q "$mnt/$number"
		equal 'image' "$(losetup -nO BACK-FILE "$(findmnt -no SOURCE "$mnt/$number")" | xargs)" "$scratch/tmpfs/image$number"
	done
	umount "$mnt"/{1..12}
	wait_for 10 nothing_bound || fail "devices are still bound after umount"
}

check "ext4 on an image on tmpfs, buffered" on ext4 tmpfs off
check "ext4 on an image on XFS, direct" on ext4 xfs on
check "XFS on an image on ext4, direct" on xfs ext4 on
check "squashfs" squashfs
check "umount unbinds the device and closes its file before it returns" autoclear
check "a device detached while mounted is unbound at umount" detached_while_mounted
check "an image mounted twice has one device" same_image_twice
check "many images are mounted at once" many_at_once
run_checks
