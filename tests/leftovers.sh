#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The shell and Python frameworks restore the settings that a case changes, and remove what it
# leaves behind (tests/state.sh). A case fails if it leaves something that cannot be restored, and
# so does any other test that leaves something.
. "$(dirname "$0")/lib.sh"

export TESTS=$tests

# Commands of a case that leave something behind, and the lines of the state that show it.
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

# Changes that a test may keep between its cases, until it ends.
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

# inner shell|python: runs a test of two cases. The first runs $PLANTED and writes the differences
# to $DIFFERS. The second finds only those that may stay until the test ends.
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

# put_back shell|python COMMANDS SIGN...: the state is restored after COMMANDS, which each SIGN
# shows.
put_back() {
	local sign
	PLANTED=$2 inner "$1"
	for sign in "${@:3}"; do
		grep -q "^now: .*$sign" "$scratch/differs" || fail "no $sign in: $(<"$scratch/differs")"
	done
	compare_state "$state"
}

# A mount in use cannot be removed.
cannot_be_put_back() {
	local status=0
	mkdir -p "$scratch/busy"
	PLANTED="mount -t tmpfs busy $scratch/busy; cd $scratch/busy
		sleep 600 >/dev/null 2>&1 & echo \$! >$scratch/sleeper" STATE_SECONDS=1 inner "$1" >"$scratch/out" || status=$?
	kill "$(<"$scratch/sleeper")"
	wait_for 10 umount "$scratch/busy"
	cat "$scratch/out"
	equal status "$status" 1
	grep -q '^not ok 1 plant' "$scratch/out"
	grep -q "now: *mount $scratch/busy" "$scratch/out"
}

# A test without a framework, or with one that does not work.
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
	check "$framework: the state is restored after a case" put_back $framework "$(cat_planted)" "${signs[@]}"
	check "$framework: the state is restored after a test" put_back $framework "$(cat_planted_until_end)" "${signs_at_end[@]}"
	check "$framework: a case fails if its state cannot be restored" cannot_be_put_back $framework
done
check "a test fails if it leaves something behind" found_at_end
run_checks
