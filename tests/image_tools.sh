#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Programs that use loop devices for larger jobs work with both drivers: mount and umount with their
# options for images, a script that builds a disk image as distributions do, systemd-dissect, and
# udisks, by which desktops attach images.
. "$(dirname "$0")/lib.sh"

tree=/usr/lib/udev/rules.d
# The type of a root partition of x86-64 in the Discoverable Partitions Specification.
root_type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709

# --- mount

# Makes an image with a file system of 4 MiB at 1 MiB, which has a file.
image_with_offset() {
	local image
	image=$(backing "$1" 8)
	mkfs.ext4 -q -E offset=1048576 "$image" 4M
	mount -o loop,offset=1M,sizelimit=4M "$image" "$mnt"
	echo content >"$mnt/file"
	udevadm settle
	umount "$mnt"
	nothing_bound || fail "bound after umount"
	echo "$image"
}

mount_options() {
	local image device
	image=$(image_with_offset tmpfs)
	mount -o loop,offset=1M,sizelimit=4M,ro "$image" "$mnt"
	device=$(findmnt -no SOURCE "$mnt")
	equal losetup "$(losetup -nO BACK-FILE,OFFSET,SIZELIMIT,AUTOCLEAR,RO "$device" | xargs)" \
		"$image 1048576 4194304 1 1"
	equal size "$(blockdev --getsize64 "$device")" 4194304
	equal file "$(<"$mnt/file")" content
	refuse 'Read-only file system' touch "$mnt/new"
	refuse 'Operation not permitted' dd if=/dev/zero of="$device" count=1 status=none
	udevadm settle
	umount "$mnt"
	nothing_bound || fail "bound after umount"
	# A given device.
	mount -o loop=/dev/loop5,offset=1M "$image" "$mnt"
	equal source "$(findmnt -no SOURCE "$mnt")" /dev/loop5
	udevadm settle
	umount "$mnt"
	nothing_bound || fail "bound after umount"
	# mount uses a loop device for a file without being asked, here with an offset.
	mount -o offset=1M "$image" "$mnt"
	equal offset "$(losetup -nO OFFSET "$(findmnt -no SOURCE "$mnt")" | xargs)" 1048576
}

# A failed mount leaves no device behind.
mount_fails() {
	local image
	image=$(image_with_offset tmpfs)
	refuse 'wrong fs type' mount -t ext4 -o loop "$image" "$mnt"
	wait_for 10 nothing_bound || fail "bound after a mount that failed"
	refuse 'failed to setup loop device' mount -o loop "$image.not" "$mnt"
	refuse 'overlapping loop device exists' mount_overlapping "$image"
}

mount_overlapping() {
	local device status=0
	device=$(attach "$1")
	mount -o loop,offset=1M "$1" "$mnt" || status=$?
	losetup -d "$device"
	return "$status"
}

# umount -d detaches a device that was attached separately; umount alone does not.
umount_detaches() {
	local image device
	image=$(image_with_offset tmpfs)
	device=$(attach -o 1M "$image")
	mount "$device" "$mnt"
	umount "$mnt"
	equal 'bound after umount' "$(losetup -nO NAME | xargs)" "$device"
	mount "$device" "$mnt"
	udevadm settle
	umount -d "$mnt"
	wait_for 10 unbound "$device" || fail "bound after umount -d"
}

busy() {
	local image device
	image=$(image_with_offset ext4)
	mount -o loop,offset=1M "$image" "$mnt"
	device=$(findmnt -no SOURCE "$mnt")
	cd "$mnt"
	refuse 'target is busy' umount "$mnt"
	cd /
	# The device alone keeps the file system of the image busy.
	refuse 'target is busy' umount "$scratch/ext4"
	refuse 'Device or resource busy' wipefs -a "$device"
	refuse 'failed to set up loop device: Device or resource busy' losetup "$device" "$image"
	# After a lazy umount, the last close detaches the device.
	exec {held}<"$mnt/file"
	umount -l "$mnt"
	! unbound "$device" || fail "detached under an open file"
	equal file "$(cat <&"$held")" content
	exec {held}<&-
	wait_for 10 unbound "$device" || fail "bound after the last close"
	umount "$scratch/ext4"
	mount "$ram_ext4" "$scratch/ext4"
}

remounted() {
	local image device
	image=$(image_with_offset tmpfs)
	mount -o loop,offset=1M "$image" "$mnt"
	device=$(findmnt -no SOURCE "$mnt")
	mount -o remount,ro "$mnt"
	refuse 'Read-only file system' touch "$mnt/new"
	equal 'device ro' "$(attribute "$device" ro)" 0
	mount -o remount,rw,discard "$mnt"
	touch "$mnt/new"
	fstrim "$mnt"
}

