#!/bin/bash
# The protocol of a cycle under spin: what the code does must be safe and come to an end, what
# docs/internals/protocol.md calls unsafe must give a counterexample. Exhaustive runs only.
#
#     tests/model/run.sh            all rows of the table below but those of the group long
#     tests/model/run.sh NAME...    some of them: rows or groups
#
# Expected  safe      all states are visited: no assertion is violated, nowhere does everybody wait
#           unsafe    an assertion is violated
#           ends      whatever the threads do, the next cycle begins: no fair run is without it
#           endless   there is a fair run without it
# Needs spin and a C compiler. Prints one line per row; the last one is `N passed, N failed`.
set -u
here=$(cd "$(dirname "$0")" && pwd)
command -v spin >/dev/null || {
    echo "spin is missing (Debian: spin)" >&2
    exit 1
}

# name | group | expected | options of cycle.pml, with -DIDLE of idle.pml. Instances: NS spans of SPS slots each, NL0 and NL1 locals of
# the two threads (2 and 1 where nothing is said). What each row shows: docs/internals/protocol.md.
rows="\
two-spans|core|safe|-DNS=2 -DSPS=1
one-span-of-two|core|safe|-DNS=1 -DSPS=2
insertion-half-removed|core|unsafe|-DINS_REMOVED
deletion-half-removed|core|unsafe|-DDEL_REMOVED
on-and-black-merged|core|unsafe|-DNS=2 -DSPS=1 -DMERGE_ON_BLACK
unclean-round-accepted|core|unsafe|-DNS=2 -DSPS=1 -DONE_ROUND
draining-in-a-round|core|unsafe|-DNS=2 -DSPS=1 -DDRAIN_IN_ROUND
off-at-the-clean-round|core|unsafe|-DNS=2 -DSPS=1 -DOFF_EARLY
ending-thread-drops-its-buffer|core|unsafe|-DNS=2 -DSPS=1 -DTHREADS -DEXIT_DROPS
weak-shaded-through-the-buffer|core|unsafe|-DNS=2 -DSPS=1 -DWEAK -DWEAK_BUFFER
answer-between-test-and-store|core|unsafe|-DNS=2 -DSPS=1 -DSEQ -DNO_RESTART
roots-after-the-stacks|core|unsafe|-DNS=2 -DSPS=1 -DROOTS -DROOTS_LATE
with-threads|options|safe|-DNS=2 -DSPS=1 -DNL0=1 -DTHREADS
with-blocking|options|safe|-DNS=2 -DSPS=1 -DNL0=1 -DBLOCK
with-weak-pointers|options|safe|-DNS=2 -DSPS=1 -DNL0=1 -DWEAK
with-roots|options|safe|-DNS=2 -DSPS=1 -DNL0=1 -DROOTS
with-ephemerons|options|safe|-DNS=2 -DSPS=1 -DNL0=1 -DEPH
with-free|options|safe|-DNS=1 -DSPS=2 -DFREE
with-stacks|options|safe|-DNS=1 -DSPS=2 -DNL0=1 -DPARK
with-managed-stacks|options|safe|-DNS=2 -DSPS=1 -DNL0=1 -DMSTACK
with-fork|options|safe|-DNS=1 -DSPS=2 -DNL0=1 -DTHREADS -DFORK
with-paying|options|safe|-DNS=2 -DSPS=1 -DNL0=1 -DPAY
with-conservative-words|options|safe|-DNS=1 -DSPS=2 -DNL0=1 -DCONS
with-stores-taken-apart|options|safe|-DNS=1 -DSPS=2 -DNL0=1 -DSEQ
with-marking-taken-apart|options|safe|-DNS=1 -DSPS=2 -DNL0=1 -DFINE
every-cycle-ends|live|ends|-DLIVE -DNS=1 -DSPS=1 -DNL0=1
every-cycle-ends-blocking|live|ends|-DLIVE -DNS=1 -DSPS=1 -DNL0=1 -DBLOCK
every-cycle-ends-threads|live|ends|-DLIVE -DNS=1 -DSPS=1 -DNL0=1 -DTHREADS
blocked-thread-waited-for|live|endless|-DLIVE -DNS=1 -DSPS=1 -DNL0=1 -DBLOCK -DNO_PROXY
ended-thread-waited-for|live|endless|-DLIVE -DNS=1 -DSPS=1 -DNL0=1 -DTHREADS -DEXIT_OWES
sweeping-in-black|variants|unsafe|-DNS=2 -DSPS=1 -DSWEEP_IN_BLACK
clearing-in-black|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DCLEAR_IN_BLACK
queue-not-looked-at|variants|unsafe|-DNS=2 -DSPS=1 -DNO_QUEUE_LOOK
off-with-the-give-back|variants|unsafe|-DNS=2 -DSPS=1 -DSKIP_OFF
white-at-off|variants|unsafe|-DNS=1 -DSPS=2 -DNL0=1 -DWHITE_AT_OFF
flip-after-the-posting|variants|unsafe|-DNS=2 -DSPS=1 -DFLIP_LATE
rest-of-the-run-white|variants|unsafe|-DNS=1 -DSPS=2 -DNO_REST
white-in-an-unswept-span|variants|unsafe|-DNS=1 -DSPS=2 -DALLOC_UNSWEPT
black-in-a-new-span|variants|unsafe|-DNS=1 -DSPS=2 -DBLACK_NEWGEN
cached-span-swept|variants|unsafe|-DNS=1 -DSPS=2 -DSWEEP_CACHED
answer-in-the-slow-path|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DSEQ -DSLOW_ACK
full-buffer-dirties-late|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DFINE -DDIRTY_LATE
weak-marked-without-a-look|variants|unsafe|-DNS=2 -DSPS=1 -DWEAK -DWEAK_DIRECT
weak-by-generation-only|variants|unsafe|-DNS=2 -DSPS=1 -DWEAK -DWEAK_GENONLY
weak-without-the-lock|variants|unsafe|-DNS=2 -DSPS=1 -DWEAK -DWEAK_TORN
attach-with-a-stale-phase|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DTHREADS -DATT_STALE
attach-with-an-unpinned-argument|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DTHREADS -DATT_ARG
unblock-while-claimed|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DBLOCK -DBK_NOLOCK
unblock-with-a-stale-phase|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DBLOCK -DBK_STALE
free-marks-after-mark-done|variants|unsafe|-DNS=1 -DSPS=2 -DNL0=1 -DFREE -DFREE_IN_END
new-root-unshaded|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DROOTS -DADD_UNSHADED
stack-taken-over-unshaded|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DPARK -DPARK_UNSHADED
managed-stack-entered-unsearched|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DMSTACK -DMS_ENTER_UNSEARCHED
managed-stack-left-unsearched|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DMSTACK -DMS_LEAVE_UNSEARCHED
managed-stack-searched-by-anybody|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DMSTACK -DMS_ANYBODY_COUNTS
child-keeps-the-marks|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DTHREADS -DFORK -DFORK_KEEPS_MARKS
conservative-word-marked-late|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DCONS -DWEAK -DLATE_FLUSH_MARKS -DPREP_DEAD
freed-object-unshaded|variants|unsafe|-DREVERSE -DNS=1 -DSPS=2 -DFREE -DFREE_UNSHADED
store-before-the-test|variants|unsafe|-DONE -DNS=2 -DSPS=1 -DSEQ -DSTORE_FIRST
exchange-before-the-test|variants|unsafe|-DONE -DNS=2 -DSPS=1 -DSEQ -DSTORE_FIRST -DXCHG_FIRST
span-off-the-queue-too-late|variants|unsafe|-DONE -DNS=2 -DSPS=2 -DNL0=1 -DFINE -DQUEUE_LATE -DPREP_QUEUE
ephemeron-without-its-own-side|variants|unsafe|-DONE -DNS=3 -DSPS=1 -DNL0=1 -DEPH -DEPH_NO_OWN_SIDE -DPREP_EPH
ephemeron-without-the-key-side|variants|unsafe|-DONE -DNS=3 -DSPS=1 -DNL0=1 -DEPH -DEPH_NO_KEY_SIDE -DPREP_EPH
noscan-key-not-looked-at|variants|unsafe|-DONE -DNS=3 -DSPS=1 -DNL0=1 -DNOSCAN=2 -DEPH -DEPH_NOSCAN_KEY -DPREP_EPH
free-through-the-buffer|long|unsafe|-DNS=1 -DSPS=2 -DFREE -DFREE_BUFFER
swept-without-a-look|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DPAY -DPAY_UNASKED
flip-after-the-word|variants|unsafe|-DNS=2 -DSPS=1 -DNL0=1 -DPAY -DFLIP_TELLS_FIRST
free-leaves-the-round-clean|variants|unsafe|-DREVERSE -DNS=1 -DSPS=2 -DFREE -DFREE_CLEAN
ephemeron-made-unshaded|variants|unsafe|-DONE -DNS=3 -DSPS=1 -DEPH -DEPH_MAKE_PLAIN
ephemeron-value-unmarked|variants|unsafe|-DONE -DNS=3 -DSPS=1 -DEPH -DEPH_VALUE_PLAIN -DPREP_EPH
every-cycle-ends-two-slots|long|ends|-DLIVE -DNS=1 -DSPS=2 -DNL0=1
sweeping-beside-on|long|safe|-DNS=2 -DSPS=1 -DSWEEP_IN_ON
flip-before-the-posting|long|safe|-DNS=1 -DSPS=2 -DFLIP_APART
exit-leaves-the-round-clean|long|safe|-DNS=2 -DSPS=1 -DTHREADS -DEXIT_UNCOUNTED
clearing-beside-on|long|safe|-DNS=2 -DSPS=1 -DCLEAR_IN_ON
black-and-scan-merged|long|safe|-DNS=1 -DSPS=2 -DNL0=1 -DSEQ -DMERGE_BLACK_SCAN
no-work-is-left|options|safe|-DIDLE -DNPROD=1 -DK=2
who-sleeps-does-not-look|variants|unsafe|-DIDLE -DK=1 -DSLEEP_BLIND
who-found-no-processor-does-not-look|variants|unsafe|-DIDLE -DK=1 -DWAKE_ONCE
poller-does-not-look-at-queues|variants|unsafe|-DIDLE -DPREP_STUCK -DPOLL -DEVENTS=0 -DNPROD=0 -DPS=2 -DPOLL_BLIND
poller-looks-at-queues|options|safe|-DIDLE -DPREP_STUCK -DPOLL -DEVENTS=0 -DNPROD=0 -DPS=2
spun-in-vain-does-not-look|variants|unsafe|-DIDLE -DK=1 -DLEAVE_VAINLY
made-worker-does-not-spin|variants|unsafe|-DIDLE -DPREP -DNPROD=0 -DPS=2 -DNW=3 -DNBEGUN=0 -DNSTUCK=1 -DMAKE_PLAIN
no-work-is-left-in-queues|options|safe|-DIDLE -DPREP -DNPROD=0 -DPS=2 -DNW=3 -DNBEGUN=0 -DNSTUCK=1
no-work-is-left-with-some-stuck|options|safe|-DIDLE -DNPROD=1 -DK=2 -DNBEGUN=0 -DNSTUCK=1
no-work-is-left-by-two|long|safe|-DIDLE -DCOLLAPSE -DNPROD=2 -DK=1
no-work-is-left-polling|long|safe|-DIDLE -DCOLLAPSE -DNPROD=1 -DK=1 -DPOLL
no-work-is-left-two-processors|long|safe|-DIDLE -DCOLLAPSE -DNPROD=1 -DK=2 -DPS=2"

