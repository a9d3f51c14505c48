#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The tunables of the routes to the file, in /sys/block/loopN/rnull_loop: on after each attach,
# changed only by root, to 0 or 1, and independent of each other. Their effect is tested in
# routes.py.
. "$(dirname "$0")/lib.sh"

[[ $driver == rnull_loop ]] || skip_all "the C driver has no such tunables"
tunables=(inline remap extents nowait)

tunable() { echo "/sys/block/${device#/dev/}/rnull_loop/$1"; }

# shows VALUE...: the values of the tunables.
shows() {
	local name
	for name in "${tunables[@]}"; do
		equal "$name" "$(<"$(tunable "$name")")" "$1"
		shift
	done
}

attached() { device=$(attach "$(backing tmpfs 1)"); }

there() {
	local name
	attached
	for name in "${tunables[@]}"; do
		equal "mode and owner of $name" "$(stat -c '%a %U' "$(tunable "$name")")" '644 root'
	done
	shows 1 1 1 1
	detach "$device"
	shows 1 1 1 1
}

independent() {
	attached
	echo 0 >"$(tunable inline)"
	shows 0 1 1 1
	echo 0 >"$(tunable remap)"
	shows 0 0 1 1
	echo 1 >"$(tunable inline)"
	shows 1 0 1 1
	echo 0 >"$(tunable nowait)"
	shows 1 0 1 0
	# Without a newline, too.
	printf 1 >"$(tunable remap)"
	shows 1 1 1 0
	echo 0 >"$(tunable extents)"
	shows 1 1 0 0
	detach "$device"
}

# write_to NAME VALUE: prints the error of the write.
write_to() { printf %s "$2" | dd of="$(tunable "$1")" conv=notrunc status=none; }

refuses() {
	local name value start
	attached
	for name in "${tunables[@]}"; do
		for start in 0 1; do
			echo "$start" >"$(tunable "$name")"
			for value in 2 -1 01 10 on '1 ' $'\n' $'1\n\n' $'0\n1'; do
				refuse 'Invalid argument' write_to "$name" "$value"
				equal "$name after '$value'" "$(<"$(tunable "$name")")" "$start"
			done
		done
	done
	shows 1 1 1 1
	detach "$device"
}

reset_at_attach() {
	local name before
	attached
	before=$device
	for name in "${tunables[@]}"; do echo 0 >"$(tunable "$name")"; done
	shows 0 0 0 0
	# Changes of a bound device keep the values.
	losetup --direct-io=on "$device" 2>/dev/null || :
	losetup -c "$device"
	shows 0 0 0 0
	detach "$device"
	device=$(losetup -f --show "$scratch/tmpfs/image")
	equal device "$device" "$before"
	shows 1 1 1 1
	detach "$device"
}

# Each device has its own tunables.
each_device() {
	local other
	attached
	other=$device
	echo 0 >"$(tunable remap)"
	device=$(attach "$(backing tmpfs 1 other)")
	shows 1 1 1 1
	device=$other
	shows 1 0 1 1
}

unprivileged() {
	local name
	attached
	for name in "${tunables[@]}"; do
		equal "$name" "$(setpriv --reuid=nobody --regid=nogroup --clear-groups cat "$(tunable "$name")")" 1
		refuse 'Permission denied' setpriv --reuid=nobody --regid=nogroup --clear-groups \
			tee "$(tunable "$name")"
	done
	shows 1 1 1 1
	detach "$device"
}

check "tunables exist, and are on" there
check "tunables take 0 and 1, each by itself" independent
check "tunables refuse other values" refuses
check "tunables are on again after the next attach" reset_at_attach
check "tunables of one device do not affect another" each_device
check "tunables can be read, but not changed, without privilege" unprivileged
run_checks
