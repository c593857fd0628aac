/* A signal handler of the program's own may allocate and store, wherever it interrupts: 1000 times a second, on threads
 * that allocate and store themselves, on an alternate stack too, also on the signal that the library uses.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 90 */
#include "../support/test.h"

#include <sys/mman.h>

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

enum { SHARED = 64 };
static item *_Atomic shared[SHARED];
static __thread item *mine_in_handler;
static _Atomic(uint64_t) handled;
static _Atomic(bool) stop;

/* Allocates, stores into the heap, a static and a thread-local, reads what others stored. */
static void work_in_handler(int signo)
{
    int saved = errno;
    uint64_t n = atomic_fetch_add(&handled, 1);
    item *list = NULL;
    (void)signo;
    for (uint64_t i = 0; i < 5; i++) {
        list = item_new(n + i, list);
    }
    if (mine_in_handler != NULL) {
        item_check(mine_in_handler);
        item *tail = LOAD_SLOT(mine_in_handler->next); /* another thread may cut it off */
        if (tail != NULL) {
            item_check(tail);
            LOAM_SET(tail->next, NULL);
            LOAM_SET(list->next->next->next->next->next, tail);
        }
    }
    mine_in_handler = list;
    item *old = loam_exchange(&shared[n % SHARED], list);
    if (old != NULL) {
        item_check(old);
        LOAM_SET(old->next, NULL); /* so that the chains end */
    }
    void *p = loam_alloc_noscan(n % 5000);
    EXPECT_NOT_NULL(p);
    errno = saved;
}

static void install(int signo, int flags)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = work_in_handler;
    sa.sa_flags = SA_RESTART | flags;
    sigemptyset(&sa.sa_mask);
    EXPECT_EQ(sigaction(signo, &sa, NULL), 0);
}

static void *use_heap(void *arg)
{
    struct team_member *me = arg;
    item *kept[32] = {NULL};
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, COUNT_OF(kept));
        item *it = item_new(rng_next(&me->rng), NULL);
        LOAM_SET(it->next, kept[i]);
        if (kept[i] != NULL) {
            item_check(kept[i]);
            LOAM_SET(kept[i]->next, NULL);
        }
        kept[i] = it;
        item *old = loam_exchange(&shared[rng_below(&me->rng, SHARED)], it);
        if (old != NULL) {
            item_check(old);
        }
        if (rng_below(&me->rng, 64) == 0) {
            loam_free(loam_alloc(rng_below(&me->rng, 3000)));
        }
    }
    return NULL;
}

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

/* Signals to every thread in turn, a thousand a second each. */
static void storm(struct team *team, int signo)
{
    uint64_t start = now_ns();
    double seconds = (double)test_number("seconds", 1) * 0.7;
    atomic_store(&stop, false);
    atomic_store(&handled, 0);
    for (size_t i = 0; i < SHARED; i++) {
        LOAM_SET(shared[i], NULL);
    }
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(team, 3, use_heap, NULL);
    /* Longer where the threads are slow to get going. */
    while (seconds_since(start) < seconds ||
           (atomic_load(&handled) <= 10 && seconds_since(start) < 20)) {
        for (size_t i = 0; i < team->count; i++) {
            EXPECT_EQ(pthread_kill(team->thread[i], signo), 0);
        }
        EXPECT_EQ(pthread_kill(collector, signo), 0); /* it is in loam_gc nearly always */
        sleep_us(1000);
    }
    atomic_store(&stop, true);
    team_join(team);
    thread_join(collector);
    EXPECT_GT(atomic_load(&handled), TEST_TSAN ? 1 : 10);
    printf("  %" PRIu64 " signals handled\n", atomic_load(&handled));
}

static struct team team;

static void on_the_threads_stack(void)
{
    install(SIGUSR1, 0);
    storm(&team, SIGUSR1);
}

static void nested(void)
{
    install(SIGUSR1, SA_NODEFER);
    storm(&team, SIGUSR1);
}

/* The program's handler for the library's own signal: there first, so it is called for signals that are not the
 * library's.  It was installed in main, before the first allocation. */
static void on_the_librarys_signal(void)
{
    storm(&team, SIGURG);
}

/* ---- by timer, on an alternate stack that is registered ---- */

static void *alternate_stack(void *arg)
{
    enum { BYTES = 128 * 1024 };
    struct team_member *me = arg;
    char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_PTR_NE(memory, MAP_FAILED);
    stack_t ss = {.ss_sp = memory, .ss_size = BYTES};
    loam_stack *stack = loam_stack_add(memory, BYTES, NULL);
    EXPECT_NOT_NULL(stack);
    EXPECT_EQ(sigaltstack(&ss, NULL), 0);
    use_heap(me);
    ss.ss_flags = SS_DISABLE;
    EXPECT_EQ(sigaltstack(&ss, NULL), 0);
    loam_stack_remove(stack);
    munmap(memory, BYTES);
    return NULL;
}

static void by_timer_on_an_alternate_stack(void)
{
    timer_t timer;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR2;
    install(SIGUSR2, SA_ONSTACK);
    atomic_store(&stop, false);
    atomic_store(&handled, 0);
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    EXPECT_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    team_start(&team, 3, alternate_stack, NULL);
    EXPECT_EQ(pthread_sigmask(SIG_BLOCK, &set, &old), 0); /* the others take them */
    struct itimerspec spec = {{0, 1000000}, {0, 1000000}};
    EXPECT_EQ(timer_settime(timer, 0, &spec, NULL), 0);
    for (uint64_t start = now_ns();
         seconds_since(start) < (double)test_number("seconds", 1) * 0.7;) {
        loam_gc();
    }
    EXPECT_EQ(timer_delete(timer), 0);
    atomic_store(&stop, true);
    team_join(&team);
    EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &old, NULL), 0);
    EXPECT_GT(atomic_load(&handled), TEST_TSAN ? 1 : 10);
    printf("  %" PRIu64 " signals handled\n", atomic_load(&handled));
}

/* A thread that has every signal blocked is waited for until it next calls the library, and keeps what it holds. (One
 * that does not call: masked_thread.c.) */
static _Atomic(int) stage;

static void *block_everything(void *arg)
{
    sigset_t set;
    sigfillset(&set);
    EXPECT_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    item *it = item_new(7, NULL);
    atomic_store(&stage, 1);
    uint64_t x = 1;
    for (uint64_t n = 0; atomic_load(&stage) == 1; n++) {
        x = rng_mix(x);
        if (n % 4096 == 0) {
            item_check(it);
            item_new(n, NULL);
        }
    }
    item_check(it);
    return arg;
}

static void with_all_signals_blocked(void)
{
    atomic_store(&stage, 0);
    pthread_t t = thread_start(block_everything, NULL);
    WAIT_FOR(20, atomic_load(&stage) == 1);
    for (int i = 0; i < 50; i++) {
        uint64_t start = now_ns();
        loam_gc();
        EXPECT_MSG(seconds_since(start) < 10, "a collection took %g s", seconds_since(start));
    }
    atomic_store(&stage, 2);
    thread_join(t);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    install(SIGURG, 0);
    RUN(on_the_threads_stack);
    RUN(nested);
    RUN(on_the_librarys_signal);
    RUN(by_timer_on_an_alternate_stack);
    RUN(with_all_signals_blocked);
    return test_end();
}
