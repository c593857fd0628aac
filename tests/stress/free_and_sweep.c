/* Threads free objects whose span holds nothing else, large ones and those of a page, while cycles sweep the same spans
 * and others take the pages: nobody else's object goes, is overwritten, or comes unzeroed.  Who frees is interrupted
 * often and for long, so that a sweep may overtake it anywhere.
 *
 * --threads N (of each kind), --seconds N
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | GOGC=5 | | 120
 * TEST_RUN: clobberfree | GOGC=5 GODEBUG=clobberfree=1 | | 120 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/threads.h"

enum { PAGE = 8192, LARGE = 40 * 1024, HELD = 128, STRIDE = 64 };

static _Atomic(bool) stop;

static void give_way(void)
{
    if (TEST_TSAN) { /* it delivers signals in calls that it knows */
        sleep_us(10);
    } else {
        sched_yield();
    }
}

/* Until marking has ended, when sweeping is about to begin. */
static void await_sweep(struct rng *rng)
{
    while (LOAD_SLOT(loam_write_barrier) == 0 && !atomic_load(&stop)) {
        give_way();
    }
    while (LOAD_SLOT(loam_write_barrier) != 0 && !atomic_load(&stop)) {
        give_way();
    }
    for (size_t n = rng_below(rng, 20000); n > 0; n--) {
        __asm__ volatile("");
    }
}

static void take_a_nap(int signo)
{
    int saved = errno;
    (void)signo;
    sleep_us(100);
    errno = saved;
}

static void *free_often(void *arg)
{
    struct team_member *me = arg;
    void *p[100];
    while (!atomic_load(&stop)) {
        for (size_t i = 0; i < COUNT_OF(p); i++) {
            p[i] = loam_alloc_noscan(rng_below(&me->rng, 4) == 0 ? PAGE : LARGE - 100);
            EXPECT_NOT_NULL(p[i]);
        }
        await_sweep(&me->rng);
        for (size_t i = 0; i < COUNT_OF(p); i++) {
            loam_free(p[i]);
        }
    }
    return NULL;
}

struct held {
    uint64_t *words;
    size_t count;
    uint64_t value; /* of each word */
};

static void held_check(const struct held *h)
{
    EXPECT_PTR_EQ(loam_base(h->words), h->words);
    for (size_t i = 0; i < h->count; i += STRIDE) {
        EXPECT_EQ(h->words[i], h->value);
    }
}

static void held_renew(struct held *h, struct rng *rng)
{
    h->count = (rng_below(rng, 4) == 0 ? PAGE : LARGE) / sizeof *h->words;
    h->value = rng_next(rng);
    h->words = loam_alloc_noscan(h->count * sizeof *h->words);
    EXPECT_NOT_NULL(h->words);
    for (size_t i = 0; i < h->count; i++) {
        EXPECT_EQ(h->words[i], 0);
        h->words[i] = h->value;
    }
}

static void *hold_and_verify(void *arg)
{
    struct team_member *me = arg;
    struct held held[HELD] = {{NULL, 0, 0}};
    while (!atomic_load(&stop)) {
        struct held *h = &held[rng_below(&me->rng, HELD)];
        if (h->words != NULL) {
            held_check(h);
        }
        held_renew(h, &me->rng);
    }
    return NULL;
}

static void *collect_until_stop(void *arg)
{
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return arg;
}

static void interrupt(const struct team *team, double seconds)
{
    for (uint64_t start = now_ns(); seconds_since(start) < seconds;) {
        for (size_t i = 0; i < team->count; i++) {
            EXPECT_EQ(pthread_kill(team->thread[i], SIGUSR1), 0);
        }
        sleep_us(200);
    }
}

static void freed_while_swept(void)
{
    static struct team freeing, holding;
    size_t threads = test_number("threads", 2);
    struct sigaction sa = {.sa_handler = take_a_nap, .sa_flags = SA_RESTART};
    EXPECT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&freeing, threads, free_often, NULL);
    team_start(&holding, threads, hold_and_verify, NULL);
    interrupt(&freeing, (double)test_number("seconds", 10));
    atomic_store(&stop, true);
    team_join(&freeing);
    team_join(&holding);
    thread_join(collector);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(freed_while_swept);
    return test_end();
}
