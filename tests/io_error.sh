#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# An error of the disk below reaches the reader, the writer or the caller of a sync, and no other
# task. When the disk works again, so does the device.
. "$(dirname "$0")/lib.sh"

base=$ram_spare

# mapping KIND: prints a table for a disk "lower" of 64 MiB over `base`, a RAM disk: good, failing
# as a whole, or failing in the MiB at 8 MiB.
mapping() {
	local sectors=$((64 << 11)) place
	case $1 in
	good) echo "0 $sectors linear $base 0" && return ;;
	bad) echo "0 $sectors error" && return ;;
	hole) place=error ;;
	unwritable) place="flakey $base 16384 0 3600 1 error_writes" ;;
	esac
	printf '0 16384 linear %s 0\n16384 2048 %s\n18432 %d linear %s 18432\n' "$base" "$place" $((sectors - 18432)) "$base"
}

create() {
	load_brd
	modprobe dm-mod
	mapping "$1" | dmsetup create lower
	wait_for 10 test -b /dev/mapper/lower
}

become() {
	dmsetup suspend --noflush --nolockfs lower
	mapping "$1" | dmsetup load lower
	dmsetup resume lower
}

read_at() { dd if="$1" of=/dev/null bs=64k count=1 skip=$(($2 / 65536)) iflag=direct status=none; }
write_at() { dd if=/dev/urandom of="$1" bs=64k count=1 seek=$(($2 / 65536)) oflag=direct conv=notrunc status=none; }
eio='Input/output error'

# bad_place on|off ACCESS...: reads and writes around the bad MiB.
bad_place() {
	local device access
	create hole
	device=$(attach --direct-io="$1" /dev/mapper/lower)
	for access in "${@:2}"; do
		$access "$device" $((4 << 20))
		refuse "$eio" "$access" "$device" $(((8 << 20) + 65536))
		$access "$device" $((9 << 20))
	done
	# One read across good and bad sectors.
	refuse "$eio" dd if="$device" of=/dev/null bs=4M skip=1 count=2 iflag=direct status=none
}

# A buffered write succeeds and fails later, in its writeback; fsync reports the error.
late_error() {
	local device
	create good
	device=$(attach --direct-io=off /dev/mapper/lower)
	write_at "$device" 0
	sync "$device"
	become bad
	write_at "$device" $((1 << 20)) || :
	refuse "$eio" sync "$device"
	become good
	write_at "$device" $((2 << 20))
	sync "$device"
}

# A failed writeback is reported to the next sync of the device, although the file was synced
# since, which reported the error, too.
lost_write() {
	local device
	create good
	device=$(attach --direct-io=off /dev/mapper/lower)
	udevadm settle
	write_at "$device" 0
	become bad
	blockdev --flushbufs /dev/mapper/lower || :
	become good
	losetup --direct-io=on "$device" || :
	refuse "$eio" sync "$device"
	sync "$device"
}

# No sync has reported yet that data written before the attach is not on the disk.
lost_before() {
	local device held
	create good
	exec {held}<>/dev/mapper/lower
	dd if=/dev/urandom of=/dev/mapper/lower bs=64k count=1 conv=notrunc status=none
	become bad
	# sync() instead of fsync(), because it reports no error.
	sync
	become good
	device=$(attach --direct-io=off /dev/mapper/lower)
	refuse "$eio" sync "$device"
	sync "$device"
	exec {held}>&-
}

# Each durable write to the bad MiB fails, although the file reports a failed writeback only once:
# to one of them, or to a flush.
durable_write() {
	create hole
	all_writes_fail "$(attach --direct-io=off /dev/mapper/lower)" --bs=4k --sync=dsync --numjobs=4
}

# The same for writes of parts of the blocks of direct I/O, which go through the page cache.
write_in_part() {
	local device
	load_brd
	base=$(attach --direct-io=on --sector-size 4096 "$ram_spare")
	create unwritable
	device=$(attach --direct-io=on /dev/mapper/lower)
	equal dio "$(attribute "$device" loop/dio)" 1
	all_writes_fail "$device" --bs=512 --numjobs=4
	detach "$device"
	dmsetup remove --retry lower
	detach "$base"
}

