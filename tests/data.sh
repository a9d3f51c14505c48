#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# What is written is what is read: each kind of backing, direct and buffered, with blocks of 512 and
# 4096 bytes. In each cell the device shows what the image held before, fio verifies checksums of
# what it wrote with deep queues in blocks of 512 bytes to 1 MiB, a copy through the page cache
# arrives, and the detached image holds, byte for byte, what was written through the device.
#
# Direct I/O is in force exactly when the C driver has it: XFS on a RAM disk, whose physical blocks
# have 4096 bytes, makes that its sector size.
. "$(dirname "$0")/lib.sh"

mib=40

# cell KIND on|off BLOCK-SIZE EFFECTIVE-DIO
cell() {
	local image device sum
	image=$(backing "$1" $mib)
	noise "$image" $mib
	sum=$(head -c ${mib}M "$image" | sha256sum)
	device=$(attach --direct-io="$2" --sector-size "$3" --sizelimit ${mib}M "$image")
	equal dio "$(attribute "$device" loop/dio)" "$4"
	equal 'block size' "$(attribute "$device" queue/logical_block_size)" "$3"
	equal 'the image through the device' "$(sha256sum <"$device")" "$sum"

	verify "$device" "$3"
	sum=$(dd if="$device" bs=1M iflag=direct status=none | sha256sum)
	detach "$device"
	equal 'the image after fio' "$(head -c ${mib}M "$image" | sha256sum)" "$sum"

	device=$(attach --direct-io="$2" --sector-size "$3" --sizelimit ${mib}M "$image")
	noise "$device" $mib
	sum=$(sha256sum <"$device")
	detach "$device"
	equal 'the image after a copy' "$(head -c ${mib}M "$image" | sha256sum)" "$sum"
}

# verify DEVICE BLOCK-SIZE
verify() {
	fio --filename="$1" --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --verify=crc32c \
		--verify_fatal=1 --verify_state_save=0 --group_reporting --output-format=terse \
		--name=least --bs="$2" --offset=0 --size=512k \
		--name=4k --bs=4k --offset=512k --size=7680k --stonewall \
		--name=64k --bs=64k --offset=8m --size=8m --stonewall \
		--name=1m --bs=1m --offset=16m --size=16m --stonewall \
		--name=unaligned --bsrange=4k-60k --blockalign="$2" --bs_unaligned=0 --offset=32m --size=8m --stonewall
}

for kind in ext4 xfs tmpfs block; do
	for block_size in 512 4096; do
		effective=1
		[[ $kind != xfs || $block_size != 512 ]] || effective=0
		check "$kind, direct, $block_size bytes" cell $kind on $block_size $effective
		check "$kind, buffered, $block_size bytes" cell $kind off $block_size 0
	done
done
run_checks
