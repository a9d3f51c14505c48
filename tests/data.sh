#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Data written is data read, for each kind of backing, direct and buffered, with blocks of 512 and
# 4096 bytes. In each cell the device shows the old content of the image, fio verifies its own
# writes of 512 bytes to 1 MiB in deep queues, a copy is made through the page cache, and the
# detached image holds the data written through the device, byte for byte.
. "$(dirname "$0")/lib.sh"

mib=24

# cell KIND on|off BLOCK-SIZE
cell() {
	local image device direct=0
	[[ $2 == off ]] || direct=1
	image=$(backing "$1" "$mib")
	dd if="$source" of="$image" bs=1M conv=notrunc,fsync status=none
	device=$(attach --direct-io="$2" --sector-size "$3" --sizelimit "${mib}M" "$image")
	equal dio "$(attribute "$device" loop/dio)" "$direct"
	equal 'block size' "$(attribute "$device" queue/logical_block_size)" "$3"
	echo "The image, read through the device:"
	cmp "$source" "$device"

	verify "$device" "$3"
	dd if="$device" of="$seen" bs=1M iflag=direct status=none
	detach "$device"
	echo "The image after fio:"
	cmp -n "${mib}M" "$seen" "$image"

	device=$(attach --direct-io="$2" --sector-size "$3" --sizelimit "${mib}M" "$image")
	dd if="$source" of="$device" bs=1M conv=fsync status=none
	detach "$device"
	echo "The image after a copy:"
	cmp -n "${mib}M" "$source" "$image"
}

# verify DEVICE BLOCK-SIZE
verify() {
	fio --filename="$1" --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite "${verified[@]}" \
		--group_reporting --output-format=terse \
		--name=least --bs="$2" --offset=0 --size=512k \
		--name=4k --bs=4k --offset=512k --size=3584k --stonewall \
		--name=64k --bs=64k --offset=4m --size=4m --stonewall \
		--name=1m --bs=1m --offset=8m --size=12m --stonewall \
		--name=mixed --bsrange=4k-60k --blockalign="$2" --offset=20m --size=4m --stonewall
}

source=$scratch/source seen=$scratch/seen
mkdir -p "$scratch"
dd if=/dev/urandom of="$source" bs=1M count=$mib status=none
for kind in ext4 xfs tmpfs block; do
	for block_size in 512 4096; do
		check "$kind, direct, $block_size bytes" cell $kind on $block_size
		check "$kind, buffered, $block_size bytes" cell $kind off $block_size
	done
done
run_checks
