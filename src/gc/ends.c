/* ends.c - finalizers, cleanups, weak pointers, ephemerons, and samples of the heap profile.
 *
 * Purpose     Keeps what is to happen when an object dies, keeps alive what that needs, and runs it.
 * Model       special: one record of 64 bytes per finalizer, cleanup, weak pointer; two per ephemeron.
 *                 mspan.specials[index] -> special -> special -> NULL     (of one object)
 *             Records lie in slots numbered from 0, so [roots] is a walk over slots, a few at a time,
 *             and a cleanup's id is its slot and how often that was used. A record whose object died
 *             with something to run moves, in its slot, to the queue of the library's own thread.
 *             sample: keeps nothing alive and is no reason to run anything; told when the object is gone for good.
 *             weak handle: a noscan heap object {address hidden as ~address, birth}, 0 once dead.
 *             ephemeron:   a heap object {hidden key, birth, hidden value}; one special on the key
 *                          (SPECIAL_KEY), one on itself (SPECIAL_EPHEMERON), each other's peer.
 *             Ephemerons while marking: who marks a key pushes the key's first ephemeron on gc.keys;
 *             who drains that marks the values of those of its ephemerons that are marked. Who scans an
 *             ephemeron marks its value if the key is marked. Each pair is looked at twice at most.
 * Invariants  [ends.lists]   lists of specials change under ends.lock and are walked without it by
 *                            markers: a record taken off keeps `next`, and is not used again before the
 *                            next flip (limbo). The sweeper may reuse at once: nobody marks then.
 *             [ends.weak]    the handle of a dead object is 0 before its slot is free.
 *             [ends.decide]  between [mark-done] and the sweep of its span an object is alive iff it is
 *                            marked; after it, iff its handle is not 0. span_ends.swept_gen tells
 *                            which, under ends.lock: so nobody waits for a sweeper. What got its
 *                            handle after the flip (`birth`) is alive.
 *             [ends.order]   what a finalizable object reaches is marked, itself not: owners run first.
 *             [ends.late]    what became a root after [roots] passed is shaded by who made it one.
 * Locking     the phase (phase.c) > ends.lock > metaalloc's. Program threads take them while busy. The phase is
 *             held only while a cycle marks or ends, as then phase and sweepgen stay what they are; a busy
 *             thread that reads GC_OFF needs not, for [mark-done] waits for its answers. No lock is held
 *             while a program's function runs, or while anything is marked.
 * Ordering    lists: a record is published with release, walked with acquire. Ephemerons: each side
 *             sets its mark, then fence_sc, then tests the other's: one of both sees it.
 * From Go     mfinal.go, mcleanup.go, specials of mheap.go, weak; differs: records are found by index
 *             instead of by walking a sorted list; weak to strong does not wait for mark termination
 *             nor sweep; ephemerons are ours (Hayes 1997).
 * Tests       tests/api/finalizer.c, cleanup.c, weak.c, ephemeron.c; tests/model [weak] [ephemeron]
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "gc/ends.h"

#include "gc/mark.h"
#include "heap/fixalloc.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

enum special_kind {
    SPECIAL_FREE,
    SPECIAL_FINALIZER,
    SPECIAL_CLEANUP,
    SPECIAL_WEAK,
    SPECIAL_KEY,
    SPECIAL_EPHEMERON,
    SPECIAL_SAMPLE,
    SPECIAL_QUEUED_FINALIZER,
    SPECIAL_QUEUED_CLEANUP,
};

/* All fields are written under ends.lock. */
struct special {
    _Atomic uint8_t kind;           /* markers read it */
    uint32_t slot;                  /* its number; fixed */
    uint32_t used;                  /* how often the slot was freed */
    uint32_t pn;                    /* the object's span */
    uint32_t index;                 /* the object */
    _Atomic(struct special *) next; /* of the same object; kept when taken off: [ends.lists] */
    struct special *prev; /* of the same object; next in the queue, in limbo, in the free list */
    _Atomic(struct special *) link; /* next in gc.keys; written by who marks the key */
    uintptr_t word;                 /* argument, handle, (SPECIAL_KEY) ephemeron, what is sampled */
    union {
        void (*finalizer)(void *obj, void *arg);
        void (*cleanup)(void *arg);
        struct special *peer;
        uint32_t when; /* SPECIAL_SAMPLE */
    } u;
};
_Static_assert(sizeof(struct special) == 64, "one special per cache line");

/* In front of the array that mspan.specials points to. Under ends.lock. */
struct span_ends {
    uint32_t count;     /* specials of all its objects */
    uint32_t swept_gen; /* ends_sweep_span decided who died, in this sweep generation */
    uint64_t unused;
};

/* How a heap object names another one without keeping it alive. */
struct hidden {
    _Atomic uintptr_t key;   /* ~address; 0: dead */
    _Atomic uintptr_t birth; /* heap.sweepgen when it was made */
};

struct ephemeron {
    struct hidden hidden;
    _Atomic uintptr_t value; /* ~value */
};

enum {
    CHUNK_SLOTS = 1024, /* chunk k has CHUNK_SLOTS << k slots */
    MAX_CHUNKS = 17,
    ROOT_BATCH = 128, /* slots walked under the lock at once: some microseconds */
};

enum thread_state { THREAD_NONE, THREAD_STARTED };

static struct {
    struct mutex lock;
    struct special *chunks[MAX_CHUNKS];
    uint32_t nslots;                    /* slots ever handed out */
    struct special *free;               /* by prev */
    struct special *limbo, *limbo_last; /* freed in generation limbo_gen; by prev: [ends.lists] */
    uint32_t limbo_gen;
    struct special *queue, *queue_last; /* to be run, oldest first; by prev */
    _Atomic uint32_t nqueued;
    struct ends_counts counts;
    uint32_t cycle_gen; /* sweepgen while the present cycle marks */
    _Atomic uint64_t bytes;

