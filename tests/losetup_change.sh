#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# losetup sets the block size of a device, switches direct I/O on and off, and updates its size
# after its file's, without data loss, and with a mounted file system where possible. Invalid
# changes fail with the C driver's errors, and change nothing.
. "$(dirname "$0")/lib.sh"

block_size() { attribute "$1" queue/logical_block_size; }

# Makes a new image of random data, and a copy to compare with.
noisy() {
	local image
	image=$(backing "$1" 4)
	noise "$image" 4
	cp "$image" "$scratch/copy"
	echo "$image"
}

sector_size_at_attach() {
	local image device size
	image=$(noisy "$1")
	for size in 512 2048 4096 8192 65536; do
		device=$(attach -b "$size" --direct-io="$2" "$image")
		equal 'block size' "$(block_size "$device") $(row "$device" LOG-SEC)" "$size $size"
		equal 'physical' "$(blockdev --getpbsz "$device")" "$size"
		cmp "$device" "$scratch/copy"
		detach "$device"
		equal 'block size after detach' "$(block_size "$device")" 512
	done
}

sector_size_later() {
	local image device size
	image=$(noisy "$1")
	device=$(attach --direct-io="$2" "$image")
	# Up and down, with I/O in each.
	for size in 4096 1024 65536 512; do
		# An opener with a claim blocks the change, and udev may be one for a moment.
		wait_for 10 losetup -b "$size" "$device"
		equal 'block size' "$(block_size "$device") $(row "$device" LOG-SEC)" "$size $size"
		cmp "$device" "$scratch/copy"
		noise "$device" 1
		dd if="$device" of="$scratch/copy" bs=1M count=1 conv=notrunc status=none
		cmp "$image" "$scratch/copy"
	done
	wait_for 10 losetup -b 4096 "$device"
	# 0 is the default.
	wait_for 10 losetup -b 0 "$device"
	equal 'default' "$(block_size "$device")" 512
}

bad_sector_size() {
	local image device size
	image=$(backing tmpfs 4)
	udevadm settle
	for size in 1 256 511 1000 1536 131072; do
		refuse "$image: failed to set up loop device: Invalid argument" losetup -f -b "$size" "$image"
	done
	# losetup had attached the device without a block size first, and then tried to set it.
	wait_for 10 nothing_bound || fail "bound after a refused block size"
	device=$(attach -b 2048 "$image")
	udevadm settle
	for size in 1 256 511 1000 1536 131072; do
		refuse "$device: set logical block size failed: Invalid argument" losetup -b "$size" "$device"
		equal 'block size' "$(block_size "$device")" 2048
	done
}

sector_size_in_use() {
	local image device
	image=$(backing tmpfs 8)
	mkfs.ext4 -q -b 4096 "$image"
	device=$(attach "$image")
	mount "$device" "$mnt"
	refuse 'set logical block size failed: Device or resource busy' losetup -b 1024 "$device"
	equal 'block size' "$(block_size "$device")" 512
	touch "$mnt/file"
}

direct_io_later() {
	local image device mode
	image=$(noisy "$1")
	device=$(attach "$image")
	for mode in on on off off on; do
		losetup --direct-io="$mode" "$device"
		equal dio "$(attribute "$device" loop/dio) $(row "$device" DIO)" "$([[ $mode == on ]] && echo '1 1' || echo '0 0')"
		blockdev --flushbufs "$device"
		cmp "$device" "$scratch/copy"
		noise "$device" 1
		dd if="$device" of="$scratch/copy" bs=1M count=1 conv=notrunc status=none
		cmp "$image" "$scratch/copy"
	done
	# Without a value, the option means on.
	losetup --direct-io=off "$device"
	losetup --direct-io "$device"
	equal dio "$(attribute "$device" loop/dio)" 1
}

no_direct_io() {
	local image device
	image=$(noisy ext4)
	# A misaligned offset for direct I/O: the flag is ignored at attach, and refused later.
	device=$(attach -o 1000 --direct-io=on "$image")
	equal dio "$(attribute "$device" loop/dio)" 0
	# With this option losetup opens the file with O_DIRECT itself: attach it again without.
	losetup -d "$device"
	wait_for 10 unbound "$device"
	device=$(attach -o 1000 "$image")
	refuse "$device: set direct io failed: Invalid argument" losetup --direct-io=on "$device"
	equal dio "$(attribute "$device" loop/dio)" 0
	cmp -n 1M -i 0:1000 "$device" "$scratch/copy"
}

capacity() {
	local image device
	image=$(backing ext4 4)
	device=$(attach -o 1M "$image")
	bytes "$device" $((3 << 20))
	truncate -s 9M "$image"
	bytes "$device" $((3 << 20))
	losetup -c "$device"
	bytes "$device" $((8 << 20))
	# The added part can be used, and the truncated part is gone.
	dd if=/dev/zero bs=1M count=8 status=none | tr '\0' x >"$device"
	equal 'last byte' "$(tail -c 1 "$image")" x
	truncate -s 2M "$image"
	losetup --set-capacity "$device"
	bytes "$device" $((1 << 20))
	refuse 'No space left on device' dd if=/dev/zero of="$device" bs=1M count=2 status=none
	truncate -s 0 "$image"
	losetup -c "$device"
	bytes "$device" 0
	truncate -s 3M "$image"
	losetup -c "$device"
	bytes "$device" $((2 << 20))
	detach "$device"
	# A size limit stays in effect.
	device=$(attach --sizelimit 5M "$image")
	bytes "$device" $((3 << 20))
	truncate -s 9M "$image"
	losetup -c "$device"
	bytes "$device" $((5 << 20))
}

grown_under_a_file_system() {
	local image device
	image=$(backing tmpfs 8)
	device=$(attach "$image")
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	truncate -s 32M "$image"
	losetup -c "$device"
	resize2fs "$device"
	dd if=/dev/zero of="$mnt/file" bs=1M count=20 status=none
	umount "$mnt"
	e2fsck -fn "$device"
}

check "-b at attach, buffered" sector_size_at_attach tmpfs off
check "-b at attach, direct" sector_size_at_attach ext4 on
check "-b of a bound device, buffered" sector_size_later tmpfs off
check "-b of a bound device, direct" sector_size_later ext4 on
check "-b refuses invalid sizes and changes nothing" bad_sector_size
check "-b refuses to change a mounted device" sector_size_in_use
check "--direct-io of a bound device, ext4" direct_io_later ext4
check "--direct-io of a bound device, tmpfs" direct_io_later tmpfs
check "--direct-io with a misaligned offset" no_direct_io
check "-c follows the file's size" capacity
check "-c lets a mounted file system grow" grown_under_a_file_system
run_checks
