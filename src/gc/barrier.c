/* barrier.c - shading: the half of the write barrier that runs while a cycle does.
 *
 * Purpose     Stores record the overwritten and the new target in their thread's buffer; a full buffer,
 *             a handshake or the thread's end marks them.
 * Invariants  [barrier.buffer]  only the owner writes its buffer, while busy. A signal handler of the
 *             program that interrupts busy code marks at once instead (gc_shade).
 * From Go     mbarrier.go, mwbbuf.go: hybrid of Yuasa's deletion and Dijkstra's insertion barrier.
 * Tests       tests/model [store] [buffer-full], tests/api/stores.c
 */
#include "gc/mark.h"

#include <string.h>

/* [H-FLUSH], [exit], [buffer-full] */
void gc_flush_wbbuf(struct m *m)
{
    struct wbbuf *b = &m->wbbuf;
    world_delay(DELAY_SHADE);
    for (uint32_t i = 0; i < b->n; i++) {
        mark_word(&m->work, b->entries[i]);
    }
    b->n = 0;
    gcwork_publish(&m->work);
}

/* Re-entrant: the span is published as a batch of its own. */
static void shade_now(uintptr_t word)
{
    struct mspan *s;
    size_t index;
    struct mark_bit b;
    uintptr_t off = (word & heap.pointer_mask) - heap.base;
    if (off >= load_rlx(&heap.used) || !mark_bit_of(off, &b) || (load_rlx(b.word) & b.mask) != 0 ||
        !heap_find_object(heap.base + off, &s, &index)) {
        return; /* relaxed: as in mark_offset; what is marked does not dirty the round */
    }
    store_rlx(&gc.dirty, 1u); /* before the mark: as in mark_offset */
    world_delay(DELAY_SHADE);
    if ((or_sc(b.word, b.mask) & b.mask) != 0) {
        return;
    }
    ASSERT(gc_phase_marks(load_rlx(&gc.phase))); /* [phase.late] */
    add_rlx(&gc.bytes_marked, s->elem_size);
    if (b.desc & PAGEDESC_KEYS) {
        ends_key_marked(s, index);
    }
    if (!(b.desc & PAGEDESC_NOSCAN)) {
        gcwork_put_alone(mspan_pn(s));
    }
}

void gc_shade(struct m *m, uintptr_t word)
{
    struct phase_hold h = gc_hold_phase(m);
    if (gc_phase_marks(h.phase)) {
        shade_now(word);
    }
    gc_release_phase(m, h);
}

/* -- stores ------------------------------------------------------------------------------------ */

/* [buffer-full]: from [mark-done] on all that the program holds is marked, and nothing else shall be. */
static void full_buffer(struct m *m)
{
    struct phase_hold h = gc_hold_phase(m);
    if (gc_phase_marks(h.phase)) {
        gc_flush_wbbuf(m);
    }
    m->wbbuf.n = 0;
    gc_release_phase(m, h);
}

/* Busy: no handshake is answered between the test of the flag and the store. */
void gc_record(struct m *m, uintptr_t old, uintptr_t now)
{
    if (m_busy(m) > 1) { /* a signal handler over busy code: the buffer may be half-written */
        gc_shade(m, old);
        gc_shade(m, now);
        return;
    }
    world_delay(DELAY_STORE);
    struct wbbuf *b = &m->wbbuf;
    if (b->n + 2 > WBBUF_ENTRIES) {
        full_buffer(m);
    }
    b->entries[b->n] = now;
    b->entries[b->n + 1] = old;
    b->n += 2;
}

/* [store]: shade the new target, exchange, shade the old one. The exchange, so that of two threads
 * that overwrite one slot each takes away another value. */
static uintptr_t store_word(struct m *m, uintptr_t *slot, uintptr_t value)
{
    if (loam_write_barrier == 0) {
        __atomic_store_n(slot, value,
                         __ATOMIC_RELEASE); /* release: pairs with the program's loads */
        return 0;
    }
    world_delay(DELAY_STORE);
    uintptr_t old = __atomic_exchange_n(slot, value, __ATOMIC_ACQ_REL);
    gc_record(m, old, value);
    return old;
}

void gc_store(struct m *m, void *slot, uintptr_t value)
{
    m_enter_shallow(m);
    store_word(m, slot, value);
    m_leave_shallow(m);
}

uintptr_t gc_exchange(struct m *m, void *slot, uintptr_t value)
{
    m_enter_shallow(m);
    uintptr_t old = __atomic_exchange_n((uintptr_t *)slot, value, __ATOMIC_SEQ_CST);
    if (loam_write_barrier != 0) {
        gc_record(m, old, value);
    }
    m_leave_shallow(m);
    return old;
}

