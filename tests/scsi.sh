#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# SCSI disks below: blocks of 4096 bytes, short transfers, bad sectors, checksums of written data,
# zones, and hot removal. A disk that verifies checksums refuses a write whose memory changed in
# flight, and the data is lost.
. "$(dirname "$0")/lib.sh"

# disk PARAMETER...: sets `disk`, of 64 MiB, which is removed at the end of the case.
disk() {
	modprobe scsi_debug dev_size_mb=64 delay=0 "$@" || skip 'there is no scsi_debug'
	trap end_disk EXIT
	wait_for 20 find_disk || fail 'the disk does not appear'
	udevadm settle
}

end_disk() {
	unmount_below "$mnt"
	losetup -D
	wait_for 20 rmmod scsi_debug
}

find_disk() {
	local found
	found=$(compgen -G '/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*') &&
		disk=/dev/${found##*/} && [[ -b $disk ]]
}

set_disk() { echo "$2" >"/sys/bus/pseudo/drivers/scsi_debug/$1"; }

# over disk|ext4 on|off: sets `file`, on the disk, and `device`, which is attached to it.
over() {
	file=$disk
	if [[ $1 != disk ]]; then
		mkdir -p "$mnt/outer"
		mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,nodiscard "$disk"
		mount "$disk" "$mnt/outer"
		file=$mnt/outer/image
		truncate -s 40M "$file"
	fi
	device=$(attach --direct-io="$2" "$file")
	equal dio "$(attribute "$device" loop/dio)" "$([[ $2 == on ]] && echo 1 || echo 0)"
}

load() {
	verified_writes "$device" --size=16m --loops="$rounds" --fsync=32
	count bytes_verified $((rounds * 16 << 20))
}

# loaded KIND PARAMETER...
loaded() {
	disk "${@:2}"
	over "$1" on
	load
	detach "$device"
}

# cut_short KIND: the disk transfers only half of every third request.
cut_short() {
	disk
	over "$1" on
	set_disk opts 0x100
	set_disk every_nth 3
	load
	set_disk every_nth 0
	detach "$device"
}

read_at() { dd if="$device" of=/dev/null bs=512 skip="$1" count="$2" iflag=direct status=none; }

# bad_place MESSAGE on|off: ten sectors from 4660 on cannot be read.
bad_place() {
	disk
	over disk "$2"
	noise "$device" 8
	set_disk opts 2
	echo 3 >/proc/sys/vm/drop_caches
	refuse "$1" read_at 4660 1
	refuse "$1" dd if="$device" of=/dev/null bs=1M skip=2 count=1 iflag=direct status=none
	read_at 4096 504
	read_at 4736 2048
	set_disk opts 0
	read_at 4660 1
}

# changing_pages KIND device|file: mapped pages of the device, or of a file system on it, change
# while they are written to a disk that takes one request at a time and verifies checksums.
changing_pages() {
	local changing
	disk dif=1 dix=1 max_queue=1 delay=1
	over "$1" on
	equal checksums "$(attribute "$disk" integrity/format)" T10-DIF-TYPE1-CRC
	changing=$device
	if [[ $2 == file ]]; then
		mkfs.ext4 -q -b 4096 "$device"
		mkdir "$mnt/inner"
		mount "$device" "$mnt/inner"
		changing=$mnt/inner/file
	fi
	python3 - "$changing" <<-'EOT'
		import mmap, os, sys, threading, time
		fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
		os.write(fd, bytes(1 << 20))
		os.fsync(fd)
		memory = mmap.mmap(fd, 1 << 20)
		end = time.monotonic() + 5
		def change():
		    turn = 0
		    while time.monotonic() < end:
		        turn += 1
		        for page in range(256):
		            memory[page << 12 : (page << 12) + 8] = turn.to_bytes(8, "little")
		changer = threading.Thread(target=change)
		changer.start()
		syncs = 0
		while time.monotonic() < end:
		    os.fsync(fd)
		    syncs += 1
		changer.join()
		os.fsync(fd)
		print(syncs, "times synced")
	EOT
	if [[ $2 == file ]]; then
		umount "$mnt/inner"
		e2fsck -fn "$device"
	fi
	detach "$device"
}

# pulled_out KIND: the disk is removed under deep queues.
pulled_out() {
	local job
	disk
	over "$1" on
	timeout 60 fio --name=load --filename="$device" --ioengine=libaio --direct=1 --iodepth=32 --rw=randrw \
		--bs=4k --size=32m --time_based --runtime=30 --output-format=terse >"$scratch/fio" 2>&1 &
	job=$!
	sleep 1
	echo 1 >"/sys/block/${disk##*/}/device/delete"
	! wait "$job" || fail 'fio met no error'
	refuse 'error reading' read_at 0 8
	detach "$device"
}

# put MIB: writes 1 MiB of random data there, in order, and flushes the device.
put() {
	noise "$scratch/data" 1
	dd if="$scratch/data" of="$device" bs=64k seek=$(($1 * 16)) oflag="$flags" conv=notrunc,fsync status=none
}

# holds MIB: the disk has the data of put there.
holds() { dd if="$disk" bs=1M skip="$1" count=1 iflag=direct status=none | cmp - "$scratch/data"; }

overwrite() { dd if=/dev/zero of="$device" bs=4k seek=$(($1 * 256)) count=1 oflag="$flags" conv=notrunc,fsync status=none; }

# zones on|off: in a zone that must be written in order, other writes fail, and harm no data. The
# first zone, of 8 MiB, may be written in any order.
zones() {
	local flags=direct
	[[ $1 == on ]] || flags=nonblock
	disk zbc=managed zone_size_mb=8 zone_nr_conv=1
	over disk "$1"
	equal zoned "$(attribute "$disk" queue/zoned)" host-managed
	equal zoned "$(attribute "$device" queue/zoned)" none
	put 2
	holds 2
	put 1
	overwrite 1
	put 1
	holds 1
	put 8
	holds 8
	refuse error overwrite 8
	holds 8
	refuse error overwrite 20
	detach "$device"
}

check "blocks of 4096 bytes, seed $seed" loaded disk sector_size=4096
for kind in disk ext4; do
	check "short transfers, $kind, seed $seed" cut_short $kind
	check "checksums, $kind, seed $seed" loaded $kind dif=1 dix=1
	check "checksums of changing pages, a file system on $kind" changing_pages $kind file
	check "a disk removed under load, $kind" pulled_out $kind
done
check "checksums of changing pages, the device on disk" changing_pages disk device
check "zones, direct I/O on" zones on
check "zones, direct I/O off" zones off
check "bad sectors, direct I/O on" bad_place 'No data available' on
check "bad sectors, direct I/O off" bad_place 'Input/output error' off
run_checks
