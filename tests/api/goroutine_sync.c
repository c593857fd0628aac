/* Mutexes exclude, are handed on to who has waited long, and let anybody unlock; wait groups let go at zero and not
 * before; on goroutines and plain threads alike. When all goroutines wait for each other the process ends and names
 * them, and it does not while something can still wake one.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 120
 * TEST_RUN: one_proc | GOMAXPROCS=1 | | 120
 * TEST_RUN: four_procs | GOMAXPROCS=4 GOGC=10 | | 120
 * TEST_RUN: stress | GODEBUG=gcstress=1,clobberfree=1 | | 120 | stress */
#include "../support/test.h"

#include <sys/socket.h>

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

/* ---- mutex ---- */

static struct guarded {
    loam_mutex mu;
    uint64_t count, twin; /* plain: the lock orders them */
} guarded;

static size_t rounds;

static void add_guarded(void *arg)
{
    struct guarded *g = arg;
    struct rng rng = rng_stream(loam_goroutine_id() + 77);
    for (size_t i = 0; i < rounds; i++) {
        if (rng_below(&rng, 4) != 0) {
            loam_mutex_lock(&g->mu);
        } else {
            while (!loam_mutex_trylock(&g->mu)) {
                loam_yield();
            }
        }
        EXPECT_EQ(g->count, g->twin);
        g->count++;
        if (rng_below(&rng, 16) == 0) {
            loam_yield(); /* with the lock, maybe on to another thread */
        } else if (rng_below(&rng, 500) == 0) {
            loam_sleep(MICROSECONDS(50));
        }
        g->twin++;
        loam_mutex_unlock(&g->mu);
    }
}

static void one_at_a_time(void)
{
    static const struct {
        size_t goroutines, threads;
    } kinds[] = {{2, 0}, {100, 0}, {0, 4}, {20, 4}};
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        static struct crew crew;
        size_t count = kinds[k].goroutines + kinds[k].threads;
        memset(&guarded, 0, sizeof guarded);
        rounds = go_scaled(20000) / count + 1;
        for (size_t i = 0; i < count; i++) {
            crew_start(&crew, i < kinds[k].goroutines ? ON_GOROUTINE : ON_THREAD, add_guarded,
                       &guarded);
        }
        crew_join(&crew);
        EXPECT_EQ(guarded.count, count * rounds);
        EXPECT_EQ(guarded.twin, count * rounds);
    }
}

/* In a heap object, and in a local of somebody's. */
static void anywhere(void)
{
    static struct crew crew;
    struct guarded local = {{{0}}, 0, 0};
    struct guarded *in_heap = loam_alloc_noscan(sizeof *in_heap);
    rounds = go_scaled(500);
    for (int i = 0; i < 10; i++) {
        crew_start(&crew, ON_GOROUTINE, add_guarded, &local);
        crew_start(&crew, i == 0 ? ON_THREAD : ON_GOROUTINE, add_guarded, loam_pin(in_heap));
    }
    crew_join(&crew);
    EXPECT_EQ(local.count, 10 * rounds);
    EXPECT_EQ(in_heap->count, 10 * rounds);
    for (int i = 0; i < 10; i++) {
        loam_unpin(in_heap);
    }
}

static void trylock(void)
{
    loam_mutex mu = {{0}};
    for (int i = 0; i < 3; i++) {
        EXPECT(loam_mutex_trylock(&mu));
        EXPECT(!loam_mutex_trylock(&mu));
        loam_mutex_unlock(&mu);
        loam_mutex_lock(&mu);
        EXPECT(!loam_mutex_trylock(&mu));
        loam_mutex_unlock(&mu);
    }
}

static loam_mutex handed;
static _Atomic(int) stage;

static void unlock_it(void *arg)
{
    (void)arg;
    loam_sleep(MILLISECONDS(2));
    atomic_store(&stage, 1);
    loam_mutex_unlock(&handed);
}

static void unlocked_by_another(void)
{
    for (int n = 0; n < 10; n++) {
        static struct crew crew;
        atomic_store(&stage, 0);
        loam_mutex_lock(&handed);
        crew_start(&crew, n % 2 == 0 ? ON_GOROUTINE : ON_THREAD, unlock_it, NULL);
        loam_mutex_lock(&handed);
        EXPECT_EQ(atomic_load(&stage), 1);
        loam_mutex_unlock(&handed);
        crew_join(&crew);
    }
}

