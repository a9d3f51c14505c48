#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Requests of every shape transfer the right bytes: merged from many bios, split at the queue's
# limits, to a fragmented image, written back by a file system. misaligned.py has those that begin
# in the middle of a page.
. "$(dirname "$0")/lib.sh"

mib=16

# over_device KIND on|off COMMAND...: runs COMMAND DEVICE, then compares the image with the device.
over_device() {
	local image device sum
	image=$(backing "$1" "$mib")
	noise "$image" "$mib"
	device=$(attach --direct-io="$2" --sizelimit "${mib}M" "$image")
	"${@:3}" "$device"
	sum=$(sha256sum <"$device")
	detach "$device"
	equal 'the image' "$(head -c "${mib}M" "$image" | sha256sum)" "$sum"
}

verify() {
	fio --ioengine=libaio --direct=1 --size="${mib}M" "${verified[@]}" \
		--output-format=terse "$@"
}

# statistic DEVICE FIELD: prints a field of /sys/block/DEVICE/stat, counted from 1.
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

# I/O of 1 MiB is split into requests of 4 and 20 KiB.
split() {
	local kib queue
	queue=/sys/block/${1#/dev/}/queue
	for kib in 4 20; do
		echo "$kib" >"$queue/max_sectors_kb"
		verify --name="split$kib" --filename="$1" --rw=randwrite --bs=1m --iodepth=8
		cmp <(dd if="$1" bs=1M iflag=direct status=none) "$1"
	done
}

# Every other block of the image is a hole: one request of direct I/O covers many extents, and fills
# holes.
in_pieces() {
	local image device block sum punch=()
	image=$(backing ext4 4)
	noise "$image" 4
	for block in {0..127}; do
		punch+=(-c "fpunch $((block * 32))k 12k")
	done
	xfs_io "${punch[@]}" "$image"
	(($(filefrag -v "$image" | grep -c '^ *[0-9]*:') > 100)) || fail "$(filefrag -v "$image")"
	device=$(attach --direct-io=on "$image")
	cmp "$image" "$device"
	verify --name=pieces --filename="$device" --rw=randwrite --bs=256k --iodepth=4 --size=4m
	sum=$(sha256sum <"$device")
	detach "$device"
	equal 'the image' "$(sha256sum <"$image")" "$sum"
}

# The writeback of a file system submits large merged requests.
through_file_system() {
	mkfs.ext4 -q "$1"
	mount "$1" "$mnt"
	dd if=/dev/urandom of="$mnt/file" bs=1M count=8 status=none
	cp "$mnt/file" "$scratch/copy"
	umount "$mnt"
	mount "$1" "$mnt"
	cmp "$mnt/file" "$scratch/copy"
	umount "$mnt"
}

for mode in on off; do
	check "merged writes, direct I/O $mode" over_device ext4 $mode merged
	check "split writes, direct I/O $mode" over_device ext4 $mode split
	check "writeback of a file system, direct I/O $mode" over_device ext4 $mode through_file_system
done
check "a fragmented image" in_pieces
run_checks
