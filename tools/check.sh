#!/bin/bash
# check.sh [STEP...] - what `make test` runs: every check in order, up to the first that fails.
#
# Steps     format layers cppcheck tidy release debug clang asan tsan aarch64   (the default)
#           long                                                                (`make test-long`)
# Each prints a heading, its result and its time; what it said in full is in build/log/STEP.log.
# The last line is `N passed, N failed`: cases of ctest and the checks that are not of ctest, summed.
set -u
cd "$(dirname "$0")/.." || exit 1
default="format layers cppcheck tidy release debug clang asan tsan aarch64"
jobs=$(nproc)
logs=build/log
mkdir -p $logs
passed=0 failed=0
unset MAKEFLAGS MFLAGS CFLAGS LDFLAGS GOGC GOMEMLIMIT GODEBUG GOMAXPROCS

# ThreadSanitizer's shadow wants addresses where they usually are.
fixed_addresses=
setarch -R true 2>/dev/null && fixed_addresses="setarch -R"

sources() # DIR... - the C files below them that are there
{
    local dir
    for dir in "$@"; do
        [ -d "$dir" ] && find "$dir" -name '*.[ch]' -o -name '*.cpp' | sort
    done
}

# ---- kinds of step: each writes to the log and returns 0 if all is well ---------------------------

check() # COMMAND... - counts as one
{
    local before
    before=$(wc -l <"$log")
    if "$@" >>"$log" 2>&1; then
        passed=$((passed + 1)) said="ok"
    else
        failed=$((failed + 1)) said="failed"
        tail -n +$((before + 1)) "$log" | tail -n 60
        return 1
    fi
}

build() # PRESET [TARGET...]
{
    local preset=$1
    shift
    if ! { cmake --preset "$preset" && cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"}; } \
        >>"$log" 2>&1; then
        failed=$((failed + 1)) said="the build failed"
        grep -E -A 8 'error|Error|undefined reference' "$log" | head -n 80
        return 1
    fi
}

run_tests() # PRESET CTEST-OPTION... - counts each case
{
    local preset=$1 junit="$PWD/$logs/$step.xml" status run parts skipped ok before
    shift
    before=$(wc -l <"$log")
    rm -f "$junit"
    $launcher ctest --preset "$preset" -j "$jobs" --output-on-failure --no-tests=error \
        --output-junit "$junit" "$@" >>"$log" 2>&1
    status=$?
    read -r run parts skipped <<<"$(sed -n \
        's/^[[:space:]]*\(tests\|failures\|skipped\|disabled\)="\([0-9]*\)".*/\1 \2/p' "$junit" 2>/dev/null |
        awk '{ n[$1] = $2 } END { print n["tests"] + 0, n["failures"] + 0, n["skipped"] + n["disabled"] }')"
    ok=$((run - parts - skipped))
    passed=$((passed + ok))
    said="$ok of $run tests"
    if [ $status -ne 0 ]; then
        failed=$((failed + (run > ok ? run - ok : 1)))
        tail -n +$((before + 1)) "$log" | grep -vE '^ +Start +[0-9]+:|   Passed  ' | tail -n 120
        sed -n 's/^[[:space:]]*[0-9]* - \([^ ]*\) (.*/To repeat one: ctest --preset '"$preset"' -R \1/p' \
            "$log" | tail -n 5
        return 1
    fi
    # Tests say what they could not try here.
    skipped=$(grep -c '^skip:' "build/$preset/Testing/Temporary/LastTest.log")
    [ "$skipped" -gt 0 ] && said="$said ($skipped skip: lines)"
    return 0
}

# ---- the steps -----------------------------------------------------------------------------------

title_format="the code is formatted (else: make format)"
formatted()
{
    local file wrong=0
    for file in $(sources src include examples bench tests compat); do
        clang-format --dry-run -Werror "$file" 2>/dev/null || { echo "not formatted: $file"; wrong=1; }
    done
    return $wrong
}
step_format()
{
    check formatted
}

title_layers="no folder of src/ uses one below its own"
step_layers()
{
    build release loam_objects && check tools/layers.py build/release
}

title_cppcheck="cppcheck on src"
step_cppcheck()
{
    # memleak in mem.c, symbols.c: it takes a mapping that is handed to the caller for one that is lost.
    check cppcheck --quiet -j "$jobs" --enable=warning,portability --inline-suppr --error-exitcode=1 \
        --suppress=unmatchedSuppression --suppress=memleak:src/os/mem.c \
        --suppress=memleak:src/os/symbols.c --std=c11 --library=posix,gnu,tools/cppcheck.cfg -I include -I src \
        -D__GNUC__=12 -D__linux__=1 -D__x86_64__=1 -D__LP64__=1 -D_GNU_SOURCE -DLOAM_DEBUG_LEVEL=1 src
}

title_tidy="clang-tidy on src"
tidy()
{
    find src -name '*.c' | sort |
        xargs -P "$jobs" -n 1 clang-tidy -p build/clang --quiet --warnings-as-errors='*'
}
step_tidy()
{
    cmake --preset clang >>"$log" 2>&1 && check tidy
}

title_release="gcc, -O2: all tests"
step_release()
{
    build release && run_tests release -LE '^long$'
}

title_debug="gcc, internal assertions on: quick tests"
step_debug()
{
    build debug && run_tests debug -L '^quick$'
}

title_asan="address and undefined behaviour sanitizers: quick tests"
step_asan()
{
    launcher=$fixed_addresses
    build asan && run_tests asan -L '^quick$'
}

title_tsan="thread sanitizer: quick tests"
step_tsan()
{
    launcher=$fixed_addresses
    build tsan && run_tests tsan -L '^quick$'
}

title_clang="clang, -O2: quick tests of the public contract"
step_clang()
{
    build clang && run_tests clang -L '^quick$' -LE '^unit$|^stress$'
}

title_aarch64="64-bit ARM under qemu-user: quick tests"
step_aarch64()
{
    if [ "$(uname -m)" = aarch64 ]; then
        said="nothing to do: the steps above ran on 64-bit ARM"
        return 0
    fi
    build aarch64 && run_tests aarch64 -L '^quick$'
}

title_long="long tests; all structures checked; load under the sanitizers"
step_long()
{
    build release && run_tests release -L '^long$' &&
        build paranoid && run_tests paranoid -L '^quick$' &&
        launcher=$fixed_addresses &&
        build asan && run_tests asan -L '^stress$' &&
        build tsan && run_tests tsan -L '^stress$'
}

# ---- all of them ---------------------------------------------------------------------------------

steps=${*:-$default}
total=$(echo "$steps" | wc -w) number=0
for step in $steps; do
    title=title_$step
    if [ -z "${!title:-}" ]; then
        echo "check.sh: no step $step; there are: $default aarch64 long" >&2
        exit 2
    fi
    number=$((number + 1)) log=$logs/$step.log launcher="" said="" began=$SECONDS
    : >"$log"
    echo "[$number/$total] $step: ${!title}"
    step_"$step"
    status=$?
    echo "      ${said:-failed, see $log}, $((SECONDS - began)) s"
    if [ $status -ne 0 ]; then
        [ $failed -eq 0 ] && failed=1
        echo "To repeat this step: tools/check.sh $step    (in full: $log)"
        echo "$passed passed, $failed failed"
        exit 1
    fi
done
echo "All of it: $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "$passed passed, $failed failed"
