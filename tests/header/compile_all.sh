#!/bin/sh
# compile_all.sh - the public headers under every compiler and linker that is here.
#
# Claims: (1) every header alone, use_all.*, use_sched.c, names.* and two_tus* compile without a warning in C99 and
# later and in C++17 and later; (2) each bad/*.c is refused, with the text after "expect:" in its first
# line, an extended regular expression, among the messages; (3) two_tus links and runs in every way
# a program may be linked.
# Usage: compile_all.sh [-v] [include-directory]. Prints one line per tool and what failed; exit
# status 1 if anything did.

here=$(cd "$(dirname "$0")" && pwd) || exit 1
warn="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
verbose=0
[ "$1" = "-v" ] && { verbose=1; shift; }
include=$(cd "${1:-$here/../../include}" && pwd) || exit 1
failed=0
checks=0

have() { command -v "$1" >/dev/null 2>&1; }

# try <what> <command...>: the command succeeds and says nothing.
try() {
    what=$1
    shift
    checks=$((checks + 1))
    if "$@" >"$tmp/out" 2>&1 && [ ! -s "$tmp/out" ]; then
        [ $verbose = 1 ] && echo "  ok    $what"
        return 0
    fi
    echo "  FAIL  $what"
    echo "        $*"
    head -20 "$tmp/out" | sed 's/^/        /'
    failed=$((failed + 1))
    return 1
}

# refuse <file> <command...>: the command fails with the expected text.
refuse() {
    file=$1
    shift
    checks=$((checks + 1))
    text=$(sed -n '1s,^/\* expect: \(.*\) \*/$,\1,p' "$file")
    if [ -z "$text" ]; then
        echo "  FAIL  $file has no 'expect:' in its first line"
    elif "$@" "$file" >"$tmp/out" 2>&1; then
        echo "  FAIL  ${file##*/} compiles: $*"
    elif ! grep -Eq "$text" "$tmp/out"; then
        echo "  FAIL  ${file##*/}: no '$text' from $*"
        head -5 "$tmp/out" | sed 's/^/        /'
    else
        [ $verbose = 1 ] && echo "  ok    ${file##*/} is refused by $*"
        return 0
    fi
    failed=$((failed + 1))
}

begin() { before=$failed; first=$checks; }
end() { echo "$1: $((checks - first)) checks, $((failed - before)) failed"; }

obj="$tmp/o.o"

# Every header alone, and twice: alone_*.c, and as C++ alone_*.cpp.
for header in "$include"/*.h "$include"/loam/*.h; do
    name=${header#"$include/"}
    alone="$tmp/alone_$(basename "$name" .h)"
    printf '#include <%s>\n#include <%s>\nextern int none;\n' "$name" "$name" >"$alone.c"
    cp "$alone.c" "$alone.cpp"
done
cp "$here/use_sched.c" "$tmp/alone_use_sched.c"
cp "$here/use_sched.c" "$tmp/alone_use_sched.cpp"

for cc in gcc clang aarch64-linux-gnu-gcc; do
    have $cc || { echo "$cc: not here"; continue; }
    begin
    for std in c99 c11 gnu11 c17 c2x; do
        for f in "$tmp"/alone_*.c; do
            try "$cc -std=$std ${f##*/}" $cc -std=$std $warn -I"$include" -c "$f" -o "$obj"
        done
        for opt in -O0 -O2; do
            for f in use_all.c names.c; do
                try "$cc -std=$std $opt $f" \
                    $cc -std=$std $opt $warn -I"$include" -c "$here/$f" -o "$obj"
            done
        done
        for bad in "$here"/bad/*.c; do
            refuse "$bad" $cc -std=$std $warn -I"$include" -c -o "$obj"
        done
    done
    for opt in "-O3 -fPIC" "-Os -fno-pie" "-O2 -DLOAM_NO_INLINE_STORE" "-Og -g" \
        "-O2 -Wmissing-prototypes -Wstrict-prototypes -Wcast-qual -Wredundant-decls"; do
        try "$cc $opt use_all.c" $cc -std=c11 $opt $warn -I"$include" -c "$here/use_all.c" -o "$obj"
    done
    case $cc in
    gcc) sanitizers="thread address,undefined" more="-masm=intel" ;;
    clang) sanitizers="thread address,undefined memory" more="--target=aarch64-linux-gnu" ;;
    *) sanitizers= more= ;;
    esac
    for s in $sanitizers; do
        try "$cc -fsanitize=$s use_all.c" \
            $cc -std=c11 -O1 -fsanitize=$s $warn -I"$include" -c "$here/use_all.c" -o "$obj"
    done
    [ -z "$more" ] || [ "$(uname -m)" != x86_64 ] ||
        try "$cc $more use_all.c" \
            $cc -std=c11 -O2 $more $warn -ffreestanding -I"$include" -c "$here/use_all.c" -o "$obj"
    end $cc
done

for cxx in g++ clang++; do
    have $cxx || { echo "$cxx: not here"; continue; }
    begin
    for std in c++17 c++20; do
        for f in "$tmp"/alone_*.cpp; do
            try "$cxx -std=$std ${f##*/}" $cxx -std=$std $warn -I"$include" -c "$f" -o "$obj"
        done
        for opt in -O0 -O2 "-O2 -Wold-style-cast -Wzero-as-null-pointer-constant -Wcast-qual"; do
            # NULL is a zero to that warning, and use_all.cpp stores one.
            case $opt in *zero*) no=-Wno-zero-as-null-pointer-constant ;; *) no= ;; esac
            try "$cxx -std=$std $opt use_all.cpp" \
                $cxx -std=$std $opt $warn $no -I"$include" -c "$here/use_all.cpp" -o "$obj"
            for f in names.cpp two_tus_a.cpp two_tus_b.cpp; do
                try "$cxx -std=$std $opt $f" \
                    $cxx -std=$std $opt $warn -I"$include" -c "$here/$f" -o "$obj"
            done
        done
    done
    for bad in "$here"/bad/*.c; do
        case $bad in
        */packed_tail.c | */no_fields.c) continue ;; # flexible arrays and empty arguments are C's
        esac
        refuse "$bad" $cxx -std=c++17 -x c++ $warn -I"$include" -c -o "$obj"
    done
    end $cxx
