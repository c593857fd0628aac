/* roots.c - where marking begins: data of the program, registered ranges, pins, stacks.
 *
 * Purpose     gc_mark_roots scans what belongs to no thread; gc_scan_thread what belongs to one.
 * Model       [roots] comes before [H-SCAN]: data and ranges are scanned while all stacks are still to
 *             be scanned, so a library may be unloaded, or a range removed, at any moment: what a thread
 *             loaded from it before lies on its stack, which is scanned later.
 * Invariants  [roots.table]  registered ranges and pins change under roots.lock.
 * Locking     roots.lock: held in pieces while scanning, so that who removes a range waits shortly.
 * From Go     mgcmark.go's data, BSS and stack jobs; differs: stacks are conservative, and a thread
 *             scans its own.
 * Tests       tests/api/roots.c, tests/api/threads.c, tests/stress/dlopen_loop.c
 */
#include "gc/mark.h"
#include "gc/walk.h"

#include "heap/fixalloc.h"

#include <errno.h>
#include <string.h>

enum { PIECE = 64 << 10 };

struct range {
    uintptr_t start; /* 0: an unused entry */
    size_t bytes;
};

/* Open addressing, one entry per add; counts in `pins` are by object. */
struct table {
    struct range *slots;
    size_t capacity; /* a power of two, or 0 */
    size_t count;
};

static struct {
    struct mutex lock;
    struct table ranges; /* bytes: length */
    struct table pins;   /* bytes: how often */
} roots;

static size_t slot_of(const struct table *t, uintptr_t start)
{
    return (size_t)((start >> 3) * UINT64_C(0x9E3779B97F4A7C15) >> 20) & (t->capacity - 1);
}

static struct range *table_find(const struct table *t, uintptr_t start, size_t bytes, bool any)
{
    if (t->capacity == 0) {
        return NULL;
    }
    for (size_t i = slot_of(t, start);; i = (i + 1) & (t->capacity - 1)) {
        struct range *r = &t->slots[i];
        if (r->start == 0) {
            return NULL;
        }
        if (r->start == start && (any || r->bytes == bytes)) {
            return r;
        }
    }
}

static void table_put(struct table *t, struct range r)
{
    size_t i = slot_of(t, r.start);
    while (t->slots[i].start != 0) {
        i = (i + 1) & (t->capacity - 1);
    }
    t->slots[i] = r;
    t->count++;
}

static bool table_add(struct table *t, struct range r)
{
    if ((t->count + 1) * 2 > t->capacity) {
        struct table bigger = {.capacity = t->capacity == 0 ? 64 : t->capacity * 2};
        bigger.slots = metaalloc(bigger.capacity * sizeof *bigger.slots);
        if (bigger.slots == NULL) {
            return false;
        }
        for (size_t i = 0; i < t->capacity; i++) {
            if (t->slots[i].start != 0) {
                table_put(&bigger, t->slots[i]);
            }
        }
        metafree(t->slots, t->capacity * sizeof *t->slots);
        *t = bigger;
    }
    table_put(t, r);
    return true;
}

/* Removal by shifting back the entries behind (Knuth, volume 3, 6.4, algorithm R). */
static void table_remove(struct table *t, struct range *r)
{
    size_t hole = (size_t)(r - t->slots);
    for (size_t i = hole;;) {
        i = (i + 1) & (t->capacity - 1);
        if (t->slots[i].start == 0) {
            break;
        }
        size_t home = slot_of(t, t->slots[i].start);
        if (((i - home) & (t->capacity - 1)) >= ((i - hole) & (t->capacity - 1))) {
            t->slots[hole] = t->slots[i];
            hole = i;
        }
    }
    t->slots[hole] = (struct range){0};
    t->count--;
}

/* -- registered ranges and pins ---------------------------------------------------------------- */

/* What the range holds now is shaded: its stores before were not behind a barrier (add), or it holds
 * nothing any more (remove: as a store of NULL would). In pieces, for the phase is not held for long. */
static void shade_range(struct m *m, uintptr_t start, size_t bytes)
{
    uintptr_t limit = start + bytes;
    start = align_up(start, sizeof start); /* pieces meet between two words */
    for (uintptr_t next; start < limit && load_acq(&gc.phase) != GC_OFF; start = next) {
        next = limit - start < PIECE ? limit : start + PIECE;
        struct phase_hold h = gc_hold_phase(m);
        if (gc_phase_marks(h.phase)) {
            mark_range(&m->work, start, next);
            gcwork_publish(&m->work);
        }
        gc_release_phase(m, h);
    }
}

