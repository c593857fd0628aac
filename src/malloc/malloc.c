/* malloc.c - allocation: the fast path, and where it goes when that is not enough.
 *
 * Purpose     A pointer's way into the world: size -> size class -> span class -> the thread's run.
 * Model       [alloc], fast: xadd on run->ptr (one instruction: a signal handler on this thread sees it
 *             before or after), compare with run->end, look that run->end is still the same. Slow,
 *             [refill]: the next hole, another span, pages; then what the growth costs: sweeping,
 *             assist, a new cycle.
 * Invariants  [malloc.zero]  what is returned reads as zero.
 *             [malloc.reentrant]  a signal handler of the program may allocate at any instruction: over
 *             the fast path it takes another slot or refills the run (then `end` differs and the
 *             interrupted allocation starts over); over busy code it takes whole pages.
 *             [malloc.oom]  the handler of the program is not called while it runs: see out_of_memory.
 * Locking     none on the fast path; the slow path is busy while it holds those of heap/.
 * From Go     malloc.go; differs: no per-object bits, no publication barrier, no zeroing per object; no
 *             tiny blocks, since the contract aligns what is below 16 bytes to 8: class 8 packs as
 *             densely and frees each object for itself. Pointers of 8 bytes take 16: class 8 has no
 *             scanned bits.
 * Tests       tests/api/alloc_basic.c, tests/api/oom_handler.c, tests/golden (instruction counts),
 *             tests/stress
 */
#include "malloc/malloc.h"

#include <errno.h>
#include <string.h>

#include <loam.h>

void (*malloc_sampled)(struct m *m, void *obj);

enum { ZERO_CHUNK = 256 << 10 }; /* bytes zeroed between two looks at what is asked */

/* The program's out-of-memory handler. Function and argument belong together, so there are two pairs, and the number
 * of the last one set; who reads one looks whether the number is still the same. */
static struct mutex oom_lock;
static _Atomic uint64_t oom_set;
static void (*_Atomic oom_fn[2])(void *arg);

/* The next slot of r; false: none, or a signal handler refilled r meanwhile. */
ALWAYS_INLINE bool run_take(struct run *r, uintptr_t *taken)
{
    uintptr_t end = *(volatile uintptr_t *)&r->end;
    uintptr_t size = r->size;
    uintptr_t p;
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
    p = size;
    __asm__ volatile("xaddq %0, %1" : "+r"(p), "+m"(r->ptr) : : "memory", "cc");
#else
    compiler_barrier();
    /* relaxed: against own handlers only */
    p = __atomic_fetch_add(&r->ptr, size, __ATOMIC_RELAXED);
    compiler_barrier();
#endif
    *taken = p;
    return likely(p + size <= end) && likely(*(volatile uintptr_t *)&r->end == end);
}

/* -- slow paths -------------------------------------------------------------------------------- */

/* [malloc.oom] While the handler runs, a seal lies in the frame that called it, and the thread's cache
 * knows where. An allocation that fails below a whole seal, on the same stack, was made by the handler.
 *   - On the stack that the handler was called on this is exact: it is not called again.
 *   - A handler that has been left, by longjmp or an exception, is called again: whoever fails above
 *     the seal proves that it was left, and below it the frames that came since have broken it. But if a
 *     buffer that nobody has written to lies where the seal was, one NULL comes without a call.
 *   - Two stacks (a coroutine's, a signal's alternate one) are told apart by their order and by a hole in
 *     the mappings between them. In doubt the handler is called: once more for each stack it goes to. */
enum { SEAL_WORDS = 16 };

/* No address of the heap's is the complement of one. */
static NO_SANITIZE void seal_write(volatile uintptr_t *seal)
{
    for (int i = 0; i < SEAL_WORDS; i++) {
        seal[i] = ~(uintptr_t)&seal[i];
    }
}

static NO_SANITIZE bool seal_is_whole(const volatile uintptr_t *seal)
{
    for (int i = 0; i < SEAL_WORDS; i++) {
        if (seal[i] != ~(uintptr_t)&seal[i]) {
            return false;
        }
    }
    return true;
}

