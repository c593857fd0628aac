/* Waiting for a descriptor parks the goroutine and not its thread, whether the descriptor blocks or not; each call does
 * what its system call does, EAGAIN excepted; deadlines pass, peers close, several wait for one, numbers are used
 * again; five hundred connections are served at a time on a handful of threads.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: one_proc | GOMAXPROCS=1 | | 90
 * TEST_RUN: four_procs | GOMAXPROCS=4 GOGC=10 | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stress | GODEBUG=gcstress=1 | | 90 | stress */
#include "../support/test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static _Atomic(size_t) arrived, passed;

static void counts_reset(void)
{
    atomic_store(&arrived, 0);
    atomic_store(&passed, 0);
}

static void nonblocking(int fd)
{
    EXPECT_EQ(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), 0);
}

static int64_t in_ms(int64_t ms)
{
    return (int64_t)now_ns() + MILLISECONDS(ms);
}

/* A kind of pair of connected descriptors: [0] is read, [1] written. */
struct kind {
    const char *name;
    int domain, type; /* domain 0: a pipe */
    bool nonblock;
};

static const struct kind kinds[] = {
    {"pipe", 0, 0, false},
    {"pipe, nonblocking", 0, 0, true},
    {"stream", AF_UNIX, SOCK_STREAM, false},
    {"stream, nonblocking", AF_UNIX, SOCK_STREAM, true},
    {"tcp", AF_INET, SOCK_STREAM, false},
    {"tcp, nonblocking", AF_INET, SOCK_STREAM, true},
};

static int listen_on_loopback(struct sockaddr_in *addr, int backlog)
{
    socklen_t len = sizeof *addr;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_GE(fd, 0);
    memset(addr, 0, sizeof *addr);
    addr->sin_family = AF_INET;
    addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_MSG(bind(fd, (struct sockaddr *)addr, sizeof *addr) == 0, "bind: %s", strerror(errno));
    EXPECT_EQ(listen(fd, backlog), 0);
    EXPECT_EQ(getsockname(fd, (struct sockaddr *)addr, &len), 0);
    return fd;
}

static void pair_open(const struct kind *k, int fds[2])
{
    if (k->domain == 0) {
        EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    } else if (k->domain == AF_UNIX) {
        EXPECT_EQ(socketpair(AF_UNIX, k->type | SOCK_CLOEXEC, 0, fds), 0);
    } else {
        struct sockaddr_in addr;
        int listener = listen_on_loopback(&addr, 1);
        fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        EXPECT_EQ(connect(fds[1], (struct sockaddr *)&addr, sizeof addr), 0);
        fds[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        close(listener);
    }
    EXPECT_GE(fds[0], 0);
    EXPECT_GE(fds[1], 0);
    if (k->nonblock) {
        nonblocking(fds[0]);
        nonblocking(fds[1]);
    }
}

static void pair_close(const int fds[2])
{
    close(fds[0]);
    close(fds[1]);
}

/* ---- parked, not blocked ---- */

static void read_a_byte(void *arg)
{
    const int *fds = arg;
    item *mine = item_new((uint64_t)fds[0], NULL);
    char c = 0;
    atomic_fetch_add(&arrived, 1);
    EXPECT_EQ(loam_read(fds[0], &c, 1), 1);
    EXPECT_EQ(c, (char)fds[1]);
    item_check(mine);
    atomic_fetch_add(&passed, 1);
}

static void parks_the_goroutine_alone(void)
{
    enum { READERS = 200 };
    static int fds[READERS][2];
    size_t before = threads_of_process();
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        counts_reset();
        for (size_t i = 0; i < READERS; i++) {
            pair_open(&kinds[k], fds[i]);
            go(read_a_byte, fds[i]);
        }
        PARK_UNTIL(30, atomic_load(&arrived) == READERS);
        loam_sleep(MILLISECONDS(10));
        loam_gc();
        size_t threads = threads_of_process();
        /* With gcstress an allocation takes long, and for who computes long there is a thread more. */
        EXPECT_MSG(threads < before + 40 || test_godebug("gcstress"), "%s: %zu threads, %zu before",
                   kinds[k].name, threads, before);
        EXPECT_EQ(atomic_load(&passed), 0);
        for (size_t i = READERS; i > 0; i--) {
            char c = (char)fds[i - 1][1];
            EXPECT_EQ(loam_write(fds[i - 1][1], &c, 1), 1);
        }
        PARK_UNTIL(30, atomic_load(&passed) == READERS);
        for (size_t i = 0; i < READERS; i++) {
            bool blocks = (fcntl(fds[i][0], F_GETFL) & O_NONBLOCK) == 0;
            EXPECT_MSG(blocks == !kinds[k].nonblock, "%s: its flags have changed", kinds[k].name);
            pair_close(fds[i]);
        }
    }
}

