/* The execution trace and the flight recorder: what is written is a whole document of trace events; stretches on one track
 * lie within each other; phases are those of gctrace; all kinds are there; what was dropped is told. A reader that is slow,
 * or goes away, or a full disk holds nobody up; starting and stopping beside threads that come and go does no harm; fork's
 * child has no trace.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: stress | GODEBUG=gcstress=20 | | 120 | stress
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 90 */
#include "../support/test.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <loam/sched.h>
#include <loam/stats.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/json.h"
#include "../support/threads.h"

#define SECOND INT64_C(1000000000)

/* ---- documents ---- */

struct event {
    char ph;
    char name[32];
    uint64_t pid, tid;
    int64_t begin, end; /* ns */
    const struct json *args;
};

struct document {
    struct event *events;
    size_t n;
    uint64_t dropped;
};

static pid_t of_process; /* that wrote the document; 0: this one */

static int scratch(void)
{
    int fd = memfd_create("trace", MFD_CLOEXEC);
    EXPECT_GE(fd, 0);
    return fd;
}

static int64_t whole_number(const struct json *j)
{
    char text[32];
    EXPECT(j != NULL && j->kind == JSON_NUMBER && j->bytes < sizeof text);
    memcpy(text, j->text, j->bytes);
    text[j->bytes] = 0;
    EXPECT_EQ(strspn(text, "0123456789"), j->bytes);
    return (int64_t)strtoull(text, NULL, 10);
}

/* Microseconds with three digits behind the point, to the nanosecond. */
static int64_t nanoseconds(const struct json *j)
{
    EXPECT(j != NULL && j->kind == JSON_NUMBER && j->bytes > 4);
    EXPECT_EQ(j->text[j->bytes - 4], '.');
    int64_t ns = 0;
    for (size_t i = 0; i < j->bytes; i++) {
        ns = j->text[i] == '.' ? ns : ns * 10 + (j->text[i] - '0');
    }
    return ns;
}

static void read_event(struct event *e, const struct json *j)
{
    const struct json *ph = json_get(j, "ph");
    const struct json *name = json_get(j, "name");
    EXPECT(ph != NULL && ph->kind == JSON_STRING && ph->bytes == 1);
    EXPECT(name != NULL && name->kind == JSON_STRING && name->bytes < sizeof e->name);
    EXPECT_NOT_NULL(json_get(j, "args"));
    *e = (struct event){.ph = ph->text[0],
                        .pid = (uint64_t)whole_number(json_get(j, "pid")),
                        .tid = (uint64_t)whole_number(json_get(j, "tid")),
                        .args = json_get(j, "args")};
    memcpy(e->name, name->text, name->bytes);
    EXPECT_EQ(e->pid, of_process != 0 ? of_process : getpid());
    EXPECT_MSG(strchr("XiCM", e->ph) != NULL, "an event of kind %c", e->ph);
    if (e->ph != 'M') {
        EXPECT_EQ(json_get(j, "cat")->kind, JSON_STRING);
        e->begin = e->end = nanoseconds(json_get(j, "ts"));
    }
    if (e->ph == 'X') {
        e->end += nanoseconds(json_get(j, "dur"));
    }
    if (e->ph == 'C') {
        for (const struct json *a = e->args->first; a != NULL; a = a->next) {
            EXPECT_EQ(a->kind, JSON_NUMBER);
        }
    }
}

static struct document parse(const char *text, size_t bytes)
{
    size_t stopped;
    struct json *root = json_parse(text, bytes, &stopped);
    EXPECT_MSG(root != NULL, "no JSON from byte %zu of %zu on: %.100s", stopped, bytes,
               text + stopped);
    const struct json *events = json_get(root, "traceEvents");
    EXPECT(events != NULL && events->kind == JSON_ARRAY);
    EXPECT(json_is_text(json_get(root, "displayTimeUnit"), "ns"));
    const struct json *other = json_get(root, "otherData");
    EXPECT(json_is_text(json_get(other, "version"), LOAM_VERSION));
    EXPECT_EQ(whole_number(json_get(other, "GOMAXPROCS")), loam_set_max_procs(0));
    struct document d = {.dropped = (uint64_t)whole_number(json_get(other, "dropped events"))};
    size_t room = 0;
    for (const struct json *j = events->first; j != NULL; j = j->next) {
        room++;
    }
    d.events = calloc(room, sizeof *d.events);
    EXPECT_NOT_NULL(d.events);
    for (const struct json *j = events->first; j != NULL; j = j->next) {
        read_event(&d.events[d.n++], j);
    }
    return d;
}

