#!/bin/sh
# smoke.sh [DIR] - every benchmark once with tiny sizes; the checksums of all heaps must agree.
#
# DIR holds the programs that `cmake --build ... --target bench` makes (NAME, NAME-malloc,
# NAME-boehm); without it, the newest bench folder under build*. Go's twins take part where there
# is a go command. Exit code 77: nothing is built. Nothing is measured here: this finds programs that
# no longer run, and heaps that lose objects.
set -u
here=$(CDPATH= cd "$(dirname "$0")" && pwd)
dir=${1:-}
if [ -z "$dir" ]; then
    # shellcheck disable=SC2012 # names of our own making
    newest=$(ls -t "$here"/../build*/bench/ring "$here"/../build*/*/bench/ring 2>/dev/null | head -n 1)
    dir=$(dirname "${newest:-/nonexistent/ring}")
fi
if [ ! -x "$dir/ring" ]; then
    echo "no programs in $dir: cmake --build BUILD --target bench" >&2
    exit 77
fi

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
go=
for candidate in /usr/local/go/bin/go "$(command -v go)"; do
    if [ -x "$candidate" ] && (cd "$here/go" && GOTOOLCHAIN=local "$candidate" build -o "$work/" ./...) \
        2>"$work/go.err"; then
        go=$work
        break
    fi
done
[ -n "$go" ] || echo "without Go: $(head -n 1 "$work/go.err" 2>/dev/null)" >&2

failed=0
ran=0

# smoke NAME OPTION...: on each heap there is; a word for each that fails or differs.
smoke()
{
    name=$1
    shift
    expected=
    for program in "$go/$name" "$dir/$name-malloc" "$dir/$name" "$dir/$name-boehm"; do
        [ -x "$program" ] || continue
        case $program in
        "$go"/*) heap=go ;;
        *-malloc | *-boehm) heap=${program##*-} ;;
        *) heap=loam ;;
        esac
        timeout 60 "$program" -json "$@" >"$work/out" 2>"$work/err"
        code=$?
        # 77: a benchmark of collections has nothing to do on malloc.
        [ $code -eq 77 ] && continue
        if [ $code -ne 0 ]; then
            echo "FAILED $name $* on $heap: exit $code: $(tail -n 1 "$work/err")" >&2
            failed=1
            continue
        fi
        ran=$((ran + 1))
        sum=$(sed -n 's/.*"checksum": "\([0-9a-f]*\)".*/\1/p' "$work/out")
        if [ -z "$sum" ] || [ "${expected:=$sum}" != "$sum" ]; then
            echo "FAILED $name $* on $heap: checksum ${sum:-missing}, not $expected" >&2
            failed=1
        fi
    done
}

smoke latency -live 0.02 -ops 60000 -threads 2
smoke floor -live 0.02 -seconds 0.2 -threads 2
smoke ring -messages 5000 -pushes 100000
smoke binary_trees -threads 1 11
smoke binary_trees -threads 2 11
smoke gcbench -depth 8
for kind in noscan typed untyped; do
    for bytes in 16 32 64 256 1024; do
        smoke alloc -kind $kind -bytes $bytes -threads 2 -count 30000 -window 1000
    done
done
for shape in tree shuffled-tree list graph rows; do
    smoke mark -shape $shape -objects 30000 -rounds 3
done
smoke drop -peak 0.02 -live 2 -seconds 0.1
for scenario in oscillate noscan stacks globals limit; do
    smoke pace -scenario $scenario -seconds 0.3 -limit 32
done
for procs in 1 2; do
    for case in spawn yield ping-pong buffered park-ready select4; do
        smoke sched -case $case -ops 20000 -repeat 2 -procs $procs
    done
    for case in spawn-batch yield-many mutex mutex-yield fanout parked; do
        smoke sched -case $case -goroutines 100 -ops 20000 -repeat 2 -procs $procs
    done
    smoke sched -case sleep -goroutines 100 -ops 1000 -repeat 2 -procs $procs
done
echo "$ran runs"
exit $failed