/* [add-root] */
int gc_add_roots(struct m *m, uintptr_t start, size_t bytes)
{
    m_enter(m);
    mutex_lock(&roots.lock);
    bool ok = table_add(&roots.ranges, (struct range){start, bytes});
    mutex_unlock(&roots.lock);
    if (ok) {
        shade_range(m, start, bytes);
    }
    m_leave(m);
    return ok ? 0 : ENOMEM;
}

/* [remove-root] */
int gc_remove_roots(struct m *m, uintptr_t start, size_t bytes)
{
    m_enter(m);
    mutex_lock(&roots.lock);
    struct range *r = table_find(&roots.ranges, start, bytes, false);
    if (r != NULL) {
        table_remove(&roots.ranges, r);
    }
    mutex_unlock(&roots.lock);
    if (r != NULL) {
        shade_range(m, start, bytes);
    }
    m_leave(m);
    return r != NULL ? 0 : EINVAL;
}

/* [add-root] */
bool gc_pin(struct m *m, uintptr_t obj)
{
    m_enter(m);
    mutex_lock(&roots.lock);
    struct range *r = table_find(&roots.pins, obj, 0, true);
    bool ok = true;
    if (r != NULL) {
        r->bytes++;
    } else {
        ok = table_add(&roots.pins, (struct range){obj, 1});
    }
    mutex_unlock(&roots.lock);
    if (ok) {
        gc_shade(m, obj);
    }
    m_leave(m);
    return ok;
}

/* [remove-root] */
bool gc_unpin(struct m *m, uintptr_t obj)
{
    m_enter(m);
    mutex_lock(&roots.lock);
    struct range *r = table_find(&roots.pins, obj, 0, true);
    if (r != NULL && --r->bytes == 0) {
        table_remove(&roots.pins, r);
    }
    mutex_unlock(&roots.lock);
    if (r != NULL) {
        gc_shade(m, obj); /* a deleted reference, as any other */
    }
    m_leave(m);
    return r != NULL;
}

/* -- what belongs to no thread ----------------------------------------------------------------- */

static void scan_data(void *arg, uintptr_t start, size_t bytes)
{
    struct gcwork *w = arg;
    w->scan_work += bytes;
    add_rlx(&gc.globals_scan, bytes);
    mark_range(w, start, start + bytes);
}

/* Scans a copy of the table, so that the lock can be let go between pieces; without memory for the
 * copy, under the lock. */
static void scan_table(struct gcwork *w, struct table *t, bool pins)
{
    mutex_lock(&roots.lock);
    size_t budget = PIECE;
    size_t n = t->count;
    struct range *copy = n == 0 ? NULL : metaalloc(n * sizeof *copy);
    if (copy != NULL) {
        n = 0;
        for (size_t i = 0; i < t->capacity; i++) {
            if (t->slots[i].start != 0) {
                copy[n++] = t->slots[i];
            }
        }
    }
    size_t total = copy != NULL ? n : t->capacity;
    for (size_t i = 0; i < total; i++) {
        struct range r = copy != NULL ? copy[i] : t->slots[i];
        if (r.start == 0) {
            continue;
        }
        if (pins) {
            mark_word(w, r.start);
            continue;
        }
        uintptr_t limit = r.start + r.bytes;
        /* Pieces meet between two words. */
        for (uintptr_t at = align_up(r.start, sizeof at), next; at < limit; at = next) {
            if (copy != NULL && table_find(t, r.start, r.bytes, false) == NULL) {
                break; /* removed meanwhile, and shaded by who removed it */
            }
            next = limit - at < PIECE ? limit : at + PIECE;
            size_t piece = next - at;
            scan_data(w, at, piece);
            budget -= piece < budget ? piece : budget;
            if (copy != NULL && budget == 0) {
                budget = PIECE;
                mutex_unlock(&roots.lock);
                mutex_lock(&roots.lock);
            }
        }
    }
    mutex_unlock(&roots.lock);
    if (copy != NULL) {
        metafree(copy, n * sizeof *copy);
    }
}

