/* mark.c - scanning spans: the inner loop of the collector.
 *
 * Purpose     Takes a queued span, finds its objects that are marked and not scanned, and marks what
 *             their words point to.
 * Model       span queued -> qstate := 0 -> some objects of marks & ~scans, some KiB; scans |= some ->
 *             a kernel gathers their candidate words -> each is looked up with the next ones
 *             prefetched -> the next ones, or, when the time is up, the span is queued again.
 * Invariants  [mark.once]  of all markers exactly one scans an object: who sets its scanned bit.
 *             [mark.noalloc]  nothing here allocates, recurses or takes a lock.
 * Ordering    qstate and marks: see gcwork_put. Words of objects are read while the program writes
 *             them; a torn or stale word is looked up like any other and does no harm. An address that
 *             heap.used, loaded early, does not cover yet was allocated after this thread last
 *             synchronised with its allocator, which was after [H-BLACK]: it is marked. Before that only
 *             buffers of stores are marked, and what they name is found again from the roots.
 * From Go     "Green Tea" of go1.26; differs: every class goes by spans, the layout is the
 *             span's, bits lie outside the page, kernels for AVX-512, AVX2 and NEON.
 * Tests       tests/unit/test_scan.c, tests/model [drain]
 */
#include "gc/mark.h"

#include "gc/scan.h"

enum {
    PREFETCH_AHEAD = 8,
    PREFETCH_OBJECTS = 64, /* of a span */
    /* Bytes between two looks at the clock, and of a large object scanned at once. A word may take half
     * a microsecond, if it leads to memory that no cache has: an allocator, which is waited for, looks
     * after a tenth of a millisecond at worst. */
    ASSIST_STEP = 2 << 10,
    BACKGROUND_STEP = 64 << 10,
    AT_ONCE = 4 << 10, /* bytes of small objects whose candidates surely fit */
    SPAN_COST = 256,   /* what getting at a span costs, in bytes scanned */
    WORD = sizeof(uintptr_t),
};

const uint8_t class_to_words[NUM_SIZE_CLASSES] = {
    1, 16, 8, 6, 4, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1,  1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1,  1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
};

static scan_kernel *_Atomic kernel; /* chosen at the first drain */

/* -- candidates -------------------------------------------------------------------------------- */

ALWAYS_INLINE void prefetch_mark(uintptr_t off)
{
    pagedesc d = load_rlx(&heap.descs[off >> PAGE_SHIFT]); /* relaxed: for a prefetch only */
    size_t head = pagedesc_head(d);
    size_t index = class_object_index(pagedesc_class(d), off - (head << PAGE_SHIFT));
    __builtin_prefetch(heap.bits + head * BITS_WORDS + (index / 64) % BITS_WORDS, 1, 3);
}

static void mark_candidates(struct gcwork *w, size_t n)
{
    const uintptr_t *c = w->candidates;
    for (size_t i = 0; i < n && i < PREFETCH_AHEAD; i++) {
        prefetch_mark(c[i]);
    }
    for (size_t i = 0; i < n; i++) {
        if (i + PREFETCH_AHEAD < n) {
            prefetch_mark(c[i + PREFETCH_AHEAD]);
        }
        mark_offset(w, c[i]);
    }
}

NO_SANITIZE void mark_range(struct gcwork *w, uintptr_t start, uintptr_t limit)
{
    uintptr_t used = load_rlx(&heap.used);
    size_t n = 0;
    start = align_up(start, WORD);
    for (uintptr_t p = start; p + WORD <= limit; p += WORD) {
        uintptr_t off = (*(const volatile uintptr_t *)p & heap.pointer_mask) - heap.base;
        if (off < used) {
            w->candidates[n++] = off;
            if (n == GCWORK_CANDIDATES) {
                mark_candidates(w, n);
                n = 0;
            }
        }
    }
    mark_candidates(w, n);
}

/* -- objects ----------------------------------------------------------------------------------- */

void loam_mark(loam_marker *m, const void *p)
{
    if (likely(m->fn == NULL)) {
        mark_word(m->w, (uintptr_t)p);
    } else {
        m->fn(m->arg, (uintptr_t)p);
    }
}

static void scan_fields(struct gcwork *w, const struct gctype *t, uintptr_t obj)
{
    for (uint32_t i = 0; i < t->nfields; i++) {
        uintptr_t from = obj + t->fields[i].offset;
        mark_range(w, from, from + (size_t)t->fields[i].words * WORD);
    }
}

/* A word that the program may be writing. Apart, so that what is done with it is not left out of the
 * thread sanitizer's sight. */
static NO_SANITIZE uintptr_t load_word(uintptr_t addr)
{
    return *(const volatile uintptr_t *)addr;
}

