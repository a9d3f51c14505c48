#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# With standalone=1 the module works beside a C driver that is loaded, or cannot be unloaded because
# it is built in: with another major, and a control node of its own. Unmodified tools find its
# devices, and those of the C driver are not affected.
. "$(dirname "$0")/lib.sh"

[[ $driver == rnull_loop ]] || skip_all "the C driver has no such parameter"

# beside COMMAND...: runs COMMAND with both drivers loaded.
beside() {
	trap 'alone_again' EXIT
	wait_for 10 unload_driver 2>/dev/null
	modprobe loop
	load_driver standalone=1
	wait_for 10 test -b /dev/loopr0
	"$@"
}

# shellcheck disable=SC2317  # called by the trap
alone_again() {
	local status=$?
	unmount_below "$mnt" || :
	losetup -D || :
	wait_for 10 rmmod rnull_loop 2>/dev/null || status=1
	wait_for 10 rmmod loop 2>/dev/null || status=1
	load_driver
	exit "$status"
}

names() {
	local number major
	number=$(awk '$2 == "loopr" { print $1 }' /proc/devices)
	[[ -n $number && $number != 7 ]] || fail "the major is '$number'"
	for major in "7 /dev/loop0" "$number /dev/loopr0"; do
		equal "major of ${major#* }" "$((0x$(stat -c %t "${major#* }")))" "${major% *}"
	done
	[[ -c /dev/loop-control && -c /dev/loopr-control ]]
	equal 'parameter' "$(</sys/module/rnull_loop/parameters/standalone)" Y
}

# losetup and lsblk list the devices of both drivers.
tools() {
	local image other device
	image=$(backing ext4 16)
	noise "$image" 16
	other=$(backing tmpfs 8 other)
	device=$(attach "$other")
	equal 'device of the C driver' "$device" /dev/loop0
	losetup --direct-io=on /dev/loopr3 "$image"
	equal 'losetup -l' "$(losetup -nl -O NAME,BACK-FILE,DIO | awk '{ print $1, $2, $3 }' | sort | xargs)" \
		"/dev/loop0 $other 0 /dev/loopr3 $image 1"
	equal 'losetup -j' "$(losetup -nl -O NAME -j "$image" | xargs)" /dev/loopr3
	equal lsblk "$(lsblk -nro NAME,TYPE,SIZE /dev/loopr3)" 'loopr3 loop 16M'
	cmp "$image" /dev/loopr3
	losetup -d /dev/loopr3
	wait_for 10 unbound /dev/loopr3 || fail "loopr3 is still bound"
	equal 'left bound' "$(losetup -nl -O NAME | xargs)" /dev/loop0
	cmp "$other" "$device"
}

file_system() {
	local image
	image=$(backing ext4 16)
	losetup --direct-io=on /dev/loopr0 "$image"
	mkfs.ext4 -q /dev/loopr0
	mount /dev/loopr0 "$mnt"
	cp -r /usr/lib/udev/rules.d "$mnt/tree"
	umount "$mnt"
	losetup -d /dev/loopr0
	wait_for 10 unbound /dev/loopr0
	# The C driver reads the data that the module wrote.
	mount -o loop "$image" "$mnt"
	diff -r /usr/lib/udev/rules.d "$mnt/tree"
	umount "$mnt"
}

partitions() {
	local image
	image=$(backing tmpfs 8)
	noise "$image" 8
	sfdisk -q "$image" <<<'start=2048, size=8192'
	losetup -P /dev/loopr1 "$image"
	wait_for 10 test -b /dev/loopr1p1 || fail "no /dev/loopr1p1"
	cmp -i 1M:0 -n 4M "$image" /dev/loopr1p1
	losetup -d /dev/loopr1
	wait_for 10 unbound /dev/loopr1
}

# The C driver does not take the module's devices for loop devices, so only the module can prevent a
# cycle.
stacked() {
	local image device
	image=$(backing tmpfs 8)
	noise "$image" 8
	losetup /dev/loopr1 "$image"
	device=$(attach /dev/loopr1)
	equal 'driver above' "$device" /dev/loop0
	cmp "$image" "$device"
	refuse 'Invalid argument' losetup /dev/loopr2 "$device"
	losetup -d "$device"
	wait_for 10 unbound "$device"
	losetup -d /dev/loopr1
	wait_for 10 unbound /dev/loopr1
}

control() {
	equal ADD "$(CONTROL=/dev/loopr-control python3 "$tests/lib.py" LOOP_CTL_ADD 50)" 50
	wait_for 10 test -b /dev/loopr50
	[[ -e /sys/block/loopr50 && ! -e /sys/block/loop50 ]]
	equal GET_FREE "$(CONTROL=/dev/loopr-control python3 "$tests/lib.py" LOOP_CTL_GET_FREE 0)" 0
	wait_for 10 removed || fail "loopr50 cannot be removed"
	[[ ! -e /sys/block/loopr50 ]]
}

removed() { CONTROL=/dev/loopr-control python3 "$tests/lib.py" LOOP_CTL_REMOVE 50; }

# The command tells the drivers apart, and attaches to devices of the module.
command() {
	local image other device command=$tests/../dist/rnull-loop
	image=$(backing tmpfs 8)
	other=$(attach "$(backing tmpfs 8 other)")
	device=$("$command" attach "$image")
	equal device "$device" /dev/loopr0
	equal status "$("$command" status | awk 'NR == 1 || /^.dev/ { print $1, $5, $6 }' | xargs)" \
		"/dev/loop* the C $other - no $device - no"
	refuse 'may be loop0 or loopr0: give the name' "$command" explain 0
	equal detach "$("$command" detach loopr0)" '/dev/loopr0 is detached.'
	losetup -d "$other"
}

# What others free and take meanwhile is most of the difference between turns.
memory() {
	local name c_idle c_attached idle attached rest
	no_udev || stop_udev
	{
		read -r name c_idle c_attached rest
		read -r name idle attached rest
	} < <("$tests/../scripts/guest/devices" 100 2 /dev/loop /dev/loopr)
	echo "# KiB per device, C driver and module: idle $c_idle $idle, attached $c_attached $attached"
	awk "BEGIN { exit !($idle < 1.4 * $c_idle && $attached < 1.5 * $c_attached) }" ||
		fail "a device costs $idle KiB, attached $attached; with the C driver $c_idle, $c_attached ($name $rest)"
}

check "both drivers have their own names and numbers" beside names
check "losetup and lsblk see the devices of both" beside tools
check "a file system is read by the other driver afterwards" beside file_system
check "partitions" beside partitions
check "a device of the C driver on one of the module, but not the reverse" beside stacked
check "the module has its own control node" beside control
check "rnull-loop tells the devices of both drivers apart" beside command
check "a device costs little more memory than with the C driver" beside memory
run_checks
