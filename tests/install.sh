#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# `make install` makes the module the system's loop driver for whoever asks for one: by the name
# `loop`, by opening a node, by `mount -o loop`; parameters arrive as they do at the C driver. Kernels
# without the module keep the C driver, and `make uninstall` leaves nothing behind. The real kmod
# works on a tree of modules and a configuration of each case's own.
. "$(dirname "$0")/lib.sh"

repo=$(cd "$tests/.." && pwd -P)
release=$(uname -r)
modules=/lib/modules/$release
conf=/etc/modprobe.d/rnull_loop.conf
# What `modprobe loop` is to load.
expected=$driver

[[ $driver != none ]] || skip_all "no loop driver is loaded"

# The modules that the cases need; with all of them depmod would take a minute.
make_tree() {
	local needed
	needed=$(modprobe -a --show-depends brd ext4 | sed -n "s|^insmod $modules/\([^ ]*\).*|\1|p" | sort -u)
	mkdir -p "$scratch/root$modules"
	# shellcheck disable=SC2086 # a list of words
	(cd "$modules" && cp --parents $needed kernel/drivers/block/loop.ko* modules.builtin* modules.order "$scratch/root$modules")
	depmod -b "$scratch/root" "$release"
}

# fresh COMMAND...: a case on a machine that has just booted, nothing of ours installed, no driver
# loaded.
fresh() {
	[[ -d $scratch/root ]] || make_tree
	trap 'back' EXIT
	wait_for 10 unload_driver 2>/dev/null
	rm -f /dev/loop*
	mount -t tmpfs modules "$modules"
	cp -a "$scratch/root$modules/." "$modules"
	mount -t tmpfs modprobe.d /etc/modprobe.d
	mount -t tmpfs modprobe.d /run/modprobe.d
	"$@"
}

# installed COMMAND...: as `fresh`, with the driver under test as the system's.
installed() { fresh install_and "$@"; }
install_and() {
	[[ $driver == loop ]] || "$repo/scripts/install"
	"$@"
}

# The next case, and what cleans up after this one, find all as it was.
# shellcheck disable=SC2317 # called by the trap
back() {
	local status=$?
	unmount_below "$mnt"
	losetup -D || :
	wait_for 10 nothing_loaded || :
	umount -q /proc/cmdline || :
	# udev keeps the lists of modules open.
	umount -l "$modules" /etc/modprobe.d /run/modprobe.d
	rm -f /dev/loop*
	load_driver
	exit "$status"
}

nothing_loaded() {
	local name
	for name in $(drivers); do rmmod "$name" 2>/dev/null || return 1; done
}

# Of what only the module can be asked.
only_ours() {
	[[ $driver == rnull_loop ]] || skip "the C driver needs no installation"
	"$@"
}

drivers() { find /sys/module -maxdepth 1 \( -name loop -o -name rnull_loop \) -printf '%f\n'; }
devices() { find /sys/block -maxdepth 1 -name 'loop*' | wc -l; }
loaded() { equal 'drivers loaded' "$(drivers | xargs)" "$1"; }

# udev, which opens a node that is about to go, loads the driver again.
unload() {
	udevadm settle
	wait_for 10 unloaded 2>/dev/null || fail "modprobe -r loop: $(modprobe -r loop 2>&1)"
}

unloaded() { modprobe -r loop && [[ -z $(drivers) ]]; }

# What a system makes at boot; opening it loads the driver.
control_node() {
	rm -f /dev/loop-control
	kmod static-nodes --format=tmpfiles | grep -m 1 loop-control >"$scratch/nodes"
	systemd-tmpfiles --create --boot "$scratch/nodes"
	[[ -c /dev/loop-control ]]
	loaded ''
}

# --- whoever asks

by_name() {
	modprobe -qn loop
	loaded ''
	modprobe loop
	loaded "$expected"
	grep -q '^ *7 loop$' /proc/devices
	[[ -c /dev/loop-control ]]
	modprobe loop
	refuse 'already in kernel' modprobe --first-time loop
	unload
	modprobe -r loop
	# What modprobe@loop.service calls.
	modprobe -abq loop
	loaded "$expected"
	unload
}

by_control_node() {
	local image device
	image=$(backing tmpfs 4)
	noise "$image" 1
	control_node
	device=$(attach "$image")
	loaded "$expected"
	cmp "$image" "$device"
	detach "$device"
	unload
}

by_device_node() {
	mknod "$scratch/node" b 7 5
	equal size "$(blockdev --getsize64 "$scratch/node")" 0
	loaded "$expected"
	unload
}

by_mount() {
	local image
	image=$(backing tmpfs 8)
	mkfs.ext4 -q -d "$tests/host" "$image"
	control_node
	mount -o loop "$image" "$mnt"
	loaded "$expected"
	diff -r --exclude=lost+found "$tests/host" "$mnt"
	refuse 'in use' modprobe -r loop
	umount "$mnt"
	unload
}

# --- parameters

# both_ways DEVICES: what is configured arrives by name and by node.
both_ways() {
	modprobe loop
	equal 'devices by name' "$(devices)" "$1"
	unload
	control_node
	: <>/dev/loop-control
	loaded "$expected"
	equal 'devices by node' "$(devices)" "$1"
	unload
}