# --- an image built by a script

build() {
	local image device
	image=$(backing "$1" 64)
	sfdisk -q "$image" <<-EOT
		label: gpt
		size=8M, type=uefi, name=esp
		type=linux, name=root
	EOT
	device=$(losetup -P --show -f "$image")
	# Such scripts wait only for udev.
	udevadm settle
	mkfs.vfat -n ESP "${device}p1" >/dev/null
	mkfs.ext4 -q -L root "${device}p2"
	mkdir -p "$mnt/root"
	mount "${device}p2" "$mnt/root"
	mkdir "$mnt/root/boot"
	mount "${device}p1" "$mnt/root/boot"
	cp -r "$tree" "$mnt/root/rules"
	cp "$tests/image_tools.sh" "$mnt/root/boot/script"
	dd if=/dev/urandom of="$mnt/root/noise" bs=1M count=16 status=none
	cp "$mnt/root/noise" "$scratch/copy"
	umount -R "$mnt/root"
	losetup -d "$device"
	wait_for 10 unbound "$device" || fail "bound after losetup -d"

	# The image is moved, and opened again.
	mv "$image" "$image.done"
	sfdisk -q --verify "$image.done"
	device=$(losetup -r -P --show -f --direct-io=on "$image.done")
	udevadm settle
	e2fsck -fn "${device}p2"
	fsck.vfat -n "${device}p1"
	mount -o ro "${device}p2" "$mnt/root"
	mount -o ro "${device}p1" "$mnt/root/boot"
	cmp "$mnt/root/noise" "$scratch/copy"
	cmp "$mnt/root/boot/script" "$tests/image_tools.sh"
	diff -r "$tree" "$mnt/root/rules"
	equal 'label of p1' "$(lsblk -ndo LABEL "${device}p1")" ESP
	equal 'label of p2' "$(lsblk -ndo LABEL "${device}p2")" root
	umount -R "$mnt/root"
	losetup -d "$device"
	wait_for 10 unbound "$device" || fail "bound after losetup -d"
}

# --- systemd-dissect

# Makes an image with one partition, a root file system as systemd expects it.
system_image() {
	local image
	image=$(backing "$1" 32)
	sfdisk -q "$image" <<-EOT
		label: gpt
		size=24M, type=$root_type, name=system
	EOT
	mkdir -p "$mnt/tree"/{usr/{bin,lib,sbin},etc,dev,proc,sys,run,tmp,var,root}
	printf 'ID=lab\nVERSION_ID=1\n' >"$mnt/tree/usr/lib/os-release"
	echo content >"$mnt/tree/etc/file"
	mkfs.ext4 -q -d "$mnt/tree" -E offset=1048576 "$image" 24M
	echo "$image"
}

# with_dissect COMMAND...: makes the devices again that systemd-dissect removes after use, for the
# next test.
with_dissect() {
	trap 'all_devices' EXIT
	"$@"
}

# shellcheck disable=SC2317  # called by the trap
all_devices() {
	local status=$? number
	for number in {0..7}; do
		[[ -e /sys/block/loop$number ]] || python3 "$tests/lib.py" LOOP_CTL_ADD "$number"
	done
	exit "$status"
}

dissect() { systemd-dissect --no-pager "$@"; }

dissect_reads() {
	local image
	image=$(system_image "$1")
	dissect --json=short "$image" | grep -o '"designator":"root".*"fstype":"ext4"'
	dissect --list "$image" >"$scratch/list"
	grep -qx 'etc/file' "$scratch/list"
	equal 'file' "$(dissect --copy-from "$image" /etc/file -)" content
	equal 'with' "$(dissect --with "$image" cat etc/file)" content
	wait_for 10 nothing_bound || fail "bound after systemd-dissect"
}

dissect_mounts() {
	local image
	image=$(system_image "$1")
	mkdir "$mnt/system"
	dissect --mount "$image" "$mnt/system"
	equal losetup "$(losetup -nO BACK-FILE,AUTOCLEAR,PARTSCAN,RO,DIO | xargs)" "$image 1 1 0 1"
	equal file "$(<"$mnt/system/etc/file")" content
	dd if=/dev/urandom of="$mnt/system/new" bs=1M count=4 status=none
	cp "$mnt/system/new" "$scratch/copy"
	dissect --umount "$mnt/system"
	wait_for 10 nothing_bound || fail "bound after systemd-dissect --umount"
	dissect --mount --read-only "$image" "$mnt/system"
	equal losetup "$(losetup -nO AUTOCLEAR,PARTSCAN,RO | xargs)" "1 1 1"
	refuse 'Read-only file system' touch "$mnt/system/file"
	cmp "$mnt/system/new" "$scratch/copy"
	dissect --umount --rmdir "$mnt/system"
	wait_for 10 nothing_bound || fail "bound after systemd-dissect --umount"
}

