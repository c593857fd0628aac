/* Registered memory keeps alive what it points to from its adding to its removal, and no longer.  The oracle is a
 * model of which ranges are registered.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 60
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 60 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
    uint64_t fill[4];
} item;
LOAM_TYPE_NOSCAN(item);

static item *item_new(uint64_t id)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    it->id = id;
    it->check = rng_mix(id);
    return it;
}

static void item_check(const item *it)
{
    EXPECT_EQ(it->check, rng_mix(it->id));
}

static struct watch batch;

static void fill_range(void *arg)
{
    item **range = arg;
    for (size_t i = 0; i < batch.count; i++) {
        item *it = item_new(i);
        watch_set(&batch, i, it);
        LOAM_SET(range[i], it);
    }
}

static void from_add_to_remove(void)
{
    enum { COUNT = 2000 };
    item **range = calloc(COUNT, sizeof *range);

    watch_init(&batch, COUNT);
    EXPECT_EQ(loam_add_roots(range, COUNT * sizeof *range), 0);
    call_deep(fill_range, range);
    EXPECT_ALL_LIVE(&batch);
    for (size_t i = 0; i < COUNT; i++) {
        item_check(range[i]);
    }
    EXPECT_EQ(loam_remove_roots(range, COUNT * sizeof *range), 0);
    EXPECT_MOST_DIE(&batch);
    free(range);
}

/* A range that begins within a word, and is so long that it is searched in pieces: each whole word in it counts. */
static void unaligned(void)
{
    enum { COUNT = 30000 };
    item **range = calloc(COUNT + 1, sizeof *range);
    char *start = (char *)range - 4 + sizeof *range;
    size_t bytes = COUNT * sizeof *range;

    watch_init(&batch, COUNT - 1);
    EXPECT_EQ(loam_add_roots(start, bytes), 0);
    call_deep(fill_range, range + 1);
    EXPECT_ALL_LIVE(&batch);
    EXPECT_EQ(loam_remove_roots(start, bytes), 0);
    EXPECT_MOST_DIE(&batch);
    free(range);
}

static void plain_malloc_is_not_searched(void)
{
    enum { COUNT = 1000 };
    item **range = calloc(COUNT, sizeof *range);
    watch_init(&batch, COUNT);
    call_deep(fill_range, range);
    EXPECT_MOST_DIE(&batch);
    free(range);
}

/* Cleared or overwritten slots let go, while the range stays. */
static void overwritten(void)
{
    enum { COUNT = 1000 };
    item **range = calloc(COUNT, sizeof *range);
    EXPECT_EQ(loam_add_roots(range, COUNT * sizeof *range), 0);
    watch_init(&batch, COUNT);
    call_deep(fill_range, range);
    loam_clear(range, COUNT * sizeof *range);
    EXPECT_MOST_DIE(&batch);
    EXPECT_EQ(loam_remove_roots(range, COUNT * sizeof *range), 0);
    free(range);
}

/* Ten thousand ranges come and go at random; those that are registered keep their objects. */
enum { RANGES = 10000, WORDS = 4 };
struct range {
    item *slot[WORDS];
    bool added;
};

static void add_range(struct range *r, size_t index)
{
    EXPECT_EQ(loam_add_roots(r->slot, sizeof r->slot), 0);
    r->added = true;
    for (size_t k = 0; k < WORDS; k++) {
        item *it = item_new(index * WORDS + k);
        LOAM_SET(r->slot[k], it);
        watch_set(&batch, index * WORDS + k, it);
    }
}

static void add_all(void *arg)
{
    struct range *ranges = arg;
    for (size_t i = 0; i < RANGES; i++) {
        add_range(&ranges[i], i);
    }
}

static void check_added(struct range *ranges)
{
    for (size_t i = 0; i < RANGES; i++) {
        for (size_t k = 0; k < WORDS && ranges[i].added; k++) {
            item_check(ranges[i].slot[k]);
            EXPECT(!watch_is_dead(&batch, i * WORDS + k));
        }
    }
}

static void ten_thousand(void)
{
    struct range *ranges = calloc(RANGES, sizeof *ranges);
    struct rng rng = rng_stream(1);

    watch_init(&batch, RANGES * WORDS);
    call_deep(add_all, ranges);
    loam_gc();
    check_added(ranges);
    size_t removed = 0;
    for (size_t i = 0; i < RANGES; i++) {
        if (rng_below(&rng, 2) == 0) {
            EXPECT_EQ(loam_remove_roots(ranges[i].slot, sizeof ranges[i].slot), 0);
            ranges[i].added = false;
            removed += WORDS;
        }
    }
    size_t dead = watch_collect(&batch, 95 * removed / batch.count + 1);
    EXPECT_MSG(dead * 100 >= removed * 95, "%zu of %zu died", dead, removed);
    check_added(ranges);
    for (size_t i = 0; i < RANGES; i++) {
        EXPECT_EQ(loam_remove_roots(ranges[i].slot, sizeof ranges[i].slot),
                  ranges[i].added ? 0 : -1);
    }
    EXPECT_MOST_DIE(&batch);
    free(ranges);
}

