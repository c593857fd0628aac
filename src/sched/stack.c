/* stack.c - the stacks of goroutines.
 *
 * Purpose     A stack of its own for each goroutine, that takes memory as it is used and gives it back.
 * Model       One reserved region, made accessible in chunks of 64 MiB; each chunk holds slots of one class, 64 KiB << class,
 *             up to the chunk itself; a larger stack is a run of chunks. A slot is [guard | stack]: who runs over the end
 *             touches the guard and is told. Memory comes with the first touch, and a slot that is used again
 *             is still warm.
 * Invariants  [stack.slot]  a slot belongs to one goroutine until stack_free; its guard, made when it is first used, stays for ever.
 *             [stack.count] heap.stats.stack_bytes is the sum of what stacks had when they were last looked at: parked, by the walk
 *                           of a cycle; at least a page from their start on.
 * Locking     stacks.lock, for moments; system calls are made outside, but for a chunk's commit.
 * From Go     stack.go; differs: a stack does not move, so pointers into it stay true; it shrinks by pages.
 * Tests       tests/api/goroutines.c (sizes, overflow), goroutine_memory.c, tests/stress/goroutine_graph.c (a deep dive)
 */
#include "sched/sched.h"

#include "base/bits.h"
#include "base/check.h"
#include "heap/fixalloc.h"

#include <errno.h>

enum {
    LEAST_SHIFT = 16,
    CHUNK_SHIFT = 26,
    CLASSES = CHUNK_SHIFT - LEAST_SHIFT + 1,
    HUGE_CLASS = CLASSES,          /* HUGE_CLASS + k: 2 << k chunks */
    HUGE_SHIFTS = 11,              /* up to 128 GiB with the guard */
    CHUNKS_MAX = STACK_CHUNKS_MAX, /* 1 TiB */
    CHUNKS_LEAST = 1 << 2,
    KEEP_BYTES = 16 << 10, /* below the stack pointer, when the rest goes back */
};

#define CHUNK_BYTES ((size_t)1 << CHUNK_SHIFT)

#define UNGUARDED (1u << 31)

struct slots {      /* of one class */
    uint32_t *free; /* numbers: chunk << CLASSES | place in it, and perhaps UNGUARDED */
    size_t nfree, room;
    uint32_t nchunks; /* of the class */
    uint32_t chunk,
        next; /* where slots that were never used are taken from; next == per chunk: nowhere */
};

static struct {
    struct mutex lock;
    uintptr_t base;
    uint32_t nchunks; /* reserved */
    struct slots classes[CLASSES];
    uint64_t taken[CHUNKS_MAX / 64]; /* a bit for each chunk */
    uint8_t class_of[CHUNKS_MAX];    /* of the slots of a chunk, for good */
} stacks;

static size_t guard_bytes(void)
{
    size_t page = os_page_size();
    return page > KIB(16) ? page : KIB(16);
}

static size_t class_bytes(uint8_t class)
{
    return class < HUGE_CLASS ? KIB(64) << class : (CHUNK_BYTES * 2) << (class - HUGE_CLASS);
}

size_t stack_default_bytes(void)
{
    return class_bytes(STACK_DEFAULT_CLASS);
}

bool stack_class_for(size_t bytes, uint8_t *class)
{
    if (bytes == 0) {
        *class = STACK_DEFAULT_CLASS;
        return true;
    }
    if (bytes > GIB(64)) {
        return false;
    }
    for (int k = 0; k < HUGE_CLASS + HUGE_SHIFTS; k++) {
        if (bytes <= class_bytes((uint8_t)k) - guard_bytes()) {
            *class = (uint8_t)k;
            return true;
        }
    }
    return false;
}

/* As much as the system gives, once. */
static bool reserve_locked(void)
{
    size_t most = os_address_limit() / 4;
    for (uint32_t n = CHUNKS_MAX; stacks.base == 0 && n >= CHUNKS_LEAST; n /= 2) {
        if (n * CHUNK_BYTES <= most) {
            stacks.base = (uintptr_t)os_reserve(n * CHUNK_BYTES, CHUNK_BYTES);
            stacks.nchunks = n;
        }
    }
    if (stacks.base != 0) {
        os_name((void *)stacks.base, stacks.nchunks * CHUNK_BYTES, "loam: stacks");
    }
    return stacks.base != 0;
}