/* ---- streams ---- */

struct stream {
    int fds[2];
    size_t bytes;
    bool is_socket;
};

static uint8_t byte_at(size_t i)
{
    return (uint8_t)(rng_mix(i / 8) >> (i % 8 * 8));
}

static void write_stream(void *arg)
{
    const struct stream *s = arg;
    struct rng rng = rng_stream((uint64_t)s->fds[1]);
    uint8_t *buf = malloc(300000);
    for (size_t at = 0; at < s->bytes;) {
        size_t n = rng_between(&rng, 1, rng_below(&rng, 4) == 0 ? 300000 : 3000);
        n = n < s->bytes - at ? n : s->bytes - at;
        for (size_t i = 0; i < n; i++) {
            buf[i] = byte_at(at + i);
        }
        bool by_send = s->is_socket && rng_below(&rng, 2) == 0;
        ssize_t got = by_send ? loam_send(s->fds[1], buf, n, MSG_NOSIGNAL)
                              : loam_write(s->fds[1], buf, n);
        EXPECT_MSG(got > 0 && (size_t)got <= n, "%zd of %zu written: %s", got, n, strerror(errno));
        at += (size_t)got;
    }
    close(s->fds[1]);
    free(buf);
    atomic_fetch_add(&passed, 1);
}

static void read_stream(void *arg)
{
    const struct stream *s = arg;
    struct rng rng = rng_stream((uint64_t)s->fds[0]);
    uint8_t *buf = loam_alloc_noscan(100000);
    size_t at = 0;
    for (;;) {
        size_t n = rng_between(&rng, 1, rng_below(&rng, 4) == 0 ? 100000 : 1000);
        bool by_recv = s->is_socket && rng_below(&rng, 2) == 0;
        ssize_t got = by_recv ? loam_recv(s->fds[0], buf, n, 0) : loam_read(s->fds[0], buf, n);
        EXPECT_MSG(got >= 0 && (size_t)got <= n, "read gave %zd: %s", got, strerror(errno));
        if (got == 0) {
            break;
        }
        for (size_t i = 0; i < (size_t)got; i++) {
            EXPECT_EQ(buf[i], byte_at(at + i));
        }
        at += (size_t)got;
    }
    EXPECT_EQ(at, s->bytes);
    close(s->fds[0]);
    atomic_fetch_add(&passed, 1);
}

static void streams_arrive_whole(void)
{
    static struct stream streams[COUNT_OF(kinds) * 4];
    static struct crew crew;
    counts_reset();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        const struct kind *k = &kinds[i % COUNT_OF(kinds)];
        size_t way = i / COUNT_OF(kinds);
        pair_open(k, streams[i].fds);
        streams[i].bytes = go_scaled(1500000);
        streams[i].is_socket = k->domain != 0;
        crew_start(&crew, way % 2 == 0 ? ON_GOROUTINE : ON_THREAD, write_stream, &streams[i]);
        crew_start(&crew, way / 2 == 0 ? ON_GOROUTINE : ON_THREAD, read_stream, &streams[i]);
    }
    crew_join(&crew);
    EXPECT_EQ(atomic_load(&passed), 2 * COUNT_OF(streams));
}

/* ---- what cannot be ---- */

