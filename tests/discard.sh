#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Discards free the image's blocks: exactly these, so that they read as zeroes and their neighbours
# keep their data. Zeroes are written without freeing blocks if the submitter wants to keep them;
# where the file system cannot do it, the block layer writes zeroes.
. "$(dirname "$0")/lib.sh"

mib=16

blocks() { stat -c %b "$1"; }

# zeroes FILE OFFSET LENGTH
zeroes() { cmp -i "$2:0" -n "$3" "$1" /dev/zero; }

# intact FILE: compares FILE, except the 4 MiB at 4 MiB, with $scratch/before.
intact() {
	cmp -n 4M "$scratch/before" "$1"
	cmp -i 8M:8M -n 8M "$scratch/before" "$1"
}

# noisy KIND: makes an image of random data, and a copy of it.
noisy() {
	local image
	image=$(backing "$1" "$mib")
	noise "$image" "$mib"
	head -c "${mib}M" "$image" >"$scratch/before"
	echo "$image"
}

hole() {
	local image device before
	image=$(noisy "$1")
	device=$(attach --direct-io="$2" "$image")
	before=$(blocks "$image")
	blkdiscard -o 4M -l 4M "$device"
	zeroes "$device" 4M 4M
	intact "$device"
	equal 'blocks freed' $((before - $(blocks "$image"))) $((4 << 11))
	detach "$device"
	zeroes "$image" 4M 4M
	intact "$image"
}

# The range is not in whole blocks of the file system: its neighbours keep their data.
odd_hole() {
	local image device
	image=$(noisy "$1")
	device=$(attach "$image")
	blkdiscard -o $((4096 * 3 + 512)) -l $((4096 * 5 + 1024)) "$device"
	zeroes "$device" $((4096 * 3 + 512)) $((4096 * 5 + 1024))
	cmp -n $((4096 * 3 + 512)) "$scratch/before" "$device"
	cmp -i $((4096 * 8 + 1536)) -n 1M "$scratch/before" "$device"
}

at_offset() {
	local image device
	image=$(noisy ext4)
	device=$(attach --offset 2M --sizelimit 8M "$image")
	blkdiscard -o 2M -l 4M "$device"
	zeroes "$image" 4M 4M
	intact "$image"
	blkdiscard "$device"
	detach "$device"
	zeroes "$image" 2M 8M
	cmp -n 2M "$scratch/before" "$image"
	cmp -i 10M -n 6M "$scratch/before" "$image"
}

trim() {
	local image before
	image=$(backing "$1" 64)
	mkfs.ext4 -q -E nodiscard "$image"
	mount -o loop "$image" "$mnt"
	dd if=/dev/urandom of="$mnt/gone" bs=1M count=16 conv=fsync status=none
	dd if=/dev/urandom of="$mnt/kept" bs=1M count=4 conv=fsync status=none
	cp "$mnt/kept" "$scratch/copy"
	before=$(blocks "$image")
	rm "$mnt/gone"
	sync
	fstrim "$mnt"
	sync "$image"
	((before - $(blocks "$image") >= 15 << 11)) || fail "only $(((before - $(blocks "$image")) / 2)) KiB freed"
	umount "$mnt"
	mount -o loop "$image" "$mnt"
	cmp "$mnt/kept" "$scratch/copy"
}

# zero KIND COMMAND...: writes zeroes to the 4 MiB at 4 MiB.
zero() {
	local image device
	image=$(noisy "$1")
	device=$(attach "$image")
	"${@:2}" "$device"
	zeroes "$device" 4M 4M
	intact "$device"
	detach "$device"
	zeroes "$image" 4M 4M
	intact "$image"
}

# zero_keeping KIND: zeroes without freeing the blocks.
zero_keeping() {
	local image device before
	image=$(noisy "$1")
	device=$(attach "$image")
	before=$(blocks "$image")
	fallocate -z -o 4M -l 4M "$device"
	sync "$image"
	equal blocks "$(blocks "$image")" "$before"
	zeroes "$device" 4M 4M
	intact "$device"
}

# tmpfs has no FALLOC_FL_ZERO_RANGE: the first request fails with EOPNOTSUPP, and no more are
# submitted.
zero_on_tmpfs() {
	local image device
	image=$(noisy tmpfs)
	device=$(attach "$image")
	fallocate -z -o 4M -l 2M "$device"
	equal 'write_zeroes_max_bytes' "$(attribute "$device" queue/write_zeroes_max_bytes)" 0
	fallocate -z -o 6M -l 2M "$device"
	zeroes "$device" 4M 4M
	intact "$device"
	blkdiscard -o 4M -l 4M "$device"
	zeroes "$device" 4M 4M
	intact "$device"
}

