#!/usr/bin/env python3
"""One benchmark on every heap that is installed, in turns, as Markdown.

    bench/compare.py ring
    bench/compare.py binary_trees gcbench --rounds 7
    bench/compare.py alloc --peers loam,go -- -kind typed -bytes 64 -threads 2
    bench/compare.py all

Every round runs each peer once; the order turns by one each round, so that none always comes first. A
cell is the median of the rounds (least–most), and after it loam's median over the peer's: below 1
loam is better. The checksums of all peers must agree.
"""

import argparse
import json
import statistics
import sys

sys.dont_write_bytecode = True  # nothing is left beside the sources
import peers as P  # noqa: E402

# What each benchmark runs: the options of its cases, the figures that count, and whether the work is
# fixed, so that checksums can be compared. "quick" is for trying the script itself.
BENCHES = {
    "ring": {
        "cases": [[]],
        "quick": [["-pushes", "500000", "-messages", "20000"]],
        "figures": ["seconds", "ns_per_op", "p99_ns", "p99_9_ns", "max_ns", "peak_rss_bytes"],
    },
    "binary_trees": {
        "cases": [["-threads", "1", "18"], ["-threads", "2", "18"]],
        "quick": [["-threads", "2", "14"]],
        "figures": ["seconds", "peak_rss_bytes"],
    },
    "gcbench": {
        "cases": [[]],
        "quick": [["-depth", "12"]],
        "figures": ["seconds", "peak_rss_bytes"],
    },
    "alloc": {
        "cases": [["-kind", kind, "-bytes", size, "-threads", threads]
                  for threads in ("1", "2")
                  for kind, size in (("noscan", "16"), ("typed", "16"), ("typed", "32"), ("untyped", "32"),
                                     ("noscan", "64"), ("typed", "64"), ("typed", "256"), ("noscan", "1024"))],
        "quick": [["-kind", "typed", "-bytes", "32", "-count", "2000000"]],
        "figures": ["ns_per_alloc", "peak_rss_bytes"],
    },
    "mark": {
        "cases": [["-shape", shape] for shape in ("tree", "shuffled-tree", "list", "graph", "rows")],
        "quick": [["-shape", "shuffled-tree", "-objects", "200000"]],
        "figures": ["ns_per_object", "peak_rss_bytes"],
    },
    "drop": {
        "cases": [[]],
        "quick": [["-peak", "0.2", "-live", "20", "-seconds", "3"]],
        "figures": ["seconds_to_live", "full_bytes", "after_bytes", "asked_bytes", "asking_ns"],
    },
    "latency": {
        "cases": [["-live", "1", "-ops", "20000000"]],
        "quick": [["-live", "0.1", "-ops", "500000"]],
        "figures": ["ns_per_op", "p99_ns", "p99_9_ns", "p99_99_ns", "max_ns", "pause_max_ns", "peak_rss_bytes"],
    },
}


def figure_text(name, value):
    if name.endswith("_bytes"):
        return f"{value / (1 << 20):.1f}"
    if name.endswith("_ns"):
        return P.time_text(value)
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def figure_title(name):
    return {"seconds": "s", "peak_rss_bytes": "peak MiB"}.get(
        name, name.removesuffix("_ns").replace("_", " ").replace("p99 9", "p99.9").replace("p99.9 9", "p99.99"))


def run_case(bench, options, peers, programs, args):
    """{peer: [result, ...]}; a peer that fails is dropped with a word."""
    results = {}
    broken = {}
    names = list(programs)
    for number in range(args.rounds):
        turn = number % len(names)
        for peer in names[turn:] + names[:turn]:
            if peer in broken:
                continue
            P.say(f"{bench} {' '.join(options)}: round {number + 1} of {args.rounds}: {peer}")
            try:
                result = peers.run(programs[peer], peer, options, args.timeout)
            except (RuntimeError, ValueError, P.subprocess.TimeoutExpired) as error:
                P.say(f"    failed: {error}")
                broken[peer] = str(error).splitlines()[0]
                continue
            if result is None:
                broken[peer] = None
            else:
                results.setdefault(peer, []).append(result)
    for peer in broken:
        results.pop(peer, None)
    return results, {peer: why for peer, why in broken.items() if why}


def cell(name, ours, theirs):
    values = [r[name] for r in theirs]
    text = f"{figure_text(name, statistics.median(values))}"
    if len(values) > 1:
        text += f" ({figure_text(name, min(values))}–{figure_text(name, max(values))})"
    if ours and ours is not theirs and statistics.median(values) > 0:
        text += f" **{statistics.median(r[name] for r in ours) / statistics.median(values):.2f}**"
    return text


def print_case(bench, options, results, broken):
    figures = BENCHES[bench]["figures"]
    print(f"\n`{' '.join([bench, *options])}`\n")
    print("| peer | " + " | ".join(figure_title(f) for f in figures) + " |")
    print("|" + " --- |" * (len(figures) + 1))
    ours = results.get("loam")
    for peer, rs in results.items():
        print(f"| {peer} | " + " | ".join(cell(f, ours, rs) for f in figures) + " |")
    for peer, why in broken.items():
        print(f"\n{peer} failed: {why}")
    sums = {peer: {r["checksum"] for r in rs} for peer, rs in results.items()}
    agree = len(set().union(*sums.values())) <= 1
    if not agree and "-seconds" not in " ".join(options):
        print(f"\n**The checksums differ**: {', '.join(f'{p} {sorted(s)}' for p, s in sums.items())}")
        return False
    return not broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog="What stands after -- are options of the programs, instead of the cases.")
    P.add_arguments(parser)
    parser.add_argument("bench", nargs="+", choices=[*BENCHES, "all"])
    parser.add_argument("--rounds", type=int, default=None, help="(5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: tries the script")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one run")
    parser.add_argument("--raw", help="file for all result lines")
    argv = sys.argv[1:]
    own = argv[:argv.index("--")] if "--" in argv else argv
    given = argv[len(own) + 1:]
    args = parser.parse_args(own)
    args.rounds = args.rounds or (2 if args.quick else 5)

    peers = P.Peers(args, P.PEERS)
    print(f"{args.rounds} rounds in turns; median (least–most) **loam ÷ peer**. {P.versions(peers)}.")
    good = True
    raw = []
    for bench in BENCHES if "all" in args.bench else args.bench:
        programs = peers.build(bench)
        if not programs:
            good = False
            continue
        print(f"\n### {bench}")
        cases = [given] if given else BENCHES[bench]["quick" if args.quick else "cases"]
        for options in cases:
            results, broken = run_case(bench, options, peers, programs, args)
            good = print_case(bench, options, {p: results[p] for p in programs if p in results}, broken) and good
            sys.stdout.flush()
            raw += [dict(r, options=options) for rs in results.values() for r in rs]
    if args.raw:
        with open(args.raw, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(r) + "\n" for r in raw)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
