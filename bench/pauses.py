#!/usr/bin/env python3
"""How long does the collector keep a thread from running, and does that grow with the heap?

Runs bench/latency.c on loam and its twin in Go in turns (A B A B ...) with several sizes of live
heap, and prints Markdown on stdout, progress on stderr. A live heap that does not fit into the
memory at hand is skipped, and that is said.

    bench/pauses.py                      1, 4 and 12 GiB, three rounds of 60 s each
    bench/pauses.py --quick              1 GiB, one round of 10 s
    bench/pauses.py --live 2,8 --peers loam,go,malloc

A collector keeps a thread from running in two ways: it stops it, and it has it mark, or wait, before it gets
its memory (an assist). Both collectors do both, and both are asked for both:

    stops    of Go: /sched/pauses/total/gc:seconds, each at the lower end of its bucket, so that Go is never
             charged with more than it has measured; of loam: the longest answer to a handshake of each cycle
             (gctrace's `answer max`)
    kept     stops and assists. Of loam: loam_memstats.pause_ns. Of Go: its stops and the assists in its
             execution trace, less the time in which a goroutine could have run and had no processor; from a
             second run in the same round, for tracing costs something

The longest operation stands beside them as a witness that neither collector provides; it holds the scheduling of
the system too, which the malloc peer shows alone. bench/floor.c runs in each round, too: what the machine takes
from a thread that only computes on as much memory.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True  # nothing is left beside the sources
import peers as P  # noqa: E402

GIB = 1 << 30
# What a heap may need beyond live * (1 + GOGC/100): size classes, metadata, what was not yet swept.
SLACK = 1.15


TRACED_SECONDS = 20  # of a run of Go with its trace; printing that takes four times as long
RANGE = re.compile(r" Range(Begin|End) Time=(\d+) Name=\"GC mark assist\" Scope=Goroutine\((\d+)\)")
STATE = re.compile(r" StateTransition Time=(\d+) GoID=(\d+) (\w+)->(\w+)")


def assists_of(lines):
    """How long each assist in a trace kept its goroutine, in ns: from its begin to its end, waiting included, less
    the time in which the goroutine was runnable and did not run."""
    begun = {}  # goroutine: [begin, ns runnable, runnable since]
    for line in lines:
        found = RANGE.search(line)
        if found:
            goroutine, time = found.group(3), int(found.group(2))
            if found.group(1) == "Begin":
                begun[goroutine] = [time, 0, None]
            elif goroutine in begun:
                begin, runnable, _ = begun.pop(goroutine)
                yield time - begin - runnable
            continue
        found = STATE.search(line)
        if found and found.group(2) in begun:
            entry, time = begun[found.group(2)], int(found.group(1))
            if found.group(3) == "Runnable" and entry[2] is not None:
                entry[1] += time - entry[2]
                entry[2] = None
            if found.group(4) == "Runnable":
                entry[2] = time


def run_traced(peers, program, options, timeout):
    """The result of Go's program, with kept_hist_ns and kept_max_ns: of its stops and its assists."""
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace")
        result = peers.run(program, "go", options + ["-trace", trace], timeout)
        hist = dict(result["pause_hist_ns"])
        longest = result["pause_max_ns"]
        with subprocess.Popen([peers.go, "tool", "trace", "-d=parsed", trace], stdout=subprocess.PIPE,
                              text=True) as parser:
            for ns in assists_of(parser.stdout):
                lower = 1 << max(ns.bit_length() - 1, 0)
                hist[lower] = hist.get(lower, 0) + 1
                longest = max(longest, ns)
        if parser.returncode != 0:
            raise RuntimeError(f"go tool trace: exit {parser.returncode}")
    return dict(result, kept_hist_ns=sorted(hist.items()), kept_max_ns=longest)


def needed_bytes(live, gogc):
    return int(live * GIB * (1 + gogc / 100) * SLACK) + GIB // 2


def choose_gogc(lives, available):
    """One GOGC for all sizes, or the size of the heap would not be all that differs between rows."""
    for live in sorted(lives, reverse=True):
        for gogc in range(100, 15, -5):
            if needed_bytes(live, gogc) <= available:
                return gogc
    return 20


def longest_answer(trace, build_cycles):
    """In the lines of gctrace after those of the cycles that ran while the heap was built."""
    answers = [int(us) * 1000 for us in re.findall(r"answer max (\d+)us", trace)]
    return max(answers[build_cycles:], default=0)


