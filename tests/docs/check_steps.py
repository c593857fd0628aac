#!/usr/bin/env python3
"""check_steps.py - the code, the protocol's document and its model name the same steps.

A step is a name in brackets in the first column of a table of docs/internals/protocol.md. Each of
them stands in a comment of src/ and in one of tests/model/cycle.pml; and whatever stands in
brackets in the comments there, and in the text of protocol.md and ARCHITECTURE.md, is a step.
Names with a dot are invariants, not steps: each that is cited in src/ is declared in src/, by
standing at the begin of a line of a head comment.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# Not behind a word or another bracket: that is an index.
NAME = re.compile(r"(?<![\w\])])\[([A-Za-z][A-Za-z-]*)\](?![\[(])")
ROW = re.compile(r"^\| \[([A-Za-z-]+)\] \|", re.MULTILINE)
CITED = re.compile(r"(?<![\w\])])\[([a-z]+\.[a-z_]+)\]")
DECLARED = re.compile(r"^ \* +(?:Invariants +)?((?:\[[a-z]+\.[a-z_]+\](?:, )?)+)", re.MULTILINE)


def comments(path):
    """(line, text) of each comment."""
    text = path.read_text(encoding="utf-8")
    for match in COMMENT.finditer(text):
        for number, line in enumerate(match[0].splitlines(), text.count("\n", 0, match.start()) + 1):
            yield number, line


def prose(path):
    """(line, text) without what is quoted as code."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield number, re.sub(r"`[^`]*`", "", line)


def names(lines, path, steps, wrong):
    """The steps that lines name; what is none goes to wrong."""
    found = set()
    for number, line in lines:
        for name in NAME.findall(line):
            found.add(name)
            if name not in steps:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: [{name}] is no step of protocol.md")
    return found


def main():
    document = ROOT / "docs/internals/protocol.md"
    model = ROOT / "tests/model/cycle.pml"
    steps = set(ROW.findall(document.read_text(encoding="utf-8")))
    sources = sorted((ROOT / "src").rglob("*.[ch]"))
    wrong = []
    in_code = set()
    for path in sources:
        in_code |= names(comments(path), path, steps, wrong)
    in_model = names(comments(model), model, steps, wrong)
    for path in (document, ROOT / "ARCHITECTURE.md"):
        names(prose(path), path, steps, wrong)
    wrong += [f"[{name}] of protocol.md is named nowhere in src/" for name in sorted(steps - in_code)]
    wrong += [f"[{name}] of protocol.md is named nowhere in tests/model/cycle.pml"
              for name in sorted(steps - in_model)]

    declared = set()
    for path in sources:
        for group in DECLARED.findall(path.read_text(encoding="utf-8")):
            declared |= set(re.findall(r"\[(.*?)\]", group))
    for path in sources:
        for number, line in comments(path):
            wrong += [f"{path.relative_to(ROOT)}:{number}: [{name}] is declared nowhere in src/"
                      for name in CITED.findall(line) if name not in declared]
    for line in wrong:
        print(line)
    print(f"{len(steps)} steps, {len(declared)} invariants, {len(wrong)} names wrong")
    sys.exit(bool(wrong) or not steps)


if __name__ == "__main__":
    main()
