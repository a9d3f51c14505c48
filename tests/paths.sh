#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# What is written is what is read, whichever way requests take to the file: each combination of the
# switches in /sys/block/loopN/rnull_loop, where it makes a difference, on each kind of backing, direct and
# buffered. In each cell fio verifies checksums of blocks of 4 KiB to 256 KiB, in batches and one by
# one, and the detached image, read past its page cache, holds byte for byte what the device showed
# and a pattern that was written to it. And the same while the switches change under the I/O.
# On the C driver, which has no switches, only the first combination is tried.
. "$(dirname "$0")/lib.sh"

mib=16
# Where the pattern goes, behind what fio writes.
pattern=$scratch/pattern pattern_mib=2 pattern_at=13
inline=1 remap=2 nowait=4

# image KIND: preallocated ones are written over, others grow blocks.
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

# switch DEVICE SET: exactly these on.
switch() {
	local name group=/sys/block/${1#/dev/}/rnull_loop
	[[ -e $group/inline ]] || return 0
	for name in inline remap nowait; do
		echo $((($2 & ${!name}) != 0)) >"$group/$name"
	done
}

# past_cache IMAGE: what is in it, from the disk where there is one.
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

# second_look: detaches; the image must hold what the device showed, and the pattern.
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

# toggle DEVICE: until told to stop; says how often.
toggle() {
	local count=0 never
	# Nothing ever comes from there: to wait without another process.
	exec {never}<> <(:)
	RANDOM=1
	while [[ ! -e $scratch/stop ]]; do
		switch "$1" $((RANDOM % 8))
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
	# Ends the other process when fio fails, too.
	trap 'touch "$scratch/stop"' EXIT
	verify "$device" long --loops=3
	touch "$scratch/stop"
	wait "$toggler"
	(($(<"$scratch/toggled") >= 50)) || fail "the switches changed $(<"$scratch/toggled") times only"
	second_look
}

mkdir -p "$scratch"
noise "$pattern" $pattern_mib
# Everything, and what is left when some of it is off.
declare -A on=(
	['all on']=$((inline | remap | nowait)) [inline=0]=$((remap | nowait)) [nowait=0]=$((inline | remap))
	[remap=0]=$((inline | nowait)) ['remap=0 inline=0']=$nowait ['all off']=0
)

# cells LABEL on|off KIND...: the long ones where the ways differ most.
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
	# Only block devices can be remapped.
	for label in remap=0 'remap=0 inline=0'; do cells "$label" on block; done
	for kind in ext4-written ext4-sparse block; do
		check "switches that change: $kind, direct I/O on" toggling $kind on
	done
	check "switches that change: ext4-written, direct I/O off" toggling ext4-written off
fi
run_checks