static bool is_taken(uint32_t chunk)
{
    return (stacks.taken[chunk / 64] >> chunk % 64 & 1) != 0;
}

/* The lowest run of n free chunks, accessible; its first, or nchunks. */
static uint32_t take_chunks_locked(uint32_t n)
{
    uint32_t run = 0;
    if (stacks.base == 0 && !reserve_locked()) {
        return stacks.nchunks;
    }
    for (uint32_t c = 0; c < stacks.nchunks; c++) {
        run = is_taken(c) ? 0 : run + 1;
        if (run < n) {
            continue;
        }
        uint32_t first = c + 1 - n;
        if (!os_commit((void *)(stacks.base + first * CHUNK_BYTES), n * CHUNK_BYTES)) {
            return stacks.nchunks;
        }
        /* A huge page would be a whole stack at the first touch. */
        os_huge((void *)(stacks.base + first * CHUNK_BYTES), n * CHUNK_BYTES, false);
        for (uint32_t i = first; i <= c; i++) {
            stacks.taken[i / 64] |= UINT64_C(1) << i % 64;
            stacks.class_of[i] = HUGE_CLASS;
        }
        return first;
    }
    return stacks.nchunks;
}

/* Bytes at the end that are not used, so that the first frames of all stacks do not share the same few lines of the
 * caches: slots are powers of two apart. */
static size_t colour(uintptr_t at, uint8_t class)
{
    enum { COLOURS = 16 };
    return class < HUGE_CLASS ? (at / class_bytes(class)) % COLOURS * CACHE_LINE : 0;
}

static uint32_t slots_in_chunk(uint8_t class)
{
    return (uint32_t)(CHUNK_BYTES / class_bytes(class));
}

/* Room to note all slots of one more chunk as free, so that stack_free cannot fail. */
static bool make_room_locked(struct slots *s, uint8_t class, size_t chunks)
{
    size_t room = chunks * slots_in_chunk(class);
    if (room <= s->room) {
        return true;
    }
    room = room < 2 * s->room ? 2 * s->room : room;
    uint32_t *bigger = metaalloc(room * sizeof *bigger);
    if (bigger == NULL) {
        return false;
    }
    for (size_t i = 0; i < s->nfree; i++) {
        bigger[i] = s->free[i];
    }
    metafree(s->free, s->room * sizeof *s->free);
    s->free = bigger;
    s->room = room;
    return true;
}

/* A slot's address; 0: none. fresh: it has no guard yet. */
static uintptr_t take_slot_locked(uint8_t class, bool *fresh)
{
    struct slots *s = &stacks.classes[class];
    *fresh = false;
    if (s->nfree != 0) {
        uint32_t number = s->free[--s->nfree];
        *fresh = (number & UNGUARDED) != 0;
        number &= ~UNGUARDED;
        return stacks.base + (number >> CLASSES) * CHUNK_BYTES +
               (number & ((1u << CLASSES) - 1)) * class_bytes(class);
    }
    *fresh = true;
    if (s->nchunks == 0 || s->next == slots_in_chunk(class)) {
        size_t chunks = s->nchunks + 1;
        uint32_t chunk;
        if (!make_room_locked(s, class, chunks) ||
            (chunk = take_chunks_locked(1)) == stacks.nchunks) {
            return 0;
        }
        stacks.class_of[chunk] = class;
        s->nchunks++;
        s->chunk = chunk;
        s->next = 0;
    }
    return stacks.base + s->chunk * CHUNK_BYTES + s->next++ * class_bytes(class);
}

static void give_slot_locked(uint8_t class, uintptr_t at, uint32_t unguarded)
{
    struct slots *s = &stacks.classes[class];
    uint32_t chunk = (uint32_t)((at - stacks.base) >> CHUNK_SHIFT);
    uint32_t place = (uint32_t)((at & (CHUNK_BYTES - 1)) / class_bytes(class));
    ASSERT(s->nfree < s->room);
    s->free[s->nfree++] = chunk << CLASSES | place | unguarded;
}

