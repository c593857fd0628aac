/* mcentral.c - spans of one span class, shared by all caches.
 *
 * Purpose     Holds every span of its class that no cache and no sweeper holds.
 * Model       four lists: {partial, full} x {swept, to be swept}; a flip of heap.sweepgen exchanges
 *             the last two without touching a span.
 * Invariants  [mcentral.owner]  a span is on at most one list; taking it off, under the lock, makes
 *             the taker its owner.
 *             [mcentral.gen]  a span on a list of index i carries the sweepgen whose index is i.
 * Locking     mcentral.lock, never two; heap.lock may be taken after, not under it.
 * From Go     mcentral.go; differs: intrusive lists under a short lock instead of lock-free sets, so
 *             that loam_free can move a span; a cache of the old generation (mcache.black) takes
 *             and returns spans of the old generation's lists.
 * Tests       tests/unit/test_heap.c, tests/stress
 */
#include "heap/mcache.h"

enum {
    SWEEP_TRIES = 100
}; /* spans swept in vain before a fresh one is taken: bounds waste at 1 % */

static unsigned gen_index(uint32_t sweepgen)
{
    return sweepgen / 2 & 1;
}

static struct mspan *pop(struct span_list *l)
{
    struct mspan *s = l->head;
    if (s != NULL) {
        span_list_remove(s);
    }
    return s;
}

struct mspan *mcentral_take_unswept(struct mcentral *central, uint32_t sweepgen)
{
    unsigned i = gen_index(sweepgen - 2);
    /* Not by the counts: mcentral_slot_freed moves a span from one list to the other, and in between both
     * look empty. The lock, too: who sees them empty sees heap.sweeping of who emptied them. */
    mutex_lock(&central->lock);
    struct mspan *s = pop(&central->partial[i]);
    if (s == NULL) {
        s = pop(&central->full[i]);
    }
    if (s != NULL) {
        ASSERT(load_rlx(&s->sweepgen) == sweepgen - 2);
        store_rlx(&s->sweepgen, sweepgen - 1); /* relaxed: the lock orders it */
    }
    mutex_unlock(&central->lock);
    return s;
}

static struct mspan *take_partial(struct mcache *c, struct mcentral *central)
{
    struct span_list *l = &central->partial[gen_index(c->sweepgen)];
    if (load_rlx(&l->count) == 0) { /* relaxed: a hint */
        return NULL;
    }
    mutex_lock(&central->lock);
    struct mspan *s = pop(l);
    if (s != NULL) {
        ASSERT(load_rlx(&s->sweepgen) == c->sweepgen);
        store_rlx(&s->sweepgen, c->sweepgen + 3); /* relaxed: the lock orders it */
    }
    mutex_unlock(&central->lock);
    return s;
}

/* Sweep spans of this class until one has a free slot. */
static struct mspan *sweep_for(struct mcache *c, struct mcentral *central)
{
    struct mspan *found = NULL;
    unsigned unswept = gen_index(c->sweepgen - 2);
    if (load_rlx(&central->partial[unswept].count) == 0 &&
        load_rlx(&central->full[unswept].count) == 0) {
        return NULL; /* relaxed: a hint; what is missed here is swept by others */
    }
    add_acqrel(&heap.sweeping, 1u); /* before a list can be seen empty: see mcentral_take_unswept */
    for (int i = 0; i < SWEEP_TRIES && found == NULL; i++) {
        struct mspan *s = mcentral_take_unswept(central, c->sweepgen);
        if (s == NULL) {
            break;
        }
        if (heap.sweep_span(s, true)) {
            store_rlx(&s->sweepgen, c->sweepgen + 3); /* relaxed: we own it */
            found = s;
        }
    }
    sub_acqrel(&heap.sweeping, 1u);
    return found;
}

struct mspan *mcentral_cache_span(struct mcache *c, struct mcentral *central)
{
    struct mspan *s = take_partial(c, central);
    if (s != NULL) {
        return s;
    }
    if (!c->black) { /* [refill]: black, it never sweeps: its past's lists hold nothing unswept */
        if (load_rlx(&heap.returned) != NULL) {
            mcentral_drain_returned();
        }
        s = sweep_for(c, central);
        if (s != NULL) {
            return s;
        }
    }
    s = mheap_alloc_span(c, class_to_pages[central->sizeclass], central);
    if (s != NULL) {
        store_rlx(&s->sweepgen, c->sweepgen + 3); /* relaxed: published below */
        mspan_publish(s);
    }
    return s;
}

static void add(struct mcentral *central, struct mspan *s, uint32_t sweepgen, bool has_free)
{
    unsigned i = gen_index(sweepgen);
    mutex_lock(&central->lock);
    store_rlx(&s->sweepgen, sweepgen); /* relaxed: the lock orders it */
    has_free = has_free || load_rlx(&s->freed) != 0;
    span_list_push(has_free ? &central->partial[i] : &central->full[i], s);
    mutex_unlock(&central->lock);
}

void mcentral_uncache(struct mcache *c, struct mspan *s)
{
    add(mcentral_of(s->spanclass), s, c->sweepgen, s->free_index < s->nelems);
}

void mcentral_add_large(struct mcache *c, struct mspan *s)
{
    add(mcentral_of(s->spanclass), s, c->sweepgen, false);
}

void mcentral_add_swept(struct mspan *s, bool has_free)
{
    /* A sweeper holds sg-1 of the generation it sweeps for. */
    add(mcentral_of(s->spanclass), s, load_rlx(&s->sweepgen) + 1, has_free);
}

void mcentral_drain_returned(void)
{
    add_acqrel(&heap.sweeping,
               1u); /* before the list can be seen empty: pairs with gc_sweep_finish */
    /* acquire: pairs with the push in mcache_give_back. */
    struct mspan *s = xchg_acqrel(&heap.returned, NULL);
    while (s != NULL) {
        struct mspan *next = s->next;
        s->next = NULL;
        /* A large object comes here when a signal handler allocated it: mcache_alloc_nested. */
        add(mcentral_of(s->spanclass), s, load_rlx(&s->sweepgen), s->sizeclass != 0);
        s = next;
    }
    sub_acqrel(&heap.sweeping, 1u);
}

void mcentral_slot_freed(struct mcentral *central, struct mspan *s)
{
    mutex_lock(&central->lock);
    /* relaxed: it may be a span of another mcentral by now, and is on none of these lists then */
    struct span_list *l = load_rlx(&s->list);
    add_rlx(&s->freed, 1u); /* relaxed: a hint to the owner, or under the lock */
    if (l == &central->full[0] || l == &central->full[1]) {
        span_list_remove(s);
        span_list_push(&central->partial[l - central->full], s);
    }
    mutex_unlock(&central->lock);
}

bool mcentral_remove_large(struct mspan *s, uint32_t sweepgen)
{
    struct mcentral *central = mcentral_of(s->spanclass);
    bool removed = false;
    mutex_lock(&central->lock);
    if (load_rlx(&s->list) != NULL && load_rlx(&s->sweepgen) == sweepgen) {
        span_list_remove(s);
        removed = true;
    }
    mutex_unlock(&central->lock);
    return removed;
}