done

# ---- linking ----

# gcc looks for ld.lld only; distributions call it ld.lld-14.
if ! have ld.lld; then
    for dir in $(echo "$PATH" | tr : ' '); do
        for f in "$dir"/ld.lld-*; do
            [ -x "$f" ] && ln -sf "$f" "$tmp/ld.lld"
        done
    done
    PATH="$tmp:$PATH"
fi

# link <name> <objects with notes> <c flags> <ld flags> [-r]
link() {
    name=$1 objects=$2 cflags=$3 ldflags=$4 partial=$5
    o="$tmp/$cxx-$ld"
    rm -f "$o"*
    # Does this tool do this at all?
    echo 'int main(void) { return 0; }' >"$tmp/empty.c"
    $cc $cflags "$tmp/empty.c" $use $ldflags -o "$o.empty" >"$tmp/out" 2>&1 ||
        { echo "  skip  $cxx, $ld: $name: not here"; return; }
    what="$cxx, $ld: $name"
    try "$what: stand_in.c" $cc $cflags -I"$include" -c "$here/stand_in.c" -o "$o.s.o" || return
    try "$what: a" $cxx -std=c++17 $cflags -I"$include" -c "$here/two_tus_a.cpp" -o "$o.a.o" ||
        return
    try "$what: b" $cxx -std=c++17 $cflags -I"$include" -c "$here/two_tus_b.cpp" -o "$o.b.o" ||
        return
    if [ "$partial" ]; then # as the library's archive is made
        try "$what: link b and the stand-in" \
            $cxx -nostdlib -r "$o.b.o" "$o.s.o" $use -o "$o.r.o" || return
        mv "$o.r.o" "$o.b.o"
        echo 'extern int none; int none;' >"$tmp/none.c"
        try "$what: nothing" $cc -c "$tmp/none.c" -o "$o.s.o" || return
    fi
    if [ "$objects" = 2 ]; then
        try "$what: link the stand-in" \
            $cxx $cflags -shared "$o.s.o" $use -o "$o.libs.so" || return
        try "$what: link b" \
            $cxx $cflags -shared "$o.b.o" "$o.libs.so" $use -o "$o.libb.so" || return
        try "$what: link a" $cxx $cflags $ldflags "$o.a.o" "$o.libb.so" "$o.libs.so" $use \
            -Wl,-rpath,"$tmp" -o "$o.run" || return
    else
        try "$what: link" $cxx $cflags $ldflags "$o.a.o" "$o.b.o" "$o.s.o" $use -o "$o.run" ||
            return
    fi
    try "$what: run" "$o.run" "$objects"
    strip -o "$o.stripped" "$o.run" && try "$what: run stripped" "$o.stripped" "$objects"
}

for pair in gcc:g++ clang:clang++; do
    cc=${pair%:*} cxx=${pair#*:}
    have $cxx || continue
    for ld in bfd gold lld; do
        use="-fuse-ld=$ld -B$tmp"
        begin
        link "default" 1 "-O2" ""
        link "unoptimised" 1 "-O0" ""
        link "gc-sections" 1 "-O2 -ffunction-sections -fdata-sections" "-Wl,--gc-sections"
        link "icf" 1 "-O2 -ffunction-sections" "-Wl,--icf=all"
        link "lto" 1 "-O2 -flto" ""
        link "partial" 1 "-O2" "" -r
        link "shared" 2 "-O2 -fPIC" ""
        link "shared, not PIE" 2 "-O2 -fPIC" "-no-pie"
        link "shared, hidden, lto" 2 "-O2 -fPIC -flto -fvisibility=hidden" ""
        link "static" 1 "-O2 -fno-pie" "-static"
        link "static-pie" 1 "-O2 -fPIE" "-static-pie"
        end "$cxx with $ld"
    done
done

echo "compile_all: $checks checks, $failed failed"
[ $failed = 0 ]
