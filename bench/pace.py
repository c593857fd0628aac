#!/usr/bin/env python3
"""How loam and Go keep to their goals and to a memory limit, beside each other, as Markdown.

    bench/pace.py
    bench/pace.py --scenarios steady,limit --seconds 30 --rounds 3
    bench/pace.py --plot FILE.svg                  and pictures of the last round
    bench/pace.py --simulation build/release/tests/unit/test_pacer --plot FILE.svg
                                                   the pacer alone, as its test runs it

The goal is read from the lines of GODEBUG=gctrace=1, which both print in one format, in whole MB; the first three cycles
are left out. The collector's share of the processors is what each says itself in its last line: in loam's are the idle
helpers and the background's sweeping, in Go's not. Rounds are interleaved. Pictures need Debian's python3-matplotlib.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys

sys.dont_write_bytecode = True  # nothing is left beside the sources
import peers as P  # noqa: E402

SCENARIOS = ["steady", "fast", "small", "large", "step-alloc", "step-down", "step-live", "oscillate", "jitter",
             "noscan", "stacks", "globals", "limit"]
LIMIT_MIB = 256
LINE = re.compile(r"gc (\d+) @([\d.]+)s (\d+)%: .* (\d+)->(\d+)->(\d+) MB, (\d+) MB goal")
SIMULATED = re.compile(r"(.{16}) +(\d+) trigger +([\d.]+) peak +([\d.]+) goal +([\d.]+) MB ratio ([\d.]+) util ([\d.]+)")
WARM_UP = 3  # cycles


def cycles_of(text):
    keys = ("number", "at", "percent", "begin", "peak", "live", "goal")
    return [dict(zip(keys, map(float, found))) for found in LINE.findall(text)]


def cases(scenarios):
    for scenario in scenarios:
        for threads in (["1", "2", "8"] if scenario == "limit" else ["2"]):
            yield scenario, threads


def run(peers, programs, scenario, threads, args):
    """{peer: [(result, cycles), ...]}"""
    found = {}
    variables = [("GODEBUG", "gctrace=1")]
    if scenario == "limit":
        variables.append(("GOMEMLIMIT", f"{LIMIT_MIB}MiB"))
    options = ["-scenario", scenario, "-seconds", str(args.seconds), "-threads", threads]
    names = list(programs)
    for number in range(args.rounds):
        turn = number % len(names)
        for peer in names[turn:] + names[:turn]:
            P.say(f"{scenario}, {threads} threads: round {number + 1} of {args.rounds}: {peer}")
            result = peers.run(programs[peer], peer, options, args.seconds + 120, variables)
            found.setdefault(peer, []).append((result, cycles_of(result.pop("stderr"))))
    return found


def median(values):
    return statistics.median(values) if values else float("nan")


def figures(runs, limited):
    ratios = [c["peak"] / c["goal"] for _, cycles in runs for c in cycles[WARM_UP:] if 0 < c["goal"] < 1e6]
    key = "resident_at_80_bytes" if limited else "resident_bytes"
    return [
        f"{median([len(cycles) for _, cycles in runs]):.0f}",
        "-" if not ratios else f"{median(ratios):.2f} ({max(ratios):.2f})",
        "-" if not ratios else f"{median([cycles[-1]['percent'] for _, cycles in runs if cycles]):.0f}",
        f"{median([r['mib_per_s'] for r, _ in runs]):.0f}",
        f"{median([r[key] for r, _ in runs]) / 2**20:.0f}",
        P.time_text(median([r["longest_ns"] for r, _ in runs])),
        "-" if "longest_own_ns" not in runs[0][0] else P.time_text(median([r["longest_own_ns"] for r, _ in runs])),
        "-" if "kept_ns" not in runs[0][0] else P.time_text(median([r["kept_ns"] for r, _ in runs])),
    ]


def sheet(path, columns, panels):
    """panels: [(title, x label, [(label, xs, ys, right axis?), ...]), ...] in rows, as SVG."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "loam", "svg.fonttype": "none", "font.size": 7,
                                "path.simplify_threshold": 1.0})
    import matplotlib.pyplot as plt
    rows = (len(panels) + columns - 1) // columns
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.1 * rows), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, (title, x, lines) in zip(axes.flat, panels):
        shares = None
        for number, (label, xs, ys, right) in enumerate(lines):
            if right and shares is None:
                shares = axis.twinx()
                shares.set_ylim(0, 1)
            (shares if right else axis).plot(xs, ys, label=label, linewidth=0.8, color=f"C{number}")
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(x)
        axis.set_ylim(bottom=0)
    handles = [h for a in figure.axes[:1] + figure.axes[len(axes.flat):len(axes.flat) + 1]
               for h in a.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / rows))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    if path.suffix == ".svg":  # a tenth of a point is fine enough
        path.write_text(re.sub(r"\d+\.\d\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), path.read_text()))


def run_panels(scenario, threads, found):
    for peer, runs in found.items():
        cycles = runs[-1][1]
        at = [c["at"] for c in cycles]
        yield (f"{scenario}, {threads} threads: {peer}", "s", [
            ("goal, MB", at, [c["goal"] for c in cycles], False),
            ("heap at the end of marking, MB", at, [c["peak"] for c in cycles], False),
            ("heap at the begin, MB", at, [c["begin"] for c in cycles], False),
            ("alive, MB", at, [c["live"] for c in cycles], False)])


def plot_simulation(path, test):
    text = subprocess.run([test, "--print"], capture_output=True, text=True, check=True).stdout
    programs = {}
    for name, *numbers in SIMULATED.findall(text):
        programs.setdefault(name.strip(), []).append([float(n) for n in numbers])
    if not programs:
        sys.exit(f"{test} --print says nothing")
    panels = []
    for name, rows in programs.items():
        number, trigger, peak, goal, _, util = zip(*rows)
        panels.append((name, "cycle", [
            ("goal, MB", number, goal, False), ("heap at the end of marking, MB", number, peak, False),
            ("trigger, MB", number, trigger, False),
            ("share of the processors while marking (right)", number, util, True)]))
    sheet(path, 3, panels)
    print(f"{len(programs)} scenarios in {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    P.add_arguments(parser)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.svg")
    parser.add_argument("--simulation", metavar="TEST_PACER", help="plots the pacer's simulation instead")
    args = parser.parse_args()
    if args.simulation:
        plot_simulation(args.plot or pathlib.Path("pacer.svg"), args.simulation)
        return
    scenarios = args.scenarios.split(",")
    unknown = set(scenarios) - set(SCENARIOS)
    if unknown:
        sys.exit(f"no such scenario: {', '.join(sorted(unknown))}")
    peers = P.Peers(args, ["loam", "go"])
    programs = peers.build("pace")
    print(P.versions(peers) + "\n")
    print("Heap / goal at the end of marking: median (most). Resident: at most; with a limit of "
          f"{LIMIT_MIB} MiB, while no more than 80 % of it was alive. Its own: less what its thread waited for a "
          "processor meanwhile. Kept: the longest for which the collector says that it kept a thread from running.\n")
    print("| scenario | threads | peer | cycles | heap / goal | % CPU | MiB/s | resident MiB | longest operation | its own "
          "| kept |")
    print("|" + " --- |" * 11)
    panels = []
    for scenario, threads in cases(scenarios):
        found = run(peers, programs, scenario, threads, args)
        for peer, runs in found.items():
            print(f"| {scenario} | {threads} | {peer} | " + " | ".join(figures(runs, scenario == "limit")) + " |",
                  flush=True)
        panels += run_panels(scenario, threads, found)
    if args.plot:
        sheet(args.plot, len(programs), panels)


if __name__ == "__main__":
    main()
