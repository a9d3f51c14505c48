#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Data written is data read, on each route that requests can take to the file: each combination of
# the tunables in /sys/block/loopN/rnull_loop, where it makes a difference, on each kind of backing,
# direct and buffered. In each cell fio verifies blocks of 4 KiB to 256 KiB, in batches and one by
# one, and the detached image, read without its page cache, holds the data that the device showed
# and a pattern that was written to it, byte for byte. The same while the tunables change under I/O.
# The C driver has no tunables, so it runs only the first combination.
. "$(dirname "$0")/lib.sh"

mib=16
# The position of the pattern, behind fio's writes.
pattern=$scratch/pattern pattern_mib=2 pattern_at=13
inline=1 remap=2 nowait=4 extents=8

# image KIND: makes an image; a written one is overwritten, a sparse one allocates blocks.
image() {
	local file
	case $1 in
	ext4-written)
		file=$(backing ext4 "$mib")
		noise "$file" "$mib"
		echo "$file"
		;;
	*) backing "${1%-sparse}" "$mib" ;;
	esac
}

# switch DEVICE SET: switches on exactly these tunables.
switch() {
	local name group=/sys/block/${1#/dev/}/rnull_loop
	[[ -e $group/inline ]] || return 0
	for name in inline remap nowait extents; do
		echo $((($2 & ${!name}) != 0)) >"$group/$name"
	done
}

# past_cache IMAGE: prints the content, from the disk if there is one.
past_cache() {
	local flags=iflag=direct
	[[ $1 != "$scratch/tmpfs/"* ]] || flags=''
	# shellcheck disable=SC2086  # none or one
	dd if="$1" bs=1M count="$mib" $flags status=none
}

# verify DEVICE short|long|endless
verify() {
	local jobs=(
		--name=batches --ioengine=libaio --iodepth=32 --iodepth_batch_submit=16
		--iodepth_batch_complete_min=8 --iodepth_batch_complete_max=16 --iodepth_low=16
		--rw=randwrite --bsrange=4k-256k --blockalign=4k --offset=0 --size=3m --fsync=16
		--name=single --ioengine=psync --rw=randwrite --bsrange=4k-64k --blockalign=4k --offset=3m
		--size=512k --fsync=16 --stonewall
	)
	local more=(
		--name=mixed --ioengine=libaio --iodepth=32 --iodepth_batch_submit=16
		--iodepth_batch_complete_min=8 --iodepth_batch_complete_max=16 --iodepth_low=16
		--rw=randrw --bsrange=4k-256k --blockalign=4k --offset=4m --size=8m --fsync=16
		--verify_backlog=16 --stonewall
	)
	[[ $2 == short ]] || jobs+=("${more[@]}")
	fio --filename="$1" --thread --direct=1 "${verified[@]}" \
		--randseed=7 --group_reporting --output-format=terse "${@:3}" "${jobs[@]}" >/dev/null
}

# bound KIND on|off: sets `file` and `device`.
bound() {
	local direct=0
	file=$(image "$1")
	device=$(attach --direct-io="$2" --sizelimit "${mib}M" "$file")
	[[ $2 == off ]] || direct=1
	equal dio "$(attribute "$device" loop/dio)" "$direct"
}

# second_look: detaches; the image must hold the data that the device showed, and the pattern.
second_look() {
	dd if="$pattern" of="$device" bs=64k seek=$((pattern_at * 16)) oflag=direct conv=fsync status=none
	dd if="$device" of="$scratch/seen" bs=1M count="$mib" iflag=direct status=none
	detach "$device"
	past_cache "$file" >"$scratch/held"
	echo "The image, and what the device showed:"
	cmp "$scratch/seen" "$scratch/held"
	echo "The pattern in the image:"
	cmp -n $((pattern_mib << 20)) -i "$((pattern_at << 20)):0" "$scratch/held" "$pattern"
}

# cell SET KIND on|off short|long
cell() {
	bound "$2" "$3"
	switch "$device" "$1"
	verify "$device" "$4"
	second_look
}

# toggle DEVICE: changes the tunables until $scratch/stop exists, and counts the changes.
toggle() {
	local count=0 never
	# This pipe never has data: a read with a timeout sleeps without another process.
	exec {never}<> <(:)
	RANDOM=1
	while [[ ! -e $scratch/stop ]]; do
		switch "$1" $((RANDOM % 16))
		count=$((count + 1))
		read -r -t 0.01 -u "$never" || :
	done
	echo "$count" >"$scratch/toggled"
}

# toggling KIND on|off
toggling() {
	local toggler
	bound "$1" "$2"
	rm -f "$scratch/stop"
	toggle "$device" &
	toggler=$!
	# Ends the background job also when fio fails.
	trap 'touch "$scratch/stop"' EXIT
	verify "$device" long --loops=3
	touch "$scratch/stop"
	wait "$toggler"
	(($(<"$scratch/toggled") >= 50)) || fail "the tunables changed only $(<"$scratch/toggled") times"
	second_look
}

mkdir -p "$scratch"
noise "$pattern" $pattern_mib
# The combinations: all tunables on, and some off.
declare -A on=(
	['all on']=$((inline | remap | nowait | extents)) [inline=0]=$((remap | nowait | extents))
	[nowait=0]=$((inline | remap | extents)) [extents=0]=$((inline | remap | nowait))
	[remap=0]=$((inline | nowait)) ['remap=0 inline=0']=$nowait ['all off']=0
)

# cells LABEL on|off KIND...: the load is long where the routes differ most.
cells() {
	local kind length
	for kind in "${@:3}"; do
		length=short
		[[ $2 != on || $kind != @(ext4-written|block) ]] || length=long
		check "$1: $kind, direct I/O $2" cell "${on[$1]}" "$kind" "$2" $length
	done
}

files=(ext4-written ext4-sparse xfs tmpfs)
cells 'all on' on "${files[@]}" block
cells 'all on' off "${files[@]}" block
if [[ $driver == rnull_loop ]]; then
	for label in inline=0 nowait=0 'all off'; do
		cells "$label" on "${files[@]}" block
		cells "$label" off ext4-sparse tmpfs block
	done
	# Only files have extents, and only block devices can be remapped.
	cells extents=0 on ext4-written ext4-sparse xfs
	for label in remap=0 'remap=0 inline=0'; do cells "$label" on block; done
	for kind in ext4-written ext4-sparse xfs block; do
		check "changing tunables: $kind, direct I/O on" toggling $kind on
	done
	check "changing tunables: ext4-written, direct I/O off" toggling ext4-written off
fi
run_checks
