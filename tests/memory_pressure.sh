#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Memory is short while the I/O that would free it goes through loop devices: swap on an image on
# ext4, and dirty pages of a file system on a loop device on a file system on a loop device. A
# driver that allocates memory with I/O for such requests, or waits for tasks that do, deadlocks.
# All I/O completes, and the data is right.
. "$(dirname "$0")/lib.sh"

mib=96 limit=40
# Swapping takes minutes on slow kernels.
[[ -z $slow ]] || mib=64
group=/sys/fs/cgroup/pressure

# limited COMMAND...: runs COMMAND with little memory. With a slow disk the kernel gives up reclaim
# too early and kills a task; a task that must not be killed retries.
limited() {
	(
		echo "$BASHPID" >"$group/cgroup.procs" &&
			echo -1000 >/proc/self/oom_score_adj &&
			exec timeout $((240 * rounds)) "$@"
	) || fail "$1: $(dmesg | tail -n 20; cat "$group/memory.events")"
}

# make_group CONTROLLER...: `+memory`, and `+io` or `-io`; with the I/O controller, memory is
# charged to the cgroup of a request.
make_group() {
	mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
	echo "$@" >/sys/fs/cgroup/cgroup.subtree_control || skip 'there is no memory controller'
	mkdir "$group"
	trap leave_group EXIT
	echo "${limit}M" >"$group/memory.max"
}

leave_group() {
	# Ends the processes of a failed case.
	echo 1 >"$group/cgroup.kill"
	[[ -z ${swap-} ]] || swapoff "$swap"
	wait_for 10 rmdir "$group" 2>/dev/null
}

# make_swap on|off: sets `device` and `swap`.
make_swap() {
	local image
	image=$(backing ext4 $((mib + 32)))
	# Swapping out must not find a full file system.
	fallocate -l "$((mib + 32))M" "$image"
	make_group +memory +io
	device=$(attach --direct-io="$1" "$image")
	mkswap -q "$device" 2>/dev/null || mkswap "$device"
	swapon "$device"
	swap=$device
}

end_swap() {
	swapoff "$swap"
	swap=''
	detach "$device"
}

swapped() { awk '$1 == "pswpout" { print $2 }' /proc/vmstat; }

# swapping on|off: writes more memory than there is, reads it and writes it again in another order.
swapping() {
	local before
	make_swap "$1"
	before=$(swapped)
	limited python3 - "$mib" "$seed" $((2 * rounds)) <<-'EOT'
		import mmap, random, sys
		mib, random_numbers = int(sys.argv[1]), random.Random(int(sys.argv[2]))
		count = mib << 8
		memory = mmap.mmap(-1, count << 12)
		def page(number, turn):
		    return (number << 16 | turn).to_bytes(8, "little") * 512
		for number in range(count):
		    memory[number << 12 : (number + 1) << 12] = page(number, 0)
		order = list(range(0, count, 8))
		for turn in range(1, int(sys.argv[3]) + 1):
		    random_numbers.shuffle(order)
		    for first in order:
		        for number in range(first, min(first + 8, count)):
		            place = slice(number << 12, (number + 1) << 12)
		            if memory[place] != page(number, turn - 1):
		                sys.exit(f"page {number} has other content in turn {turn}")
		            memory[place] = page(number, turn)
	EOT
	(($(swapped) - before > (mib - limit) * 256)) || fail "only $(($(swapped) - before)) pages were swapped out"
	count bytes_verified $((2 * rounds * mib << 20))
	end_swap
}

# uncharged: the page cache of the image for swap-out is not charged to the cgroup that swaps.
uncharged() {
	local job before
	make_swap off
	# Only the requested amount of memory must be swapped out.
	echo max >"$group/memory.max"
	before=$(swapped)
	(
		echo "$BASHPID" >"$group/cgroup.procs"
		exec python3 -c 'import mmap; m = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE); m[:] = bytes([7]) * len(m); input()'
	) < <(sleep 60) &
	job=$!
	wait_for 30 uses anon $((20 << 20)) || fail "the process has no memory: $(<"$group/memory.stat")"
	echo 16M >"$group/memory.reclaim" || :
	# The statistics are updated every two seconds.
	sleep 3
	kill "$job" || fail "the process was killed for lack of memory: $(dmesg | tail -n 20)"
	wait "$job" || :
	(($(swapped) - before > 3072)) || fail "only $(($(swapped) - before)) pages were swapped out"
	! uses file $((4 << 20)) || fail "page cache is charged: $(<"$group/memory.stat")"
	end_swap
}