# all_writes_fail DEVICE ARGUMENT...: fio's writes to the bad MiB must all fail, while other jobs
# flush and read the device.
all_writes_fail() {
	fio --filename="$1" --ioengine=sync --direct=1 --rw=randwrite --size=1m --time_based --runtime=5 \
		--continue_on_error=all --output-format=json --output="$scratch/fio" --group_reporting \
		--name=lost --offset=8m "${@:2}" --name=flushes --new_group --bs=4k --offset=0 --fsync=1 \
		--name=reads --new_group --rw=randread --bs=4k --offset=1m --fsync=0 || :
	python3 - "$scratch/fio" <<-'EOT'
		import json, sys
		with open(sys.argv[1]) as file:
		    result = json.load(file)
		writes = next(job["write"] for job in result["jobs"] if job["jobname"] == "lost")
		reads = next(job for job in result["jobs"] if job["jobname"] == "reads")
		print(writes["io_bytes"], "bytes of", writes["total_ios"], "writes were acknowledged")
		print(reads["total_err"], "of", reads["read"]["total_ios"], "reads failed")
		sys.exit(writes["io_bytes"] != 0 or writes["total_ios"] < 20 or reads["total_err"] != 0)
	EOT
}

# A buffered write of another program to the image is lost, and no opener has synced the image
# since. A durable write of a file system on the device must not mark the error as seen for later
# openers.
hidden_by_durable_write() {
	local base device image block sector
	load_brd
	modprobe dm-mod
	# On a disk with FUA, a durable write needs no sync of the image.
	base=$(attach --direct-io=on "$ram_xfs")
	dmsetup create lower --table "0 $((ram_mib << 11)) linear $base 0"
	wait_for 10 test -b /dev/mapper/lower
	mkfs.xfs -q -f -K /dev/mapper/lower
	mkdir "$mnt/outer" "$mnt/inner"
	mount /dev/mapper/lower "$mnt/outer"
	image=$mnt/outer/image
	dd if=/dev/zero of="$image" bs=1M count=40 conv=fsync status=none
	device=$(attach --direct-io=on "$image")
	udevadm settle
	equal FUA "$(attribute "$device" queue/fua)" 1
	mkfs.ext4 -q -b 4096 -E lazy_itable_init=0 "$device" 32M
	mount -o noinit_itable "$device" "$mnt/inner"
	dd if=/dev/urandom of="$mnt/inner/file" bs=64k count=4 conv=fsync status=none
	sync -f "$mnt/inner"
	# The block of the image at 36 MiB, behind the inner file system, becomes unwritable.
	block=$(filefrag -v -b4096 "$image" | awk '$1 ~ /^[0-9]+:$/ && $2 + 0 <= 9216 && $3 + 0 >= 9216 { print $4 + 9216 - $2 }')
	sector=$((block * 8))
	dmsetup suspend --nolockfs lower
	printf '0 %d linear %s 0\n%d 8 error\n%d %d linear %s %d\n' "$sector" "$base" "$sector" $((sector + 8)) \
		$(((ram_mib << 11) - sector - 8)) "$base" $((sector + 8)) | dmsetup load lower
	dmsetup resume lower
	python3 - "$image" "$mnt/inner/file" <<-'EOT'
		import ctypes, mmap, os, sys, time
		image, inner = sys.argv[1:]
		fd = os.open(image, os.O_RDWR)
		os.pwrite(fd, b"x" * 4096, 36 << 20)
		# SYNC_FILE_RANGE_WRITE: the caller does not wait, so it gets no error.
		ctypes.CDLL(None).sync_file_range(fd, ctypes.c_long(36 << 20), ctypes.c_long(4096), 2)
		time.sleep(1)
		memory = mmap.mmap(-1, 4096)
		# The first direct write to the image finds AS_EIO, which is reported once,
		# separately from errseq_t.
		first = os.open(inner, os.O_RDWR | os.O_DIRECT)
		try:
		    os.pwrite(first, memory, 32 << 10)
		except OSError as error:
		    print("the first write:", error)
		user = os.open(inner, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
		for turn in range(8):
		    assert os.pwrite(user, memory, turn << 12) == 4096
		os.close(fd)
		late = os.open(image, os.O_RDWR)
		try:
		    os.fsync(late)
		except OSError:
		    sys.exit(0)
		sys.exit("a later opener of the image gets no error for the lost write")
	EOT
	umount "$mnt/inner"
	detach "$device"
	wait_for 10 umount "$mnt/outer"
	dmsetup remove --retry lower
	detach "$base"
}

recovers() {
	local device
	create good
	device=$(attach --direct-io="$1" /dev/mapper/lower)
	write_at "$device" 0
	become bad
	refuse "$eio" dd if="$device" of=/dev/null bs=1M skip=16 count=16 iflag=direct status=none
	become good
	fio --name=recovers --filename="$device" --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite \
		--bs=64k --size=16m "${verified[@]}" --output-format=terse
	detach "$device"
}

# The disk fails under deep queues: each job ends with EIO, and none hangs.
under_load() {
	local device job
	create good
	device=$(attach --direct-io=on /dev/mapper/lower)
	timeout 60 fio --name=load --filename="$device" --ioengine=libaio --direct=1 --iodepth=64 --rw=randrw \
		--bs=4k --size=64m --time_based --runtime=30 --numjobs=2 --output-format=terse >"$scratch/fio" 2>&1 &
	job=$!
	sleep 1.5
	become bad
	! wait "$job" || fail "fio met no error"
	grep -q "$eio" "$scratch/fio" || fail "fio said: $(<"$scratch/fio")"
	become good
	write_at "$device" 0
	read_at "$device" 0
}

# The disk of the image's file system fails.
file_on_bad_disk() {
	local image device
	create good
	mkfs.ext4 -q -b 4096 -O ^has_journal /dev/mapper/lower
	mount -o errors=continue /dev/mapper/lower "$mnt"
	image=$mnt/image
	dd if=/dev/urandom of="$image" bs=1M count=16 conv=fsync status=none
	device=$(attach --direct-io=on "$image")
	read_at "$device" 0
	become bad
	refuse "$eio" read_at "$device" $((4 << 20))
	refuse "$eio" write_at "$device" $((8 << 20))
	become good
	write_at "$device" $((8 << 20))
	cmp "$device" "$image"
}

# The disk is suspended for a while: the device waits, and continues.
suspended() {
	local device job
	create good
	device=$(attach --direct-io=on /dev/mapper/lower)
	dmsetup suspend --noflush lower
	write_at "$device" 0 &
	job=$!
	sleep 0.5
	kill -0 "$job" || fail "the write ended while its disk was suspended"
	dmsetup resume lower
	wait "$job"
}

check "a bad place, direct" bad_place on read_at write_at
check "a bad place, buffered" bad_place off read_at
check "an error of writeback reaches fsync" late_error
check_better 'the C driver syncs the file, and drops the error' 'a switch to direct I/O keeps the error of a lost write' lost_write
check_better 'the C driver syncs the file at attach, and drops the error' 'a write lost before the attach is reported' lost_before
check_better 'the C driver has no durable writes, and only one flush reports a failure' 'every lost durable write fails' durable_write
check_better 'the C driver has no direct I/O then' 'a lost write of part of a block of direct I/O fails' write_in_part
check_better 'the C driver has no durable writes' 'a durable write does not hide a lost write from the next opener' \
	hidden_by_durable_write
check "a disk that fails and comes back, direct" recovers on
check "a disk that fails and comes back, buffered" recovers off
check "a disk that fails under deep queues" under_load
check "a disk that fails under the image's file system" file_on_bad_disk
check "a disk that is suspended for a while" suspended
run_checks
