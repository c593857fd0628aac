#!/usr/bin/env python3
"""fast_path.py - what an allocation, a store and marking cost, in instructions, does not grow unseen.

    fast_path.py BUILD INCLUDE CC

Claims, for the release build in BUILD on x86-64:
  alloc   loam_alloc_noscan's way from its entry to ret, where nothing is missing, is at most 24
          instructions: no call, no lock prefix, no xchg with memory
  step    a warm loam_alloc_noscan(16) takes at most 25 instructions from its call to its return,
          counted by single steps (count.c), with the static and with the shared library (there
          one or two more, of the program's own procedure linkage table, count too)
  store   LOAM_SET, compiled with -O2, is one cmp with loam_write_barrier, one jne, one mov (of the
          first field: that of another computes its address besides, for the call of the slow path)
  scan    the kernels that gather candidates (scan_plain, scan_avx2, scan_avx512) call nothing and have
          no atomic instruction; mark_range, for roots and stacks, calls nothing but mark_candidates,
          when 1024 candidates are together, and has no atomic instruction
  mark    mark_candidates has two atomic instructions, of the mark bit and of the span's place in the
          queue, and calls nothing but gcwork_share (128 spans are in hand) and ends_key_marked. A
          candidate comes to the first of them only past five tests (nothing there; a large object;
          marked; not allocated; a thread's buffer), and is done with in at most 64 instructions,
          those that prefetch another one included, if one of them sends it away
  drain   gc_drain, once for some KiB of objects or once for a span, calls what DRAIN_CALLS lists: no function
          that marks a word, and no lock that may be waited for

"atomic": a lock prefix, or xchg with memory. Per word of the heap there is none; per object, one.

Exit status 77: cannot be said here (no objdump, no release build, another machine). Prints the listing
of what is too long.
"""

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile

ALLOC_MOST = 24
STEP_MOST = 25
WORD_MOST = 64
MARK_TESTS = 5
NO_WAY = -1000
DRAIN_CALLS = {"scan_choose", "scan_piece", "mark_candidates", "gcwork_take", "gcwork_take_large",
               "gcwork_share", "gcwork_put_alone", "gcwork_publish", "ends_drain_keys",
               "os_nanotime", "__popcountdi2", "(kernel)"}
SKIP = 77
HERE = os.path.dirname(os.path.abspath(__file__))

SAMPLE = """
#include <loam.h>
typedef struct node { struct node *left, *right; } node;
LOAM_TYPE(node, left, right);
void sample(node *n, node *child) { LOAM_SET(n->left, child); }
"""


def skip(why):
    print("skip:", why)
    sys.exit(SKIP)


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@functools.cache
def functions_at(path):
    """{address: name} of the functions in the one section of the library's code."""
    return {int(line.split()[0], 16): line.split()[2] for line in run("nm", "--defined-only", path).splitlines()
            if re.match(r"[0-9a-f]+ [tT] ", line)}


def disassemble(path, function):
    """[(address, instruction, operands, relocation or None)] of a function."""
    listing = run("objdump", "-dr", "--no-show-raw-insn", "--disassemble=" + function, path)
    code = []
    for line in listing.splitlines():
        reloc = re.match(r"\s+[0-9a-f]+: (R_\S+)\s+(\S+)", line)
        if reloc:
            inner = re.match(r"loam_text\+0x([0-9a-f]+)$", reloc.group(2))
            at = int(inner.group(1), 16) + 4 if inner else None  # relative to the end of its own four bytes
            code[-1][3] = functions_at(path).get(at, reloc.group(2)) if inner else reloc.group(2)
            continue
        match = re.match(r"\s*([0-9a-f]+):\s+(.*?)\s*$", line)
        if match:
            name, _, operands = match.group(2).partition(" ")
            code.append([int(match.group(1), 16), name, operands.strip(), None])
    return code


def straight_to_ret(code):
    """The instructions from the entry to the first ret if no conditional jump is taken."""
    at = {line[0]: i for i, line in enumerate(code)}
    path, i = [], 0
    while i < len(code) and len(path) < 200:
        path.append(code[i])
        _, name, operands, _ = code[i]
        if name.startswith("ret"):
            return path
        target = re.match(r"([0-9a-f]+)", operands)
        if name == "jmp" and target and int(target.group(1), 16) in at:
            i = at[int(target.group(1), 16)]
        else:
            i += 1
    return path + [[0, "(no ret)", "", None]]


