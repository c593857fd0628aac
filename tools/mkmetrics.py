#!/usr/bin/env python3
"""Generate docs/metrics.md from src/observe/metrics.def.

    tools/mkmetrics.py            write it
    tools/mkmetrics.py --check    compare it with what would be written; exit 1 if they differ
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "src/observe/metrics.def"
TARGET = ROOT / "docs/metrics.md"
ENTRY = re.compile(r'^(UINT64|UINT32|FLOAT64|HISTOGRAM)\("([^"]+)", (CUMULATIVE|GAUGE),\s*[\w.]+,\s*'
                   r'((?:"[^"]*"\s*)+)\)', re.MULTILINE)
KIND = {"UINT64": "number", "UINT32": "number", "FLOAT64": "number", "HISTOGRAM": "histogram"}
HEAD = """\
# Metrics

What `loam_read_metrics` (`<loam/stats.h>`) knows. Names and meanings are those of Go's `runtime/metrics` where the thing is the
same. A name ends in its unit; what is marked + is counted from the start of the process and never falls. Made by
`tools/mkmetrics.py` from `src/observe/metrics.def`.

```c
#include <loam.h>
#include <loam/stats.h>
#include <stdio.h>

int main(void)
{
    static loam_histogram answers;
    loam_metric m[] = {
        {.name = "/gc/heap/live:bytes"},
        {.name = "/cpu/classes/gc/total:cpu-seconds"},
        {.name = "/gc/handshakes/answers:seconds", .histogram = &answers},
    };
    for (int i = 0; i < 100000; i++) {
        (void)loam_alloc(100);
    }
    loam_gc();
    loam_read_metrics(m, 3);
    printf("%.1f MB live, %.3f s for the collector\\n", (double)m[0].value.uint64 / 1e6, m[1].value.float64);
    for (size_t i = 0; i < answers.buckets; i++) {
        if (answers.counts[i] != 0) {
            printf("%8llu answers of %.3g s or more\\n", (unsigned long long)answers.counts[i], answers.bounds[i]);
        }
    }
    return 0;
}
```

| name | | meaning |
|---|---|---|
"""


def document():
    rows = []
    for kind, name, cumulative, texts in ENTRY.findall(TABLE.read_text(encoding="utf-8")):
        meaning = "".join(re.findall(r'"([^"]*)"', texts))
        mark = ("histogram" if KIND[kind] == "histogram" else "") + (" +" if cumulative == "CUMULATIVE" else "")
        rows.append(f"| `{name}` | {mark.strip()} | {meaning} |\n")
    if not rows:
        raise SystemExit(f"mkmetrics: no entry found in {TABLE}")
    return HEAD + "".join(rows)


def main():
    text = document()
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            raise SystemExit("docs/metrics.md is not what tools/mkmetrics.py would write: run it, commit both")
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    else:
        TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
