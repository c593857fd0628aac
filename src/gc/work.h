/* work.h - spans that wait to be scanned. */
#ifndef GC_WORK_H
#define GC_WORK_H

#include "gc/gc.h"

enum {
    GCWORK_LOCAL_MAX = 128, /* spans kept to oneself before half is shared */
    GCWORK_SMALL = 512,     /* bytes of an object that waits for its neighbours to be marked */
};

void gcwork_share(struct gcwork *w);   /* the second half goes to the global queue */
void gcwork_publish(struct gcwork *w); /* all of it, and the counts */
bool gcwork_take(struct gcwork *w);    /* a batch from the global queue; false: empty */
bool gcwork_take_large(size_t *pn);    /* a large object; false: none */
void gcwork_put_alone(size_t pn);      /* queue one span as a batch; re-entrant */
bool gc_work_empty(void);
void gc_work_reset(void); /* fork's child: forget everything */

/* Queue the span with head page pn, of objects that have a size class, unless it is queued: as the first one or
 * as the last. */
ALWAYS_INLINE void gcwork_put(struct gcwork *w, size_t pn, bool first)
{
    /* seq_cst: this load follows the marking; the scanner clears qstate, then loads the marks. One of
     * the two sees the other's write. */
    if (load_sc(&heap.qstate[pn]) != 0 || xchg_sc(&heap.qstate[pn], (uint8_t)1) != 0) {
        return;
    }
    uint32_t id = (uint32_t)pn + 1;
    if (w->head == 0) {
        heap.qnext[pn] = 0;
        w->head = w->tail = id;
    } else if (unlikely(first)) {
        heap.qnext[pn] = w->head;
        w->head = id;
    } else {
        heap.qnext[pn] = 0;
        heap.qnext[w->tail - 1] = id;
        w->tail = id;
    }
    if (unlikely(++w->count > GCWORK_LOCAL_MAX)) {
        gcwork_share(w);
    }
}

/* A large object, or the next span of the local list; false: it is empty. */
ALWAYS_INLINE bool gcwork_get(struct gcwork *w, size_t *pn)
{
    /* relaxed: for order only; gcwork_take asks in earnest */
    if (unlikely((uint32_t)load_rlx(&gc.large) != 0) && gcwork_take_large(pn)) {
        return true;
    }
    if (w->head == 0) {
        return false;
    }
    *pn = w->head - 1;
    w->head = heap.qnext[*pn];
    if (w->head == 0) {
        w->tail = 0;
    }
    w->count--;
    return true;
}

#endif