static void bad_descriptors(void)
{
    static char buf[16];
    struct sockaddr_in addr;
    memset(&addr, 0, sizeof addr);
    addr.sin_family = AF_INET;
    int closed = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 700); /* a number that nobody gets soon */
    close(closed);
    const int bad[] = {-1, closed, 1 << 20, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        EXPECT_ERRNO(loam_wait_fd(bad[i], POLLIN, -1), -1, EBADF);
        EXPECT_ERRNO(loam_wait_fd(bad[i], POLLOUT, in_ms(1)), -1, EBADF);
        EXPECT_ERRNO(loam_read(bad[i], buf, sizeof buf), -1, EBADF);
        EXPECT_ERRNO(loam_write(bad[i], buf, sizeof buf), -1, EBADF);
        EXPECT_ERRNO(loam_recv(bad[i], buf, sizeof buf, 0), -1, EBADF);
        EXPECT_ERRNO(loam_send(bad[i], buf, sizeof buf, MSG_NOSIGNAL), -1, EBADF);
        EXPECT_ERRNO(loam_accept(bad[i], NULL, NULL), -1, EBADF);
        EXPECT_ERRNO(loam_connect(bad[i], (struct sockaddr *)&addr, sizeof addr), -1, EBADF);
    }
    int fds[2];
    pair_open(&kinds[0], fds);
    EXPECT_ERRNO(loam_read(fds[1], buf, 1), -1, EBADF);
    EXPECT_ERRNO(loam_write(fds[0], buf, 1), -1, EBADF);
    EXPECT_ERRNO(loam_recv(fds[0], buf, 1, 0), -1, ENOTSOCK);
    EXPECT_ERRNO(loam_send(fds[1], buf, 1, 0), -1, ENOTSOCK);
    EXPECT_ERRNO(loam_accept(fds[0], NULL, NULL), -1, ENOTSOCK);
    EXPECT_ERRNO(loam_connect(fds[0], (struct sockaddr *)&addr, sizeof addr), -1, ENOTSOCK);
    EXPECT_EQ(loam_read(fds[0], buf, 0), 0); /* at once, as its system call */
    pair_close(fds);
    int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_ERRNO(loam_accept(socket_fd, NULL, NULL), -1, EINVAL); /* does not listen */
    EXPECT_ERRNO(loam_send(socket_fd, buf, 1, MSG_NOSIGNAL), -1, EPIPE);
    EXPECT_ERRNO(loam_recv(socket_fd, buf, 1, 0), -1, ENOTCONN);
    close(socket_fd);
}

static void regular_files(void)
{
    char name[] = "/tmp/goroutine_io.XXXXXX";
    char buf[64];
    int fd = mkstemp(name);
    EXPECT_GE(fd, 0);
    EXPECT_EQ(unlink(name), 0);
    for (int i = 0; i < 50; i++) {
        EXPECT_EQ(loam_write(fd, "0123456789", 10), 10);
    }
    EXPECT_EQ(loam_wait_fd(fd, POLLIN, -1) & POLLIN, POLLIN);
    EXPECT_EQ(loam_wait_fd(fd, POLLOUT, in_ms(1000)) & POLLOUT, POLLOUT);
    EXPECT_EQ(loam_read(fd, buf, sizeof buf), 0); /* at the end */
    EXPECT_EQ(lseek(fd, 495, SEEK_SET), 495);
    EXPECT_EQ(loam_read(fd, buf, sizeof buf), 5);
    EXPECT_EQ(memcmp(buf, "56789", 5), 0);
    close(fd);
    fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    EXPECT_EQ(loam_read(fd, buf, sizeof buf), sizeof buf);
    EXPECT_EQ(loam_write(fd, buf, sizeof buf), sizeof buf);
    close(fd);
    fd = open("/tmp", O_RDONLY | O_CLOEXEC);
    EXPECT_ERRNO(loam_read(fd, buf, sizeof buf), -1, EISDIR);
    close(fd);
    fd = eventfd(3, EFD_CLOEXEC);
    EXPECT_EQ(loam_read(fd, buf, 8), 8);
    EXPECT_EQ(buf[0], 3);
    if (!emulated()) { /* which has no read that does not wait: it waits first there */
        EXPECT_ERRNO(loam_read(fd, buf, 4), -1, EINVAL);
    }
    close(fd);
}

/* ---- deadlines ---- */

static void write_later(void *arg)
{
    loam_sleep(MILLISECONDS(20));
    EXPECT_EQ(loam_write(*(int *)arg, "x", 1), 1);
}

