/* runq.c - goroutines that wait for a processor: the global queue, and what one P takes from others.
 *
 * Invariants  [p.owner]  at sched.c
 * Locking     sched.lock for the global queue; none for those of Ps.
 * From Go     proc.go: globrunqget, runqsteal.
 * Tests       tests/stress/channels_random.c
 */
#include "sched/runq.h"

#include "base/rng.h"

enum { STEAL_ROUNDS = 4 }; /* Go's */

void runq_put_all_global(struct gqueue *q)
{
    mutex_lock(&sched.lock);
    if (sched.global.tail != NULL) {
        sched.global.tail->next = q->head;
    } else {
        sched.global.head = q->head;
    }
    sched.global.tail = q->tail;
    sched.global.n += q->n;
    store_rlx(&sched.nglobal, sched.global.n);
    mutex_unlock(&sched.lock);
}

void runq_put_global(struct g *g)
{
    struct gqueue q = {0};
    gqueue_put(&q, g);
    runq_put_all_global(&q);
}

/* A share of the global queue for w's P, at most `most`; the first of it. */
struct g *runq_take_global(struct p *p, uint32_t most)
{
    if (load_rlx(&sched.nglobal) == 0) {
        return NULL;
    }
    mutex_lock(&sched.lock);
    uint32_t n = sched.global.n / (uint32_t)load_rlx(&sched.procs) + 1;
    n = n > most ? most : n;
    struct g *first = gqueue_take(&sched.global);
    struct gqueue rest = {0};
    for (uint32_t i = 1; i < n && sched.global.n != 0; i++) {
        gqueue_put(&rest, gqueue_take(&sched.global));
    }
    store_rlx(&sched.nglobal, sched.global.n);
    mutex_unlock(&sched.lock);
    for (struct g *g; (g = gqueue_take(&rest)) != NULL;) {
        runq_put(p, g);
    }
    return first;
}

/* Half of the victim's queue to the end of p's own, which is empty; the last of them. */
static struct g *steal_from(struct p *p, struct p *victim, bool next_too)
{
    for (;;) {
        uint32_t head = load_acq(&victim->head);
        uint32_t tail = load_acq(&victim->tail); /* acquire: the slots; pairs with runq_put */
        uint32_t n = tail - head;
        n -= n / 2;
        if (n == 0) {
            struct g *g = next_too ? load_acq(&victim->next) : NULL;
            if (g == NULL) {
                return NULL;
            }
            if (load_rlx(&victim->owner) != NULL) {
                /* Who readied it is about to park, most often: then it runs there, warm. */
                os_sleep_ns(3000);
            }
            return load_acq(&victim->next) == g && cas_acqrel(&victim->next, &g, NULL) ? g : NULL;
        }
        if (n > RUNQ_SLOTS / 2) { /* head and tail are not of one moment */
            continue;
        }
        uint32_t own = load_rlx(&p->tail);
        for (uint32_t i = 0; i < n; i++) {
            store_rlx(&p->ring[(own + i) % RUNQ_SLOTS],
                      load_rlx(&victim->ring[(head + i) % RUNQ_SLOTS]));
        }
        if (cas_acqrel(&victim->head, &head, head + n)) {
            struct g *g = load_rlx(&p->ring[(own + n - 1) % RUNQ_SLOTS]);
            store_rel(&p->tail, own + n - 1); /* release: the slots; pairs with runq_take */
            return g;
        }
    }
}

struct g *runq_steal(struct worker *w)
{
    int n = load_rlx(&sched.most_procs);
    for (int round = 0; round < STEAL_ROUNDS; round++) {
        uint32_t from = (uint32_t)(rng_next(&w->p->rng) >> 33);
        for (int i = 0; i < n; i++) {
            struct p *victim = &sched.ps[(from + (uint32_t)i) % (uint32_t)n];
            struct g *g = victim == w->p ? NULL
                                         : steal_from(w->p, victim, round == STEAL_ROUNDS - 1);
            if (g != NULL) {
                return g;
            }
        }
    }
    return NULL;
}
