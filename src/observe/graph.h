/* graph.h - the heap of a frozen copy of the process as a graph: roots, objects, what points where.
 *
 * Nothing of it is stored but a bit for each object that is reached, and the order in which that happened: edges are read
 * from the objects as often as they are asked for, and since nothing changes they are the same each time.
 */
#ifndef OBSERVE_GRAPH_H
#define OBSERVE_GRAPH_H

#include "gc/gc.h"

struct g;

/* Kinds of roots, in the order in which they are followed: what lasts goes first. */
enum group {
    GROUP_GLOBALS,
    GROUP_RANGES,
    GROUP_PINS,
    GROUP_THREADS,
    GROUP_GOROUTINES,
    GROUP_ENDS, /* finalizers, cleanups, weak pointers */
    GROUP_OTHERS,
    GROUPS,
};

/* Where roots lie that are shown together: a group, or one thread or goroutine of it. */
struct holder {
    enum group group;
    struct m *m;
    const struct g *g;
};

/* A root that points to an object. */
struct source {
    struct root root;
    const char *end; /* GROUP_ENDS: its kind */
    uintptr_t of;    /* and the object that it is for */
};

struct object {
    const struct mspan *span;
    size_t index;
};

struct graph {
    const struct m_context *self;
    size_t count;     /* objects there are, reached or not */
    uintptr_t *queue; /* those that are reached, in that order */
    uint32_t *from;   /* the place of whom it was reached from + 1; 0: a root; NULL: nobody asks */
    size_t reached;
    size_t done;     /* the place + 1 of whose edges are looked at; 0: a root's */
    uint32_t *pairs; /* places of ephemerons among them */
    size_t npairs;
    uintptr_t *ending; /* objects that nothing else reaches and that have a finalizer: roots */
    size_t nending;
    uint32_t *
        before; /* by page of a span's head: objects that are reached and lie before it; graph_number */
    uintptr_t wanted; /* stop there; 0: at the end */
    bool found;
};

enum graph_want { GRAPH_ALL, GRAPH_PATHS };

/* Once. 0, or ENOMEM. */
int graph_init(struct graph *graph, const struct m_context *self, enum graph_want want);

/* The object that a word points to, or into. */
bool graph_find(uintptr_t word, struct object *obj);
ALWAYS_INLINE uintptr_t graph_address(const struct object *obj)
{
    return mspan_object(obj->span, obj->index);
}

/* Reach what the roots of everybody but the caller's own thread reach; then what those reach; what ends. */
void graph_reach_others(struct graph *graph);
void graph_reach_own(struct graph *graph);
void graph_reach_ending(struct graph *graph);

/* Number the reached objects by address: 0, or ENOMEM. */
int graph_number(struct graph *graph);
uint32_t graph_ordinal(const struct graph *graph, const struct object *obj);

/* Each edge of obj, or each object, by address. fn may ask for more. */
typedef void edge_fn(void *arg, uintptr_t where, const struct object *to);
void graph_each_edge(const struct object *obj, edge_fn *fn, void *arg);
void graph_each_reached(void (*fn)(void *arg, const struct object *obj), void *arg);

/* Each thread and goroutine; each root that holder has and that points to an object. */
void graph_each_holder(enum group group, void (*fn)(void *arg, const struct holder *h), void *arg);
typedef void source_fn(void *arg, const struct source *s, const struct object *to);
void graph_each_source(const struct graph *graph, const struct holder *h, source_fn *fn, void *arg);

#endif
