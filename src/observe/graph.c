/* graph.c - what is reached in a frozen copy of the process.
 *
 * Model       The copy's memory is its own, so the tables of the heap are put to use: alloc bits are set right first, so that
 *             they say what lives, and mark bits, of which a cycle may have set some, then say what is reached here.
 *             Breadth first, from an explicit queue: each object enters it once.
 * Invariants  [graph.alloc]   an alloc bit is set iff the slot was handed out and no sweep will free it.
 *             [graph.still]   nothing of this lies in data of the library, which may be roots, nor in the frames that the
 *                             caller's context names: so all walks give the same edges.
 * From Go     none; writeheapdump of mheapdump.go stops the world and walks it.
 * Tests       tests/api/heapdump.c
 */
#include "observe/graph.h"

#include "gc/mark.h"
#include "sched/sched.h"

#include <errno.h>

/* -- what lives -------------------------------------------------------------------------------- */

static void each_span(void (*fn)(void *arg, struct mspan *s), void *arg)
{
    size_t end = load_rlx(&heap.used) >> PAGE_SHIFT;
    for (size_t pn = 0; pn < end;) {
        pagedesc d = load_rlx(&heap.descs[pn]);
        if (d == 0 || pagedesc_head(d) != pn) {
            pn++;
            continue;
        }
        struct mspan *s = &heap.spans[pn];
        fn(arg, s);
        pn += s->npages;
    }
}

/* Its marks say what lives: it is to be swept, or was cached at the flip. */
static bool waits_for_sweep(const struct mspan *s)
{
    uint32_t age = load_rlx(&s->sweepgen) - load_rlx(&heap.sweepgen);
    return age == (uint32_t)-2 || age == (uint32_t)-1 || age == 1;
}

static void settle_span(void *arg, struct mspan *s)
{
    size_t *count = arg;
    bool waits = waits_for_sweep(s);
    for (size_t i = 0; i < s->nwords; i++) {
        uint64_t allocs = load_rlx(&mspan_allocs(s)[i]);
        uint64_t marks = load_rlx(&mspan_marks(s)[i]);
        *count += popcount64(allocs); /* what a finalizer keeps may come back */
        if (waits && (allocs & ~marks) != 0) {
            allocs &= marks;
            store_rlx(&mspan_allocs(s)[i], allocs);
        }
        if (marks != 0) { /* a page that is not written stays shared */
            store_rlx(&mspan_marks(s)[i], UINT64_C(0));
        }
    }
}

static size_t settle(void) /* [graph.alloc] */
{
    size_t count = 0;
    for (struct m *m = world.ms; m != NULL; m = m->next) {
        mcache_disown_unused(&m->cache);
    }
    each_span(settle_span, &count);
    return count;
}

static void *map_words(size_t count, size_t size)
{
    return os_map(align_up((count + 1) * size, os_page_size()));
}

int graph_init(struct graph *graph, const struct m_context *self, enum graph_want want)
{
    *graph = (struct graph){.self = self, .count = settle()};
    graph->queue = map_words(graph->count, sizeof *graph->queue);
    graph->pairs = map_words(graph->count, sizeof *graph->pairs);
    graph->ending = map_words(graph->count, sizeof *graph->ending);
    if (want == GRAPH_PATHS) {
        graph->from = map_words(graph->count, sizeof *graph->from);
    }
    bool ok = graph->queue != NULL && graph->pairs != NULL && graph->ending != NULL &&
              (want == GRAPH_ALL || graph->from != NULL);
    return ok ? 0 : ENOMEM;
}

static bool find_bit(uintptr_t word, struct mark_bit *b)
{
    uintptr_t off = (word & heap.pointer_mask) - heap.base;
    return off < load_rlx(&heap.used) && mark_bit_of(off, b) &&
           (load_rlx(b->word + b->stride) & b->mask) != 0;
}

static void object_of(const struct mark_bit *b, struct object *obj)
{
    obj->span = &heap.spans[pagedesc_head(b->desc)];
    obj->index = b->index;
}

bool graph_find(uintptr_t word, struct object *obj)
{
    struct mark_bit b;
    if (!find_bit(word, &b)) {
        return false;
    }
    object_of(&b, obj);
    return true;
}

/* -- roots ------------------------------------------------------------------------------------- */

