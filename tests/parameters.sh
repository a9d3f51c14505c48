#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Parameters of the module work as documented, and invalid values are refused with nothing left
# behind.
. "$(dirname "$0")/lib.sh"

# with PARAMETER... -- COMMAND...: loads the module with the parameters for a case.
with() {
	local parameters=()
	while [[ $1 != -- ]]; do
		parameters+=("$1")
		shift
	done
	shift
	trap 'back_to_defaults' EXIT
	wait_for 10 unload_driver 2>/dev/null
	load_driver "${parameters[@]}"
	"$@"
}

# Restores the module's defaults, for the next case and the clean-up.
# shellcheck disable=SC2317  # called by the trap
back_to_defaults() {
	local status=$?
	losetup -D || :
	wait_for 10 unload_driver 2>/dev/null || :
	load_driver
	exit "$status"
}

# A device with direct I/O works.
works() {
	local image device
	image=$(backing tmpfs 8)
	device=$(attach --direct-io=on "$image")
	fio --name=works --filename="$device" --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite \
		--bs=4k --size=8m "${verified[@]}" --numjobs=1 \
		--output-format=terse
	cmp "$image" "$device"
}

queue_depth() {
	local image device
	works
	device=$(attach "$(backing tmpfs 1 depth)")
	equal nr_requests "$(attribute "$device" queue/nr_requests)" "$1"
}

