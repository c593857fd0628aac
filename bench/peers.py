"""Builds and runs the benchmark programs of each peer; what pauses.py and compare.py share.

A peer is a heap that a benchmark runs on: loam, go, boehm, malloc (the C library's), and mimalloc or
others put under the malloc program by LD_PRELOAD. A peer that is not installed is left out, and
that is said.
"""

import ctypes.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

BENCH = pathlib.Path(__file__).resolve().parent
ROOT = BENCH.parent
PEERS = ["loam", "go", "boehm", "malloc", "mimalloc"]
NO_COLLECTOR = 77  # the exit code of a program that has nothing to measure on this heap


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def add_arguments(parser):
    parser.add_argument("--peers", default=None, help="comma-separated, of " + ", ".join(PEERS))
    parser.add_argument("--work", default=str(ROOT / "build" / "peers"), help="where programs are built")
    parser.add_argument("--loam", help="libloam.a or libloam.so; otherwise that of the newest release "
                                       "build under build*, otherwise pkg-config's")
    parser.add_argument("--cc", default=os.environ.get("CC", "cc"))
    parser.add_argument("--cflags", default="-O2")
    parser.add_argument("--go", help="the go command; otherwise the newest one found")
    parser.add_argument("--preload", action="append", default=[], metavar="NAME=LIBRARY",
                        help="one more malloc, under the malloc program")


def available_bytes():
    """Memory that can be had without swapping, of the machine and of the container, whichever is less."""
    text = pathlib.Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)) * 1024
    group = pathlib.Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        free = min(free, limit - used)
    except (OSError, ValueError):
        pass
    return free


class Peers:
    def __init__(self, args, default):
        self.args = args
        self.work = pathlib.Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.preloads = {}
        for entry in args.preload:
            name, _, path = entry.partition("=")
            self.preloads[name] = path
        if "mimalloc" not in self.preloads:
            path = find_library("mimalloc")
            if path:
                self.preloads["mimalloc"] = path
        wanted = args.peers.split(",") if args.peers else default + [
            name for name in self.preloads if name not in PEERS]
        unknown = [p for p in wanted if p not in PEERS and p not in self.preloads]
        if unknown:
            sys.exit(f"no such peer: {', '.join(unknown)}")
        self.names = wanted
        self.go = find_go(args.go) if "go" in wanted else None
        self.programs = {}

    def build(self, bench):
        """{peer: path} of the programs that could be built."""
        programs = {}
        for peer in self.names:
            path, problem = self.build_one(bench, peer)
            if path:
                programs[peer] = path
            else:
                say(f"{bench}: {peer} left out: {problem}")
        return programs

    def build_one(self, bench, peer):
        out = self.work / f"{bench}-{peer}"
        if peer == "go":
            if not self.go:
                return None, "no go command"
            return compile_program([self.go, "build", "-o", str(out), f"./{bench}"], out, BENCH / "go")
        source = str(BENCH / f"{bench}.c")
        command = [self.args.cc, *shlex.split(self.args.cflags), source, "-o", str(out)]
        if peer == "loam":
            flags = self.loam_flags()
            if not flags:
                return None, "no release build under build*, and no pkg-config loam"
            return compile_program(command + flags + ["-pthread"], out)
        if peer == "boehm":
            return compile_program(command + ["-DUSE_BOEHM", "-lgc", "-pthread", "-lm"], out)
        if peer in self.preloads and not os.path.exists(self.preloads[peer]):
            return None, f"no {self.preloads[peer]}"
        if peer == "mimalloc" and peer not in self.preloads:
            return None, "no libmimalloc"
        return compile_program(command + ["-DUSE_MALLOC", "-pthread", "-lm"], out)

    def loam_flags(self):
        library = self.args.loam or newest_library()
        if library:
            library = pathlib.Path(library).resolve()
            say("loam:", library)
            return [f"-I{ROOT / 'include'}", str(library), f"-Wl,-rpath,{library.parent}", "-ldl", "-lm"]
        if not shutil.which("pkg-config"):
            return None
        asked = subprocess.run(["pkg-config", "--cflags", "--libs", "loam"], capture_output=True, text=True)
        return shlex.split(asked.stdout) if asked.returncode == 0 else None

    def run(self, program, peer, options, timeout, variables=()):
        """The result line as a dict, or None where the program has nothing to measure on this heap."""
        env = dict(os.environ, **dict(variables))
        if peer in self.preloads:
            env["LD_PRELOAD"] = self.preloads[peer]
        # The options come first: Go's flag package stops at the first other argument.
        command = [str(program), "-json", *options]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
        if done.returncode == NO_COLLECTOR:
            return None
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
        result = json.loads(done.stdout.strip().splitlines()[-1])
        result["peer"] = peer
        if variables:
            result["stderr"] = done.stderr
        return result


