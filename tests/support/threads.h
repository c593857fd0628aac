/* threads.h - starting, joining and meeting. */
#ifndef TESTS_SUPPORT_THREADS_H
#define TESTS_SUPPORT_THREADS_H

#include "test.h"

#include <pthread.h>

#include <loam.h>

enum { TEST_THREADS_MAX = 1024 };

static inline pthread_t thread_create(void *(*fn)(void *), void *arg)
{
    pthread_t t;
    int err = 0;
    for (int tries = 0; tries < 1000; tries++) {
        err = pthread_create(&t, NULL, fn, arg);
        if (err != EAGAIN) {
            break;
        }
        sleep_us(1000); /* the kernel is still burying earlier ones */
    }
    EXPECT_EQ(err, 0);
    return t;
}

/* Under a sanitizer the thread is running fn when this returns. Its runtime allocates while a thread starts and can be
 * neither interrupted there by a handler that does the same (pthread_getattr_np) nor forked (its locks stay taken in
 * the child): that would test the sanitizer. */
struct thread_starting {
    void *(*fn)(void *);
    void *arg;
    _Atomic(bool) *started;
};

static inline void *thread_started(void *arg)
{
    struct thread_starting s = *(struct thread_starting *)arg;
    atomic_store(s.started, true);
    return s.fn(s.arg);
}

static inline pthread_t thread_start(void *(*fn)(void *), void *arg)
{
    if (!TEST_SANITIZED) {
        return thread_create(fn, arg);
    }
    _Atomic(bool) started = false;
    struct thread_starting s = {fn, arg, &started};
    pthread_t t = thread_create(thread_started, &s);
    while (!atomic_load(&started)) {
        sleep_us(10);
    }
    return t;
}

/* Blocked under ThreadSanitizer: it delivers a signal at once to a thread that joins, be it in the C library with the lock
 * of the stacks, and to one that makes a thread, and waits for that lock, when it has it. With gcstoptheworld=1 the one
 * stands still with it, and the other never does. */
static inline void *thread_join(pthread_t t)
{
    void *result = NULL;
    if (TEST_TSAN) {
        loam_enter_blocking();
    }
    EXPECT_EQ(pthread_join(t, &result), 0);
    if (TEST_TSAN) {
        loam_exit_blocking();
    }
    return result;
}

/* fn(arg) on a thread of its own, ended when this returns. */
static inline void thread_run(void *(*fn)(void *), void *arg)
{
    thread_join(thread_start(fn, arg));
}

/* A team runs fn(member) on `count` threads; each member knows its number and has its own random numbers, and is
 * attached from the start: a member may hold heap pointers before it allocates (rule 1). */
struct team_member {
    size_t index;
    size_t count;
    struct rng rng;
    void *arg;
    void *(*fn)(void *);
    _Atomic(size_t) *attached;
};

static inline void *team_member_main(void *arg)
{
    struct team_member *me = arg;
    EXPECT_EQ(loam_attach(), 0);
    atomic_fetch_add(me->attached, 1);
    return me->fn(me);
}

struct team {
    pthread_t thread[TEST_THREADS_MAX];
    struct team_member member[TEST_THREADS_MAX];
    size_t count;
    _Atomic(size_t) attached;
};

static inline void team_start(struct team *team, size_t count, void *(*fn)(void *), void *arg)
{
    EXPECT_LE(count, TEST_THREADS_MAX);
    team->count = count;
    atomic_store(&team->attached, 0);
    for (size_t i = 0; i < count; i++) {
        team->member[i] = (struct team_member){i,   count, rng_stream(i + 1000),
                                               arg, fn,    &team->attached};
        team->thread[i] = thread_start(team_member_main, &team->member[i]);
    }
    while (TEST_SANITIZED &&
           atomic_load(&team->attached) < count) { /* thread_start has the reason */
        sleep_us(10);
    }
}

static inline void team_join(struct team *team)
{
    for (size_t i = 0; i < team->count; i++) {
        thread_join(team->thread[i]);
    }
}

#endif
