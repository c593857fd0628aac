/* threads.h - starting, joining and meeting. */
#ifndef TESTS_SUPPORT_THREADS_H
#define TESTS_SUPPORT_THREADS_H

#include "test.h"

#include <pthread.h>

enum { TEST_THREADS_MAX = 1024 };

static inline pthread_t thread_start(void *(*fn)(void *), void *arg)
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

static inline void *thread_join(pthread_t t)
{
    void *result = NULL;
    EXPECT_EQ(pthread_join(t, &result), 0);
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
};

static inline void *team_member_main(void *arg)
{
    struct team_member *me = arg;
    EXPECT_EQ(loam_attach(), 0);
    return me->fn(me);
}

struct team {
    pthread_t thread[TEST_THREADS_MAX];
    struct team_member member[TEST_THREADS_MAX];
    size_t count;
};

static inline void team_start(struct team *team, size_t count, void *(*fn)(void *), void *arg)
{
    EXPECT_LE(count, TEST_THREADS_MAX);
    team->count = count;
    for (size_t i = 0; i < count; i++) {
        team->member[i] = (struct team_member){i, count, rng_stream(i + 1000), arg, fn};
        team->thread[i] = thread_start(team_member_main, &team->member[i]);
    }
}

static inline void team_join(struct team *team)
{
    for (size_t i = 0; i < team->count; i++) {
        thread_join(team->thread[i]);
    }
}

#endif