static void bad_arguments(void)
{
    static item *area[64];
    item **malloced = calloc(64, sizeof *malloced);
    char *p = (char *)malloced;

    EXPECT_ERRNO(loam_add_roots(malloced, SIZE_MAX - 7), -1, EINVAL);
    EXPECT_ERRNO(loam_add_roots((void *)(UINTPTR_MAX - 63), 128), -1, EINVAL);
    EXPECT_ERRNO(loam_remove_roots(malloced, 64), -1, EINVAL);
    EXPECT_EQ(loam_add_roots(p + 64, 256), 0);
    /* Ranges may overlap, even coincide: each add is undone by a removal of its own. */
    EXPECT_EQ(loam_add_roots(p + 64, 256), 0);
    EXPECT_EQ(loam_add_roots(p, 512), 0);
    EXPECT_ERRNO(loam_remove_roots(p + 64, 248), -1, EINVAL);
    EXPECT_ERRNO(loam_remove_roots(p + 72, 248), -1, EINVAL);
    EXPECT_EQ(loam_remove_roots(p, 512), 0);
    EXPECT_ERRNO(loam_remove_roots(p, 512), -1, EINVAL);
    EXPECT_EQ(loam_remove_roots(p + 64, 256), 0);
    EXPECT_EQ(loam_add_roots(p, 64), 0); /* neighbours do not overlap */
    EXPECT_EQ(loam_add_roots(p + 320, 64), 0);
    EXPECT_EQ(loam_remove_roots(p + 64, 256), 0);
    EXPECT_ERRNO(loam_remove_roots(p + 64, 256), -1, EINVAL);
    EXPECT_EQ(loam_remove_roots(p, 64), 0);
    EXPECT_EQ(loam_remove_roots(p + 320, 64), 0);
    /* A range of the program's own data is searched anyway; naming it is no harm. */
    if (loam_add_roots(area, sizeof area) == 0) {
        EXPECT_EQ(loam_remove_roots(area, sizeof area), 0);
    }
    free(malloced);
}

/* After the removal of a range that repeats static data, the static data still counts. */
static item *twice[500];

static void data_that_was_also_registered(void)
{
    if (loam_add_roots(twice, sizeof twice) != 0) {
        test_skip("static data cannot be registered");
        return;
    }
    watch_init(&batch, COUNT_OF(twice));
    call_deep(fill_range, twice);
    EXPECT_ALL_LIVE(&batch);
    EXPECT_EQ(loam_remove_roots(twice, sizeof twice), 0);
    EXPECT_ALL_LIVE(&batch);
    loam_clear(twice, sizeof twice);
    EXPECT_MOST_DIE(&batch);
}

/* Ranges of thread A are seen by a cycle that thread B asked for, all the time. */
static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void *add_and_remove(void *arg)
{
    enum { MINE = 50, WIDTH = 20 };
    struct team_member *me = arg;
    item **mine[MINE] = {NULL};

    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, MINE);
        if (mine[i] == NULL) {
            item **range = calloc(WIDTH, sizeof *range);
            EXPECT_EQ(loam_add_roots(range, WIDTH * sizeof *range), 0);
            for (size_t k = 0; k < WIDTH; k++) {
                LOAM_SET(range[k], item_new(k));
            }
            mine[i] = range;
        } else if (rng_below(&me->rng, 3) == 0) {
            item *last = mine[i][0]; /* from the removal on held by this local alone */
            EXPECT_EQ(loam_remove_roots(mine[i], WIDTH * sizeof *mine[i]), 0);
            free(mine[i]);
            mine[i] = NULL;
            for (int n = 0; n < 100; n++) {
                item_new(0);
            }
            item_check(last);
        } else {
            size_t k = rng_below(&me->rng, WIDTH);
            item_check(mine[i][k]);
            item *fresh = item_new(rng_next(&me->rng));
            LOAM_SET(mine[i][k], fresh);
        }
    }
    for (size_t i = 0; i < MINE; i++) {
        for (size_t k = 0; k < WIDTH && mine[i] != NULL; k++) {
            item_check(mine[i][k]);
        }
        if (mine[i] != NULL) {
            EXPECT_EQ(loam_remove_roots(mine[i], WIDTH * sizeof *mine[i]), 0);
            free(mine[i]);
        }
    }
    return NULL;
}

static void while_cycles_run(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, add_and_remove, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(from_add_to_remove);
    RUN(unaligned);
    RUN(plain_malloc_is_not_searched);
    RUN(overwritten);
    RUN(ten_thousand);
    RUN(bad_arguments);
    RUN(data_that_was_also_registered);
    RUN(while_cycles_run);
    return test_end();
}
