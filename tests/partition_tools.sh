#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Programs that make, change and read partition tables work with loop devices, on both drivers:
# partx, sfdisk, parted, growpart, wipefs, kpartx. A changed table takes effect at once on a device
# with PARTSCAN, partitions in use are not changed, and udev has a node and links for each
# partition.
. "$(dirname "$0")/lib.sh"

# table FILE-OR-DEVICE: writes a table of two partitions, at 1 and at 5 MiB.
table() {
	sfdisk -q "$1" <<-EOT
		label: gpt
		start=2048, size=8192, name=one
		start=10240, size=4096, name=two
	EOT
}

# Makes an image with that table and random data, and a copy of it.
partitioned() {
	local image
	image=$(backing "$1" 16)
	noise "$image" 8
	table "$image"
	cp "$image" "$scratch/copy"
	echo "$image"
}

# partitions DEVICE: prints the numbers, starts and sizes of the kernel's partitions.
partitions() {
	local name=${1#/dev/} part
	for part in "/sys/block/$name/$name"p*; do
		[[ ! -e $part ]] || echo "$(<"$part/partition"):$(<"$part/start")+$(<"$part/size")"
	done | sort -n | xargs
}

# has DEVICE PARTITION...: the device has exactly these partitions, each with a node.
has() {
	local part
	wait_for 10 has_now "$@" || fail "partitions of $1: $(partitions "$1"), wanted ${*:2}"
	for part in "${@:2}"; do
		wait_for 10 test -b "${1}p${part%%:*}" || fail "no node of partition $part"
	done
}

has_now() { [[ $(partitions "$1") == "${*:2}" ]]; }

# udev may have a partition open.
partx_deletes() { wait_for 10 partx -d "$@"; }

partx_adds() {
	local image device
	image=$(partitioned tmpfs)
	device=$(attach "$image")
	equal 'partx -s' "$(partx -gso NR,START,END,SECTORS,NAME "$device" | xargs)" \
		'1 2048 10239 8192 one 2 10240 14335 4096 two'
	has "$device"
	partx -a "$device"
	has "$device" 1:2048+8192 2:10240+4096
	cmp -i 1M:0 -n 4M "$scratch/copy" "${device}p1"
	refuse 'error adding partitions 1-2' partx -a "$device"
	partx_deletes --nr 1 "$device"
	has "$device" 2:10240+4096
	partx -u "$device"
	has "$device" 1:2048+8192 2:10240+4096
	cmp -i 5M:0 -n 2M "$scratch/copy" "${device}p2"
	# The table changes in the file, unnoticed by the kernel.
	echo 'size=8192' | sfdisk -q -N 2 "$image"
	blockdev --flushbufs "$device"
	partx -u "$device"
	has "$device" 1:2048+8192 2:10240+8192
	partx_deletes "$device"
	has "$device"
	refuse 'specified range' partx -d --nr 7:5 "$device"
}

partx_in_use() {
	local device
	device=$(attach "$(partitioned tmpfs)")
	partx -a "$device"
	has "$device" 1:2048+8192 2:10240+4096
	mkfs.ext4 -q "${device}p1"
	mount "${device}p1" "$mnt"
	refuse 'error deleting partition 1' partx -d --nr 1 "$device"
	partx_deletes --nr 2 "$device"
	has "$device" 1:2048+8192
	touch "$mnt/file"
}

# Partitions are block devices with their own sizes and limits.
partition_devices() {
	local image device
	image=$(partitioned ext4)
	device=$(attach -P -b 512 --direct-io=on "$image")
	has "$device" 1:2048+8192 2:10240+4096
	equal blockdev "$(blockdev --getsize64 --getss --getalignoff --getro "${device}p2" | xargs)" '2097152 512 0 0'
	equal report "$(blockdev --report "${device}p2" | tail -n 1 | xargs)" "rw 256 512 4096 10240 2097152 ${device}p2"
	equal lsblk "$(lsblk -nrbo NAME,TYPE,SIZE,PARTLABEL "$device" | xargs)" \
		"${device#/dev/} loop 16777216 ${device#/dev/}p1 part 4194304 one ${device#/dev/}p2 part 2097152 two"
	equal parent "$(lsblk -ndo PKNAME "${device}p1")" "${device#/dev/}"
	equal blkid "$(blkid -p -o value -s PART_ENTRY_NAME -s PART_ENTRY_OFFSET -s PART_ENTRY_SIZE "${device}p2" | xargs)" \
		'two 10240 4096'
	blkdiscard -f -o 1M -l 1M "${device}p2"
	dd if=/dev/zero of="$scratch/copy" bs=1M seek=6 count=1 conv=notrunc status=none
	cmp "$image" "$scratch/copy"
	blockdev --setro "${device}p1"
	refuse 'Operation not permitted' dd if=/dev/zero of="${device}p1" count=1 status=none
	dd if=/dev/zero of="${device}p2" bs=1M count=2 conv=fsync status=none
	dd if=/dev/zero of="$scratch/copy" bs=1M seek=5 count=2 conv=notrunc status=none
	cmp "$image" "$scratch/copy"
}

# udev adds and removes nodes and links by the events.
links_of_udev() {
	local device link
	device=$(attach -P "$(partitioned tmpfs)")
	udevadm settle
	for link in one two; do
		[[ -b /dev/disk/by-partlabel/$link ]] || fail "no link for partition $link"
	done
	equal link "$(realpath /dev/disk/by-partlabel/two)" "${device}p2"
	equal 'number in the database' "$(udevadm info -q property --property=PARTN --value "${device}p2")" 2
	equal 'table in the database' "$(udevadm info -q property --property=ID_PART_TABLE_TYPE --value "$device")" gpt
	detach "$device"
	udevadm settle
	for link in /dev/disk/by-partlabel/{one,two} "${device}p1" "${device}p2"; do
		[[ ! -e $link ]] || fail "$link still exists"
	done
	equal 'table in the database' "$(udevadm info -q property --property=ID_PART_TABLE_TYPE --value "$device")" ''
}

monitored() {
	local device name monitor
	udevadm settle
	udevadm monitor --udev --subsystem-match=block/partition >"$scratch/events" &
	monitor=$!
	wait_for 10 grep -q 'UDEV - ' "$scratch/events"
	device=$(attach -P "$(partitioned tmpfs)")
	name=${device#/dev/}
	wait_for 10 grep -Eq "add +/devices/virtual/block/$name/${name}p2 " "$scratch/events" || fail "no event for p2"
	has "$device" 1:2048+8192 2:10240+4096
	detach "$device"
	wait_for 10 came_and_went "${name}p1" || fail "events for p1: $(events_of "${name}p1")"
	wait_for 10 came_and_went "${name}p2" || fail "events for p2: $(events_of "${name}p2")"
	kill "$monitor"
}

events_of() { grep -Eo "(add|remove) .*/$1 " "$scratch/events" | cut -d ' ' -f 1 | xargs; }

# udev may rescan the partitions when losetup has closed the device, which it had open for writing.
# uevents.py shows that the driver scans once.
came_and_went() { [[ $(events_of "$1") =~ ^'add remove'(' add remove')*$ ]]; }

sfdisk_edits() {
	local device
	device=$(attach -P "$(backing "$1" 16)")
	has "$device"
	# udev opens the device after sfdisk has closed it, and sfdisk needs it exclusively.
	udevadm settle
	table "$device"
	has "$device" 1:2048+8192 2:10240+4096
	udevadm settle
	echo 'start=16384, size=2048' | sfdisk -q -a "$device"
	has "$device" 1:2048+8192 2:10240+4096 3:16384+2048
	udevadm settle
	sfdisk -q --delete "$device" 1
	has "$device" 2:10240+4096 3:16384+2048
	equal dump "$(sfdisk -d "$device" | grep -c '^/dev/')" 2
	udevadm settle
	wipefs -qa "$device"
	has "$device"
}

sfdisk_in_use() {
	local device
	device=$(attach -P "$(partitioned tmpfs)")
	has "$device" 1:2048+8192 2:10240+4096
	mkfs.ext4 -q "${device}p1"
	mount "${device}p1" "$mnt"
	refuse 'currently in use' table "$device"
	refuse 'Device or resource busy' blockdev --rereadpt "$device"
	refuse 'apparently in use' mkfs.ext4 -q "$device"
	refuse 'Device or resource busy' wipefs -a "$device"
	has "$device" 1:2048+8192 2:10240+4096
	umount "$mnt"
	wait_for 10 blockdev --rereadpt "$device"
	has "$device" 1:2048+8192 2:10240+4096
}

parted_edits() {
	local device
	device=$(attach -P --direct-io=on "$(backing ext4 16)")
	parted -s "$device" mklabel msdos mkpart primary 1MiB 5MiB mkpart primary 5MiB 7MiB
	has "$device" 1:2048+8192 2:10240+4096
	equal print "$(parted -ms "$device" unit s print | grep "^$device:" | cut -d : -f 2,4-6)" '32768s:512:512:msdos'
	equal model "$(parted -ms "$device" print | grep "^$device:" | cut -d : -f 3,7)" 'loopback:Loopback device'
	parted -s "$device" rm 1 resizepart 2 8MiB
	has "$device" 2:10240+6144
	parted -s "$device" mklabel gpt
	has "$device"
}

# An image grows: the device, its last partition and the mounted file system follow.
grow() {
	local image device
	image=$(partitioned tmpfs)
	device=$(attach -P "$image")
	has "$device" 1:2048+8192 2:10240+4096
	mkfs.ext4 -q "${device}p2"
	mount "${device}p2" "$mnt"
	echo content >"$mnt/file"
	truncate -s 64M "$image"
	losetup -c "$device"
	udevadm settle
	growpart "$device" 2 | grep CHANGED
	has "$device" 1:2048+8192 2:10240+120799
	refuse 'NOCHANGE' growpart "$device" 2
	resize2fs "${device}p2"
	dd if=/dev/zero of="$mnt/more" bs=1M count=40 status=none
	umount "$mnt"
	e2fsck -fn "${device}p2"
	sfdisk -q --verify "$device"
}

# kpartx attaches a file by itself, maps partitions without the kernel's, and detaches the file.
kpartx_file() {
	local image device
	image=$(partitioned tmpfs)
	udevadm settle
	equal list "$(kpartx -l "$image" | cut -d ' ' -f 3-4 | xargs)" '0 8192 0 4096'
	wait_for 10 nothing_bound || fail "bound after kpartx -l"
	kpartx -a "$image"
	device=$(losetup -nO NAME -j "$image" | xargs)
	has "$device"
	udevadm settle
	cmp -n 4M -i 0:1M "/dev/mapper/${device#/dev/}p1" "$scratch/copy"
	cmp -n 2M -i 0:5M "/dev/mapper/${device#/dev/}p2" "$scratch/copy"
	refuse 'Device or resource busy' wipefs -a "$device"
	udevadm settle
	kpartx -d "$image"
	wait_for 10 nothing_bound || fail "bound after kpartx -d"
	[[ ! -e /dev/mapper/${device#/dev/}p1 ]]
}

check "partx shows, adds, updates and deletes" partx_adds
check "partx refuses to delete a partition in use" partx_in_use
check "partitions are devices of their own" partition_devices
check "udev has nodes, links and data of partitions" links_of_udev
check "udevadm monitor shows partitions" monitored
check "sfdisk, tmpfs" sfdisk_edits tmpfs
check "sfdisk, ext4" sfdisk_edits ext4
check "tables of devices in use are not changed" sfdisk_in_use
check "parted" parted_edits
check "growpart" grow
check "kpartx on an image file" kpartx_file
run_checks
