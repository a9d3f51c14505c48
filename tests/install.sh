#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# `make install` makes the module the system's loop driver, which is loaded by the name `loop`, by
# opening a node, and by `mount -o loop`; it gets the same parameters as the C driver. Kernels
# without the module keep the C driver, and `make uninstall` removes every file. Each case gives the
# real kmod a tree of modules and a configuration of its own.
. "$(dirname "$0")/lib.sh"

repo=$(cd "$tests/.." && pwd -P)
release=$(uname -r)
modules=/lib/modules/$release
conf=/etc/modprobe.d/zz-rnull_loop.conf
old_conf=/etc/modprobe.d/rnull_loop.conf
# Another kernel, for which the module is not installed.
other=7.3.99-other
# The module that `modprobe loop` must load.
expected=$driver
was_unloaded=''

[[ $driver != none ]] || skip_all "no loop driver is loaded"

# Makes a tree of the modules that the cases need; with all modules depmod would take a minute.
make_tree() {
	local needed
	needed=$(modprobe -a --show-depends brd ext4 | sed -n "s|^insmod $modules/\([^ ]*\).*|\1|p" | sort -u)
	mkdir -p "$scratch/root$modules"
	# shellcheck disable=SC2086 # a list of words
	(cd "$modules" && cp --parents $needed kernel/drivers/block/loop.ko* modules.builtin* modules.order "$scratch/root$modules")
	depmod -b "$scratch/root" "$release"
}

# in_tree COMMAND...: runs a case with a tree of modules and a configuration of its own; the module
# is not installed there.
in_tree() {
	[[ -d $scratch/root ]] || make_tree
	trap 'back' EXIT
	mount -t tmpfs modules "$modules"
	cp -a "$scratch/root$modules/." "$modules"
	mount -t tmpfs modprobe.d /etc/modprobe.d
	mount -t tmpfs modprobe.d /run/modprobe.d
	"$@"
}

# fresh COMMAND...: works like `in_tree`, as on a machine that has just booted: no driver is loaded.
fresh() {
	was_unloaded=1
	trap 'back' EXIT
	wait_for 10 unload_driver 2>/dev/null
	rm -f /dev/loop*
	in_tree "$@"
}

# installed COMMAND...: works like `fresh`, with the driver under test installed as the system's.
installed() { fresh install_and "$@"; }
install_and() {
	if [[ -d $scratch/installed ]]; then
		cp -a "$scratch/installed/modules/." "$modules"
		cp -a "$scratch/installed/modprobe.d/." /etc/modprobe.d
	elif [[ $driver != loop ]]; then
		"$repo/scripts/install"
		mkdir "$scratch/installed"
		cp -a "$modules" "$scratch/installed/modules"
		cp -a /etc/modprobe.d "$scratch/installed"
	fi
	"$@"
}

# Restores the state before the case, for the next case and the clean-up.
# shellcheck disable=SC2317 # called by the trap
back() {
	local status=$?
	unmount_below "$mnt"
	losetup -D || :
	[[ -z $was_unloaded ]] || wait_for 10 nothing_loaded || :
	umount -q /proc/cmdline || :
	umount -lq /var/lib/dkms || :
	# udev keeps the lists of modules open.
	umount -l "$modules" /etc/modprobe.d /run/modprobe.d
	rm -rf "/lib/modules/$other"
	if [[ -n $was_unloaded ]]; then
		rm -f /dev/loop*
		load_driver
	fi
	exit "$status"
}

nothing_loaded() {
	local name
	for name in $(drivers); do rmmod "$name" 2>/dev/null || return 1; done
}

# only_ours COMMAND...: runs cases that make sense for the module only.
only_ours() {
	[[ $driver == rnull_loop ]] || skip "the C driver needs no installation"
	"$@"
}

# scripts_only COMMAND...: runs cases of the scripts, in which the kernel makes no difference.
scripts_only() {
	[[ -z $slow ]] || skip "the kernel makes no difference"
	only_ours "$@"
}

