/* What cannot work fails as the contract says, with errno, and leaves the heap working: sizes that overflow, types that
 * are none, arguments that are out of range.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 60 */
#include "../support/test.h"

#include <loam/stats.h>
#include <math.h>

#include "../support/child.h"
#include "../support/heap.h"

typedef struct node {
    struct node *left, *right;
    char *name;
    uint64_t key;
} node;
LOAM_TYPE(node, left, right, name);

typedef struct row {
    uint64_t count;
    void *items[];
} row;
LOAM_TYPE_FLEX(row, items);

typedef struct letter {
    char c;
} letter;
LOAM_TYPE_NOSCAN(letter);

static void check_heap_works(void)
{
    node *n = LOAM_NEW(node);
    EXPECT_NOT_NULL(n);
    LOAM_SET(n->left, LOAM_NEW(node));
    loam_gc();
    EXPECT_EQ(n->left->key, 0);
}

static void sizes_that_overflow(void)
{
    /* volatile: the compiler must not know, or it warns */
    static volatile size_t sizes[] = {SIZE_MAX,        SIZE_MAX - 1,     SIZE_MAX - 15,
                                      SIZE_MAX - 8191, SIZE_MAX / 2 + 1, SIZE_MAX / 2,
                                      (size_t)1 << 62, (size_t)1 << 48};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        EXPECT_ERRNO(loam_alloc(sizes[i]), NULL, ENOMEM);
        EXPECT_ERRNO(loam_alloc_noscan(sizes[i]), NULL, ENOMEM);
        EXPECT_ERRNO(loam_realloc(NULL, sizes[i]), NULL, ENOMEM);
        EXPECT_ERRNO(LOAM_NEW_ARRAY(letter, sizes[i]), NULL, ENOMEM);
        EXPECT_ERRNO(LOAM_NEW_ARRAY(node, sizes[i]), NULL, ENOMEM);
        EXPECT_ERRNO(LOAM_NEW_POINTERS(node, sizes[i]), NULL, ENOMEM);
        EXPECT_ERRNO(LOAM_NEW_FLEX(row, sizes[i]), NULL, ENOMEM);
    }
    /* counts whose product wraps to something small */
    static volatile size_t counts[] = {SIZE_MAX / 32 + 1, SIZE_MAX / 32 + 2, SIZE_MAX / 8 + 1,
                                       SIZE_MAX / 8 + 2,  SIZE_MAX / 16 + 1, SIZE_MAX / 2 + 2};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        EXPECT_ERRNO(LOAM_NEW_ARRAY(node, counts[i]), NULL, ENOMEM);
        EXPECT_ERRNO(LOAM_NEW_POINTERS(node, counts[i] > SIZE_MAX / 8 ? counts[i]
                                                                      : SIZE_MAX / 8 + counts[i]),
                     NULL, ENOMEM);
        EXPECT_ERRNO(
            LOAM_NEW_FLEX(row, counts[i] > SIZE_MAX / 8 ? counts[i] : SIZE_MAX / 8 + counts[i]),
            NULL, ENOMEM);
    }
    EXPECT_ERRNO(LOAM_NEW_FLEX(row, SIZE_MAX / 8), NULL,
                 ENOMEM); /* only with the head does it wrap */
    check_heap_works();
}

static void nothing_of_a_kind(void)
{
    EXPECT_NOT_NULL(LOAM_NEW_ARRAY(node, 0));
    EXPECT_NOT_NULL(LOAM_NEW_POINTERS(node, 0));
    row *r = LOAM_NEW_FLEX(row, 0);
    EXPECT_NOT_NULL(r);
    EXPECT_EQ(r->count, 0);
    void *out[1] = {r};
    EXPECT_EQ(loam_new_batch(LOAM_TYPEOF(node), 0, out), 0);
    EXPECT_PTR_EQ(out[0], r);
}

static void types_that_are_none(void)
{
    static const size_t good[] = {0, 8};
    static const size_t unaligned[] = {0, 12};
    static const size_t outside[] = {0, 32};
    static const size_t across[] = {24};
    static const size_t huge[] = {SIZE_MAX - 7};
    EXPECT_ERRNO(loam_type_make("empty", 0, NULL, 0), NULL, EINVAL);
    EXPECT_ERRNO(loam_type_make("empty", 0, good, 2), NULL, EINVAL);
    EXPECT_ERRNO(loam_type_make("unaligned", 32, unaligned, 2), NULL, EINVAL);
    EXPECT_ERRNO(loam_type_make("outside", 32, outside, 2), NULL, EINVAL);
    EXPECT_ERRNO(loam_type_make("across", 28, across, 1), NULL, EINVAL);
    EXPECT_ERRNO(loam_type_make("huge", 32, huge, 1), NULL, EINVAL);
    const loam_type *noscan = loam_type_make("noscan", 13, NULL, 0);
    EXPECT_NOT_NULL(noscan);
    EXPECT_NOT_NULL(loam_new(noscan, 3));
    EXPECT_ERRNO(loam_new_flex(LOAM_TYPEOF(node), 3), NULL, EINVAL);
    const loam_type *fine = loam_type_make("fine", 16, good, 2);
    EXPECT_NOT_NULL(fine);
    EXPECT_ERRNO(loam_new_flex(fine, 3), NULL, EINVAL);
    EXPECT_ERRNO(loam_new(fine, SIZE_MAX / 16 + 1), NULL, ENOMEM);
    check_heap_works();
}

