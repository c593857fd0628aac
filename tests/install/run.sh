#!/bin/sh
# run.sh BUILD CC CMAKE - install the library into a folder, move the folder, and use it as a stranger
# would: through pkg-config and CMake, shared and static, from C and C++. Then look at what it exports.
set -eu
build=$1 cc=$2 cmake=$3
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
unset DESTDIR CFLAGS LDFLAGS LD_LIBRARY_PATH PKG_CONFIG_PATH PKG_CONFIG_LIBDIR || true

"$cmake" --install "$build" --prefix "$tmp/first" >/dev/null
prefix="$tmp/moved"
mv "$tmp/first" "$prefix"
libdir=$(dirname "$(find "$prefix" -name libloam.a)")
export PKG_CONFIG_PATH="$libdir/pkgconfig"

say() { echo "-- $*"; }
run_shared() { LD_LIBRARY_PATH="$libdir" "$@"; }

warn="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"

say "pkg-config: version"
version=$(pkg-config --modversion loam)
grep -q "LOAM_VERSION \"$version\"" "$prefix/include/loam.h"

say "pkg-config: shared"
$cc $warn "$here/use.c" -o "$tmp/shared" $(pkg-config --cflags --libs loam)
run_shared "$tmp/shared" "$version"

say "pkg-config: shared, not position independent"
$cc $warn -fno-pie -no-pie "$here/use.c" -o "$tmp/nopie" $(pkg-config --cflags --libs loam)
run_shared "$tmp/nopie" "$version"

say "pkg-config: from a shared library of the program's own"
$cc $warn -fPIC -shared -Dmain=use_main "$here/use.c" -o "$tmp/libuse.so" $(pkg-config --cflags --libs loam) -Wl,-z,defs
printf 'int use_main(int, char **);\nint main(int argc, char **argv) { return use_main(argc, argv); }\n' >"$tmp/main.c"
$cc "$tmp/main.c" -o "$tmp/plugin" -L"$tmp" -luse -Wl,-rpath,"$tmp" -Wl,-rpath-link,"$libdir"
run_shared "$tmp/plugin" "$version"

say "pkg-config: static"
$cc $warn -static "$here/use.c" -o "$tmp/static" $(pkg-config --static --cflags --libs loam)
"$tmp/static" "$version"

say "pkg-config: --static flags, shared C library"
$cc $warn "$here/use.c" -o "$tmp/mixed" $(pkg-config --static --cflags --libs loam)
run_shared "$tmp/mixed" "$version"

say "the archive alone, internal names taken by the program"
$cc $warn -DTAKE_NAMES "$here/use.c" -o "$tmp/archive" -I"$prefix/include" "$libdir/libloam.a" -pthread
"$tmp/archive" "$version"

say "a second copy, linked statically into a plug-in: refuses, and the first one goes on"
$cc $warn -fPIC -shared "$here/copy_plugin.c" -o "$tmp/copy_plugin.so" -I"$prefix/include" "$libdir/libloam.a" \
    -pthread -Wl,-Bsymbolic
for flags in "-L$libdir -lloam" "$libdir/libloam.a"; do
    $cc $warn "$here/copy_host.c" -o "$tmp/copy_host" -I"$prefix/include" $flags -pthread -ldl
    run_shared "$tmp/copy_host" "$tmp/copy_plugin.so" host-first 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
    test "$(grep -c 'two copies' "$tmp/err")" -eq 1
    grep -q "the one in $tmp/copy_plugin.so gives no memory" "$tmp/err"
    run_shared "$tmp/copy_host" "$tmp/copy_plugin.so" plugin-first 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
    grep -q "The one in $tmp/copy_plugin.so works" "$tmp/err"
done

if command -v g++ >/dev/null; then
    say "C++17"
    g++ -std=c++17 $warn "$here/use.cpp" -o "$tmp/cpp" $(pkg-config --cflags --libs loam)
    run_shared "$tmp/cpp" "$version"
fi

say "CMake: find_package, both targets"
mkdir "$tmp/cmake"
cp "$here/use.c" "$tmp/cmake/"
cat >"$tmp/cmake/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.16)
project(use LANGUAGES C)
find_package(loam ${version} REQUIRED)
add_executable(use_shared use.c)
target_link_libraries(use_shared PRIVATE loam::loam)
add_executable(use_static use.c)
target_link_libraries(use_static PRIVATE loam::loam_static)
END
"$cmake" -S "$tmp/cmake" -B "$tmp/cmake/build" -DCMAKE_C_COMPILER="$cc" \
    -DCMAKE_PREFIX_PATH="$prefix" >"$tmp/log" 2>&1 &&
    "$cmake" --build "$tmp/cmake/build" >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }
"$tmp/cmake/build/use_shared" "$version"
"$tmp/cmake/build/use_static" "$version"

say "exported names"
nm -D --defined-only "$libdir/libloam.so" | awk '{ print $NF }' | sort >"$tmp/so"
nm -g --defined-only "$libdir/libloam.a" | awk 'NF == 3 { print $3 }' | sort >"$tmp/a"
if grep -v '^loam_' "$tmp/so" "$tmp/a"; then
    echo "FAILED: names above are exported and do not begin with loam_"
    exit 1
fi
# What the headers declare is there, and nothing is there that they do not declare.
cat "$prefix"/include/loam.h "$prefix"/include/loam/*.h >"$tmp/headers"
for name in $(cat "$tmp/so"); do
    grep -qw "$name" "$tmp/headers" || { echo "FAILED: $name is exported, no header has it"; exit 1; }
done
if ! diff "$tmp/so" "$tmp/a"; then
    echo "FAILED: libloam.so (<) and libloam.a (>) export different names"
    exit 1
fi
test -s "$tmp/so"
readelf -d "$libdir/libloam.so" | grep -q 'SONAME.*\[libloam\.so\.0\]'
if readelf -lW "$libdir/libloam.so" | grep -q 'GNU_STACK.*RWE'; then
    echo "FAILED: libloam.so asks for an executable stack"
    exit 1
fi
echo "$(wc -l <"$tmp/so") names exported"
