/* Finalizers with Go's meaning: once each, on a thread of the library, the object whole and alive again, owners before
 * what they own, cycles never, the argument alive while it is pending.
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

enum { BATCH = 1000, MOST = BATCH * 95 / 100 };

static _Atomic(unsigned) runs[20000];
static _Atomic(size_t) total;
static pthread_t main_thread;

static void reset_runs(void)
{
    atomic_fetch_add(&this_case, 1);
    sleep_us(1000);
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        atomic_store(&runs[i], 0);
    }
    atomic_store(&total, 0);
}

static void expect_no_second_run(void)
{
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        EXPECT_LE(atomic_load(&runs[i]), 1);
    }
}

static void count_run(void *obj, void *arg)
{
    item *it = obj;
    item_check(it);
    EXPECT_PTR_EQ(loam_base(it), it);
    EXPECT(!pthread_equal(pthread_self(), main_thread));
    if (arg != NULL) {
        item *argument = arg;
        item_check(argument);
        EXPECT_EQ(argument->id, it->id + 1);
    }
    if (it->next != NULL) {
        item_check(it->next);
    }
    if (is_late(it)) {
        return;
    }
    atomic_fetch_add(&runs[it->id], 1);
    atomic_fetch_add(&total, 1);
}

/* ---- once, whole, with the argument ---- */

static void build_many(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        item *it = item_of_case(i);
        LOAM_SET(it->next, item_of_case(i)); /* reached from it alone, without a finalizer */
        EXPECT_EQ(loam_set_finalizer(it, count_run, i % 2 == 0 ? item_of_case(i + 1) : NULL), 0);
    }
}

static void each_runs_once(void)
{
    reset_runs();
    call_deep(build_many, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= COUNT_OF(runs) * 95 / 100);
    for (int i = 0; i < 3; i++) {
        loam_gc();
    }
    expect_no_second_run();
}

/* ---- not while it is reachable ---- */

static item **held;

static void build_held(void *arg)
{
    (void)arg;
    LOAM_SET(held, LOAM_NEW_POINTERS(item, BATCH));
    for (size_t i = 0; i < BATCH; i++) {
        LOAM_SET(held[i], item_of_case(i));
        EXPECT_EQ(loam_set_finalizer(held[i], count_run, NULL), 0);
    }
}

static void not_while_reachable(void)
{
    reset_runs();
    call_deep(build_held, NULL);
    for (int i = 0; i < 3; i++) {
        scrub_stack();
        loam_gc();
    }
    sleep_us(20000);
    EXPECT_EQ(atomic_load(&total), 0);
    LOAM_SET(held, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= MOST);
}

/* ---- owners first ---- */

static _Atomic(uint64_t) clock_now;
static _Atomic(uint64_t) ran_at[3][BATCH];

static void note_time(void *obj, void *arg)
{
    item *it = obj;
    item_check(it);
    if (is_late(it)) {
        return;
    }
    size_t level = (size_t)(uintptr_t)arg;
    atomic_store(&ran_at[level][it->id], atomic_fetch_add(&clock_now, 1) + 1);
    for (item *owned = it->next; owned != NULL; owned = owned->next) {
        level++;
        item_check(owned);
        EXPECT_MSG(atomic_load(&ran_at[level][it->id]) == 0,
                   "%" PRIu64 ": the owned of level %zu ran first", it->id, level);
    }
    atomic_fetch_add(&total, 1);
}

static void build_owners(void *arg)
{
    struct rng rng = rng_stream(1);
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *chain[3] = {item_of_case(i), item_of_case(i), item_of_case(i)};
        size_t order[3] = {0, 1, 2};
        LOAM_SET(chain[0]->next, chain[1]);
        LOAM_SET(chain[1]->next, chain[2]);
        rng_shuffle(&rng, order, 3);
        for (size_t k = 0; k < 3; k++) {
            EXPECT_EQ(loam_set_finalizer(chain[order[k]], note_time, (void *)order[k]), 0);
        }
    }
}

static void owners_before_what_they_own(void)
{
    reset_runs();
    memset(ran_at, 0, sizeof ran_at);
    call_deep(build_owners, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= 3 * MOST);
}

/* ---- cycles ---- */

static _Atomic(int) cycles_run; /* not `total`: late finalizers of earlier tests count there */

static void count_cycle(void *obj, void *arg)
{
    (void)obj;
    (void)arg;
    atomic_fetch_add(&cycles_run, 1);
}

