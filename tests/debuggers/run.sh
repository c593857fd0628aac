#!/bin/sh
# run.sh LIBRARY INCLUDE CC - gdb and perf see the stacks of goroutines.
#
# Claims: (1) at a breakpoint in a goroutine gdb shows all its callers down to where its stack begins; (2) so it does after each
# single instruction of the switch from one stack to another; (3) perf, which unwinds a copy of the stack, names the callers of
# where a goroutine spends its time. What is not here, or may not trace, is skipped.
set -u
library=$1 include=$2 cc=$3
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
unset GODEBUG GOGC
export GOMAXPROCS=1 DEBUGINFOD_URLS=

fail()
{
    echo "FAILED: $*"
    head -n 80 "$tmp/out"
    exit 1
}

"$cc" -O2 -g -I"$include" "$here/deep_goroutine.c" "$library" -pthread -o "$tmp/deep" || fail "deep_goroutine.c"

# in_gdb COMMAND...: what they print is in out.
in_gdb()
{
    gdb -q -batch -nx -ex "set confirm off" "$@" "$tmp/deep" >"$tmp/out" 2>&1
}

if ! command -v gdb >/dev/null; then
    echo "skip: gdb (it is not here)"
elif ! in_gdb -ex run || ! grep -q "exited normally" "$tmp/out"; then
    echo "skip: gdb (it may not trace)"
else
    in_gdb -ex "break innermost" -ex run -ex bt
    grep -Eq '^#7 .* outer ' "$tmp/out" || fail "gdb: no callers at a breakpoint"
    grep -Eq '^#9 .* os_switch_first ' "$tmp/out" || fail "gdb: not to the beginning"

    cat >"$tmp/steps" <<'EOF'
break loam_yield
run
delete
break os_switch
continue
set $i = 0
while $i < 40
  stepi
  bt
  set $i = $i + 1
end
EOF
    in_gdb -x "$tmp/steps"
    grep -q "^#0 .* os_switch ()" "$tmp/out" || fail "gdb: not within the switch"
    # Each ends where a stack of goroutines begins, or a thread's.
    awk '/^#0 / { if (n++ && !whole) bad++; whole = 0 }
         / os_switch_first | clone3? | start_thread / { whole = 1 }
         END { if (n < 40 || !whole || bad) exit 1 }' "$tmp/out" || fail "gdb: a stack that does not end, within the switch"
    ! grep -Eq "Backtrace stopped|Cannot access memory" "$tmp/out" || fail "gdb: a stack that is cut"
fi

if ! command -v perf >/dev/null || ! perf record -q -o "$tmp/none" true >"$tmp/out" 2>&1; then
    echo "skip: perf (it is not here, or may not count)"
else
    perf record -q -F 500 --call-graph dwarf,4096 -o "$tmp/data" "$tmp/deep" >"$tmp/out" 2>&1 || fail "perf record"
    perf script -i "$tmp/data" -F comm,ip,sym >"$tmp/out" 2>/dev/null || fail "perf script"
    awk 'BEGIN { RS = "" }
         /innermost/ { n++; if (/middle/ && /outer/ && /goroutine_main/) whole++ }
         END { if (n < 5 || whole < n * 0.9) exit 1 }' "$tmp/out" || fail "perf: callers that are not named"
fi
echo "goroutines can be looked at"
