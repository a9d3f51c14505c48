#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The disk or the file system below the device fails under load: some requests fail, take long, or
# never end; the file is unlinked, truncated, frozen; the disk becomes read-only or goes away.
# Errors reach the submitter, nothing hangs, acknowledged writes are kept, and the device can be
# detached and used again.
. "$(dirname "$0")/lib.sh"

sectors=$((64 << 11))
eio='Input/output error'

# create TABLE: makes a disk "lower" over a RAM disk.
create() {
	load_brd
	modprobe -a dm-mod dm-flakey dm-delay 2>/dev/null || :
	dmsetup create lower --table "$1" 2>/dev/null || skip "device-mapper lacks ${1#0 "$sectors" }"
	wait_for 10 test -b /dev/mapper/lower
}

become() {
	dmsetup suspend --noflush --nolockfs lower
	dmsetup load lower --table "$1"
	dmsetup resume lower
}

good="0 $sectors linear $ram_spare 0"

# over FILE-SYSTEM|disk on|off: sets `file`, on the disk "lower", and `device`, which is attached to
# it.
over() {
	file=/dev/mapper/lower
	if [[ $1 != disk ]]; then
		"mkfs.$1" -q /dev/mapper/lower
		mount /dev/mapper/lower "$mnt"
		file=$mnt/image
		truncate -s 24M "$file"
		noise "$file" 24
	fi
	device=$(attach --direct-io="$2" "$file")
}

# load RUNTIME [ARGUMENT...]
load() { verified_writes "$device" --size=8m --runtime="$1" "${@:2}"; }

write_at() { dd if="$scratch/data" of="$1" bs=64k count=1 seek="$2" oflag=direct conv=notrunc status=none; }
read_at() { dd if="$1" bs=64k count=1 skip="$2" iflag=direct status=none; }

# After the fault: the device can be detached, and works with another file.
works_again() {
	detach "$device"
	file=$(backing tmpfs 4 again)
	device=$(attach "$file")
	noise "$device" 4
	cmp "$file" "$device"
	detach "$device"
}

# flaky FEATURE DIRECT: one kind of access fails for a while; acknowledged writes are kept.
flaky() {
	local number acknowledged=() failed=0
	create "$good"
	over disk "$2"
	noise "$scratch/data" 1
	become "0 $sectors flakey $ram_spare 0 0 3600 1 $1"
	for number in {0..15}; do
		if write_at "$device" "$number" 2>"$scratch/error" && sync "$device" 2>>"$scratch/error"; then
			acknowledged+=("$number")
		else
			grep -q "$eio" "$scratch/error" || fail "a write: $(<"$scratch/error")"
			failed=$((failed + 1))
		fi
	done
	[[ $1 != error_writes ]] || ((failed)) || fail "no write failed"
	[[ $1 != error_reads ]] || {
		equal 'writes that failed' "$failed" 0
		# From the disk, not from a page cache.
		echo 3 >/proc/sys/vm/drop_caches
		refuse "$eio" read_at "$device" 100
	}
	count faults $((failed + 1))
	become "$good"
	for number in "${acknowledged[@]}"; do
		cmp -n 64K "$scratch/data" <(read_at "$device" "$number")
		count bytes_verified 65536
	done
	works_again
}

# slow KIND DIRECT: each request takes 50 ms below. The device can be detached, and submitters
# killed.
slow() {
	local job
	create "$good"
	over "$1" "$2"
	become "0 $sectors delay $ram_spare 0 50"
	load 2 --verify_backlog=16 >/dev/null
	# A write that was submitted before the detach is complete when the detach ends.
	noise "$scratch/data" 1
	dd if="$scratch/data" of="$device" bs=1M count=1 conv=notrunc status=none
	detach "$device"
	cmp -n 1M "$scratch/data" "$file"
	device=$(attach --direct-io="$2" "$file")
	load 60 --time_based >/dev/null 2>&1 &
	job=$!
	sleep 1
	pkill -KILL -x fio
	! wait "$job" || fail "the load was not killed"
	# Dirty pages are written back at the speed of the disk.
	wait_for 30 no_load || fail "the load cannot be killed"
	become "$good"
	cmp -n 1M <(dd if="$device" bs=1M count=1 iflag=direct status=none) <(dd if="$file" bs=1M count=1 iflag=direct status=none)
	works_again
}

# Another reader fills the page cache of the disk while the disk is written by direct I/O. That
# cache is stale, and the device must not read it after direct I/O has ended.
read_beside() {
	local job
	create "0 $sectors delay $ram_spare 0 0 $ram_spare 0 1000"
	over disk on
	udevadm settle
	noise "$scratch/data" 1
	blockdev --flushbufs "$file"
	write_at "$device" 3 &
	job=$!
	sleep 0.3
	dd if="$file" of=/dev/null bs=64k count=1 skip=3 status=none
	wait "$job"
	losetup --direct-io=off "$device"
	cmp -n 64K "$scratch/data" <(read_at "$device" 3)
	works_again
}

# Repeats the kill: fio may have been starting its job at the first one.
no_load() { ! pkill -KILL -x fio; }