static int by_track(const void *pa, const void *pb)
{
    const struct event *a = *(const struct event *const *)pa;
    const struct event *b = *(const struct event *const *)pb;
    if (a->tid != b->tid) {
        return a->tid < b->tid ? -1 : 1;
    }
    if (a->begin != b->begin) {
        return a->begin < b->begin ? -1 : 1;
    }
    return a->end == b->end ? 0 : a->end > b->end ? -1 : 1;
}

/* Of two stretches on one track that touch each other one lies within the other. */
static void check_nesting(const struct document *d)
{
    const struct event **x = calloc(d->n + 1, sizeof(const struct event *));
    EXPECT_NOT_NULL(x);
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++) {
        if (d->events[i].ph == 'X') {
            x[n++] = &d->events[i];
        }
    }
    qsort(x, n, sizeof(const struct event *), by_track);
    const struct event *within[64];
    size_t depth = 0;
    for (size_t i = 0; i < n; i++) {
        while (depth != 0 &&
               (within[depth - 1]->tid != x[i]->tid || within[depth - 1]->end <= x[i]->begin)) {
            depth--;
        }
        EXPECT_MSG(depth == 0 || within[depth - 1]->end >= x[i]->end,
                   "on thread %" PRIu64 " %s [%" PRId64 ", %" PRId64 ") goes beyond %s [%" PRId64
                   ", %" PRId64 ")",
                   x[i]->tid, x[i]->name, x[i]->begin, x[i]->end, within[depth - 1]->name,
                   within[depth - 1]->begin, within[depth - 1]->end);
        EXPECT_LT(depth, COUNT_OF(within));
        within[depth++] = x[i];
    }
    free(x);
}

static struct document read_document(int fd)
{
    off_t bytes = lseek(fd, 0, SEEK_END);
    EXPECT_GT(bytes, 0);
    char *text = malloc((size_t)bytes);
    EXPECT_NOT_NULL(text);
    for (off_t at = 0; at < bytes;) {
        ssize_t n = pread(fd, text + at, (size_t)(bytes - at), at);
        EXPECT_GT(n, 0);
        at += n;
    }
    struct document d = parse(text, (size_t)bytes);
    check_nesting(&d);
    return d;
}

static const struct event *find(const struct document *d, char ph, const char *name)
{
    for (size_t i = 0; i < d->n; i++) {
        if (d->events[i].ph == ph && strcmp(d->events[i].name, name) == 0) {
            return &d->events[i];
        }
    }
    return NULL;
}

static void expect_all(const struct document *d, char ph, const char *const names[], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        EXPECT_MSG(find(d, ph, names[i]) != NULL, "no event %s of kind %c", names[i], ph);
    }
}

static void start(int fd)
{
    EXPECT_MSG(loam_trace_start(fd) == 0, "loam_trace_start: %s", strerror(errno));
}

/* ---- work ---- */

static uint64_t count_of(const char *name)
{
    static loam_histogram h;
    loam_metric m = {.name = name, .histogram = &h};
    loam_read_metrics(&m, 1);
    uint64_t n = 0;
    for (size_t i = 0; i < h.buckets; i++) {
        n += h.counts[i];
    }
    return n;
}

static void echo(void *arg)
{
    loam_chan **c = arg;
    uint64_t v;
    while (loam_chan_recv(c[0], &v)) {
        loam_chan_send(c[1], &v);
    }
}

