#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The block layer of the disk below fails requests by rules: in the middle of a long request, of one
# kind, or for lack of memory. The submitter gets the error, the data around is neither lost nor
# changed, and requests that fail only for a while are retried.
. "$(dirname "$0")/lib.sh"

rules=/sys/kernel/debug/block/${ram_spare##*/}/error_injection
# A sector in the second MiB of the device.
middle=3072

# over disk|ext4 on|off: sets `file`, of 8 MiB on the disk, `first`, its first sector on the disk,
# and `device`.
over() {
	local extents
	file=$ram_spare first=0
	if [[ $1 != disk ]]; then
		"mkfs.$1" -q "$ram_spare"
		mount "$ram_spare" "$mnt"
		file=$mnt/image
	fi
	noise "$scratch/data" 8
	cp "$scratch/data" "$scratch/wanted"
	dd if="$scratch/data" of="$file" bs=8M conv=notrunc,fsync status=none
	if [[ $1 != disk ]]; then
		extents=$(filefrag -e -b512 "$file")
		[[ $extents == *': 1 extent found' ]] || fail "the file is fragmented: $extents"
		first=$(awk '$1 == "0:" { print $4 + 0 }' <<<"$extents")
	fi
	trap heal EXIT
	device=$(attach --direct-io="$2" "$file")
}

# fail_requests OP STATUS START SECTORS [RULE]: fails the requests that touch these sectors of the
# device.
fail_requests() { echo "add,op=$1,status=$2,start=$((first + $3)),nr_sectors=$4${5+,$5}" >"$rules"; }

heal() { echo removeall >"$rules"; }

drop_caches() { sync && echo 3 >/proc/sys/vm/drop_caches; }

# read_at FIRST COUNT, write_at FIRST COUNT: transfer blocks of 64 KiB in one request.
read_at() { dd if="$device" bs=$((64 * $2))k count=1 iflag=direct skip=$(($1 * 65536))B status=none; }
write_at() {
	dd if="$scratch/data" of="$device" bs=$((64 * $2))k count=1 oflag=direct seek=$(($1 * 65536))B conv=notrunc,fsync status=none
}

# same FIRST COUNT: these blocks of the device have the wanted data.
same() {
	cmp <(read_at "$1" "$2") <(dd if="$scratch/wanted" bs=64k skip="$1" count="$2" status=none)
	count bytes_verified $(($2 * 65536))
}

# read_middle KIND DIRECT STATUS MESSAGE
read_middle() {
	over "$1" "$2"
	fail_requests READ "$3" "$middle" 8
	drop_caches
	refuse "$4" read_at 16 16
	count faults 1
	refuse "$4" read_at 24 1
	# The page cache of the file reads a whole folio, which may be long.
	if [[ $2 == on ]]; then
		same 16 8
		same 25 7
	fi
	same 64 64
	heal
	same 16 16
	detach "$device"
}

# write_middle KIND DIRECT STATUS MESSAGE: the write or the sync fails; the data around stays.
write_middle() {
	over "$1" "$2"
	fail_requests WRITE "$3" "$middle" 8
	refuse "$4" write_at 16 16
	count faults 1
	heal
	drop_caches
	same 0 16
	same 32 16
	dd if="$scratch/data" of="$scratch/wanted" bs=1M count=1 seek=1 conv=notrunc status=none
	write_at 16 16
	drop_caches
	same 0 48
	detach "$device"
	cmp "$scratch/wanted" <(dd if="$file" bs=1M count=8 status=none)
}

# Prints the number of refused requests in the log, of which the kernel logs ten in five seconds.
refused() { dmesg | grep -c 'injecting kernel resource error' || :; }

# short_of_memory KIND: one request in three is refused for lack of memory, and all complete
# nevertheless.
short_of_memory() {
	local op before
	over "$1" on
	before=$(refused)
	for op in READ WRITE; do fail_requests "$op" RESOURCE 0 16384 chance=3; done
	verified_writes "$device" --bsrange=4k-256k --size=8m --loops="$rounds" --fsync=32
	(($(refused) > before)) || fail 'no request was refused'
	count bytes_verified $((rounds * 8 << 20))
	heal
	detach "$device"
}

load_brd
[[ -e $rules ]] || skip_all 'the kernel injects no errors'
for direct in on off; do
	for kind in disk ext4; do
		message='Input/output error'
		check "an error in the middle of a read, $kind, direct I/O $direct" read_middle $kind $direct IOERR "$message"
		check "an error in the middle of a write, $kind, direct I/O $direct" write_middle $kind $direct IOERR "$message"
	done
done
for kind in disk ext4; do
	check "no space in the middle of a write, $kind" write_middle $kind on NOSPC 'No space left'
	check "no memory for one request in three, $kind, seed $seed" short_of_memory $kind
done
run_checks
