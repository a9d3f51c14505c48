#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Requests take the right route to the file: in the context of the submitter where that makes no
# difference, by a worker everywhere else. Tracing shows the submitter of bios to the disk below:
# the event block_bio_queue names the task. Probes on read functions show requests that bypass them.
. "$(dirname "$0")/lib.sh"

[[ $driver == rnull_loop ]] || skip_all "the C driver has only one route, by its workers"
mount_tracing
count=16 writes=128 mib=16

# bound FILE on|off: attaches FILE, sets `device`, and waits until udev has read it.
bound() {
	device=$(attach --direct-io="$2" "$1")
	equal dio "$(attribute "$device" loop/dio)" "$([[ $2 == on ]] && echo 1 || echo 0)"
	udevadm settle
}

# written KIND: makes a file with allocated blocks in a file system; its times are so old that reads
# do not change them.
written() {
	local file
	file=$(backing "$1" "$mib")
	noise "$file" "$mib"
	sleep 0.1
	echo "$file"
}

# on_file KIND [on|off]: sets `lower`, `file` and `device`, and reads the device: the file system
# has cached the mapping of the blocks, and requests that would have blocked were retried.
on_file() {
	file=$(written "$1")
	declare -n disk=ram_$1
	lower=$disk
	bound "$file" "${2-on}"
	warm "$device"
}

on_block() {
	lower=$(backing block)
	bound "$lower" on
	warm "$device"
}

warm() { for _ in 1 2; do dd if="$1" of=/dev/null bs=4k count=128 iflag=direct status=none; done; }

off() { echo 0 >"/sys/block/${device#/dev/}/rnull_loop/$1"; }

# traced COMMAND...: runs COMMAND, and sets `trace` to the events.
traced() {
	udevadm settle
	: >"$tracing/trace"
	"$@"
	trace=$(<"$tracing/trace")
}

