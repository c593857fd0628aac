#!/usr/bin/env python3
"""check_docs.py LIBRARY - what the documents show compiles and runs, and what they link to is there.

Takes every block of README.md and docs/*.md that begins with ```c and has an `int main`, or that
begins with ```c compile. Each is compiled as it stands, warnings being errors; a program is linked
with LIBRARY (libloam.a) and run, and has to end with status 0. A compiler's message names the line
of the document. Then the relative links of all documents are followed.
"""
import argparse
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WARNINGS = "-std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror".split()
FENCE = re.compile(r"^(```+)\s*(.*?)\s*$")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(path):
    """(line of the first line, info string, text) of each fenced block."""
    fence = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if fence is None and match:
            fence, info, first, lines = match[1], match[2], number + 1, []
        elif fence is not None and line.strip() == fence:
            yield first, info, "\n".join(lines) + "\n"
            fence = None
        elif fence is not None:
            lines.append(line)


def outside_blocks(path):
    """The text with the lines of its blocks left empty."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, re.sub(r"`[^`]*`", "", line)


def run(command, seconds, where):
    """True if the command ends with status 0."""
    try:
        done = subprocess.run(command, timeout=seconds, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except subprocess.TimeoutExpired:
        print(f"{where}: not finished after {seconds} s")
        return False
    if done.returncode != 0:
        print(f"{where}: {shlex.join(map(str, command))}: status {done.returncode}\n{done.stdout}")
    return done.returncode == 0


def check_block(args, folder, path, first, info, text):
    """None: not a block to be compiled."""
    words = info.split()
    is_program = re.search(r"\bint main\b", text) is not None
    if words[:1] != ["c"] or not (is_program or words[1:2] == ["compile"]):
        return None
    where = f"{path.relative_to(ROOT)}:{first}"
    source, program = folder / "block.c", folder / "block"
    source.write_text(f'#line {first} "{path}"\n{text}', encoding="utf-8")
    command = [*shlex.split(args.cc), "-O2", *WARNINGS, "-I", args.include, source]
    if not is_program:
        return run([*command, "-c", "-o", folder / "block.o"], 60, where)
    return (run([*command, "-o", program, args.library, "-pthread"], 60, where) and
            run([program], 60, where))


def check_links(path):
    broken = 0
    for number, line in outside_blocks(path):
        for target in LINK.findall(line):
            if "://" in target or target.startswith(("#", "mailto:")):
                continue
            if not (path.parent / target.split("#")[0]).exists():
                print(f"{path.relative_to(ROOT)}:{number}: nothing is at {target}")
                broken += 1
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="libloam.a")
    parser.add_argument("--cc", default="cc")
    parser.add_argument("--include", default=str(ROOT / "include"))
    args = parser.parse_args()

    compiled = failed = 0
    with tempfile.TemporaryDirectory() as name:
        for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
            for block in blocks(path):
                good = check_block(args, pathlib.Path(name), path, *block)
                compiled += good is not None
                failed += good is False
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"),
                 *ROOT.glob("tests/**/*.md")]
    broken = sum(check_links(path) for path in sorted(documents))
    if compiled == 0:
        print("no block of C was found: the README shows a program")
    print(f"{compiled} blocks compiled, {failed} failed; {len(documents)} documents, {broken} broken links")
    sys.exit(failed != 0 or broken != 0 or compiled == 0)


if __name__ == "__main__":
    main()