/* One takes it again as soon as he has given it back; who waits gets it all the same. */
static loam_mutex contended;
static _Atomic(bool) stop;

static void take_again_and_again(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_mutex_lock(&contended);
        uint64_t until = now_ns() + 100000;
        while (now_ns() < until) {
        }
        loam_mutex_unlock(&contended);
    }
}

static void who_waits_gets_it(void)
{
    for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
        static struct crew crew;
        double longest = 0;
        atomic_store(&stop, false);
        for (int i = 0; i < 2; i++) {
            crew_start(&crew, (enum where)where, take_again_and_again, NULL);
        }
        for (int n = 0; n < 50; n++) {
            uint64_t start = now_ns();
            loam_mutex_lock(&contended);
            double waited = seconds_since(start);
            loam_mutex_unlock(&contended);
            longest = waited > longest ? waited : longest;
            loam_sleep(MICROSECONDS(100));
        }
        atomic_store(&stop, true);
        crew_join(&crew);
        printf("  at most %.2f ms\n", longest * 1e3);
        EXPECT_MSG(longest < 0.5, "waited %g s", longest);
    }
}

/* ---- wait groups ---- */

static struct job {
    loam_waitgroup wg;
    _Atomic(size_t) done;
    uint64_t result[200]; /* plain: done orders them before the end of wait */
} job;

static void do_part(void *arg)
{
    uint64_t *result = arg;
    if ((uintptr_t)arg % 3 == 0) {
        loam_yield();
    }
    *result = rng_mix((uintptr_t)result);
    atomic_fetch_add(&job.done, 1);
    loam_waitgroup_done(&job.wg);
}

static void zero_lets_go(void)
{
    for (int round = 0; round < 30; round++) {
        static struct crew crew;
        size_t count = (size_t)round * 6;
        memset(&job, 0, sizeof job);
        loam_waitgroup_wait(&job.wg); /* nothing to wait for */
        loam_waitgroup_add(&job.wg, (int)count);
        for (size_t i = 0; i < count; i++) {
            crew_start(&crew, i % 16 == 5 ? ON_THREAD : ON_GOROUTINE, do_part, &job.result[i]);
        }
        loam_waitgroup_wait(&job.wg);
        EXPECT_EQ(atomic_load(&job.done), count);
        for (size_t i = 0; i < count; i++) {
            EXPECT_EQ(job.result[i], rng_mix((uintptr_t)&job.result[i]));
        }
        loam_waitgroup_wait(&job.wg);
        crew_join(&crew);
    }
}

static _Atomic(size_t) through;
static loam_waitgroup barrier;

static void wait_and_count(void *arg)
{
    loam_waitgroup_wait(&barrier);
    atomic_fetch_add(&through, 1);
    (void)arg;
}

static void many_wait(void)
{
    for (int round = 0; round < 10; round++) {
        static struct crew crew;
        atomic_store(&through, 0);
        loam_waitgroup_add(&barrier, 5);
        for (size_t i = 0; i < 60; i++) {
            crew_start(&crew, i % 10 == 0 ? ON_THREAD : ON_GOROUTINE, wait_and_count, NULL);
        }
        for (int i = 0; i < 4; i++) {
            loam_waitgroup_add(&barrier, -1);
            loam_waitgroup_add(&barrier, 3);
            loam_waitgroup_add(&barrier, -3);
        }
        loam_sleep(MILLISECONDS(1));
        EXPECT_EQ(atomic_load(&through), 0);
        loam_waitgroup_done(&barrier);
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&through), 60);
    }
}

/* As large as it may be. */
static void large_counts(void)
{
    loam_waitgroup wg = {{0}};
    loam_waitgroup_add(&wg, INT32_MAX);
    loam_waitgroup_add(&wg, 0);
    loam_waitgroup_add(&wg, -INT32_MAX);
    loam_waitgroup_wait(&wg);
}

/* ---- what ends the program ---- */

static void child_unlock_unlocked(void)
{
    loam_mutex mu = {{0}};
    loam_mutex_unlock(&mu);
}

static void child_unlock_twice(void)
{
    loam_mutex mu = {{0}};
    loam_mutex_lock(&mu);
    loam_mutex_unlock(&mu);
    loam_mutex_unlock(&mu);
}

static void child_below_zero(void)
{
    loam_waitgroup wg = {{0}};
    loam_waitgroup_add(&wg, 2);
    loam_waitgroup_done(&wg);
    loam_waitgroup_done(&wg);
    loam_waitgroup_done(&wg);
}