# submitted R|W SECTORS COMMAND...: counts the bios of that size to `lower`: those by workers in
# `workers`, and those by other tasks in `own`.
submitted() {
	local event=$tracing/events/block/block_bio_queue/enable
	echo 1 >"$event"
	traced "${@:3}"
	echo 0 >"$event"
	read -r own workers < <(awk -v disk="$(sed 's/:/,/' "/sys/block/${lower#/dev/}/dev")" \
		-v op="$1" -v sectors="$2" '
		match($0, /block_bio_queue: .*/) {
			split(substr($0, RSTART), field, " ")
			if (field[2] != disk || field[3] !~ "^" op || field[6] != sectors || /\[(jbd2|xfsaild)\//) next
			if ($0 ~ /\[kworker\/[^]]*\]$/) workers++; else own++
		}
		END { print own + 0, workers + 0 }' <<<"$trace")
	# The trace is not kept, so print the counts.
	echo "$own by the task, $workers by workers: ${*:3}"
}

# reads FILE [BLOCK]
reads() { dd if="$1" of=/dev/null bs=4k count="$count" skip="${2-64}" iflag=direct status=none; }
writes() { dd if="$scratch/data" of="$1" bs=4k count="$writes" seek=512 oflag=direct conv=notrunc status=none; }

by_task() { equal 'bios by the task and by workers' "$own $workers" "$count 0"; }
# A file system on the device may read other blocks as well.
by_workers() { ((own == 0 && workers >= count)) || fail "bios by the task: $own, by workers: $workers"; }

# A write that changes the time of the file, as happens every few milliseconds, is deferred to a
# worker, and so are a few after it. The disk of a file system gets other writes as well.
write_by_task() {
	((own + workers >= writes)) || fail "bios by the task: $own, by workers: $workers"
	((own >= 4)) || [[ -z $slow ]] || skip "on this kernel every write changes the file's time"
	((own >= 4)) || fail "bios by the task: $own, by workers: $workers"
}
# write_by_workers NUMBER
write_by_workers() { ((own == 0 && workers >= $1)) || fail "bios by the task: $own, by workers: $workers"; }

raw_reads() {
	on_file "$1"
	submitted R 8 reads "$device"
	by_task
}

# without TUNABLE KIND: reads of the raw device with one tunable off.
without() {
	if [[ $2 == block ]]; then on_block; else on_file "$2"; fi
	submitted R 8 reads "$device"
	by_task
	off "$1"
	submitted R 8 reads "$device"
	by_workers
	echo 1 >"/sys/block/${device#/dev/}/rnull_loop/$1"
	submitted R 8 reads "$device"
	by_task
}

# batch SIZE [OP [ROUNDS]]: submits requests in one plug, with gaps so that they do not merge.
batch() {
	fio --name=batch --filename="$device" --ioengine=libaio --direct=1 --iodepth="$count" --iodepth_batch="$count" \
		--iodepth_low=1 --iodepth_batch_complete_min="$count" --rw="${2-read}:48k" --bs="$1" --offset=0 --io_size=$((${3-1} * count * ${1%k}))k --size=16m \
		--output-format=terse >/dev/null
}

# The flush of a plug may be for a request that is on no list yet, so it must not enter a file
# system.
batches() {
	on_file ext4
	submitted R 8 batch 4k
	by_workers
	submitted R 32 batch 16k
	by_workers
	noise "$scratch/data" 1
	writes "$device"
	writes "$device"
	submitted W 8 batch 4k write 8
	write_by_workers $((count * 8))
}

# The plug also holds requests of another device, which must not wait for this one's.
batches_for_two() {
	local other
	on_file ext4
	other=$(attach --direct-io=on "$(written xfs)")
	warm "$other"
	submitted R 8 fio --name=two --filename="$device:$other" --file_service_type=roundrobin:1 --ioengine=libaio \
		--direct=1 --iodepth="$count" --iodepth_batch="$count" --iodepth_low=1 \
		--iodepth_batch_complete_min="$count" --rw=read:48k --bs=4k --io_size=$((count * 8))k --size=16m \
		--output=/dev/null
	((own == 0 && workers == count)) || fail "bios by the task: $own, by workers: $workers"
	detach "$other"
}

batches_to_block_device() {
	on_block
	submitted R 32 batch 16k
	by_task
	submitted W 32 batch 16k write
	by_task
}

# Makes a file system with a file on the device.
inner() {
	# Keeps the blocks of the image allocated.
	mkfs.ext4 -q -F -E nodiscard "$device"
	mkdir -p "$mnt/inner"
	# Without the reads of ext4lazyinit.
	mount -o noinit_itable,no_prefetch_block_bitmaps "$device" "$mnt/inner"
	noise "$mnt/inner/file" 4
}

mounted_on_file() {
	on_file ext4
	inner
	warm "$mnt/inner/file"
	submitted R 8 reads "$mnt/inner/file"
	by_workers
	# Reads of the device itself as well: behind the inode tables, which may be holes.
	submitted R 8 reads "$device" 3000
	by_workers
	umount "$mnt/inner"
	reads "$device" 3000
	submitted R 8 reads "$device" 3000
	by_task
}

# Bios enter no file system, so any task may submit.
mounted_on_block_device() {
	on_block
	inner
	submitted R 8 reads "$mnt/inner/file"
	equal 'bios' $((own + workers)) "$count"
	probes blkdev_read_iter
	calls blkdev_read_iter reads "$mnt/inner/file"
	equal 'reads of the block device as a file' "$own $workers" '0 0'
	off remap
	calls blkdev_read_iter reads "$mnt/inner/file"
	equal 'reads of the block device as a file' "$own $workers" "0 $count"
	umount "$mnt/inner"
}

# probes FUNCTION
probes() {
	echo "p:$1 $1" >>"$tracing/kprobe_events"
	# shellcheck disable=SC2064  # as it is now
	trap "echo 0 >'$tracing/events/kprobes/$1/enable'; echo '-:$1' >>'$tracing/kprobe_events'" EXIT
}

# calls FUNCTION COMMAND...: counts the calls by workers in `workers`, and by the task in `own`.
calls() {
	local event=$tracing/events/kprobes/$1/enable
	echo 1 >"$event"
	traced "${@:2}"
	echo 0 >"$event"
	workers=$(grep -c "^ *kworker/.* $1: " <<<"$trace") || :
	own=$(grep -c "^ *dd-.* $1: " <<<"$trace") || :
	echo "$1: $own by the task, $workers by workers: ${*:2}"
}

# A read of the loop device is itself a read of a block device as a file. A read of the backing
# device is another one, unless the request is remapped to a bio.
remapped() {
	on_block
	probes blkdev_read_iter
	calls blkdev_read_iter reads "$device"
	equal 'remapped' "$own $workers" "$count 0"
	off inline
	calls blkdev_read_iter reads "$device"
	equal 'remapped by workers' "$own $workers" "$count 0"
	submitted R 8 reads "$device"
	by_workers
	off remap
	calls blkdev_read_iter reads "$device"
	equal 'as a file, by workers' "$own $workers" "$count $count"
}

# A block device with pages in its page cache must be read through it.
cached_block_device() {
	on_block
	probes blkdev_read_iter
	dd if=/dev/zero of="$lower" bs=4k count=64 seek=64 conv=notrunc status=none
	calls blkdev_read_iter reads "$device"
	# Some are read twice: dirty pages are written back first, by a worker that may block.
	((own + workers >= 2 * count)) || fail "$own and $workers calls, wanted $((2 * count)) together"
	dd if="$device" bs=4k skip=64 count=64 iflag=direct status=none | cmp -n $((64 << 12)) - /dev/zero
}

buffered() {
	on_file ext4 off
	cat "$file" >/dev/null
	warm "$device"
	probes ext4_file_read_iter
	calls ext4_file_read_iter reads "$device"
	equal 'reads of what is cached' "$own $workers" "$count 0"
	off inline
	calls ext4_file_read_iter reads "$device"
	equal 'reads of what is cached, by workers' "$own $workers" "0 $count"
	echo 1 >"/sys/block/${device#/dev/}/rnull_loop/inline"
	off nowait
	calls ext4_file_read_iter reads "$device"
	equal 'reads of what is cached, by workers' "$own $workers" "0 $count"
}

# Uncached data is read by a worker that may block.
buffered_from_disk() {
	on_file ext4 off
	sync
	echo 3 >/proc/sys/vm/drop_caches
	local event=$tracing/events/block/block_bio_queue/enable
	echo 1 >"$event"
	traced reads "$device"
	echo 0 >"$event"
	! grep -q "block_bio_queue: $(sed 's/:/,/' "/sys/block/${lower#/dev/}/dev") R.*\[dd\]" <<<"$trace" ||
		fail "the reader submitted to the disk: $trace"
	grep -q "block_bio_queue: $(sed 's/:/,/' "/sys/block/${lower#/dev/}/dev") R.*\[kworker" <<<"$trace"
}

# hold NODE: opens NODE exclusively until release_holder.
hold() {
	coproc HOLDER {
		python3 -c 'import os, sys
os.open(sys.argv[1], os.O_RDWR | os.O_EXCL)
print("held", flush=True)
sys.stdin.read()' "$1"
	}
	local line
	read -r -t 30 -u "${HOLDER[0]}" line
	equal holder "$line" held
}

release_holder() {
	local holder=$HOLDER_PID input=${HOLDER[1]}
	exec {input}>&-
	wait "$holder"
}

held() {
	on_file ext4
	hold "$device"
	submitted R 8 reads "$device"
	by_workers
	release_holder
	warm "$device"
	submitted R 8 reads "$device"
	by_task
}

# The opener of a partition holds a part of the device.
held_partition() {
	file=$(written ext4)
	lower=$ram_ext4
	sfdisk -q "$file" <<<'2048,16384'
	device=$(attach --direct-io=on --partscan "$file")
	udevadm settle
	warm "$device"
	submitted R 8 reads "$device"
	by_task
	hold "${device}p1"
	submitted R 8 reads "$device"
	by_workers
	release_holder
}

# Writes the device by its submitter: after the first write an inode is known to have no privileges
# to drop.
written_by_task() {
	on_file ext4
	noise "$scratch/data" 1
	writes "$device"
	writes "$device"
	submitted W 8 writes "$device"
	write_by_task
}

writing() {
	written_by_task
	off "$1"
	submitted W 8 writes "$device"
	write_by_workers "$writes"
	arrived
}

arrived() {
	detach "$device"
	echo "The written data in the image:"
	dd if="$file" bs=4k skip=512 count="$writes" iflag=direct status=none | cmp -n $((writes << 12)) - "$scratch/data"
}

limited() { prlimit --fsize=1048576 dd if="$scratch/data" of="$1" bs=4k count="$writes" seek=512 oflag=direct conv=notrunc status=none; }

# The limit on the size of files does not apply to the device. Beyond it the file system would fail
# the write of the submitter, and send it a signal.
limit() {
	on_file "$1"
	noise "$scratch/data" 1
	writes "$device"
	writes "$device"
	submitted W 8 writes "$device"
	write_by_task
	noise "$scratch/data" 1
	submitted W 8 limited "$device"
	write_by_workers "$writes"
	arrived
}

# A write drops the privileges of a file (set-user-ID), unless its writer is privileged, as workers
# are.
privileged() {
	written_by_task
	chmod 4755 "$file"
	submitted W 8 setpriv --reuid=nobody --regid=nogroup --groups="$(stat -c %g "$device")" \
		dd if="$scratch/data" of="$device" bs=4k count="$writes" seek=512 oflag=direct conv=notrunc status=none
	write_by_workers "$writes"
	equal 'mode of the image' "$(stat -c %a "$file")" 4755
	arrived
}

# accounted KIND READ-OR-WRITE [TUNABLE]: transferred bytes are counted once, in the submitter's
# context or not.
accounted() {
	if [[ $1 == block ]]; then on_block; else on_file "$1"; fi
	[[ -z ${3-} ]] || off "$3"
	python3 - "$device" "$2" <<'PYTHON'
import mmap, os, sys
device, what = sys.argv[1:]
fd = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 65536)
def counted():
    with open("/proc/self/io", encoding="ascii") as file:
        return int(dict(line.split(": ") for line in file)[what + "_bytes"])
def move(size, count):
    for number in range(count):
        move_one = os.preadv if what == "read" else os.pwritev
        assert move_one(fd, [memoryview(buffer)[:size]], number * size) == size
move(4096, 8)
before = counted()
move(4096, 64)
move(65536, 16)
got, wanted = counted() - before, 64 * 4096 + 16 * 65536
print(f"{what}: {got} bytes are counted, {wanted} were moved")
sys.exit(got != wanted)
PYTHON
	detach "$device"
}

mkdir -p "$scratch"
for kind in ext4 xfs; do
	check "direct reads of the raw device are submitted by the reader: $kind" raw_reads $kind
done
for kind in ext4 block; do
	check "inline=0: reads are submitted by a worker: $kind" without inline $kind
done
check "nowait=0: reads are submitted by a worker: ext4" without nowait ext4
check "a batch for a file is submitted by workers" batches
check "a plug with other devices' requests defers them to workers" batches_for_two
check "a batch for a block device is submitted at once" batches_to_block_device
check "I/O of a file system on the device is submitted by a worker" mounted_on_file
check "I/O of a file system on the device is remapped to a block device" mounted_on_block_device
check "requests for a block device are remapped, with remap=0 it is read as a file" remapped
check "a block device in the page cache is read as a file" cached_block_device
check "buffered reads of cached data are done by the reader" buffered
check "buffered reads of uncached data are deferred to a worker" buffered_from_disk
check "an exclusive opener of the device keeps submitters out of the file system" held
check "an exclusive opener of a partition keeps submitters out of the file system" held_partition
check "direct writes in place are submitted by the writer, with inline=0 by workers" writing inline
check "direct writes in place are submitted by the writer, with nowait=0 by workers" writing nowait
for kind in ext4 xfs; do
	check "a limit on the size of files does not apply to writes to the device: $kind" limit $kind
done
check "a set-user-ID file keeps its mode, because a worker writes it" privileged
for what in read write; do
	check "transferred bytes are counted once: $what, ext4" accounted ext4 $what
	check "transferred bytes are counted once: $what, a block device" accounted block $what
	check "transferred bytes are counted once: $what, a block device as a file" accounted block $what remap
	check "transferred bytes are counted once: $what, ext4 by workers" accounted ext4 $what inline
done
run_checks