void graph_each_holder(enum group group, void (*fn)(void *arg, const struct holder *h), void *arg)
{
    struct holder h = {.group = group};
    if (group == GROUP_THREADS) {
        for (h.m = world.ms; h.m != NULL; h.m = h.m->next) {
            fn(arg, &h);
        }
    } else if (group == GROUP_GOROUTINES) {
        for (uint32_t i = 0; i < allg_count(); i++) {
            h.g = allg_get(i);
            if (gscan_is_parked(h.g)) {
                fn(arg, &h);
            }
        }
    }
}

struct sources {
    enum group group;
    source_fn *fn;
    void *arg;
};

static void tell(const struct sources *ss, const struct source *s)
{
    struct object to;
    if (graph_find(s->root.word, &to)) {
        ss->fn(ss->arg, s, &to);
    }
}

static void tell_root(void *arg, const struct root *r)
{
    tell(arg, &(struct source){.root = *r});
}

static void tell_of_group(void *arg, const struct root *r)
{
    static const enum group groups[] = {
        [ROOT_DATA] = GROUP_GLOBALS,   [ROOT_RANGE] = GROUP_RANGES, [ROOT_PIN] = GROUP_PINS,
        [ROOT_HANDLER] = GROUP_OTHERS, [ROOT_STACK] = GROUP_OTHERS,
    };
    const struct sources *ss = arg;
    if (groups[r->kind] == ss->group) {
        tell_root(arg, r);
    }
}

static void tell_end(void *arg, const char *kind, uintptr_t of, uintptr_t word)
{
    tell(arg, &(struct source){.root = {.word = word}, .end = kind, .of = of});
}

static void tell_entered(void *arg, uintptr_t where, uintptr_t word)
{
    (void)where;
    tell_root(arg, &(struct root){.kind = ROOT_MSTACK, .word = word});
}

static void each_of_thread(const struct graph *graph, struct m *m, struct sources *ss)
{
    const struct m_context *ctx = m == m_self                        ? graph->self
                                  : load_rlx(&m->state) == M_RUNNING ? NULL /* it did not stop */
                                                                     : &m->context;
    gc_each_thread_root(m, ctx, tell_root, ss);
    mstack_each_entered(m->mstacks, tell_entered, ss);
}

static void each_end(const struct graph *graph, struct sources *ss)
{
    ends_each_root(tell_end, ss);
    for (size_t i = 0; i < graph->nending; i++) {
        tell_end(ss, "finalizer still to run", graph->ending[i], graph->ending[i]);
    }
}

void graph_each_source(const struct graph *graph, const struct holder *h, source_fn *fn, void *arg)
{
    struct sources ss = {h->group, fn, arg};
    if (h->m != NULL) {
        each_of_thread(graph, h->m, &ss);
    } else if (h->g != NULL) {
        gscan_each_root(h->g, tell_root, &ss);
    } else if (h->group == GROUP_ENDS) {
        each_end(graph, &ss);
    } else if (h->group != GROUP_THREADS && h->group != GROUP_GOROUTINES) {
        gc_each_root(tell_of_group, &ss);
    }
}

/* -- edges ------------------------------------------------------------------------------------- */

struct edges {
    edge_fn *fn;
    void *arg;
};

static void tell_edge(void *arg, uintptr_t where, uintptr_t word)
{
    const struct edges *e = arg;
    struct object to;
    if (graph_find(word, &to)) {
        e->fn(e->arg, where, &to);
    }
}

void graph_each_edge(const struct object *obj, edge_fn *fn, void *arg)
{
    struct edges e = {fn, arg};
    const struct mspan *s = obj->span;
    if (s->type == load_rlx(&gc.managed_type)) { /* its frames are no objects */
        mstack_each_word((const void *)mspan_object(s, obj->index), tell_edge, &e);
    } else {
        walk_object(s, obj->index, tell_edge, &e);
    }
}

/* -- reaching ---------------------------------------------------------------------------------- */

static void reach(struct graph *graph, uintptr_t word)
{
    struct mark_bit b;
    struct object obj;
    if (graph->found || !find_bit(word, &b) || (load_rlx(b.word) & b.mask) != 0) {
        return;
    }
    store_rlx(b.word, load_rlx(b.word) | b.mask);
    object_of(&b, &obj);
    uintptr_t start = graph_address(&obj);
    if (graph->from != NULL) {
        graph->from[graph->reached] = (uint32_t)graph->done;
    }
    graph->queue[graph->reached++] = start;
    if (ends_is_ephemeron(obj.span->type)) {
        graph->pairs[graph->npairs++] = (uint32_t)graph->reached - 1;
    }
    graph->found = start == graph->wanted;
}

