/* Memory that is not there gives NULL and ENOMEM after the handler was called, and the heap goes on working; the handler
 * may leave by longjmp; what is garbage is collected before anybody hears of it.  Under RLIMIT_AS, in processes of
 * their own.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 120 */
#include "../support/test.h"

#include <setjmp.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

typedef struct block {
    struct block *next;
    uint64_t check;
    char bytes[];
} block;
LOAM_TYPE_FLEX(block, bytes, next);

enum { LIMIT_MIB = 700 };

static void limit_memory(void)
{
    struct rlimit limit = {(rlim_t)LIMIT_MIB << 20, (rlim_t)LIMIT_MIB << 20};
    EXPECT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
}

static block *blocks; /* what is held */
static jmp_buf out;
static _Atomic(unsigned) called;
static const char argument[] = "the argument";

static void count_call(void *arg)
{
    EXPECT_PTR_EQ(arg, argument);
    atomic_fetch_add(&called, 1);
}

static void leave(void *arg)
{
    count_call(arg);
    longjmp(out, 1);
}

/* Allocates and holds until NULL; gives the bytes that came. */
static NOINLINE size_t fill_heap(size_t each)
{
    size_t total = 0;
    for (;;) {
        errno = 0;
        block *b = LOAM_NEW_FLEX(block, each);
        if (b == NULL) {
            EXPECT_EQ(errno, ENOMEM);
            return total;
        }
        b->check = rng_mix(total + 1);
        LOAM_SET(b->next, blocks);
        LOAM_SET(blocks, b);
        total += each;
        EXPECT_MSG(total < (size_t)LIMIT_MIB << 20, "%zu bytes under a limit of %d MiB", total,
                   LIMIT_MIB);
    }
}

static NOINLINE size_t check_blocks(void)
{
    size_t count = 0;
    for (block *b = blocks; b != NULL; b = b->next) {
        EXPECT_NE(b->check, 0);
        count++;
    }
    return count;
}

static void drop_blocks(void)
{
    LOAM_SET(blocks, NULL);
    scrub_stack();
    loam_gc();
}

static void child_null(void)
{
    static const size_t sizes[] = {100, 3000, 100000, 10 << 20};
    limit_memory();
    loam_set_oom_handler(count_call, (void *)(uintptr_t)argument);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        unsigned before = atomic_load(&called);
        size_t total = fill_heap(sizes[i]);
        EXPECT_MSG(total > (size_t)100 << 20, "only %zu bytes came, %zu each", total, sizes[i]);
        EXPECT_GT(atomic_load(&called), before);
        EXPECT_EQ(check_blocks() * sizes[i], total);
        for (int k = 0; k < 5; k++) { /* again and again: each answers */
            before = atomic_load(&called);
            EXPECT_ERRNO(loam_alloc_noscan((size_t)600 << 20), NULL, ENOMEM);
            EXPECT_EQ(atomic_load(&called), before + 1);
        }
        loam_gc(); /* works without memory, too */
        EXPECT_EQ(check_blocks() * sizes[i], total);
        drop_blocks();
        EXPECT_NOT_NULL(loam_alloc(20 << 20));
    }
}

static void child_longjmp(void)
{
    limit_memory();
    loam_set_oom_handler(leave, (void *)(uintptr_t)argument);
    for (volatile int i = 0; i < 4; i++) {
        if (setjmp(out) == 0) {
            fill_heap(i % 2 == 0 ? 5000 : 200000);
            FAIL("the handler did not leave");
        }
        EXPECT_EQ(atomic_load(&called), i + 1);
        EXPECT_GT(check_blocks(), 100);
        drop_blocks();
        for (int k = 0; k < 1000; k++) {
            EXPECT_NOT_NULL(loam_alloc(1000));
        }
    }
}

/* Garbage is found before the handler is called: with the collector off a program lives for ever on a small part. */
static void child_emergency(void)
{
    limit_memory();
    loam_set_oom_handler(count_call, (void *)(uintptr_t)argument);
    loam_set_gc_percent(-1);
    for (size_t i = 0; i < 4000; i++) { /* 4 GB of garbage, in 1 MB and in smaller blocks */
        if (i % 2 == 0) {
            EXPECT_NOT_NULL(loam_alloc(1 << 20));
        } else {
            for (int k = 0; k < 256; k++) {
                EXPECT_NOT_NULL(loam_alloc(4096));
            }
        }
    }
    EXPECT_EQ(atomic_load(&called), 0);
}

/* The handler makes room: it drops the cache, and the next try succeeds. */
static void make_room(void *arg)
{
    count_call(arg);
    LOAM_SET(blocks, NULL);
}

static void child_make_room(void)
{
    limit_memory();
    loam_set_oom_handler(make_room, (void *)(uintptr_t)argument);
    for (int i = 0; i < 4; i++) {
        fill_heap(50000);
        scrub_stack();
        EXPECT_NOT_NULL(loam_alloc(50 << 20));
    }
    EXPECT_GE(atomic_load(&called), 4);
}

static void *fill_a_little(void *arg)
{
    for (int i = 0; i < 200; i++) {
        block *mine = NULL;
        for (;;) {
            block *b = LOAM_NEW_FLEX(block, 100000);
            if (b == NULL) {
                break;
            }
            LOAM_SET(b->next, mine);
            mine = b;
        }
        loam_keep_alive(mine);
    }
    return arg;
}

static void child_threads(void)
{
    static struct team team;
    limit_memory();
    loam_set_oom_handler(count_call, (void *)(uintptr_t)argument);
    team_start(&team, 4, fill_a_little, NULL);
    team_join(&team);
    EXPECT_GE(atomic_load(&called), 4 * 200);
    EXPECT_NOT_NULL(loam_alloc(1 << 20));
}

static const struct child_case children[] = {
    {"null", child_null},           {"longjmp", child_longjmp}, {"emergency", child_emergency},
    {"make_room", child_make_room}, {"threads", child_threads},
};

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    if (TEST_SANITIZED || getenv("TEST_EMULATOR") != NULL) {
        test_skip("RLIMIT_AS under a sanitizer, or an emulator that does not pass it on");
        return test_end();
    }
    for (size_t i = 0; i < COUNT_OF(children); i++) {
        struct child c;
        child_run(&c, children[i].name, NULL, 60);
        EXPECT_MSG(child_exited(&c, 0), "case %s ended with status %#x%s; it said: %s",
                   children[i].name, (unsigned)c.status, c.timed_out ? " (timed out)" : "", c.text);
        printf("ok %s\n", children[i].name);
    }
    return test_end();
}
