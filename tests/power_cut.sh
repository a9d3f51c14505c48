#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Data that a loop device acknowledged as durable survives a power cut. dm-log-writes below its
# backing logs the order in which data became durable, with marks for the acknowledged steps. For
# some moments the log is replayed to a disk as found after a cut, with all that a disk must hold by
# then, and with or without the loss of a part of its cache. The file system on that disk is
# mounted, its image attached, and the content checked. See programs/replay_log.c and
# programs/acknowledged.c.
. "$(dirname "$0")/lib.sh"

disk=$ram_ext4 log=$ram_xfs replayed=$ram_block changes=$ram_spare
sectors=$((96 << 11)) image_mib=64
cuts=$((6 * rounds)) steps=$((rounds < 40 ? 40 + 10 * rounds : 440))
# The steps after which the extents of the image must be in use.
unmapped_steps=10

modprobe -a dm-log-writes dm-snapshot || skip_all "there is no dm-log-writes or no dm-snapshot"
mkdir -p "$scratch"
replay_log=$(program replay_log) acknowledged=$(program acknowledged)

make_fs() {
	case $1 in
	ext4) mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,nodiscard "$2" ;;
	# --unsupported allows less than 300 MiB, with a small log that is fast to make and to read.
	xfs) mkfs.xfs -q -K --unsupported "$2" ;;
	esac
}

# make_image FILE: of holes, blocks without valid data, and written blocks.
make_image() {
	truncate -s "${image_mib}M" "$1"
	fallocate -o 1M -l 1M "$1"
	dd if=/dev/zero of="$1" bs=1M count=1 seek=2 conv=notrunc status=none
}

# attach_on DISK OUTER DIRECT: attaches the image in the file system on DISK, or DISK; sets
# `device`.
attach_on() {
	local file=$1
	if [[ $2 != block ]]; then
		mount "$1" "$mnt/outer"
		file=$mnt/outer/image
		[[ -e $file ]] || make_image "$file"
	fi
	device=$(attach --direct-io="$3" "$file")
}

# use_of USE: prepares the device, or a file system on it, for writes and checks; sets `kind`,
# `place`.
use_of() {
	kind=device place=$device
	if [[ $1 != raw ]]; then
		mount "$device" "$mnt/inner"
		kind=files place=$mnt/inner
	fi
}

# leave OUTER: undoes `attach_on`.
leave() {
	detach "$device"
	[[ $1 == block ]] || umount "$mnt/outer"
}

# A read asks for the extents, unless a write has.
uses_extents() {
	dd if="$device" of=/dev/null bs=4k count=1 iflag=direct status=none
	[[ $(<"/sys/block/${device#/dev/}/rnull_loop/extents_state") == 'in use'* ]]
}

# record OUTER DIRECT USE: logs from the empty disk on. Mark 0 is the end of the preparation.
record() {
	dmsetup create lower --table "0 $sectors log-writes $disk $log"
	[[ $1 == block ]] || make_fs "$1" /dev/mapper/lower
	attach_on /dev/mapper/lower "$1" "$2"
	equal "$device's cache" "$(attribute "$device" queue/write_cache)" 'write back'
	[[ $3 == raw ]] || make_fs "$3" "$device"
	use_of "$3"
	sync
	dmsetup message lower 0 mark 0
	"$acknowledged" write "$kind" "$place" "$seed" 1 "$unmapped_steps" lower
	[[ $driver != rnull_loop || $1 == block || $2 == off ]] || wait_for 10 uses_extents ||
		fail "extents: $(<"/sys/block/${device#/dev/}/rnull_loop/extents_state")"
	"$acknowledged" write "$kind" "$place" "$seed" "$((unmapped_steps + 1))" "$steps" lower
	[[ $3 == raw ]] || umount "$mnt/inner"
	leave "$1"
	[[ $(dmsetup status lower) != *disabled* ]] || fail "the log is full: $(dmsetup status lower)"
	dmsetup remove --retry lower
	count writes "$steps"
}

check_fs() {
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac
}

# check_cut OUTER DIRECT USE SAFE CUT MARK LOSE: `replayed` has all log entries before SAFE.
check_cut() {
	local bytes
	echo "cut before entry $5, after step $6; seed of the loss: $7"
	dmsetup create cut --table "0 $sectors snapshot $replayed $changes N 8"
	"$replay_log" "$log" replay /dev/mapper/cut "$4" "$5" "$7"
	attach_on /dev/mapper/cut "$1" "$2"
	use_of "$3"
	bytes=$("$acknowledged" check "$kind" "$place" "$seed" "$6" $(($6 + 1)))
	count bytes_verified "$bytes"
	if [[ $3 != raw ]]; then
		umount "$mnt/inner"
		check_fs "$3" "$device"
	fi
	leave "$1"
	dmsetup remove --retry cut
	count cuts 1
}

# cut_power OUTER DIRECT USE
cut_power() {
	local each done=0 number=0 safe cut mark
	load_brd
	mkdir "$mnt"/{outer,inner}
	for each in $disk $log $replayed; do blkdiscard -f "$each"; done
	record "$@"
	"$replay_log" "$log" cuts "$cuts" "$seed" >"$scratch/cuts"
	while read -r safe cut mark; do
		"$replay_log" "$log" replay "$replayed" "$done" "$safe"
		done=$safe number=$((number + 1))
		check_cut "$@" "$safe" "$cut" "$mark" $((number % 2 * number))
	done <"$scratch/cuts"
}

# udev would open each new device, which takes longer than the checks.
stop_udev
for outer in ext4 xfs block; do
	for direct in on off; do
		for use in raw ext4 xfs; do
			check "$cuts cuts: $use on $outer, direct I/O $direct, seed $seed" cut_power $outer $direct $use
		done
	done
done
run_checks