def run_all(args, peers, programs, lives, gogc):
    """{(live, peer): [result, ...]}, {live: ns} of the machine itself, and [(live, why)] of what was skipped."""
    results = {}
    floors = {}
    floor, problem = peers.build_one("floor", "malloc")
    if not floor:
        P.say(f"floor left out: {problem}")
    skipped = []
    for live in lives:
        need = needed_bytes(live, gogc)
        have = P.available_bytes()
        if need > have:
            why = f"needs {need / GIB:.1f} GiB, {have / GIB:.1f} are available"
            P.say(f"live {live:g} GiB: skipped, {why}")
            skipped.append((live, why))
            continue
        for number in range(args.rounds):
            if floor:
                P.say(f"live {live:g} GiB, round {number + 1} of {args.rounds}: the machine itself ...")
                options = ["-live", f"{live:g}", "-seconds", f"{args.seconds / 2:g}", "-threads", str(args.threads)]
                result = peers.run(floor, "floor", options, timeout=args.seconds + live * 60 + 120)
                floors[live] = max(floors.get(live, 0), result["charged_max_ns"])
            for peer, program in programs.items():
                P.say(f"live {live:g} GiB, round {number + 1} of {args.rounds}: {peer} ...")
                options = ["-live", f"{live:g}", "-seconds", f"{args.seconds:g}", "-threads", str(args.threads),
                           "-gogc", str(gogc)]
                timeout = args.seconds * 4 + live * 240 + 120
                if peer == "loam":
                    result = peers.run(program, peer, options, timeout, {"GODEBUG": "gctrace=1"})
                    result = dict(result, kept_max_ns=result["pause_max_ns"], kept_hist_ns=result["pause_hist_ns"],
                                  pause_max_ns=longest_answer(result.pop("stderr"), result["build_cycles"]))
                else:
                    result = peers.run(program, peer, options, timeout)
                    result = dict(result, kept_max_ns=result["pause_max_ns"], kept_hist_ns=[])
                if peer == "go":
                    options[options.index("-seconds") + 1] = f"{min(args.seconds, TRACED_SECONDS):g}"
                    traced = run_traced(peers, program, options, timeout)
                    result = dict(result, kept_hist_ns=traced["kept_hist_ns"],
                                  kept_max_ns=max(traced["kept_max_ns"], result["pause_max_ns"]))
                P.say("    longest stop", P.time_text(result["pause_max_ns"]), "kept from running",
                      P.time_text(result["kept_max_ns"]), "longest operation", P.time_text(result["max_ns"]), "cycles",
                      result["cycles"])
                results.setdefault((live, peer), []).append(result)
    return results, floors, skipped


def print_floors(floors):
    if floors:
        print("\nThe machine itself: a thread that only computes, on as much memory, was charged for 100 µs with up to "
              + ", ".join(f"{P.time_text(ns)} ({live:g} GiB)" for live, ns in floors.items()) + ".")


def median(results, key):
    return statistics.median(r[key] for r in results)


def print_tables(results, lives, names):
    print("| live | peer | longest stop: median of rounds | its worst | kept from running, longest: median of rounds "
          "| its worst | operation: mean | p99 | p99.9 | p99.99 | longest | operations/s | cycles | peak MiB |")
    print("|" + " --- |" * 14)
    for live in lives:
        for name in names:
            rs = results.get((live, name))
            if not rs:
                continue
            cells = [f"{live:g} GiB", name]
            for key in ("pause_max_ns", "kept_max_ns"):
                cells += [P.time_text(median(rs, key)), P.time_text(max(r[key] for r in rs))]
            if rs[0]["pause_count"] == 0:
                cells[2:] = ["–"] * 4
            cells += [P.time_text(median(rs, key)) for key in
                      ("ns_per_op", "p99_ns", "p99_9_ns", "p99_99_ns", "max_ns")]
            cells += [f"{statistics.median(r['ops'] / r['seconds'] for r in rs):.0f}",
                      f"{median(rs, 'cycles'):.0f}", f"{median(rs, 'peak_rss_bytes') / (1 << 20):.0f}"]
            print("| " + " | ".join(cells) + " |")
    lost = sum(r["pause_lost"] for rs in results.values() for r in rs)
    if lost:
        print(f"\n{lost} cycles came too fast to be seen; their stops are missing above.")


def print_ratios(results, lives):
    print("\nloam over Go, median of the rounds' ratios; below 1 loam is better:\n")
    print("| live | longest stop | kept from running | rounds in which that is below Go's stops alone "
          "| mean operation | p99.9 | p99.99 | longest operation | peak |")
    print("|" + " --- |" * 9)
    for live in lives:
        ours, theirs = results.get((live, "loam")), results.get((live, "go"))
        if not ours or not theirs:
            continue
        pairs = list(zip(ours, theirs))

        def ratio(key):
            return f"{statistics.median(a[key] / max(b[key], 1) for a, b in pairs):.3g}"

        below = sum(a["kept_max_ns"] < b["pause_max_ns"] for a, b in pairs)
        print(f"| {live:g} GiB | {ratio('pause_max_ns')} | {ratio('kept_max_ns')} | {below} of {len(pairs)} "
              f"| {ratio('ns_per_op')} "
              f"| {ratio('p99_9_ns')} | {ratio('p99_99_ns')} | {ratio('max_ns')} | {ratio('peak_rss_bytes')} |")