def show(code):
    for address, name, operands, reloc in code:
        print("  %6x  %-8s %s%s" % (address, name, operands, "  <%s>" % reloc if reloc else ""))


def check_alloc(path):
    code = straight_to_ret(disassemble(path, "loam_alloc_noscan"))
    errors = []
    if len(code) > ALLOC_MOST:
        errors.append("%d instructions, more than %d" % (len(code), ALLOC_MOST))
    for _, name, operands, _ in code:
        text = name + " " + operands
        if name.startswith(("call", "(no")) or "lock" in text:
            errors.append("has " + text)
        if name.startswith("xchg") and "(" in operands:
            errors.append("has " + text)
    print("alloc: %s: %d instructions" % (os.path.basename(path), len(code)))
    for error in errors:
        print("FAIL: loam_alloc_noscan:", error)
    if errors:
        show(code)
    return not errors


def check_steps(what, library, program):
    result = subprocess.run([program], stdout=subprocess.PIPE, text=True)
    if result.returncode == SKIP:
        print("steps: not here: no process may be stepped")
        return True
    if result.returncode != 0:
        print("FAIL: count.c ended with", result.returncode)
        return False
    first, *offsets = result.stdout.splitlines()
    most = int(first.split()[-1])
    print("steps: %s: %s" % (what, first))
    if most <= STEP_MOST:
        return True
    print("FAIL: %s: %d steps, more than %d" % (what, most, STEP_MOST))
    code = disassemble(library, "loam_alloc_noscan")
    by_offset = {line[0] - code[0][0]: line for line in code}
    for text in offsets:
        if int(text, 16) in by_offset:
            show([by_offset[int(text, 16)]])
        else:
            print("          (elsewhere: the call, the linkage table, another function)", text)
    return False


def check_store(compiler, flags, include, folder):
    source, obj = os.path.join(folder, "sample.c"), os.path.join(folder, "sample.o")
    with open(source, "w", encoding="ascii") as f:
        f.write(SAMPLE)
    run(compiler, "-O2", *flags, "-I", include, "-c", source, "-o", obj)
    code = straight_to_ret(disassemble(obj, "sample"))
    body = [line for line in code if not line[1].startswith(("endbr", "ret", "nop", "cs"))]
    names = [re.sub(r"^(cmp|mov)[lq]$", r"\1", line[1]) for line in body]
    ok = (names == ["cmp", "jne", "mov"] and body[0][3] is not None
          and body[0][3].startswith("loam_write_barrier") and body[2][2].endswith("(%rdi)"))
    print("store: %s %s: %s" % (compiler, " ".join(flags), " ".join(names)))
    if not ok:
        print("FAIL: LOAM_SET is not one cmp with loam_write_barrier, one jne, one mov")
        show(code)
    return ok


def is_atomic(line):
    text = line[1] + " " + line[2]
    return "lock" in text or (line[1].startswith("xchg") and "(" in line[2])


def called(line):
    """The function that an instruction calls or jumps to, None if it does neither."""
    _, name, operands, reloc = line
    leaves = name.startswith("call") or (name == "jmp" and (reloc or "*" in operands))
    if not leaves:
        return None
    if reloc is None:
        return "(kernel)"
    text = re.sub(r"[-+]0x[0-9a-f]+$", "", reloc)
    return re.sub(r"\.(isra|part|constprop|cold).*$", "", text)


def check_function(path, function, calls, atomics):
    code = disassemble(path, function)
    found = {called(line) for line in code} - {None}
    count = sum(map(is_atomic, code))
    print("mark: %s: %d atomic, calls %s" % (function, count, " ".join(sorted(found)) or "nothing"))
    if code and found <= calls and (atomics is None or count <= atomics):
        return True
    print("FAIL: %s: more than %s atomic, or calls other than %s" % (function, atomics, sorted(calls)))
    show(code)
    return False


