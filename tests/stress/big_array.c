/* One array of pointers of four GiB, sparsely set, is scanned in pieces while threads move its elements about: none is
 * lost, nobody waits long for the scan, and pages that were never written cost no memory to look at twice.
 *
 * --gib N, --seconds N
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 240
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=50 | --gib 1 | 240
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | --gib 1 | 240 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
    uint64_t fill[2];
} item;
LOAM_TYPE_NOSCAN(item);

enum { USED = 20000, MOVERS = 3 };

static item **array;
static size_t words;
static size_t place[USED]; /* where item i lies; each mover has every MOVERS-th */
static _Atomic(bool) stop;
static _Atomic(uint64_t) moves, longest_ns;

static item *item_new(uint64_t id)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    it->id = id;
    it->check = rng_mix(id);
    return it;
}

static void item_check(const item *it, uint64_t id)
{
    EXPECT_NOT_NULL(it);
    EXPECT_EQ(it->id, id);
    EXPECT_EQ(it->check, rng_mix(id));
}

/* Places are spread over the array, so that two items never share one: item i has the residue i. */
static size_t random_place(struct rng *rng, size_t i)
{
    size_t rows = words / USED < 64 ? words / USED
                                    : 64; /* few pages, so that the array stays sparse */
    return rng_below(rng, rows) * (words / rows) +
           i * (words / rows / USED > 0 ? words / rows / USED : 1);
}

static void note_longest(uint64_t ns)
{
    uint64_t old = atomic_load(&longest_ns);
    while (ns > old && !atomic_compare_exchange_weak(&longest_ns, &old, ns)) {
    }
}

/* Moves items forward and backward past wherever the scan is. */
static void *move_items(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        uint64_t start = now_ns();
        size_t i = rng_below(&me->rng, USED / MOVERS) * MOVERS + me->index;
        size_t to = random_place(&me->rng, i);
        item *it = array[place[i]];
        item_check(it, i);
        LOAM_SET(array[place[i]], NULL);
        if (rng_below(&me->rng, 16) == 0) {
            it = item_new(i);
        }
        LOAM_SET(array[to], it);
        place[i] = to;
        note_longest(now_ns() - start);
        atomic_fetch_add_explicit(&moves, 1, memory_order_relaxed);
    }
    return NULL;
}

static void fill_array(void *arg)
{
    struct rng rng = rng_stream(1);
    (void)arg;
    for (size_t i = 0; i < USED; i++) {
        place[i] = random_place(&rng, i);
        LOAM_SET(array[place[i]], item_new(i));
    }
}

static NOINLINE void check_all(void)
{
    for (size_t i = 0; i < USED; i++) {
        item_check(array[place[i]], i);
    }
}

/* Out of main's frame, which must not hold the array to its end. */
static NOINLINE void make_array(void)
{
    LOAM_SET(array, LOAM_NEW_POINTERS(item, words));
    EXPECT_NOT_NULL(array);
    EXPECT_GE(loam_usable_size(array), words * sizeof *array);
}

static NOINLINE void check_bases(void)
{
    EXPECT_PTR_EQ(loam_base(&array[words - 1]), array);
    EXPECT_PTR_EQ(loam_base(&array[words / 2]), array);
}

int main(int argc, char **argv)
{
    static struct team team;
    loam_memstats m;

    test_begin(argc, argv);
    uint64_t gib = test_number("gib", 4);
    long pages = sysconf(_SC_PHYS_PAGES);
    if (TEST_SANITIZED || pages < 0 || (uint64_t)pages / 262144 < gib + 2) { /* 4 KiB pages */
        test_skip("not enough memory for %" PRIu64 " GiB", gib);
        return test_end();
    }
    words = (size_t)(gib << 30) / sizeof(void *);
    make_array();
    call_deep(fill_array, NULL);
    check_all();
    team_start(&team, MOVERS, move_items, NULL);
    uint64_t start = now_ns();
    unsigned cycles = 0;
    do {
        loam_gc();
        cycles++;
    } while (seconds_since(start) < (double)test_number("seconds", 10));
    double each = seconds_since(start) / cycles;
    atomic_store(&stop, true);
    team_join(&team);
    check_all();
    loam_gc();
    check_all();
    check_bases();
    loam_read_memstats(&m);
    printf("%u cycles of %.2f s, %" PRIu64 " moves, the longest %.3f s\n", cycles, each,
           atomic_load(&moves), (double)atomic_load(&longest_ns) * 1e-9);
    if (!test_godebug("gcstoptheworld")) {
        EXPECT_MSG((double)atomic_load(&longest_ns) * 1e-9 < 0.5 + each * 0.75,
                   "a move waited %.3f s, a cycle takes %.3f s",
                   (double)atomic_load(&longest_ns) * 1e-9, each);
    }
    LOAM_SET(array, NULL);
    scrub_stack();
    loam_gc();
    loam_gc();
    loam_read_memstats(&m);
    EXPECT_LT(m.heap_alloc, gib << 29);
    return test_end();
}
