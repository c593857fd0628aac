/* A thread that masks the library's signal and computes, calling nothing, cannot be reached: the cycle waits for it, all
 * others run on, after ten seconds a warning names it, and the cycle ends when it has called the library again, be it
 * to allocate or to say that it blocks. Under gcstoptheworld the others wait, too. Nothing it holds is lost.
 *
 * TEST_LABEL: stress
 * TEST_TIMEOUT: 120 */
#include "../support/test.h"

#include <loam/stats.h>
#include <sys/syscall.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static void mask(int how, int signo)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    EXPECT_EQ(pthread_sigmask(how, &set, NULL), 0);
}

static uint32_t cycles(void)
{
    loam_memstats m;
    loam_read_memstats(&m);
    return m.num_gc;
}

/* ---- the thread that computes ---- */

enum stage { STARTING, COMPUTING, TO_CALL, CALLED, TO_END };
static _Atomic(int) stage;
static int library_signal = SIGURG;

static NOINLINE void compute_until(enum stage end)
{
    uint64_t x = 1;
    while (atomic_load_explicit(&stage, memory_order_relaxed) < (int)end) {
        for (int i = 0; i < 1000; i++) {
            x = rng_mix(x);
        }
        __asm__ volatile("" : : "r"(x));
    }
}

/* What it calls in the end, and what is due after that. */
struct way_back {
    void (*call)(void);
    void (*after)(void);
};

static void allocate_one(void)
{
    item_new(0, NULL);
}

static void nothing(void)
{
}

static void *compute_masked(void *arg)
{
    const struct way_back *back = arg;
    mask(SIG_BLOCK, library_signal);
    item *list = list_new(1000);
    fprintf(stderr, "computing: thread %ld\n", syscall(SYS_gettid));
    atomic_store(&stage, COMPUTING);
    compute_until(TO_CALL);
    fprintf(stderr, "calling\n");
    back->call();
    atomic_store(&stage, CALLED);
    compute_until(TO_END);
    back->after();
    EXPECT_EQ(list_check(list), 1000);
    return NULL;
}

/* ---- the others ---- */

static _Atomic(bool) collected;

static void *collect_once(void *arg)
{
    loam_gc();
    atomic_store(&collected, true);
    return arg;
}

/* Allocates, stores and reads for so long; gives the longest time that one turn took. */
static double use_heap(double seconds)
{
    double longest = 0;
    item *volatile list = NULL;
    for (uint64_t start = now_ns(); seconds_since(start) < seconds;) {
        uint64_t turn = now_ns();
        for (uint64_t i = 0; i < 50; i++) {
            list = item_new(i, i == 0 ? NULL : list);
        }
        EXPECT_EQ(list_check(list), 50);
        longest = seconds_since(turn) > longest ? seconds_since(turn) : longest;
        sleep_us(1000);
    }
    return longest;
}

static void others_run_on(struct way_back back)
{
    pthread_t computing = thread_start(compute_masked, &back);
    WAIT_FOR(20, atomic_load(&stage) == COMPUTING);
    uint32_t before = cycles();
    pthread_t collecting = thread_start(collect_once, NULL);
    double longest = use_heap(11);
    EXPECT_MSG(longest < 5, "a turn of a thread that runs took %g s of the 11 s", longest);
    EXPECT(!atomic_load(&collected)); /* the cycle waits */
    EXPECT_EQ(cycles(), before);
    atomic_store(&stage, TO_CALL);
    WAIT_FOR(20, atomic_load(&stage) == CALLED);
    WAIT_FOR(20, atomic_load(&collected) || back.call == allocate_one);
    atomic_store(&stage, TO_END);
    thread_join(computing);
    thread_join(collecting);
    EXPECT_GT(cycles(), before);
}

static void child_allocates(void)
{
    others_run_on((struct way_back){allocate_one, nothing});
}

/* The cycle ends while the thread computes on. */
static void child_blocks(void)
{
    others_run_on((struct way_back){loam_enter_blocking, loam_exit_blocking});
}

static void child_chosen_signal(void)
{
    library_signal = SIGUSR2;
    EXPECT_EQ(loam_set_signal(library_signal), 0);
    child_allocates();
}

/* Everybody waits for the thread, which calls after seven seconds. */
static void *call_in_time(void *arg)
{
    sleep_us(7000000);
    atomic_store(&stage, TO_CALL);
    return arg;
}

