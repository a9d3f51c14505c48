#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Requests of every shape carry the right bytes: merged from many bios, split at the queue's limits
# so that they begin in the middle of a page, from memory that is not aligned to pages, over an image
# in many pieces, through a file system. A direct I/O that starts at the wrong place of its first
# segment once corrupted file systems (a7297a6a3a33).
. "$(dirname "$0")/lib.sh"

mib=32

# over_device KIND on|off COMMAND...: runs COMMAND DEVICE, then compares the image with the device.
over_device() {
	local image device sum
	image=$(backing "$1" $mib)
	noise "$image" $mib
	device=$(attach --direct-io="$2" --sizelimit ${mib}M "$image")
	"${@:3}" "$device"
	sum=$(sha256sum <"$device")
	detach "$device"
	equal 'the image' "$(head -c ${mib}M "$image" | sha256sum)" "$sum"
}

verify() {
	fio --ioengine=libaio --direct=1 --size=${mib}M --verify=crc32c --verify_fatal=1 \
		--verify_state_save=0 --output-format=terse "$@"
}

# statistic DEVICE FIELD: of /sys/block/DEVICE/stat, counted from 1.
statistic() {
	local fields
	read -ra fields <"/sys/block/${1#/dev/}/stat"
	echo "${fields[$2 - 1]}"
}

merged() {
	local before
	before=$(statistic "$1" 6)
	verify --name=merged --filename="$1" --rw=write --bs=4k --iodepth=64 --iodepth_batch_submit=64
	(($(statistic "$1" 6) > before)) || fail "no write was merged"
}

# Requests of 4 to 20 KiB out of I/O of 1 MiB.
split() {
	local kib queue
	queue=/sys/block/${1#/dev/}/queue
	for kib in 4 12 20; do
		echo $kib >"$queue/max_sectors_kb"
		verify --name="split$kib" --filename="$1" --rw=randwrite --bs=1m --iodepth=8
		cmp <(dd if="$1" bs=1M iflag=direct status=none) "$1"
	done
}

# Memory at multiples of 512 within pages, so that splits fall into the middle of segments.
misaligned_memory() {
	local queue offset
	queue=/sys/block/${1#/dev/}/queue
	echo 12 >"$queue/max_sectors_kb"
	for offset in 512 1536 3584; do
		verify --name="memory$offset" --filename="$1" --rw=randwrite --bsrange=512-68k \
			--blockalign=512 --iodepth=16 --iomem_align=4k --mem_align=4k --mem=malloc \
			--buffer_compress_percentage=0 --size=8m --offset="$offset"
	done
	"$tests/misaligned.py" "$1" 512 1536 3584
}

# An image of single blocks, none beside its neighbour in the file.
fragmented() {
	local image device block sum
	image=$(backing ext4 0)
	for block in {254..0..2} {255..1..2}; do
		dd if=/dev/urandom of="$image" bs=16k count=1 seek="$block" conv=notrunc oflag=direct status=none
	done
	(($(filefrag "$image" | sed 's/.*: \([0-9]*\) extent.*/\1/') > 100)) || fail "$(filefrag "$image")"
	device=$(attach --direct-io=on "$image")
	verify --name=fragmented --filename="$device" --rw=randwrite --bs=1m --iodepth=4 --size=4m
	sum=$(sha256sum <"$device")
	detach "$device"
	equal 'the image' "$(sha256sum <"$image")" "$sum"
}

# What a file system writes back comes in large merged requests.
through_file_system() {
	mkfs.ext4 -q "$1"
	mount "$1" "$mnt"
	dd if=/dev/urandom of="$mnt/file" bs=1M count=16 status=none
	cp "$mnt/file" "$scratch/copy"
	umount "$mnt"
	mount "$1" "$mnt"
	cmp "$mnt/file" "$scratch/copy"
	umount "$mnt"
}

for mode in on off; do
	check "merged writes, direct I/O $mode" over_device ext4 $mode merged
	check "split writes, direct I/O $mode" over_device ext4 $mode split
	check "writes from memory between pages, direct I/O $mode" over_device block $mode misaligned_memory
	check "write-back of a file system, direct I/O $mode" over_device ext4 $mode through_file_system
done
check "an image in pieces" fragmented
run_checks