static void child_far_below_zero(void)
{
    loam_waitgroup wg = {{0}};
    loam_waitgroup_add(&wg, 5);
    loam_waitgroup_add(&wg, INT32_MIN);
}

static void go_below_zero(void *arg)
{
    (void)arg;
    child_below_zero();
}

static void child_below_zero_go(void)
{
    go_run(go_below_zero, NULL);
}

static void what_ends_the_program(void)
{
    static const struct {
        const char *name, *says;
    } deaths[] = {{"unlock_unlocked", "unlock"},
                  {"unlock_twice", "unlock"},
                  {"below_zero", "wait"},
                  {"far_below_zero", "wait"},
                  {"below_zero_go", "wait"}};
    struct child c;
    for (size_t i = 0; i < COUNT_OF(deaths); i++) {
        child_run(&c, deaths[i].name, NULL, 30);
        EXPECT_CHILD_ABORTED(&c);
        EXPECT_CONTAINS(c.text, deaths[i].says);
    }
}

/* ---- all asleep ---- */

static loam_chan *never;

static void recv_for_ever(void *arg)
{
    loam_chan_recv(arg != NULL ? arg : never, NULL);
}

static void send_for_ever(void *arg)
{
    uint64_t value = 1;
    (void)arg;
    loam_chan_send(never, &value);
}

static void recv_from_nothing(void *arg)
{
    (void)arg;
    loam_chan_recv(NULL, NULL);
}

static void select_nothing(void *arg)
{
    (void)arg;
    loam_select(NULL, 0, true);
}

static void select_null_channels(void *arg)
{
    loam_select_case cases[] = {{NULL, LOAM_RECV, NULL, false}, {NULL, LOAM_SEND, NULL, false}};
    (void)arg;
    loam_select(cases, 2, true);
}

static void lock_what_is_locked(void *arg)
{
    loam_mutex mu = {{0}};
    (void)arg;
    loam_mutex_lock(&mu);
    loam_mutex_lock(&mu);
}

static void wait_for_nobody(void *arg)
{
    loam_waitgroup wg = {{0}};
    (void)arg;
    loam_waitgroup_add(&wg, 1);
    loam_waitgroup_wait(&wg);
}

static void never_make(void)
{
    LOAM_SET(never, loam_chan_make_bytes(8, 0));
}

/* main waits in loam_run, for somebody who waits for others who wait. */
static void start_all_and_wait(void *arg)
{
    go_named("a receiver", recv_for_ever, loam_chan_make_bytes(8, 0));
    go_named("the sleeper", recv_from_nothing, NULL);
    loam_sleep(MILLISECONDS(30));
    recv_for_ever(arg);
}

static void child_all_in_run(void)
{
    never_make();
    go_run(start_all_and_wait, NULL);
}

static void child_all_beside_main(void)
{
    never_make();
    go_named("a receiver", recv_for_ever, NULL);
    go_named("the sleeper", select_nothing, NULL);
    loam_chan *mine = loam_chan_make_bytes(0, 0);
    loam_chan_recv(mine, NULL);
}

/* After a time in which much went on. */
static void yield_some(void *arg)
{
    for (int i = 0; i < 100; i++) {
        loam_yield();
        loam_sleep(1000);
    }
    (void)arg;
}

static void child_all_later(void)
{
    never_make();
    for (int i = 0; i < 100; i++) {
        go(yield_some, NULL);
    }
    go_run(yield_some, NULL);
    child_all_beside_main();
}

static void *collect_and_end(void *arg)
{
    loam_gc();
    return arg;
}

static void child_all_after_threads(void)
{
    for (int i = 0; i < 5; i++) {
        thread_run(collect_and_end, NULL);
    }
    child_all_beside_main();
}

/* The last who could have woken somebody ends, and has not. */
static void *sleep_and_end(void *arg)
{
    EXPECT_EQ(loam_attach(), 0);
    sleep_us(300000);
    return arg;
}

static void child_all_when_a_thread_ends(void)
{
    thread_start(sleep_and_end, NULL);
    child_all_beside_main();
}

static void all_kinds(void *arg)
{
    static void (*const kinds[])(void *) = {send_for_ever,       recv_from_nothing,
                                            select_nothing,      select_null_channels,
                                            lock_what_is_locked, wait_for_nobody};
    static const char *const names[] = {"kind send",  "kind null", "kind nothing",
                                        "kind nulls", "kind lock", "kind wait"};
    (void)arg;
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        go_named(names[i], kinds[i], NULL);
    }
    select_nothing(NULL);
}