common="-w -DMEMLIM=3900 -DVECTORSZ=160 -include stddef.h"

check() # EXPECTED OPTIONS... - what spin finds, in $found; its output in $work/out
{
    local compile search none=safe model
    case $1 in
    safe) compile="-O2 -DSAFETY -DNOFAIR" search="-w24" ;;
    unsafe) compile="-O1 -DSAFETY -DNOFAIR" search="-w20" ;; # most of its time is the compiler's
    *) compile="-O2 -DNP -DNFAIR=3" search="-w22 -l -f" none=ends ;;
    esac
    shift
    case $1 in
    -DIDLE) model=idle.pml search="$search -E" ;; # workers sleep at the end; it asserts that they may
    # The embedded C looks at the whole state, so partial order reduction would not be valid.
    *) model=cycle.pml compile="$compile -DNOREDUCE" ;;
    esac
    # shellcheck disable=SC2086 # options are words
    (cd "$work" && rm -f pan && spin -a "$@" "$here/$model" &&
        ${CC:-cc} $common $compile "$@" -o pan pan.c && ./pan $search -m5000000) >"$work/out" 2>&1
    found=error
    if grep -q '^pan:1: assertion violated' "$work/out"; then
        found=unsafe
    elif grep -q '^pan:1: invalid end state' "$work/out"; then
        found=stuck
    elif grep -q '^pan:1: non-progress cycle' "$work/out"; then
        found=endless
    elif grep -q 'errors: 0' "$work/out" &&
        ! grep -qE 'Search not completed|max search depth too small|out of memory' "$work/out"; then
        found=$none
    fi
}

wanted() # NAME GROUP ARGUMENT... - is the row asked for?
{
    local name=$1 group=$2
    shift 2
    if [ $# -eq 0 ]; then
        [ "$group" != long ]
    else
        printf '%s\n' "$@" | grep -qxF -e "$name" -e "$group"
    fi
}

passed=0 failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%-34s %-8s %-8s %12s %6s\n' variant expected found states s
while IFS='|' read -r name group expected options; do
    wanted "$name" "$group" "$@" || continue
    began=$SECONDS
    # shellcheck disable=SC2086 # options are words
    check "$expected" $options
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
[ $failed -eq 0 ] && [ $passed -gt 0 ]
