#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Beside the kernel's own loop driver the module cannot be loaded: EBUSY, and one line in the log
# with the reason. The other driver is not affected.
. "$(dirname "$0")/lib.sh"

[[ $driver == rnull_loop ]] || skip_all "this is about rnull_loop"

beside_c_driver() {
	local image device lines
	wait_for 10 unload_driver 2>/dev/null
	modprobe loop
	image=$(backing tmpfs 4)
	noise "$image" 4
	device=$(attach "$image")
	dmesg -C
	refuse 'Device or resource busy' load_driver
	[[ ! -e /sys/module/rnull_loop ]]
	lines=$(dmesg)
	equal 'lines of the log' "$(wc -l <<<"$lines")" 1
	[[ $lines == *rnull_loop:*'major 7'* ]] || fail "the log says: $lines"
	cmp "$image" "$device"
	detach "$device"
	# udev may still have a device open.
	wait_for 10 rmmod loop
	load_driver
	equal 'device of ours' "$(attach "$image")" "$device"
	cmp "$image" "$device"
}

check "insmod beside the C driver" beside_c_driver
run_checks
