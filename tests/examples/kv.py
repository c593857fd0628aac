#!/usr/bin/env python3
"""kv.py PROGRAM [SEED] - examples/kv answers as redis does, and nothing that a client does ends it.

Claims: (1) commands are answered as redis answers them; (2) random commands, sent in pieces of any size,
get the replies of a model in the same order; (3) keys expire, also those that nobody asks for; (4) a scan
finds every key that was there all the time while others come and go; (5) what breaks the protocol, and what
is too large, is refused with a reason; (6) clients that leave in the middle of a command or do not read,
and more of them than there are descriptors, do no harm to others; (7) below --maxmemory keys are evicted;
(8) redis-benchmark is content; (9) SIGTERM and SIGINT end it with status 0; (10) wrong options are named.
"""
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

PROGRAM = sys.argv[1]
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
PATIENCE = 60  # seconds, for what takes none


class Server:
    def __init__(self, *options, descriptors=None):
        def limit():
            if descriptors:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        self.process = subprocess.Popen([PROGRAM, "--port", "0", *options], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, preexec_fn=limit)
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line)
        assert found, f"its first line: {line!r}"
        self.port = int(found[1])

    def end(self, signum=signal.SIGTERM):
        """Its complaints; it must have ended well."""
        assert self.process.poll() is None, f"it has ended: {self.process.communicate()}"
        self.process.send_signal(signum)
        _, said = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, f"status {self.process.returncode}: {said}"
        return said

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            said = self.end()
            assert said == "", said
        else:
            self.process.kill()
            print(self.process.communicate()[1][-4000:])


class Error(str):
    pass


