#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Freezing the queue of the disk below does not deadlock with reads of a loop device on it. A task
# that flushes its plug may hold a request of that disk that is on no list yet. A driver that waits
# for the disk's frozen queue at that moment waits for that request, which waits for the driver.
# needs: a scratch disk at /dev/vda
. "$(dirname "$0")/lib.sh"

disk=/dev/vda seconds=10 mib=96
[[ -b $disk ]] || skip_all "needs a scratch disk at $disk: scripts/vm --disk FILE"

# Changes a limit again and again, which freezes the queue each time. In between, waiting tasks can
# run.
freeze_again_and_again() {
	local limit=/sys/block/vda/queue/max_sectors_kb kib before
	before=$(<"$limit")
	while kill -0 "$1" 2>/dev/null; do
		for kib in 512 "$before"; do echo "$kib" >"$limit"; done
		sleep 0.005
	done
}

# progress TASK: the number of batches changes within 30 seconds, or the task has ended.
progress() {
	local before
	before=$(wc -l <"$scratch/batches")
	wait_for 30 moved_on "$1" "$before"
}
moved_on() { ! kill -0 "$1" 2>/dev/null || (($(wc -l <"$scratch/batches") > $2)); }

# batches KIND: reads alternately from the device and from a file on the same disk.
batches() {
	local device target task program
	# Compiled before the reads have to make progress.
	program=$(program mixed_batches)
	mkdir "$mnt/lower"
	if [[ $1 == block ]]; then
		# The disk itself below the device, and read beside it.
		target=$disk
		device=$(attach --direct-io=on --sizelimit "${mib}M" "$disk")
	else
		target=$mnt/lower/other
		wipefs -q -a "$disk"
		"mkfs.$1" -q "$disk"
		mount -o noatime "$disk" "$mnt/lower"
		noise "$mnt/lower/image" "$mib"
		noise "$target" "$mib"
		device=$(attach --direct-io=on "$mnt/lower/image")
	fi
	udevadm settle
	: >"$scratch/batches"
	"$program" "$device" "$target" "$mib" "$seconds" >"$scratch/batches" &
	task=$!
	freeze_again_and_again "$task" &
	while kill -0 "$task" 2>/dev/null; do
		progress "$task" || fail "stuck after $(tail -n 1 "$scratch/batches") batches: $(cat "/proc/$task/stack")"
	done
	wait "$task"
	wait
	count operations "$(($(tail -n 1 "$scratch/batches") * 4))"
	detach "$device"
}

for kind in ext4 xfs block; do
	check "batches of reads go on while the queue below is frozen again and again, $kind" batches $kind
done
run_checks
