#!/usr/bin/env python3
"""layers.py [BUILD] - the house's order: no folder of src/ knows a folder below its own.

Two things are read. The #include lines: a file includes headers of its own folder and of folders
before it in LAYERS. The objects of the build in BUILD, if given: an undefined name of an object is
not defined by an object of a later folder. A call through a pointer that a later folder has stored
is no such name, and is how the lower part of the house is reached.
"""
import pathlib
import re
import subprocess
import sys

LAYERS = ["base", "os", "heap", "world", "gc", "malloc", "sched", "observe", "api"]
RANK = {folder: rank for rank, folder in enumerate(LAYERS)}
ROOT = pathlib.Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def check_includes():
    problems, files = [], 0
    for path in sorted(SRC.rglob("*")):
        if path.suffix not in (".c", ".h", ".S", ".def"):
            continue
        where = path.relative_to(SRC)
        if where.parts[0] not in RANK or len(where.parts) < 2:
            problems.append(f"src/{where}: not in a folder of the house ({' '.join(LAYERS)})")
            continue
        files += 1
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            name = match.group(1)
            target = path.parent / name
            if not target.exists():
                target = SRC / name
            if not target.exists():
                if not (ROOT / "include" / name).exists():
                    problems.append(f"src/{where}:{number}: no such header: {name}")
                continue
            parts = target.resolve().relative_to(SRC).parts
            if RANK.get(parts[0], -1) > RANK[where.parts[0]]:
                problems.append(f"src/{where}:{number}: {where.parts[0]} includes {'/'.join(parts)}")
    return problems, files


def names(path, *options):
    out = subprocess.run(["nm", "-P", *options, path], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in out.stdout.splitlines() if line.strip()]


def check_objects(build):
    base = build / "CMakeFiles" / "loam_objects.dir" / "src"
    # Objects whose source is gone are left over from an earlier build.
    objects = [(o, o.relative_to(base)) for o in sorted(base.rglob("*.o"))
               if (SRC / o.relative_to(base).with_suffix("")).exists()]
    if not objects:
        return [f"{base}: no objects; build first"], 0
    home = {}
    for path, where in objects:
        for name in names(path, "-g", "--defined-only"):
            home.setdefault(name, where)
    problems = []
    for path, where in objects:
        for name in names(path, "-u"):
            target = home.get(name)
            if target and RANK.get(target.parts[0], -1) > RANK.get(where.parts[0], -1):
                problems.append(f"src/{where.with_suffix('')}: {where.parts[0]} uses {name} of "
                                f"src/{target.with_suffix('')}")
    return problems, len(objects)


def main():
    problems, files = check_includes()
    said = f"{files} files"
    if len(sys.argv) > 1:
        more, objects = check_objects(pathlib.Path(sys.argv[1]))
        problems += more
        said += f", {objects} objects"
    for problem in problems:
        print(problem)
    print(f"layers: {said}, {len(problems)} wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
