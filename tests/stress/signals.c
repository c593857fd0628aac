/* Every thread has a timer of its own that signals it a thousand times a second; the handler allocates, stores and
 * verifies, and interrupts a thread that does the same, also inside the library and inside the handshake of a cycle.
 *
 * --threads N, --seconds N, --hz N
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 120
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | --threads 4 | 120
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 120 */
#include "../support/test.h"

#include <sys/syscall.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    struct item *next;
    uint64_t id;
    uint64_t check;
    struct item *other;
} item;
LOAM_TYPE(item, next, other);

static item *item_new(uint64_t id)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    EXPECT_EQ(it->check, 0);
    it->id = id;
    it->check = rng_mix(id);
    return it;
}

/* What is linked to a fresh item lets go of the rest, so that no chain grows. */
static void cut_off(item *it)
{
    LOAM_SET(it->next, NULL);
    LOAM_SET(it->other, NULL);
}

static void item_check(const item *it)
{
    EXPECT_NOT_NULL(it);
    EXPECT_EQ(it->check, rng_mix(it->id));
}

enum { SHARED = 256, MINE = 16 };
static item *_Atomic shared[SHARED];
static __thread item *of_handler[MINE];
static __thread item *of_both; /* the handler and the interrupted code store here */
static __thread struct rng handler_rng;
static __thread uint64_t handled;
static _Atomic(uint64_t) handled_in_all;
static _Atomic(bool) stop;

static void on_timer(int signo)
{
    int saved = errno;
    struct rng *rng = &handler_rng;
    size_t i = rng_below(rng, MINE);
    (void)signo;
    handled++;
    if (of_handler[i] != NULL) {
        item_check(of_handler[i]);
        cut_off(of_handler[i]);
    }
    item *it = item_new(rng_next(rng));
    LOAM_SET(it->other, of_handler[i]);
    of_handler[i] = it;
    item *taken = loam_exchange(&shared[rng_below(rng, SHARED)], it);
    if (taken != NULL) {
        item_check(taken);
        LOAM_SET(it->next, taken);
        cut_off(taken);
    }
    if (of_both != NULL) {
        item_check(of_both);
    }
    of_both = it;
    if (rng_below(rng, 8) == 0) {
        EXPECT_NOT_NULL(loam_alloc_noscan(rng_below(rng, 40000)));
    }
    for (size_t n = rng_below(rng, 30); n > 0; n--) {
        item_new(n);
    }
    errno = saved;
}

static timer_t timer_for_me(uint64_t hz)
{
    timer_t timer;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN + 3;
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    EXPECT_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    long period = (long)(1000000000 / hz);
    struct itimerspec spec = {{0, period}, {0, period}};
    EXPECT_EQ(timer_settime(timer, 0, &spec, NULL), 0);
    return timer;
}

static void *work(void *arg)
{
    struct team_member *me = arg;
    item *kept[MINE] = {NULL};
    sigset_t timer_signal;
    sigemptyset(&timer_signal);
    sigaddset(&timer_signal, SIGRTMIN + 3);
    handler_rng = rng_stream(5000 + me->index);
    timer_t timer = timer_for_me(test_number("hz", 1000));
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, MINE);
        item *it = item_new(rng_next(&me->rng));
        LOAM_SET(it->next, kept[i]);
        if (kept[i] != NULL) {
            item_check(kept[i]);
            cut_off(kept[i]);
        }
        kept[i] = it;
        of_both = it;
        item *taken = loam_exchange(&shared[rng_below(&me->rng, SHARED)], it);
        if (taken != NULL) {
            item_check(taken);
            cut_off(taken);
        }
        if (rng_below(&me->rng, 500) == 0) {
            item **array = LOAM_NEW_POINTERS(item, rng_between(&me->rng, 1, 8000));
            LOAM_SET(array[0], it);
            item_check(array[0]);
        }
        if (rng_below(&me->rng, 3000) == 0) {
            loam_gc();
        }
        if (rng_below(&me->rng, 1000) == 0) {
            /* A handler that runs in here touches no heap memory, or it waits: the thread has promised. */
            EXPECT_EQ(pthread_sigmask(SIG_BLOCK, &timer_signal, NULL), 0);
            loam_enter_blocking();
            sleep_us(300);
            loam_exit_blocking();
            EXPECT_EQ(pthread_sigmask(SIG_UNBLOCK, &timer_signal, NULL), 0);
        }
    }
    EXPECT_EQ(timer_delete(timer), 0);
    for (size_t i = 0; i < MINE; i++) {
        if (kept[i] != NULL) {
            item_check(kept[i]);
        }
    }
    atomic_fetch_add(&handled_in_all, handled);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct team team;
    struct sigaction sa;

    test_begin(argc, argv);
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_timer;
    sa.sa_flags = SA_RESTART;
    sigemptyset(&sa.sa_mask);
    EXPECT_EQ(sigaction(SIGRTMIN + 3, &sa, NULL), 0);
    team_start(&team, test_number("threads", 8), work, NULL);
    sleep_us(test_number("seconds", 8) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    for (size_t i = 0; i < SHARED; i++) {
        if (atomic_load(&shared[i]) != NULL) {
            item_check(atomic_load(&shared[i]));
        }
    }
    printf("%" PRIu64 " signals handled\n", atomic_load(&handled_in_all));
    EXPECT_GT(atomic_load(&handled_in_all), 100);
    return test_end();
}
