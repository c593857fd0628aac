/* Cleanups with Go's meaning: after the object is gone, any number each, once, stoppable, the argument alive until then.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | | 90 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

/* The running case.  An object that outlives its own, because a stale word held it, must not count in the next. */
static _Atomic(uint64_t) this_case;

static item *item_of_case(uint64_t id)
{
    item *it = item_new(id, NULL);
    it->fill[0] = atomic_load(&this_case);
    return it;
}

static bool is_late(const item *it)
{
    return it->fill[0] != atomic_load(&this_case);
}

enum { BATCH = 2000, EACH = 5 };

static struct watch batch;
static _Atomic(unsigned) runs[BATCH * EACH];
static _Atomic(size_t) total;
static pthread_t main_thread;

static void reset(void)
{
    atomic_fetch_add(&this_case, 1);
    sleep_us(1000);
    watch_init(&batch, BATCH);
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        atomic_store(&runs[i], 0);
    }
    atomic_store(&total, 0);
}

/* arg: an item whose id is owner * EACH + number */
static void count_run(void *arg)
{
    item *it = arg;
    item_check(it);
    item_check(it->next);
    if (is_late(it)) {
        return;
    }
    EXPECT(watch_is_dead(&batch, it->id / EACH));
    EXPECT(!pthread_equal(pthread_self(), main_thread));
    atomic_fetch_add(&runs[it->id], 1);
    atomic_fetch_add(&total, 1);
}

static item *argument(size_t owner, size_t number)
{
    item *arg = item_of_case(owner * EACH + number);
    LOAM_SET(arg->next, item_of_case(owner)); /* reached by the argument alone */
    return arg;
}

static void build(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *it = item_of_case(i);
        watch_set(&batch, i, it);
        for (size_t k = 0; k < 1 + i % EACH; k++) {
            EXPECT_NE(loam_add_cleanup(it, count_run, argument(i, k)), 0);
        }
    }
}

static void each_runs_once_after_the_end(void)
{
    size_t all = 0;
    reset();
    for (size_t i = 0; i < BATCH; i++) {
        all += 1 + i % EACH;
    }
    call_deep(build, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= all * 95 / 100);
    loam_gc();
    loam_gc();
    for (size_t i = 0; i < BATCH; i++) {
        for (size_t k = 0; k < EACH; k++) {
            EXPECT_LE(atomic_load(&runs[i * EACH + k]), k < 1 + i % EACH ? 1u : 0u);
        }
        unsigned ran_before = atomic_load(&runs[i * EACH]);
        EXPECT_MSG(ran_before == 0 || watch_is_dead(&batch, i),
                   "object %zu is there and cleaned up", i);
    }
}

static item **held;

static void build_held(void *arg)
{
    (void)arg;
    LOAM_SET(held, LOAM_NEW_POINTERS(item, BATCH));
    for (size_t i = 0; i < BATCH; i++) {
        LOAM_SET(held[i], item_of_case(i));
        watch_set(&batch, i, held[i]);
        EXPECT_NE(loam_add_cleanup(held[i], count_run, argument(i, 0)), 0);
    }
}

static void not_while_reachable(void)
{
    reset();
    call_deep(build_held, NULL);
    for (int i = 0; i < 3; i++) {
        scrub_stack();
        loam_gc();
    }
    sleep_us(20000);
    EXPECT_EQ(atomic_load(&total), 0);
    LOAM_SET(held, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= BATCH * 95 / 100);
}

/* ---- stop ---- */

static loam_cleanup ids[BATCH];

static void never(void *arg)
{
    FAIL("a stopped cleanup ran, argument %p", arg);
}

static struct watch stopped_arguments;

static void build_stopped(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *it = item_of_case(i);
        watch_set(&batch, i, it);
        item *unused = item_of_case(i);
        watch_set(&stopped_arguments, i, unused);
        ids[i] = loam_add_cleanup(it, never, unused);
        EXPECT_NE(ids[i], 0);
        if (i % 2 == 0) {
            EXPECT_NE(loam_add_cleanup(it, count_run, argument(i, 0)), 0);
        }
        loam_cleanup_stop(ids[i]);
        loam_cleanup_stop(ids[i]);
    }
}

static void stopped(void)
{
    reset();
    watch_init(&stopped_arguments, BATCH);
    call_deep(build_stopped, NULL);
    EXPECT_MOST_DIE(&batch);
    EXPECT_MOST_DIE(&stopped_arguments);
    COLLECT_UNTIL(30, atomic_load(&total) >= BATCH * 95 / 200);
    for (size_t i = 0; i < BATCH; i++) {
        loam_cleanup_stop(ids[i]); /* the object is gone: nothing */
    }
    loam_cleanup_stop(0);
    loam_cleanup_stop(UINT64_MAX);
}