    _Atomic uint32_t thread;  /* enum thread_state */
    _Atomic uint32_t wakeups; /* futex of the thread */
    _Atomic uint32_t asleep;
    struct m *runner; /* the thread's record; written by itself and in fork's child */
    bool warned;
} ends;

void *(*ends_alloc)(struct m *m, struct gctype *type, size_t bytes);
void (*ends_sample_ended)(void *what, uint32_t when);

/* -- slots ------------------------------------------------------------------------------------- */

static unsigned slot_chunk(uint32_t slot)
{
    return 63 - clz64(slot / CHUNK_SLOTS + 1);
}

static struct special *special_at(uint32_t slot)
{
    unsigned k = slot_chunk(slot);
    return &ends.chunks[k][slot - CHUNK_SLOTS * ((1u << k) - 1)];
}

/* The records that were freed before the last flip may be used again: no marker is at one of them. */
static void limbo_end_locked(void)
{
    uint32_t sg = load_acq(&heap.sweepgen); /* acquire: pairs with the flip */
    if (ends.limbo_gen != sg) {
        if (ends.limbo != NULL) {
            ends.limbo_last->prev = ends.free;
            ends.free = ends.limbo;
            ends.limbo = ends.limbo_last = NULL;
        }
        ends.limbo_gen = sg;
    }
}

static struct special *special_new_locked(enum special_kind kind, const struct mspan *s,
                                          size_t index)
{
    limbo_end_locked();
    struct special *sp = ends.free;
    if (sp != NULL) {
        ends.free = sp->prev;
    } else {
        unsigned k = slot_chunk(ends.nslots);
        if (k >= MAX_CHUNKS) {
            return NULL;
        }
        if (ends.chunks[k] == NULL) {
            size_t bytes = ((size_t)CHUNK_SLOTS << k) * sizeof *sp;
            ends.chunks[k] = persistentalloc(bytes, CACHE_LINE, &ends.bytes);
            if (ends.chunks[k] == NULL) {
                return NULL;
            }
        }
        sp = special_at(ends.nslots);
        sp->slot = ends.nslots++;
    }
    store_rlx(&sp->kind, (uint8_t)kind); /* relaxed: published with the list */
    sp->pn = (uint32_t)mspan_pn(s);
    sp->index = (uint32_t)index;
    return sp;
}

/* Nobody marks, and nobody will before this is known to all. */
static void special_free_now_locked(struct special *sp)
{
    store_rlx(&sp->kind, (uint8_t)SPECIAL_FREE); /* relaxed: nobody walks */
    sp->used++;
    sp->prev = ends.free;
    ends.free = sp;
}

static void special_free_locked(struct special *sp)
{
    limbo_end_locked();
    store_rlx(&sp->kind, (uint8_t)SPECIAL_FREE); /* relaxed: a marker may act on either */
    sp->used++;
    sp->prev = NULL;
    if (ends.limbo_last != NULL) {
        ends.limbo_last->prev = sp;
    } else {
        ends.limbo = sp;
    }
    ends.limbo_last = sp;
}

/* -- the specials of an object ----------------------------------------------------------------- */

static struct span_ends *span_ends_of(struct special **heads)
{
    return (struct span_ends *)(void *)heads - 1;
}

static size_t heads_bytes(const struct mspan *s)
{
    return sizeof(struct span_ends) + s->nelems * sizeof(struct special *);
}

static struct special *head_load(struct special **heads, size_t index)
{
    return __atomic_load_n(&heads[index],
                           __ATOMIC_ACQUIRE); /* acquire: pairs with special_attach */
}

static bool heads_make_locked(struct mspan *s)
{
    if (load_rlx(&s->specials) != NULL) { /* relaxed: under the lock */
        return true;
    }
    struct span_ends *e = metaalloc(heads_bytes(s));
    if (e == NULL) {
        return false;
    }
    /* release: the array is zero; pairs with ends_key_marked and gc_sweep_span. */
    store_rel(&s->specials, (struct special **)(void *)(e + 1));
    return true;
}

static void heads_free_locked(struct mspan *s)
{
    struct special **heads = load_rlx(&s->specials);
    ASSERT(span_ends_of(heads)->count == 0);
    store_rel(&s->specials, NULL); /* nobody marks: [ends.lists] */
    metafree(span_ends_of(heads), heads_bytes(s));
    size_t pn = mspan_pn(s);
    if (load_rlx(&heap.descs[pn]) & PAGEDESC_KEYS) {
        for (size_t i = 0; i < s->npages; i++) {
            and_acqrel(&heap.descs[pn + i], ~PAGEDESC_KEYS);
        }
    }
}

static struct special *special_find_locked(const struct mspan *s, size_t index,
                                           enum special_kind kind)
{
    struct special **heads = load_rlx(&s->specials); /* relaxed: under the lock */
    struct special *sp = heads == NULL ? NULL : heads[index];
    while (sp != NULL && load_rlx(&sp->kind) != kind) {
        sp = load_rlx(&sp->next);
    }
    return sp;
}

/* heads_make_locked came before. */
static void special_attach_locked(struct special *sp)
{
    struct special **heads = load_rlx(&heap.spans[sp->pn].specials);
    struct special *old = heads[sp->index];
    sp->prev = NULL;
    store_rlx(&sp->next, old); /* relaxed: published below */
    if (old != NULL) {
        old->prev = sp;
    }
    __atomic_store_n(&heads[sp->index], sp,
                     __ATOMIC_RELEASE); /* release: *sp; pairs with head_load */
    span_ends_of(heads)->count++;
}