/* The frame of `mine`, not yet written, lies below that of the handler that runs. */
static bool inside_handler(const struct m *m, const volatile uintptr_t *mine)
{
    uintptr_t from = (uintptr_t)(mine + SEAL_WORDS);
    uintptr_t at = m->cache.oom_seal;
    uintptr_t limit = at + SEAL_WORDS * sizeof *mine;
    /* A stack has no hole, so what is read is mapped. */
    return at >= from && os_mapped_low(from, limit) == from && seal_is_whole((void *)at);
}

void malloc_set_oom_handler(struct m *m, void (*fn)(void *arg), void *arg)
{
    m_enter(m);
    mutex_lock(&oom_lock);
    uint64_t set = load_rlx(&oom_set) + 1;
    gc_store(m, &gc.oom_arg[set % 2], (uintptr_t)arg);
    store_rlx(&oom_fn[set % 2], fn); /* relaxed: published by the next */
    store_rel(&oom_set, set);        /* release: pairs with oom_handler */
    mutex_unlock(&oom_lock);
    m_leave(m);
}

static void (*oom_handler(uintptr_t *arg))(void *)
{
    for (;;) {
        uint64_t set =
            load_acq(&oom_set); /* acquire: the pair; pairs with malloc_set_oom_handler */
        void (*fn)(void *) = load_acq(&oom_fn[set % 2]); /* acquire: before the second look */
        *arg = load_acq(&gc.oom_arg[set % 2]);
        if (load_rlx(&oom_set) == set) {
            return fn;
        }
    }
}

/* NO_SANITIZE: the seal is on the stack itself. */
static NO_SANITIZE COLD void *out_of_memory(struct m *m)
{
    volatile uintptr_t seal[SEAL_WORDS];
    uintptr_t arg;
    void (*fn)(void *) = oom_handler(&arg);
    if (fn != NULL && !inside_handler(m, seal)) {
        uintptr_t outer = m->cache.oom_seal;
        seal_write(seal);
        m->cache.oom_seal = (uintptr_t)seal;
        fn((void *)arg);
        seal[0] = 0;
        if (m == m_self) { /* it has not detached the thread */
            m->cache.oom_seal = outer;
        }
    }
    errno = ENOMEM;
    return NULL;
}

/* Who allocates above the seal, on the thread's own stack, has left the handler for good. */
static COLD void forget_left_handler(struct m *m)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    uintptr_t at = m->cache.oom_seal;
    if (here > at && at >= m->stack_low && here < m->stack_high) {
        m->cache.oom_seal = 0;
    }
}

/* What bytes of growth cost: a share of sweeping before, marking and perhaps a new cycle after. */
static void pay_before(struct m *m)
{
    if (!load_acq(&gc.sweep_done)) {
        m_enter(m);
        gc_sweep_pay(m);
        m_leave(m);
    }
}

static void count_growth(struct m *m, size_t bytes)
{
    add_rlx(&gc.live, (uint64_t)bytes);
    if (m->cache.black) {
        add_rlx(&gc.bytes_marked, (uint64_t)bytes);
    }
}

static void pay_after(struct m *m, size_t bytes)
{
    if (unlikely(gc.options.stress != 0) && ++m->stress_count >= (uint64_t)gc.options.stress) {
        m->stress_count = 0;
        gc_stress(m);
    }
    gc_start_if_due(m);
    if (unlikely(load_rlx(&heap.over_limit))) {
        gc_scavenge_pay(m, bytes);
    }
    if (load_rlx(&gc.phase) != GC_OFF || load_rlx(&gc.live) > load_rlx(&gc.trigger)) {
        gc_assist(m, bytes);
    }
}

void malloc_external(struct m *m, int64_t delta)
{
    m_enter(m);
    gc_count_external(m, delta);
    m_leave(m);
    if (delta > 0 && m_busy(m) == 0) {
        pay_after(m, (size_t)delta);
    }
}