/* ---- with a finalizer: after it, once the object is truly gone ---- */

static item **back;
static _Atomic(size_t) finalized;

static void resurrect(void *obj, void *arg)
{
    item *it = obj;
    (void)arg;
    item_check(it);
    if (is_late(it)) {
        return;
    }
    EXPECT_EQ(atomic_load(&runs[it->id * EACH]), 0);
    LOAM_SET(back[it->id], it);
    atomic_fetch_add(&finalized, 1);
}

static void build_both(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *it = item_of_case(i);
        watch_set(&batch, i, it);
        EXPECT_NE(loam_add_cleanup(it, count_run, argument(i, 0)), 0);
        EXPECT_EQ(loam_set_finalizer(it, resurrect, NULL), 0);
    }
}

/* In a frame of its own, for an unoptimised caller keeps what it stores in its own to the end. */
static void make_back(void *arg)
{
    (void)arg;
    LOAM_SET(back, LOAM_NEW_POINTERS(item, BATCH));
}

static void after_the_finalizer(void)
{
    reset();
    atomic_store(&finalized, 0);
    call_deep(make_back, NULL);
    call_deep(build_both, NULL);
    COLLECT_UNTIL(30, atomic_load(&finalized) >= BATCH * 95 / 100);
    sleep_us(20000);
    loam_gc();
    loam_gc();
    sleep_us(20000);
    EXPECT_EQ(atomic_load(&total), 0); /* every one is alive again, or still */
    LOAM_SET(back, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= BATCH * 90 / 100);
}

/* ---- arguments of every kind, errors ---- */

static _Atomic(uintptr_t) word_sum;

static void add_word(void *arg)
{
    atomic_fetch_add(&word_sum, (uintptr_t)arg);
    atomic_fetch_add(&total, 1);
}

static void build_words(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        EXPECT_NE(loam_add_cleanup(item_of_case(i), add_word, (void *)(uintptr_t)1),
                  0); /* any word may be an argument */
    }
}

static void any_word_may_be_the_argument(void)
{
    reset();
    atomic_store(&word_sum, 0);
    call_deep(build_words, NULL);
    COLLECT_UNTIL(30, atomic_load(&word_sum) >= BATCH * 95 / 100);
    sleep_us(20000);
    EXPECT_LE(atomic_load(&word_sum), BATCH);
}

static void errors(void)
{
    static item in_data;
    item *it = item_of_case(1);
    EXPECT_ERRNO(loam_add_cleanup(it, never, it), 0, EINVAL);
    EXPECT_ERRNO(loam_add_cleanup((char *)it + 8, never, NULL), 0, EINVAL);
    EXPECT_ERRNO(loam_add_cleanup(&in_data, never, NULL), 0, EINVAL);
    EXPECT_ERRNO(loam_add_cleanup(NULL, never, NULL), 0, EINVAL);
    loam_cleanup id = loam_add_cleanup(it, never, NULL);
    EXPECT_NE(id, 0);
    loam_cleanup_stop(id);
    item_check(it);
}

/* ---- added, stopped and run from many threads while cycles run ---- */

static _Atomic(bool) stop;
static _Atomic(uint64_t) added, ran;

static void count_concurrent(void *arg)
{
    item_check(arg);
    atomic_fetch_add(&ran, 1);
}

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void *add_and_stop(void *arg)
{
    struct team_member *me = arg;
    item *mine[8] = {NULL};
    loam_cleanup mine_ids[8] = {0};
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, COUNT_OF(mine));
        if (mine[i] != NULL && rng_below(&me->rng, 2) == 0) {
            loam_cleanup_stop(mine_ids[i]); /* cannot have run: the object is held here */
            loam_keep_alive(mine[i]);
            atomic_fetch_sub(&added, 1);
        }
        mine[i] = item_of_case(rng_next(&me->rng));
        mine_ids[i] = loam_add_cleanup(mine[i], count_concurrent, item_of_case(rng_next(&me->rng)));
        EXPECT_NE(mine_ids[i], 0);
        atomic_fetch_add(&added, 1);
    }
    return NULL;
}

static void from_many_threads(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, add_and_stop, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
    COLLECT_UNTIL(30, atomic_load(&ran) * 100 >= atomic_load(&added) * 95);
    EXPECT_LE(atomic_load(&ran), atomic_load(&added));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    main_thread = pthread_self();
    RUN(each_runs_once_after_the_end);
    RUN(not_while_reachable);
    RUN(stopped);
    RUN(after_the_finalizer);
    RUN(any_word_may_be_the_argument);
    RUN(errors);
    RUN(from_many_threads);
    return test_end();
}