/* sp keeps its next: a marker may be at it. */
static void special_detach_locked(struct special *sp)
{
    struct special **heads = load_rlx(&heap.spans[sp->pn].specials);
    struct special *next = load_rlx(&sp->next);
    if (sp->prev != NULL) {
        store_rel(&sp->prev->next, next); /* release: *next; pairs with a marker's walk */
    } else {
        ASSERT(heads[sp->index] == sp);
        __atomic_store_n(&heads[sp->index], next, __ATOMIC_RELEASE); /* release: as above */
    }
    if (next != NULL) {
        next->prev = sp->prev;
    }
    ASSERT(span_ends_of(heads)->count > 0);
    span_ends_of(heads)->count--;
}

/* -- entering ---------------------------------------------------------------------------------- */

/* Busy from here to ends_leave. */
static struct phase_hold ends_enter(struct m *m)
{
    m_enter(m);
    return gc_hold_phase(m);
}

static void ends_leave(struct m *m, struct phase_hold h)
{
    gc_release_phase(m, h);
    m_leave(m);
}

/* Is there an object that starts at p? */
static bool find_start(const void *p, struct mspan **s, size_t *index)
{
    return m_find_object((uintptr_t)p, s, index) && mspan_object(*s, *index) == (uintptr_t)p;
}

/* Is the object around addr marked, or none there that could be? Any time, any value. */
static bool is_marked_at(uintptr_t addr, bool if_none)
{
    struct mark_bit b;
    uintptr_t off = (addr & heap.pointer_mask) - heap.base;
    if (off >= load_rlx(&heap.used) || !mark_bit_of(off, &b)) {
        return if_none;
    }
    return (load_acq(b.word) & b.mask) != 0; /* acquire: pairs with the marker's or */
}

/* -- the queue and its thread ------------------------------------------------------------------ */

static void ends_queue_locked(struct special *sp, enum special_kind kind)
{
    store_rlx(&sp->kind, (uint8_t)kind); /* relaxed: a marker may act on either */
    sp->prev = NULL;
    if (ends.queue_last != NULL) {
        ends.queue_last->prev = sp;
    } else {
        ends.queue = sp;
    }
    ends.queue_last = sp;
    _Atomic uint64_t *queued = kind == SPECIAL_QUEUED_FINALIZER ? &ends.counts.finalizers_queued
                                                                : &ends.counts.cleanups_queued;
    add_rlx(queued, UINT64_C(1));
    add_rlx(&ends.nqueued, 1u); /* relaxed: the lock orders it; read for reports */
}

static void ends_wake(void)
{
    /* seq_cst: this add, then the load; the thread stores asleep, then loads: one sees the other. */
    atomic_fetch_add_explicit(&ends.wakeups, 1, memory_order_seq_cst);
    if (load_sc(&ends.asleep) != 0) {
        os_futex_wake(&ends.wakeups, 1);
    }
}

struct ending {
    void (*finalizer)(void *obj, void *arg);
    void (*cleanup)(void *arg);
    void *obj, *arg;
};

/* The oldest entry; from now on this thread's stack keeps obj and arg. */
static bool ends_take(struct m *m, struct ending *e)
{
    struct phase_hold hold = ends_enter(m);
    mutex_lock(&ends.lock);
    struct special *sp = ends.queue;
    if (sp != NULL) {
        *e = (struct ending){.arg = (void *)sp->word};
        if (load_rlx(&sp->kind) == SPECIAL_QUEUED_FINALIZER) {
            e->finalizer = sp->u.finalizer;
            e->obj = (void *)mspan_object(&heap.spans[sp->pn], sp->index);
        } else {
            e->cleanup = sp->u.cleanup;
        }
        ends.queue = sp->prev;
        if (ends.queue == NULL) {
            ends.queue_last = NULL;
        }
        sub_rlx(&ends.nqueued, 1u); /* relaxed: as in ends_queue_locked */
        special_free_locked(sp);
    }
    mutex_unlock(&ends.lock);
    if (sp != NULL) { /* [roots] may not have come to it, and this stack may have been scanned */
        gc_shade(m, (uintptr_t)e->obj);
        gc_shade(m, (uintptr_t)e->arg);
    }
    ends_leave(m, hold);
    return sp != NULL;
}

/* A frame of its own, so that nothing of the entry is left on the stack while the thread sleeps. */
static NOINLINE bool ends_run_one(struct m *m)
{
    struct ending e;
    if (!ends_take(m, &e)) {
        return false;
    }
    if (e.finalizer != NULL) {
        e.finalizer(e.obj, e.arg);
        add_rlx(&ends.counts.finalizers_executed, UINT64_C(1));
    } else {
        /* An entry has one of the two: who registers it checks that. */
        e.cleanup(e.arg); /* NOLINT(clang-analyzer-core.CallAndMessage) */
        add_rlx(&ends.counts.cleanups_executed, UINT64_C(1));
    }
    return true;
}

/* A library thread is born with all signals blocked. This one runs the program's functions: it is
 * reached by the collector's, and faults as the program's threads do. */
static void ends_unblock_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, world.signo);
    sigaddset(&set, SIGSEGV);
    sigaddset(&set, SIGBUS);
    sigaddset(&set, SIGFPE);
    sigaddset(&set, SIGILL);
    sigaddset(&set, SIGTRAP);
    sigaddset(&set, SIGSYS);
    sigaddset(&set, SIGABRT);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* What the last function of the program, or what was done for it, left below our frame shall not come to lie in the
 * frames in which the thread sleeps: its stack is searched. */
static NOINLINE void ends_wipe_below(void)
{
    char below[1024]; /* more than ends_sleep and what it calls take */
    memset(below, 0, sizeof below);
    __asm__ volatile("" : : "r"(below) : "memory"); /* not left out */
}