def print_histogram(results, lives, names, key, title):
    columns = [(live, name) for live in lives for name in names if results.get((live, name))]
    counts = {}
    for column in columns:
        for result in results[column]:
            for lower, count in result[key]:
                row = counts.setdefault(lower, {})
                row[column] = row.get(column, 0) + count
    if not counts:
        return
    print(f"\n{title}\n")
    print("| from | " + " | ".join(f"{name}, {live:g} GiB" for live, name in columns) + " |")
    print("|" + " ---: |" * (len(columns) + 1))
    for lower in sorted(counts):
        cells = [str(counts[lower].get(column, "")) for column in columns]
        print(f"| {P.time_text(lower)} | " + " | ".join(cells) + " |")


def verdict(results, lives):
    """The claim in one paragraph; True if it holds."""
    done = [live for live in lives if (live, "loam") in results]
    if not done or (done[0], "go") not in results:
        return True
    if any(r["cycles"] == 0 or r["pause_max_ns"] == 0 for live in done for r in results[live, "loam"]):
        print("\nNot shown: a run of loam had no cycle, or counted no stop. Take more seconds or a lower GOGC.")
        return False
    worst = {live: max(r["kept_max_ns"] for r in results[live, "loam"]) for live in done}
    middle = {live: median(results[live, "loam"], "kept_max_ns") for live in done}
    below = all(a[key] < b[key] for key in ("kept_max_ns", "pause_max_ns") for live in done
                for a, b in zip(results[live, "loam"], results[live, "go"]))
    small, large = min(done), max(done)
    growth = middle[large] / max(middle[small], 1)
    # Longest of few: it scatters by itself. A stop that grew with the heap would grow as the heap does.
    flat = small == large or growth < 1 + 0.25 * (large / small - 1)
    print("\n" + ("Holds" if below and flat else "Does not hold") +
          ": the longest time the collector kept a thread from running stays below that of the same Go program in the "
          "same round, stops alone and with assists, and does not grow with the heap. "
          f"loam, with assists: {P.time_text(middle[small])} with {small:g} GiB, {P.time_text(middle[large])} with {large:g} GiB "
          f"(worst of all: {P.time_text(max(worst.values()))}); below Go's in "
          + ("every" if below else "not every") + " round.")
    return below and flat


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    P.add_arguments(parser)
    parser.add_argument("--live", default=None, help="GiB, comma-separated (1,4,12)")
    parser.add_argument("--rounds", type=int, default=None, help="(3)")
    parser.add_argument("--seconds", type=float, default=None, help="of changing the heap, each run (60)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gogc", type=int, default=None, help="GOGC of all; otherwise what the memory allows, "
                                                                  "20 to 100")
    parser.add_argument("--quick", action="store_true", help="1 GiB, one round, 10 s")
    parser.add_argument("--raw", help="file for all result lines")
    parser.add_argument("--check", action="store_true", help="exit code 1 if the claim does not hold")
    args = parser.parse_args()
    lives = sorted(float(part) for part in (args.live or ("1" if args.quick else "1,4,12")).split(","))
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.seconds = args.seconds or (10 if args.quick else 60)

    peers = P.Peers(args, ["loam", "go"])
    programs = peers.build("latency")
    if not programs:
        sys.exit("nothing to run")
    gogc = args.gogc or choose_gogc(lives, P.available_bytes())
    results, floors, skipped = run_all(args, peers, programs, lives, gogc)
    if args.raw:
        with open(args.raw, "w", encoding="utf-8") as raw:
            for rs in results.values():
                raw.writelines(json.dumps(r) + "\n" for r in rs)

    names = list(programs)
    print(f"{args.threads} threads change a live heap for {args.seconds:g} s, GOGC={gogc}, {args.rounds} rounds in "
          f"turns. {P.versions(peers)}.\n")
    for live, why in skipped:
        print(f"{live:g} GiB was skipped: {why}.\n")
    print_tables(results, lives, names)
    print_ratios(results, lives)
    print_histogram(results, lives, names, "kept_hist_ns",
                    "Times kept from running, by length (loam: the longest of each cycle; Go: each, in "
                    f"{min(args.seconds, TRACED_SECONDS):g} s of each round):")
    print_histogram(results, lives, names, "op_hist_ns", "Operations of all rounds, by length:")
    print_floors(floors)
    holds = verdict(results, lives)
    if args.check and not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
