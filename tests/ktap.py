# SPDX-License-Identifier: GPL-2.0
"""The report of a test, in KTAP: the choice of its cases, the line of each, the sums of the counts,
and the exit status. Shared by the Python and the shell tests.

As a program, ktap.py SEED SCRATCH reports a shell test, see run_checks in lib.sh. Its standard
input has a line for each declared case, DESCRIPTION BETTER, then an empty line. File 3 gets a line,
the numbers of the chosen cases. Then standard input has a line for each of these when it has ended,
STATUS LEFT MILLISECONDS, and file 3 gets an empty line when the result is printed. Fields are
separated by tabs.
"""
import collections
import os
import random
import sys
from typing import NamedTuple

# The status of a shell case that is skipped.
SKIP = 77
# The number of lines that are printed of the log of a failed shell case.
LINES = 25


class Case(NamedTuple):
    """A case; `better` is the reason why the driver under test is known to fail it."""

    description: str
    better: str = ""


def chosen(cases, seed):
    """Returns the cases, or $SOME of them, chosen by the seed."""
    some = int(os.environ.get("SOME") or len(cases))
    numbers = random.Random(seed).sample(range(len(cases)), min(some, len(cases)))
    return [cases[number] for number in sorted(numbers)]


def begin(number):
    """Prints the number of cases."""
    print(f"TAP version 13\n1..{number}", flush=True)


def report(number, case, result, note, log=""):
    """Prints the line of a case, and its log if it failed. The result is "passed" (the note is the
    time), "skipped" (the reason), "failed", or "left": the case left something that could not be
    restored. Returns "passed", "skipped" or "failed"."""
    if result == "left":
        result, note = "failed", "state not restored, see above"
    elif result == "skipped":
        note = f"SKIP {note}"
    elif result == "failed" and case.better:
        result, note = "passed", f"XFAIL {case.better}"
    elif result == "failed":
        note = "see above"
    elif case.better:
        result, note = "failed", f"XPASS expected of the C driver: {case.better}"
    if result == "failed" and log:
        print("# " + log.rstrip().replace("\n", "\n# "))
    print(f"{'not ok' if result == 'failed' else 'ok'} {number} {case.description} # {note}", flush=True)
    return result


def end(results, counts):
    """Prints the sums of the counts, and returns the exit status of kselftest."""
    for what, number in counts.items():
        print(f"# counted: {what} {number}", flush=True)
    if "failed" in results:
        return 1
    return 0 if "passed" in results else 4


def skip_all(reason):
    """Prints that the whole test is skipped, and returns the exit status."""
    print(f"TAP version 13\n1..0 # SKIP {reason}", flush=True)
    return 4


def shell_result(line, scratch):
    """Returns the arguments of report() for a shell case that has ended."""
    status, left, milliseconds = map(int, line.split())
    with open(f"{scratch}/log", encoding="utf-8", errors="replace") as file:
        lines = file.read().rstrip().split("\n")
    result, note = "failed" if status else "passed", f"{milliseconds} ms"
    if left:
        result = "left"
    elif status == SKIP:
        result = "skipped"
        note = next(text.removeprefix("SKIP: ") for text in lines if text.startswith("SKIP: "))
    return result, note, "\n".join(lines[-LINES:])


def shell_counts(scratch):
    """Returns the sums of the counts of a shell test."""
    counts = collections.Counter()
    with open(f"{scratch}/counts", encoding="utf-8") as file:
        for what, number in map(str.split, file):
            counts[what] += int(number)
    return counts


def report_shell_test(seed, scratch, answers):
    """Reports a shell test, and returns its exit status."""
    declared, results = [], []
    for line in sys.stdin:
        if line == "\n":
            break
        declared.append((len(declared), Case(*line.rstrip("\n").split("\t"))))
    cases = chosen(declared, seed)
    begin(len(cases))
    print(*(number for number, _ in cases), file=answers, flush=True)
    for (_, case), line in zip(cases, sys.stdin):
        results.append(report(len(results) + 1, case, *shell_result(line, scratch)))
        print(file=answers, flush=True)
    # bash closes its ends of the pipes as soon as this process ends, so let bash close them first.
    sys.stdin.read()
    return end(results, shell_counts(scratch))


if __name__ == "__main__":
    with os.fdopen(3, "w", encoding="utf-8") as acknowledgements:
        sys.exit(report_shell_test(int(sys.argv[1]), sys.argv[2], acknowledgements))