limits() {
	local image device
	image=$(backing "$1" 4)
	device=$(attach "$image")
	equal granularity "$(attribute "$device" queue/discard_granularity)" 4096
	(($(attribute "$device" queue/discard_max_bytes) >= 1 << 30))
	detach "$device"
	mount -t ramfs ramfs "$mnt"
	truncate -s 4M "$mnt/image"
	device=$(attach "$mnt/image")
	equal 'discard on ramfs' "$(attribute "$device" queue/discard_max_bytes)" 0
	refuse 'not supported' blkdiscard "$device"
	fallocate -z -o 1M -l 1M "$device"
}

# on_fat COMMAND...: uses an image on VFAT, which has fallocate(), but no holes.
on_fat() {
	local image=$mnt/image device
	load_brd
	mkfs.vfat "$ram_spare"
	mount "$ram_spare" "$mnt"
	fallocate -l 8M "$image"
	noise "$image" 8
	cp "$image" "$scratch/before"
	device=$(attach "$image")
	(($(attribute "$device" queue/discard_max_bytes)))
	# Discards are hints, so the first failure is no error.
	blkdiscard -o 4M -l 1M "$device"
	equal 'discard_max_bytes' "$(attribute "$device" queue/discard_max_bytes)" 0
	refuse 'not supported' blkdiscard -o 4M -l 1M "$device"
	"$@" "$device"
	cmp "$scratch/before" "$device"
}

# Discards stay disabled, once the requests in flight are done.
none_in_hardware() {
	wait_for 10 no_discards "$1" || fail "discard_max_hw_bytes: $(attribute "$1" queue/discard_max_hw_bytes)"
	equal discard_granularity "$(attribute "$1" queue/discard_granularity)" 0
}

no_discards() { (($(attribute "$1" queue/discard_max_hw_bytes) == 0)); }

none_after_block_size() {
	losetup --sector-size 1024 "$1"
	losetup --sector-size 512 "$1"
	no_discards "$1"
	equal 'discard_max_bytes' "$(attribute "$1" queue/discard_max_bytes)" 0
}

# The backing is a block device: a loop device, whose image shows the discards.
on_block_device() {
	local image below device before
	image=$(noisy ext4)
	below=$(attach "$image")
	device=$(attach "$below")
	before=$(blocks "$image")
	blkdiscard -o 4M -l 4M "$device"
	zeroes "$device" 4M 4M
	intact "$device"
	equal 'blocks freed' $((before - $(blocks "$image"))) $((4 << 11))
}

# beside_writes KIND on|off: concurrent writes are not discarded.
beside_writes() {
	local image device
	image=$(noisy "$1")
	device=$(attach --direct-io="$2" "$image")
	fio --filename="$device" --ioengine=libaio --direct=1 --iodepth=8 --output-format=terse \
		--name=trim --rw=randtrim --bs=16k --offset=4m --size=4m \
		--name=write --rw=randwrite --bs=16k --offset=8m --size=8m "${verified[@]}"
	zeroes "$device" 4M 4M
	cmp -n 4M "$scratch/before" "$device"
}

for kind in ext4 xfs tmpfs; do
	check "a discard punches a hole: $kind" hole $kind off
	check "a discard of parts of blocks: $kind" odd_hole $kind
done
check "a discard punches a hole: ext4, direct" hole ext4 on
check "discards at an offset" at_offset
check "fstrim of a mounted file system, image on ext4" trim ext4
check "fstrim of a mounted file system, image on XFS" trim xfs
check "limits come from the file system" limits ext4
check "a discard frees the blocks of a block device" on_block_device
for kind in ext4 xfs block; do
	check "blkdiscard -z: $kind" zero $kind blkdiscard -z -o 4M -l 4M
	check "fallocate -z: $kind" zero $kind fallocate -z -o 4M -l 4M
done
for kind in ext4 xfs; do
	check "fallocate -z keeps the blocks: $kind" zero_keeping $kind
done
check "fallocate -z on tmpfs, which has no FALLOC_FL_ZERO_RANGE" zero_on_tmpfs
check "discards are disabled after one has failed with EOPNOTSUPP" on_fat none_in_hardware
check_better "the C driver enables them again" "discards stay disabled after another block size" on_fat none_after_block_size
check "discards beside writes, direct" beside_writes ext4 on
check "discards beside writes, buffered" beside_writes xfs off
run_checks