dissect_attaches() {
	local image device
	image=$(system_image tmpfs)
	device=$(dissect --attach "$image")
	equal losetup "$(losetup -nO NAME,AUTOCLEAR,PARTSCAN | xargs)" "$device 0 1"
	[[ -b ${device}p1 ]]
	dissect --detach "$image"
	wait_for 10 nothing_bound || fail "bound after systemd-dissect --detach"
}

# --- udisks

# with_udisks COMMAND...: runs COMMAND with D-Bus and udisks, which end with the case.
with_udisks() {
	mkdir -p /run/dbus
	rm -f /run/dbus/pid
	bus=$(dbus-daemon --system --fork --print-pid)
	trap 'stop_udisks' EXIT
	/usr/libexec/udisks2/udisksd &
	udisks=$!
	wait_for 60 udisksctl status
	"$@"
}

# shellcheck disable=SC2317  # called by the trap
stop_udisks() {
	local status=$?
	kill "$udisks" "$bus"
	wait_for 10 ended "$bus" || status=1
	exit "$status"
}

ended() { ! kill -0 "$1" 2>/dev/null; }

ask() { udisksctl "$@" --no-user-interaction; }

# udisks_device FILE OPTION...: attaches FILE, and prints the device that udisks reports.
udisks_device() {
	local answer
	answer=$(ask loop-setup -f "$@")
	[[ $answer == "Mapped file $1 as /dev/loop"*. ]] || fail "udisks said '$answer'"
	answer=${answer##* }
	echo "${answer%.}"
}

# udisks learns of a partition from its event.
knows() { udisksctl info -b "$1"; }

udisks_disk() {
	local image device place
	image=$(system_image "$1")
	device=$(udisks_device "$image")
	equal losetup "$(losetup -nO BACK-FILE,AUTOCLEAR,PARTSCAN,RO "$device" | xargs)" "$image 0 1 0"
	wait_for 20 knows "${device}p1" || fail "udisks has no ${device}p1"
	udisksctl info -b "$device" | grep -E "BackingFile: +$image\$"
	place=$(ask mount -b "${device}p1" | sed 's/.* at //; s/\.$//')
	equal file "$(<"$place/etc/file")" content
	echo new >"$place/new"
	ask unmount -b "${device}p1"
	ask loop-delete -b "$device"
	wait_for 10 unbound "$device" || fail "bound after loop-delete"
	wait_for 20 forgotten "$image" || fail "udisks still lists $image"
	mount -o loop,offset=1M "$image" "$mnt"
	equal 'new file' "$(<"$mnt/new")" new
}

# udisks lists no device for the file any more.
forgotten() { ! udisksctl dump | grep -qF "$1"; }

udisks_part_of_file() {
	local image device
	image=$(system_image tmpfs)
	device=$(udisks_device "$image" -r -o 1048576 -s 25165824 --no-partition-scan)
	equal losetup "$(losetup -nO OFFSET,SIZELIMIT,PARTSCAN,RO "$device" | xargs)" '1048576 25165824 0 1'
	equal size "$(blockdev --getsize64 "$device")" 25165824
	ask loop-delete -b "$device"
	wait_for 10 unbound "$device" || fail "bound after loop-delete"
	refuse 'No such file or directory' ask loop-setup -f "$image.not"
}

check "mount's offset, sizelimit, ro and loop=" mount_options
check "a failed mount leaves no device" mount_fails
check "umount -d" umount_detaches
check "a device is busy until its last user has closed it" busy
check "remount" remounted
check "a script builds an image on ext4" build ext4
check "a script builds an image on tmpfs" build tmpfs
check "systemd-dissect reads an image" with_dissect dissect_reads tmpfs
check "systemd-dissect mounts an image" with_dissect dissect_mounts ext4
check "systemd-dissect attaches and detaches" with_dissect dissect_attaches
check "udisks attaches a disk, mounts its partition and detaches it" with_udisks udisks_disk tmpfs
check "udisks attaches part of a file" with_udisks udisks_part_of_file
run_checks