static void ends_sleep(struct m *m, uint32_t seen)
{
    m_enter_blocking(m, FRAME_END);
    store_sc(&ends.asleep, 1u); /* seq_cst: see ends_wake */
    if (load_sc(&ends.wakeups) == seen) {
        os_futex_wait(&ends.wakeups, seen, -1);
    }
    store_rlx(&ends.asleep, 0u); /* relaxed: a wake too many is harmless */
    m_exit_blocking(m);
}

static bool halve_stack(struct m *m)
{
    bool (*halve)(struct m *) = load_acq(&gc.halve_managed); /* acquire: loam_mstack_make */
    return halve != NULL && halve(m);
}

enum { NO_MEMORY_PAUSE_NS = 10000000 };

static void ends_main(void *arg)
{
    (void)arg;
    ends_unblock_signals();
    for (;;) {
        struct m *m = m_get(); /* anew each time: a program's function may have detached it */
        if (m == NULL) {
            os_sleep_ns(NO_MEMORY_PAUSE_NS);
            continue;
        }
        ends.runner = m;
        m->is_library = true;
        uint32_t seen = load_acq(&ends.wakeups); /* acquire: pairs with ends_wake */
        if (!ends_run_one(m) && !gc_pressure_tell(m) && !halve_stack(m)) {
            ends_wipe_below();
            ends_sleep(m, seen);
        }
    }
}

static void ends_start_thread(void)
{
    uint32_t none = THREAD_NONE;
    if (load_rlx(&ends.thread) != THREAD_NONE || !cas_rlx(&ends.thread, &none, THREAD_STARTED)) {
        return;
    }
    int err = os_thread_start(ends_main, NULL, "loam-finalizer");
    if (err != 0) {
        if (!ends.warned) {
            ends.warned = true;
            warnf("finalizers and cleanups wait: their thread cannot be started (error %d)", err);
        }
        store_rel(&ends.thread,
                  THREAD_NONE); /* release: warned; pairs with nobody who must see it */
    }
}

void ends_cycle_ended(void)
{
    if (load_rlx(&ends.nqueued) != 0) {
        ends_start_thread();
    }
    if (load_rlx(&gc.small_stacks) != NULL) {
        ends_call();
    }
}

void ends_prepare(const struct m *m)
{
    if (m_busy(m) == 0) {
        ends_start_thread();
    }
}

void ends_call(void)
{
    ends_start_thread();
    ends_wake();
}

bool ends_is_runner(const struct m *m)
{
    return m == ends.runner;
}

/* -- an object ends ---------------------------------------------------------------------------- */

enum end_cause { END_SWEPT, END_FREED };

static void special_drop_locked(struct special *sp, enum end_cause cause)
{
    special_detach_locked(sp);
    if (cause == END_SWEPT) {
        special_free_now_locked(sp);
    } else {
        special_free_locked(sp);
    }
}

/* The handle may have been freed by loam_free, and its slot be another's handle. */
static bool handle_is_of(const struct special *sp, uintptr_t obj)
{
    struct mspan *s;
    size_t index;
    const struct hidden *h = (const void *)sp->word;
    return find_start(h, &s, &index) && load_rlx(&h->key) == ~obj;
}

static void weak_clear_locked(struct special *sp)
{
    uintptr_t obj = mspan_object(&heap.spans[sp->pn], sp->index);
    if (handle_is_of(sp, obj)) {
        struct hidden *h = (void *)sp->word;
        store_rel(&h->key, (uintptr_t)0); /* release: pairs with ends_weak_value */
    }
}

/* Key or ephemeron ended: neither names the other any more. */
static void ephemeron_cut_locked(struct special *sp, enum end_cause cause)
{
    struct special *peer = sp->u.peer;
    struct special *key = load_rlx(&sp->kind) == SPECIAL_KEY ? sp : peer;
    struct ephemeron *e = (void *)key->word;
    store_rel(&e->hidden.key,
              (uintptr_t)0); /* release: pairs with its readers, who read the key last */
    store_rel(&e->value, (uintptr_t)0);
    special_drop_locked(peer, cause);
    special_drop_locked(sp, cause);
}

/* Something was queued? With a finalizer a swept object is marked again and keeps its cleanups. */
static bool object_end_locked(struct mspan *s, size_t index, enum end_cause cause)
{
    bool queued = false;
    bool revived = cause == END_SWEPT && special_find_locked(s, index, SPECIAL_FINALIZER) != NULL;
    struct special *next;
    if (revived) {
        or_acqrel(&mspan_marks(s)[index / 64], UINT64_C(1) << (index % 64));
    }
    for (struct special *sp = load_rlx(&s->specials)[index]; sp != NULL; sp = next) {
        next = load_rlx(&sp->next);
        switch (load_rlx(&sp->kind)) {
        case SPECIAL_WEAK:
            weak_clear_locked(sp);
            special_drop_locked(sp, cause);
            break;
        case SPECIAL_KEY:
        case SPECIAL_EPHEMERON:
            ephemeron_cut_locked(sp, cause);
            break;
        case SPECIAL_CLEANUP:
            if (!revived) {
                special_detach_locked(sp);
                ends_queue_locked(sp, SPECIAL_QUEUED_CLEANUP);
                queued = true;
            }
            break;
        case SPECIAL_SAMPLE:
            if (!revived) {
                ends_sample_ended((void *)sp->word, sp->u.when);
                special_drop_locked(sp, cause);
            }
            break;
        case SPECIAL_FINALIZER:
            if (revived) {
                special_detach_locked(sp);
                ends_queue_locked(sp, SPECIAL_QUEUED_FINALIZER);
                queued = true;
            } else {
                special_drop_locked(sp, cause);
            }
            break;
        default:
            throwf("special of kind %d on the list of an object", (int)load_rlx(&sp->kind));
        }
    }
    return queued;
}