static void free_as(struct g *g, uint32_t unguarded)
{
    uintptr_t at = g->stack_low - guard_bytes();
    stack_discard(g);
    mutex_lock(&stacks.lock);
    if (g->stack_class < HUGE_CLASS) {
        give_slot_locked(g->stack_class, at, unguarded);
    } else {
        uint32_t first = (uint32_t)((at - stacks.base) >> CHUNK_SHIFT);
        uint32_t n = (uint32_t)(class_bytes(g->stack_class) >> CHUNK_SHIFT);
        for (uint32_t i = first; i < first + n; i++) {
            stacks.taken[i / 64] &= ~(UINT64_C(1) << i % 64);
        }
    }
    mutex_unlock(&stacks.lock);
    g->stack_low = g->stack_high = 0;
}

bool stack_alloc(struct g *g, uint8_t class)
{
    bool fresh = true;
    uintptr_t at = 0;
    mutex_lock(&stacks.lock);
    if (class < HUGE_CLASS) {
        at = take_slot_locked(class, &fresh);
    } else {
        uint32_t first = take_chunks_locked((uint32_t)(class_bytes(class) >> CHUNK_SHIFT));
        at = first == stacks.nchunks ? 0 : stacks.base + first * CHUNK_BYTES;
    }
    mutex_unlock(&stacks.lock);
    if (at == 0) {
        return false;
    }
    g->stack_class = class;
    g->stack_low = at + guard_bytes();
    g->stack_high = at + class_bytes(class) - colour(at, class);
    if (fresh && !os_guard((void *)at, guard_bytes())) {
        free_as(g, UNGUARDED);
        return false;
    }
    return true;
}

uint32_t stack_chunk(uintptr_t addr)
{
    return (uint32_t)((addr - stacks.base) >> CHUNK_SHIFT);
}

bool stack_is_one(uintptr_t addr)
{
    return addr - stacks.base < stacks.nchunks * CHUNK_BYTES;
}

uint32_t stack_slot_at(uintptr_t addr)
{
    return (uint32_t)((addr & (CHUNK_BYTES - 1)) / class_bytes(stacks.class_of[stack_chunk(addr)]));
}

size_t stack_slot_bytes(uintptr_t addr, uintptr_t *at)
{
    size_t bytes = class_bytes(stacks.class_of[stack_chunk(addr)]);
    *at = align_down(addr, bytes);
    return bytes;
}

uint32_t stack_slots_of(uint32_t chunk)
{
    return stacks.class_of[chunk] < HUGE_CLASS ? slots_in_chunk(stacks.class_of[chunk]) : 0;
}

void stack_free(struct g *g)
{
    free_as(g, 0);
}

static uintptr_t end_of_pages(const struct g *g)
{
    return align_up(g->stack_high, os_page_size());
}

void stack_count(struct g *g, size_t pages)
{
    if (g->stack_pages != pages) {
        uint64_t more = (pages - (uint64_t)g->stack_pages) *
                        os_page_size(); /* perhaps less: modulo 2^64 */
        add_rlx(&heap.stats.stack_bytes, more);
        g->stack_pages = (uint32_t)pages;
    }
}

void stack_discard(struct g *g)
{
    os_discard((void *)g->stack_low, end_of_pages(g) - g->stack_low);
    stack_count(g, 0);
}

/* A stack is touched from its end on. */
void stack_look(struct g *g, uintptr_t sp)
{
    size_t page = os_page_size();
    uintptr_t lowest = os_lowest_resident(g->stack_low, end_of_pages(g));
    size_t used = g->stack_high - sp + KEEP_BYTES;
    if (4 * used < end_of_pages(g) - lowest) {
        uintptr_t keep = align_down(sp - KEEP_BYTES, page);
        os_discard((void *)g->stack_low, keep - g->stack_low);
        lowest = keep;
    }
    stack_count(g, (end_of_pages(g) - lowest) / page);
}

bool stack_guards(const struct g *g, uintptr_t addr)
{
    return addr < g->stack_low && addr >= g->stack_low - guard_bytes();
}
