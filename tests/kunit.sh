#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The module's KUnit suites, which a kernel with KUnit runs when the module is loaded: the pure logic
# (tests/host runs it, too), compiled as it runs.
. "$(dirname "$0")/lib.sh"

results=/sys/kernel/debug/kunit
[[ -d $results ]] || skip_all "this kernel has no KUnit"
[[ $driver == rnull_loop ]] || skip_all "the suites are rnull_loop's"

# Every suite of the source was run, and every case of it, as many as it announced, passed.
suite() {
	local result=$results/$1/results planned
	cat "$result"
	planned=$(sed -n 's/^ \+1\.\.//p' "$result")
	equal "cases that passed" "$(grep -cE '^ +ok [0-9]' "$result")" "$planned"
}

while read -r name; do
	check "$name" suite "$name"
done < <(sed -n 's/.*kunit_tests(\(\w*\)).*/\1/p' "$tests"/../*.rs "$tests"/../*/*.rs)
run_checks