/* From a handler of the program that interrupted the library itself. */
static COLD void *malloc_nested(struct m *m, struct gctype *type, size_t bytes)
{
    m_enter(m);
    struct mspan *s = bytes <= MIB(1) ? mcache_alloc_nested(&m->cache, bytes, type) : NULL;
    if (s != NULL) {
        count_growth(m, mspan_bytes(s));
    }
    m_leave(m);
    if (s == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    return (void *)s->base;
}

/* NOINLINE: nobody else needs the frame that the samples take. */
static NOINLINE void sample(struct m *m, void *obj)
{
    if (malloc_sampled != NULL) {
        malloc_sampled(m, obj);
    }
}

static uintptr_t refill_and_take(struct m *m, uint32_t spanclass, size_t *bytes, bool *sampled)
{
    uintptr_t p = 0;
    *sampled = false;
    m_enter(m);
    mheap_fill_reserve();
    struct run *r = mcache_run(&m->cache, spanclass);
    if (r != NULL && !run_take(r, &p)) {
        *bytes = mcache_refill(&m->cache, r, spanclass);
        count_growth(m, *bytes);
        if (*bytes == 0 || !run_take(r, &p)) {
            p = 0;
        }
        *sampled = m->cache.sampled; /* before a handler of the program can fill another run */
        m->cache.sampled = false;
    }
    m_leave(m);
    return p;
}

/* Quiet: what fails fails at once, without a collection, and no handler hears of it. */
enum loudness { LOUD, QUIET };

static COLD void *refused(struct m *m, enum loudness loudness)
{
    if (loudness == QUIET) {
        errno = ENOMEM;
        return NULL;
    }
    return out_of_memory(m);
}

ALWAYS_INLINE void *small_slow(struct m *m, uint32_t spanclass, enum loudness loudness)
{
    bool shallow = m_busy(m) != 0; /* a handler over a store: no answers and no marking from here */
    if (unlikely(m->cache.oom_seal != 0)) {
        forget_left_handler(m);
    }
    for (int tries = 0;; tries++) {
        if (!shallow) {
            if (m_asked(m)) {
                m_poll(m); /* before any refill, so that a thread is soon in the present phase */
            }
            pay_before(m);
        }
        size_t got = 0;
        bool sampled;
        /* volatile: what was taken stays on the stack, where a scan finds it, while we pay. */
        volatile uintptr_t p = refill_and_take(m, spanclass, &got, &sampled);
        if (p != 0) {
            if (!shallow) {
                if (unlikely(sampled)) {
                    sample(m, (void *)p);
                }
                pay_after(m, got);
            }
            return (void *)p;
        }
        if (got != 0) {
            tries--; /* taken by a signal handler at once */
        } else if (loudness == QUIET || !gc_emergency(m, tries)) {
            return refused(m, loudness);
        }
    }
}

static NOINLINE void *malloc_small_slow(struct m *m, uint32_t spanclass)
{
    return small_slow(m, spanclass, LOUD);
}

static void zero_large(struct m *m, struct mspan *s)
{
    char *p = (char *)s->base;
    for (size_t left = mspan_bytes(s); left != 0;) {
        size_t n = left < ZERO_CHUNK ? left : ZERO_CHUNK;
        memset(p, 0, n);
        p += n;
        left -= n;
        if (m_asked(m)) {
            m_poll(m);
        }
    }
}

static NOINLINE void *malloc_large(struct m *m, struct gctype *type, size_t bytes,
                                   enum loudness loudness)
{
    if (m_busy(m) != 0) { /* a handler over a store: it must not wait for the zeroing of all that */
        return malloc_nested(m, type, bytes);
    }
    if (bytes > SIZE_MAX / 2 - HEAP_PAGE_SIZE) {
        return out_of_memory(m);
    }
    for (int tries = 0;; tries++) {
        if (m_asked(m)) {
            m_poll(m);
        }
        pay_before(m);
        m_enter(m);
        struct mspan *s = mcache_alloc_large(&m->cache, bytes, type);
        m_leave(m);
        if (s != NULL) {
            if (load_rlx(&s->needzero)) {
                zero_large(m, s); /* not to be found by address yet, and nobody waits for us */
            }
            /* volatile: as above; before m_leave, for a thread that stands still there for long may be
             * led through a whole cycle. */
            volatile uintptr_t p = s->base;
            m_enter(m);
            mcache_publish_large(&m->cache, s);
            count_growth(m, mspan_bytes(s));
            bool sampled = mcache_sample_large(&m->cache, mspan_bytes(s));
            m_leave(m);
            if (unlikely(sampled)) {
                sample(m, (void *)p);
            }
            pay_after(m, mspan_bytes(s));
            return (void *)p;
        }
        if (loudness == QUIET || !gc_emergency(m, tries)) {
            return refused(m, loudness);
        }
    }
}

/* The size class for a layout: 16-aligned where the layout asks for it (the head of a flexible type may
 * have no bytes, but it has an alignment); pointers need scanned bits, so class 8 is for noscan only. */
static unsigned class_for(const struct gctype *type, size_t bytes)
{
    if (type->kind != SCAN_NONE && bytes <= 8) {
        return 2;
    }
    bytes = bytes == 0 ? 1 : bytes;
    if (bytes < type->align && type != &gctype_noscan) {
        bytes = type->align;
    }
    return type->align == 16 ? size_to_class_align16(bytes) : size_to_class(bytes);
}

static COLD void warn_of_substitute(void)
{
    static _Atomic bool told;
    if (!xchg_rlx(&told, true)) { /* relaxed: a flag alone */
        warnf("more pairs of type and size class than there is room for: objects of new ones are "
              "searched as untyped memory; of LOAM_TYPE_SCANNED each takes whole pages");
    }
}

/* Locks are taken while busy only. */
static NOINLINE uint32_t make_spanclass(struct m *m, struct gctype *type, unsigned sizeclass)
{
    m_enter(m);
    uint32_t id = heap_spanclass(type, sizeclass);
    m_leave(m);
    if (unlikely(id != 0 && id < NUM_FIXED_SPANCLASSES)) {
        warn_of_substitute();
    }
    return id;
}

static uint32_t spanclass_for(struct m *m, struct gctype *type, unsigned sizeclass)
{
    if (type == &gctype_noscan) {
        return 2 * sizeclass + 1;
    }
    if (type == &gctype_conservative) {
        return 2 * sizeclass;
    }
    uint32_t id = load_acq(&type->spanclass[sizeclass]); /* acquire: pairs with heap_spanclass */
    return likely(id != 0) ? id : make_spanclass(m, type, sizeclass);
}

/* A type's first use is in a signal handler over library code, which may hold the lock of the types: the
 * object is searched conservatively instead. NULL: only the program knows how to search it. */
static COLD struct gctype *nested_type(const loam_type *type)
{
    if (type->flags & LOAM_TYPE_IS_SCANNED) {
        errno = ENOMEM;
        return NULL;
    }
    return type->flags & LOAM_TYPE_IS_NOSCAN ? &gctype_noscan : &gctype_conservative;
}

static struct gctype *type_of(struct m *m, const loam_type *type)
{
    if (type == NULL) {
        errno = EINVAL;
        return NULL;
    }
    struct gctype *t = gctype_known(type);
    if (unlikely(t == NULL) && m_deep(m) != 0) {
        return nested_type(type);
    }
    if (unlikely(t == NULL)) {
        m_enter(m);
        t = gctype_intern(type);
        m_leave(m);
    }
    return t;
}

ALWAYS_INLINE void *typed(struct m *m, struct gctype *type, size_t bytes, enum loudness loudness)
{
    bytes = bytes < type->size ? type->size : bytes; /* a scan reads all of a type */
    if (unlikely(m_deep(m) != 0)) {
        return malloc_nested(m, type, bytes);
    }
    if (unlikely(bytes > MAX_SMALL_SIZE)) {
        return malloc_large(m, type, bytes, loudness);
    }
    uint32_t spanclass = spanclass_for(m, type, class_for(type, bytes));
    if (unlikely(spanclass <= SPANCLASS_LARGE)) {
        return spanclass == 0 ? refused(m, loudness) : malloc_large(m, type, bytes, loudness);
    }
    struct run *r = spanclass < NUM_FIXED_SPANCLASSES ? &m->cache.runs[spanclass] : NULL;
    if (r == NULL && m->cache.typed[spanclass / SPANCLASS_CHUNK] != NULL) {
        r = &m->cache.typed[spanclass / SPANCLASS_CHUNK][spanclass % SPANCLASS_CHUNK];
    }
    uintptr_t p;
    if (r != NULL && run_take(r, &p)) {
        return (void *)p;
    }
    return loudness == LOUD ? malloc_small_slow(m, spanclass) : small_slow(m, spanclass, loudness);
}

void *malloc_typed(struct m *m, struct gctype *type, size_t bytes)
{
    return typed(m, type, bytes, LOUD);
}

void *malloc_quietly(struct m *m, struct gctype *type, size_t bytes)
{
    return typed(m, type, bytes, QUIET);
}

/* -- the contract ------------------------------------------------------------------------------ */

static NOINLINE void *alloc_slow(size_t bytes, struct gctype *type)
{
    struct m *m = malloc_self();
    return m != NULL ? malloc_typed(m, type, bytes) : NULL;
}

ALWAYS_INLINE struct run *run_at_offset(struct m *m, size_t offset)
{
    return (struct run *)((char *)&m->cache + offset);
}

void *loam_alloc_noscan(size_t bytes)
{
    struct m *m = m_self;
    uintptr_t p;
    if (likely(m != NULL) && likely(bytes <= SMALL_SIZE_MAX) &&
        run_take(run_at_offset(m, run_offset_noscan[(bytes + 7) / 8]), &p)) {
        return (void *)p;
    }
    return alloc_slow(bytes, &gctype_noscan);
}

void *loam_alloc(size_t bytes)
{
    struct m *m = m_self;
    uintptr_t p;
    if (likely(m != NULL) && likely(bytes <= SMALL_SIZE_MAX) &&
        run_take(run_at_offset(m, run_offset_scan[(bytes + 7) / 8]), &p)) {
        return (void *)p;
    }
    return alloc_slow(bytes, &gctype_conservative);
}

static NOINLINE void *new_slow(const loam_type *type, size_t count)
{
    struct m *m = malloc_self();
    struct gctype *t = m != NULL ? type_of(m, type) : NULL;
    size_t bytes;
    if (t == NULL) {
        return NULL;
    }
    if (__builtin_mul_overflow(type->size, count, &bytes)) {
        return out_of_memory(m);
    }
    if (count == 1 && m_deep(m) == 0 && bytes <= MAX_SMALL_SIZE && load_rlx(&t->single) == 0) {
        store_rlx(&t->single, make_spanclass(m, t, class_for(t, bytes))); /* relaxed: a number */
    }
    return malloc_typed(m, t, bytes);
}

void *loam_new(const loam_type *type, size_t count)
{
    struct m *m = m_self;
    struct gctype *t = likely(type != NULL) ? gctype_known(type) : NULL;
    uintptr_t p;
    if (likely(t != NULL) && likely(m != NULL) && likely(count == 1)) {
        uint32_t sc = load_rlx(&t->single); /* relaxed: a number; the run is the thread's own */
        /* NULL for span class 0; the fixed ones, substitutes, have no chunk or an empty run in it. */
        struct run *chunk = m->cache.typed[sc / SPANCLASS_CHUNK];
        if (likely(chunk != NULL) && run_take(&chunk[sc % SPANCLASS_CHUNK], &p)) {
            return (void *)p;
        }
    }
    return new_slow(type, count);
}

void *loam_new_flex(const loam_type *type, size_t count)
{
    struct m *m = malloc_self();
    struct gctype *t = m != NULL ? type_of(m, type) : NULL;
    size_t bytes;
    if (t == NULL) {
        return NULL;
    }
    if (!(type->flags & LOAM_TYPE_IS_FLEX)) {
        errno = EINVAL;
        return NULL;
    }
    if (__builtin_mul_overflow(type->tail_size, count, &bytes) ||
        __builtin_add_overflow(bytes, type->tail_offset, &bytes)) {
        return out_of_memory(m);
    }
    return malloc_typed(m, t, bytes < type->size ? type->size : bytes);
}

size_t loam_new_batch(const loam_type *type, size_t count, void *out[])
{
    size_t n = 0;
    if (type == NULL || (out == NULL && count != 0)) {
        errno = EINVAL;
        return 0;
    }
    while (n < count && (out[n] = loam_new(type, 1)) != NULL) {
        n++;
    }
    return n;
}
