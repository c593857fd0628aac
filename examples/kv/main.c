/* main.c - options, the socket, the beginning and the end. */
#define _GNU_SOURCE
#include "kv.h"

#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

static const char usage[] =
    "usage: kv [--port N] [--bind ADDR] [--maxmemory SIZE]\n"
    "A key-value server that speaks the protocol of redis (RESP2).\n"
    "  --port N          where it listens (6379); 0: any free port\n"
    "  --bind ADDR       at which address of this machine (127.0.0.1)\n"
    "  --maxmemory SIZE  keys are evicted to stay below it: bytes, or a number with k, m or g\n"
    "                    behind; otherwise the environment's GOMEMLIMIT, or no limit\n"
    "It prints `listening on ADDR:PORT`, and ends with SIGINT or SIGTERM.\n";

enum {
    MEMORY_MIN = 16 << 20, /* bytes of --maxmemory */
    COMMAND_MAX = 1 << 30, /* bytes of a command; of the memory limit a quarter at most */
    BACKLOG = 1024,
    RETRY_NS = 100000000 /* when no connection can be taken */
};

struct settings settings = {.bind = "127.0.0.1", .port = 6379, .command_max = COMMAND_MAX};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "kv: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- options ---- */

static _Noreturn void bad_option(const char *text, const char *want)
{
    fprintf(stderr, "kv: '%s' is not %s\n", text, want);
    exit(2);
}

static int port_number(const char *text)
{
    int64_t n;
    if (!integer_parse((struct slice){text, strlen(text)}, &n) || n < 0 || n > 65535)
        bad_option(text, "a port: a number from 0 to 65535");
    return (int)n;
}

static int64_t memory_size(const char *text)
{
    static const char units[] = "kmg";
    size_t length = strlen(text);
    const char *unit = length == 0 ? NULL : strchr(units, text[length - 1] | 0x20);
    int64_t n;
    if (!integer_parse((struct slice){text, length - (unit != NULL)}, &n) ||
        __builtin_mul_overflow(n, unit == NULL ? 1 : 1024 << 10 * (unit - units), &n) ||
        n < MEMORY_MIN)
        bad_option(text, "a size: bytes, or a number with k, m or g behind, 16m at least");
    return n;
}

static void options_read(int argc, char *argv[])
{
    static const struct option names[] = {{"port", required_argument, NULL, 'p'},
                                          {"bind", required_argument, NULL, 'b'},
                                          {"maxmemory", required_argument, NULL, 'm'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;)
        switch (c) {
        case 'p':
            settings.port = port_number(optarg);
            break;
        case 'b':
            settings.bind = optarg;
            break;
        case 'm':
            loam_set_memory_limit(memory_size(optarg));
            break;
        case 'h':
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    if (optind < argc)
        bad_option(argv[optind], "an option; see kv --help");
    if (loam_set_memory_limit(-1) / 4 < COMMAND_MAX)
        settings.command_max = (size_t)loam_set_memory_limit(-1) / 4;
}

/* ---- the socket ---- */

/* Says where it listens. */
static int listen_at(const char *address, int port)
{
    char service[INTEGER_CHARS + 1] = "";
    integer_print(port, service);
    struct addrinfo *a, hints = {.ai_socktype = SOCK_STREAM,
                                 .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV};
    if (getaddrinfo(address, service, &hints, &a) != 0)
        bad_option(address, "an address of this machine, in numbers");
    int on = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_in6 name; /* the port is at the same place in an IPv4 one */
    socklen_t length = sizeof name;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0 ||
        getsockname(fd, (struct sockaddr *)&name, &length) != 0) {
        fprintf(stderr, "kv: cannot listen at %s, port %d: %s\n", address, port, strerror(errno));
        exit(1);
    }
    settings.port = ntohs(name.sin6_port);
    printf(a->ai_family == AF_INET6 ? "listening on [%s]:%d\n" : "listening on %s:%d\n", address,
           settings.port);
    fflush(stdout);
    freeaddrinfo(a);
    return fd;
}

static bool connection_start(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    connection *c = LOAM_NEW(connection);
    if (c == NULL)
        return false;
    c->fd = fd;
    return loam_go(connection_main, c) == 0;
}

/* ---- the goroutines ---- */

struct server {
    int listening, signals;
    loam_waitgroup accepting;
};

static void accept_all(void *arg)
{
    struct server *server = arg;
    bool said = false;
    for (;;) {
        int fd = loam_accept(server->listening, NULL, NULL);
        if (fd >= 0 && connection_start(fd))
            continue;
        int error = errno;
        if (fd >= 0)
            close(fd);
        else if (error == EINVAL) /* shut down: see serve */
            break;
        else if (error == ECONNABORTED || error == EINTR)
            continue;
        if (!said)
            fprintf(stderr, "kv: no more connections for now: %s\n", strerror(error));
        said = true;
        loam_sleep(RETRY_NS);
    }
    loam_waitgroup_done(&server->accepting);
}

static void serve(void *arg)
{
    struct server *server = arg;
    struct signalfd_siginfo signal;
    loam_waitgroup_add(&server->accepting, 1);
    if (keeper_start() != 0 || loam_go(accept_all, server) != 0)
        die("cannot start a goroutine");
    while (loam_read(server->signals, &signal, sizeof signal) < 0 && errno == EINTR)
        ;
    shutdown(server->listening, SHUT_RD);
    loam_waitgroup_wait(&server->accepting);
    close(server->listening);
}

int main(int argc, char *argv[])
{
    sigset_t ends; /* blocked before the library makes threads: they are as this one */
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signal(SIGPIPE, SIG_IGN);
    options_read(argc, argv);
    hash_init();
    settings.started = now_ms();

    struct rlimit files; /* each client takes a descriptor: as many as we may have */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    struct server server = {.signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK)};
    if (server.signals < 0)
        die("signalfd");
    server.listening = listen_at(settings.bind, settings.port);
    if (loam_run(serve, &server) != 0)
        die("cannot start a goroutine");
    return 0;
}
