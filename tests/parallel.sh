#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Concurrency: many jobs on one device, devices side by side, schedulers and queue sizes that change
# under I/O, the device's page cache beside direct I/O.
. "$(dirname "$0")/lib.sh"

verify() {
	fio --direct=1 "${verified[@]}" --output-format=terse \
		--group_reporting "$@"
}

jobs_on_one() {
	local device
	device=$(attach --direct-io="$2" --sizelimit 32M "$(backing "$1" 32)")
	verify --filename="$device" --bs=4k --size=4m --rw=randwrite \
		--name=libaio --ioengine=libaio --iodepth=64 --offset=24m \
		--name=libaio2 --ioengine=libaio --iodepth=64 --offset=4m \
		--name=uring --ioengine=io_uring --iodepth=64 --offset=8m \
		--name=psync --ioengine=psync --size=1m --offset=12m \
		--name=large --ioengine=libaio --iodepth=8 --bs=512k --offset=16m \
		--name=cached --ioengine=psync --direct=0 --offset=20m
}

devices_side_by_side() {
	local number kind jobs=() device
	for number in {0..5}; do
		kind=$(printf '%s\n' ext4 xfs tmpfs | sed -n "$((number % 3 + 1))p")
		device=$(attach --direct-io="$([[ $((number % 2)) == 0 ]] && echo on || echo off)" \
			"$(backing "$kind" 8 "image$number")")
		jobs+=(--name="job$number" --filename="$device")
	done
	verify --ioengine=libaio --iodepth=32 --bs=16k --size=8m --rw=randwrite "${jobs[@]}"
	for number in {0..5}; do
		device=/dev/loop$number
		cmp "$device" "$(attribute "$device" loop/backing_file)"
	done
}

# The settings of a queue change while it has I/O.
changing_queue() {
	local device queue job scheduler changes=0
	modprobe -a mq-deadline bfq kyber-iosched 2>/dev/null || :
	device=$(attach --direct-io="$1" "$(backing ext4 16)")
	queue=/sys/block/${device#/dev/}/queue
	verify --name=change --filename="$device" --ioengine=libaio --iodepth=32 --bs=4k --size=16m \
		--rw=randwrite --loops=2 &
	job=$!
	while kill -0 "$job" 2>/dev/null; do
		for scheduler in $(tr -d '[]' <"$queue/scheduler"); do
			echo "$scheduler" >"$queue/scheduler"
			echo $((16 + changes % 3 * 32)) >"$queue/nr_requests"
			changes=$((changes + 1))
		done
	done
	wait "$job"
	((changes >= 4)) || fail "only $changes changes during the I/O"
	equal 'nr of schedulers' "$(tr -d '[]' <"$queue/scheduler" | wc -w)" 4
}

cgroups() {
	local device group number jobs=() job
	device=$(attach --direct-io=on "$(backing ext4 16)")
	for number in {0..3}; do
		group=/sys/fs/cgroup/test$number
		mkdir -p "$group"
		# shellcheck disable=SC2016
		bash -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' - "$group" \
			fio --name="group$number" --filename="$device" --ioengine=libaio --iodepth=16 --direct=1 \
			--bs=4k --size=4m --offset="$((number * 4))m" --rw=randwrite \
			"${verified[@]}" --output-format=terse &
		jobs+=($!)
	done
	for job in "${jobs[@]}"; do wait "$job"; done
	for number in {0..3}; do
		rmdir "/sys/fs/cgroup/test$number"
	done
}

for kind in ext4 tmpfs block; do
	check "many jobs on one device: $kind, direct" jobs_on_one $kind on
done
check "many jobs on one device: XFS, buffered" jobs_on_one xfs off
check "six devices side by side" devices_side_by_side
check "schedulers and nr_requests change under I/O, direct" changing_queue on
check "schedulers and nr_requests change under I/O, buffered" changing_queue off
check "four cgroups" cgroups
run_checks
