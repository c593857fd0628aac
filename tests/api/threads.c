/* Threads attach by allocating and detach by ending, thousands of them, in any way that C starts threads; what a thread
 * holds lives exactly as long as it is attached and holds it.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 90 */
#include "../support/test.h"

#include <sys/mman.h>
#include <threads.h>

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

/* ---- attaching ---- */

static void *attach_in_every_order(void *arg)
{
    (void)arg;
    loam_detach(); /* never attached: nothing */
    loam_detach();
    EXPECT_EQ(loam_attach(), 0);
    EXPECT_EQ(loam_attach(), 0);
    item *it = item_new(1, NULL);
    loam_gc();
    EXPECT_EQ(list_check(it), 1);
    EXPECT_EQ(loam_attach(), 0);
    it = NULL;
    loam_detach();
    loam_detach();
    it = item_new(2, NULL); /* attaches again */
    loam_gc();
    EXPECT_EQ(list_check(it), 1);
    loam_detach();
    EXPECT_EQ(loam_attach(), 0);
    return NULL;
}

static void attach_and_detach(void)
{
    for (int i = 0; i < 50; i++) {
        thread_run(attach_in_every_order, NULL);
    }
}

static void the_main_thread_detaches_too(void)
{
    loam_detach();
    thread_run(attach_in_every_order, NULL);
    item *it = item_new(3, NULL);
    loam_gc();
    EXPECT_EQ(list_check(it), 1);
}

static int c11_thread(void *arg)
{
    size_t length = *(size_t *)arg;
    item *list = list_new(length);
    loam_gc();
    return (int)list_check(list);
}

static void c11_threads(void)
{
    for (size_t i = 0; i < 20; i++) {
        thrd_t t;
        int result = 0;
        size_t length = i * 100;
        EXPECT_EQ(thrd_create(&t, c11_thread, &length), thrd_success);
        EXPECT_EQ(thrd_join(t, &result), thrd_success);
        EXPECT_EQ(result, length);
    }
}

/* ---- what a thread holds ---- */

static void *short_life(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    size_t length = rng_between(&rng, 1, 60);
    EXPECT_EQ(list_check(list_new(length)), length);
    return NULL;
}

static void two_thousand_short_threads(void)
{
    enum { AT_ONCE = 8 };
    pthread_t t[AT_ONCE];
    size_t rounds = test_scaled(2000) / AT_ONCE;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (size_t i = 0; i < rounds; i++) {
        for (size_t k = 0; k < AT_ONCE; k++) {
            t[k] = thread_start(short_life, (void *)(i * AT_ONCE + k));
        }
        for (size_t k = 0; k < AT_ONCE; k++) {
            thread_join(t[k]);
        }
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

/* Each holds a batch in its frame until told to end; then the batch is garbage. */
static struct watch batch;
static _Atomic(size_t) holding;

static void *hold_until_stop(void *arg)
{
    enum { EACH = 100 };
    struct team_member *me = arg;
    item *mine[EACH];
    for (size_t i = 0; i < EACH; i++) {
        mine[i] = item_new(i, NULL);
        watch_set(&batch, me->index * EACH + i, mine[i]);
    }
    atomic_fetch_add(&holding, 1);
    while (!atomic_load(&stop)) {
        sleep_us(1000);
    }
    for (size_t i = 0; i < EACH; i++) {
        EXPECT_EQ(list_check(mine[i]), 1);
    }
    return NULL;
}

static void held_until_the_end_of_the_thread(void)
{
    static struct team team;
    atomic_store(&stop, false);
    atomic_store(&holding, 0);
    watch_init(&batch, 16 * 100);
    team_start(&team, 16, hold_until_stop, NULL);
    WAIT_FOR(20, atomic_load(&holding) == 16);
    for (int i = 0; i < 5; i++) {
        EXPECT_ALL_LIVE(&batch);
    }
    atomic_store(&stop, true);
    team_join(&team);
    EXPECT_MOST_DIE(&batch);
}

/* A detached thread's stack is not searched. */
static _Atomic(int) stage;

static void *hold_detached(void *arg)
{
    item *mine[500];
    (void)arg;
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        mine[i] = item_new(i, NULL);
        watch_set(&batch, i, mine[i]);
    }
    atomic_store(&stage, 1);
    WAIT_FOR(20, atomic_load(&stage) == 2);
    loam_keep_alive(mine[0]);
    loam_detach();
    atomic_store(&stage, 3);
    WAIT_FOR(60, atomic_load(&stage) == 4);
    __asm__ volatile("" : : "r"(mine) : "memory");
    return NULL;
}

static void not_held_when_detached(void)
{
    watch_init(&batch, 500);
    atomic_store(&stage, 0);
    pthread_t t = thread_start(hold_detached, NULL);
    WAIT_FOR(20, atomic_load(&stage) == 1);
    EXPECT_ALL_LIVE(&batch);
    atomic_store(&stage, 2);
    WAIT_FOR(20, atomic_load(&stage) == 3);
    EXPECT_MOST_DIE(&batch);
    atomic_store(&stage, 4);
    thread_join(t);
}

/* A pointer that only a register or a deep frame holds, in a thread that calls nothing. */
static _Atomic(size_t) spinning;

static void *hold_and_compute(void *arg)
{
    (void)arg;
    item *list = item_new(1, item_new(2, NULL));
    uint64_t x = 1;
    atomic_fetch_add(&spinning, 1);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        for (int i = 0; i < 1000; i++) {
            x = rng_mix(x);
        }
        __asm__ volatile("" : "+r"(list) : "r"(x)); /* in a register at each turn */
    }
    EXPECT_EQ(list_check(list), 2);
    return NULL;
}