static NO_SANITIZE void stack_live(const struct loam_stack *s, uintptr_t *from, uintptr_t *to)
{
    *from = load_rlx(&s->live); /* relaxed, here and below: see struct loam_stack */
    *to = load_rlx(&s->live_limit);
    if (s->top != NULL && !load_rlx(&s->parked)) {
        uintptr_t top = (uintptr_t) * (void *const volatile *)s->top;
        *from = s->start;
        *to = top < s->start ? s->start : top > s->limit ? s->limit : top;
    }
}

/* [roots] */
void gc_mark_roots(struct gcwork *w)
{
    store_rlx(&gc.small_stacks, NULL);
    os_each_data_range(scan_data, w);
    scan_table(w, &roots.ranges, false);
    scan_table(w, &roots.pins, true);
    for (size_t i = 0; i < 2; i++) {
        mark_word(w, load_acq(&gc.oom_arg[i])); /* acquire: pairs with malloc_set_oom_handler */
    }
    ends_mark_roots(w);
    mutex_lock(&world.lock);
    for (const struct loam_stack *s = world.stacks; s != NULL; s = s->next) {
        if (load_rlx(&s->owner) == NULL) { /* its thread has ended: nobody else scans it */
            uintptr_t from, to;
            stack_live(s, &from, &to);
            mark_range(w, from, to);
            add_rlx(&gc.stack_scan, to - from);
        }
    }
    mutex_unlock(&world.lock);
    gcwork_publish(w);
}

/* -- what belongs to a thread ------------------------------------------------------------------ */

static void scan_own(void *arg, uintptr_t start, size_t bytes)
{
    mark_range(&((struct m *)arg)->work, start, start + bytes);
}

#if defined(__x86_64__)
enum { RED_ZONE = 128 }; /* below the stack pointer a leaf function may keep its locals */
#else
enum { RED_ZONE = 0 };
#endif

/* The thread runs off its own stack: on an alternate signal stack, or on a stack of the program's. Its
 * own one is live down to what the handler's frame tells, at worst all of it that is mapped. */
static NO_SANITIZE uintptr_t own_stack_from(struct m *m, uintptr_t low, uintptr_t high)
{
    uintptr_t from = m->stack_high;
    for (uintptr_t p = align_up(low, sizeof p); p + sizeof p <= high; p += sizeof p) {
        uintptr_t word = *(const volatile uintptr_t *)p;
        if (word >= m->stack_low && word < from) {
            from = word;
        }
    }
    return from;
}

typedef void part_fn(void *arg, uintptr_t start, size_t bytes);

static void each_own_part(struct m *m, const struct m_context *ctx, part_fn *fn, void *arg)
{
    uintptr_t from = ctx->sp;
    if (from >= m->stack_low && from < m->stack_high) {
        from -= from - RED_ZONE >= m->stack_low ? RED_ZONE : 0;
    } else {
        from = 0;
        if (ctx->alt_limit != 0) {
            fn(arg, ctx->sp - RED_ZONE, ctx->alt_limit - ctx->sp + RED_ZONE);
            from = own_stack_from(m, ctx->sp, ctx->alt_limit);
        }
        uintptr_t mapped = os_mapped_low(m->stack_low, m->stack_high);
        from = from < mapped ? mapped : from;
    }
    fn(arg, from, m->stack_high - from);
}

/* Call fn for all of m's stacks that is live. */
static void each_stack_part(struct m *m, const struct m_context *ctx, part_fn *fn, void *arg)
{
    fn(arg, ctx->frame, ctx->frame_limit - ctx->frame);
    each_own_part(m, ctx, fn, arg);
    for (const struct stack_ref *ref = m->stacks; ref != NULL; ref = ref->next) {
        struct loam_stack *s = ref->stack;
        uintptr_t from, to;
        /* seq_cst: first counted, then the look; gc_stack_remove takes the owner and then looks. */
        atomic_fetch_add_explicit(&s->scanners, 1, memory_order_seq_cst);
        if (load_sc(&s->owner) == m) {
            stack_live(s, &from, &to);
            if (ctx->sp >= s->start && ctx->sp < s->limit) { /* the thread runs on it */
                from = ctx->sp - RED_ZONE > s->start ? ctx->sp - RED_ZONE : s->start;
                to = s->limit;
            }
            fn(arg, from, to - from);
        }
        sub_acqrel(&s->scanners, 1u); /* release: our reads are done */
    }
}

