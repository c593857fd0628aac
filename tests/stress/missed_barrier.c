/* GODEBUG=gccheckmark=1 finds what breaks rule 3: a pointer stored without LOAM_SET, and a pointer kept in a field that
 * its type does not list.  The program is made to break the rule in a process of its own, over and over until it is
 * found, and must end with SIGABRT and a message that names the type, the field and the target.  A program that keeps
 * the rule is not accused.
 *
 * --seconds N: how long to try for each breach (30)
 *
 * TEST_LABEL: stress
 * TEST_TIMEOUT: 180 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

typedef struct careless {
    struct careless *unguarded;
    struct careless *guarded;
    uint64_t forgotten; /* holds a pointer, and is not listed */
    uint64_t number;
} careless;
LOAM_TYPE(careless, unguarded, guarded);

enum { WIDTH = 5000 };
static careless **table;
static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static careless *careless_new(uint64_t number)
{
    careless *c = LOAM_NEW(careless);
    EXPECT_NOT_NULL(c);
    c->number = number;
    return c;
}

static NOINLINE void fill_table(void)
{
    LOAM_SET(table, LOAM_NEW_POINTERS(careless, WIDTH));
    for (size_t i = 0; i < WIDTH; i++) {
        LOAM_SET(table[i], careless_new(i));
    }
}

/* Hides an object from the snapshot, without a barrier: it moves from one object's field to another's.  Sooner or later
 * the marker has been at the second and comes too late to the first. */
static NOINLINE void move_without_barrier(struct rng *rng)
{
    careless *from = table[rng_below(rng, WIDTH)];
    careless *to = table[rng_below(rng, WIDTH)];
    careless *volatile *out = &from->unguarded;
    careless *volatile *in = &to->unguarded;
    *in = *out;
    if (out != in) {
        *out = NULL;
    }
    if (*in == NULL) {
        careless *fresh = careless_new(rng_next(rng));
        *in = fresh;
    }
}

static NOINLINE void move_with_barrier(struct rng *rng)
{
    careless *from = table[rng_below(rng, WIDTH)];
    careless *to = table[rng_below(rng, WIDTH)];
    careless *moved = from->guarded;
    LOAM_SET(from->guarded, NULL);
    LOAM_SET(to->guarded, moved != NULL ? moved : careless_new(1));
}

static void run_moves(void (*move)(struct rng *rng), double seconds)
{
    struct rng rng = rng_stream(1);
    fill_table();
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (uint64_t start = now_ns(); seconds_since(start) < seconds;) {
        for (int i = 0; i < 1000; i++) {
            move(&rng);
        }
        scrub_stack();
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

static void child_no_barrier(void)
{
    run_moves(move_without_barrier, (double)test_number("seconds", 30));
}

static void child_with_barrier(void)
{
    run_moves(move_with_barrier, 2);
}

/* ---- the forgotten field ---- */

static NOINLINE void forget_one(size_t i)
{
    careless *kept = careless_new(i);
    table[i]->forgotten = (uintptr_t)kept; /* the only pointer to it */
}

static void forget(void *arg)
{
    (void)arg;
    fill_table();
    for (size_t i = 0; i < WIDTH; i++) {
        forget_one(i);
    }
}

static void child_forgotten(void)
{
    for (uint64_t start = now_ns(); seconds_since(start) < (double)test_number("seconds", 30);) {
        call_deep(forget, NULL);
        loam_gc();
    }
}

/* Numbers in unlisted words are no pointers, and nobody is accused. */
static void child_numbers(void)
{
    for (int round = 0; round < 20; round++) {
        fill_table();
        for (size_t i = 0; i < WIDTH; i++) {
            table[i]->forgotten = rng_mix(i) >> (i % 60);
        }
        loam_gc();
    }
}

/* ---- a breach that the program mends with gcstoptheworld ---- */

static void child_stopped(void)
{
    run_moves(move_without_barrier, 2);
    for (size_t i = 0; i < WIDTH; i++) {
        EXPECT_EQ(table[i]->number, i);
    }
}

static const struct child_case children[] = {
    {"no_barrier", child_no_barrier}, {"with_barrier", child_with_barrier},
    {"forgotten", child_forgotten},   {"numbers", child_numbers},
    {"stopped", child_stopped},
};

static const char *const checkmark[] = {"GODEBUG=gccheckmark=1", NULL};

static void expect_found(const char *name, const char *field)
{
    struct child c;
    uint64_t start = now_ns();
    child_run(&c, name, checkmark, 90);
    EXPECT_MSG(child_aborted(&c), "%s: not found in %.0f s: status %#x; it said: %s", name,
               seconds_since(start), (unsigned)c.status, c.text);
    EXPECT_CONTAINS(c.text, "careless");
    if (field != NULL) {
        EXPECT_CONTAINS(c.text, field);
    }
    EXPECT_CONTAINS(c.text, "0x"); /* an address: object and target */
    printf("  found after %.1f s; it said:\n%s\n", seconds_since(start), c.text);
}

static void a_store_without_barrier_is_found(void)
{
    expect_found("no_barrier", "unguarded");
}

/* The field has no name; its place has: 16 bytes into the object. */
static void a_forgotten_field_is_found(void)
{
    expect_found("forgotten", "16");
}

static void who_keeps_the_rule_is_not_accused(void)
{
    struct child c;
    child_run(&c, "with_barrier", checkmark, 60);
    EXPECT_CHILD_PASSED(&c);
    child_run(&c, "numbers", checkmark, 60);
    EXPECT_CHILD_PASSED(&c);
}

static void no_rule_is_needed_when_the_world_stops(void)
{
    static const char *const stopped[] = {"GODEBUG=gcstoptheworld=1,clobberfree=1", NULL};
    struct child c;
    child_run(&c, "stopped", stopped, 60);
    EXPECT_CHILD_PASSED(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(a_store_without_barrier_is_found);
    RUN(a_forgotten_field_is_found);
    RUN(who_keeps_the_rule_is_not_accused);
    RUN(no_rule_is_needed_when_the_world_stops);
    return test_end();
}
