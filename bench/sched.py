#!/usr/bin/env python3
"""What goroutines cost in loam and in Go, in turns, as one Markdown table.

    bench/sched.py
    bench/sched.py --cases ping-pong,sleep --procs 1 --rounds 9

Every round runs each peer once; the order turns by one each round. A cell is the median of the rounds (least–most); the
last column is loam's median over Go's: below 1 loam is better. The checksums of both must agree.
"""

import argparse
import json
import statistics
import sys

sys.dont_write_bytecode = True  # nothing is left beside the sources
import peers as P  # noqa: E402

# The options of each row's runs, and the figures they are shown with.
TIME = [("ns_per_op", "an operation")]
LATE = [("late_p50_ns", "late, median"), ("late_p99_ns", "late, 99 %"), ("cpu_ns_per_op", "processor time of a sleep")]
PARKED = [("bytes_each", "memory each"), ("asleep_bytes_each", "memory each, after collections"),
          ("start_ns_each", "start each"), ("gc_ns", "a collection meanwhile"), ("wake_ns_each", "wake and end each")]
CASES = {
    "spawn": ([[]], TIME),
    "spawn-batch": ([[]], TIME),
    "yield": ([[]], TIME),
    "yield-many": ([[]], TIME),
    "ping-pong": ([[]], TIME),
    "buffered": ([[]], TIME),
    "park-ready": ([[]], TIME),
    "select4": ([[]], TIME),
    "mutex": ([["-goroutines", "2"], ["-goroutines", "8"]], TIME),
    "mutex-yield": ([["-goroutines", "2"], ["-goroutines", "8"]], TIME),
    "sleep": ([["-goroutines", "1", "-ops", "300"], ["-goroutines", "1000"]], LATE),
    "fanout": ([["-goroutines", "2"], ["-goroutines", "8"]], TIME),
    "parked": ([["-goroutines", "1000000"]], PARKED),
}
QUICK = {"sleep": "5000", "spawn": "20000", "spawn-batch": "20000"}


def figure_text(name, value):
    return f"{value:.0f} B" if "bytes" in name else P.time_text(value)


def run_case(options, peers, programs, args):
    """{peer: [result, ...]}; a peer that fails is dropped with a word."""
    results = {peer: [] for peer in programs}
    names = list(programs)
    for number in range(args.rounds):
        turn = number % len(names)
        for peer in names[turn:] + names[:turn]:
            if peer not in results:
                continue
            P.say(f"{' '.join(options)}: round {number + 1} of {args.rounds}: {peer}")
            try:
                results[peer].append(peers.run(programs[peer], peer, options, args.timeout))
            except (RuntimeError, ValueError, P.subprocess.TimeoutExpired) as error:
                P.say(f"    failed: {error}")
                del results[peer]
    return results


def cell(name, rs):
    values = [r[name] for r in rs]
    text = figure_text(name, statistics.median(values))
    if len(values) > 1:
        text += f" ({figure_text(name, min(values))}–{figure_text(name, max(values))})"
    return text


def print_case(case, goroutines, procs, figures, names, results):
    for key, title in figures:
        row = [case, goroutines, procs, title]
        row += [cell(key, results[peer]) if peer in results else "failed" for peer in names]
        medians = [statistics.median(r[key] for r in results[peer])
                   for peer in ("loam", "go") if peer in results]
        row.append(f"**{medians[0] / medians[1]:.2f}**" if len(medians) == 2 and medians[1] > 0 else "-")
        print("| " + " | ".join(row) + " |", flush=True)


def options_of(case, given, procs, quick):
    options = ["-case", case, "-procs", procs, *given]
    if quick:
        options += ["-repeat", "1"]
        if case == "parked":
            options[-3:-2] = ["20000"]
        elif "-ops" not in given:
            options += ["-ops", QUICK.get(case, "100000")]
    return options


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    P.add_arguments(parser)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--procs", default="1,2", help="comma-separated numbers of processors (1,2)")
    parser.add_argument("--rounds", type=int, default=None, help="(5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: tries the script")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one run")
    parser.add_argument("--raw", help="file for all result lines")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    unknown = set(args.cases.split(",")) - set(CASES)
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}")

    peers = P.Peers(args, ["loam", "go"])
    programs = peers.build("sched")
    if not programs:
        sys.exit(1)
    print(f"{args.rounds} rounds in turns; median (least–most). {P.versions(peers)}.\n")
    print("| case | goroutines | procs | figure | " + " | ".join(programs) + " | loam ÷ go |")
    print("|" + " --- |" * (5 + len(programs)))
    good = True
    raw = []
    for case in args.cases.split(","):
        wanted, figures = CASES[case]
        for given in wanted:
            for procs in args.procs.split(","):
                options = options_of(case, given, procs, args.quick)
                results = run_case(options, peers, programs, args)
                all_runs = [r for rs in results.values() for r in rs]
                goroutines = str(all_runs[0]["goroutines"]) if all_runs else "-"
                print_case(case, goroutines, procs, figures, list(programs), results)
                good = good and len(results) == len(programs)
                if len({r["checksum"] for r in all_runs}) > 1:
                    P.say(f"{' '.join(options)}: the checksums differ")
                    good = False
                raw += [dict(r, options=options) for r in all_runs]
    if args.raw:
        with open(args.raw, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(r) + "\n" for r in raw)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
