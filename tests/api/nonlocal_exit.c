/* longjmp over frames loses nothing that the remaining frames hold, and holds nothing for ever that the abandoned
 * frames held; out of signal handlers too, while the thread allocates.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 60 */
#include "../support/test.h"

#include <setjmp.h>

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

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Winfinite-recursion" /* the way out is longjmp */
#endif
static NOINLINE bool descend(jmp_buf *out, struct rng *rng, size_t levels, const item *outer)
{
    item *here = item_new(levels, NULL);
    for (size_t i = rng_below(rng, 20); i > 0; i--) {
        item_new(i, NULL);
    }
    item_check(outer);
    if (levels == 0) {
        longjmp(*out, 1);
    }
    return descend(out, rng, levels - 1, here) && here->id == levels; /* not a tail call */
}

static void over_frames(void)
{
    struct rng rng = rng_stream(1);
    item *volatile kept[8];
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (size_t i = 0; i < COUNT_OF(kept); i++) {
        kept[i] = item_new(i, NULL);
    }
    size_t rounds = test_scaled(3000);
    for (volatile size_t i = 0; i < rounds; i++) {
        jmp_buf out;
        if (setjmp(out) == 0) {
            descend(&out, &rng, rng_between(&rng, 1, 60), kept[i % COUNT_OF(kept)]);
        }
        for (size_t k = 0; k < COUNT_OF(kept); k++) {
            item_check(kept[k]);
        }
        kept[i % COUNT_OF(kept)] = item_new(i, NULL);
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

/* Left by siglongjmp from a handler that interrupted a computation: the heap goes on, also when the handshake of a cycle
 * was pending or arrived in the handler. */
static sigjmp_buf leave;
static _Atomic(bool) may_leave;
static _Atomic(uint64_t) left;

static void leave_handler(int signo)
{
    (void)signo;
    if (atomic_exchange(&may_leave, false)) {
        siglongjmp(leave, 1);
    }
}

static pthread_t victim;

static void *shoot(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        EXPECT_EQ(pthread_kill(victim, SIGUSR1), 0);
        sleep_us(500);
    }
    return NULL;
}

/* Only the program's own code is left here: a computation between heap uses. */
static NOINLINE uint64_t compute(uint64_t x)
{
    for (int i = 0; i < 2000; i++) {
        x = rng_mix(x);
    }
    return x;
}

static void out_of_signal_handlers(void)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = leave_handler;
    sa.sa_flags = SA_RESTART;
    sigemptyset(&sa.sa_mask);
    EXPECT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
    victim = pthread_self();
    atomic_store(&stop, false);
    item *volatile kept = item_new(1, NULL);
    volatile uint64_t x = 1;
    pthread_t collector = thread_start(collect_until_stop, NULL);
    pthread_t shooter = thread_start(shoot, NULL);
    volatile uint64_t start = now_ns();
    while (seconds_since(start) < 0.5 * (double)test_number("seconds", 1)) {
        if (sigsetjmp(leave, 1) == 0) {
            atomic_store(&may_leave, true);
            for (int i = 0; i < 100; i++) {
                x = compute(x);
            }
            atomic_store(&may_leave, false);
        } else {
            atomic_fetch_add(&left, 1);
        }
        item_check(kept);
        item *fresh = item_new(x, NULL);
        LOAM_SET(fresh->next, kept);
        LOAM_SET(kept->next, NULL);
        kept = fresh;
    }
    atomic_store(&stop, true);
    thread_join(shooter);
    thread_join(collector);
    EXPECT_GT(atomic_load(&left), 0);
}

/* What the abandoned frames held is garbage. */
static struct watch batch;

static void abandon(void *arg)
{
    (void)arg;
    for (volatile size_t i = 0; i < batch.count; i++) {
        jmp_buf out;
        struct rng rng = rng_stream(i);
        item *it = item_new(i, NULL);
        watch_set(&batch, i, it);
        if (setjmp(out) == 0) {
            descend(&out, &rng, 3, it);
        }
    }
}

static void abandoned_frames_hold_nothing(void)
{
    watch_init(&batch, 500);
    call_deep(abandon, NULL);
    EXPECT_MOST_DIE(&batch);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(over_frames);
    RUN(out_of_signal_handlers);
    RUN(abandoned_frames_hold_nothing);
    return test_end();
}