from_the_command_line() {
	modprobe loop max_loop=5 max_part=8
	loaded "$expected"
	equal devices "$(devices)" 5
	equal 'device number' "$(<"/sys/block/loop1/dev")" 7:16
	unload
	refuse 'Invalid argument' modprobe loop max_loop=y
	loaded ''
}

from_a_file() {
	echo 'options loop max_loop=3' >/etc/modprobe.d/user.conf
	both_ways 3
	modprobe loop max_part=8
	equal devices "$(devices)" 3
	equal 'device number' "$(<"/sys/block/loop1/dev")" 7:16
	unload
}

# The last one counts.
from_both() {
	echo 'options loop max_loop=3' >/etc/modprobe.d/user.conf
	modprobe loop max_loop=5
	loaded "$expected"
	equal devices "$(devices)" 5
	unload
}

from_the_kernel_command_line() {
	echo "$(</proc/cmdline) loop.max_loop=4" >"$scratch/cmdline"
	mount --bind "$scratch/cmdline" /proc/cmdline
	both_ways 4
}

# --- the module alone

# The driver that is loaded goes on until it is taken out.
switched() {
	local image device before
	before=$(cd "$modules" && find . -type f ! -name 'modules.*' | sort)
	image=$(backing tmpfs 4)
	noise "$image" 4
	modprobe loop
	loaded loop
	device=$(attach "$image")
	make -C "$repo" install >"$scratch/says"
	grep -q 'losetup -D; modprobe -r loop; modprobe loop' "$scratch/says"
	loaded loop
	cmp "$image" "$device"
	losetup -D
	unload
	modprobe loop
	loaded rnull_loop
	device=$(attach "$image")
	cmp "$image" "$device"
	make -C "$repo" install
	make -C "$repo" uninstall >"$scratch/says"
	grep -q 'losetup -D; rmmod rnull_loop; modprobe loop' "$scratch/says"
	loaded rnull_loop
	cmp "$image" "$device"
	losetup -D
	wait_for 10 rmmod rnull_loop
	modprobe loop
	loaded loop
	equal 'files of modules' "$(cd "$modules" && find . -type f ! -name 'modules.*' | sort)" "$before"
	[[ ! -e $modules/updates ]] || fail "updates is still there"
	! grep -q rnull "$modules"/modules.{dep,alias,devname} || fail "depmod was not run"
	equal configuration "$(ls -A /etc/modprobe.d)" ''
	unload
	control_node
	: <>/dev/loop-control
	loaded loop
	unload
	equal 'a second uninstall' "$("$repo/scripts/install" --remove)" ''
}

# As after an upgrade to a kernel of another series.
kernel_without_it() {
	make -C "$repo" install
	rm "$modules/updates/rnull-loop.ko"
	depmod
	expected=loop
	by_control_node
	from_a_file
	from_both
}

below_destdir() {
	local files
	make -C "$repo" install DESTDIR="$scratch/package"
	files=$(cd "$scratch/package" && find . -type f | sort | xargs)
	equal files "$files" ".$conf .$modules/updates/rnull-loop.ko"
	cmp "$repo/rnull-loop.ko" "$scratch/package$modules/updates/rnull-loop.ko"
	cmp "$repo/dist/rnull_loop.conf" "$scratch/package$conf"
	[[ ! -e $modules/updates && ! -e $conf ]] || fail "something was installed outside"
}

refusals() {
	refuse 'is built for kernel' "$repo/scripts/install" --release 7.3.99-amd64
	refuse 'not of the 7.3 series' "$repo/scripts/install" --release 6.12.0-amd64
	refuse 'needs root' setpriv --reuid 65534 --clear-groups "$repo/scripts/install"
	refuse 'needs root' setpriv --reuid 65534 --clear-groups "$repo/scripts/install" --remove
	refuse 'unknown argument' "$repo/scripts/install" --now
	mkdir -p "$scratch/unbuilt/scripts"
	cp "$repo"/scripts/{lib.sh,install} "$scratch/unbuilt/scripts"
	cp "$repo/dkms.conf" "$scratch/unbuilt"
	refuse 'run make' "$scratch/unbuilt/scripts/install"
	[[ ! -e $modules/updates && ! -e $conf ]] || fail "something was installed"
}

check "modprobe loop, modprobe -r loop" installed by_name
check "opening /dev/loop-control loads it" installed by_control_node
check "opening a node of major 7 loads it" installed by_device_node
check "mount -o loop loads it" installed by_mount
check "parameters from the command line" installed from_the_command_line
check "parameters from a file" installed from_a_file
check "a parameter from a file and from the command line" installed from_both
check "parameters from the kernel's command line" installed from_the_kernel_command_line
check "from the C driver to the module and back" only_ours fresh switched
check "a kernel without the module keeps the C driver" only_ours fresh kernel_without_it
check "make install DESTDIR=..." only_ours fresh below_destdir
check "what cannot be installed is refused" only_ours fresh refusals
run_checks
