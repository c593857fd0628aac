#!/bin/sh
# run.sh BUILD SOURCE - the examples do what their README says.
#
# Claims: (0) coroutines finds its lists whole in all three ways, while cycles run; (1) hello ends with
# 0 and keeps its tree to the last node; (2) search, for a second over the text of this project, ends with 0 after its table, whose last row says that in both runs answers
# were equal to a plain scan; (3) with --json its figures can be parsed and say the same; (4) a
# folder without text is an error that is named; (5) each program of vm prints what is expected, also when managed stacks
# move at each push and dead memory is overwritten, and the smaller ones under gcstress; (6) a program that cannot be read, or compiled,
# or fails is named with file and line, and the calls that led there; the status is 1, and 2 without a program.
set -u
build=$1 source=$2
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
unset GODEBUG GOGC GOMAXPROCS

fail()
{
    echo "FAILED: $*"
    head -n 60 "$tmp/out" "$tmp/err"
    exit 1
}

# run STATUS PROGRAM ARGUMENT...: it ends with this status; what it says is in out and err.
run()
{
    want=$1
    shift
    "$@" >"$tmp/out" 2>"$tmp/err"
    status=$?
    [ $status -eq "$want" ] || fail "$* ended with $status, not $want"
}

run 0 "$build/hello"
grep -Eq '^131071 nodes kept, [0-9]+ MB allocated, [1-9][0-9]* cycles' "$tmp/out" || fail "hello: its line"

GOGC=5 GODEBUG=clobberfree=1 run 0 "$build/coroutines" 100 50
[ "$(grep -Ec ' [1-9][0-9]* +[1-9][0-9]* +[0-9.]+ +[0-9.]+$' "$tmp/out")" -eq 3 ] || fail "coroutines: three ways, each with cycles"
run 2 "$build/coroutines" 0

run 0 "$build/search" --seconds 1 --max-mb 4 "$source/docs" "$source/include" "$source/src"
tail -n 1 "$tmp/out" | grep -Eq '^queries equal to a plain scan +[1-9][0-9]* +[1-9][0-9]*$' ||
    fail "search: the last row of its table"
grep -Eq '^collection cycles +[1-9][0-9,]* +[1-9][0-9,]*$' "$tmp/out" || fail "search: no cycles"

run 0 "$build/search" --seconds 1 --max-mb 4 --json "$source/docs" "$source/include"
if command -v python3 >/dev/null; then
    python3 -c '
import json, sys
figures = json.load(sys.stdin)
assert all(figures[run]["checked_queries"] > 0 for run in ("concurrent", "stop_the_world"))
' <"$tmp/out" || fail "search: --json"
fi

mkdir "$tmp/empty"
run 1 "$build/search" --seconds 1 "$tmp/empty"
grep -q "no plain text to index in $tmp/empty" "$tmp/err" || fail "search: an empty folder"

# vm_prints PROGRAM...: what is expected, whatever the environment.
vm_prints()
{
    for program in "$@"; do
        run 0 "$build/vm" "$source/examples/vm/programs/$program.loam"
        cmp -s "$tmp/out" "$source/examples/vm/programs/$program.expected" || fail "vm: what $program prints"
    done
}

# vm_fails LINE TEXT: the program in bad.loam fails there, with this text.
vm_fails()
{
    run 1 "$build/vm" "$tmp/bad.loam"
    grep -Fq "vm: $tmp/bad.loam:$1: $2" "$tmp/err" || fail "vm: no '$2' in line $1"
}

vm_prints closures coroutines trees words
GOGC=5 GODEBUG=clobberfree=1 vm_prints deep # not with mstackmove: to move a stack at each push takes quadratic time
GODEBUG=mstackmove=1 vm_prints closures coroutines words
GOGC=5 GODEBUG=clobberfree=1,mstackmove=1 vm_prints closures coroutines trees words
GODEBUG=gcstress=500,clobberfree=1,mstackmove=1 vm_prints coroutines words

printf 'let a = 1\nlet b = (a + 2\nprint(b)\n' >"$tmp/bad.loam"
vm_fails 3 "expected )"
printf 'let a = 1\nprint(a + c)\n' >"$tmp/bad.loam"
vm_fails 2 "no variable c"
printf 'fn f(t) {\n    return t.x.y\n}\nprint("before")\nf({})\n' >"$tmp/bad.loam"
vm_fails 2 "nil has no elements"
grep -Fq "$tmp/bad.loam:5 in the program" "$tmp/err" || fail "vm: the calls that led to an error"
grep -qx before "$tmp/out" || fail "vm: what was printed before an error"
run 1 "$build/vm" "$tmp/missing.loam"
grep -q "missing.loam: No such file" "$tmp/err" || fail "vm: a file that is missing"
run 2 "$build/vm"
echo "the examples do what they should"
