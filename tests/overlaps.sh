#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# A write that was acknowledged before an overlapping one was submitted does not overtake it: on
# each route to the file, with each scheduler, and while the routes change. Overlapping writes in
# flight may take effect in any order, so no other test verifies them. See programs/overlap.c.
. "$(dirname "$0")/lib.sh"

# switch NAME=VALUE...: sets tunables.
switch() {
	local setting
	for setting; do
		echo "${setting#*=}" >"/sys/block/${device#/dev/}/rnull_loop/${setting%=*}"
	done
}

# bound KIND on|off: sets `file`, whose blocks are allocated, and `device`.
bound() {
	file=$(backing "$1" 1)
	noise "$file" 1
	device=$(attach --direct-io="$2" --sizelimit 1M "$file")
	equal dio "$(attribute "$device" loop/dio)" "$([[ $2 == on ]] && echo 1 || echo 0)"
	udevadm settle
}

# overlap: runs the program with each scheduler of the kernel.
overlap() {
	local what number scheduler queue=/sys/block/${device#/dev/}/queue
	for scheduler in $(tr -d '[]' <"$queue/scheduler"); do
		echo "Scheduler: $scheduler"
		echo "$scheduler" >"$queue/scheduler"
		# Requests wait in the scheduler, where they are sorted and merged.
		[[ $scheduler == none ]] || echo 8 >"$queue/nr_requests"
		"$overlap" "$seed" "$milliseconds" "$device" >"$scratch/overlaps"
		while read -r what number; do count "$what" "$number"; done <"$scratch/overlaps"
	done
	dd if="$device" of="$scratch/seen" bs=128k count=1 iflag=direct status=none
	detach "$device"
	cmp "$scratch/seen" <(head -c 128K "$file")
}

# route KIND on|off [NAME=VALUE...]
route() {
	bound "$1" "$2"
	switch "${@:3}"
	overlap
}

# changing KIND: concurrent requests take different routes.
changing() {
	bound "$1" on
	rm -f "$scratch/stop"
	while [[ ! -e $scratch/stop ]]; do
		switch inline=$((RANDOM % 2)) remap=$((RANDOM % 2)) nowait=$((RANDOM % 2)) 2>/dev/null
	done &
	# Ends the background job also when a write was overtaken.
	trap 'touch "$scratch/stop"; wait || :' EXIT
	overlap
}

mkdir -p "$scratch"
# The time of one scheduler.
milliseconds=$((rounds * (${slow:-0} ? 1500 : 600)))
overlap=$(program overlap -pthread)
modprobe -a mq-deadline bfq kyber-iosched 2>/dev/null || :
for kind in ext4 xfs tmpfs block; do
	check "$kind, direct, seed $seed" route $kind on
	check "$kind, buffered, seed $seed" route $kind off
done
if [[ $driver == rnull_loop ]]; then
	check "block, direct, not remapped, seed $seed" route block on remap=0
	for kind in ext4 block; do
		check "$kind, direct, by workers, seed $seed" route $kind on inline=0
		check "$kind, direct, by blocking workers, seed $seed" route $kind on inline=0 remap=0 nowait=0
		check "$kind, changing routes, seed $seed" changing $kind
	done
fi
run_checks