hardware_queues() {
	local device wanted=$1
	((wanted)) || wanted=1
	works
	device=$(attach "$(backing tmpfs 1 queues)")
	equal 'hardware queues' "$(find "/sys/block/${device#/dev/}/mq" -mindepth 1 -maxdepth 1 | wc -l)" "$wanted"
}

devices() { equal devices "$(find /sys/block -name 'loop*' | wc -l)" "$1"; }

# shown NAME=VALUE...: the parameters can be read, and not written.
shown() {
	local setting file
	for setting; do
		file=/sys/module/$driver/parameters/${setting%=*}
		equal "${setting%=*}" "$(<"$file")" "${setting#*=}"
		equal "mode of ${setting%=*}" "$(stat -c %a "$file")" 444
	done
}

# on_demand NUMBER ERROR: opening a node makes its device, unless max_loop forbids it.
on_demand() {
	mknod "$scratch/node" b 7 "$1"
	if [[ -n $2 ]]; then
		refuse "$2" dd if="$scratch/node" of=/dev/null count=1
		[[ ! -e /sys/block/loop$1 ]]
	else
		dd if="$scratch/node" of=/dev/null count=1 status=none
		[[ -e /sys/block/loop$1 ]]
	fi
	rm "$scratch/node"
}

partition_minors() {
	local image device
	image=$(backing tmpfs 8)
	sfdisk -q "$image" <<-EOT
		label: dos
		start=2048, size=8192
	EOT
	device=$(attach "$image")
	# Every device scans, and partitions have minors beside it.
	wait_for 10 test -b "${device}p1"
	equal 'number' "$(attribute "$device" "${device#/dev/}p1/dev")" "7:$((16 * ${device#/dev/loop} + 1))"
	equal partscan "$(attribute "$device" loop/partscan)" 1
}

# With 16 minors a device, 65535 is the last number. The minors of larger numbers, in 32 bits, are
# those of other devices.
huge_numbers() {
	local number
	for number in 65536 $((1 << 28)) $(((1 << 28) + 256)); do
		equal "LOOP_CTL_ADD $number" "$(python3 "$tests/lib.py" LOOP_CTL_ADD "$number" || :)" -EINVAL
	done
	equal 'LOOP_CTL_ADD 65535' "$(python3 "$tests/lib.py" LOOP_CTL_ADD 65535)" 65535
}

# tunables NAME=VALUE...: the tunables of a device have these values at each attach.
tunables() {
	local device image setting
	image=$(backing tmpfs 1)
	for _ in 1 2; do
		device=$(attach "$image")
		for setting; do
			equal "${setting%=*}" "$(attribute "$device" "rnull_loop/${setting%=*}")" "${setting#*=}"
			echo $((1 - ${setting#*=})) >"/sys/block/${device#/dev/}/rnull_loop/${setting%=*}"
		done
		detach "$device"
	done
}

# With dio=auto all files that can use direct I/O do, until user space switches it off.
direct_by_default() {
	local image device
	image=$(backing ext4 32)
	mkfs.ext4 -q "$image"
	device=$(attach "$image")
	equal 'losetup' "$(attribute "$device" loop/dio)" 1
	losetup --direct-io=off "$device"
	equal 'losetup --direct-io=off' "$(attribute "$device" loop/dio)" 0
	detach "$device"
	mkdir -p "$scratch/mounted"
	mount -o loop "$image" "$scratch/mounted"
	device=$(findmnt -no SOURCE "$scratch/mounted")
	equal 'mount -o loop' "$(attribute "$device" loop/dio)" 1
	umount "$scratch/mounted"
	# Without a word about direct I/O, a file that cannot is no reason for one in the log.
	dmesg -C
	device=$(attach /proc/config.gz 2>/dev/null || attach /proc/kallsyms 2>/dev/null || :)
	[[ -z $device ]] || detach "$device"
	! dmesg | grep 'direct I/O' || fail "a line in the log"
}

# As snapd mounts a snap. The pages of its image are not cached a second time.
snap() {
	local image device
	image=$(backing ext4 0)
	mkdir "$scratch/tree"
	dd if=/dev/urandom of="$scratch/tree/data" bs=1M count=8 status=none
	mksquashfs "$scratch/tree" "$image" -quiet -no-progress -noappend
	mount -t squashfs "$image" "$mnt" -o nodev,ro
	device=$(findmnt -no SOURCE "$mnt")
	equal 'dio' "$(attribute "$device" loop/dio)" 1
	sync "$image"
	dd if="$image" iflag=nocache count=0 status=none
	cmp "$scratch/tree/data" "$mnt/data"
	equal 'cached bytes of the image' "$(fincore -nbo RES "$image" | tr -d ' ')" 0
	umount "$mnt"
	rm -r "$scratch/tree"
}

# has_waited DEVICE: whether a write has waited for space.
has_waited() { ! grep -q '^retry_nospc 0$' "/sys/block/${1#/dev/}/rnull_loop/stats"; }

# The module can be unloaded after writes have waited, and the device was detached.
waits_for_space() {
	local device writer
	mkdir -p "$scratch/small"
	mount -t tmpfs -o size=1M tmpfs "$scratch/small"
	truncate -s 4M "$scratch/small/image"
	device=$(attach "$scratch/small/image")
	equal enospc "$(attribute "$device" rnull_loop/enospc)" wait
	equal parameter "$(</sys/module/rnull_loop/parameters/enospc)" wait
	dd if=/dev/zero of="$device" bs=64k oflag=direct status=none &
	writer=$!
	wait_for 10 has_waited "$device" || fail "no write waits"
	detach "$device"
	! wait "$writer" || fail "the writer has succeeded"
	umount "$scratch/small"
}

# refused PARAMETER...: the module does not load with any of the values, and does load afterwards.
refused() {
	local bad
	trap 'back_to_defaults' EXIT
	wait_for 10 unload_driver 2>/dev/null
	for bad; do
		echo "$bad"
		refuse 'Invalid' load_driver "$bad"
		[[ ! -e /sys/module/$driver && ! -e /dev/loop-control && ! -e /sys/block/loop0 ]]
		! grep -q ' loop$' /proc/devices || fail "major 7 is still registered"
	done
	load_driver
	works
}

# only_ours COMMAND...: runs cases of parameters that the C driver does not have.
only_ours() {
	[[ $driver == rnull_loop ]] || skip "the C driver has no such parameter"
	"$@"
}

for depth in 1 2 1024; do
	check "hw_queue_depth=$depth" with hw_queue_depth=$depth -- queue_depth $depth
done
for queues in 0 1 2; do
	check "nr_hw_queues=$queues" only_ours with nr_hw_queues=$queues -- hardware_queues $queues
done
check "nr_hw_queues=1 hw_queue_depth=1" only_ours with nr_hw_queues=1 hw_queue_depth=1 -- works
check "without parameters: 8 devices" with -- devices 8
for loops in 0 3 40; do
	check "max_loop=$loops" with max_loop=$loops -- devices $loops
done
for loops in '' max_loop=0; do
	check "opening a node makes its device: ${loops:-no max_loop}" with $loops -- on_demand 40 ''
done
check "max_loop=4 limits the devices made by opening nodes" with max_loop=4 -- on_demand 4 'No such device or address'
check "max_part=10, rounded up to 15" with max_part=10 -- partition_minors
check_better "the C driver makes a device with the minor numbers of another one" \
	"LOOP_CTL_ADD of numbers without minors" with max_part=15 -- huge_numbers
check "the defaults are shown" with -- shown max_loop=8 max_part=0 hw_queue_depth=128
check "max_loop=0x10 max_part=10 hw_queue_depth=64 are shown, max_part rounded up to 15" \
	with max_loop=0x10 max_part=10 hw_queue_depth=64 -- shown max_loop=16 max_part=15 hw_queue_depth=64
check "nr_hw_queues=1 and standalone are shown" only_ours with nr_hw_queues=1 -- shown nr_hw_queues=1 standalone=N
for switches in 'inline=1 remap=1 nowait=1 extents=1 dontcache=0' 'inline=0 remap=0 nowait=0 extents=0 dontcache=1'; do
	# shellcheck disable=SC2086  # words
	check "defaults of tunables: $switches" only_ours with $switches -- tunables $switches
done
check "tunables without parameters" only_ours with -- tunables inline=1 remap=1 nowait=1 extents=1 dontcache=0
check "dio=auto" only_ours with dio=auto -- direct_by_default
check "dio=auto, and a snap" only_ours with dio=auto -- snap
check "enospc=wait is the default of a tunable, and the module can be unloaded after writes have waited" \
	only_ours with enospc=wait -- waits_for_space
check "invalid values are refused" refused hw_queue_depth=0 hw_queue_depth=-1 hw_queue_depth=x max_part=256 \
	max_loop=1048577 max_loop=y
check "invalid numbers of hardware queues and switches are refused" \
	only_ours refused nr_hw_queues=-1 nr_hw_queues=z extents=2 enospc=0 enospc=waits \
	dio=on dio= dontcache=2 inline=x
run_checks
