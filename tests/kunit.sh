#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The module's KUnit suites, which a kernel with KUnit runs when it loads the module: the pure logic
# that tests/host runs, too, here as compiled for the kernel.
. "$(dirname "$0")/lib.sh"

results=/sys/kernel/debug/kunit
[[ -d $results ]] || skip_all "this kernel has no KUnit"
[[ $driver == rnull_loop ]] || skip_all "the suites are rnull_loop's"

# suite NAME: the suite was run, with as many passed cases as it had announced.
suite() {
	local result=$results/$1/results planned
	cat "$result"
	planned=$(sed -n 's/^ \+1\.\.//p' "$result")
	equal "cases that passed" "$(grep -cE '^ +ok [0-9]' "$result")" "$planned"
}

while read -r name; do
	check "$name" suite "$name"
done < <(find "$tests/.." -name .git -prune -o -name '*.rs' -exec sed -n 's/.*kunit_tests(\(\w*\)).*/\1/p' {} + | sort)
run_checks