/* The words of elements in [from, to) of an object of type t at obj; from at an element's start. */
static void scan_piece(struct gcwork *w, const struct gctype *t, uintptr_t obj, size_t from,
                       size_t to)
{
    switch (t->kind) {
    case SCAN_NONE:
        break;
    case SCAN_ALL:
        mark_range(w, obj + from, obj + to);
        break;
    case SCAN_MASK:
        for (size_t at = from; at + t->size <= to; at += t->size) {
            for (uint64_t m = t->mask; m != 0; m &= m - 1) {
                mark_word(w, load_word(obj + at + ctz64(m) * WORD));
            }
        }
        break;
    case SCAN_FIELDS:
        for (size_t at = from; at + t->size <= to; at += t->size) {
            scan_fields(w, t, obj + at);
        }
        break;
    case SCAN_FLEX:
        if (from == 0) {
            scan_fields(w, t, obj);
        }
        if (t->tail_words) {
            mark_range(w, obj + (from > t->tail_offset ? from : t->tail_offset), obj + to);
        }
        break;
    case SCAN_FN: {
        struct loam_marker m = {.w = w};
        size_t bytes = (to - from) / t->size * t->size;
        if (bytes != 0) {
            t->scan((const void *)(obj + from), bytes, &m);
        }
        break;
    }
    }
}

void scan_typed(struct gcwork *w, const struct gctype *t, uintptr_t addr, size_t bytes)
{
    scan_piece(w, t, addr, 0, bytes);
}

void scan_object(struct gcwork *w, const struct mspan *s, size_t index)
{
    scan_piece(w, s->type, mspan_object(s, index), 0, s->elem_size);
}

static size_t step_of(const struct gcwork *w)
{
    return w->counted ? ASSIST_STEP : BACKGROUND_STEP;
}

/* Has gc_drain done what it shall? */
static bool enough(struct gcwork *w)
{
    if (w->scan_work >= w->stop_at) {
        return true;
    }
    if (w->scan_work < w->look_at) {
        return false;
    }
    w->look_at = w->scan_work + step_of(w);
    if (os_nanotime() > w->deadline) {
        w->stop_at = 0; /* whoever asks next is told the same */
        return true;
    }
    return false;
}

/* A large object is scanned in pieces; the span is queued again before a piece, so that others take
 * the next ones meanwhile. */
static void scan_large(struct gcwork *w, struct mspan *s)
{
    const struct gctype *t = s->type;
    size_t size = s->elem_size;
    size_t piece = step_of(w);
    if ((load_acq(mspan_scans(s)) & 1) != 0 || (load_acq(mspan_marks(s)) & 1) == 0) {
        return;
    }
    if (t->kind != SCAN_ALL && t->kind != SCAN_FLEX && t->size != 0) {
        piece = t->size >= piece ? t->size : piece / t->size * t->size;
    }
    /* relaxed: the pieces are independent */
    size_t from = add_rlx(&s->scan_progress, piece);
    if (from >= size) {
        return;
    }
    size_t to = size - from > piece ? from + piece : size;
    if (to < size) {
        gcwork_put_alone(mspan_pn(s));
    } else {
        or_acqrel(mspan_scans(s), UINT64_C(1));
    }
    w->scan_work += to - from;
    scan_piece(w, t, s->base, from, to);
}

/* -- spans ------------------------------------------------------------------------------------- */

static const struct scan_region *region_now(struct scan_region *r)
{
    r->base = heap.base;
    r->used = load_rlx(&heap.used);
    r->pointer_mask = heap.pointer_mask;
    return r;
}

/* Objects `todo` of the 64 from `first` on: one, or not more than AT_ONCE bytes. */
static void scan_objects(struct gcwork *w, const struct mspan *s, size_t first, uint64_t todo)
{
    const struct gctype *t = s->type;
    size_t words = s->elem_size / WORD;
    w->scan_work += popcount64(todo) * s->elem_size;
    if ((t->kind == SCAN_ALL || (t->kind == SCAN_MASK && t->size * 2 > s->elem_size)) &&
        words <= 64) {
        struct scan_region region;
        uint64_t mask = t->kind == SCAN_ALL ? bit_range(0, (unsigned)words) : t->mask;
        const uintptr_t *base = (const uintptr_t *)mspan_object(s, first);
        scan_kernel *scan =
            load_rlx(&kernel); /* relaxed: set at the first drain, by this thread too */
        region_now(&region);
        mark_candidates(w, scan(base, words, mask, todo, &region, w->candidates));
        return;
    }
    for (; todo != 0; todo &= todo - 1) {
        scan_object(w, s, first + ctz64(todo));
    }
}

