#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# A durable write (FUA) to the device is durable below: a disk with FUA gets such a write, and a
# disk without FUA gets a flush before the write completes. Other writes cause neither. Tracing
# shows the requests to the disk below, a null_blk with a write cache: "WFS" is a durable write,
# "FF" a flush.
. "$(dirname "$0")/lib.sh"

[[ $driver == rnull_loop ]] || skip_all "the C driver has no FUA"
configfs=/sys/kernel/config/nullb disk=/dev/nullb_test
writes=8
mount_tracing
modprobe null_blk nr_devices=0 || skip_all "there is no null_blk"

# make_disk FUA: makes a disk in memory, with a write cache, which is removed at the end of the
# case.
make_disk() {
	local item=$configfs/nullb_test
	mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
	mkdir "$item"
	trap 'remove_disk' EXIT
	# XFS needs at least 300 MiB; only written blocks take memory.
	echo 320 >"$item/size"
	echo 1 >"$item/memory_backed"
	echo 16 >"$item/cache_size"
	echo "$1" >"$item/fua"
	echo 1 >"$item/power"
	wait_for 10 test -b "$disk"
	equal 'cache of the disk' "$(attribute "$disk" queue/write_cache)" 'write back'
	equal 'FUA of the disk' "$(attribute "$disk" queue/fua)" "$1"
	udevadm settle
}

remove_disk() {
	! mountpoint -q "$mnt/inner" || umount "$mnt/inner"
	[[ -z ${device-} ]] || unbound "$device" || detach "$device"
	unmount_below "$mnt"
	echo 0 >"$configfs/nullb_test/power"
	rmdir "$configfs/nullb_test"
}

# bound block|FILE-SYSTEM on|off FUA: sets `device`, which is attached to the disk or to a file on
# it.
bound() {
	local file=$disk
	make_disk "$3"
	if [[ $1 != block ]]; then
		"mkfs.$1" -q "$disk"
		mkdir "$mnt/outer"
		mount "$disk" "$mnt/outer"
		file=$mnt/outer/image
		noise "$file" 16
		sync
	fi
	device=$(attach --direct-io="$2" "$file")
	equal 'FUA of the device' "$(attribute "$device" queue/fua)" "$([[ $1 == @(block|xfs) ]] && echo 1 || echo 0)"
	udevadm settle
}

# issued COMMAND...: runs COMMAND and counts the requests to the disk: `data`, writes of 4 KiB;
# `durable`, those with FUA; `flushes`; `last` is the operation of the last request.
issued() {
	local event=$tracing/events/block/block_rq_issue
	udevadm settle
	: >"$tracing/trace"
	echo 1 >"$event/enable"
	"$@"
	echo 0 >"$event/enable"
	read -r data durable flushes last < <(awk -v disk="$(sed 's/:/,/' "/sys/block/${disk#/dev/}/dev")" '
		match($0, /block_rq_issue: .*/) {
			split(substr($0, RSTART), field, " ")
			if (field[2] != disk) next
			op = field[3]
			if (op ~ /^FF/) flushes++
			else if (op ~ /^W/ && field[4] == 4096) { data++; if (op ~ /F/) durable++ }
			else if (op ~ /^W/ && op ~ /F/) other++
			if (op !~ /^R/) last = op
		}
		END { print data + 0, durable + 0, flushes + 0, last "" }' "$tracing/trace")
	echo "$data writes, $durable durable, $flushes flushes, $last last: $*"
}

# write_each [FLAG]
write_each() { dd if=/dev/urandom of="$device" bs=4k count="$writes" seek=64 oflag="direct$1" conv=notrunc status=none; }

plain_writes() {
	issued write_each ''
	((data >= writes)) || fail "only $data writes arrived"
	equal 'durable writes and flushes' "$durable $flushes" '0 0'
}

# to_block REMAP FUA
to_block() {
	bound block on "$2"
	echo "$1" >"/sys/block/${device#/dev/}/rnull_loop/remap"
	plain_writes
	issued write_each ,dsync
	equal 'writes' "$data" "$writes"
	if (($2)); then
		equal 'durable writes' "$durable" "$writes"
	else
		# The block layer splits a durable write in two; O_DSYNC of a block device adds a
		# flush.
		equal 'durable writes' "$durable" 0
		((flushes >= 2 * writes)) || fail "$flushes flushes for $writes writes"
		equal 'last request' "${last:0:2}" FF
	fi
}

# to_file FILE-SYSTEM on|off FUA: the file system chooses FUA or a flush; O_DSYNC adds a flush, as
# above.
to_file() {
	[[ $1 != btrfs ]] || modprobe btrfs || skip 'there is no btrfs'
	bound "$1" "$2" "$3"
	issued write_each ,dsync
	((data >= writes)) || fail "only $data writes arrived"
	((durable + flushes >= 2 * writes)) || fail "$durable durable writes and $flushes flushes for $writes writes"
	(($3)) || equal 'durable writes' "$durable" 0
}

# A file system on the device commits its transactions with a durable write.
inner_file_system() {
	bound block on 1
	mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,nodiscard "$device"
	mkdir "$mnt/inner"
	mount "$device" "$mnt/inner"
	issued dd if=/dev/urandom of="$mnt/inner/file" bs=4k count=4 conv=fsync status=none
	((durable)) || fail "no durable write"
	((flushes)) || fail "no flush"
	umount "$mnt/inner"
}

# A flush calls fdatasync(): it syncs the data, and only the metadata that is needed to read it.
data_alone() {
	local event=$tracing/events/kprobes/durable_sync calls
	bound ext4 on 1
	# shellcheck disable=SC2016  # expanded by the kernel
	echo 'p:durable_sync ext4_sync_file datasync=$arg4:s32' >>"$tracing/kprobe_events"
	udevadm settle
	: >"$tracing/trace"
	echo 1 >"$event/enable"
	dd if=/dev/urandom of="$device" bs=4k count=1 oflag=direct conv=fsync,notrunc status=none
	echo 0 >"$event/enable"
	# Removing the probe discards its records.
	calls=$(sed -n 's/.*durable_sync: .*datasync=//p' "$tracing/trace")
	echo -:durable_sync >>"$tracing/kprobe_events"
	equal 'calls, 1: with datasync' "$calls" 1
}

for remap in 1 0; do
	for fua in 1 0; do
		check "durable writes to a block device, its FUA $fua, remap=$remap" to_block $remap $fua
	done
done
for direct in on off; do
	for fua in 1 0; do
		for kind in xfs ext4 btrfs; do
			check "durable writes to a file on $kind, FUA of the disk $fua, direct I/O $direct" to_file $kind $direct $fua
		done
	done
done
check "commits of a file system on the device are durable below" inner_file_system
check "a flush is an fdatasync of the file" data_alone
run_checks
