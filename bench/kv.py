#!/usr/bin/env python3
"""examples/kv, its twin in Go and Redis under redis-benchmark, in turns, as one Markdown table.

    bench/kv.py
    bench/kv.py --keys 100000 --rounds 1 --requests 50000

All servers run all the time and hold the same keys; every case runs once on each in every round, and the order turns by one
each round. SET overwrites keys of the whole range, so that the collectors of loam and Go work. A cell is the median of the rounds.
Client and server share the processors: what the client needs is in all figures.
"""

import argparse
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True  # nothing is left beside the sources
import peers as P  # noqa: E402

PERCENTILES = {"50 %": 50.0, "99 %": 99.0, "99.9 %": 99.9, "longest": 100.0}


class Server:
    def __init__(self, name, command, port, environment=()):
        self.name, self.port = name, port
        self.errors = tempfile.TemporaryFile("a+b")  # pylint: disable=consider-using-with
        self.process = subprocess.Popen(command, env=dict(os.environ, **dict(environment)),
                                        stdout=subprocess.DEVNULL, stderr=self.errors)
        for _ in range(100):
            if self.process.poll() is not None:
                raise RuntimeError(f"{name} ends with {self.process.returncode}; is port {port} in use?")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"{name} does not listen")

    def resident(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) * 1024

    def cycles(self):
        """Of its collector so far; each writes a line about each cycle. None: it has none."""
        number = self.errors.fileno()  # the server writes through the same one: its place is left alone
        text = os.pread(number, os.fstat(number).st_size, 0)
        return text.count(b"\ngc ") + text.startswith(b"gc ") if self.name != "redis" else None

    def fill(self, keys, size):
        """The keys of redis-benchmark, each once."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            value = b"x" * size
            for first in range(0, keys, 1000):
                count = min(1000, keys - first)
                connection.sendall(b"".join(
                    b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$%d\r\n%b\r\n" % (i, size, value)
                    for i in range(first, first + count)))
                got = 0
                while got < 5 * count:  # +OK\r\n
                    answer = connection.recv(1 << 16)
                    if not answer or b"-" in answer:
                        raise RuntimeError(f"{self.name} refuses a key: {answer[:100]}")
                    got += len(answer)

    def stop(self):
        self.process.kill()
        self.process.wait()


def run_once(server, command, clients, pipeline, args):
    """{figure: value}; times in ms."""
    options = ["redis-benchmark", "-p", str(server.port), "-t", command, "-n", str(args.requests * (4 if pipeline > 1 else 1)),
               "-c", str(clients), "-P", str(pipeline), "-r", str(args.keys), "-d", str(args.size)]
    before = server.cycles()
    done = subprocess.run(options, capture_output=True, text=True, timeout=600)
    text = done.stdout.replace("\r", "\n")
    if done.returncode != 0 or "throughput summary" not in text:
        raise RuntimeError(f"{' '.join(options)}: exit {done.returncode}\n{done.stderr[-500:]}{text[-500:]}")
    figures = {"requests/s": float(re.search(r"throughput summary: ([\d.]+)", text).group(1))}
    spectrum = [(float(p), float(ms)) for p, ms in re.findall(r"^([\d.]+)% <= ([\d.]+) milliseconds \(cum", text, re.MULTILINE)]
    for title, percent in PERCENTILES.items():
        figures[title] = next(ms for p, ms in spectrum if p >= percent)
    figures["resident"] = server.resident()
    figures["cycles"] = server.cycles() - before if before is not None else None
    return figures


def start_servers(args, servers):
    peers = P.Peers(args, ["loam", "go"])
    flags = peers.loam_flags() if "loam" in peers.names else None
    if flags:
        sources = [str(p) for p in sorted((P.ROOT / "examples" / "kv").glob("*.c"))]
        path, problem = P.compile_program(
            [args.cc, *args.cflags.split(), *sources, "-o", str(peers.work / "kv-loam"), *flags, "-pthread"], peers.work / "kv-loam")
        if not path:
            sys.exit(f"kv: {problem}")
        servers.append(Server("loam", [str(path), "--port", str(args.port)], args.port, {"GODEBUG": "gctrace=1"}.items()))
    path = peers.build("kv").get("go") if "go" in peers.names else None
    if path:
        servers.append(Server("go", [str(path), "-port", str(args.port + 1)], args.port + 1, {"GODEBUG": "gctrace=1"}.items()))
    if shutil.which("redis-server"):
        servers.append(Server("redis", ["redis-server", "--port", str(args.port + 2), "--save", "", "--appendonly", "no"],
                              args.port + 2))
    else:
        P.say("redis left out: no redis-server")
    if not servers:
        sys.exit("no server can be had")
    return peers


def text_of(figure, value):
    if value is None:
        return "-"
    if figure == "requests/s":
        return f"{value / 1000:.1f} k"
    if figure == "resident":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.0f}" if figure == "cycles" else f"{value:.2f} ms"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    P.add_arguments(parser)
    parser.add_argument("--keys", type=int, default=2000000)
    parser.add_argument("--size", type=int, default=100, help="bytes of a value")
    parser.add_argument("--requests", type=int, default=400000, help="of a run; four times as many with a pipeline")
    parser.add_argument("--clients", default="50,1000")
    parser.add_argument("--pipelines", default="1,16")
    parser.add_argument("--commands", default="set,get")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=7400, help="and the two behind it")
    args = parser.parse_args()
    servers = []
    try:
        peers = start_servers(args, servers)
        for server in servers:
            P.say(f"{args.keys} keys of {args.size} bytes: {server.name}")
            server.fill(args.keys, args.size)
        print(f"{args.keys} keys of {args.size} bytes; {args.rounds} rounds in turns, medians. {P.versions(peers)}.\n")
        columns = ["requests/s", *PERCENTILES, "resident", "cycles"]
        print("| command | clients | pipeline | server | " + " | ".join(columns) + " |")
        print("|" + " --- |" * (4 + len(columns)))
        for command in args.commands.split(","):
            for clients in args.clients.split(","):
                for pipeline in args.pipelines.split(","):
                    runs = {s.name: [] for s in servers}
                    for number in range(args.rounds):
                        turn = number % len(servers)
                        for server in servers[turn:] + servers[:turn]:
                            P.say(f"{command}, {clients} clients, pipeline {pipeline}: round {number + 1}: {server.name}")
                            runs[server.name].append(run_once(server, command, clients, int(pipeline), args))
                    for name, rs in runs.items():
                        cells = [text_of(c, None if rs[0][c] is None else statistics.median(r[c] for r in rs)) for c in columns]
                        print(f"| {command.upper()} | {clients} | {pipeline} | {name} | " + " | ".join(cells) + " |", flush=True)
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