static void ping_pong(void *arg)
{
    static loam_chan *c[2];
    size_t rounds = *(size_t *)arg;
    LOAM_SET(c[0], loam_chan_make_bytes(sizeof(uint64_t), 0));
    LOAM_SET(c[1], loam_chan_make_bytes(sizeof(uint64_t), 0));
    go(echo, c);
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t back;
        loam_chan_send(c[0], &i);
        EXPECT(loam_chan_recv(c[1], &back));
        EXPECT_EQ(back, i);
    }
    loam_chan_close(c[0]);
    loam_sleep(MILLISECONDS(1));
}

static void talk(size_t rounds)
{
    go_run(ping_pong, &rounds);
    go_all_ended();
}

static void *churn(void *arg)
{
    struct team_member *me = arg;
    item *keep = NULL;
    for (size_t i = 0; i < 20; i++) {
        keep = list_new(rng_below(&me->rng, 500));
    }
    loam_enter_blocking();
    sleep_us(100);
    loam_exit_blocking();
    EXPECT_LE(list_check(keep), 500);
    return NULL;
}

static void work(void)
{
    static struct team team;
    team_start(&team, 4, churn, NULL);
    talk(go_scaled(500));
    loam_gc();
    team_join(&team);
    loam_gc();
}

static item *alive;

static _Atomic(bool) stop;

static void *run_on(void *arg)
{
    EXPECT_EQ(loam_attach(), 0);
    while (!atomic_load(&stop)) {
        atomic_fetch_add((_Atomic(uint64_t) *)arg, 1);
    }
    return NULL;
}

/* A thread that runs is asked by the collector, or stopped. */
static void work_until_answered(void)
{
    const char *name = "/gc/handshakes/answers:seconds";
    uint64_t before = count_of(name);
    _Atomic(uint64_t) turns = 0;
    atomic_store(&stop, false);
    pthread_t t = thread_start(run_on, &turns);
    WAIT_BY(60, count_of(name) > before, loam_gc());
    atomic_store(&stop, true);
    thread_join(t);
}

/* Allocators are made to mark. */
static void work_until_assisted(void)
{
    const char *name = "/gc/mark/assists:seconds";
    uint64_t before = count_of(name);
    int percent = loam_set_gc_percent(10);
    LOAM_SET(alive, list_new(test_scaled(200000)));
    WAIT_BY(60, count_of(name) > before, (void)list_new(10000));
    LOAM_SET(alive, NULL);
    loam_set_gc_percent(percent);
}

/* ---- the trace ---- */

static void all_kinds(void)
{
    static const char *const stretches[] = {
        "cycle",          "begin",   "mark",    "end",     "sweep",      "H-ON",
        "H-BLACK",        "H-SCAN",  "H-FLUSH", "H-OFF",   "roots",      "H-GIVEBACK",
        "parked stacks",  "drain",   "round",   "blocked", "answer for", "sweep spans",
        "wait for cycle", "scavenge"};
    static const char *const moments[] = {"go", "ready"};
    static const char *const figures[] = {"heap", "limits", "sched"};
    int fd = scratch();
    start(fd);
    work();
    work_until_answered();
    bool stops = test_godebug("gcstoptheworld"), assisted = !stops && !test_godebug("gcstress");
    if (assisted) {
        work_until_assisted();
    }
    loam_gc();
    loam_free_os_memory();
    loam_trace_stop();
    struct document d = read_document(fd);
    EXPECT_MSG(d.dropped == 0 || TEST_SANITIZED || emulated() || test_godebug("gcstress"),
               "%" PRIu64 " were dropped", d.dropped);
    expect_all(&d, 'X', stretches, COUNT_OF(stretches));
    EXPECT_NOT_NULL(find(&d, 'X', stops ? "stopped" : "answer"));
    EXPECT(!assisted || find(&d, 'X', "assist") != NULL);
    expect_all(&d, 'i', moments, COUNT_OF(moments));
    expect_all(&d, 'C', figures, COUNT_OF(figures));
    size_t goroutines = 0, ended = 0, blocked = 0, named = 0;
    for (size_t i = 0; i < d.n; i++) {
        const struct event *e = &d.events[i];
        if (e->ph == 'X' && strncmp(e->name, "G ", 2) == 0) {
            const struct json *then = json_get(e->args, "then");
            goroutines++;
            ended += json_is_text(then, "ended");
            blocked += then != NULL && !json_is_text(then, "ended");
            EXPECT_EQ(whole_number(json_get(e->args, "goroutine")),
                      strtoull(e->name + 2, NULL, 10));
        }
        named += e->ph == 'M' && json_is_text(json_get(e->args, "name"), "loam-worker");
    }
    EXPECT_GE(goroutines, go_scaled(500));
    EXPECT_GE(ended, 2);
    EXPECT_GE(blocked, go_scaled(500));
    EXPECT_GE(named, 1);
    close(fd);
}

