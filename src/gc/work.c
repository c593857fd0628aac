/* work.c - the queue of spans to scan.
 *
 * Purpose     Markers keep short lists of spans; what is too much goes as a batch to a global queue.
 * Model       heap.qnext links the spans of one list by page number; the first span of a published
 *             batch also links the next batch. So the queue needs no memory of its own, cannot
 *             overflow, and marking allocates nothing.
 *             A span is worth more the longer it waits, for more of its objects are marked meanwhile. So
 *             batches lie in two stacks: one is put to, the other taken from, and they change places when
 *             that is empty (from one stack a span came back at once with one or two objects: bench/mark
 *             -shape shuffled-tree took 3 times the time). And what gains nothing by waiting, for it fills
 *             its lines alone, goes first: objects of more than GCWORK_SMALL to the front of the list;
 *             large ones, of which each marker takes a piece, to a stack of their own. An array leads to
 *             thousands of spans, each of which is then scanned once, with all that the array names (else
 *             -shape rows took 2.5 times the time, -shape graph as well).
 * Invariants  [work.once]  a span is in at most one list: qstate is 1 exactly while it is.
 * Ordering    gc.batches: release on push, acquire on pop. The tag in its upper half makes a pop that
 *             was overtaken fail; span records are never unmapped, so reading a stale one is safe.
 * From Go     mgcmark_greenteagc.go queues spans of objects up to 512 bytes first in first out, after all
 *             larger ones, as here; differs: links out of line instead of rings and spill chains, so nothing
 *             is allocated.
 * Tests       tests/model [drain]; tests/stress: big_list.c, canary_graph.c
 */
#include "gc/work.h"

#include <limits.h>

static void push_batch(_Atomic uint64_t *batches, uint32_t first, uint32_t last, uint32_t count)
{
    struct mspan *s = &heap.spans[first - 1];
    s->batch_tail = last;
    s->batch_count = count;
    uint64_t head = load_rlx(batches);
    uint64_t next;
    do {
        store_rlx(&s->batch_next, (uint32_t)head); /* relaxed: published by the exchange */
        next = ((head >> 32) + 1) << 32 | first;
        /* release: the links; pairs with gcwork_take. */
    } while (!cas_sc(batches, &head, next));
    if (load_sc(&gc.sleepers) != 0 && !load_rlx(&gc.quiet)) { /* relaxed: who ends it wakes all */
        add_acqrel(&gc.work_seq, 1u); /* release: who sees the number sees the batch */
        os_futex_wake(&gc.work_seq, 1);
    }
}

/* Where batches are put. */
static _Atomic uint64_t *other_stack(void)
{
    return &gc.batches[~load_rlx(&gc.drawn) & 1]; /* relaxed: for order only */
}

static bool take_from(struct gcwork *w, _Atomic uint64_t *batches)
{
    uint64_t head = load_acq(batches); /* acquire: pairs with push_batch */
    while ((uint32_t)head != 0) {
        struct mspan *s = &heap.spans[(uint32_t)head - 1];
        uint64_t next = ((head >> 32) + 1) << 32 | load_rlx(&s->batch_next);
        if (cas_acqrel(batches, &head, next)) {
            w->head = (uint32_t)head;
            w->tail = s->batch_tail;
            w->count = s->batch_count;
            return true;
        }
    }
    return false;
}

bool gcwork_take(struct gcwork *w)
{
    for (;;) {
        uint32_t drawn = load_rlx(&gc.drawn);
        if (take_from(w, &gc.large) || take_from(w, &gc.batches[drawn & 1])) {
            return true;
        }
        if ((uint32_t)load_acq(&gc.batches[~drawn & 1]) == 0) {
            return false;
        }
        (void)cas_rlx(&gc.drawn, &drawn, drawn + 1); /* relaxed: for order only */
    }
}

bool gcwork_take_large(size_t *pn)
{
    struct gcwork one;
    if (!take_from(&one, &gc.large)) {
        return false;
    }
    *pn = one.head - 1;
    return true;
}

void gcwork_share(struct gcwork *w)
{
    uint32_t keep = w->count / 2;
    uint32_t count = w->count - keep;
    uint32_t last = w->head;
    for (uint32_t i = 1; i < keep; i++) {
        last = heap.qnext[last - 1];
    }
    uint32_t first = heap.qnext[last - 1];
    heap.qnext[last - 1] = 0;
    uint32_t end = w->tail;
    w->tail = last;
    w->count = keep;
    push_batch(other_stack(), first, end, count);
}

void gcwork_publish(struct gcwork *w)
{
    if (w->head != 0) {
        uint32_t first = w->head, last = w->tail, count = w->count;
        w->head = w->tail = w->count = 0;
        push_batch(other_stack(), first, last, count);
    }
    if (w->bytes_marked != 0) {
        add_rlx(&gc.bytes_marked, w->bytes_marked); /* relaxed: a count, read after the rounds */
        w->bytes_marked = 0;
    }
    if (w->scan_work != 0) {
        add_rlx(&gc.scan_work, w->scan_work); /* relaxed: as above */
        w->scan_work = 0;
    }
}

void gcwork_put_alone(size_t pn)
{
    if (xchg_sc(&heap.qstate[pn], (uint8_t)1) == 0) { /* seq_cst: see gcwork_put */
        uint32_t id = (uint32_t)pn + 1;
        heap.qnext[pn] = 0;
        push_batch(heap.spans[pn].sizeclass == 0 ? &gc.large : other_stack(), id, id, 1);
    }
}

bool gc_work_empty(void)
{
    return (uint32_t)load_sc(&gc.large) == 0 && (uint32_t)load_sc(&gc.batches[0]) == 0 &&
           (uint32_t)load_sc(&gc.batches[1]) == 0 && load_sc(&gc.keys) == NULL;
}

void gc_work_reset(void)
{
    store_rlx(&gc.large, UINT64_C(0));
    store_rlx(&gc.batches[0], UINT64_C(0));
    store_rlx(&gc.batches[1], UINT64_C(0));
    store_rlx(&gc.keys, NULL);
    store_rlx(&gc.draining, 0u);
    store_rlx(&gc.sleepers, 0u);
    store_rlx(&gc.paused, false);
}