static void deadlines(void)
{
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        static struct crew crew;
        int fds[2];
        pair_open(&kinds[k], fds);
        EXPECT_EQ(loam_wait_fd(fds[0], POLLIN, 0), 0);
        EXPECT_EQ(loam_wait_fd(fds[0], POLLIN, 1), 0);
        EXPECT_EQ(loam_wait_fd(fds[0], POLLIN, (int64_t)now_ns()), 0);
        for (int64_t ms = 1; ms < 30; ms += 9) {
            int64_t deadline = in_ms(ms);
            EXPECT_EQ(loam_wait_fd(fds[0], POLLIN, deadline), 0);
            EXPECT_GE(now_ns(), deadline);
        }
        EXPECT_EQ(loam_wait_fd(fds[1], POLLOUT, in_ms(10000)), POLLOUT);
        EXPECT_EQ(loam_wait_fd(fds[1], POLLOUT, -1), POLLOUT);
        crew_start(&crew, k % 2 == 0 ? ON_GOROUTINE : ON_THREAD, write_later, &fds[1]);
        EXPECT_EQ(loam_wait_fd(fds[0], POLLIN, INT64_MAX), POLLIN);
        EXPECT_EQ(loam_wait_fd(fds[0], POLLIN, in_ms(10000)), POLLIN);
        EXPECT_EQ(loam_wait_fd(fds[0], POLLIN, INT64_MIN), POLLIN);
        crew_join(&crew);
        pair_close(fds);
    }
}

/* Deadlines of many, for one descriptor that stays silent, and of many descriptors. */
static void wait_in_vain(void *arg)
{
    int fd = *(int *)arg;
    struct rng rng = rng_stream(loam_goroutine_id());
    for (int i = 0; i < 4; i++) {
        int64_t deadline = in_ms((int64_t)rng_below(&rng, 20));
        EXPECT_EQ(loam_wait_fd(fd, POLLIN, deadline), 0);
        EXPECT_GE(now_ns(), deadline);
    }
    atomic_fetch_add(&passed, 1);
}

static void many_deadlines(void)
{
    static int fds[20][2];
    counts_reset();
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        pair_open(&kinds[i % COUNT_OF(kinds)], fds[i]);
    }
    for (size_t i = 0; i < 300; i++) {
        go(wait_in_vain, fds[i % 2 == 0 ? 0 : i % COUNT_OF(fds)]);
    }
    PARK_UNTIL(60, atomic_load(&passed) == 300);
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        pair_close(fds[i]);
    }
}

/* ---- several wait for one ---- */

static void wait_readable(void *arg)
{
    atomic_fetch_add(&arrived, 1);
    EXPECT_EQ(loam_wait_fd(*(int *)arg, POLLIN, -1), POLLIN);
    atomic_fetch_add(&passed, 1);
}

static void take_a_byte(void *arg)
{
    char c = 0;
    atomic_fetch_add(&arrived, 1);
    EXPECT_EQ(loam_read(*(int *)arg, &c, 1), 1);
    EXPECT_EQ(c, 'x');
    atomic_fetch_add(&passed, 1);
}

static void all_see_it_ready(void)
{
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        static struct crew crew;
        static int fds[2];
        char c;
        counts_reset();
        pair_open(&kinds[k], fds);
        for (size_t i = 0; i < 30; i++) {
            crew_start(&crew, i % 10 == 0 ? ON_THREAD : ON_GOROUTINE, wait_readable, &fds[0]);
        }
        PARK_UNTIL(20, atomic_load(&arrived) == 30);
        loam_sleep(MILLISECONDS(5));
        EXPECT_EQ(atomic_load(&passed), 0);
        EXPECT_EQ(loam_write(fds[1], "x", 1), 1);
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&passed), 30);
        EXPECT_EQ(loam_read(fds[0], &c, 1), 1);
        pair_close(fds);
    }
}

