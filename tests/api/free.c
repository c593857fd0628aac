/* loam_free gives memory back at once, never touches what is alive, and ends the program when asked to
 * free what is no object's start, with a message that says what it is.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

/* ---- what must end the program ---- */

static void child_double(void)
{
    void *neighbour = loam_alloc(48);
    void *p = loam_alloc(48);
    loam_free(p);
    loam_free(p);
    loam_keep_alive(neighbour);
}

static void child_double_large(void)
{
    void *p = loam_alloc(1 << 20);
    loam_free(p);
    loam_free(p);
}

/* The span was swept meanwhile, and its pages are the heap's again. */
static void child_double_collected(void)
{
    void *p = loam_alloc(100000);
    loam_free(p);
    loam_gc();
    loam_gc();
    loam_free(p);
}

static void child_realloc_freed(void)
{
    void *p = loam_alloc(1 << 20);
    loam_free(p);
    loam_realloc(p, 100);
}

static void child_interior(void)
{
    char *p = loam_alloc(48);
    loam_free(p + 8);
}

static void child_interior_large(void)
{
    char *p = loam_alloc(1 << 20);
    loam_free(p + 8192);
}

static void child_interior_freed(void)
{
    char *neighbour = loam_alloc(48);
    char *p = loam_alloc(48);
    loam_free(p);
    loam_free(p + 8);
    loam_keep_alive(neighbour);
}

/* A page of 8192 bytes holds 85 objects of 96: the last 32 bytes are in none. */
static void child_tail(void)
{
    uintptr_t p = (uintptr_t)loam_alloc_noscan(96);
    loam_free((void *)((p | 8191) - 15));
}

static void child_stack(void)
{
    int local[4] = {0};
    loam_alloc(1);
    loam_free(local);
}

static void child_static(void)
{
    static int data[4];
    loam_alloc(1);
    loam_free(data);
}

static void child_malloc(void)
{
    void *volatile p = malloc(64);
    loam_alloc(1);
    loam_free(p);
}

static void child_small_integer(void)
{
    loam_free((void *)(uintptr_t)16); /* nothing else was called before, too */
}

/* Each with what the message must say, and must not. */
static const struct {
    struct child_case child;
    const char *says;
    const char *never;
} bad[] = {
    {{"double", child_double}, "double free", "middle"},
    {{"double_large", child_double_large}, "double free", "not in the heap"},
    {{"double_collected", child_double_collected}, "double free", "not in the heap"},
    {{"realloc_freed", child_realloc_freed}, "double free or realloc of memory", "not in"},
    {{"interior", child_interior}, "middle of the object", "double"},
    {{"interior_large", child_interior_large}, "middle of the object", "double"},
    {{"interior_freed", child_interior_freed}, "not allocated", "middle"},
    {{"tail", child_tail}, "behind the last object", "middle"},
    {{"stack", child_stack}, "not in the heap", "double"},
    {{"static", child_static}, "not in the heap", "double"},
    {{"malloc", child_malloc}, "not in the heap", "double"},
    {{"small_integer", child_small_integer}, "not in the heap", "double"},
};

static void dispatch_bad(void)
{
    struct child_case children[COUNT_OF(bad)];
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        children[i] = bad[i].child;
    }
    child_dispatch(children, COUNT_OF(children));
}

static void what_is_no_object_aborts(void)
{
    struct child c;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        child_run(&c, bad[i].child.name, NULL, 20);
        EXPECT_MSG(child_aborted(&c), "case %s: expected SIGABRT, got status %#x; it said: %s",
                   bad[i].child.name, (unsigned)c.status, c.text);
        EXPECT_CONTAINS(c.text, "loam: fatal: ");
        EXPECT_CONTAINS(c.text, bad[i].says);
        EXPECT_MSG(strstr(c.text, bad[i].never) == NULL, "case %s said: %s", bad[i].child.name,
                   c.text);
    }
}

/* ---- what must work ---- */

static void null_is_fine(void)
{
    loam_free(NULL);
}

