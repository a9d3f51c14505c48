#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# fsync on the device makes the disk below write back its cache: every fsync and every FUA write
# adds to the flushes of the virtio disk under the image (field 16 of its stat), and the data is on
# the disk afterwards. For images in files and for the disk itself, direct and buffered.
#
# needs: a scratch disk with a write cache at /dev/vda
. "$(dirname "$0")/lib.sh"

disk=/dev/vda
[[ -b $disk ]] || skip_all "there is no disk $disk"

flushes() {
	local fields
	read -ra fields <"/sys/block/${disk#/dev/}/stat"
	echo "${fields[15]}"
}

# image KIND: makes an image on the disk, or takes the disk itself.
image() {
	equal 'cache of the disk' "$(attribute "$disk" queue/write_cache)" 'write back'
	case $1 in
	block)
		wipefs -qa "$disk"
		echo "$disk"
		return
		;;
	ext4) mkfs.ext4 -qF -E lazy_itable_init=0 "$disk" ;;
	xfs) mkfs.xfs -qf "$disk" ;;
	esac
	mount "$disk" "$mnt"
	dd if=/dev/zero of="$mnt/image" bs=1M count=8 conv=fsync status=none
	echo "$mnt/image"
}

# grows COUNT COMMAND...: COMMAND makes the disk flush at least COUNT times.
grows() {
	local before
	before=$(flushes)
	"${@:2}"
	(($(flushes) - before >= $1)) || fail "$(($(flushes) - before)) flushes of the disk, wanted $1: ${*:2}"
}

fsyncs() {
	local file device
	file=$(image "$1")
	device=$(attach --direct-io="$2" "$file")
	equal 'cache of the device' "$(attribute "$device" queue/write_cache)" 'write back'
	sync
	# The last write of fio has no fsync.
	grows 7 fio --name=fsync --filename="$device" --ioengine=psync --direct=1 --rw=randwrite --bs=4k \
		--size=1m --number_ios=8 --fsync=1 --output-format=terse
	grows 1 dd if=/dev/urandom of="$device" bs=64k count=1 conv=fsync status=none
	# O_DSYNC: the disk has no FUA, so a flush of it follows each write.
	grows 4 dd if=/dev/urandom of="$device" bs=64k count=4 oflag=direct,dsync status=none
	# An empty flush.
	dd if=/dev/urandom of="$device" bs=64k count=1 oflag=direct status=none
	grows 1 sync "$device"
	detach "$device"
}

# Synced data is on the disk, not only in a page cache of the file.
arrives() {
	local file device
	file=$(image block)
	device=$(attach --direct-io="$1" --sizelimit 8M "$file")
	dd if=/dev/urandom of="$scratch/data" bs=1M count=4 status=none
	dd if="$scratch/data" of="$device" bs=1M conv=fsync status=none
	dd if="$disk" of="$scratch/arrived" bs=1M count=4 iflag=direct status=none
	cmp "$scratch/data" "$scratch/arrived"
}

inner_file_system() {
	local file device
	file=$(image ext4)
	mkfs.ext4 -q "$file"
	mkdir "$scratch/inner"
	device=$(attach "$file")
	mount "$device" "$scratch/inner"
	sync
	grows 5 fio --name=inner --directory="$scratch/inner" --ioengine=psync --rw=write --bs=4k \
		--size=20k --fsync=1 --output-format=terse
	umount "$scratch/inner"
	rmdir "$scratch/inner"
}

read_only() {
	local file device
	file=$(image ext4)
	device=$(attach -r "$file")
	equal 'cache of the device' "$(attribute "$device" queue/write_cache)" 'write through'
	sync "$device"
}

for kind in ext4 xfs block; do
	check "fsync flushes the disk: $kind, direct" fsyncs $kind on
	check "fsync flushes the disk: $kind, buffered" fsyncs $kind off
done
check "synced data is on the disk: direct" arrives on
check "synced data is on the disk: buffered" arrives off
check "fsync of a file in a mounted image flushes the disk" inner_file_system
check "a read-only device has no write cache" read_only
run_checks
