/* trace.c - the rings of the execution trace: who has one, and what goes in and out.
 *
 * Locking     world.lock: which source has which ring. Putting and taking: none.
 * Ordering    ring: release by trace_switch_on and attach, acquire in trace_add. seq: release when a slot is filled,
 *             acquire in trace_take. tail: release when it was read, acquire in trace_add.
 * From Go     trace buffers of Ms (trace.go); differs: the ring is its thread's for good, nobody takes its lock.
 * Tests       tests/unit/test_trace.c, tests/api/trace.c
 */
#include "world/trace.h"

#include "heap/mheap.h"
#include "world/world.h"

#include <string.h>

struct trace trace;

/* -- putting ----------------------------------------------------------------------------------- */

/* [trace.slot] For the thread and its handlers alone: no other one writes it, so it need not be locked. */
ALWAYS_INLINE bool take_slot(_Atomic uint32_t *head, uint32_t *seen)
{
#if defined(__x86_64__)
    bool taken;
    __asm__ volatile("cmpxchgl %3, %1"
                     : "=@ccz"(taken), "+m"(*head), "+a"(*seen)
                     : "r"(*seen + 1)
                     : "memory");
    return taken;
#else
    return cas_rlx(head, seen, *seen + 1); /* relaxed: as above */
#endif
}

void trace_wake_reader(void)
{
    add_acqrel(&trace.word, 1u);
    os_futex_wake(&trace.word, 1);
}

void trace_add(struct trace_source *s, enum trace_kind kind, int64_t begin, int64_t end, uint64_t a,
               uint64_t b)
{
    struct trace_ring *ring =
        load_acq(&s->ring); /* acquire: the ring; pairs with give_ring_locked */
    if (ring == NULL) {
        return;
    }
    uint32_t at = load_rlx(&ring->head);
    uint32_t used;
    do {
        used = at - load_acq(&ring->tail); /* acquire: the slot was read; pairs with trace_take */
        uint32_t now = load_rlx(&ring->head);
        if (now != at) { /* a handler's, which may have been read as well */
            at = now;
            used = at - load_acq(&ring->tail); /* acquire: as above */
        }
        if (used >= TRACE_SLOTS) {
            add_rlx(&ring->dropped, 1u); /* relaxed: a count */
            return;
        }
    } while (!take_slot(&ring->head, &at));
    struct trace_slot *slot = &ring->slots[at % TRACE_SLOTS];
    slot->tag = load_rlx(&ring->tid) << 8 | (uint32_t)kind; /* relaxed: a name */
    slot->begin = begin;
    slot->end = end;
    slot->a = a;
    slot->b = b;
    store_rel(&slot->seq, at + 1); /* release: the event; pairs with trace_take */
    if (unlikely(used == TRACE_SLOTS / 2)) {
        trace_wake_reader();
    }
}

void trace_long_pause(int tid, uint64_t ns)
{
    store_rlx(&trace.pause_tid, (uint32_t)tid); /* relaxed: of two pauses at once it names either */
    store_rlx(&trace.pause_ns, ns);
    trace_wake_reader();
}

/* -- taking ------------------------------------------------------------------------------------ */

bool trace_take(struct trace_ring *ring, struct trace_event *e)
{
    uint32_t at = load_rlx(&ring->tail);
    struct trace_slot *slot = &ring->slots[at % TRACE_SLOTS];
    if (load_acq(&slot->seq) != at + 1) { /* acquire: the event; pairs with trace_add */
        return false;
    }
    *e = (struct trace_event){.begin = slot->begin,
                              .end = slot->end,
                              .a = slot->a,
                              .b = slot->b,
                              .tid = slot->tag >> 8,
                              .kind = slot->tag & 0xff};
    store_rel(&ring->tail, at + 1); /* release: it was read; pairs with trace_add */
    return true;
}

/* -- who has a ring ---------------------------------------------------------------------------- */