/* As gctrace prints milliseconds. */
static void as_ms(char *text, size_t size, int64_t ns)
{
    int64_t us = ns / 1000;
    if (us >= 10000) {
        snprintf(text, size, "%" PRId64, us / 1000);
        return;
    }
    int decimals = 3;
    int64_t scale = 1000;
    for (; us >= 100; us /= 10, scale /= 10) {
        decimals--;
    }
    if (us == 0) {
        snprintf(text, size, "0");
    } else {
        snprintf(text, size, "%" PRId64 ".%0*" PRId64, us / scale, decimals, us % scale);
    }
}

static void child_collects(void)
{
    start(STDOUT_FILENO);
    for (int i = 0; i < 5; i++) {
        EXPECT_EQ(list_check(list_new(test_scaled(20000))), test_scaled(20000));
        loam_gc();
    }
    loam_trace_stop();
}

static const struct event *phase_of(const struct document *d, const char *name, int64_t cycle)
{
    for (size_t i = 0; i < d->n; i++) {
        const struct json *number = json_get(d->events[i].args, "cycle");
        if (strcmp(d->events[i].name, name) == 0 && number != NULL &&
            whole_number(number) == cycle) {
            return &d->events[i];
        }
    }
    FAIL("no %s of cycle %" PRId64, name, cycle);
}

/* The phases of a cycle follow each other, fill it, and last as long as gctrace says. */
static void check_cycle(const struct document *d, const struct event *cycle, const char *lines)
{
    int64_t number = whole_number(json_get(cycle->args, "number"));
    const struct event *begin = phase_of(d, "begin", number);
    const struct event *mark = phase_of(d, "mark", number);
    const struct event *end = phase_of(d, "end", number);
    const struct event *sweep = phase_of(d, "sweep", number);
    EXPECT_EQ(begin->begin, cycle->begin);
    EXPECT_EQ(mark->begin, begin->end);
    EXPECT_EQ(end->begin, mark->end);
    EXPECT_EQ(sweep->begin, end->end);
    EXPECT_EQ(sweep->end, cycle->end);
    char head[32], clock[3][24], expected[128];
    snprintf(head, sizeof head, "gc %" PRId64 " @", number);
    const char *line = strstr(lines, head);
    EXPECT_MSG(line != NULL, "gctrace has no line of cycle %" PRId64, number);
    as_ms(clock[0], sizeof clock[0], begin->end - begin->begin);
    as_ms(clock[1], sizeof clock[1], mark->end - mark->begin);
    as_ms(clock[2], sizeof clock[2], end->end - end->begin);
    snprintf(expected, sizeof expected, ": %s+%s+%s ms clock", clock[0], clock[1], clock[2]);
    line = strstr(line, "%: ");
    EXPECT_NOT_NULL(line);
    EXPECT_MSG(strncmp(line + 1, expected, strlen(expected)) == 0,
               "cycle %" PRId64 " should be%s, gctrace says %.40s", number, expected, line);
}