static void scan_stack_part(void *m, uintptr_t start, size_t bytes)
{
    scan_own(m, start, bytes);
    add_rlx(&gc.stack_scan, (uint64_t)bytes);
}

/* [H-SCAN] */
void gc_scan_thread(struct m *m, const struct m_context *ctx)
{
    for (size_t i = 0; i < ctx->nregs; i++) {
        mark_word(&m->work, ctx->regs[i]);
    }
    each_stack_part(m, ctx, scan_stack_part, m);
    os_each_tls_range(m->tp, scan_own, m);
    if (m->mstacks != NULL) {
        void (*scan)(struct m *) = load_acq(&gc.scan_managed); /* acquire: loam_mstack_make */
        scan(m);
    }
    m->scanned = load_rlx(&gc.started);
    gcwork_publish(&m->work);
}

static void restart_part(void *unused, uintptr_t start, size_t bytes)
{
    (void)unused;
    os_signal_frames_restart(start, start + bytes);
}

void gc_restart_stores(struct m *m, const struct m_context *ctx)
{
    each_stack_part(m, ctx, restart_part, NULL);
}

void gc_scan_stacks(struct m *m)
{
    for (const struct stack_ref *ref = m->stacks; ref != NULL; ref = ref->next) {
        uintptr_t from, to;
        if (load_acq(&ref->stack->owner) == m) { /* acquire: pairs with gc_stack_set */
            stack_live(ref->stack, &from, &to);
            mark_range(&m->work, from, to);
        }
    }
}

/* -- stacks of the program's own --------------------------------------------------------------- */

/* m's list of the stacks it may own is changed by m alone, so its handler can walk it. */
static bool stack_refer(struct m *m, struct loam_stack *s)
{
    for (const struct stack_ref *ref = m->stacks; ref != NULL; ref = ref->next) {
        if (ref->stack == s) {
            return true;
        }
    }
    struct stack_ref *ref = metaalloc(sizeof *ref);
    if (ref == NULL) {
        return false;
    }
    ref->stack = s;
    ref->next = m->stacks;
    compiler_barrier(); /* the handler sees a whole entry */
    m->stacks = ref;
    return true;
}

struct loam_stack *gc_stack_add(struct m *m, uintptr_t start, size_t bytes, void *const *top)
{
    m_enter(m);
    mutex_lock(&world.lock);
    struct loam_stack *s = world.free_stacks;
    if (s != NULL) {
        world.free_stacks = s->next;
    }
    mutex_unlock(&world.lock);
    if (s == NULL) {
        s = persistentalloc(sizeof *s, CACHE_LINE, &heap.stats.other_sys);
    }
    if (s != NULL) {
        s->start = start;
        s->limit = start + bytes;
        s->top = top;
        store_rlx(&s->live, start);
        store_rlx(&s->live_limit, start + bytes);
        store_rlx(&s->parked, false);
        bool referred = stack_refer(m, s);
        mutex_lock(&world.lock);
        struct loam_stack **list = referred ? &world.stacks : &world.free_stacks;
        s->prev = NULL;
        s->next = *list;
        if (referred && s->next != NULL) {
            s->next->prev = s;
        }
        *list = s;
        s->in_use = referred;
        mutex_unlock(&world.lock);
        store_rel(&s->owner,
                  referred ? m : NULL); /* release: the bounds; pairs with gc_scan_thread */
        s = referred ? s : NULL;
    }
    if (s != NULL) {
        shade_range(m, start, top != NULL ? 0 : bytes);
    }
    m_leave(m);
    return s;
}

/* [stack]: it now belongs to m. If a cycle marks, m may have scanned its stacks already and the former
 * owner not yet: what lies in it is shaded here. */
