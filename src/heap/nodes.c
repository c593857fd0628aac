/* nodes.c - free pages by node of memory.
 *
 * Purpose     A thread that takes pages gets those of the node it runs on, where the machine has several.
 * Model       Each node has a page allocator of its own over the whole region; an arena belongs to the node of the thread
 *             for which the heap grew by it, and the system is told so before its memory is touched. Pages
 *             return to their node. Who finds none on his own lets the heap grow; then he takes those of others.
 *                 one node: heap.pages[0] has all, and nobody asks where a thread runs
 *             Spans are taken from lists as they come: objects stay where they were made. So do the pages in a
 *             thread's cache, at most 64, when it moves.
 * Locking     heap.lock.
 * From Go     no twin.
 * Tests       tests/unit/test_numa.c, on a simulated machine
 */
#include "heap/mheap.h"

bool mheap_nodes_init(size_t npages)
{
    uint64_t mask = os_numa.nodes();
    int n = 0;
    for (; mask != 0; mask &= mask - 1, n++) {
        if (!pagealloc_init(&heap.pages[n], npages)) {
            while (n-- > 0) {
                pagealloc_fini(&heap.pages[n]);
            }
            return false;
        }
        heap.node_id[n] = ctz64(mask);
    }
    heap.nnodes = n;
    return true;
}

int mheap_node_here(void)
{
    if (likely(heap.nnodes == 1)) {
        return 0;
    }
    int here = os_numa.here();
    int node = heap.nnodes - 1;
    while (node > 0 && heap.node_id[node] > here) { /* one without memory: the next below */
        node--;
    }
    return node;
}

struct pagealloc *mheap_pages_of(size_t pn)
{
    return &heap.pages[likely(heap.nnodes == 1) ? 0 : heap.arena_node[pn / ARENA_PAGES]];
}

struct mheap_pages mheap_pages_locked(void)
{
    struct mheap_pages sum = {0};
    for (int node = 0; node < heap.nnodes; node++) {
        sum.free += heap.pages[node].free_pages;
        sum.scavenged += heap.pages[node].scavenged_pages;
        sum.meta_bytes += heap.pages[node].meta_bytes;
    }
    return sum;
}

size_t mheap_scavenge_locked(struct mheap_cursor *at, size_t max_pages, bool spare_dense,
                             size_t *pn)
{
    for (; at->node < heap.nnodes; at->node++, at->below = SIZE_MAX) {
        size_t n = pagealloc_scavenge(&heap.pages[at->node], max_pages, &at->below, spare_dense,
                                      pn);
        if (n != 0) {
            return n;
        }
    }
    return 0;
}