static void reach_source(void *graph, const struct source *s, const struct object *to)
{
    (void)to;
    reach(graph, s->root.word);
}

static void reach_edge(void *arg, uintptr_t where, const struct object *to)
{
    (void)where;
    reach(arg, graph_address(to));
}

/* Of the i-th that was reached. */
static void reach_edges_of(struct graph *graph, size_t i)
{
    struct object obj;
    graph->done = i + 1;
    if (graph_find(graph->queue[i], &obj) && !obj.span->noscan) {
        graph_each_edge(&obj, reach_edge, graph);
    }
}

/* Until the queue is empty; and ephemerons again, of which a key may have been reached after the pair. */
static void drain(struct graph *graph, size_t next)
{
    size_t before;
    do {
        for (; next < graph->reached && !graph->found; next++) {
            reach_edges_of(graph, next);
        }
        before = graph->reached;
        for (size_t i = 0; i < graph->npairs; i++) {
            reach_edges_of(graph, graph->pairs[i]);
        }
    } while (graph->reached != before && !graph->found);
    graph->done = 0;
}

static void reach_holder(void *arg, const struct holder *h)
{
    struct graph *graph = arg;
    if (h->m == NULL || h->m != m_self) {
        graph_each_source(graph, h, reach_source, graph);
    }
}

void graph_reach_others(struct graph *graph)
{
    for (enum group group = 0; group < GROUPS; group++) {
        reach_holder(graph, &(struct holder){.group = group});
        graph_each_holder(group, reach_holder, graph);
    }
    drain(graph, 0);
}

void graph_reach_own(struct graph *graph)
{
    size_t first = graph->reached;
    struct holder own = {.group = GROUP_THREADS, .m = m_self};
    graph_each_source(graph, &own, reach_source, graph);
    drain(graph, first);
}

/* Its alloc bit may be gone: the sweep would have kept it. */
static void reach_one_ending(void *arg, uintptr_t obj)
{
    struct graph *graph = arg;
    struct mark_bit b;
    if (graph->nending == graph->count || !mark_bit_of(obj - heap.base, &b) ||
        (load_rlx(b.word) & b.mask) != 0) {
        return;
    }
    store_rlx(b.word + b.stride, load_rlx(b.word + b.stride) | b.mask);
    graph->ending[graph->nending++] = obj;
    size_t first = graph->reached;
    reach(graph, obj);
    drain(graph, first);
}

void graph_reach_ending(struct graph *graph)
{
    ends_each_finalizable(reach_one_ending, graph);
}

/* -- numbers ----------------------------------------------------------------------------------- */

struct numbering {
    uint32_t *before;
    uint32_t n;
};

static void number_span(void *arg, struct mspan *s)
{
    struct numbering *of = arg;
    of->before[mspan_pn(s)] = of->n;
    for (size_t i = 0; i < s->nwords; i++) {
        of->n += popcount64(load_rlx(&mspan_marks(s)[i]));
    }
}

int graph_number(struct graph *graph)
{
    graph->before = map_words(load_rlx(&heap.used) >> PAGE_SHIFT, sizeof *graph->before);
    if (graph->before == NULL) {
        return ENOMEM;
    }
    struct numbering of = {.before = graph->before};
    each_span(number_span, &of);
    return 0;
}

uint32_t graph_ordinal(const struct graph *graph, const struct object *obj)
{
    const _Atomic uint64_t *marks = mspan_marks(obj->span);
    uint32_t n = graph->before[mspan_pn(obj->span)];
    for (size_t i = 0; i < obj->index / 64; i++) {
        n += popcount64(load_rlx(&marks[i]));
    }
    return n + popcount64(load_rlx(&marks[obj->index / 64]) &
                          bit_range(0, (unsigned)(obj->index % 64)));
}

struct reached {
    void (*fn)(void *arg, const struct object *obj);
    void *arg;
};

static void each_in_span(void *arg, struct mspan *s)
{
    const struct reached *r = arg;
    for (size_t i = 0; i < s->nwords; i++) {
        for (uint64_t left = load_rlx(&mspan_marks(s)[i]); left != 0; left &= left - 1) {
            r->fn(r->arg, &(struct object){s, i * 64 + ctz64(left)});
        }
    }
}

void graph_each_reached(void (*fn)(void *arg, const struct object *obj), void *arg)
{
    struct reached r = {fn, arg};
    each_span(each_in_span, &r);
}