bool gc_compare_exchange(struct m *m, void *slot, void *expected, uintptr_t desired)
{
    uintptr_t want;
    memcpy(&want, expected, sizeof want); /* of any pointer type */
    uintptr_t found = want;
    m_enter_shallow(m);
    bool done = __atomic_compare_exchange_n((uintptr_t *)slot, &found, desired, false,
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    if (done && loam_write_barrier != 0) {
        gc_record(m, want, desired);
    }
    m_leave_shallow(m);
    if (!done) {
        memcpy(expected, &found, sizeof found);
    }
    return done;
}

void gc_store_as(struct m *m, void *slot, uintptr_t word, uintptr_t old, uintptr_t now)
{
    m_enter_shallow(m);
    if (loam_write_barrier != 0) {
        gc_record(m, old, now);
    }
    __atomic_store_n((uintptr_t *)slot, word, __ATOMIC_RELEASE); /* release: as LOAM_SET */
    m_leave_shallow(m);
}

enum {
    WORD = sizeof(uintptr_t),
    CHUNK = 4096
}; /* bytes moved between two looks at what is asked */

static bool needs_no_barrier(const void *dst)
{
    const struct mspan *s = heap_span_of((uintptr_t)dst);
    return s != NULL && s->noscan;
}

/* A word that is not copied whole holds no pointer afterwards, but may have held one. */
static void copy_bytes(struct m *m, char *dst, const char *src, size_t n)
{
    uintptr_t *word = (uintptr_t *)align_down((uintptr_t)dst, WORD);
    if (loam_write_barrier != 0) {
        gc_record(m, __atomic_load_n(word, __ATOMIC_RELAXED),
                  0); /* relaxed: shaded before it goes */
    }
    memmove(dst, src, n);
}

/* Whole, if it is aligned: others may store to the source. */
ALWAYS_INLINE uintptr_t load_word(const char *src)
{
    uintptr_t word;
    if (likely((uintptr_t)src % WORD == 0)) {
        /* acquire: what the pointer leads to; pairs with LOAM_SET, passed on by our own release. */
        return __atomic_load_n((const uintptr_t *)src, __ATOMIC_ACQUIRE);
    }
    memcpy(&word, src, WORD);
    return word;
}

static void copy_forward(struct m *m, char *dst, const char *src, size_t bytes)
{
    size_t head = (size_t)(-(uintptr_t)dst % WORD);
    if (head != 0 && bytes != 0) {
        head = head < bytes ? head : bytes;
        copy_bytes(m, dst, src, head);
        dst += head, src += head, bytes -= head;
    }
    for (; bytes >= WORD; dst += WORD, src += WORD, bytes -= WORD) {
        uintptr_t word = load_word(src);
        store_word(m, (uintptr_t *)dst, word);
    }
    if (bytes != 0) {
        copy_bytes(m, dst, src, bytes);
    }
}

static void copy_backward(struct m *m, char *dst, const char *src, size_t bytes)
{
    dst += bytes, src += bytes;
    size_t tail = (uintptr_t)dst % WORD;
    if (tail != 0 && bytes != 0) {
        tail = tail < bytes ? tail : bytes;
        dst -= tail, src -= tail, bytes -= tail;
        copy_bytes(m, dst, src, tail);
    }
    for (; bytes >= WORD; bytes -= WORD) {
        dst -= WORD, src -= WORD;
        uintptr_t word = load_word(src);
        store_word(m, (uintptr_t *)dst, word);
    }
    if (bytes != 0) {
        copy_bytes(m, dst - bytes, src - bytes, bytes);
    }
}

void gc_copy(struct m *m, void *dst, const void *src, size_t bytes)
{
    if (needs_no_barrier(dst)) {
        memmove(dst, src, bytes);
        return;
    }
    bool backward = (uintptr_t)dst - (uintptr_t)src < bytes;
    for (size_t done = 0; done < bytes;) {
        size_t n = bytes - done < CHUNK ? bytes - done : CHUNK;
        m_enter_shallow(m);
        if (backward) {
            size_t at = bytes - done - n;
            size_t off = ((uintptr_t)dst + at) % WORD;
            if (at != 0 && off != 0) { /* pieces meet at whole words of dst */
                at += WORD - off;
                n -= WORD - off;
            }
            copy_backward(m, (char *)dst + at, (const char *)src + at, n);
        } else {
            n -= done + n < bytes ? ((uintptr_t)dst + done + n) % WORD : 0;
            copy_forward(m, (char *)dst + done, (const char *)src + done, n);
        }
        m_leave_shallow(m);
        done += n;
    }
}

void gc_clear(struct m *m, void *dst, size_t bytes)
{
    static const char zeroes[CHUNK];
    if (needs_no_barrier(dst)) {
        memset(dst, 0, bytes);
        return;
    }
    for (size_t done = 0; done < bytes;) {
        size_t n = bytes - done < CHUNK ? bytes - done : CHUNK;
        n -= done + n < bytes ? ((uintptr_t)dst + done + n) % WORD : 0;
        m_enter_shallow(m);
        copy_forward(m, (char *)dst + done, zeroes, n);
        m_leave_shallow(m);
        done += n;
    }
}