static void phases_are_those_of_gctrace(void)
{
    static const char *const environment[] = {"GODEBUG=gctrace=1", NULL};
    static struct child c;
    int fd = scratch();
    int before = dup(STDOUT_FILENO);
    fflush(stdout);
    dup2(fd, STDOUT_FILENO);
    child_run(&c, "collects", environment, 60);
    dup2(before, STDOUT_FILENO);
    close(before);
    EXPECT_CHILD_PASSED(&c);
    off_t bytes = lseek(fd, 0, SEEK_END);
    char *text = malloc((size_t)bytes);
    EXPECT_EQ(pread(fd, text, (size_t)bytes, 0), bytes);
    size_t stopped;
    struct json *root = json_parse(text, (size_t)bytes, &stopped);
    EXPECT_NOT_NULL(root);
    of_process = (pid_t)whole_number(json_get(json_get(root, "traceEvents")->first, "pid"));
    EXPECT_NE(of_process, getpid());
    struct document d = parse(text, (size_t)bytes);
    of_process = 0;
    check_nesting(&d);
    size_t cycles = 0;
    for (size_t i = 0; i < d.n; i++) {
        if (d.events[i].ph == 'X' && strcmp(d.events[i].name, "cycle") == 0) {
            check_cycle(&d, &d.events[i], c.text);
            cycles++;
        }
    }
    EXPECT_GE(cycles, 5);
    close(fd);
}

static void refusals(void)
{
    int fd = scratch();
    int read_only = open("/dev/null", O_RDONLY | O_CLOEXEC);
    loam_trace_stop();
    EXPECT_ERRNO(loam_trace_start(-1), -1, EBADF);
    EXPECT_ERRNO(loam_trace_start(12345), -1, EBADF);
    EXPECT_ERRNO(loam_trace_start(read_only), -1, EBADF);
    start(fd);
    EXPECT_ERRNO(loam_trace_start(fd), -1, EBUSY);
    close(fd); /* it is the library's own descriptor that is written to */
    loam_gc();
    EXPECT_ERRNO(loam_trace_start(2), -1, EBUSY);
    loam_trace_stop();
    loam_trace_stop();
    close(read_only);
}

static void starts_in_a_goroutine_main(void *arg)
{
    start(*(int *)arg);
    talk(10);
    loam_gc();
    loam_trace_stop();
}

static void starts_in_a_goroutine_run(void *arg)
{
    start(*(int *)arg);
    loam_yield();
    loam_gc();
    loam_sleep(MILLISECONDS(1));
    loam_trace_stop();
}

static void starts_in_a_goroutine(void)
{
    int fd = scratch();
    starts_in_a_goroutine_main(&fd);
    struct document d = read_document(fd);
    EXPECT_NOT_NULL(find(&d, 'X', "cycle"));
    close(fd);
    fd = scratch();
    go_run(starts_in_a_goroutine_run, &fd);
    d = read_document(fd);
    EXPECT_NOT_NULL(find(&d, 'X', "cycle"));
    EXPECT_NOT_NULL(find(&d, 'X', "wait for cycle"));
    close(fd);
}

/* ---- readers ---- */

static void stops_soon(void)
{
    uint64_t begin = now_ns();
    loam_trace_stop();
    EXPECT_LT(seconds_since(begin), TEST_SANITIZED || emulated() ? 30 : 5);
}

static void works_still(void)
{
    int fd = scratch();
    start(fd);
    loam_gc();
    loam_trace_stop();
    struct document d = read_document(fd);
    EXPECT_NOT_NULL(find(&d, 'X', "cycle"));
    close(fd);
}