static void child_stop_the_world(void)
{
    struct way_back back = {allocate_one, nothing};
    pthread_t computing = thread_start(compute_masked, &back);
    WAIT_FOR(20, atomic_load(&stage) == COMPUTING);
    pthread_t calling = thread_start(call_in_time, NULL);
    uint64_t start = now_ns();
    loam_gc();
    EXPECT_MSG(seconds_since(start) > 6, "a cycle ended after %g s", seconds_since(start));
    WAIT_FOR(20, atomic_load(&stage) == CALLED);
    atomic_store(&stage, TO_END);
    thread_join(calling);
    thread_join(computing);
    use_heap(0.2);
}

/* ---- masked now and then ---- */

static _Atomic(bool) stop;

/* The signal arrives at any time, while it is masked and after. */
static void *mask_now_and_then(void *arg)
{
    struct team_member *me = arg;
    item *kept[16] = {NULL};
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, COUNT_OF(kept));
        mask(SIG_BLOCK, library_signal);
        uint64_t until = now_ns() + rng_below(&me->rng, 300000);
        while (now_ns() < until) {
        }
        kept[i] = item_new(i, kept[rng_below(&me->rng, COUNT_OF(kept))]);
        until = now_ns() + rng_below(&me->rng, 300000);
        while (now_ns() < until) {
        }
        mask(SIG_UNBLOCK, library_signal);
        EXPECT_EQ(kept[i]->check, rng_mix(i));
        if (rng_below(&me->rng, 8) == 0) {
            list_check(kept[i]);
            LOAM_SET(kept[i]->next, NULL);
        }
    }
    return NULL;
}

static void child_now_and_then(void)
{
    static struct team team;
    team_start(&team, 3, mask_now_and_then, NULL);
    size_t n = 0;
    for (uint64_t start = now_ns(); seconds_since(start) < 3; n++) {
        loam_gc();
    }
    atomic_store(&stop, true);
    team_join(&team);
    EXPECT_GT(n, 10);
}

/* ---- the children, all at once: they mostly wait ---- */

struct masked_case {
    const char *name;
    const char *environment[2];
    const char *warning; /* before the thread calls; %ld is its number */
    struct child child;
};

static struct masked_case cases[] = {
    {.name = "allocates",
     .warning = "thread %ld has not answered the collector for 10 s: does it mask signal 23?"},
    {.name = "blocks",
     .warning = "thread %ld has not answered the collector for 10 s: does it mask signal 23?"},
    {.name = "chosen_signal",
     .warning = "thread %ld has not answered the collector for 10 s: does it mask signal 12?"},
    {.name = "stop_the_world",
     .environment = {"GODEBUG=gcstoptheworld=1"},
     .warning = "a thread does not stop (does it mask signal 23?)"},
    {.name = "now_and_then"},
};

static const struct child_case children[] = {
    {"allocates", child_allocates},         {"blocks", child_blocks},
    {"chosen_signal", child_chosen_signal}, {"stop_the_world", child_stop_the_world},
    {"now_and_then", child_now_and_then},
};

static void *run_case(void *arg)
{
    struct masked_case *c = arg;
    child_run(&c->child, c->name, c->environment, 60);
    return NULL;
}

static void check_warning(const struct masked_case *c)
{
    const char *text = c->child.text;
    const char *who = strstr(text, "computing: thread ");
    const char *calling = strstr(text, "calling");
    EXPECT_MSG(who != NULL && calling != NULL, "it said: %s", text);
    char expected[128];
    snprintf(expected, sizeof expected, c->warning,
             strtol(who + strlen("computing: thread "), NULL, 10));
    EXPECT_CONTAINS(text, expected);
    EXPECT_LT(strstr(text, expected), calling);
}

int main(int argc, char **argv)
{
    pthread_t t[COUNT_OF(cases)];
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        t[i] = thread_start(run_case, &cases[i]);
    }
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        thread_join(t[i]);
        EXPECT_CHILD_PASSED(&cases[i].child);
        if (cases[i].warning != NULL) {
            check_warning(&cases[i]);
        } else {
            EXPECT_STR_EQ(cases[i].child.text, "");
        }
        printf("ok %s\n", cases[i].name);
    }
    return test_end();
}
