#!/bin/sh
# run.sh BUILD SOURCE - the examples do what their README says.
#
# Claims: (0) coroutines finds its lists whole in all three ways, while cycles run; (1) hello ends with
# 0 and keeps its tree to the last node; (2) search, for a second over the text of this project, ends with 0 after its table, whose last row says that in both runs answers
# were equal to a plain scan; (3) with --json its figures can be parsed and say the same; (4) a
# folder without text is an error that is named.
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
echo "hello and search do what they should"
