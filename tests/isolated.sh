#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The I/O of a task on an isolated CPU runs no worker there: the CPU belongs to the task.
. "$(dirname "$0")/lib.sh"

groups=/sys/fs/cgroup group=/sys/fs/cgroup/isolated
(($(nproc) >= 2)) || skip_all "needs two CPUs"
[[ $(<"$groups/cgroup.controllers") == *cpuset* ]] || skip_all "needs cpusets"

# Isolates the last CPU, `cpu`, until the case ends.
isolate() {
	cpu=$(($(nproc) - 1))
	echo +cpuset >"$groups/cgroup.subtree_control"
	mkdir "$group"
	trap 'rmdir "$group"; echo -cpuset >"$groups"/cgroup.subtree_control' EXIT
	echo "$cpu" >"$group/cpuset.cpus"
	echo isolated >"$group/cpuset.cpus.partition"
	equal partition "$(<"$group/cpuset.cpus.partition")" isolated
}

# in_group COMMAND...: runs COMMAND on the isolated CPU.
in_group() {
	# shellcheck disable=SC2016  # expanded by the inner shell
	bash -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' - "$group" "$@"
}

# stays_away COMMAND...: the work of the device is queued, but not on the isolated CPU.
stays_away() {
	local work
	: >"$tracing/trace"
	echo 1 >"$tracing/events/workqueue/workqueue_queue_work/enable"
	in_group "$@"
	echo 0 >"$tracing/events/workqueue/workqueue_queue_work/enable"
	work=$(grep " workqueue=${device#/dev/} " "$tracing/trace")
	! grep -q " cpu=$cpu$" <<<"$work" || fail "$*: on CPU $cpu: $(grep -c " cpu=$cpu$" <<<"$work") of $(wc -l <<<"$work")"
}

isolated() {
	local device cpu
	device=$(attach "$(backing ext4 16)")
	[[ $driver == loop ]] || echo 0 >"/sys/block/${device#/dev/}/rnull_loop/inline"
	udevadm settle
	mount_tracing
	isolate
	stays_away dd if="$device" of=/dev/null iflag=direct bs=4k count=100 status=none
	stays_away dd if=/dev/zero of="$device" oflag=direct,dsync bs=4k count=100 status=none
	stays_away fio --name=load --filename="$device" --ioengine=libaio --direct=1 --iodepth=16 --rw=randrw --bs=4k \
		--size=1m --fsync=16 --output-format=terse
	detach "$device"
}

check "reads, writes and flushes of an isolated CPU run no worker there" isolated
run_checks