int gc_stack_set(struct m *m, struct loam_stack *s, uintptr_t live, size_t bytes)
{
    bool whole = live == 0; /* back to top */
    CHECK(s->in_use, "loam_stack_set of %p, which is not added", (void *)s);
    if (!whole && (live < s->start || live > s->limit || bytes > s->limit - live)) {
        return EINVAL;
    }
    m_enter(m);
    struct m *owner = load_acq(&s->owner);
    bool ok = owner == m || stack_refer(m, s);
    if (ok) {
        store_rlx(&s->live, whole ? s->start : live);
        store_rlx(&s->live_limit, whole ? s->limit : live + bytes);
        store_rlx(&s->parked, !whole);
        if (owner != m) {
            store_rel(&s->owner, m); /* release: pairs with gc_scan_thread */
            uintptr_t from, to;
            stack_live(s, &from, &to);
            shade_range(m, from, to - from);
        }
    }
    m_leave(m);
    return ok ? 0 : ENOMEM;
}

void gc_stack_remove(struct m *m, struct loam_stack *s)
{
    m_enter(m);
    mutex_lock(&world.lock);
    bool was_in_use = s->in_use;
    s->in_use = false;
    mutex_unlock(&world.lock);
    CHECK(was_in_use, "loam_stack_remove of %p, which is not added", (void *)s);
    uintptr_t from, to;
    stack_live(s, &from, &to);
    shade_range(m, from, to - from);
    store_sc(&s->owner, NULL); /* seq_cst: pairs with each_stack_part */
    while (load_sc(&s->scanners) != 0) {
        os_sleep_ns(
            1000); /* a former owner still reads what is unmapped next; it waits for nobody */
    }
    mutex_lock(&world.lock);
    if (s->prev != NULL) {
        s->prev->next = s->next;
    } else {
        world.stacks = s->next;
    }
    if (s->next != NULL) {
        s->next->prev = s->prev;
    }
    s->next = world.free_stacks;
    world.free_stacks = s;
    mutex_unlock(&world.lock);
    m_leave(m);
}

/* -- for checkers and reports ------------------------------------------------------------------ */

static void each_part(void *arg, uintptr_t start, size_t bytes)
{
    struct walk_roots *e = arg;
    e->root.start = start;
    walk_range(start, start + bytes, walk_root_word, e);
}

static void each_of_kind(struct walk_roots *e, enum root_kind kind, uintptr_t start, size_t bytes)
{
    e->root.kind = kind;
    each_part(e, start, bytes);
}

static void each_alone(struct walk_roots *e, enum root_kind kind, uintptr_t where, uintptr_t word)
{
    e->root.kind = kind;
    e->root.start = 0;
    walk_root_word(e, where, word);
}

void gc_each_root(root_fn *fn, void *arg)
{
    struct walk_roots e = {fn, arg, {.kind = ROOT_DATA}};
    os_each_data_range(each_part, &e);
    for (size_t i = 0; i < roots.ranges.capacity; i++) {
        each_of_kind(&e, ROOT_RANGE, roots.ranges.slots[i].start, roots.ranges.slots[i].bytes);
    }
    for (size_t i = 0; i < roots.pins.capacity; i++) {
        each_alone(&e, ROOT_PIN, 0, roots.pins.slots[i].start);
    }
    for (size_t i = 0; i < 2; i++) {
        each_alone(&e, ROOT_HANDLER, 0, load_rlx(&gc.oom_arg[i]));
    }
    mutex_lock(&world.lock);
    for (const struct loam_stack *s = world.stacks; s != NULL; s = s->next) {
        if (load_rlx(&s->owner) == NULL) { /* else it is its owner's */
            uintptr_t from, to;
            stack_live(s, &from, &to);
            each_of_kind(&e, ROOT_STACK, from, to - from);
        }
    }
    mutex_unlock(&world.lock);
}

void gc_each_thread_root(struct m *m, const struct m_context *ctx, root_fn *fn, void *arg)
{
    struct walk_roots e = {fn, arg, {.kind = ROOT_STACK}};
    if (ctx != NULL) {
        each_stack_part(m, ctx, each_part, &e);
        for (size_t i = 0; i < ctx->nregs; i++) {
            each_alone(&e, ROOT_REGISTER, i, ctx->regs[i]);
        }
    } else {
        uintptr_t low = os_mapped_low(m->stack_low, m->stack_high);
        each_part(&e, low, m->stack_high - low);
    }
    e.root.kind = ROOT_TLS;
    os_each_tls_range(m->tp, each_part, &e);
}

void gc_roots_fork_child(void)
{
    memset(&roots.lock, 0, sizeof roots.lock);
}
