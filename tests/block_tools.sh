#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The tools that inspect, configure and wipe block devices work with loop devices on both drivers:
# lsblk, blkid, findfs, blockdev, blkdiscard, fstrim, wipefs, mkfs. They use sysfs, the ioctls of
# the block layer and the ioctls of losetup; and they must refuse devices in use.
. "$(dirname "$0")/lib.sh"

uuid=11111111-2222-3333-4444-555555555555

# listed DEVICE COLUMN...: prints lsblk's columns of a device.
listed() {
	local columns
	columns=$(IFS=, && echo "${*:2}")
	lsblk --nodeps --noheadings --raw --bytes --output "$columns" "$1"
}

# write_sector DEVICE [NUMBER]: writes through the page cache, and syncs.
write_sector() { dd if=/dev/zero of="$1" bs=512 count=1 seek="${2-0}" conv=notrunc,fsync status=none; }

lsblk_columns() {
	local image device
	image=$(backing tmpfs 8)
	device=$(attach "$image")
	equal lsblk "$(listed "$device" NAME TYPE SIZE RO LOG-SEC PHY-SEC MIN-IO OPT-IO)" \
		"${device#/dev/} loop 8388608 0 512 512 512 0"
	equal lsblk "$(listed "$device" DISC-GRAN DISC-MAX DISC-ZERO WSAME ROTA RM HOTPLUG RAND)" \
		"4096 4294966784 0 0 0 0 0 0"
	equal lsblk "$(listed "$device" MAJ:MIN SCHED RQ-SIZE RA STATE TRAN DISK-SEQ)" \
		"7:${device#/dev/loop} none 128 128   $(attribute "$device" diskseq)"
	detach "$device"
	device=$(attach -r -b 4096 "$image")
	equal lsblk "$(listed "$device" NAME TYPE SIZE RO LOG-SEC PHY-SEC MIN-IO OPT-IO DISC-GRAN)" \
		"${device#/dev/} loop 8388608 1 4096 4096 4096 0 4096"
}

# lsblk lists unbound devices only with -a.
lsblk_hides() {
	local device
	equal 'unbound' "$(lsblk -nro NAME | grep -c '^loop' || :)" 0
	equal 'unbound, -a' "$(lsblk -anro NAME,SIZE | grep '^loop3 ')" 'loop3 0B'
	device=$(attach "$(backing tmpfs 1)")
	equal 'bound' "$(lsblk -nro NAME | grep '^loop')" "${device#/dev/}"
	refuse '' lsblk /dev/loop7
	detach "$device"
	equal 'unbound again' "$(lsblk -nro NAME | grep -c '^loop' || :)" 0
	# A bound device without a size is listed, because it has a file.
	device=$(attach "$(backing tmpfs 0)")
	equal 'empty' "$(lsblk -nro NAME,SIZE | grep '^loop')" "${device#/dev/} 0B"
}