static void build_cycles(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *a = item_of_case(i);
        item *b = item_of_case(i);
        LOAM_SET(a->next, b);
        LOAM_SET(b->next, a);
        EXPECT_EQ(loam_set_finalizer(a, count_cycle, NULL), 0);
        if (i % 2 == 0) {
            EXPECT_EQ(loam_set_finalizer(b, count_cycle, NULL), 0);
        }
    }
}

static void cycles_never_run(void)
{
    reset_runs();
    call_deep(build_cycles, NULL);
    for (int i = 0; i < 5; i++) {
        scrub_stack();
        loam_gc();
    }
    sleep_us(50000);
    EXPECT_EQ(atomic_load(&cycles_run), 0);
}

/* ---- resurrection ---- */

static item **back;
static struct watch before, after;

static void resurrect(void *obj, void *arg)
{
    item *it = obj;
    (void)arg;
    item_check(it);
    if (is_late(it)) {
        return;
    }
    EXPECT(watch_is_dead(&before, it->id)); /* cleared before the finalizer was queued */
    watch_set(&after, it->id, it);
    EXPECT_PTR_EQ(loam_weak_value(after.weak[it->id]), it);
    LOAM_SET(back[it->id], it);
    atomic_fetch_add(&runs[it->id], 1);
    atomic_fetch_add(&total, 1);
}

static void build_resurrected(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *it = item_of_case(i);
        LOAM_SET(it->next, item_of_case(i + BATCH));
        watch_set(&before, i, it);
        EXPECT_EQ(loam_set_finalizer(it, resurrect, NULL), 0);
    }
}

static NOINLINE void check_back(bool rearm)
{
    for (size_t i = 0; i < BATCH; i++) {
        if (back[i] != NULL) {
            item_check(back[i]);
            item_check(back[i]->next);
            EXPECT_EQ(back[i]->next->id, i + BATCH);
            EXPECT(watch_is_dead(&before, i)); /* and stay so */
            EXPECT(!watch_is_dead(&after, i));
            if (rearm) {
                EXPECT_EQ(loam_set_finalizer(back[i], count_run, NULL),
                          0); /* it has run: another may be set */
            }
        }
    }
}

/* In a frame of its own, for an unoptimised caller keeps what it stores in its own to the end. */
static void make_back(void *arg)
{
    (void)arg;
    LOAM_SET(back, LOAM_NEW_POINTERS(item, BATCH));
}

static void resurrected_objects_are_whole(void)
{
    reset_runs();
    watch_init(&before, BATCH);
    watch_init(&after, BATCH);
    call_deep(make_back, NULL);
    call_deep(build_resurrected, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= MOST);
    sleep_us(20000); /* those under way */
    for (int i = 0; i < 3; i++) {
        loam_gc();
        check_back(false);
    }
    size_t first = atomic_load(&total);
    for (size_t i = 0; i < BATCH; i++) {
        EXPECT_LE(atomic_load(&runs[i]), 1);
    }
    check_back(true);
    LOAM_SET(back, NULL);
    scrub_stack();
    COLLECT_UNTIL(30, atomic_load(&total) >= first + MOST * 9 / 10);
}

/* An object without a finalizer of its own that was resurrected through its owner dies later like any other. */
static struct watch owned;

static void keep_owned(void *obj, void *arg)
{
    item *it = obj;
    (void)arg;
    if (!is_late(it)) {
        LOAM_SET(back[it->id], it->next);
        atomic_fetch_add(&total, 1);
    }
}

static void build_keepers(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *it = item_of_case(i);
        LOAM_SET(it->next, item_of_case(i));
        watch_set(&owned, i, it->next);
        EXPECT_EQ(loam_set_finalizer(it, keep_owned, NULL), 0);
    }
}

/* Its frame holds the table, so it is not inlined. */
static NOINLINE void check_saved(void)
{
    for (size_t k = 0; k < BATCH; k++) {
        if (back[k] != NULL) {
            item_check(back[k]);
        }
    }
}

static void what_a_finalizer_saves_lives(void)
{
    reset_runs();
    watch_init(&owned, BATCH);
    LOAM_SET(back, LOAM_NEW_POINTERS(item, BATCH));
    call_deep(build_keepers, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= MOST);
    for (int i = 0; i < 3; i++) {
        loam_gc();
        check_saved();
    }
    LOAM_SET(back, NULL);
    EXPECT_MOST_DIE(&owned);
}

/* ---- clearing, errors ---- */

static void never(void *obj, void *arg)
{
    (void)arg;
    FAIL("a cleared finalizer ran for %p", obj);
}

