/* test_numa.c - pages of the node that a thread runs on, on a simulated machine.
 *
 * Claim   With several nodes a thread gets pages of its own, also after others have freed theirs; the system is told of
 *         each arena before it is touched; pages return to their node; a node without memory uses its neighbour's.
 *         Nothing else changes: objects live, memory goes back, checkers pass.
 * Oracle  What the simulated calls were told, and the node that each thread says it is on.
 */
#include "heap/mcache.h"
#include "os/os.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <loam.h>
#include <loam/stats.h>

/* The kernel's numbers 0, 1 and 3; 2 has processors only. */
enum { NODES = 3, MASK = 0xb, MOST_ARENAS = 4096, OBJECTS = 600, BYTES = 200000 };

static _Thread_local int here;
static _Atomic uint8_t told[MOST_ARENAS]; /* node + 1 */

static uint64_t fake_nodes(void)
{
    return MASK;
}

static int fake_here(void)
{
    return here;
}

static void fake_prefer(void *addr, size_t bytes, int node)
{
    size_t arena = ((uintptr_t)addr - heap.base) / ((size_t)ARENA_PAGES << PAGE_SHIFT);
    assert_int_equal(((uintptr_t)addr - heap.base) % ((size_t)ARENA_PAGES << PAGE_SHIFT), 0);
    for (size_t i = 0; i < bytes / ((size_t)ARENA_PAGES << PAGE_SHIFT); i++) {
        assert_int_equal(load_rlx(&told[arena + i]), 0);
        store_rlx(&told[arena + i], (uint8_t)(node + 1));
    }
}

static int node_of(const void *p)
{
    return load_rlx(&told[((uintptr_t)p - heap.base) / ((size_t)ARENA_PAGES << PAGE_SHIFT)]) - 1;
}

static void check_heap(void)
{
    loam_gc();
    mutex_lock(&heap.lock);
    assert_true(mheap_check());
    mutex_unlock(&heap.lock);
}

/* Objects of more pages than a page cache serves: what that holds when its thread moves is used up. */
static NOINLINE void use_node(int node, int expected)
{
    void **kept = loam_alloc(OBJECTS * sizeof *kept);
    here = node;
    for (int i = 0; i < OBJECTS; i++) {
        char *p = loam_alloc_noscan(BYTES);
        assert_non_null(p);
        p[0] = (char)i;
        LOAM_SET(kept[i], p);
        assert_int_equal(node_of(p), expected);
    }
    for (int i = 0; i < OBJECTS; i++) {
        assert_int_equal(*(char *)kept[i], (char)i);
        loam_free(kept[i]);
    }
}

static void test_own_pages(void **state)
{
    (void)state;
    for (int round = 0; round < 3; round++) {
        use_node(0, 0);
        use_node(1, 1);
        use_node(3, 3);
        use_node(2, 1); /* the next below that has memory */
    }
    check_heap();
    assert_int_equal(heap.nnodes, NODES);
}

static _Atomic bool stop;

/* Small objects through page caches, moving between the nodes now and then. */
static void *wander(void *arg)
{
    static const int nodes[] = {0, 1, 3, 2, 7};
    uint64_t x = (uint64_t)(uintptr_t)arg;
    void *kept[100] = {NULL};
    assert_int_equal(loam_attach(), 0);
    for (uint64_t i = 0; !load_rlx(&stop); i++) {
        x = x * UINT64_C(6364136223846793005) + 1442695040888963407;
        if (i % 1000 == 0) {
            here = nodes[x >> 40 & 3];
        }
        size_t bytes = 16 + (x >> 33) % 30000;
        unsigned char *p = loam_alloc_noscan(bytes);
        assert_non_null(p);
        p[0] = p[bytes - 1] = (unsigned char)i;
        void **slot = &kept[(x >> 50) % 100];
        if (*slot != NULL && (x >> 60 & 1) != 0) {
            loam_free(*slot);
        }
        *slot = p;
    }
    return NULL;
}

static void test_wandering_threads(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, wander, (void *)(i + 1)), 0);
    }
    for (int i = 0; i < 10; i++) {
        os_sleep_ns(50000000);
        loam_free_os_memory();
    }
    store_rlx(&stop, true);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    check_heap();
}

/* Of each node's free pages the memory goes back, and comes again as zero. */
static void test_scavenge_all_nodes(void **state)
{
    (void)state;
    loam_memstats st;
    loam_free_os_memory();
    loam_read_memstats(&st);
    mutex_lock(&heap.lock);
    struct mheap_pages pages = mheap_pages_locked();
    for (int node = 0; node < heap.nnodes; node++) {
        assert_true(heap.pages[node].free_pages > 0);
        assert_true(heap.pages[node].free_pages - heap.pages[node].scavenged_pages <
                    heap.pages[node].free_pages / 4 + 64);
    }
    mutex_unlock(&heap.lock);
    assert_int_equal(st.heap_released, (uint64_t)pages.scavenged << PAGE_SHIFT);
    use_node(3, 3);
}

static void test_lists_of_the_kernel(void **state)
{
    (void)state;
    assert_int_equal(os_numa_parse("0\n"), 1);
    assert_int_equal(os_numa_parse("0-1\n"), 3);
    assert_int_equal(os_numa_parse("0-1,3"), 0xb);
    assert_int_equal(os_numa_parse("63-90"), UINT64_C(1) << 63);
    assert_int_equal(os_numa_parse(""), 0);
    assert_int_equal(os_numa_parse("x"), 0);
}

/* The real calls, whatever this machine is. */
static void test_real_calls(void **state)
{
    const struct os_numa *real = *state;
    uint64_t nodes = real->nodes();
    assert_true(nodes != 0);
    int node = real->here();
    assert_true(node >= 0 && node < 64);
    char *p = os_map(MIB(1));
    assert_non_null(p);
    real->prefer(p, MIB(1), ctz64(nodes));
    memset(p, 1, MIB(1));
    os_release(p, MIB(1));
}

int main(void)
{
    static struct os_numa real;
    real = os_numa;
    os_numa = (struct os_numa){fake_nodes, fake_here, fake_prefer};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_real_calls, &real),
        cmocka_unit_test(test_lists_of_the_kernel),
        cmocka_unit_test(test_own_pages),
        cmocka_unit_test(test_wandering_threads),
        cmocka_unit_test(test_scavenge_all_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