static void nulls_that_are_fine(void)
{
    loam_free(NULL);
    loam_keep_alive(NULL);
    loam_cleanup_stop(0);
    EXPECT_EQ(loam_usable_size(NULL), 0);
    EXPECT_NULL(loam_base(NULL));
    loam_set_oom_handler(NULL, NULL);
    EXPECT_NOT_NULL(loam_realloc(NULL, 0));
}

static void nulls_that_are_not(void)
{
    /* volatile: the compiler knows which arguments may not be NULL */
    static const loam_type *volatile no_type;
    static void **volatile no_out;
    static const char *volatile no_text;
    static void *volatile nothing;
    void *out[2] = {NULL, NULL};
    EXPECT_ERRNO(loam_new(no_type, 1), NULL, EINVAL);
    EXPECT_ERRNO(loam_new(no_type, 7), NULL, EINVAL);
    EXPECT_ERRNO(loam_new_flex(no_type, 1), NULL, EINVAL);
    EXPECT_ERRNO(loam_new_batch(no_type, 2, out), 0, EINVAL);
    EXPECT_NULL(out[0]);
    EXPECT_ERRNO(loam_new_batch(LOAM_TYPEOF(node), 3, no_out), 0, EINVAL);
    EXPECT_EQ(loam_new_batch(LOAM_TYPEOF(node), 0, no_out), 0);
    EXPECT_ERRNO(loam_strdup(no_text), NULL, EINVAL);
    EXPECT_ERRNO(loam_type_make(no_text, 8, NULL, 0), NULL, EINVAL);
    EXPECT_ERRNO(loam_add_roots(nothing, 64), -1, EINVAL);
    EXPECT_ERRNO(loam_stack_add(nothing, 64, NULL), NULL, EINVAL);
    EXPECT_ERRNO(loam_stack_set(NULL, out, sizeof out), -1, EINVAL);
    loam_stack_remove(NULL);
    EXPECT_NULL(loam_pin(nothing));
    loam_unpin(nothing);
    check_heap_works();
}

static void memstats_into_nothing(void)
{
    static loam_memstats *volatile nowhere;
    loam_read_memstats(nowhere);
}

static const struct child_case children[] = {{"memstats_into_nothing", memstats_into_nothing}};

static void statistics_into_nothing(void)
{
    struct child c;
    child_run(&c, "memstats_into_nothing", NULL, 20);
    EXPECT_CHILD_ABORTED(&c);
    EXPECT_CONTAINS(c.text, "loam_read_memstats(NULL)");
}

static void too_late(void)
{
    check_heap_works();
    EXPECT_ERRNO(loam_set_pointer_mask(UINTPTR_MAX), -1, EBUSY);
    EXPECT_ERRNO(loam_set_signal(SIGUSR1), -1, EBUSY);
    check_heap_works();
}

static void settings_out_of_range(void)
{
    int percent = loam_set_gc_percent(100);
    EXPECT_EQ(loam_set_gc_percent(INT32_MAX), 100);
    loam_gc();
    EXPECT_EQ(loam_set_gc_percent(INT32_MIN), INT32_MAX);
    EXPECT(loam_set_gc_percent(0) < 0);
    check_heap_works();
    EXPECT_EQ(loam_set_gc_percent(percent), 0);

    int procs = loam_set_max_procs(0);
    EXPECT_GE(procs, 1);
    EXPECT_EQ(loam_set_max_procs(-5), procs);
    EXPECT_EQ(loam_set_max_procs(1), procs);
    check_heap_works();
    EXPECT_EQ(loam_set_max_procs(100000), 1);
    check_heap_works();
    loam_set_max_procs(procs);
    EXPECT_EQ(loam_set_max_procs(0), procs);

    int64_t heap = loam_set_min_heap(-1);
    EXPECT_EQ(loam_set_min_heap(64 << 20), heap);
    EXPECT_EQ(loam_set_min_heap(-1), 64 << 20);
    EXPECT_EQ(loam_set_min_heap(heap), 64 << 20);

    EXPECT_EQ(loam_set_memory_limit(-1), INT64_MAX);
    EXPECT_EQ(loam_set_memory_limit(INT64_MIN), INT64_MAX);
    EXPECT_EQ(loam_set_memory_limit(1), INT64_MAX); /* not kept, and no hang */
    check_heap_works();
    EXPECT_EQ(loam_set_memory_limit(0), 1);
    check_heap_works();
    EXPECT_EQ(loam_set_memory_limit(INT64_MAX - 1), 0);
    check_heap_works();
    EXPECT_EQ(loam_set_memory_limit(INT64_MAX), INT64_MAX - 1);
    EXPECT_EQ(loam_set_memory_limit(-1), INT64_MAX);

    EXPECT(loam_set_gc_cpu_limit(-1) == 0.5);
    EXPECT(loam_set_gc_cpu_limit(NAN) == 0.5);
    EXPECT(loam_set_gc_cpu_limit(7) == 0.5);
    EXPECT(loam_set_gc_cpu_limit(0) == 1);
    check_heap_works();
    EXPECT(loam_set_gc_cpu_limit(0.5) == 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(sizes_that_overflow);
    RUN(nothing_of_a_kind);
    RUN(types_that_are_none);
    RUN(nulls_that_are_fine);
    RUN(nulls_that_are_not);
    RUN(statistics_into_nothing);
    RUN(too_late);
    RUN(settings_out_of_range);
    return test_end();
}