/* Nobody reads, and SIGPIPE would end the test. */
static void reader_goes_away(void)
{
    for (int kind = 0; kind < 2; kind++) {
        int fds[2];
        EXPECT_EQ(kind == 0 ? pipe(fds) : socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        start(fds[1]);
        talk(go_scaled(200));
        close(fds[0]);
        work();
        sleep_us(200000); /* it finds out */
        work();
        stops_soon();
        close(fds[1]);
        works_still();
    }
}

static void disk_is_full(void)
{
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    EXPECT_GE(fd, 0);
    start(fd);
    work();
    sleep_us(200000);
    work();
    stops_soon();
    close(fd);
    works_still();
}

static void nobody_reads(void)
{
    int fds[2];
    EXPECT_EQ(pipe(fds), 0);
    start(fds[1]);
    uint64_t begin = now_ns();
    talk(go_scaled(20000));
    work();
    EXPECT_LT(seconds_since(begin), TEST_SANITIZED || emulated() ? 200 : 20);
    stops_soon();
    close(fds[0]);
    close(fds[1]);
    works_still();
}

struct reader {
    int fd;
    char *text;
    size_t bytes;
};

static void *read_all(void *arg)
{
    struct reader *r = arg;
    size_t room = 1 << 16;
    r->text = malloc(room);
    for (ssize_t n; (n = read(r->fd, r->text + r->bytes, room - r->bytes)) > 0;) {
        r->bytes += (size_t)n;
        if (r->bytes == room) {
            room *= 2;
            r->text = realloc(r->text, room);
        }
    }
    return NULL;
}

/* Who reads late gets a whole document, which says how much is missing. */
static void late_reader(void)
{
    int fds[2];
    EXPECT_EQ(pipe(fds), 0);
    start(fds[1]);
    close(fds[1]);
    talk(5000);
    struct reader r = {.fd = fds[0]};
    pthread_t t = thread_start(read_all, &r);
    loam_trace_stop();
    thread_join(t);
    struct document d = parse(r.text, r.bytes);
    check_nesting(&d);
    EXPECT_GT(d.dropped, 0);
    free(r.text);
    close(fds[0]);
}

/* ---- beside threads that come and go ---- */

static void *come_and_go(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        _Atomic(size_t) attached = 0;
        struct team_member guest = {
            .rng = rng_stream(rng_next(&me->rng)), .fn = churn, .attached = &attached};
        thread_run(team_member_main, &guest);
    }
    return NULL;
}

static void on_and_off(void)
{
    static struct team team;
    size_t rounds = go_scaled(40);
    atomic_store(&stop, false);
    team_start(&team, TEST_TSAN || emulated() ? 8 : 32, come_and_go, NULL);
    for (size_t i = 0; i < rounds; i++) {
        int fd = scratch();
        start(fd);
        talk(10);
        sleep_us(i % 4 * 2000);
        loam_trace_stop();
        if (i % 8 == 0) {
            (void)read_document(fd);
        }
        close(fd);
    }
    atomic_store(&stop, true);
    team_join(&team);
}

/* ---- the flight recorder ---- */

static void record(const loam_flight_recorder_config *config)
{
    EXPECT_MSG(loam_flight_recorder_start(config) == 0, "loam_flight_recorder_start: %s",
               strerror(errno));
}

static void recorder_refusals(void)
{
    int fd = scratch();
    loam_flight_recorder_config bad[] = {{.min_age_ns = -1},
                                         {.pause_bound_ns = -1},
                                         {.pause_bound_ns = 1, .pause_fd = -1},
                                         {.max_bytes = SIZE_MAX}};
    loam_flight_recorder_stop();
    EXPECT_ERRNO(loam_flight_recorder_write(fd), -1, EINVAL);
    EXPECT_ERRNO(loam_flight_recorder_start(&bad[0]), -1, EINVAL);
    EXPECT_ERRNO(loam_flight_recorder_start(&bad[1]), -1, EINVAL);
    EXPECT_ERRNO(loam_flight_recorder_start(&bad[2]), -1, EBADF);
    EXPECT_ERRNO(loam_flight_recorder_start(&bad[3]), -1, ENOMEM);
    record(NULL);
    EXPECT_ERRNO(loam_flight_recorder_start(NULL), -1, EBUSY);
    EXPECT_ERRNO(loam_flight_recorder_write(-1), -1, EBADF);
    loam_flight_recorder_stop();
    loam_flight_recorder_stop();
    close(fd);
}

