/* goroutines.h - starting goroutines, the same function on a goroutine and on a plain thread, waiting by parking, and a
 * watch over cases that hang. */
#ifndef TESTS_SUPPORT_GOROUTINES_H
#define TESTS_SUPPORT_GOROUTINES_H

#include "test.h"

#include <dirent.h>

#include <loam/sched.h>

#include "threads.h"

#define MICROSECONDS(n) ((int64_t)(n)*1000)
#define MILLISECONDS(n) ((int64_t)(n)*1000000)
#define SECONDS(n) ((int64_t)(n)*1000000000)

static inline bool emulated(void)
{
    return getenv("TEST_EMULATOR") != NULL;
}

/* A loop count that slow modes, sanitizers and emulation divide. */
static inline size_t go_scaled(size_t count)
{
    size_t scaled = test_scaled(count) / (emulated() ? 10 : 1);
    return scaled > 0 ? scaled : 1;
}

/* How many goroutines are alive at a time where a case wants many. ThreadSanitizer's of gcc 12 keeps a clock as wide as the number
 * of fibers for each word that was ever synchronised on: with 2000 of them a test took 23 GiB. */
static inline size_t go_most(size_t wanted)
{
    size_t most = TEST_TSAN ? 200 : TEST_SANITIZED ? 10000 : emulated() ? 5000 : wanted;
    return wanted < most ? wanted : most;
}

static inline void go(void (*fn)(void *), void *arg)
{
    EXPECT_MSG(loam_go(fn, arg) == 0, "loam_go: %s", strerror(errno));
}

static inline void go_named(const char *name, void (*fn)(void *), void *arg)
{
    loam_go_options options = {name, 0};
    EXPECT_MSG(loam_go_with(&options, fn, arg) == 0, "loam_go_with: %s", strerror(errno));
}

static inline void go_run(void (*fn)(void *), void *arg)
{
    EXPECT_MSG(loam_run(fn, arg) == 0, "loam_run: %s", strerror(errno));
}

/* Without waiting; false: it could not be done. */
static inline bool chan_try_send(loam_chan *c, void *elem)
{
    loam_select_case one = {c, LOAM_SEND, elem, false};
    int got = loam_select(&one, 1, false);
    EXPECT(got == 0 || got == -1);
    return got == 0;
}

static inline bool chan_try_recv(loam_chan *c, void *elem)
{
    loam_select_case one = {c, LOAM_RECV, elem, false};
    int got = loam_select(&one, 1, false);
    EXPECT(got == 0 || got == -1);
    EXPECT(got == -1 || one.received);
    return got == 0;
}

static inline size_t threads_of_process(void)
{
    DIR *dir = opendir("/proc/self/task");
    size_t count = 0;
    EXPECT_NOT_NULL(dir);
    for (struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        count += e->d_name[0] != '.';
    }
    closedir(dir);
    return count;
}

/* Wait until the condition holds, on a goroutine or a plain thread; fail after `seconds`. */
#define PARK_UNTIL(seconds, condition) WAIT_BY(seconds, condition, loam_sleep(MICROSECONDS(100)))

/* All, but for the caller if that is one. */
static inline void go_all_ended(void)
{
    PARK_UNTIL(30, loam_num_goroutine() == (loam_goroutine_id() != 0 ? 1 : 0));
}

/* ---- on goroutines and on plain threads ----
 *
 * A crew runs functions on either, and is joined as one. */

enum where { ON_GOROUTINE, ON_THREAD };

enum { CREW_MAX = 256 };

struct crew;

struct crew_member {
    void (*fn)(void *arg);
    void *arg; /* plain memory's, or pinned: see rule 1 */
    struct crew *crew;
};

struct crew {
    struct crew_member member[CREW_MAX];
    pthread_t thread[CREW_MAX];
    size_t count, threads;
    loam_waitgroup running;
};

static inline void crew_goroutine(void *arg)
{
    struct crew_member *m = arg;
    m->fn(m->arg);
    loam_waitgroup_done(&m->crew->running);
}

static inline void *crew_thread(void *arg)
{
    struct crew_member *m = arg;
    EXPECT_EQ(loam_attach(), 0);
    m->fn(m->arg);
    loam_waitgroup_done(&m->crew->running);
    return NULL;
}

/* One starter at a time; the crew, zeroed at first, stays where it is until it is joined. */
static inline void crew_start(struct crew *c, enum where where, void (*fn)(void *), void *arg)
{
    EXPECT_LT(c->count, CREW_MAX);
    struct crew_member *m = &c->member[c->count++];
    *m = (struct crew_member){fn, arg, c};
    loam_waitgroup_add(&c->running, 1);
    if (where == ON_GOROUTINE) {
        go(crew_goroutine, m);
    } else {
        c->thread[c->threads++] = thread_start(crew_thread, m);
    }
}

static inline void crew_join(struct crew *c)
{
    loam_waitgroup_wait(&c->running);
    for (size_t i = 0; i < c->threads; i++) {
        thread_join(c->thread[i]);
    }
    c->count = c->threads = 0;
}

/* ---- a case that hangs ----
 *
 * says where its goroutines are, and aborts. --patience N: after so many seconds. */

SCANS static inline const char *watched_case(void)
{
    return test_state.name;
}

static inline void *watch_for_hangs(void *arg)
{
    double seconds = (double)test_number("patience", TEST_SANITIZED || emulated() ? 240 : 50) +
                     2 * (double)test_number("seconds", 0);
    const char *name = NULL;
    uint64_t since = now_ns();
    for (;;) {
        sleep_us(100000);
        if (watched_case() != name) {
            name = watched_case();
            since = now_ns();
        } else if (name != NULL && seconds_since(since) > seconds) {
            fprintf(stderr, "%s: not done after %g s\n", name, seconds);
            loam_write_goroutines(STDERR_FILENO);
            abort();
        }
    }
    return arg;
}

/* The thread never attaches: to the library it is not there. */
static inline void start_watching(void)
{
    pthread_attr_t attr;
    pthread_t t;
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    EXPECT_EQ(pthread_attr_init(&attr), 0);
    EXPECT_EQ(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED), 0);
    EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &all, &before), 0);
    EXPECT_EQ(pthread_create(&t, &attr, watch_for_hangs, NULL), 0);
    EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    pthread_attr_destroy(&attr);
}

/* The case once more, as a goroutine. */
struct go_case {
    void (*run)(void);
};

static inline void go_case_main(void *arg)
{
    ((struct go_case *)arg)->run();
}

static inline void go_case_run(const char *name, void (*run)(void))
{
    const char *only = test_argument("only");
    if (only != NULL && strcmp(only, name) != 0) {
        return;
    }
    struct go_case c = {run};
    uint64_t start = now_ns();
    test_state.name = name;
    go_run(go_case_main, &c);
    test_state.name = NULL;
    printf("ok %s (%.3f s)\n", name, seconds_since(start));
    fflush(stdout);
}

/* On a plain thread, then on a goroutine: --only NAME and --only NAME_go. */
#define RUN_BOTH(test)                    \
    do {                                  \
        RUN(test);                        \
        go_case_run(#test "_go", (test)); \
    } while (0)

#endif
