# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
# tests/state.sh show|compare|restore [SCRATCH]
#
# The state that a test can leave behind for the next one in the same VM: settings of the queues of
# disks, tunables of loop devices, sysctls, tracing, fault injection, cgroups, modprobe's
# configuration, mounts, disks. "show" prints it, one setting a line. The others read such lines
# from standard input: "compare" fails and prints the differences; "restore" first tries to restore
# the state, for about 10 seconds, or $STATE_SECONDS.
#
# With SCRATCH, between two cases of a test, it leaves out the parts that a test may keep until it
# ends: mounts below that directory, RAM disks, fault injection, sysctls, swap, and udev. Reading
# all sysctls takes longer than all the rest.
#
# To be sourced, or run as a program: the shell and Python frameworks and scripts/guest/tests share
# it.

state_tracing=/sys/kernel/tracing
# The settings of a queue that do not change with an attach or a detach, besides the scheduler.
state_queue=(nr_requests async_depth wbt_lat_usec read_ahead_kb max_sectors_kb nomerges rq_affinity
	iostats iostats_passthrough add_random io_timeout)
# Statistics, and values that the kernel or the driver changes by itself.
state_volatile=(extents_state ns_last_pid tainted perf_event_max_sample_rate stat_refresh stats)

# read_state [SCRATCH]: sets `state_now`. Uses one process, because it runs after every case.
read_state() {
	local file files=() value
	for file in "${state_queue[@]}"; do files+=(/sys/block/{loop,vd}*/queue/"$file"); done
	files+=(/sys/block/loop*/rnull_loop/* /sys/module/printk/parameters/*
		"$state_tracing"/{set_event,kprobe_events,current_tracer,tracing_on,options/stacktrace}
		/sys/fs/cgroup/cgroup.subtree_control {/etc,/run}/modprobe.d/*)
	[[ -n ${1-} ]] || files+=(/sys/kernel/debug/fail*/* /proc/sys/{kernel,vm}/*)
	state_now=()
	# The value in brackets is the current choice.
	for file in /sys/block/{loop,vd}*/queue/scheduler "$state_tracing/trace_clock"; do
		[[ -e $file ]] || continue
		read -r value <"$file"
		value=${value#*\[}
		state_now+=("$file:${value%%\]*}")
	done
	# The buffer is small until it is first used, and its size is rounded up.
	read -r value <"$state_tracing/buffer_size_kb"
	[[ ! $value =~ ([0-9]+)[0-9]{2}\)?$ ]] || value=${BASH_REMATCH[1]}00
	state_now+=("$state_tracing/buffer_size_kb:$value")
	mapfile -t -O "${#state_now[@]}" state_now < <(exec grep -asH -d skip '' "${state_volatile[@]/#/--exclude=}" "${files[@]}")
	for file in /sys/fs/cgroup/*/ /sys/block/* /sys/block/loop*/loop; do
		[[ -n ${1-} && $file == /sys/block/ram* || ! -e $file ]] || state_now+=("$file")
	done
	while read -r _ file _; do
		[[ -n ${1-} && $file == "$1"* ]] || state_now+=("mount $file")
	done </proc/self/mounts
	[[ -n ${1-} ]] || read_others
}

read_others() {
	local swap=()
	mapfile -t -s 1 swap </proc/swaps
	state_now+=("${swap[@]/#/swap }")
	! pgrep -x systemd-udevd >/dev/null || state_now+=('udev runs')
}

# show_state [SCRATCH]
show_state() {
	read_state "$@"
	printf '%s\n' "${state_now[@]}"
}

# state_is BEFORE [SCRATCH]
state_is() {
	read_state "${2-}"
	local IFS=$'\n'
	[[ "${state_now[*]}" == "$1" ]]
}

# compare_state BEFORE [SCRATCH]
compare_state() {
	! state_is "$@" || return 0
	{ diff <(echo "$1") <(printf '%s\n' "${state_now[@]}") || :; } |
		sed -n 's/^</before:/p; s/^>/now:   /p'
	return 1
}

# restore_state BEFORE [SCRATCH]
restore_state() {
	local end=$((SECONDS + ${STATE_SECONDS-10})) tries=0
	until state_is "$@"; do
		((tries++ < 3 || SECONDS < end)) || {
			compare_state "$@"
			return
		}
		undo "$1"
		# Detaching, unmounting and udev may take a moment.
		sleep 0.1
	done
}

# undo BEFORE: removes additions and restores values; lines of the same file are joined.
undo() {
	local line before=() added=()
	declare -A wanted=() got=()
	mapfile -t before <<<"$1"
	for line in "${before[@]}"; do wanted[${line%%:*}]+=${line#*:}$'\n'; done
	for line in "${state_now[@]}"; do
		[[ -n ${wanted[${line%%:*}]-} ]] || added=("${line%%:*}" "${added[@]}")
		got[${line%%:*}]+=${line#*:}$'\n'
	done
	{
		# The last mount is unmounted first.
		for line in "${added[@]}"; do remove "$line"; done
		for line in "${before[@]}"; do
			line=${line%%:*}
			[[ ${got[$line]-} == "${wanted[$line]}" ]] || put "$line" "${wanted[$line]}"
		done
	} >/dev/null 2>&1
}

# remove WHAT: removes something that did not exist before.
remove() {
	case $1 in
	'mount '*) umount "${1#mount }" ;;
	/sys/block/loop*/loop) losetup -d "/dev/$(cut -d / -f 4 <<<"$1")" ;;
	# Entries of a disk are removed with the disk.
	/sys/block/*/*) ;;
	/sys/block/ram*) rmmod brd ;;
	/sys/block/dm-*) dmsetup remove_all ;;
	/sys/block/loop*) loop_control LOOP_CTL_REMOVE "$1" ;;
	/sys/fs/cgroup/*/)
		echo 1 >"$1/cgroup.kill"
		rmdir "$1"
		;;
	*/set_event | */kprobe_events)
		# An enabled probe cannot be removed.
		: >"$state_tracing/set_event"
		: >"$1"
		;;
	*/cgroup.subtree_control)
		local on
		read -ra on <"$1"
		echo "${on[*]/#/-}" >"$1"
		;;
	*/modprobe.d/*) rm -f "$1" ;;
	esac || :
}

# put WHAT CONTENT: restores something that existed before.
put() {
	case $1 in
	*/queue/* | */rnull_loop/*) printf %s "$2" >"$1" ;;
	/sys/block/loop*) loop_control LOOP_CTL_ADD "$1" ;;
	/*) printf %s "$2" >"$1" ;;
	'udev runs') /usr/lib/systemd/systemd-udevd --daemon ;;
	esac || :
}

loop_control() { python3 "$(dirname "${BASH_SOURCE[0]}")/lib.py" "$1" "${2##*loop}"; }

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
	case $1 in
	show) show_state "${2-}" ;;
	compare | restore) "${1}_state" "$(cat)" "${2-}" ;;
	esac
fi