class Client:
    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        self.file = self.socket.makefile("rb")

    def send(self, *command):
        self.socket.sendall(packed(*command))

    def reply(self):
        line = self.file.readline()
        assert line.endswith(b"\r\n"), f"no reply: {line!r}"
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return Error(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if rest == b"-1":
                return None
            body = self.file.read(int(rest) + 2)
            assert body.endswith(b"\r\n")
            return body[:-2]
        assert kind == b"*", line
        return [self.reply() for _ in range(int(rest))]

    def __call__(self, *command):
        self.send(*command)
        return self.reply()

    def info(self, name):
        return int(re.search(rf"^{name}:(\d+)\r$", self("INFO").decode(), re.M)[1])

    def is_closed(self):
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self.file.close()
        self.socket.close()


def packed(*command):
    words = [w if isinstance(w, bytes) else str(w).encode() for w in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def expect(got, want, what):
    if isinstance(want, Error):
        assert isinstance(got, Error) and got.startswith(want), f"{what}: {got!r}, not {want!r}"
    else:
        assert got == want and isinstance(got, Error) == isinstance(want, Error), \
            f"{what}: {got!r}, not {want!r}"


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# ---- the claims ----

ARITY, SYNTAX = Error("ERR wrong number of arguments"), Error("ERR syntax error")
INTEGER = Error("ERR value is not an integer or out of range")
DIALOGUE = [
    ("PING", "PONG"), ("ping hello", b"hello"), ("ECHO x", b"x"), ("ECHO", ARITY), ("SELECT 0", "OK"),
    ("SELECT 1", Error("ERR DB index is out of range")), ("SELECT x", INTEGER), ("FLUSHALL", "OK"),
    ("GET a", None), ("SET a 1", "OK"), ("GET a", b"1"), ("GET a b", ARITY), ("get", ARITY),
    ("SET a 2 NX", None), ("SET a 2 XX", "OK"), ("SET b 2 XX", None), ("SET b 2 nx", "OK"),
    ("SET b 2 NX XX", SYNTAX), ("SET b 2 EX", SYNTAX), ("SET b 2 EX 1 PX 1", SYNTAX), ("SET b 2 BAD", SYNTAX),
    ("SET b 2 EX 0", Error("ERR invalid expire time in 'set'")), ("SET b 2 EX x", INTEGER),
    ("SET b 2 EX 9223372036854775807", Error("ERR invalid expire time in 'set'")),
    ("MGET a b c", [b"2", b"2", None]), ("MSET a 1 c 3", "OK"), ("MSET a", ARITY), ("MSET a 1 b", ARITY),
    ("MGET a c", [b"1", b"3"]), ("EXISTS a a c d", 3), ("DBSIZE", 3), ("DEL a b x", 2), ("DBSIZE", 1),
    ("INCR n", 1), ("INCR n", 2), ("DECR n", 1), ("DECR m", -1), ("SET n x", "OK"), ("INCR n", INTEGER),
    ("SET n 9223372036854775807", "OK"), ("INCR n", Error("ERR increment or decrement would overflow")),
    ("DECR n", 9223372036854775806), ("SET n -9223372036854775808", "OK"),
    ("DECR n", Error("ERR increment or decrement would overflow")), ("SET n 01", "OK"), ("INCR n", INTEGER),
    ("TTL n", -1), ("TTL none", -2), ("PTTL none", -2), ("EXPIRE none 5", 0), ("EXPIRE n 100", 1),
    ("TTL n", 100), ("INCR k", 1), ("EXPIRE k 100", 1), ("INCR k", 2), ("TTL k", 100), ("SET k 1", "OK"),
    ("TTL k", -1), ("EXPIRE k 0", 1), ("EXISTS k", 0), ("EXPIRE n x", INTEGER),
    ("EXPIRE n 9223372036854775807", Error("ERR invalid expire time in 'expire'")),
    ("CONFIG GET maxmemory", [b"maxmemory", b"0"]), ("CONFIG GET s[a-b]ve appendonl?",
                                                     [b"appendonly", b"no", b"save", b""]),
    ("CONFIG GET", Error("ERR")), ("CONFIG SET a b", Error("ERR")), ("SCAN x", Error("ERR invalid cursor")),
    ("SCAN 0 COUNT 0", SYNTAX), ("SCAN 0 COUNT", SYNTAX), ("SCAN 0 BAD 1", SYNTAX),
    ("NOSUCH a", Error("ERR unknown command 'NOSUCH'")), ("FLUSHALL", "OK"), ("DBSIZE", 0),
]


def answers(server):
    c = Client(server)
    for command, want in DIALOGUE:
        expect(c(*command.split()), want, command)
    names = [entry[0] for entry in c("COMMAND")]
    assert {b"get", b"set", b"flushall"} < set(names), names
    expect(c("SET", b"\0\r\n\xff", b"\0" * 5), "OK", "any bytes")
    expect(c("GET", b"\0\r\n\xff"), b"\0" * 5, "any bytes")
    for line, want in [(b"PING\r\n", "PONG"), (b"\r\n\n  ping\n", "PONG"), (b"set q 'a \\'b'\r\n", "OK"),
                       (b'ECHO "a\\x41\\n\\"b"\r\n', b'aA\n"b'), (b"get q\r\n", b"a 'b"),
                       (b'ECHO ""\r\n', b""), (b"*0\r\n*-1\r\nPING\r\n", "PONG")]:
        c.socket.sendall(line)
        expect(c.reply(), want, line)
    expect(c("QUIT"), "OK", "QUIT")
    assert c.is_closed()


def model_step(rng, model):
    """A command and what it must give."""
    key, other = (b"key%d" % rng.randrange(300) for _ in range(2))
    if rng.randrange(200) == 0:
        model.clear()
        return ("FLUSHALL",), "OK"
    kind = rng.randrange(7)
    if kind == 0:
        n = rng.choice([0, 3, 40, 40, 400, 20000])
        model[key] = rng.randbytes(n)
        return ("SET", key, model[key]), "OK"
    if kind == 1:
        return ("DEL", key, other), sum(model.pop(k, None) is not None for k in (key, other))
    if kind == 2:
        return ("MGET", key, other), [model.get(key), model.get(other)]
    if kind == 3:
        model[key], model[other] = b"1", b"22"
        return ("MSET", key, b"1", other, b"22"), "OK"
    if kind == 4:
        return ("EXISTS", key), int(key in model)
    if kind == 5:
        if re.fullmatch(b"-?[1-9][0-9]{0,17}|0", model.setdefault(key, b"0")):
            model[key] = b"%d" % (int(model[key]) + 1)
            return ("INCR", key), int(model[key])
        return ("INCR", key), INTEGER
    return ("GET", key), model.get(key)


def follows_model(server, rng):
    c, model, sent, wants = Client(server), {}, bytearray(), []
    for _ in range(20000):
        command, want = model_step(rng, model)
        sent += packed(*command)
        wants.append((command, want))

    def pieces():
        at = 0
        while at < len(sent):
            n = rng.choice([1, 7, 1000, 100000, 1000000])
            c.socket.sendall(sent[at:at + n])
            at += n

    sender = threading.Thread(target=pieces)
    sender.start()
    for command, want in wants:
        expect(c.reply(), want, command[:2])
    sender.join()
    expect(c("DBSIZE"), len(model), "DBSIZE")
    c("FLUSHALL")


def expires(server):
    c = Client(server)
    expect(c("SET", "k", 1, "PX", 50), "OK", "PX")
    assert 0 <= c("PTTL", "k") <= 50
    until(lambda: c("GET", "k") is None, "a key that stays")
    before = c.info("expired_keys")
    for n in range(3000):
        c.send("SET", f"k{n}", "x", "PX", 1 + n % 200)
    c.send("SET", "stays", 1)
    for n in range(3001):
        expect(c.reply(), "OK", "SET PX")
    until(lambda: c("DBSIZE") == 1, "keys that nobody asks for stay")
    expect(c.info("expired_keys") - before, 3000, "expired_keys")
    c("FLUSHALL")


def scans(server):
    c, other, stop = Client(server), Client(server), threading.Event()
    stay = {b"stay:%d" % n for n in range(5000)}
    for key in stay:
        c.send("SET", key, 1)
    assert all(c.reply() == "OK" for _ in stay)

    def scan(*options):
        seen, cursor = [], b"0"
        while True:
            cursor, keys = c("SCAN", cursor, *options)
            seen += keys
            if cursor == b"0":
                return seen

    def disturb():
        while not stop.is_set():
            for command in ("SET", "DEL"):
                for n in range(0, 20000):
                    other.send(command, f"goes:{n}", *([1] if command == "SET" else []))
                for n in range(0, 20000):
                    other.reply()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    for count in (1, 10, 1000) * 2:
        seen = scan("COUNT", count, "MATCH", "st?[ya-]:*")
        assert set(seen) == stay, f"{len(stay - set(seen))} keys missed"
    stop.set()
    disturber.join()
    assert sorted(scan()) == sorted(stay), "a table at rest has each key once"
    c("FLUSHALL")


def refuses(server):
    for sent, reason in [
            (b"*1\r\n:1\r\n", "expected '$'"), (b"*x\r\n", "invalid multibulk length"),
            (b"*1048577\r\n", "invalid multibulk length"), (b"*99999999999999999999\r\n", "invalid multibulk"),
            (b"*\r\n", "invalid multibulk length"), (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"), (b"*1\r\n$\r\n", "invalid bulk length"),
            (b"*1\r\n$4\r\nPINGxx", "end of a line"), (b'ECHO "x\r\n', "unbalanced quotes"),
            (b'ECHO "x"y\r\n', "unbalanced quotes"), (b"x" * 70000, "too big inline request"),
            (b"*" + b"1" * 70000, "too big mbulk count"), (b"*1\r\n$" + b"1" * 70000, "too big bulk count")]:
        c = Client(server)
        c.socket.sendall(packed("PING") + sent)
        expect(c.reply(), "PONG", "before the error")
        got = c.reply()
        assert isinstance(got, Error) and "Protocol error" in got and reason in got, f"{sent[:20]}: {got}"
        assert c.is_closed(), sent[:20]


def survives(server, rng):
    whole = packed("SET", "a", "x" * 1000) + packed("MGET", *["a"] * 50)
    for _ in range(200):
        c = Client(server)
        c.socket.sendall(whole[:rng.randrange(len(whole) + 1)])
        if rng.randrange(2):  # a reset, not an end
            c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        c.close()
    # Nobody reads for 40 MB of replies: others are served, and in the end all replies come.
    slow, other = Client(server), Client(server)
    expect(slow("SET", "large", b"y" * 100000), "OK", "SET")
    slow.socket.sendall(packed("GET", "large") * 400 + packed("GET", "a") * 100000)
    for _ in range(1000):
        expect(other("PING"), "PONG", "another client")
    expect(other("SET", "large", "z"), "OK", "SET of what is being sent")
    for n in range(400):
        assert slow.reply() in (b"y" * 100000, b"z"), n
    for _ in range(100000):
        slow.reply()
    leaves = Client(server)  # without having read
    leaves.socket.sendall(packed("GET", "a") * 100000)
    leaves.close()
    # Input ends, replies still come.
    half = Client(server)
    half.socket.sendall(packed("PING") * 3 + b"*1\r\n$4")
    half.socket.shutdown(socket.SHUT_WR)
    assert [half.reply() for _ in range(3)] == ["PONG"] * 3 and half.is_closed()
    many = [Client(server) for _ in range(500)]
    for c in many:
        c.send("INCR", "many")
    assert sorted(c.reply() for c in many) == list(range(1, 501))
    for c in many:
        c.close()
    until(lambda: other.info("connected_clients") <= 3, "connections that do not end")
    other("FLUSHALL")


def runs_out_of_descriptors():
    server = Server(descriptors=40)
    first = Client(server)
    expect(first("PING"), "PONG", "the first one")
    many = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    time.sleep(0.5)
    expect(first("PING"), "PONG", "without descriptors")
    for s in many:
        s.close()
    late = Client(server)
    expect(late("PING"), "PONG", "when there are some again")
    said = server.end()
    assert said.count("\n") == 1 and "Too many open files" in said, said


def evicts():
    with Server("--maxmemory", "48m") as server:
        c = Client(server)
        expect(c("CONFIG", "GET", "maxmemory"), [b"maxmemory", b"%d" % (48 << 20)], "maxmemory")
        highest = 0
        expect(c("SET", "kept", "x"), "OK", "SET")
        for n in range(0, 100000, 1000):
            for i in range(n, n + 1000):
                c.socket.sendall(packed("SET", f"key{i}", b"v" * 1000) + packed("GET", "kept"))
            for _ in range(1000):
                expect(c.reply(), "OK", "SET")
                expect(c.reply(), b"x", "what is used stays")
            highest = max(highest, c.info("mem_from_system"))
        evicted = c.info("evicted_keys")
        assert evicted > 20000, f"{evicted} keys of 100000 evicted"
        until(lambda: c("DBSIZE") + c.info("evicted_keys") == 100001, "keys that are neither")
        assert highest < 72 << 20, f"{highest >> 20} MB from the system"
        c.socket.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$400000000\r\n")
        try:
            for _ in range(400):
                c.socket.sendall(b"v" * 1000000)
        except OSError:
            pass
        expect(Client(server)("PING"), "PONG", "after a command that is too large")


def benchmark(server):
    if not shutil.which("redis-benchmark"):
        print("skip: redis-benchmark is not there (Debian: redis-tools)")
        return
    for options in ["-c 50 -n 20000", "-c 20 -n 50000 -P 16 -r 10000 -d 100"]:
        got = subprocess.run(["redis-benchmark", "-p", str(server.port), "-q", *options.split(), "-t",
                              "ping,set,get,incr,mset"], capture_output=True, text=True, timeout=10 * PATIENCE)
        said = got.stdout + got.stderr
        assert got.returncode == 0 and "rror" not in said and said.count("requests per second") >= 6, said


def ends():
    for signum in (signal.SIGTERM, signal.SIGINT):
        server = Server()
        clients = [Client(server) for _ in range(20)]
        assert all(c("PING") == "PONG" for c in clients)
        assert server.end(signum) == ""


def names_wrong_options():
    for options, said in [(["--port", "65536"], "'65536' is not a port"), (["--port", "x"], "'x' is not a port"),
                          (["--maxmemory", "1x"], "'1x' is not a size"), (["--maxmemory", ""], "'' is not a size"),
                          (["--bind", "nowhere"], "'nowhere' is not an address"), (["--nosuch"], "usage: kv"),
                          (["more"], "'more' is not an option"), (["--maxmemory", "99999999999g"], "not a size")]:
        got = subprocess.run([PROGRAM, *options], capture_output=True, text=True, timeout=PATIENCE)
        assert got.returncode == 2 and said in got.stderr, f"{options}: {got}"
    got = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, timeout=PATIENCE)
    assert got.returncode == 0 and got.stdout.startswith("usage: kv"), got
    with Server() as server:
        got = subprocess.run([PROGRAM, "--port", str(server.port)], capture_output=True, text=True,
                             timeout=PATIENCE)
        assert got.returncode == 1 and "cannot listen" in got.stderr, got


def main():
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    names_wrong_options()
    with Server() as server:
        for claim in [answers, lambda s: follows_model(s, rng), expires, scans, refuses,
                      lambda s: survives(s, rng), benchmark]:
            claim(server)
    runs_out_of_descriptors()
    evicts()
    ends()
    print("kv does what it should")


main()