static void child_all_kinds(void)
{
    never_make();
    go_run(all_kinds, NULL);
}

static void expect_asleep(const char *name, const struct child *c, const char *const says[])
{
    EXPECT_MSG(!c->timed_out && !child_exited(c, 0) && (child_aborted(c) || WIFEXITED(c->status)),
               "%s: all are asleep, and: status %#x%s; it said: %s", name, (unsigned)c->status,
               c->timed_out ? " (timed out)" : "", c->text);
    EXPECT_CONTAINS(c->text, "loam: ");
    for (size_t i = 0; says[i] != NULL; i++) {
        EXPECT_CONTAINS(c->text, says[i]);
    }
}

static void all_asleep(void)
{
    static const char *const two[] = {"a receiver", "the sleeper", NULL};
    static const char *const kinds[] = {
        "kind send", "kind null", "kind nothing", "kind nulls", "kind lock", "kind wait", NULL};
    static const struct {
        const char *name;
        const char *const *says;
    } cases[] = {{"all_in_run", two},  {"all_beside_main", two},
                 {"all_later", two},   {"all_after_threads", two},
                 {"all_kinds", kinds}, {"all_when_a_thread_ends", two}};
    struct child c;
    if (emulated()) {
        test_skip("all asleep under qemu-user, which has threads of its own that could wake one");
        return;
    }
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        /* who waits for times and descriptors may be left over from what went on */
        int times = strcmp(cases[i].name, "all_later") == 0 ? 20 : 1;
        for (int k = 0; k < times; k++) {
            child_run(&c, cases[i].name, NULL, TEST_SANITIZED || emulated() ? 60 : 20);
            expect_asleep(cases[i].name, &c, cases[i].says);
        }
    }
}

/* ---- not all asleep ---- */

static _Atomic(bool) attached;

static void *wake_later(void *arg)
{
    uint64_t value = 3;
    EXPECT_EQ(loam_attach(), 0);
    atomic_store(&attached, true);
    sleep_us(300000); /* in the kernel, and the library does not know for what */
    loam_chan_send(never, &value);
    return arg;
}

static void *wake_later_unattached(void *arg)
{
    sleep_us(300000);
    loam_chan_close(never);
    return arg;
}

static void recv_once(void *arg)
{
    uint64_t value;
    loam_chan_recv(never, &value);
    (void)arg;
}

static void child_thread_wakes(void)
{
    never_make();
    pthread_t t = thread_start(wake_later, NULL);
    WAIT_FOR(20, atomic_load(&attached));
    go_run(recv_once, NULL);
    thread_join(t);
}

static void sleep_then_send(void *arg)
{
    uint64_t value = 3;
    loam_sleep(MILLISECONDS(300));
    loam_chan_send(never, &value);
    (void)arg;
}

static void child_sleeper_wakes(void)
{
    never_make();
    go(sleep_then_send, NULL);
    go_run(recv_once, NULL);
}

static void read_then_send(void *arg)
{
    uint64_t value = 3;
    char c;
    EXPECT_EQ(read(*(int *)arg, &c, 1), 1); /* unmarked */
    loam_chan_send(never, &value);
}

static void wait_then_send(void *arg)
{
    uint64_t value = 3;
    char c;
    EXPECT_EQ(loam_read(*(int *)arg, &c, 1), 1);
    loam_chan_send(never, &value);
}

static void pipe_wakes(void (*fn)(void *))
{
    int fds[2];
    EXPECT_EQ(pipe(fds), 0);
    pid_t pid = fork(); /* the one who writes is another process */
    EXPECT_GE(pid, 0);
    if (pid == 0) {
        sleep_us(300000);
        _exit(write(fds[1], "x", 1) == 1 ? 0 : 1);
    }
    never_make();
    go(fn, &fds[0]);
    go_run(recv_once, NULL);
    child_wait(pid);
}

static void child_read_wakes(void)
{
    pipe_wakes(read_then_send);
}

static void child_loam_read_wakes(void)
{
    pipe_wakes(wait_then_send);
}

static void compute_then_send(void *arg)
{
    uint64_t value = 3;
    uint64_t start = now_ns();
    while (seconds_since(start) < 0.3) {
    }
    loam_chan_send(never, &value);
    (void)arg;
}