static void each_takes_one(void)
{
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        static struct crew crew;
        static int fds[2];
        counts_reset();
        pair_open(&kinds[k], fds);
        for (size_t i = 0; i < 30; i++) {
            /* a blocking descriptor may be emptied by another between the wait and the read */
            crew_start(&crew, i % 10 == 0 ? ON_THREAD : ON_GOROUTINE, take_a_byte, &fds[0]);
        }
        PARK_UNTIL(20, atomic_load(&arrived) == 30);
        for (size_t i = 0; i < 30; i++) {
            EXPECT_EQ(loam_write(fds[1], "x", 1), 1);
            PARK_UNTIL(20, atomic_load(&passed) == i + 1);
        }
        crew_join(&crew);
        pair_close(fds);
    }
}

/* One waits to read a socket that another waits to write. */
static void fill_then_write(void *arg)
{
    int fd = *(int *)arg;
    static char block[65536];
    atomic_fetch_add(&arrived, 1);
    for (size_t total = 0; total < 4 << 20;) {
        ssize_t got = loam_write(fd, block, sizeof block);
        EXPECT_GT(got, 0);
        total += (size_t)got;
    }
    atomic_fetch_add(&passed, 1);
}

static void both_directions_of_one(void)
{
    for (size_t k = 2; k < COUNT_OF(kinds); k++) {
        static struct crew crew;
        static int fds[2];
        static char block[65536];
        counts_reset();
        pair_open(&kinds[k], fds);
        crew_start(&crew, ON_GOROUTINE, fill_then_write, &fds[0]);
        crew_start(&crew, ON_GOROUTINE, take_a_byte, &fds[0]);
        PARK_UNTIL(20, atomic_load(&arrived) == 2);
        loam_sleep(MILLISECONDS(10));
        EXPECT_EQ(atomic_load(&passed), 0);
        EXPECT_EQ(loam_write(fds[1], "x", 1), 1);
        PARK_UNTIL(20, atomic_load(&passed) == 1);
        for (size_t total = 0; total < 4 << 20;) {
            ssize_t got = loam_read(fds[1], block, sizeof block);
            EXPECT_GT(got, 0);
            total += (size_t)got;
        }
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&passed), 2);
        pair_close(fds);
    }
}

/* ---- closing, and using numbers again ---- */

static void peers_that_close(void)
{
    char c;
    signal(SIGPIPE, SIG_IGN);
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        int fds[2];
        pair_open(&kinds[k], fds);
        EXPECT_EQ(loam_write(fds[1], "x", 1), 1);
        close(fds[1]);
        EXPECT_EQ(loam_read(fds[0], &c, 1), 1);
        EXPECT_EQ(loam_read(fds[0], &c, 1), 0);
        int events = loam_wait_fd(fds[0], POLLIN, in_ms(10000));
        EXPECT_MSG(events > 0 && (events & (POLLIN | POLLHUP)) != 0, "events %#x",
                   (unsigned)events);
        EXPECT_EQ(loam_read(fds[0], &c, 1), 0);
        close(fds[0]);

        pair_open(&kinds[k], fds);
        close(fds[0]);
        loam_sleep(MILLISECONDS(2));
        ssize_t got = 1;
        for (int i = 0; i < 3 && got > 0; i++) { /* over TCP the first is still taken */
            got = loam_write(fds[1], "x", 1);
            loam_sleep(MILLISECONDS(2));
        }
        EXPECT_MSG(got == -1 && (errno == EPIPE || errno == ECONNRESET), "gave %zd, %s", got,
                   strerror(errno));
        close(fds[1]);
    }
    signal(SIGPIPE, SIG_DFL);
}

static void read_the_end(void *arg)
{
    char c;
    atomic_fetch_add(&arrived, 1);
    EXPECT_EQ(loam_read(*(int *)arg, &c, 1), 0);
    atomic_fetch_add(&passed, 1);
}

static void peers_that_close_later(void)
{
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        static struct crew crew;
        static int fds[2];
        counts_reset();
        pair_open(&kinds[k], fds);
        for (size_t i = 0; i < 10; i++) {
            crew_start(&crew, i % 5 == 0 ? ON_THREAD : ON_GOROUTINE, read_the_end, &fds[0]);
        }
        PARK_UNTIL(20, atomic_load(&arrived) == 10);
        loam_sleep(MILLISECONDS(2));
        EXPECT_EQ(atomic_load(&passed), 0);
        close(fds[1]);
        crew_join(&crew);
        close(fds[0]);
    }
}