def newest_library():
    """libloam.a of a build for this machine that is optimized and not instrumented, or the figures would be of another program."""
    found = []
    for cache in [*ROOT.glob("build*/CMakeCache.txt"), *ROOT.glob("build*/*/CMakeCache.txt")]:
        text = cache.read_text(errors="replace")
        kind = re.search(r"^CMAKE_BUILD_TYPE:\w+=(\w*)", text, re.MULTILINE)
        special = re.search(r"^(LOAM_SANITIZE:\w+=.|LOAM_DEBUG_LEVEL:\w+=[1-9]|CMAKE_TOOLCHAIN_FILE:\w+=.)", text, re.MULTILINE)
        if kind and kind.group(1) in ("Release", "RelWithDebInfo") and not special:
            found += [p for p in cache.parent.glob("**/libloam.a") if p.is_file()]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def compile_program(command, out, cwd=None):
    # GOTOOLCHAIN=local: a benchmark compares what is installed, and downloads nothing.
    env = dict(os.environ, GOTOOLCHAIN="local")
    out.unlink(missing_ok=True)
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    except OSError as error:
        return None, str(error)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["the compiler failed"])[0]
    return out, None


def find_go(given):
    candidates = [given] if given else [shutil.which("go"), "/usr/local/go/bin/go"]
    versions = {}
    for path in candidates:
        if path and os.access(path, os.X_OK):
            env = dict(os.environ, GOTOOLCHAIN="local")
            text = subprocess.run([path, "version"], env=env, capture_output=True, text=True).stdout
            match = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", text)
            if match:
                versions[path] = tuple(int(part or 0) for part in match.groups())
    return max(versions, key=versions.get, default=None)


def find_library(name):
    """The full path of a shared library, as the dynamic linker would find it; None without one."""
    soname = ctypes.util.find_library(name)
    if not soname:
        return None
    for pattern in ("usr/local/lib", "usr/lib64", "usr/lib/*-linux-gnu*", "usr/lib", "lib"):
        for directory in sorted(pathlib.Path("/").glob(pattern)):
            if (directory / soname).exists():
                return str(directory / soname)
    return None


def versions(peers):
    """One line that names what was compared."""
    parts = []
    if peers.go:
        env = dict(os.environ, GOTOOLCHAIN="local")
        text = subprocess.run([peers.go, "version"], env=env, capture_output=True, text=True).stdout
        parts.append(text.replace("go version ", "").strip())
    cc = subprocess.run([peers.args.cc, "--version"], capture_output=True, text=True).stdout
    parts.append((cc.splitlines() or [""])[0] + " " + peers.args.cflags)
    parts.append(f"Linux {os.uname().release} {os.uname().machine}, {len(os.sched_getaffinity(0))} processors")
    for name, path in peers.preloads.items():
        if name in peers.names:
            parts.append(f"{name}: {os.path.basename(os.path.realpath(path))}")
    return "; ".join(parts)


def time_text(ns):
    """A duration with three digits and its unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns / size < 1000 else f"{ns / size:.0f} {unit}"
    return f"{ns:.3g} ns" if ns < 1000 else f"{ns:.0f} ns"