/* Without a collector: a thousand times the memory passes through, and the heap does not grow. */
static void memory_is_used_again(void)
{
    static const size_t sizes[] = {8, 24, 64, 200, 1024, 8000, 32768, 100000};
    int percent = loam_set_gc_percent(-1);
    loam_memstats before, after;

    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        size_t rounds = (256u << 20) / (sizes[s] + 512);
        rounds = rounds > 200000 ? 200000 : rounds;
        loam_read_memstats(&before);
        for (size_t i = 0; i < rounds; i++) {
            char *p = i % 2 == 0 ? loam_alloc(sizes[s]) : loam_alloc_noscan(sizes[s]);
            EXPECT_NOT_NULL(p);
            EXPECT_EQ(p[0], 0);
            EXPECT_EQ(p[sizes[s] - 1], 0);
            p[0] = 1;
            p[sizes[s] - 1] = 1;
            loam_free(p);
        }
        loam_read_memstats(&after);
        EXPECT_MSG(after.heap_inuse < before.heap_inuse + (8u << 20),
                   "%zu blocks of %zu bytes: %" PRIu64 " more in use", rounds, sizes[s],
                   after.heap_inuse - before.heap_inuse);
    }
    loam_set_gc_percent(percent);
}

static struct watch objects;
static struct watch owned;

static void build_owned(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < objects.count; i++) {
        void **p = LOAM_NEW_POINTERS(void, 4);
        void *child = loam_alloc_noscan(64);
        LOAM_SET(p[1], child);
        watch_set(&objects, i, (void *)p);
        watch_set(&owned, i, child);
        loam_free((void *)p);
        EXPECT(watch_is_dead(&objects, i)); /* gone at once */
    }
}

static void weak_pointers_see_it_and_what_it_owned_dies(void)
{
    watch_init(&objects, 500);
    watch_init(&owned, 500);
    call_deep(build_owned, NULL);
    EXPECT_MOST_DIE(&owned);
}

/* ---- under a running cycle ---- */

typedef struct box {
    struct box *inner;
    uint64_t magic;
    uint64_t fill[4];
} box;
LOAM_TYPE(box, inner);

#define MAGIC UINT64_C(0x6C6F616D626F7821)

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static box *box_new(box *inner)
{
    box *b = LOAM_NEW(box);
    EXPECT_NOT_NULL(b);
    EXPECT_EQ(b->magic, 0);
    b->magic = MAGIC;
    LOAM_SET(b->inner, inner);
    return b;
}

/* What was loaded from an object just before that was freed is held by a local only: the free must have shaded it. */
static void *free_owners(void *arg)
{
    struct team_member *me = arg;
    box *kept[64] = {NULL};

    while (!atomic_load(&stop)) {
        box *owner = box_new(box_new(NULL));
        for (size_t i = rng_below(&me->rng, 200); i > 0; i--) {
            box_new(NULL);
        }
        size_t k = rng_below(&me->rng, COUNT_OF(kept));
        kept[k] = owner->inner;
        loam_free(owner);
        k = rng_below(&me->rng, COUNT_OF(kept));
        if (kept[k] != NULL) {
            EXPECT_EQ(kept[k]->magic, MAGIC);
            EXPECT_PTR_EQ(loam_base(kept[k]), kept[k]);
            if (rng_below(&me->rng, 4) == 0) {
                loam_free(kept[k]);
                for (size_t i = 0; i < COUNT_OF(kept); i++) {
                    kept[i] = i != k && kept[i] == kept[k] ? NULL : kept[i];
                }
                kept[k] = NULL;
            }
        }
    }
    return NULL;
}

static void while_a_cycle_runs(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, free_owners, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* Freed by another thread than the one that allocated. */
static box *_Atomic slots[64];

static void *exchange_and_free(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        box *mine = box_new(NULL);
        box *other = loam_exchange(&slots[rng_below(&me->rng, COUNT_OF(slots))], mine);
        if (other != NULL) {
            EXPECT_EQ(other->magic, MAGIC);
            other->magic = 0;
            loam_free(other);
        }
    }
    return NULL;
}

static void by_another_thread(void)
{
    static struct team team;
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, exchange_and_free, NULL);
    sleep_us(test_number("seconds", 1) * 1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    dispatch_bad();
    RUN(what_is_no_object_aborts);
    RUN(null_is_fine);
    RUN(memory_is_used_again);
    RUN(weak_pointers_see_it_and_what_it_owned_dies);
    RUN(while_a_cycle_runs);
    RUN(by_another_thread);
    return test_end();
}