static void numbers_used_again(void)
{
    struct rng rng = rng_stream(5);
    for (size_t n = 0; n < go_scaled(500) + 10; n++) {
        static struct crew crew;
        static int fds[2];
        counts_reset();
        pair_open(&kinds[rng_below(&rng, 4)], fds);
        crew_start(&crew, ON_GOROUTINE, take_a_byte, &fds[0]);
        if (rng_below(&rng, 2) == 0) {
            PARK_UNTIL(20, atomic_load(&arrived) == 1);
        }
        EXPECT_EQ(loam_write(fds[1], "x", 1), 1);
        crew_join(&crew);
        pair_close(fds);
    }
}

/* What a number meant before says nothing about what it means now, though a duplicate keeps the old file open. */
static void numbers_with_a_past(void)
{
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        int old[2];
        int now[2];
        char c;
        pair_open(&kinds[k], old);
        EXPECT_EQ(loam_wait_fd(old[0], POLLIN, in_ms(1)), 0);
        int kept = dup(old[0]);
        pair_open(&kinds[k], now);
        EXPECT_EQ(dup2(now[0], old[0]), old[0]); /* the number now means this */
        EXPECT_EQ(loam_wait_fd(old[0], POLLIN, in_ms(1)), 0);
        EXPECT_EQ(write(old[1], "x", 1), 1);
        EXPECT_EQ(loam_wait_fd(old[0], POLLIN, in_ms(10)), 0);
        EXPECT_EQ(write(now[1], "y", 1), 1);
        EXPECT_EQ(loam_wait_fd(old[0], POLLIN, in_ms(10000)), POLLIN);
        EXPECT_EQ(loam_read(old[0], &c, 1), 1);
        EXPECT_EQ(c, 'y');
        EXPECT_EQ(loam_read(kept, &c, 1), 1);
        EXPECT_EQ(c, 'x');
        close(kept);
        pair_close(old);
        pair_close(now);
    }
}

/* ---- sockets ---- */

static void recv_with_flags(void)
{
    int fds[2];
    char buf[16];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds), 0);
    EXPECT_EQ(loam_send(fds[1], "hello", 5, MSG_NOSIGNAL), 5);
    EXPECT_EQ(loam_recv(fds[0], buf, sizeof buf, MSG_PEEK), 5);
    EXPECT_EQ(loam_recv(fds[0], buf, 2, MSG_TRUNC), 5);
    EXPECT_EQ(memcmp(buf, "he", 2), 0);
    EXPECT_EQ(loam_send(fds[1], "", 0, MSG_NOSIGNAL), 0);
    EXPECT_EQ(loam_recv(fds[0], buf, sizeof buf, 0), 0); /* an empty one */
    pair_close(fds);
    pair_open(&kinds[4], fds);
    EXPECT_EQ(loam_send(fds[1], "!", 1, MSG_OOB), 1);
    loam_sleep(MILLISECONDS(5));
    EXPECT_EQ(loam_recv(fds[0], buf, 1, MSG_OOB), 1);
    pair_close(fds);
}

static struct sockaddr_in server_addr;
static int listener;

static void connect_and_go(void *arg)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (arg != NULL ? SOCK_NONBLOCK : 0), 0);
    char c = 0;
    EXPECT_GE(fd, 0);
    EXPECT_MSG(loam_connect(fd, (struct sockaddr *)&server_addr, sizeof server_addr) == 0,
               "connect: %s", strerror(errno));
    EXPECT_ERRNO(loam_connect(fd, (struct sockaddr *)&server_addr, sizeof server_addr), -1,
                 EISCONN);
    EXPECT_EQ(loam_write(fd, "x", 1), 1);
    EXPECT_EQ(loam_read(fd, &c, 1), 1);
    EXPECT_EQ(c, 'y');
    close(fd);
    atomic_fetch_add(&passed, 1);
}