drivers() { find /sys/module -maxdepth 1 \( -name loop -o -name rnull_loop \) -printf '%f\n' | sort; }
devices() { find /sys/block -maxdepth 1 -name 'loop*' | wc -l; }
loaded() { equal 'drivers loaded' "$(drivers | xargs)" "$1"; }

# Repeats, because udev may open a node that is being removed, and load the driver again.
unload() {
	udevadm settle
	wait_for 10 unloaded 2>/dev/null || fail "modprobe -r loop: $(modprobe -r loop 2>&1)"
}

unloaded() { modprobe -r loop && [[ -z $(drivers) ]]; }

# Makes the node that a system makes at boot; opening it loads the driver.
control_node() {
	rm -f /dev/loop-control
	kmod static-nodes --format=tmpfiles | grep -m 1 loop-control >"$scratch/nodes"
	systemd-tmpfiles --create --boot "$scratch/nodes"
	[[ -c /dev/loop-control ]]
	loaded ''
}

# --- loading

by_name() {
	modprobe -qn loop
	loaded ''
	modprobe loop
	loaded "$expected"
	grep -q '^ *7 loop$' /proc/devices
	[[ -c /dev/loop-control ]]
	modprobe loop
	# modprobe does not pass --first-time to an install rule.
	[[ $driver == rnull_loop ]] || refuse 'already in kernel' modprobe --first-time loop
	unload
	modprobe -r loop
	# The command of modprobe@loop.service.
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

# both_ways DEVICES: the configuration has effect by name and by node.
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

# The command line wins over the file.
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

# --- the C driver instead, or none

# break_module OLD NEW: replaces a string in the installed module by another of its length, so that
# the kernel refuses the module.
break_module() {
	LC_ALL=C sed -i "s/$1/$2/g" "$modules/updates/rnull-loop.ko"
	refuse "could not insert 'rnull_loop'" modprobe rnull_loop
}

# falls_back OLD NEW
falls_back() {
	break_module "$@"
	expected=loop
	from_the_command_line
	from_a_file
}

# prefers_c LINE: the administrator's configuration LINE selects the C driver.
prefers_c() {
	echo "$1" >/etc/modprobe.d/user.conf
	expected=loop
	by_name
}

prefers_c_at_boot() {
	echo "$(</proc/cmdline) modprobe.blacklist=rnull_loop" >"$scratch/cmdline"
	mount --bind "$scratch/cmdline" /proc/cmdline
	expected=loop
	by_control_node
}

# "install" applies to the name, "blacklist" to the alias that an open of a node requests.
banned() {
	local name
	for name in a-ban zz-ban; do
		echo 'install loop /bin/false' >"/etc/modprobe.d/$name.conf"
		refuse 'Error running install command' modprobe loop
		node_loads_nothing
		rm "/etc/modprobe.d/$name.conf"
	done
	echo 'blacklist loop' >/etc/modprobe.d/zzz-ban.conf
	node_loads_nothing
	modprobe -abq loop || :
	loaded ''
}

node_loads_nothing() {
	control_node
	refuse 'No such device' bash -c ': <>/dev/loop-control'
	loaded ''
	rm /dev/loop-control
}

# With standalone=1 the module does not provide /dev/loopN.
beside() {
	modprobe rnull_loop standalone=1
	modprobe loop
	loaded 'loop rnull_loop'
	# udev may still have a device open.
	wait_for 10 modprobe -r loop
	loaded rnull_loop
}

# An open of a node during the unload requests the driver. The module cannot be loaded at that time;
# the C driver must not be loaded in its place, because it would find the devices.
while_unloading() {
	local unloading
	modprobe loop max_loop=128
	loaded rnull_loop
	rm -f /dev/loop-control
	mknod /dev/loop-control c 10 237
	udevadm settle
	wait_for 10 modprobe -r loop &
	unloading=$!
	while kill -0 "$unloading" 2>/dev/null; do
		: 2>/dev/null <>/dev/loop-control || :
		[[ ! -e /sys/module/loop ]] || fail 'the C driver is loaded'
	done
	wait "$unloading"
	unload
}

# Initramfs tools find a driver by this modprobe command.
in_initramfs() {
	local kernel
	mkdir -p "/lib/modules/$other"
	cp -a "$modules/." "/lib/modules/$other"
	rm -rf "/lib/modules/$other/updates"
	depmod "$other"
	for kernel in "$release" "$other"; do
		modprobe -S "$kernel" --ignore-install --quiet --show-depends loop >"$scratch/depends"
		grep -q '^insmod .*/loop\.ko' "$scratch/depends" || fail "not for $kernel: $(<"$scratch/depends")"
	done
}

# --- the module alone

# A driver that is loaded stays in use until it is unloaded.
switched() {
	local image device before
	before=$(cd "$modules" && find . -type f ! -name 'modules.*' | sort)
	image=$(backing tmpfs 4)
	noise "$image" 4
	modprobe loop
	loaded loop
	device=$(attach "$image")
	echo 'alias loop rnull_loop' >"$old_conf"
	make -C "$repo" install >"$scratch/says"
	[[ ! -e $old_conf ]] || fail "$old_conf still exists"
	grep -q 'no device: modprobe -r loop; modprobe loop' "$scratch/says"
	loaded loop
	cmp "$image" "$device"
	losetup -D
	unload
	modprobe loop
	loaded rnull_loop
	device=$(attach "$image")
	cmp "$image" "$device"
	make -C "$repo" install
	echo 'alias loop rnull_loop' >"$old_conf"
	make -C "$repo" uninstall >"$scratch/says"
	grep -q 'no device: rmmod rnull_loop; modprobe loop' "$scratch/says"
	loaded rnull_loop
	cmp "$image" "$device"
	losetup -D
	wait_for 10 rmmod rnull_loop
	modprobe loop
	loaded loop
	equal 'files of modules' "$(cd "$modules" && find . -type f ! -name 'modules.*' | sort)" "$before"
	[[ ! -e $modules/updates ]] || fail "updates still exists"
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
	cmp "$repo/dist/zz-rnull_loop.conf" "$scratch/package$conf"
	[[ ! -e $modules/updates && ! -e $conf ]] || fail "something was installed outside"
}

refusals() {
	mount -t tmpfs dkms /var/lib/dkms
	mkdir /var/lib/dkms/rnull_loop
	refuse 'remove the package rnull-loop-dkms first' "$repo/scripts/install"
	refuse 'is built for kernel' "$repo/scripts/install" --release 7.3.99-amd64
	refuse 'a series that this module does not support' "$repo/scripts/install" --release 6.12.0-amd64
	refuse 'needs root' setpriv --reuid 65534 --clear-groups "$repo/scripts/install"
	refuse 'needs root' setpriv --reuid 65534 --clear-groups "$repo/scripts/install" --remove
	refuse 'unknown argument' "$repo/scripts/install" --now
	mkdir -p "$scratch/unbuilt/scripts"
	cp "$repo"/scripts/{lib.sh,install} "$scratch/unbuilt/scripts"
	refuse 'run make' "$scratch/unbuilt/scripts/install"
	[[ ! -e $modules/updates && ! -e $conf ]] || fail "something was installed"
}

# copy_repo DIR: copies the files that scripts/install needs.
copy_repo() {
	mkdir "$1"
	cp -r "$repo"/{scripts,dist,rnull-loop.ko} "$1"
}

# A package is built by a user, whose PATH lacks modinfo.
below_destdir_as_user() {
	mkdir -m 777 "$scratch/users"
	copy_repo "$scratch/users/repo"
	setpriv --reuid 65534 --clear-groups env PATH=/usr/bin:/bin \
		"$scratch/users/repo/scripts/install" --destdir "$scratch/users/package"
	[[ -e $scratch/users/package$conf ]]
}

locked_down() {
	local signed=$scratch/signed
	refuse 'signed modules only' under_lockdown "$repo/scripts/install"
	[[ ! -e $modules/updates && ! -e $conf ]] || fail "something was installed"
	copy_repo "$signed"
	echo '~Module signature appended~' >>"$signed/rnull-loop.ko"
	under_lockdown "$signed/scripts/install"
	[[ -e $modules/updates/rnull-loop.ko ]]
}

# The kernel's lockdown cannot be lifted again.
under_lockdown() {
	echo 'none [integrity] confidentiality' >"$scratch/lockdown"
	# shellcheck disable=SC2016 # expanded by the inner shell
	unshare --mount --propagation private bash -euc '
		mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security
		if [[ ! -e /sys/kernel/security/lockdown ]]; then
			mount -t tmpfs tmpfs /sys/kernel/security
			touch /sys/kernel/security/lockdown
		fi
		mount --bind "$1" /sys/kernel/security/lockdown
		shift
		exec "$@"' - "$scratch/lockdown" "$@"
}

built_in() {
	echo kernel/drivers/block/loop.ko >>"$modules/modules.builtin"
	"$repo/scripts/install" >"$scratch/says"
	grep -q 'modprobe rnull_loop standalone=1' "$scratch/says"
	! grep -q 'From the next boot' "$scratch/says"
}

names_kdir() {
	rm -rf "$modules/build"
	refuse 'scripts/kdir makes one' make -C "$repo"
}

names_space() {
	mkdir "$scratch/with space"
	cp -r "$repo"/{Makefile,scripts} "$scratch/with space"
	refuse 'no path with a space' make -C "$scratch/with space"
	refuse 'no path with a space' env XDG_CACHE_HOME="$scratch/with space" make -C "$repo"
}

cleans() {
	local tree=$scratch/built
	mkdir -p "$tree/kern"
	cp -r "$repo"/{Makefile,scripts} "$tree"
	touch "$tree"/{rnull-loop.ko,rnull_loop.o,.rnull_loop.o.cmd,rnull_loop.rs,Module.symvers} \
		"$tree"/kern/{helpers.o,helpers.c,bindings_generated.rs}
	HOME=$scratch make -C "$tree" clean
	equal 'files left' "$(cd "$tree" && find . -path ./scripts -prune -o -type f -print | sort | xargs)" \
		'./Makefile ./kern/helpers.c ./rnull_loop.rs'
}

check "modprobe loop loads the module, modprobe -r loop unloads it" installed by_name
check "opening /dev/loop-control loads the module" installed by_control_node
check "opening a node of major 7 loads the module" installed by_device_node
check "mount -o loop loads the module" installed by_mount
check "parameters from the command line" installed from_the_command_line
check "parameters from a file" installed from_a_file
check "a parameter from a file and from the command line" installed from_both
check "parameters from the kernel's command line" installed from_the_kernel_command_line
check "modprobe falls back to the C driver: missing symbol" only_ours installed falls_back blk_mq_start_request blk_mq_start_requesT
check "modprobe falls back to the C driver: other kernel" only_ours installed falls_back "$release SMP" "${release%?}X SMP"
check "modprobe falls back to the C driver: blacklist rnull_loop" only_ours installed prefers_c 'blacklist rnull_loop'
check "modprobe falls back to the C driver: install rnull_loop /bin/false" only_ours installed prefers_c 'install rnull_loop /bin/false'
check "modprobe falls back to the C driver: modprobe.blacklist=rnull_loop" only_ours installed prefers_c_at_boot
check "rules of the administrator against loop stay in force" installed banned
check "modprobe loop loads the C driver beside rnull_loop standalone=1" only_ours installed beside
check "nothing loads the C driver while rnull_loop is unloaded" only_ours installed while_unloading
check "initramfs tools find loop.ko of this kernel and of another one" installed in_initramfs
check "from the C driver to the module and back" only_ours fresh switched
check "a kernel without the module keeps the C driver" only_ours fresh kernel_without_it
check "make install DESTDIR=..." scripts_only in_tree below_destdir
check "make install DESTDIR=... as a user" scripts_only in_tree below_destdir_as_user
check "make install refuses an unsigned module under lockdown" scripts_only in_tree locked_down
check "make install reports a built-in C driver" scripts_only in_tree built_in
check "make without a build directory names scripts/kdir" scripts_only in_tree names_kdir
check "make refuses a path with a space" scripts_only in_tree names_space
check "make clean works without a lab" scripts_only in_tree cleans
check "make install refuses a wrong kernel, user, option and tree" scripts_only in_tree refusals
run_checks
