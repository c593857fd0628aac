#!/bin/bash
# The protocol of a cycle under spin: what the code does must be safe, what docs/internals/protocol.md
# calls unsafe must give a counterexample. Exhaustive runs only.
#
#     tests/model/run.sh            all rows of the table below
#     tests/model/run.sh NAME...    some of them
#
# Needs spin and a C compiler. Prints one line per row; the last one is `N passed, N failed`.
set -u
here=$(cd "$(dirname "$0")" && pwd)
command -v spin >/dev/null || {
    echo "spin is missing (Debian: spin)" >&2
    exit 1
}

# name | expected | options of cycle.pml. Instances: NS spans of SPS slots each.
rows="\
two-spans|safe|-DNS=2 -DSPS=1
one-span-of-two|safe|-DNS=1 -DSPS=2
insertion-half-removed|unsafe|-DINS_REMOVED
deletion-half-removed|unsafe|-DDEL_REMOVED
on-and-black-merged|unsafe|-DNS=2 -DSPS=1 -DMERGE_ON_BLACK
unclean-round-accepted|unsafe|-DNS=2 -DSPS=1 -DONE_ROUND
draining-in-a-round|unsafe|-DNS=2 -DSPS=1 -DDRAIN_IN_ROUND
off-at-the-clean-round|unsafe|-DNS=2 -DSPS=1 -DOFF_EARLY
ending-thread-drops-its-buffer|unsafe|-DNS=2 -DSPS=1 -DTHREADS -DEXIT_DROPS
weak-shaded-through-the-buffer|unsafe|-DNS=2 -DSPS=1 -DWEAK -DWEAK_BUFFER
answer-between-test-and-store|unsafe|-DNS=2 -DSPS=1 -DSEQ -DNO_RESTART
roots-after-the-stacks|unsafe|-DNS=2 -DSPS=1 -DROOTS -DROOTS_LATE"

passed=0 failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%-34s %-8s %-8s %12s %6s\n' variant expected found states s
while IFS='|' read -r name expected options; do
    if [ $# -gt 0 ] && ! printf '%s\n' "$@" | grep -qx -- "$name"; then
        continue
    fi
    began=$SECONDS
    found=error states=-
    # shellcheck disable=SC2086 # options are words
    if (cd "$work" && spin -a $options "$here/cycle.pml" && ${CC:-cc} -O2 -w -DSAFETY -DNOREDUCE -DNOFAIR \
        -DMEMLIM=3900 -DVECTORSZ=160 $options -include stddef.h -o pan pan.c &&
        ./pan -E -m5000000 -w24) >"$work/out" 2>&1; then :; fi
    # NOREDUCE: the embedded C looks at the whole state, so partial order reduction would not be valid.
    if grep -q 'errors: 0' "$work/out" && ! grep -qE 'Search not completed|max search depth too small|out of memory' "$work/out"; then
        found=safe
    elif grep -q 'assertion violated' "$work/out"; then
        found=unsafe
    fi
    states=$(awk '/states, stored/ { print $1 }' "$work/out")
    printf '%-34s %-8s %-8s %12s %6d\n' "$name" "$expected" "$found" "${states:--}" $((SECONDS - began))
    if [ "$found" = "$expected" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        tail -n 20 "$work/out"
    fi
done <<<"$rows"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