static void accepting_and_connecting(void)
{
    for (int mode = 0; mode < 4; mode++) {
        static struct crew crew;
        counts_reset();
        listener = listen_on_loopback(&server_addr, 16);
        if (mode % 2 == 1) {
            nonblocking(listener);
        }
        for (size_t i = 0; i < 20; i++) {
            crew_start(&crew, i % 5 == 0 ? ON_THREAD : ON_GOROUTINE, connect_and_go,
                       mode / 2 == 1 ? &passed : NULL);
        }
        for (size_t i = 0; i < 20; i++) {
            struct sockaddr_in peer;
            socklen_t len = sizeof peer;
            char c = 0;
            memset(&peer, 0, sizeof peer);
            int fd = i % 2 == 0 ? loam_accept(listener, (struct sockaddr *)&peer, &len)
                                : loam_accept(listener, NULL, NULL);
            EXPECT_MSG(fd >= 0, "accept: %s", strerror(errno));
            if (i % 2 == 0) {
                EXPECT_EQ(len, sizeof peer);
                EXPECT_EQ(peer.sin_family, AF_INET);
                EXPECT_EQ(peer.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
            }
            EXPECT_EQ(loam_read(fd, &c, 1), 1);
            EXPECT_EQ(loam_write(fd, "y", 1), 1);
            close(fd);
        }
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&passed), 20);
        close(listener);
        /* nobody listens there now */
        for (int n = 0; n < 2; n++) {
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (n == 1 ? SOCK_NONBLOCK : 0), 0);
            EXPECT_ERRNO(loam_connect(fd, (struct sockaddr *)&server_addr, sizeof server_addr), -1,
                         ECONNREFUSED);
            close(fd);
        }
    }
}

static void accept_one(void *arg)
{
    loam_sleep(MILLISECONDS(5));
    for (int i = 0; i < 3; i++) {
        int fd = loam_accept(*(int *)arg, NULL, NULL);
        EXPECT_GE(fd, 0);
        close(fd);
    }
}

/* A full queue of a local socket: connect gives EAGAIN there, and not EINPROGRESS. */
static void local_sockets(void)
{
    static struct crew crew;
    static int local;
    struct sockaddr_un addr;
    int fds[3];
    memset(&addr, 0, sizeof addr);
    addr.sun_family = AF_UNIX;
    snprintf(addr.sun_path + 1, sizeof addr.sun_path - 1, "goroutine_io %d", (int)getpid());
    local = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(bind(local, (struct sockaddr *)&addr, sizeof addr), 0);
    EXPECT_EQ(listen(local, 0), 0);
    crew_start(&crew, ON_GOROUTINE, accept_one, &local);
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (i % 2 == 1 ? SOCK_NONBLOCK : 0), 0);
        EXPECT_MSG(loam_connect(fds[i], (struct sockaddr *)&addr, sizeof addr) == 0,
                   "connect %zu: %s", i, strerror(errno));
    }
    crew_join(&crew);
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        close(fds[i]);
    }
    close(local);
}

/* ---- a server ---- */

static void echo(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char buf[2048];
    for (;;) {
        ssize_t got = loam_read(fd, buf, sizeof buf);
        EXPECT_MSG(got >= 0, "read: %s", strerror(errno));
        if (got == 0) {
            break;
        }
        for (ssize_t at = 0; at < got;) {
            ssize_t wrote = loam_write(fd, buf + at, (size_t)(got - at));
            EXPECT_MSG(wrote > 0, "write: %s", strerror(errno));
            at += wrote;
        }
    }
    close(fd);
}

static size_t clients;

static void accept_all(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < clients; i++) {
        int fd = loam_accept(listener, NULL, NULL);
        EXPECT_MSG(fd >= 0, "accept: %s", strerror(errno));
        go(echo, (void *)(intptr_t)fd);
    }
    atomic_fetch_add(&passed, 1);
}