static struct trace_ring *new_ring_locked(void)
{
    struct trace_ring *ring = trace.free_rings;
    if (ring != NULL) {
        trace.free_rings = ring->free;
        return ring;
    }
    size_t bytes = align_up(sizeof *ring, os_page_size());
    ring = os_map(bytes);
    if (ring == NULL) {
        add_rlx(&trace.refused, 1u);
        return NULL;
    }
    add_rlx(&heap.stats.trace_bytes, (uint64_t)bytes);
    ring->next = load_rlx(&trace.rings);
    store_rel(&trace.rings, ring); /* release: next; pairs with the reader's walk */
    return ring;
}

static void give_ring_locked(struct trace_source *s, int tid)
{
    if (s->own == NULL) {
        s->own = new_ring_locked();
        if (s->own != NULL) {
            store_rlx(&s->own->tid, (uint32_t)tid);
        }
    }
    if (s->own != NULL) {
        store_rel(&s->ring, s->own); /* release: the ring; pairs with trace_add */
    }
}

void trace_attach_locked(struct m *m)
{
    if (trace.on) {
        give_ring_locked(&m->trace, m->tid);
    }
}

/* What it has put there is still to be read, and says of whom it is. */
void trace_detach_locked(struct m *m)
{
    struct trace_ring *ring = m->trace.own;
    store_rlx(&m->trace.ring, NULL); /* relaxed: its thread's own */
    m->trace.own = NULL;
    if (ring != NULL) {
        ring->free = trace.free_rings;
        trace.free_rings = ring;
    }
}

void trace_library_begins(int which)
{
    struct trace_source *s = &trace.library[which];
    mutex_lock(&world.lock);
    s->tid = os_gettid();
    if (s->own != NULL) { /* of who took the steps before it */
        store_rlx(&s->own->tid, (uint32_t)s->tid);
    }
    if (trace.on) {
        give_ring_locked(s, s->tid);
    }
    mutex_unlock(&world.lock);
}

enum { LIBRARY_SOURCES = sizeof trace.library / sizeof *trace.library };

void trace_switch_on(void)
{
    mutex_lock(&world.lock);
    trace.on = true;
    for (int i = 0; i < LIBRARY_SOURCES; i++) {
        /* The collector's always: where it has no thread, who takes the steps puts them there. */
        if (trace.library[i].tid != 0 || i == TRACE_COLLECTOR) {
            give_ring_locked(&trace.library[i], trace.library[i].tid);
        }
    }
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        give_ring_locked(&m->trace, m->tid);
    }
    mutex_unlock(&world.lock);
}

void trace_switch_off(void)
{
    mutex_lock(&world.lock);
    trace.on = false;
    for (int i = 0; i < LIBRARY_SOURCES; i++) {
        store_rlx(&trace.library[i].ring, NULL); /* relaxed: a little late does no harm */
    }
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        store_rlx(&m->trace.ring, NULL);
    }
    mutex_unlock(&world.lock);
}

static void forget_ring(struct m *m)
{
    store_rlx(&m->trace.ring, NULL);
    m->trace.own = NULL;
}

/* Single-threaded. The fork may have come amid an event of another thread, so no ring is used again; the caller's own stays
 * mapped, for it may be in a handler over an event. */
void trace_fork_child(struct m *self, bool whole)
{
    struct trace_ring *keep = self != NULL ? self->trace.own : NULL;
    for (struct m *m = whole ? world.ms : NULL; m != NULL; m = m->next) {
        forget_ring(m);
    }
    if (self != NULL) {
        forget_ring(self);
    }
    for (struct trace_ring *ring = load_rlx(&trace.rings); ring != NULL;) {
        struct trace_ring *next = ring->next;
        if (ring != keep) {
            size_t bytes = align_up(sizeof *ring, os_page_size());
            os_release(ring, bytes);
            sub_rlx(&heap.stats.trace_bytes, (uint64_t)bytes);
        }
        ring = next;
    }
    void (*reader)(void) = load_rlx(&trace.fork_child);
    memset((void *)&trace, 0, sizeof trace);
    if (reader != NULL) {
        reader();
    }
}