# unlinked FILE-SYSTEM DIRECT: the device keeps the file while it is bound.
unlinked() {
	local job
	create "$good"
	over "$1" "$2"
	load 3 --time_based >"$scratch/fio" 2>&1 &
	job=$!
	sleep 1
	rm "$file"
	wait "$job" || fail "$(tail -n 3 "$scratch/fio")"
	grep -q "(deleted)" <(row "$device" BACK-FILE; attribute "$device" loop/backing_file)
	noise "$scratch/data" 1
	write_at "$device" 3
	sync "$device"
	cmp -n 64K "$scratch/data" <(read_at "$device" 3)
	detach "$device"
	wait_for 10 umount "$mnt"
}

truncated() {
	local job round
	create "$good"
	over "$1" "$2"
	# Reads beyond the end fail; writes make the file longer again.
	fio --name=load --filename="$device" --ioengine=libaio --direct=1 --iodepth=16 --rw=randrw \
		--bsrange=4k-128k --size=24m --time_based --runtime=2 --continue_on_error=all \
		--randseed="$seed" --output-format=terse >"$scratch/fio" 2>&1 &
	job=$!
	for round in {1..20}; do
		truncate -s "$((round % 2 ? 4 : 32))M" "$file"
		sleep 0.1
	done
	timeout 30 tail --pid="$job" -f /dev/null || fail "the load hangs"
	wait "$job" || :
	truncate -s 24M "$file"
	load 2 >/dev/null
	sync "$device"
	cmp -n 24M "$file" <(dd if="$device" bs=1M count=24 iflag=direct status=none)
	works_again
	umount "$mnt"
}

# frozen FILE-SYSTEM DIRECT: I/O blocks and continues after the thaw; a detach in between waits,
# and can be killed.
frozen() {
	local job status=0
	create "$good"
	over "$1" "$2"
	noise "$scratch/data" 1
	fsfreeze -f "$mnt"
	write_at "$device" 2 &
	job=$!
	sleep 0.7
	if ! kill -0 "$job" 2>/dev/null; then
		fsfreeze -u "$mnt"
		fail "the write ended while the file system was frozen"
	fi
	timeout -s KILL 1 losetup -d "$device" || status=$?
	echo "losetup -d ended with $status"
	fsfreeze -u "$mnt"
	wait "$job"
	cmp -n 64K "$scratch/data" <(dd if="$file" bs=64k skip=2 count=1 iflag=direct status=none)
	wait_for 10 unbound "$device" || detach "$device"
	wait_for 10 umount "$mnt"
}

# The file system becomes read-only by itself, as ext4 does after an error: writes fail, reads
# succeed.
read_only() {
	create "$good"
	over ext4 "$1"
	noise "$scratch/data" 1
	write_at "$device" 1
	sync "$device"
	# Only ext4 supports this option.
	mount -o remount,abort "$mnt" 2>/dev/null || skip 'ext4 cannot be aborted'
	cmp -n 64K "$scratch/data" <(read_at "$device" 1)
	! { write_at "$device" 300 2>"$scratch/error" && sync "$device" 2>>"$scratch/error"; } ||
		fail "a write to a read-only file system succeeded"
	cmp -n 64K "$scratch/data" <(read_at "$device" 1)
	works_again
	umount "$mnt"
}

# The disk goes away for good.
removed() {
	local disk job item=/sys/kernel/config/nullb/nullb_gone
	modprobe null_blk nr_devices=0 || skip 'there is no null_blk'
	mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
	mkdir "$item"
	# shellcheck disable=SC2064
	trap "rmdir $item" EXIT
	echo 64 >"$item/size"
	echo 1 >"$item/memory_backed"
	echo 1 >"$item/power"
	disk=/dev/nullb_gone
	wait_for 10 test -b "$disk"
	device=$(attach --direct-io="$1" "$disk")
	udevadm settle
	fio --name=load --filename="$device" --ioengine=libaio --direct=1 --iodepth=16 --rw=randrw --bs=4k \
		--size=64m --time_based --runtime=30 --output-format=terse >"$scratch/fio" 2>&1 &
	job=$!
	sleep 1
	echo 0 >"$item/power"
	timeout 20 tail --pid="$job" -f /dev/null || fail "the load hangs"
	! wait "$job" || [[ $1 == off ]] || fail "the load met no error"
	refuse "$eio" read_at "$device" 9
	works_again
}

for direct in on off; do
	for feature in error_reads error_writes; do
		check "$feature below, direct I/O $direct" flaky $feature $direct
	done
	if [[ $direct == on ]]; then kind=disk; else kind=ext4; fi
	check "a slow disk, file: $kind, direct I/O $direct, seed $seed" slow $kind $direct
	check "unlinked under load, direct I/O $direct, seed $seed" unlinked ext4 $direct
	check "truncated and grown under load, direct I/O $direct, seed $seed" truncated ext4 $direct
	check "a frozen file system, direct I/O $direct" frozen ext4 $direct
	check "a file system that went read-only, direct I/O $direct" read_only $direct
	check "a disk that is removed, direct I/O $direct" removed $direct
done
check_better 'the C driver reads the stale page cache of the disk' 'a disk that is read while the device writes it' read_beside
run_checks