void ends_sweep_span(struct mspan *s)
{
    bool queued = false;
    mutex_lock(&ends.lock);
    struct special **heads = load_rlx(&s->specials);
    for (size_t i = 0; heads != NULL && i < s->nwords; i++) {
        uint64_t dead = load_rlx(&mspan_allocs(s)[i]) & ~load_rlx(&mspan_marks(s)[i]);
        for (; dead != 0; dead &= dead - 1) {
            size_t index = i * 64 + ctz64(dead);
            if (heads[index] != NULL) {
                queued |= object_end_locked(s, index, END_SWEPT);
            }
        }
    }
    if (heads != NULL && span_ends_of(heads)->count == 0) {
        heads_free_locked(s);
    } else if (heads != NULL) {
        span_ends_of(heads)->swept_gen = load_rlx(&heap.sweepgen); /* [ends.decide] */
    }
    mutex_unlock(&ends.lock);
    /* release: handles before the span's "swept"; pairs with hidden_is_alive. */
    fence_sc();
    if (queued) {
        ends_wake();
    }
}

void ends_span_freed(struct mspan *s)
{
    if (load_rlx(&s->specials) != NULL) {
        mutex_lock(&ends.lock);
        CHECK(span_ends_of(load_rlx(&s->specials))->count == 0, "span %p dies with specials",
              (void *)s->base);
        heads_free_locked(s);
        mutex_unlock(&ends.lock);
    }
}

void ends_free_object(struct mspan *s, size_t index)
{
    bool queued = false;
    mutex_lock(&ends.lock);
    struct special **heads = load_rlx(&s->specials);
    if (heads != NULL && heads[index] != NULL) {
        queued = object_end_locked(s, index, END_FREED);
    }
    mutex_unlock(&ends.lock);
    if (queued) {
        ends_wake();
    }
}

/* -- roots ------------------------------------------------------------------------------------- */

struct root_batch {
    uintptr_t words[2 * ROOT_BATCH];
    size_t nwords;
    struct {
        uint32_t pn, index;
    } objects[ROOT_BATCH]; /* whose contents are roots */
    size_t nobjects;
};

static void root_batch_add(struct root_batch *b, const struct special *sp)
{
    uint8_t kind = load_rlx(&sp->kind);
    if (kind == SPECIAL_FREE) { /* its object's span may be another one by now */
        return;
    }
    uintptr_t obj = mspan_object(&heap.spans[sp->pn], sp->index);
    switch (kind) {
    case SPECIAL_FINALIZER:
        b->objects[b->nobjects].pn = sp->pn;
        b->objects[b->nobjects++].index = sp->index;
        if (sp->word != obj) { /* else it would never run; the program gets it anyway */
            b->words[b->nwords++] = sp->word;
        }
        break;
    case SPECIAL_QUEUED_FINALIZER:
        b->words[b->nwords++] = obj;
        b->words[b->nwords++] = sp->word;
        break;
    case SPECIAL_CLEANUP:
    case SPECIAL_QUEUED_CLEANUP:
    case SPECIAL_WEAK:
        b->words[b->nwords++] = sp->word;
        break;
    default:
        break; /* free, or an ephemeron's: no root */
    }
}

void ends_mark_roots(struct gcwork *w)
{
    struct root_batch b;
    uint32_t slot = 0;
    bool more = true;
    while (more) {
        b.nwords = b.nobjects = 0;
        mutex_lock(&ends.lock);
        ends.cycle_gen = load_rlx(&heap.sweepgen); /* the cycle alone changes it */
        for (int i = 0; i < ROOT_BATCH && slot < ends.nslots; i++) {
            root_batch_add(&b, special_at(slot++));
        }
        more = slot < ends.nslots; /* those that come later are shaded: [ends.late] */
        mutex_unlock(&ends.lock);
        mark_range(w, (uintptr_t)b.words, (uintptr_t)(b.words + b.nwords));
        for (size_t i = 0; i < b.nobjects; i++) { /* [ends.order] */
            const struct mspan *s = &heap.spans[b.objects[i].pn];
            w->scan_work += s->elem_size;
            scan_object(w, s, b.objects[i].index);
        }
    }
}

void ends_each_root(void (*fn)(void *arg, const char *kind, uintptr_t where, uintptr_t word),
                    void *arg)
{
    static const char *const kinds[] = {
        [SPECIAL_FINALIZER] = "finalizer",
        [SPECIAL_CLEANUP] = "cleanup",
        [SPECIAL_WEAK] = "weak pointer",
        [SPECIAL_QUEUED_FINALIZER] = "queued finalizer",
        [SPECIAL_QUEUED_CLEANUP] = "queued cleanup",
    };
    struct root_batch b;
    mutex_lock(&ends.lock);
    for (uint32_t slot = 0; slot < ends.nslots; slot++) {
        const struct special *sp = special_at(slot);
        b.nwords = b.nobjects = 0;
        root_batch_add(&b, sp);
        for (size_t i = 0; i < b.nwords; i++) {
            fn(arg, kinds[load_rlx(&sp->kind)], mspan_object(&heap.spans[sp->pn], sp->index),
               b.words[i]);
        }
    }
    mutex_unlock(&ends.lock);
}

void ends_each_finalizable(void (*fn)(void *arg, uintptr_t obj), void *arg)
{
    mutex_lock(&ends.lock);
    for (uint32_t slot = 0; slot < ends.nslots; slot++) {
        const struct special *sp = special_at(slot);
        if (load_rlx(&sp->kind) == SPECIAL_FINALIZER) {
            fn(arg, mspan_object(&heap.spans[sp->pn], sp->index));
        }
    }
    mutex_unlock(&ends.lock);
}

/* -- ephemerons while marking ------------------------------------------------------------------ */