static void computing_threads_hold_nothing_up(void)
{
    static struct team team;
    atomic_store(&stop, false);
    atomic_store(&spinning, 0);
    team_start(&team, 4, hold_and_compute, NULL);
    WAIT_FOR(20, atomic_load(&spinning) == 4);
    for (int i = 0; i < 20; i++) {
        uint64_t start = now_ns();
        loam_gc();
        EXPECT_MSG(seconds_since(start) < 10, "a collection took %g s beside computing threads",
                   seconds_since(start));
        for (uint64_t k = 0; k < 1000; k++) {
            item_new(k, NULL);
        }
    }
    atomic_store(&stop, true);
    team_join(&team);
}

/* ---- stacks of unusual size ---- */

static NOINLINE size_t recurse(size_t levels, const item *outer)
{
    item *here = item_new(levels, NULL);
    size_t below = 0;
    if (levels > 0) {
        below = recurse(levels - 1, here);
    } else {
        loam_gc();
    }
    EXPECT_EQ(list_check(here), 1);
    return below + 1 + (outer != NULL ? list_check(outer) - 1 : 0);
}

static void *deep_recursion(void *arg)
{
    size_t levels = *(size_t *)arg;
    EXPECT_EQ(recurse(levels, NULL), levels + 1);
    return NULL;
}

static void run_with_stack(size_t bytes, size_t levels)
{
    pthread_attr_t attr;
    pthread_t t;
    long least = sysconf(_SC_THREAD_STACK_MIN); /* 128 KiB on 64-bit ARM */
    EXPECT_EQ(pthread_attr_init(&attr), 0);
    EXPECT_EQ(pthread_attr_setstacksize(&attr, least > (long)bytes ? (size_t)least : bytes), 0);
    EXPECT_EQ(pthread_create(&t, &attr, deep_recursion, &levels), 0);
    thread_join(t);
    pthread_attr_destroy(&attr);
}

static void detached_threads_and_tiny_stacks(void)
{
    run_with_stack(64 * 1024, 50);
    run_with_stack(64 << 20, TEST_TSAN ? 1000 : 100000); /* it copies call chains */
    run_with_stack(128 * 1024, 200);
    atomic_store(&stop, false);
    atomic_store(&holding, 0);
    pthread_attr_t attr;
    EXPECT_EQ(pthread_attr_init(&attr), 0);
    EXPECT_EQ(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED), 0);
    for (size_t i = 0; i < 50; i++) {
        pthread_t t;
        EXPECT_EQ(pthread_create(&t, &attr, short_life, (void *)i), 0);
    }
    pthread_attr_destroy(&attr);
    loam_gc();
}

/* As runtimes of other languages start theirs: the stack is memory of their own, and every signal is masked from the
 * first instruction on. */