static void be_client(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    size_t most = 6000;
    uint8_t *out = loam_alloc_noscan(most);
    uint8_t *in = loam_alloc_noscan(most);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_MSG(fd >= 0, "socket: %s", strerror(errno));
    EXPECT_MSG(loam_connect(fd, (struct sockaddr *)&server_addr, sizeof server_addr) == 0,
               "connect: %s", strerror(errno));
    atomic_fetch_add(&arrived, 1);
    PARK_UNTIL(60, atomic_load(&arrived) >= clients); /* all are connected at a time */
    for (size_t round = 0; round < go_scaled(10); round++) {
        size_t n = rng_between(&rng, 1, most);
        for (size_t i = 0; i < n; i++) {
            out[i] = (uint8_t)rng_next(&rng);
        }
        for (size_t at = 0; at < n;) {
            ssize_t got = loam_write(fd, out + at, n - at);
            EXPECT_MSG(got > 0, "write: %s", strerror(errno));
            at += (size_t)got;
        }
        for (size_t at = 0; at < n;) {
            ssize_t got = loam_read(fd, in + at, n - at);
            EXPECT_MSG(got > 0, "read gave %zd: %s", got, strerror(errno));
            at += (size_t)got;
        }
        EXPECT_EQ(memcmp(in, out, n), 0);
    }
    close(fd);
    atomic_fetch_add(&passed, 1);
}

static void five_hundred_connections(void)
{
    struct rlimit files;
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    clients = files.rlim_cur > 1200 ? 500 : 100;
    clients = emulated() ? clients / 5 : clients;
    size_t before = threads_of_process();
    uint64_t start = now_ns();
    counts_reset();
    listener = listen_on_loopback(&server_addr, 1024);
    go(accept_all, NULL);
    for (uintptr_t i = 0; i < clients; i++) {
        go(be_client, (void *)i);
    }
    PARK_UNTIL(90, atomic_load(&arrived) == clients);
    size_t threads = threads_of_process();
    PARK_UNTIL(90, atomic_load(&passed) == clients + 1);
    printf("  %zu connections, %zu threads, %.2f s\n", clients, threads, seconds_since(start));
    EXPECT(threads < before + 40 || test_godebug("gcstress"));
    close(listener);
}

/* ---- fork ----
 *
 * What the child waits for is its own, and what the parent waits for stays its own. */
static void read_a_byte_of(void *arg)
{
    take_a_byte(arg);
}

static void live_as_child(int fd_of_parent)
{
    static struct crew crew;
    static int fds[2];
    counts_reset();
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        pair_open(&kinds[k], fds);
        crew_start(&crew, ON_GOROUTINE, read_a_byte_of, &fds[0]);
        loam_sleep(MILLISECONDS(2));
        EXPECT_EQ(loam_write(fds[1], "x", 1), 1);
        crew_join(&crew);
        pair_close(fds);
    }
    /* the same descriptor, in the child too */
    EXPECT_EQ(loam_wait_fd(fd_of_parent, POLLIN, in_ms(5)), 0);
    close(fd_of_parent);
}

static void forked_beside_waits(void)
{
    static struct crew crew;
    static int fds[2];
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        counts_reset();
        pair_open(&kinds[k], fds);
        crew_start(&crew, ON_GOROUTINE, take_a_byte, &fds[0]);
        PARK_UNTIL(20, atomic_load(&arrived) == 1);
        loam_sleep(MILLISECONDS(2));
        pid_t pid = fork();
        if (pid == 0) {
            live_as_child(fds[0]);
            _exit(0);
        }
        child_wait(pid);
        EXPECT_EQ(atomic_load(&passed), 0);
        EXPECT_EQ(loam_write(fds[1], "x", 1), 1);
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&passed), 1);
        pair_close(fds);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    start_watching();
    RUN_BOTH(bad_descriptors);
    RUN_BOTH(regular_files);
    RUN_BOTH(parks_the_goroutine_alone);
    RUN_BOTH(streams_arrive_whole);
    RUN_BOTH(deadlines);
    RUN_BOTH(many_deadlines);
    RUN_BOTH(all_see_it_ready);
    RUN_BOTH(each_takes_one);
    RUN_BOTH(both_directions_of_one);
    RUN_BOTH(peers_that_close);
    RUN_BOTH(peers_that_close_later);
    RUN_BOTH(numbers_used_again);
    RUN_BOTH(numbers_with_a_past);
    RUN_BOTH(recv_with_flags);
    RUN_BOTH(accepting_and_connecting);
    RUN_BOTH(local_sockets);
    RUN_BOTH(five_hundred_connections);
    if (emulated()) {
        test_skip("fork of several threads under qemu-user, which fails an assertion of its own");
    } else {
        RUN_BOTH(forked_beside_waits);
    }
    go_all_ended();
    return test_end();
}