/* Only what is young enough, or fits; beside a trace, and after it. */
static void recorder_keeps_the_last(void)
{
    int fd = scratch(), trace = scratch();
    loam_flight_recorder_config config = {.min_age_ns = 2 * SECOND};
    record(&config);
    start(trace);
    work();
    loam_trace_stop();
    sleep_us(2200000);
    int64_t from = (int64_t)now_ns();
    loam_gc();
    EXPECT_EQ(loam_flight_recorder_write(fd), 0);
    struct document d = read_document(fd);
    EXPECT_NOT_NULL(find(&d, 'X', "cycle"));
    EXPECT(find(&d, 'X', "blocked") == NULL); /* of work */
    for (size_t i = 0; i < d.n; i++) {
        EXPECT(d.events[i].ph == 'M' || d.events[i].end >= from - 2 * SECOND);
    }
    d = read_document(trace);
    EXPECT_NOT_NULL(find(&d, 'X', "blocked"));
    loam_flight_recorder_stop();
    close(fd);
    close(trace);

    fd = scratch();
    config = (loam_flight_recorder_config){.max_bytes = 4096};
    record(&config);
    talk(go_scaled(2000));
    EXPECT_EQ(loam_flight_recorder_write(fd), 0);
    d = read_document(fd);
    size_t events = 0;
    for (size_t i = 0; i < d.n; i++) {
        events += d.events[i].ph != 'M';
    }
    EXPECT_GT(events, go_scaled(2000) == 2000 ? 50 : 5);
    EXPECT_LE(events, 4096 / 40);
    loam_flight_recorder_stop();
    close(fd);
}

static void recorder_writes_after_a_pause(void)
{
    int never = scratch(), fd = scratch();
    loam_flight_recorder_config config = {.pause_bound_ns = 3600 * SECOND, .pause_fd = never};
    record(&config);
    work();
    loam_flight_recorder_stop();
    EXPECT_EQ(lseek(never, 0, SEEK_END), 0);
    config = (loam_flight_recorder_config){.pause_bound_ns = 1, .pause_fd = fd};
    record(&config);
    WAIT_BY(30, lseek(fd, 0, SEEK_END) > 0, work());
    work(); /* one is enough */
    loam_flight_recorder_stop();
    struct document d = read_document(fd);
    const struct event *pause = find(&d, 'i', "long pause");
    EXPECT_NOT_NULL(pause);
    close(fd);
    close(never);
}

/* ---- fork ---- */

static void child_of_fork(int fd)
{
    loam_trace_stop(); /* there is none */
    EXPECT_ERRNO(loam_flight_recorder_write(fd), -1, EINVAL);
    EXPECT_EQ(list_check(list_new(1000)), 1000);
    loam_gc();
    start(fd);
    EXPECT_EQ(list_check(list_new(1000)), 1000);
    loam_gc();
    loam_trace_stop();
    struct document d = read_document(fd);
    EXPECT_NOT_NULL(find(&d, 'X', "cycle"));
    _exit(0);
}

static void forks(void)
{
    static struct team team;
    int fd = scratch();
    atomic_store(&stop, false);
    record(NULL);
    start(fd);
    team_start(&team, 4, come_and_go, NULL);
    for (size_t i = 0; i < (TEST_TSAN ? 2 : 10); i++) {
        int of_child = scratch();
        pid_t pid = fork();
        if (pid == 0) {
            child_of_fork(of_child);
        }
        child_wait(pid);
        close(of_child);
    }
    atomic_store(&stop, true);
    team_join(&team);
    loam_gc();
    loam_trace_stop();
    loam_flight_recorder_stop();
    struct document d = read_document(fd);
    EXPECT_NOT_NULL(find(&d, 'X', "cycle"));
    close(fd);
}

int main(int argc, char **argv)
{
    static const struct child_case children[] = {{"collects", child_collects}};
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    start_watching();
    RUN(refusals);
    RUN(all_kinds);
    RUN(phases_are_those_of_gctrace);
    RUN(starts_in_a_goroutine);
    RUN(reader_goes_away);
    RUN(disk_is_full);
    RUN(nobody_reads);
    RUN(late_reader);
    RUN(on_and_off);
    RUN(recorder_refusals);
    RUN(recorder_keeps_the_last);
    RUN(recorder_writes_after_a_pause);
    if (!emulated()) { /* qemu-user fails an assertion of its own in the child (cpu_exec) */
        RUN(forks);
    }
    return test_end();
}