static pthread_t foreign_start(char *stack, size_t bytes, void *(*fn)(void *), void *arg)
{
    pthread_attr_t attr;
    pthread_t t;
    sigset_t all, before;
    sigfillset(&all);
    EXPECT_EQ(pthread_attr_init(&attr), 0);
    EXPECT_EQ(pthread_attr_setstack(&attr, stack, bytes), 0);
    EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &all, &before), 0); /* the new thread inherits it */
    EXPECT_EQ(pthread_create(&t, &attr, fn, arg), 0);
    EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    pthread_attr_destroy(&attr);
    return t;
}

/* Its frames alone hold the batch; it calls the library now and then, or is not waited for. */
static void *foreign_main(void *arg)
{
    enum { EACH = 100 };
    size_t index = (uintptr_t)arg;
    item *mine[EACH];
    for (size_t i = 0; i < EACH; i++) {
        mine[i] = item_new(i, NULL);
        watch_set(&batch, index * EACH + i, mine[i]);
    }
    atomic_fetch_add(&holding, 1);
    while (!atomic_load(&stop)) {
        item_new(0, NULL);
        loam_enter_blocking();
        sleep_us(100);
        loam_exit_blocking();
    }
    for (size_t i = 0; i < EACH; i++) {
        EXPECT_EQ(list_check(mine[i]), 1);
    }
    return NULL;
}

static void threads_of_a_foreign_runtime(void)
{
    enum { THREADS = 4, BYTES = 1 << 20 };
    pthread_t t[THREADS];
    char *stacks = mmap(NULL, THREADS * BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, 0);
    EXPECT_PTR_NE(stacks, MAP_FAILED);
    for (int round = 0; round < 5;
         round++) { /* the same stacks, with what the last ones left there */
        atomic_store(&stop, false);
        atomic_store(&holding, 0);
        watch_init(&batch, THREADS * 100);
        for (size_t i = 0; i < THREADS; i++) {
            t[i] = foreign_start(stacks + i * BYTES, BYTES, foreign_main, (void *)i);
        }
        WAIT_FOR(20, atomic_load(&holding) == THREADS);
        for (int i = 0; i < 5; i++) {
            EXPECT_ALL_LIVE(&batch);
        }
        atomic_store(&stop, true);
        for (size_t i = 0; i < THREADS; i++) {
            thread_join(t[i]);
        }
        EXPECT_MOST_DIE(&batch);
    }
    EXPECT_EQ(munmap(stacks, THREADS * BYTES), 0);
    loam_gc(); /* does not look there any more */
}

/* A thread ended by pthread_exit from deep frames, and one cancelled while it waits. */
static void *exit_from_below(void *arg)
{
    item *list = item_new(1, NULL);
    if (list_check(list) == 1) {
        pthread_exit(arg);
    }
    return NULL;
}

static void *wait_for_ever(void *arg)
{
    item *list = item_new(1, NULL);
    atomic_fetch_add(&holding, 1);
    for (;;) {
        sleep(1);
        EXPECT_EQ(list_check(list), 1);
    }
    return arg;
}

static void ended_by_exit_and_cancel(void)
{
    for (size_t i = 0; i < 30; i++) {
        pthread_t t = thread_start(exit_from_below, &stage);
        EXPECT_PTR_EQ(thread_join(t), &stage);
        if (TEST_TSAN) { /* it sees no locks of a thread that was cancelled in a call it intercepts */
            continue;
        }
        atomic_store(&holding, 0);
        t = thread_start(wait_for_ever, NULL);
        WAIT_FOR(20, atomic_load(&holding) == 1);
        EXPECT_EQ(pthread_cancel(t), 0);
        if (i % 2 == 0) {
            loam_gc();
        }
        EXPECT_PTR_EQ(thread_join(t), PTHREAD_CANCELED);
        loam_gc();
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(attach_and_detach);
    RUN(the_main_thread_detaches_too);
    if (!TEST_TSAN) { /* it does not know of thrd_create */
        RUN(c11_threads);
    }
    RUN(two_thousand_short_threads);
    RUN(held_until_the_end_of_the_thread);
    RUN(not_held_when_detached);
    RUN(computing_threads_hold_nothing_up);
    RUN(detached_threads_and_tiny_stacks);
    RUN(threads_of_a_foreign_runtime);
    RUN(ended_by_exit_and_cancel);
    return test_end();
}
