/* hugepages.c - where the system shall use huge pages.
 *
 * Purpose     The heap asks for them where it is large, dense and in use, and forbids them where it has holes: there the
 *             kernel's khugepaged would fill the holes with memory that was given back.
 * Model       By arenas of 64 MiB, each with its part of the bits, 2 MiB:
 *                 FRESH as it came -- FULL_CYCLES ended and none of its pages was with the system --> HUGE
 *                 FRESH, HUGE -- the scavenger makes a hole --> SMALL
 *                 SMALL -- as FRESH --> HUGE
 *             Not sooner: khugepaged holds the lock of the mappings while it joins pages, at the lowest priority, and a
 *             page fault waits for it; where processors were busy one was seen to wait 16 ms. A heap that has come
 *             to rest has few of them.
 *             Not when it is made: who first touches a huge page waits until all of it is there, milliseconds in a
 *             virtual machine whose host has yet to find the memory (docs/internals/design.md), so pages come
 *             small, and khugepaged joins them in the background. The first arena is left as it is: small programs do
 *             not pay 2 MiB where some pages would do. There are at most as many mappings as arenas.
 *             GODEBUG=disablethp=1: all SMALL from the start, whatever the system does by itself.
 * Locking     none: the states are hints. Two threads that change one at once may leave the advice of the other.
 * From Go     Go leaves the heap to the system since 1.21.x (its hints made khugepaged undo the scavenger, golang/go
 *             63334, 64332); differs: arenas with holes ask for none, so there is nothing to undo.
 * Tests       tests/api/hugepages.c
 */
#include "heap/mheap.h"

enum { FIRST_ARENA = 1, FULL_CYCLES = 16 };
#define ARENA_BYTES ((size_t)ARENA_PAGES << PAGE_SHIFT)

enum arena_pages { FRESH, HUGE, SMALL };

static struct {
    bool off;
    _Atomic uint8_t arenas[ARENAS_MAX]; /* enum arena_pages */
    uint8_t full[ARENAS_MAX]; /* at how many ends of cycles in a row; under gc.cycle_lock */
} hugepages;

static void advise(size_t arena, size_t n, bool huge)
{
    size_t bits = ARENA_PAGES * BITS_WORDS * sizeof(uint64_t);
    os_huge((char *)heap.base + arena * ARENA_BYTES, n * ARENA_BYTES, huge);
    os_huge((char *)heap.bits + arena * bits, n * bits, huge);
}

void mheap_hugepages_off(void)
{
    hugepages.off = true;
    advise(0, heap.reserved_pages / ARENA_PAGES, false);
}

void mheap_hugepages_hole(size_t pn)
{
    size_t arena = pn / ARENA_PAGES;
    if (!hugepages.off && arena >= FIRST_ARENA &&
        xchg_rlx(&hugepages.arenas[arena], (uint8_t)SMALL) != SMALL) {
        advise(arena, 1, false);
    }
}

static bool is_full(size_t arena)
{
    mutex_lock(&heap.lock);
    size_t pn = arena * ARENA_PAGES;
    bool any = pagealloc_any_scavenged(mheap_pages_of(pn), pn, ARENA_PAGES);
    mutex_unlock(&heap.lock);
    return !any;
}

void mheap_hugepages_filled(void)
{
    size_t end = (load_rlx(&heap.used) >> PAGE_SHIFT) / ARENA_PAGES;
    for (size_t arena = FIRST_ARENA; arena < end && !hugepages.off; arena++) {
        if (load_rlx(&hugepages.arenas[arena]) == HUGE) {
            continue;
        }
        hugepages.full[arena] = is_full(arena) ? hugepages.full[arena] + 1 : 0;
        if (hugepages.full[arena] == FULL_CYCLES) {
            hugepages.full[arena] = 0;
            store_rlx(&hugepages.arenas[arena], (uint8_t)HUGE);
            advise(arena, 1, true);
        }
    }
}