void ends_key_marked(struct mspan *s, size_t index)
{
    struct special **heads = load_acq(&s->specials); /* acquire: pairs with heads_make_locked */
    if (heads == NULL) {
        return;
    }
    struct special *sp = head_load(heads, index);
    while (sp != NULL && load_rlx(&sp->kind) != SPECIAL_KEY) {
        sp = load_acq(&sp->next); /* acquire: pairs with special_attach_locked */
    }
    if (sp == NULL) {
        return;
    }
    struct special *head = load_rlx(&gc.keys);
    do {
        store_rlx(&sp->link, head); /* relaxed: published by the exchange */
        /* release: link, and the key's mark; pairs with ends_drain_keys. */
    } while (!cas_acqrel(&gc.keys, &head, sp));
}

/* [ephemeron], the key's side: sp and those behind it are specials of a key that is marked. */
static void mark_values(struct gcwork *w, struct special *sp)
{
    for (; sp != NULL; sp = load_acq(&sp->next)) { /* acquire: pairs with special_attach_locked */
        if (load_rlx(&sp->kind) != SPECIAL_KEY) {
            continue;
        }
        const struct ephemeron *e = (const void *)sp->word;
        if (is_marked_at(sp->word, false)) {
            uintptr_t value = load_acq(&e->value); /* acquire: pairs with ends_ephemeron_make */
            if (load_acq(&e->hidden.key) != 0) {
                mark_word(w, ~value);
            }
        }
    }
}

void ends_drain_keys(struct gcwork *w)
{
    while (load_rlx(&gc.keys) != NULL) { /* relaxed: decided by the exchange */
        /* acquire: pairs with ends_key_marked. */
        struct special *sp = xchg_acqrel(&gc.keys, NULL);
        fence_sc(); /* the keys' marks before the ephemerons' are tested: pairs with ephemeron_scan */
        while (sp != NULL) {
            struct special *next = load_rlx(&sp->link); /* relaxed: the stack is ours */
            mark_values(w, sp);
            sp = next;
        }
    }
}

/* [ephemeron], its own side. */
static void ephemeron_scan(const void *obj, size_t bytes, loam_marker *m)
{
    const struct ephemeron *e = obj;
    fence_sc(); /* the ephemerons' marks before the keys' are tested: pairs with ends_drain_keys */
    for (size_t i = 0; i < bytes / sizeof *e; i++) {
        uintptr_t key = load_acq(&e[i].hidden.key); /* acquire: pairs with ends_ephemeron_make */
        if (key != 0 && is_marked_at(~key, false)) {
            uintptr_t value = load_acq(&e[i].value);
            if (load_acq(&e[i].hidden.key) != 0) {
                loam_mark(m, (const void *)~value);
            }
        }
    }
}

bool ends_is_ephemeron(const struct gctype *t)
{
    return t->scan == ephemeron_scan;
}

/* Not const: the library notes its own copies in them. */
static loam_type weak_type = {.name = "loam_weak",
                              .field_names = "",
                              .size = sizeof(struct hidden),
                              .align = sizeof(uintptr_t),
                              .flags = LOAM_TYPE_IS_NOSCAN};
static loam_type ephemeron_type = {.name = "loam_ephemeron",
                                   .field_names = "",
                                   .size = sizeof(struct ephemeron),
                                   .align = sizeof(uintptr_t),
                                   .flags = LOAM_TYPE_IS_SCANNED,
                                   .scan = ephemeron_scan};

/* -- finalizers and cleanups ------------------------------------------------------------------- */

static int finalizer_set_locked(struct mspan *s, size_t index, void (*fn)(void *, void *),
                                void *arg)
{
    struct special *sp = special_find_locked(s, index, SPECIAL_FINALIZER);
    if (fn == NULL) {
        if (sp != NULL) {
            special_drop_locked(sp, END_FREED);
        }
        return 0;
    }
    if (sp != NULL) {
        return EEXIST;
    }
    if (!heads_make_locked(s) || (sp = special_new_locked(SPECIAL_FINALIZER, s, index)) == NULL) {
        return ENOMEM;
    }
    sp->u.finalizer = fn;
    sp->word = (uintptr_t)arg;
    special_attach_locked(sp);
    return 0;
}

int ends_set_finalizer(struct m *m, void *obj, void (*fn)(void *, void *), void *arg)
{
    struct mspan *s;
    size_t index;
    int err = EINVAL;
    struct phase_hold hold = ends_enter(m);
    if (find_start(obj, &s, &index)) {
        mutex_lock(&ends.lock);
        err = finalizer_set_locked(s, index, fn, arg);
        mutex_unlock(&ends.lock);
        if (err == 0 && fn != NULL) {
            gc_shade(m, (uintptr_t)obj); /* with all it reaches: it lives this cycle */
            gc_shade(m, (uintptr_t)arg);
        }
    }
    ends_leave(m, hold);
    if (err != 0) {
        errno = err;
        return -1;
    }
    if (fn != NULL) {
        ends_prepare(m);
    }
    return 0;
}

static uint64_t cleanup_id(const struct special *sp)
{
    return (uint64_t)sp->used << 32 | (sp->slot + 1);
}

static int cleanup_add_locked(struct mspan *s, size_t index, void (*fn)(void *), void *arg,
                              uint64_t *id)
{
    struct special *sp;
    if (!heads_make_locked(s) || (sp = special_new_locked(SPECIAL_CLEANUP, s, index)) == NULL) {
        return ENOMEM;
    }
    sp->u.cleanup = fn;
    sp->word = (uintptr_t)arg;
    special_attach_locked(sp);
    *id = cleanup_id(sp);
    return 0;
}