static void build_cleared(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        item *it = item_of_case(i);
        watch_set(&owned, i, it);
        EXPECT_EQ(loam_set_finalizer(it, never, NULL), 0);
        EXPECT_EQ(loam_set_finalizer(it, NULL, NULL), 0);
        EXPECT_EQ(loam_set_finalizer(it, NULL, NULL), 0); /* none is set: fine */
        if (i % 2 == 0) {
            EXPECT_EQ(loam_set_finalizer(it, count_run, NULL), 0);
        }
    }
}

static void cleared(void)
{
    reset_runs();
    watch_init(&owned, BATCH);
    call_deep(build_cleared, NULL);
    EXPECT_MOST_DIE(&owned);
    COLLECT_UNTIL(30, atomic_load(&total) >= MOST / 2);
    EXPECT_LE(atomic_load(&total), BATCH / 2);
}

static void errors(void)
{
    static item in_data;
    item local = {NULL, 0, 0, {0}};
    item *it = item_of_case(1);
    item *from_malloc = malloc(sizeof *from_malloc);

    EXPECT_EQ(loam_set_finalizer(it, never, NULL), 0);
    EXPECT_ERRNO(loam_set_finalizer(it, never, NULL), -1, EEXIST);
    EXPECT_ERRNO(loam_set_finalizer(it, count_run, NULL), -1, EEXIST);
    EXPECT_EQ(loam_set_finalizer(it, NULL, NULL), 0);
    EXPECT_ERRNO(loam_set_finalizer((char *)it + 8, never, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_set_finalizer((char *)it + 8, NULL, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_set_finalizer(&in_data, never, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_set_finalizer(&local, never, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_set_finalizer(from_malloc, never, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_set_finalizer(NULL, never, NULL), -1, EINVAL);
    item_check(it);
    free(from_malloc);
}

/* ---- what a finalizer may do: allocate, store, lock, set others, be slow ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void busy_finalizer(void *obj, void *arg)
{
    item *it = obj;
    item_check(it);
    if (is_late(it)) {
        return;
    }
    item *list = list_new(100);
    pthread_mutex_lock(&lock);
    if (back != NULL) { /* the last ones may come after the case's end */
        LOAM_SET(back[it->id], list);
    }
    pthread_mutex_unlock(&lock);
    if (arg != NULL) { /* again, for as long as there are arguments */
        EXPECT_EQ(loam_set_finalizer(it, busy_finalizer, ((item *)arg)->next), 0);
    }
    atomic_fetch_add(&total, 1);
}

static void build_busy(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < 200; i++) {
        item *argument = item_of_case(i);
        LOAM_SET(argument->next, item_of_case(i));
        EXPECT_EQ(loam_set_finalizer(item_of_case(i), busy_finalizer, argument), 0);
    }
}

static void finalizers_may_work(void)
{
    reset_runs();
    LOAM_SET(back, LOAM_NEW_POINTERS(item, 200));
    call_deep(build_busy, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= 3 * 190);
    EXPECT_LE(atomic_load(&total), 3 * 200);
    for (size_t i = 0; i < 200; i++) {
        pthread_mutex_lock(&lock);
        size_t length = list_check(back[i]);
        EXPECT(length == 0 || length == 100);
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_lock(&lock);
    LOAM_SET(back, NULL);
    pthread_mutex_unlock(&lock);
}

/* Large objects, noscan ones, arrays. */
static void count_any(void *obj, void *arg)
{
    EXPECT_PTR_EQ(loam_base(obj), obj);
    EXPECT_EQ(*(unsigned char *)obj, (unsigned char)(uintptr_t)arg);
    atomic_fetch_add(&total, 1);
}

static void build_sizes(void *arg)
{
    struct rng rng = rng_stream(2);
    (void)arg;
    for (size_t i = 0; i < BATCH; i++) {
        size_t bytes = rng_between(&rng, 16, i % 50 == 0 ? 300000 : 3000);
        unsigned char *p = i % 2 == 0 ? loam_alloc(bytes) : loam_alloc_noscan(bytes);
        memset(p, (int)(i & 0xFF), bytes);
        EXPECT_EQ(loam_set_finalizer(p, count_any, (void *)(uintptr_t)(i & 0xFF)), 0);
    }
}

static void every_size(void)
{
    reset_runs();
    call_deep(build_sizes, NULL);
    COLLECT_UNTIL(30, atomic_load(&total) >= MOST);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    main_thread = pthread_self();
    RUN(each_runs_once);
    RUN(not_while_reachable);
    RUN(owners_before_what_they_own);
    RUN(cycles_never_run);
    RUN(resurrected_objects_are_whole);
    RUN(what_a_finalizer_saves_lives);
    RUN(cleared);
    RUN(errors);
    RUN(finalizers_may_work);
    RUN(every_size);
    return test_end();
}