static void child_computer_wakes(void)
{
    never_make();
    go(compute_then_send, NULL);
    go_run(recv_once, NULL);
}

static void block_then_send(void *arg)
{
    uint64_t value = 3;
    loam_enter_blocking();
    sleep_us(300000);
    loam_exit_blocking();
    loam_chan_send(never, &value);
    (void)arg;
}

static void child_blocked_wakes(void)
{
    never_make();
    go(block_then_send, NULL);
    go_run(recv_once, NULL);
}

/* Goroutines may wait for ever beside a main that does something else. */
static void child_main_is_busy(void)
{
    never_make();
    for (int i = 0; i < 10; i++) {
        go(recv_for_ever, NULL);
    }
    sleep_us(300000);
    loam_gc();
    sleep_us(100000);
    loam_sleep(MILLISECONDS(200));
    EXPECT_EQ(loam_num_goroutine(), 10);
}

/* A finalizer may wait, too; main is awake, and lets it go. */
static _Atomic(bool) finalizing, finalized;

static void wait_in_finalizer(void *obj, void *arg)
{
    (void)obj;
    (void)arg;
    atomic_store(&finalizing, true);
    recv_once(NULL);
    atomic_store(&finalized, true);
}

static void build_finalized(void *arg)
{
    (void)arg;
    for (uint64_t i = 0; i < 10; i++) {
        EXPECT_EQ(loam_set_finalizer(item_new(i, NULL), wait_in_finalizer, NULL), 0);
    }
}

static void child_finalizer_waits(void)
{
    never_make();
    go(recv_for_ever, NULL);
    call_deep(build_finalized, NULL);
    COLLECT_UNTIL(20, atomic_load(&finalizing));
    go(recv_for_ever, NULL);
    go(yield_some, NULL);
    sleep_us(300000);
    loam_chan_close(never);
    WAIT_FOR(20, atomic_load(&finalized));
}

/* A thread that the library has not seen yet, and will. Whether it counts cannot be known: main is awake meanwhile. */
static void child_unknown_thread_wakes(void)
{
    never_make();
    pthread_t t = thread_start(wake_later_unattached, NULL);
    go(recv_once, NULL);
    thread_join(t);
    go_all_ended();
}

static void not_all_asleep(void)
{
    static const char *const names[] = {
        "thread_wakes",    "sleeper_wakes",        "read_wakes",
        "loam_read_wakes", "computer_wakes",       "blocked_wakes",
        "main_is_busy",    "unknown_thread_wakes", "finalizer_waits"};
    struct child c;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        child_run(&c, names[i], NULL, 60);
        EXPECT_MSG(child_exited(&c, 0), "%s: status %#x%s; it said: %s", names[i],
                   (unsigned)c.status, c.timed_out ? " (timed out)" : "", c.text);
        EXPECT_MSG(c.text[0] == '\0', "%s said: %s", names[i], c.text);
    }
}

static const struct child_case children[] = {
    {"unlock_unlocked", child_unlock_unlocked},
    {"unlock_twice", child_unlock_twice},
    {"below_zero", child_below_zero},
    {"far_below_zero", child_far_below_zero},
    {"below_zero_go", child_below_zero_go},
    {"all_in_run", child_all_in_run},
    {"all_beside_main", child_all_beside_main},
    {"all_later", child_all_later},
    {"all_after_threads", child_all_after_threads},
    {"all_kinds", child_all_kinds},
    {"all_when_a_thread_ends", child_all_when_a_thread_ends},
    {"thread_wakes", child_thread_wakes},
    {"sleeper_wakes", child_sleeper_wakes},
    {"read_wakes", child_read_wakes},
    {"loam_read_wakes", child_loam_read_wakes},
    {"computer_wakes", child_computer_wakes},
    {"blocked_wakes", child_blocked_wakes},
    {"main_is_busy", child_main_is_busy},
    {"unknown_thread_wakes", child_unknown_thread_wakes},
    {"finalizer_waits", child_finalizer_waits},
};

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    start_watching();
    RUN_BOTH(one_at_a_time);
    RUN_BOTH(anywhere);
    RUN_BOTH(trylock);
    RUN_BOTH(unlocked_by_another);
    RUN_BOTH(who_waits_gets_it);
    RUN_BOTH(zero_lets_go);
    RUN_BOTH(many_wait);
    RUN_BOTH(large_counts);
    RUN(what_ends_the_program);
    RUN(all_asleep);
    RUN(not_all_asleep);
    go_all_ended();
    return test_end();
}