uint64_t ends_add_cleanup(struct m *m, void *obj, void (*fn)(void *), void *arg)
{
    struct mspan *s;
    size_t index;
    uint64_t id = 0;
    int err = EINVAL;
    struct phase_hold hold = ends_enter(m);
    if (fn != NULL && arg != obj && find_start(obj, &s, &index)) {
        mutex_lock(&ends.lock);
        err = cleanup_add_locked(s, index, fn, arg, &id);
        mutex_unlock(&ends.lock);
        if (err == 0) {
            gc_shade(m, (uintptr_t)arg);
        }
    }
    ends_leave(m, hold);
    if (err != 0) {
        errno = err;
        return 0;
    }
    ends_prepare(m);
    return id;
}

void ends_cleanup_stop(uint64_t id)
{
    struct m *m = m_self; /* NULL: a thread that no handshake asks */
    uint32_t slot = (uint32_t)id - 1;
    if (m != NULL) {
        m_enter(m);
    }
    mutex_lock(&ends.lock);
    if (slot < ends.nslots) {
        struct special *sp = special_at(slot);
        if (load_rlx(&sp->kind) == SPECIAL_CLEANUP && cleanup_id(sp) == id) {
            special_drop_locked(sp, END_FREED);
        }
    }
    mutex_unlock(&ends.lock);
    if (m != NULL) {
        m_leave(m);
    }
}

/* -- samples ----------------------------------------------------------------------------------- */

bool ends_add_sample(void *obj, void *what, uint32_t when)
{
    struct mspan *s;
    size_t index;
    struct special *sp = NULL;
    if (find_start(obj, &s, &index)) {
        mutex_lock(&ends.lock);
        if (heads_make_locked(s) && (sp = special_new_locked(SPECIAL_SAMPLE, s, index)) != NULL) {
            sp->word = (uintptr_t)what;
            sp->u.when = when;
            special_attach_locked(sp);
        }
        mutex_unlock(&ends.lock);
    }
    return sp != NULL;
}

/* -- weak to strong ---------------------------------------------------------------------------- */

/* [ends.decide]; not while a cycle marks. While ends.lock is held and the key is not 0, the key's special
 * exists: so its span is in use, and nobody clears its marks before swept_gen tells. */
static bool hidden_is_alive_locked(const struct hidden *h, uint32_t phase)
{
    uintptr_t key = load_acq(&h->key);
    if (key == 0) {
        return false;
    }
    const struct mspan *s = heap_span_of(~key);
    struct special **heads = s == NULL ? NULL : load_rlx(&s->specials);
    if (heads == NULL) {
        return false;
    }
    uint32_t sg = load_acq(&heap.sweepgen); /* acquire: pairs with the flip */
    if (phase != GC_END || sg != ends.cycle_gen) {
        uint32_t ahead = load_rlx(&s->sweepgen) - sg;
        if (ahead == 0 || ahead == 3 || span_ends_of(heads)->swept_gen == sg ||
            load_rlx(&h->birth) == sg) {
            return true;
        }
    }
    return is_marked_at(~key, false);
}

/* Is the object that h names alive? The caller is between ends_enter and ends_leave. */
static bool hidden_is_alive(const struct hidden *h, uint32_t phase)
{
    uintptr_t key = load_acq(&h->key); /* acquire: pairs with who hid it */
    if (key == 0) {
        return false;
    }
    if (gc_phase_marks(phase)) {
        return true; /* the last sweep is over */
    }
    if (phase == GC_OFF) {
        const struct mspan *s = heap_span_of(~key);
        /* acquire: pairs with the fence in ends_sweep_span: who sees "swept" sees the key cleared. */
        uint32_t ahead = s == NULL ? 1 : load_acq(&s->sweepgen) - load_rlx(&heap.sweepgen);
        if (ahead == 0 || ahead == 3) {
            fence_acq();
            return load_rlx(&h->key) != 0;
        }
    }
    mutex_lock(&ends.lock);
    bool alive = hidden_is_alive_locked(h, phase);
    mutex_unlock(&ends.lock);
    return alive;
}

/* The address itself, now: while busy, and not only when the caller comes to use it, for the collector
 * does not recognise what is hidden. */
ALWAYS_INLINE void *unhide(uintptr_t word)
{
    void *p = (void *)~word;
    __asm__ volatile("" : "+r"(p));
    return p;
}

/* [weak], [ephemeron]: what `target` (of the same heap object as h) hides, if h's object is alive; to be
 * kept alive by the caller's stack from now on. */
static void *hidden_strong(struct m *m, const struct hidden *h, const _Atomic uintptr_t *target)
{
    m_enter(m);
    uint32_t phase = load_acq(&gc.phase); /* acquire: as in gc_hold_phase */
    uintptr_t word = load_acq(target);    /* acquire: pairs with who hid it */
    if (gc_phase_marks(phase) && load_acq(&h->key) != 0 && is_marked_at(~word, true)) {
        void *p = unhide(word);
        m_leave(m); /* no need to shade it; the sweep waits for this thread's answer */
        return p;
    }
    void *p = NULL;
    struct phase_hold hold = ends_enter(m);
    bool alive = hidden_is_alive(h, hold.phase);
    world_delay(DELAY_SHADE);
    word = load_acq(target);
    if (alive && load_acq(&h->key) != 0) { /* after the target, which is cleared after it */
        p = unhide(word);
        gc_shade(m, (uintptr_t)p);
    }
    ends_leave(m, hold);
    m_leave(m);
    return p;
}

void *ends_weak_value(struct m *m, const void *handle)
{
    const struct hidden *h = handle;
    return h == NULL ? NULL : hidden_strong(m, h, &h->key);
}

void *ends_ephemeron_value(struct m *m, const void *ephemeron)
{
    const struct ephemeron *e = ephemeron;
    return e == NULL ? NULL : hidden_strong(m, &e->hidden, &e->value);
}

/* -- weak pointers and ephemerons are made ----------------------------------------------------- */

