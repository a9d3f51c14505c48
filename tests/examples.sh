#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The examples for udev and systemd work.
. "$(dirname "$0")/lib.sh"

examples=$tests/../dist/examples
rules=/run/udev/rules.d/60-rnull_loop.rules

# Rules set the tunables of devices by their backing files.
rules() {
	local image device
	mkdir -p /run/udev/rules.d
	trap 'rm -f "$rules"; udevadm control --reload' EXIT
	sed "s|/var/lib/snapd/snaps|$scratch|" "$examples/60-rnull_loop.rules" >"$rules"
	udevadm control --reload
	image=$(backing tmpfs 1)
	device=$(attach "$image")
	udevadm settle
	equal dontcache "$(attribute "$device" rnull_loop/dontcache)" 1
	equal enospc "$(attribute "$device" rnull_loop/enospc)" error
	detach "$device"
	sed -i "s|$scratch|/other|; s|/srv/images|$scratch|" "$rules"
	udevadm control --reload
	device=$(attach "$image")
	udevadm settle
	equal dontcache "$(attribute "$device" rnull_loop/dontcache)" 0
	equal enospc "$(attribute "$device" rnull_loop/enospc)" wait
}

# The unit calls the command, which the test `command` tries.
units() {
	local program arguments
	type -P systemd-analyze >/dev/null || skip "there is no systemd"
	read -r program arguments < <(sed -n 's/^ExecStart=-//p' "$examples/rnull-loop-resize@.service")
	equal program "$program $arguments" '/usr/sbin/rnull-loop resize %f'
	install "$examples/../rnull-loop" "$program"
	cp "$examples"/rnull-loop-resize@.* /run/systemd/system/ 2>/dev/null ||
		{ mkdir -p /run/systemd/system && cp "$examples"/rnull-loop-resize@.* /run/systemd/system/; }
	systemd-analyze verify rnull-loop-resize@tmp-image.path
	rm -f "$program" /run/systemd/system/rnull-loop-resize@.*
}

[[ $driver == rnull_loop ]] || skip_all "the C driver has no tunables"
check "a rule for udev sets tunables by the backing file" rules
check "units for systemd are valid" units
run_checks