/* The lowest n ones of x. */
static uint64_t lowest_ones(uint64_t x, size_t n)
{
    uint64_t some = 0;
    if (popcount64(x) <= n) {
        return x;
    }
    for (; n != 0; n--) {
        some |= x & -x;
        x &= x - 1;
    }
    return some;
}

/* What is left when it is enough stays queued. */
static void scan_span(struct gcwork *w, size_t pn)
{
    struct mspan *s = &heap.spans[pn];
    /* seq_cst: before the marks are loaded; pairs with gcwork_put. */
    xchg_sc(&heap.qstate[pn], (uint8_t)0);
    if (s->sizeclass == 0) {
        scan_large(w, s);
        return;
    }
    _Atomic uint64_t *marks = mspan_marks(s);
    _Atomic uint64_t *scans = mspan_scans(s);
    size_t most = step_of(w) < AT_ONCE ? step_of(w) : AT_ONCE;
    size_t at_once = s->elem_size < most ? most / s->elem_size : 1;
    for (size_t i = 0; i < s->nwords; i++) {
        uint64_t todo = load_sc(&marks[i]) & ~load_rlx(&scans[i]);
        while (todo != 0) {
            uint64_t some = lowest_ones(todo, at_once);
            todo &= ~some;
            some &= ~or_acqrel(&scans[i], some); /* [mark.once] */
            scan_objects(w, s, i * 64, some);
            bool last = todo == 0 && i + 1 == s->nwords; /* gc_drain asks itself */
            if (!last && unlikely(enough(w))) {
                gcwork_put(w, pn, false);
                return;
            }
        }
    }
}

ALWAYS_INLINE void prefetch_span(size_t pn)
{
    __builtin_prefetch(&heap.spans[pn], 0, 3);
    __builtin_prefetch(heap.bits + pn * BITS_WORDS, 1, 3);
}

/* What is to be scanned in a span, of larger objects the beginning; its record and bits are at hand by now. */
static void prefetch_objects(size_t pn)
{
    const struct mspan *s = &heap.spans[pn];
    if (s->sizeclass == 0) {
        __builtin_prefetch((const char *)s->base + load_rlx(&s->scan_progress), 0, 3);
        return;
    }
    unsigned left = PREFETCH_OBJECTS;
    for (size_t i = 0; i < s->nwords; i++) {
        uint64_t todo = load_rlx(&mspan_marks(s)[i]) & ~load_rlx(&mspan_scans(s)[i]);
        for (; todo != 0; todo &= todo - 1) {
            if (left-- == 0) {
                return;
            }
            const char *obj = (const char *)mspan_object(s, i * 64 + ctz64(todo));
            __builtin_prefetch(obj, 0, 3);
            if (s->elem_size <= 64) { /* it may lie in two lines */
                __builtin_prefetch(obj + s->elem_size - WORD, 0, 3);
            }
        }
    }
}

/* While one span is scanned, the objects of the next and the record of the one behind it come from memory. */
ALWAYS_INLINE void prefetch_next(const struct gcwork *w)
{
    uint32_t next = w->head;
    if (next != 0) {
        uint32_t after = heap.qnext[next - 1];
        if (after != 0) {
            prefetch_span(after - 1);
        }
        prefetch_objects(next - 1);
    }
}

/* [drain]; while paused is set, [H-FLUSH]'s round is on. */
uint64_t gc_drain(struct gcwork *w, uint64_t budget, int64_t deadline)
{
    if (unlikely(load_rlx(&kernel) == NULL)) {
        store_rlx(&kernel, scan_choose()); /* relaxed: everybody chooses the same */
    }
    /* seq_cst: this add, then the load of paused; a round stores paused, then loads draining. */
    atomic_fetch_add_explicit(&gc.draining, 1, memory_order_seq_cst);
    uint64_t before = w->scan_work;
    w->stop_at = budget < UINT64_MAX - before ? before + budget : UINT64_MAX;
    w->deadline = deadline;
    w->look_at = before + step_of(w);
    while (!load_sc(&gc.paused)) {
        size_t pn;
        if (!gcwork_get(w, &pn)) {
            ends_drain_keys(w);
            if (w->head == 0 && !gcwork_take(w)) {
                break;
            }
            continue;
        }
        prefetch_next(w);
        scan_span(w, pn);
        w->look_at -= w->look_at < SPAN_COST ? w->look_at : SPAN_COST;
        if (enough(w)) {
            break;
        }
    }
    uint64_t done = w->scan_work - before;
    gcwork_publish(w);
    atomic_fetch_sub_explicit(&gc.draining, 1, memory_order_seq_cst);
    return done;
}