def successors(code):
    """For each instruction, the ones that may come next, by number."""
    at = {line[0]: i for i, line in enumerate(code)}
    after = []
    for i, (_, name, operands, reloc) in enumerate(code):
        target = re.match(r"([0-9a-f]+)", operands) if name.startswith("j") and not reloc else None
        here = [at[int(target.group(1), 16)]] if target and int(target.group(1), 16) in at else []
        if not name.startswith(("ret", "jmp", "ud2")) and i + 1 < len(code):
            here.append(i + 1)
        after.append(here)
    return after


def word_loop(code, after):
    """First instruction of the loop over candidates: it prefetches, and sets mark bits."""
    for i, nexts in enumerate(after):
        for head in nexts:
            body = code[head:i + 1]
            if head <= i and any(map(is_atomic, body)) and any("prefetch" in line[1] for line in body):
                return head
    return None


def fewest_tests(code, after, head):
    """Conditional jumps passed at least from the loop's prefetch to an atomic instruction."""
    first = max(i for i, line in enumerate(code) if i > head and "prefetch" in line[1]) + 1
    best, todo = {first: 0}, [first]
    while todo:
        i = todo.pop()
        tests = best[i] + (1 if code[i][1].startswith("j") and code[i][1] != "jmp" else 0)
        for k in ([] if is_atomic(code[i]) else after[i]):
            if tests < best.get(k, 1000):
                best[k] = tests
                todo.append(k)
    return min((best[i] for i in best if is_atomic(code[i])), default=0)


def longest_way(code, after, head):
    """Most instructions of a turn of the loop that has no atomic instruction and no call."""
    known = {}

    def way(i):
        if i not in known:
            known[i] = NO_WAY  # a way that comes here again is no turn
            if not is_atomic(code[i]) and called(code[i]) is None:
                known[i] = 1 + max((0 if k == head else way(k) for k in after[i]), default=NO_WAY)
        return known[i]

    return way(head)


def check_marking(path):
    ok = True
    for kernel in ("scan_plain", "scan_avx2", "scan_avx512"):
        ok = check_function(path, kernel, set(), 0) and ok
    ok = check_function(path, "mark_range", {"mark_candidates"}, 0) and ok
    ok = check_function(path, "mark_candidates",
                        {"gcwork_share", "gcwork_put_alone", "ends_key_marked"}, 2) and ok
    ok = check_function(path, "gc_drain", DRAIN_CALLS, None) and ok
    code = disassemble(path, "mark_candidates")
    after = successors(code)
    head = word_loop(code, after)
    if head is None:
        print("FAIL: mark_candidates: no loop that prefetches and marks")
        show(code)
        return False
    tests, longest = fewest_tests(code, after, head), longest_way(code, after, head)
    print("mark: a word: %d tests before the first atomic, %d instructions without one" % (tests, longest))
    if tests < MARK_TESTS or longest > WORD_MOST:
        print("FAIL: mark_candidates: fewer than %d tests, or more than %d instructions"
              % (MARK_TESTS, WORD_MOST))
        show(code)
        return False
    return ok


def main():
    build, include, compiler = sys.argv[1:4]
    static = os.path.join(build, "libloam.a")
    shared = os.path.join(build, "libloam.so")
    if platform.machine() != "x86_64":
        skip("the golden counts are of x86-64")
    if shutil.which("objdump") is None:
        skip("no objdump")
    if not os.path.exists(static) or not os.path.exists(shared):
        skip("no libraries in " + build)
    ok = check_alloc(static)
    ok = check_alloc(shared) and ok
    ok = check_marking(static) and ok
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "count")
        common = [compiler, "-O2", "-I", include, os.path.join(HERE, "count.c"), "-o", program]
        run(*common, static, "-lpthread")
        ok = check_steps("static", static, program) and ok
        run(*common, "-L", build, "-lloam", "-Wl,-rpath," + os.path.abspath(build))
        ok = check_steps("shared", shared, program) and ok
        ok = check_store(compiler, [], include, folder) and ok
        for other in ("gcc", "clang"):
            if shutil.which(other):
                ok = check_store(other, ["-fno-pie"], include, folder) and ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