# uses WHAT BYTES: the cgroup has more than BYTES of WHAT.
uses() { awk -v what="$1" -v bytes="$2" '$1 == what { exit !($2 > bytes) }' "$group/memory.stat"; }

# dirty on|off: writes a file larger than the memory in an image in an image.
dirty() {
	local inner
	# The page cache of three file systems that a cgroup needs is unknown, so it is not charged.
	make_group +memory -io
	mkdir -p "$mnt"/{outer,inner}
	outer=$(backing ext4 $((mib + 96)) outer)
	mkfs.ext4 -q "$outer"
	mount "$(attach --direct-io="$1" "$outer")" "$mnt/outer"
	inner=$mnt/outer/inner
	truncate -s "$((mib + 48))M" "$inner"
	mkfs.ext4 -q "$inner"
	mount "$(attach --direct-io="$1" "$inner")" "$mnt/inner"
	limited fio --name=dirty --filename="$mnt/inner/file" --ioengine=psync --rw=randwrite --bsrange=4k-256k \
		--size="${mib}m" "${verified[@]}" --randseed="$seed" \
		--loops="$rounds" --end_fsync=1 --output-format=terse
	count bytes_verified $((rounds * mib << 20))
	umount "$mnt/inner"
	losetup -D
	wait_for 10 umount "$mnt/outer"
}

# without_io on|off: the task that serves requests, a worker or their submitter, allocates all
# memory without I/O and without file system calls, because reclaim may be waiting for these very
# requests.
without_io() {
	local event=$tracing/events/kmem/mm_page_alloc/enable device image served
	image=$(backing ext4 24)
	device=$(attach --direct-io="$1" "$image")
	udevadm settle
	mount_tracing
	sync
	echo 3 >/proc/sys/vm/drop_caches
	echo 1 >"$tracing/options/stacktrace"
	trap end_tracing EXIT
	echo 32768 >"$tracing/buffer_size_kb"
	: >"$tracing/trace"
	echo 1 >"$event"
	fio --name=load --filename="$device" --ioengine=libaio --direct=1 --iodepth=32 --rw=randrw --bsrange=4k-64k \
		--size=16m --randseed="$seed" --output-format=terse >/dev/null
	echo 0 >"$event"
	# The stack trace of an event follows on the same CPU. Names of the module's functions
	# contain its name.
	served=$(awk '/mm_page_alloc:/ { event[$2] = $0 }
		/<stack trace>/ { cpu = $2 }
		/^ => .*rnull_loop/ && event[cpu] != "" { print event[cpu]; event[cpu] = "" }' \
		<(sed 's/^.*\[\([0-9]*\)\]/- \1/' "$tracing/trace"))
	echo "$(wc -l <<<"$served") allocations"
	(($(wc -l <<<"$served") > 20)) || fail "hardly any allocation: $served"
	# An allocation without direct reclaim needs no such care.
	served=$(grep -v 'gfp_flags=GFP_\(NOWAIT\|ATOMIC\)' <<<"$served" || :)
	! grep -E 'GFP_(NOFS|KERNEL|USER|HIGHUSER|TRANSHUGE)|__GFP_(IO|FS)' <<<"$served" || fail 'these may do I/O'
}

end_tracing() {
	echo 0 >"$tracing/events/enable"
	echo 0 >"$tracing/options/stacktrace"
	# The kernel's default.
	echo 1408 >"$tracing/buffer_size_kb"
}

for direct in on off; do
	[[ $driver != rnull_loop ]] || check "memory for requests is allocated without I/O, direct I/O $direct, seed $seed" without_io $direct
	check "swap of $mib MiB for a cgroup of $limit MiB, direct I/O $direct, seed $seed" swapping $direct
	check "dirty pages in an image in an image, direct I/O $direct, seed $seed" dirty $direct
done
check "page cache for swap-out is not charged to the cgroup that swaps, direct I/O off" uncharged
run_checks
