/* Hundreds of thousands of roots of every kind (ranges, pins, finalizers, cleanups, weak pointers, ephemerons, loam_stacks,
 * threads) at once: each holds what it should, a cycle with them stays near-linear, and all of it can be given back.
 *
 * --count N (of each of the cheap kinds)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 240
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=20 | --count 50000 | 240
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1 | --count 20000 | 240 */
#include "../support/test.h"

#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static void item_check_id(const item *it, uint64_t id)
{
    item_check(it);
    EXPECT_EQ(it->id, id);
}

enum { STACKS = 500, STACK_SLOTS = 32, THREADS = 100 };

static size_t count;
static item *
    *ranges; /* count words of plain memory, each a range of its own, with a gap beside it */
static uintptr_t *pins; /* disguised */
static item **keys;
static loam_ephemeron **ephemerons;
static struct watch in_ranges, pinned, ended;
static _Atomic(size_t) finalized, cleaned;
static item **stack_memory[STACKS]; /* plain memory, registered as stacks */
static loam_stack *stacks[STACKS];
static _Atomic(bool) stop;
static _Atomic(size_t) ready;

static void count_finalized(void *obj, void *arg)
{
    item_check_id(obj, (uint64_t)(uintptr_t)arg);
    atomic_fetch_add(&finalized, 1);
}

static void count_cleaned(void *arg)
{
    (void)arg;
    atomic_fetch_add(&cleaned, 1);
}

static void build(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < count; i++) {
        item **range = &ranges[2 * i];
        EXPECT_EQ(loam_add_roots(range, sizeof *range), 0);
        item *it = item_new(i, NULL);
        LOAM_SET(*range, it);
        watch_set(&in_ranges, i, it);

        it = loam_pin(item_new(i, NULL));
        EXPECT_NOT_NULL(it);
        pins[i] = disguise(it);
        watch_set(&pinned, i, it);

        it = item_new(i, NULL);
        LOAM_SET(keys[i], it);
        watch_set(&ended, i, it);
        EXPECT_EQ(loam_set_finalizer(it, count_finalized, (void *)(uintptr_t)i), 0);
        EXPECT_NE(loam_add_cleanup(it, count_cleaned, NULL), 0);
        item *value = item_new(i, NULL);
        LOAM_SET(value->next, it);
        LOAM_SET(ephemerons[i], loam_ephemeron_make(it, value));
    }
    for (size_t i = 0; i < STACKS; i++) {
        for (size_t k = 0; k < STACK_SLOTS; k++) {
            stack_memory[i][k] = item_new(i * STACK_SLOTS + k, NULL);
        }
    }
}

static NOINLINE void check_all(void)
{
    for (size_t i = 0; i < count; i++) {
        item_check_id(ranges[2 * i], i);
        item_check_id(reveal(pins[i]), i);
        item_check_id(keys[i], i);
        item *value = loam_ephemeron_value(ephemerons[i]);
        item_check_id(value, i);
        EXPECT_PTR_EQ(value->next, keys[i]);
    }
    for (size_t i = 0; i < STACKS; i++) {
        for (size_t k = 0; k < STACK_SLOTS; k++) {
            item_check_id(stack_memory[i][k], i * STACK_SLOTS + k);
        }
    }
    EXPECT_EQ(atomic_load(&finalized), 0);
    EXPECT_EQ(atomic_load(&cleaned), 0);
}

static void *hold(void *arg)
{
    struct team_member *me = arg;
    item *mine[50];
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        mine[i] = item_new(i, NULL);
    }
    atomic_fetch_add(&ready, 1);
    while (!atomic_load(&stop)) {
        if (me->index % 2 == 0) {
            loam_enter_blocking();
            sleep_us(10000);
            loam_exit_blocking();
        } else {
            sleep_us(10000);
        }
    }
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        item_check_id(mine[i], i);
    }
    return NULL;
}

static NOINLINE void give_back(void)
{
    for (size_t i = 0; i < count; i++) {
        EXPECT_EQ(loam_remove_roots(&ranges[2 * i], sizeof ranges[2 * i]), 0);
        loam_unpin(reveal(pins[i]));
    }
    for (size_t i = 0; i < STACKS; i++) {
        loam_stack_remove(stacks[i]);
    }
    LOAM_SET(keys, NULL);
}

static double collect(void)
{
    uint64_t start = now_ns();
    loam_gc();
    return seconds_since(start);
}

int main(int argc, char **argv)
{
    static struct team team;
    test_begin(argc, argv);
    count = test_number("count", test_scaled(200000));
    ranges = calloc(2 * count, sizeof *ranges);
    pins = calloc(count, sizeof *pins);
    LOAM_SET(keys, LOAM_NEW_POINTERS(item, count));
    LOAM_SET(ephemerons, LOAM_NEW_POINTERS(loam_ephemeron, count));
    watch_init(&in_ranges, count);
    watch_init(&pinned, count);
    watch_init(&ended, count);
    for (size_t i = 0; i < STACKS; i++) {
        stack_memory[i] = calloc(STACK_SLOTS, sizeof *stack_memory[i]);
        stacks[i] = loam_stack_add(stack_memory[i], STACK_SLOTS * sizeof *stack_memory[i], NULL);
        EXPECT_NOT_NULL(stacks[i]);
    }
    uint64_t start = now_ns();
    call_deep(build, NULL);
    double built = seconds_since(start);
    team_start(&team, THREADS, hold, NULL);
    WAIT_FOR(60, atomic_load(&ready) == THREADS);
    double collected = collect();
    check_all();
    for (int i = 0; i < 2; i++) {
        double again = collect();
        collected = again < collected ? again : collected;
        check_all();
    }
    atomic_store(&stop, true);
    team_join(&team);
    start = now_ns();
    give_back();
    double given = seconds_since(start);
    printf("%zu of each: built in %.2f s, collected in %.2f s, given back in %.2f s\n", count,
           built, collected, given);
    /* under ThreadSanitizer each access calls its runtime; a square would be 20 000 */
    double slower = TEST_TSAN ? 10 : 1;
    EXPECT_MSG(collected < slower * (1 + 50e-6 * (double)count), "a cycle takes %g s",
               collected); /* the square would be hours */
    EXPECT_MSG(given < 5 + 50e-6 * (double)count, "giving back took %g s", given);
    EXPECT_MOST_DIE(&in_ranges);
    EXPECT_MOST_DIE(&pinned);
    EXPECT_MOST_DIE(&ended);
    COLLECT_UNTIL(60, atomic_load(&finalized) >= count * 95 / 100 &&
                          atomic_load(&cleaned) >= count * 90 / 100);
    for (size_t i = 0; i < count; i++) {
        if (watch_is_dead(&ended, i)) {
            EXPECT_NULL(loam_ephemeron_value(ephemerons[i]));
        }
    }
    return test_end();
}
