#!/bin/sh
# compile_all.sh INCLUDE - the public headers compile without a warning wherever they may be included.
#
# Every header alone, and every *.c and *.cpp beside this script, with each compiler that is there,
# in each standard. A file in bad/ must be refused by each compiler: it is a mistake that the headers
# promise to catch. Prints one line per failure; exit status 1 if there was one.
set -u
include=$1
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
flags="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -O1 -I$include -o $tmp/out.o -c"
compiled=0 refused=0 failed=0

# compile COMPILER STANDARD FILE: must succeed.
compile()
{
    if $1 -std=$2 $flags "$3" >"$tmp/log" 2>&1; then
        compiled=$((compiled + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $1 -std=$2 ${3#"$here/"}"
        head -n 20 "$tmp/log"
    fi
}

# refuse COMPILER STANDARD FILE: must fail.
refuse()
{
    if $1 -std=$2 $flags "$3" >"$tmp/log" 2>&1; then
        failed=$((failed + 1))
        echo "FAILED: $1 -std=$2 accepts ${3#"$here/"}"
    else
        refused=$((refused + 1))
    fi
}

for header in "$include"/*.h "$include"/loam/*.h; do
    [ -e "$header" ] || continue
    name=${header#"$include/"}
    base=$(echo "$name" | tr '/' '_')
    printf '#include <%s>\n#include <%s>\nint main(void);\nint main(void)\n{\n    return 0;\n}\n' \
        "$name" "$name" >"$tmp/$base.c"
    printf '#include <%s>\nint main()\n{\n    return 0;\n}\n' "$name" >"$tmp/$base.cpp"
done

for cc in gcc clang; do
    command -v $cc >/dev/null || continue
    for file in "$tmp"/*.c "$here"/*.c; do
        [ -e "$file" ] || continue
        for std in c99 c11 gnu11 c17 c2x; do
            compile $cc $std "$file"
        done
    done
    for file in "$here"/bad/*.c; do
        [ -e "$file" ] && refuse $cc c11 "$file"
    done
done
for cxx in g++ clang++; do
    command -v $cxx >/dev/null || continue
    for file in "$tmp"/*.cpp "$here"/*.cpp; do
        [ -e "$file" ] || continue
        for std in c++17 c++20; do
            compile $cxx $std "$file"
        done
    done
    for file in "$here"/bad/*.cpp; do
        [ -e "$file" ] && refuse $cxx c++17 "$file"
    done
done

echo "$compiled compiled, $refused refused as they should be, $failed failed"
[ $failed -eq 0 ] && [ $compiled -gt 0 ]