lsblk_mounted() {
	local image device
	image=$(backing tmpfs 8)
	mkfs.ext4 -q -L label -U "$uuid" "$image"
	mount -o loop "$image" "$mnt"
	device=$(findmnt -no SOURCE "$mnt")
	# udev has probed the file system when it has settled.
	udevadm settle
	equal lsblk "$(listed "$device" TYPE FSTYPE LABEL UUID MOUNTPOINT)" "loop ext4 label $uuid $mnt"
	# A stack is a tree.
	umount "$mnt"
	device=$(attach "$(backing tmpfs 8)")
	dmsetup create above --table "0 16384 linear $device 0"
	equal tree "$(lsblk -nro NAME,TYPE,SIZE "$device" | xargs)" "${device#/dev/} loop 8M above dm 8M"
	equal holders "$(ls "/sys/block/${device#/dev/}/holders")" "$(basename "$(realpath /dev/mapper/above)")"
	wait_for 10 dmsetup remove above
}

blkid_probes() {
	local image device
	image=$(backing tmpfs 8)
	mkfs.ext4 -q -b 1024 -L label -U "$uuid" "$image"
	device=$(attach "$image")
	equal '-p' "$(blkid -p -o value -s LABEL -s UUID -s TYPE -s FSSIZE "$device" | xargs)" \
		"label $uuid 8388608 ext4"
	equal cached "$(blkid "$device")" \
		"$device: LABEL=\"label\" UUID=\"$uuid\" BLOCK_SIZE=\"1024\" TYPE=\"ext4\""
	equal 'by label' "$(blkid -L label)" "$device"
	equal 'by UUID' "$(blkid -U "$uuid")" "$device"
	equal 'by type' "$(blkid -t TYPE=ext4 -o device | grep '^/dev/loop')" "$device"
	equal findfs "$(findfs LABEL=label)" "$device"
	udevadm settle
	equal udev "$(realpath /dev/disk/by-uuid/"$uuid")" "$device"
	# The file system is not found on the next file. Without blkid's cache, which probes the
	# device again only after a while.
	detach "$device"
	refuse '' blkid -c /dev/null "$device"
	equal next "$(attach "$(backing tmpfs 8 next)")" "$device"
	refuse '' blkid -c /dev/null "$device"
	udevadm settle
	refuse '' blkid -c /dev/null -L label
	[[ ! -e /dev/disk/by-uuid/$uuid ]] || fail "udev still has a link for the file system of a detached image"
}

sizes() {
	local image device block
	image=$(backing "$1" 8)
	truncate -s $(((8 << 20) + 300)) "$image"
	for block in 512 4096; do
		device=$(attach -b "$block" "$image")
		equal blockdev "$(blockdev --getsize64 --getsz --getss --getpbsz --getiomin --getioopt --getalignoff "$device" | xargs)" \
			"8388608 16384 $block $block $block 0 0"
		equal blockdev "$(blockdev --getro --getmaxsect --getbsz --getra --getdiscardzeroes --getdiskseq "$device" | xargs)" \
			"0 2560 4096 256 0 $(attribute "$device" diskseq)"
		equal report "$(blockdev --report "$device" | tail -n 1 | xargs)" "rw 256 $block 4096 0 8388608 $device"
		detach "$device"
	done
}

read_ahead() {
	local device
	device=$(attach "$(backing tmpfs 8)")
	blockdev --setra 1024 "$device"
	equal read_ahead "$(blockdev --getra "$device") $(attribute "$device" queue/read_ahead_kb)" '1024 512'
	blockdev --setra 256 "$device"
	equal block "$(blockdev --setbsz 1024 --getbsz "$device")" 1024
}

set_read_only() {
	local image device
	image=$(backing "$1" 8)
	noise "$image" 1
	cp "$image" "$scratch/copy"
	device=$(attach --direct-io="$2" "$image")
	blockdev --setro "$device"
	equal ro "$(blockdev --getro "$device") $(attribute "$device" ro) $(listed "$device" RO)" '1 1 1'
	refuse 'Operation not permitted' write_sector "$device"
	refuse 'Operation not permitted' blkdiscard -f "$device"
	refuse 'Operation not permitted' blkdiscard -z -f "$device"
	cmp "$image" "$scratch/copy"
	cmp "$device" "$scratch/copy"
	blockdev --setrw "$device"
	equal ro "$(blockdev --getro "$device") $(attribute "$device" ro)" '0 0'
	write_sector "$device"
	dd if=/dev/zero of="$scratch/copy" bs=512 count=1 conv=notrunc status=none
	cmp "$image" "$scratch/copy"
	detach "$device"
	# A device that was attached read-only stays read-only.
	device=$(attach -r "$image")
	blockdev --setrw "$device"
	equal ro "$(blockdev --getro "$device")" 1
	refuse 'Operation not permitted' write_sector "$device"
	cmp "$image" "$scratch/copy"
}

flushed() {
	local image device
	image=$(backing ext4 8)
	device=$(attach --direct-io=on "$image")
	dd if=/dev/urandom of="$device" bs=1M count=2 status=none
	blockdev --flushbufs "$device"
	# Not from the page cache of the loop device, and with direct I/O not from that of the file.
	cmp -n 2M "$device" "$image"
	dd if="$image" iflag=direct bs=1M count=2 status=none | cmp -n 2M - "$device"
	refuse 'Invalid argument' blockdev --rereadpt "$device"
}

blocks() { stat -c %b "$1"; }

# The modes of blkdiscard: data reads as zeroes, and its blocks in the file are freed or kept.
discards() {
	local image device
	image=$(backing "$1" 8)
	noise "$image" 8
	cp "$image" "$scratch/copy"
	device=$(attach --direct-io="$2" "$image")
	equal 'blocks' "$(blocks "$image")" 16384
	blkdiscard -o 1M -l 2M "$device"
	dd if=/dev/zero of="$scratch/copy" bs=1M seek=1 count=2 conv=notrunc status=none
	cmp "$device" "$scratch/copy"
	cmp "$image" "$scratch/copy"
	equal 'blocks after -o 1M -l 2M' "$(blocks "$image")" 12288
	blkdiscard -z -o 4M -l 1M "$device"
	dd if=/dev/zero of="$scratch/copy" bs=1M seek=4 count=1 conv=notrunc status=none
	cmp "$device" "$scratch/copy"
	equal 'blocks after -z' "$(blocks "$image")" 12288
	refuse 'not aligned to sector size 512' blkdiscard -o 1000 -l 512 "$device"
	refuse 'Operation not supported' blkdiscard -s -f "$device"
	cmp "$device" "$scratch/copy"
	blkdiscard -v "$device" | grep -q 'Discarded 8388608 bytes from the offset 0'
	cmp -n 8M "$device" /dev/zero
	equal 'blocks at the end' "$(blocks "$image")" 0
}

# blkdiscard refuses a device with a file system unless it is forced.
discard_asks() {
	local image device
	image=$(backing tmpfs 8)
	mkfs.ext4 -q "$image"
	device=$(attach "$image")
	refuse 'contains existing file system' script_on_terminal blkdiscard "$device"
	mount "$device" "$mnt"
	refuse 'Device or resource busy' blkdiscard "$device"
	touch "$mnt/file"
}

# Runs a command on a terminal, because blkdiscard probes the device only there.
script_on_terminal() { script -qec "$(printf '%q ' "$@")" /dev/null; }

trims() {
	local image device
	image=$(backing "$1" 64)
	device=$(attach --direct-io="$2" "$image")
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	dd if=/dev/urandom of="$mnt/file" bs=1M count=30 status=none
	sync -f "$mnt"
	(($(blocks "$image") > 60000)) || fail "the file has $(blocks "$image") blocks"
	rm "$mnt/file"
	sync -f "$mnt"
	fstrim -v "$mnt" | grep -E '\([0-9]{8} bytes\) trimmed'
	(($(blocks "$image") < 20000)) || fail "the file still has $(blocks "$image") blocks"
	umount "$mnt"
	e2fsck -fn "$device"
}

wipes() {
	local image device
	image=$(backing tmpfs 8)
	device=$(attach "$image")
	mkfs.ext4 -q -U "$uuid" "$device"
	equal wipefs "$(wipefs --noheadings -O TYPE,OFFSET,UUID "$device" | xargs)" "ext4 0x438 $uuid"
	mount "$device" "$mnt"
	refuse 'Device or resource busy' wipefs -a "$device"
	refuse 'is mounted' mkfs.ext4 -q "$device"
	umount "$mnt"
	wait_for 10 wipefs -qa "$device"
	refuse '' blkid -p "$device"
	equal 'magic in the file' "$(od -An -tx1 -j 0x438 -N 2 "$image" | xargs)" '00 00'
}

# mke2fs and e2fsck refuse the image of a mounted device, too.
image_in_use() {
	local image
	image=$(backing tmpfs 8)
	mkfs.ext4 -q "$image"
	mount -o loop "$image" "$mnt"
	refuse 'is mounted' mkfs.ext4 -q "$image"
	refuse 'is mounted' e2fsck -f "$image"
	umount "$mnt"
	e2fsck -fn "$image"
}

unbound_device() {
	local device
	device=$(losetup -f)
	udevadm settle
	equal size "$(blockdev --getsize64 --getss "$device" | xargs)" '0 512'
	refuse '' blkid "$device"
	refuse 'size reported to be zero' mkfs.ext4 -q "$device"
	refuse 'Invalid argument' blockdev --rereadpt "$device"
	refuse 'No space left on device' write_sector "$device"
	equal 'bytes read' "$(head -c 512 "$device" | wc -c)" 0
	refuse '' mount "$device" "$mnt"
	blockdev --flushbufs "$device"
}

check "lsblk's columns" lsblk_columns
check "lsblk hides unbound devices" lsblk_hides
check "lsblk shows file systems and stacked devices" lsblk_mounted
check "blkid and findfs find a file system only while it is attached" blkid_probes
check "blockdev's sizes, file" sizes tmpfs
check "blockdev sets read-ahead" read_ahead
check "blockdev --setro, buffered" set_read_only tmpfs off
check "blockdev --setro, direct" set_read_only ext4 on
check "blockdev --flushbufs" flushed
check "blkdiscard, tmpfs" discards tmpfs off
check "blkdiscard, ext4, direct" discards ext4 on
check "blkdiscard refuses a device in use" discard_asks
check "fstrim, tmpfs" trims tmpfs off
check "fstrim, XFS, direct" trims xfs on
check "wipefs" wipes
check "an image is in use while it is mounted" image_in_use
check "an unbound device" unbound_device
run_checks
