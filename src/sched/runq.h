/* runq.h - the queue of a P: a ring from whose head anybody takes, and one goroutine that goes before it.
 *
 * From Go     runqput, runqget, runqgrab.
 */
#ifndef SCHED_RUNQ_H
#define SCHED_RUNQ_H

#include "sched/sched.h"

/* runq.c */
void runq_put_global(struct g *g); /* to the end of the global queue */
void runq_put_all_global(struct gqueue *q);
struct g *runq_take_global(struct p *p, uint32_t most);
struct g *runq_steal(struct worker *w); /* from another P; NULL: nothing was found */

/* To the end of the queue of w's P; half of a full one goes to the global queue. */
ALWAYS_INLINE void runq_put(struct p *p, struct g *g)
{
    for (;;) {
        uint32_t head = load_acq(&p->head); /* acquire: the slots are free; pairs with who took */
        uint32_t tail = load_rlx(&p->tail);
        if (tail - head < RUNQ_SLOTS) {
            store_rlx(&p->ring[tail % RUNQ_SLOTS], g);
            store_rel(&p->tail, tail + 1); /* release: the slot; pairs with runq_take */
            return;
        }
        uint32_t n = RUNQ_SLOTS / 2;
        struct g *half[RUNQ_SLOTS / 2];
        for (uint32_t i = 0; i < n; i++) {
            half[i] = load_rlx(&p->ring[(head + i) % RUNQ_SLOTS]);
        }
        if (cas_acqrel(&p->head, &head, head + n)) {
            struct gqueue q = {0};
            for (uint32_t i = 0; i < n; i++) {
                gqueue_put(&q, half[i]);
            }
            gqueue_put(&q, g);
            runq_put_all_global(&q);
            return;
        }
    }
}

ALWAYS_INLINE struct g *runq_take(struct p *p)
{
    uint32_t head = load_acq(&p->head);
    while (head != load_acq(&p->tail)) { /* acquire: the slot; pairs with runq_put */
        struct g *g = load_rlx(&p->ring[head % RUNQ_SLOTS]);
        if (cas_acqrel(&p->head, &head, head + 1)) {
            return g;
        }
    }
    return NULL;
}

ALWAYS_INLINE struct g *runq_take_next(struct p *p)
{
    struct g *g = load_rlx(&p->next);
    return g != NULL && cas_acqrel(&p->next, &g, NULL) ? g : NULL;
}

ALWAYS_INLINE bool runq_is_empty(struct p *p)
{
    return load_acq(&p->head) == load_acq(&p->tail) && load_acq(&p->next) == NULL;
}

#endif