static struct gctype *builtin_type(struct m *m, const loam_type *declared)
{
    struct gctype *type = gctype_known(declared);
    if (unlikely(type == NULL)) {
        m_enter(m);
        type = gctype_intern(declared);
        m_leave(m);
    }
    return type;
}

/* Hide key in h, which nobody else sees yet. */
static void hidden_set(struct hidden *h, uintptr_t key)
{
    store_rlx(&h->birth, (uintptr_t)load_rlx(&heap.sweepgen)); /* relaxed: published below */
    store_rel(&h->key, ~key); /* release: birth, value; pairs with its readers */
}

/* The object's handle; fresh becomes it if there is none. NULL: there is none (fresh was NULL), or
 * *err. */
static struct hidden *weak_handle(struct m *m, void *obj, struct hidden *fresh, int *err)
{
    struct mspan *s;
    size_t index;
    struct hidden *h = NULL;
    struct phase_hold hold = ends_enter(m);
    *err = EINVAL;
    if (find_start(obj, &s, &index)) {
        mutex_lock(&ends.lock);
        *err = 0;
        struct special *sp = special_find_locked(s, index, SPECIAL_WEAK);
        if (sp != NULL && handle_is_of(sp, (uintptr_t)obj)) {
            h = (void *)sp->word;
        } else if (fresh != NULL && sp != NULL) { /* the program freed the old one */
            h = fresh;
        } else if (fresh != NULL) {
            sp = heads_make_locked(s) ? special_new_locked(SPECIAL_WEAK, s, index) : NULL;
            h = sp != NULL ? fresh : NULL;
            *err = sp != NULL ? 0 : ENOMEM;
            if (sp != NULL) {
                special_attach_locked(sp);
            }
        }
        if (h != NULL && h == fresh) {
            sp->word = (uintptr_t)fresh;
            hidden_set(fresh, (uintptr_t)obj);
        }
        mutex_unlock(&ends.lock);
        if (h != NULL) {
            gc_shade(m, (uintptr_t)h);
        }
    }
    ends_leave(m, hold);
    return h;
}

void *ends_weak_make(struct m *m, void *obj)
{
    int err;
    struct hidden *h = weak_handle(m, obj, NULL, &err);
    if (h == NULL && err == 0) {
        struct gctype *type = builtin_type(m, &weak_type);
        struct hidden *fresh = type == NULL ? NULL : ends_alloc(m, type, sizeof *fresh);
        err = ENOMEM;
        if (fresh != NULL) {
            h = weak_handle(m, obj, fresh, &err);
        }
    }
    if (h == NULL) {
        errno = err;
    }
    return h;
}

static void span_has_keys(struct mspan *s)
{
    size_t pn = mspan_pn(s);
    if ((load_rlx(&heap.descs[pn]) & PAGEDESC_KEYS) == 0) {
        for (size_t i = s->npages; i-- > 0;) { /* the head's last: it tells that all have it */
            or_acqrel(&heap.descs[pn + i], PAGEDESC_KEYS);
        }
    }
}

static bool ephemeron_link_locked(struct mspan *ks, size_t kindex, struct mspan *es, size_t eindex)
{
    if (!heads_make_locked(ks) || !heads_make_locked(es)) {
        return false;
    }
    struct special *key = special_new_locked(SPECIAL_KEY, ks, kindex);
    struct special *self = key == NULL ? NULL : special_new_locked(SPECIAL_EPHEMERON, es, eindex);
    if (self == NULL) {
        if (key != NULL) {
            special_free_locked(key);
        }
        return false;
    }
    key->u.peer = self;
    self->u.peer = key;
    key->word = mspan_object(es, eindex);
    special_attach_locked(key);
    special_attach_locked(self);
    span_has_keys(ks);
    return true;
}

static int ephemeron_bind(struct m *m, struct ephemeron *e, void *key, void *value)
{
    struct mspan *ks, *es;
    size_t kindex, eindex;
    int err = EINVAL;
    struct phase_hold hold = ends_enter(m);
    if (find_start(key, &ks, &kindex) && find_start(e, &es, &eindex)) {
        err = ENOMEM;
        mutex_lock(&ends.lock);
        if (ephemeron_link_locked(ks, kindex, es, eindex)) {
            store_rlx(&e->value, ~(uintptr_t)value); /* relaxed: published with the key */
            hidden_set(&e->hidden, (uintptr_t)key);
            err = 0;
        }
        mutex_unlock(&ends.lock);
        if (err == 0) { /* key or ephemeron may be marked already */
            gc_shade(m, (uintptr_t)value);
        }
    }
    ends_leave(m, hold);
    return err;
}

void *ends_ephemeron_make(struct m *m, void *key, void *value)
{
    struct mspan *s;
    size_t index;
    m_enter(m);
    int err = find_start(key, &s, &index) ? 0 : EINVAL;
    m_leave(m);
    if (err == 0) {
        struct gctype *type = builtin_type(m, &ephemeron_type);
        struct ephemeron *e = type == NULL ? NULL : ends_alloc(m, type, sizeof *e);
        err = e == NULL ? ENOMEM : ephemeron_bind(m, e, key, value);
        if (err == 0) {
            return e;
        }
    }
    errno = err;
    return NULL;
}

/* -- start, fork, reports ---------------------------------------------------------------------- */

bool ends_init(void)
{
    return true;
}

/* The thread is the parent's, unless it is the one that forked. What it had taken runs there only. */
void ends_fork_child(void)
{
    memset(&ends.lock, 0, sizeof ends.lock);
    store_rlx(&ends.asleep, 0u);
    if (m_self == NULL || m_self != ends.runner) {
        ends.runner = NULL;
        store_rlx(&ends.thread, THREAD_NONE);
    }
}

uint64_t ends_bytes(void)
{
    return load_rlx(&ends.bytes);
}

const struct ends_counts *ends_counts(void)
{
    return &ends.counts;
}
