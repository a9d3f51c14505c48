#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The everyday use of loop devices: losetup attaches a file, lists it, finds it again and detaches
# it. Only a bound device has the group loop/ in sysfs, which udev, lsblk and losetup read. Errors
# that losetup acts upon (EBUSY makes it try another device) are those of the C driver.
. "$(dirname "$0")/lib.sh"

attach_shows_group() {
	local image device
	image=$(backing ext4 8)
	device=$(attach "$image")
	[[ -b $device ]]
	equal files "$(cd "/sys/block/${device#/dev/}/loop" && echo *)" \
		"autoclear backing_file dio offset partscan sizelimit"
	equal backing_file "$(attribute "$device" loop/backing_file)" "$image"
	equal offset "$(attribute "$device" loop/offset)" 0
	equal sizelimit "$(attribute "$device" loop/sizelimit)" 0
	equal autoclear "$(attribute "$device" loop/autoclear)" 0
	equal partscan "$(attribute "$device" loop/partscan)" 0
	equal dio "$(attribute "$device" loop/dio)" 0
	equal ro "$(attribute "$device" ro)" 0
	equal size "$(attribute "$device" size)" $((8 << 11))
	equal 'block size' "$(attribute "$device" queue/logical_block_size)" 512
	equal bytes "$(blockdev --getsize64 "$device")" $((8 << 20))
}

group_shows_options() {
	local image device
	image=$(backing ext4 8)
	device=$(attach --offset 1M --sizelimit 2M --partscan --direct-io=on "$image")
	equal offset "$(attribute "$device" loop/offset)" $((1 << 20))
	equal sizelimit "$(attribute "$device" loop/sizelimit)" $((2 << 20))
	equal partscan "$(attribute "$device" loop/partscan)" 1
	equal dio "$(attribute "$device" loop/dio)" 1
	equal size "$(attribute "$device" size)" $((2 << 11))
}

detach_clears() {
	local image device
	image=$(backing ext4 8)
	device=$(attach -r --sector-size 4096 "$image")
	equal 'block size' "$(attribute "$device" queue/logical_block_size)" 4096
	detach "$device"
	equal size "$(attribute "$device" size)" 0
	equal 'block size' "$(attribute "$device" queue/logical_block_size)" 512
	refuse 'No such device or address' losetup -d "$device"
	# The file is closed.
	umount "$scratch/ext4"
}

losetup_lists() {
	local image other device
	image=$(backing ext4 8)
	other=$(backing ext4 8 other)
	device=$(attach --direct-io=on "$image")
	attach "$other" >/dev/null
	equal list "$(losetup -nl -O NAME,BACK-FILE,SIZELIMIT,OFFSET,AUTOCLEAR,RO,DIO,LOG-SEC,MAJ:MIN "$device" | xargs)" \
		"$device $image 0 0 0 0 1 512 7:${device#/dev/loop}"
	equal 'devices of the image' "$(losetup -nl -O NAME -j "$image" | xargs)" "$device"
	equal 'number listed' "$(losetup -a | wc -l)" 2
	equal 'lsblk type' "$(lsblk -dno TYPE "$device")" loop
	grep -qw 'loop' /proc/devices
}

# losetup finds the device by the device and inode numbers of LOOP_GET_STATUS64.
found_after_rename() {
	local image device
	image=$(backing xfs 8)
	device=$(attach "$image")
	mv "$image" "$image.new"
	equal found "$(losetup -nl -O NAME -j "$image.new" | xargs)" "$device"
	equal backing_file "$(attribute "$device" loop/backing_file)" "$image.new"
	rm "$image.new"
	equal backing_file "$(attribute "$device" loop/backing_file)" "$image.new (deleted)"
}

attach_by_name() {
	local image
	image=$(backing tmpfs 8)
	# The device does not exist, and is not the next free one.
	losetup /dev/loop42 "$image"
	equal backing_file "$(attribute /dev/loop42 loop/backing_file)" "$image"
	refuse 'Device or resource busy' losetup /dev/loop42 "$image"
	detach /dev/loop42
	python3 "$tests/lib.py" LOOP_CTL_REMOVE 42
	[[ ! -e /sys/block/loop42 ]]
}

free_is_lowest() {
	local image first second
	image=$(backing tmpfs 8)
	equal 'free at first' "$(losetup -f)" /dev/loop0
	first=$(attach "$image")
	second=$(attach "$image")
	equal first "$first" /dev/loop0
	equal second "$second" /dev/loop1
	detach "$first"
	equal 'free again' "$(losetup -f)" /dev/loop0
}

more_than_there_are() {
	local image number
	image=$(backing tmpfs 1)
	for number in {0..19}; do
		equal name "$(attach "$image")" "/dev/loop$number"
	done
}

same_file_once() {
	local image device
	image=$(backing tmpfs 8)
	device=$(attach --nooverlap "$image")
	equal again "$(attach --nooverlap "$image")" "$device"
}

change_events() {
	local image device monitor
	image=$(backing tmpfs 8)
	udevadm settle
	udevadm monitor -k -s block >"$mnt/events" &
	monitor=$!
	wait_for 10 grep -q KERNEL "$mnt/events"
	device=$(attach "$image")
	wait_for 10 grep -q "change .*/block/${device#/dev/} " "$mnt/events" || fail "no change event at attach"
	: >"$mnt/events"
	detach "$device"
	wait_for 10 grep -q "change .*/block/${device#/dev/} " "$mnt/events" || fail "no change event at detach"
	kill "$monitor"
}

check "a bound device has the group loop/ and a size" attach_shows_group
check "loop/ shows offset, sizelimit, partscan and dio" group_shows_options
check "detach resets the settings and closes the file" detach_clears
check "losetup and lsblk list devices" losetup_lists
check "a device is found by its file after a rename" found_after_rename
check "losetup makes, uses and removes a device by name" attach_by_name
check "the free device is the lowest" free_is_lowest
check "losetup makes as many devices as it needs" more_than_there_are
check "losetup --nooverlap reuses the device" same_file_once
check "attach and detach send change events" change_events
run_checks
