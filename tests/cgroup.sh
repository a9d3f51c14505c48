#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# I/O through a loop device is charged to the cgroup of the submitter: the I/O to the disk below,
# and the pages of the image's page cache. Direct I/O keeps the submitter's priority. A throttled
# cgroup delays no other. If the driver's workers did the I/O in their own cgroup, every task could
# escape its limits.
# needs: a scratch disk at /dev/vda
. "$(dirname "$0")/lib.sh"

disk=/dev/vda groups=/sys/fs/cgroup
[[ -b $disk ]] || skip_all "needs a scratch disk at $disk: scripts/vm --disk FILE"
group=$groups/rnull_loop_test

# Makes an image on a file system on the disk, with all blocks allocated. The file system is mounted
# again, because the writeback of an inode is charged to the cgroup that dirtied it first.
image_on_disk() {
	local outer=$mnt/outer
	mkdir -p "$outer"
	mkfs.ext4 -q -F -E lazy_itable_init=0,nodiscard "$disk"
	mount "$disk" "$outer"
	fallocate -l 32M "$outer/image"
	noise "$outer/image" 32
	umount "$outer"
	mount "$disk" "$outer"
	echo "$outer/image"
}

# The cgroup and its processes last as long as the case.
make_group() {
	echo "+io +memory" >"$groups/cgroup.subtree_control"
	mkdir "$group"
	trap 'echo 1 >"$group/cgroup.kill"; wait; rmdir "$group"' EXIT
}

# in_group COMMAND...
in_group() {
	# shellcheck disable=SC2016  # expanded by the inner shell
	bash -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' - "$group" "$@"
}

# moved rbytes|wbytes DISK: prints how much the cgroup has read from or written to a disk.
moved() {
	local number
	number=$(<"/sys/block/${2#/dev/}/dev")
	awk -v number="$number" -v key="$1" -F '[ =]' '$1 == number {
		for (i = 2; i < NF; i += 2) if ($i == key) { print $(i + 1); found = 1 } }
		END { if (!found) print 0 }' "$group/io.stat"
}

memory() { awk -v key="$1" '$1 == key { print $2 }' "$group/memory.stat"; }

at_least() { (($2 >= $3)) || fail "$1: $2, wanted $3 at least"; }

# reading on|off: reads, and leaves the device in `device`.
reading() {
	device=$(attach --direct-io="$1" "$(image_on_disk)")
	make_group
	in_group dd if="$device" of=/dev/null iflag=direct bs=64k count=64 status=none
	equal 'read from the device' "$(moved rbytes "$device")" $((64 << 16))
	at_least 'read from the disk' "$(moved rbytes "$disk")" $((64 << 16))
}

direct() {
	local device
	reading on
	in_group dd if=/dev/zero of="$device" oflag=direct bs=64k count=128 conv=fsync status=none
	equal 'written to the device' "$(moved wbytes "$device")" $((128 << 16))
	at_least 'written to the disk' "$(moved wbytes "$disk")" $((128 << 16))
	detach "$device"
}

# Writes are not checked here: the file system charges their writeback to the cgroup that changed
# the inode's times first, which is that of the worker.
buffered() {
	local device
	reading off
	detach "$device"
}

written_back() {
	sync
	(($(moved wbytes "$disk") >= 128 << 16))
}

cache() {
	local device
	device=$(attach --direct-io=off "$(image_on_disk)")
	make_group
	in_group dd if="$device" of=/dev/null iflag=direct bs=64k count=128 status=none
	at_least 'cache of the group' "$(memory file)" $((128 << 16))
	detach "$device"
}

# The writeback of a file system on the device is charged to the writer, too.
file_system() {
	local device
	device=$(attach --direct-io=on "$(image_on_disk)")
	mkfs.ext4 -q "$device"
	mkdir "$mnt/inner"
	mount "$device" "$mnt/inner"
	make_group
	in_group dd if=/dev/zero of="$mnt/inner/file" bs=64k count=128 status=none
	wait_for 30 written_back || fail "written to the disk: $(moved wbytes "$disk")"
	umount "$mnt/inner"
	detach "$device"
}

# priority CLASS LEVEL SHOWN: direct I/O keeps its priority in the disk's requests.
priority() {
	local device traced
	device=$(attach --direct-io=on "$(image_on_disk)")
	mount_tracing
	: >"$tracing/trace"
	echo 1 >"$tracing/events/block/block_rq_issue/enable"
	ionice -c "$1" -n "$2" dd if="$device" of=/dev/null iflag=direct bs=4k count=16 status=none
	echo 0 >"$tracing/events/block/block_rq_issue/enable"
	traced=$(awk -v disk="$(sed 's/:/,/' /sys/block/vda/dev)" \
		'/block_rq_issue:/ && index($0, "block_rq_issue: " disk " ")' "$tracing/trace")
	equal "requests with $3" "$(grep -c " $3 " <<<"$traced")" 16
	detach "$device"
}

# throttled on|off: a cgroup with a limit on its reads from the disk delays no other.
throttled() {
	local device job number
	number=$(<"/sys/block/${disk#/dev/}/dev")
	device=$(attach --direct-io="$1" "$(image_on_disk)")
	make_group
	echo "$number rbps=65536" >"$group/io.max"
	in_group fio --name=held --filename="$device" --ioengine=libaio --direct=1 --iodepth=16 --rw=read --bs=64k \
		--size=16m --output-format=terse >/dev/null &
	job=$!
	wait_for 10 asked_for_much
	timeout 20 dd if="$device" of=/dev/null iflag=direct bs=64k skip=256 count=256 status=none ||
		fail 'delayed by a throttled cgroup'
	(($(moved rbytes "$disk") <= 32 << 16)) || fail "the cgroup is not throttled: $(moved rbytes "$disk")"
	echo "$number rbps=max" >"$group/io.max"
	wait "$job"
	detach "$device"
}

# read_all [COMMAND...]: reads 64 MiB, by two jobs.
read_all() {
	"$@" fio --name=reads --filename="$device" --ioengine=libaio --direct=1 --iodepth=32 --iodepth_batch=8 \
		--rw=randread --bs=4k --size=32m --numjobs=2 --group_reporting --output-format=terse >/dev/null
}

# With an I/O scheduler, a task dispatches requests of other tasks, too: they are not charged to it.
scheduled() {
	local device job below
	device=$(attach --direct-io=on "$(image_on_disk)")
	udevadm settle
	echo mq-deadline >"/sys/block/${device#/dev/}/queue/scheduler"
	echo 8 >"/sys/block/${device#/dev/}/queue/nr_requests"
	# From here on, the mapping of the file's blocks is cached.
	read_all
	make_group
	read_all &
	job=$!
	read_all in_group
	wait "$job"
	below=$(moved rbytes "$disk")
	at_least 'read from the device' "$(moved rbytes "$device")" $((64 << 20))
	equal 'read from the disk' "$below" "$(moved rbytes "$device")"
	detach "$device"
}

asked_for_much() { (($(moved rbytes "$device") >= 16 << 16)); }

check "direct I/O is charged to its cgroup" direct
check "I/O that fills the image's page cache is charged to its cgroup" buffered
check "the image's page cache is charged to the cgroup that fills it" cache
check "writeback of a file system on the device is charged to its cgroup" file_system
for direct in on off; do
	check "a throttled cgroup delays no other, direct I/O $direct" throttled $direct
done
check "requests that another task dispatches for an I/O scheduler are charged to their cgroup" scheduled
check "direct I/O keeps a priority of the real-time class" priority 1 3 rt,0,3
check "direct I/O keeps a priority of the best-effort class" priority 2 7 be,0,7
run_checks
