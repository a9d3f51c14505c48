#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Loop devices on loop devices, with and without file systems in between: data and flushes reach the
# lowest file, and the devices can be detached in any order.
. "$(dirname "$0")/lib.sh"

stacked() {
	local image lower upper
	image=$(backing "$1" 16)
	lower=$(attach --direct-io="$2" "$image")
	upper=$(attach --direct-io="$3" "$lower")
	equal 'dio of the upper' "$(attribute "$upper" loop/dio)" "$([[ $3 == on ]] && echo 1 || echo 0)"
	fio --name=stacked --filename="$upper" --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite \
		--bsrange=4k-256k --size=16m "${verified[@]}" \
		--output-format=terse
	dd if=/dev/urandom of="$scratch/data" bs=1M count=4 status=none
	dd if="$scratch/data" of="$upper" bs=1M conv=fsync status=none
	cmp "$scratch/data" <(dd if="$image" bs=1M count=4 status=none)
}

image_in_image() {
	local outer inner device
	outer=$(backing ext4 64)
	mkfs.ext4 -q "$outer"
	mkdir "$mnt"/{outer,inner}
	mount -o loop "$outer" "$mnt/outer"
	inner=$mnt/outer/inner
	truncate -s 32M "$inner"
	device=$(attach --direct-io="$1" "$inner")
	mkfs.ext4 -q "$device"
	detach "$device"
	mount -o loop "$inner" "$mnt/inner"
	cp -r /usr/lib/udev/rules.d "$mnt/inner/tree"
	umount "$mnt/inner"
	# At once: umount of the inner one has closed the file.
	umount "$mnt/outer"
	unmount_below "$scratch/ext4"
	mount "$ram_ext4" "$scratch/ext4"
	mount -o loop "$outer" "$mnt/outer"
	mount -o loop "$inner" "$mnt/inner"
	diff -r /usr/lib/udev/rules.d "$mnt/inner/tree"
}

four_deep() {
	local below level
	below=$(backing tmpfs 8)
	noise "$below" 8
	cp "$below" "$scratch/before"
	for level in 1 2 3 4; do
		below=$(attach --direct-io="$([[ $((level % 2)) == 0 ]] && echo on || echo off)" "$below")
	done
	cmp "$scratch/before" "$below"
	dd if=/dev/urandom of="$below" bs=1M count=2 oflag=direct status=none
	sync "$below"
	cmp "$scratch/tmpfs/image" "$below"
}

# The upper device keeps the lower device bound.
any_order() {
	local image lower upper
	image=$(backing tmpfs 8)
	lower=$(attach "$image")
	upper=$(attach "$lower")
	udevadm settle
	losetup -d "$lower"
	! unbound "$lower" || fail "the lower device was unbound while the upper one used it"
	dd if=/dev/urandom of="$upper" bs=1M count=1 conv=fsync status=none
	cmp "$image" "$upper"
	detach "$upper"
	wait_for 10 unbound "$lower" || fail "the lower device is still bound without the upper one"
}

for lower in on off; do
	for upper in on off; do
		check "two deep, lower direct I/O $lower, upper $upper" stacked ext4 $lower $upper
	done
done
check "a mounted image in a mounted image, direct" image_in_image on
check "a mounted image in a mounted image, buffered" image_in_image off
check "four deep" four_deep
check "the lower device is detached first" any_order
run_checks
