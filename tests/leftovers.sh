#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The frameworks for shell and for Python put back what a case of a test sets and leaves behind (tests/state.sh); a
# case that leaves what cannot be put back fails, and so does a test of any other kind that leaves something.
. "$(dirname "$0")/lib.sh"

export TESTS=$tests

# What a case leaves behind, and how each shows.
cat_planted() {
	cat <<-'EOT'
		modprobe -a configfs mq-deadline
		(cd /sys/block/loop0/queue; echo mq-deadline >scheduler; echo 8 >nr_requests; echo 2 >nomerges)
		(cd /sys/block/loop1/queue; echo 64 >max_sectors_kb; echo 512 >read_ahead_kb)
		(cd /sys/block/loop2/rnull_loop 2>/dev/null && tee inline remap nowait <<<0 >/dev/null)
		cd /sys/kernel/tracing
		echo p:planted vfs_read >kprobe_events
		tee events/kprobes/planted/enable events/block/enable options/stacktrace <<<1 >/dev/null
		echo 64 >buffer_size_kb
		echo global >trace_clock
		cd /sys/fs/cgroup
		echo +io +memory >cgroup.subtree_control
		mkdir planted
		sleep 600 >/dev/null 2>&1 &
		echo $! >planted/cgroup.procs
		mkdir -p /run/modprobe.d
		echo blacklist planted >/run/modprobe.d/planted.conf
		mount -t configfs configfs /sys/kernel/config
		python3 "$TESTS/lib.py" LOOP_CTL_ADD 77
		python3 "$TESTS/lib.py" LOOP_CTL_REMOVE 7
	EOT
}
signs=(loop0/queue/{scheduler:mq-deadline,nr_requests:8,nomerges:2} loop1/queue/{max_sectors_kb:64,read_ahead_kb:512}
	set_event:kprobes:planted set_event:block: kprobe_events:p:
	options/stacktrace:1 trace_clock:global buffer_size_kb cgroup.subtree_control: cgroup/planted
	planted.conf: 'mount /sys/kernel/config' block/loop77)
[[ $driver != rnull_loop ]] || signs+=(loop2/rnull_loop/{inline,remap,nowait}:0)

# What a test may keep between its cases, until it ends.
cat_planted_until_end() {
	cat <<-'EOT'
		modprobe brd rd_nr=2 rd_size=4096
		echo 5 >/proc/sys/vm/dirty_ratio
		dmesg -n 5
		udevadm control --exit
		while pgrep -x systemd-udevd >/dev/null; do sleep 0.1; done
	EOT
}
signs_at_end=(block/ram1 vm/dirty_ratio:5 kernel/printk:5)

# inner shell|python: a test of two cases. The first runs $PLANTED and tells what differs then, the second sees
# nothing of it but what may stay until the test ends.
inner() {
	local file=$scratch/inner
	case $1 in
	shell)
		cat >"$file" <<-'EOT'
			#!/bin/bash
			. "$TESTS/lib.sh"
			plant() { bash -c "$PLANTED"; ! compare_state "$state" >"$DIFFERS"; }
			check plant plant
			check next compare_state "$state_of_cases" "$scratch"
			run_checks
		EOT
		;;
	python)
		cat >"$file" <<-'EOT'
			#!/usr/bin/python3
			import os, sys
			sys.path.insert(0, os.environ["TESTS"])
			import lib
			@lib.check("plant")
			def plant():
			    lib.run("bash", "-c", os.environ["PLANTED"])
			    with open(os.environ["DIFFERS"], "w") as file:
			        file.write(lib._state("compare", input=lib._BEFORE).stdout)
			@lib.check("next")
			def next_case():
			    result = lib._state("compare", lib.SCRATCH, input=lib._BEFORE_CASES)
			    assert result.returncode == 0, result.stdout
			lib.run_checks()
		EOT
		;;
	esac
	chmod +x "$file"
	DIFFERS=$scratch/differs "$file"
}

# put_back shell|python COMMANDS SIGN...
put_back() {
	local sign
	PLANTED=$2 inner "$1"
	for sign in "${@:3}"; do
		grep -q "^now: .*$sign" "$scratch/differs" || fail "no $sign in: $(<"$scratch/differs")"
	done
	compare_state "$state"
}

# A mount that is in use.
cannot_be_put_back() {
	local status=0
	mkdir -p "$scratch/busy"
	PLANTED="mount -t tmpfs busy $scratch/busy; cd $scratch/busy
		sleep 600 >/dev/null 2>&1 & echo \$! >$scratch/sleeper" inner "$1" >"$scratch/out" || status=$?
	kill "$(<"$scratch/sleeper")"
	wait_for 10 umount "$scratch/busy"
	cat "$scratch/out"
	equal status "$status" 1
	grep -q '^not ok 1 plant' "$scratch/out"
	grep -q "now: *mount $scratch/busy" "$scratch/out"
}

# A test that uses neither framework, or whose framework does not work.
found_at_end() {
	local status=0
	printf '%s\n' '#!/bin/bash' 'echo 5 >/proc/sys/vm/dirty_ratio' 'echo "1..1"' 'echo "ok 1 nothing"' >"$scratch/bare"
	chmod +x "$scratch/bare"
	cd "$tests/.."
	scripts/guest/tests 60 "$scratch/bare" >"$scratch/out" || status=$?
	cat "$scratch/out"
	equal status "$status" 1
	grep -qx "#end $scratch/bare 96" "$scratch/out"
	grep -q 'now: */proc/sys/vm/dirty_ratio:5' "$scratch/out"
}

for framework in shell python; do
	check "$framework: after a case" put_back $framework "$(cat_planted)" "${signs[@]}"
	check "$framework: after a test" put_back $framework "$(cat_planted_until_end)" "${signs_at_end[@]}"
	check "$framework: what cannot be put back fails its case" cannot_be_put_back $framework
done
check "what a test leaves behind fails it" found_at_end
run_checks
