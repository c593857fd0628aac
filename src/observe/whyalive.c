/* whyalive.c - loam_why_alive: the shortest path from a root to an object, in words.
 *
 * Model       Breadth first from all roots but those of the thread that asks, for that has mostly the object's address at hand
 *             itself; then from these; then from objects that wait for their finalizer. Only who reached whom first is
 *             stored; the words in between are looked for again.
 * Tests       tests/api/heapdump.c
 */
#include "observe/names.h"
#include "observe/snapshot.h"
#include "observe/writer.h"

#include <errno.h>
#include <inttypes.h>

#include <loam/stats.h>

struct path {
    struct graph graph;
    struct writer w;
    struct os_symbols symbols;
    uintptr_t child; /* whose parent's word is looked for */
    const struct holder *holder;
    struct object parent;
    bool told;
    bool own; /* nothing but the thread that asks holds it */
};

static void put_name(struct path *p, struct name name)
{
    char text[NAME_BYTES_MOST];
    name_text(&name, &p->symbols, text);
    writer_text(&p->w, text);
}

static void put_object(struct path *p, const struct object *obj)
{
    put_name(p, name_object(obj));
    writer_format(&p->w, " 0x%" PRIxPTR, graph_address(obj));
}

static void put_edge(void *arg, uintptr_t where, const struct object *to)
{
    struct path *p = arg;
    if (p->told || graph_address(to) != p->child) {
        return;
    }
    p->told = true;
    struct edge_name e = name_edge(&p->parent, where, to);
    writer_text(&p->w, e.name.kind == NAME_FIELD ? " ." : " ");
    put_name(p, e.name);
}

static void put_source(void *arg, const struct source *s, const struct object *to)
{
    struct path *p = arg;
    if (p->told || graph_address(to) != p->child) {
        return;
    }
    p->told = true;
    writer_text(&p->w, "  ");
    if (p->holder->m != NULL || p->holder->g != NULL) {
        put_name(p, name_holder(p->holder));
        writer_text(&p->w, p->holder->m == m_self ? ", which asks, " : ", ");
    }
    writer_text(&p->w, p->holder->group == GROUP_GLOBALS ? "global " : "");
    put_name(p, name_source(s));
    writer_text(&p->w, "\n");
}

static void look_at_holder(void *arg, const struct holder *h)
{
    struct path *p = arg;
    bool own = h->m != NULL && h->m == m_self;
    if (!p->told && own == p->own) {
        p->holder = h;
        graph_each_source(&p->graph, h, put_source, p);
    }
}

/* In the order in which they were followed. */
static void put_root_of(struct path *p, uintptr_t first)
{
    p->child = first;
    p->told = false;
    for (enum group group = 0; group < GROUPS; group++) {
        look_at_holder(p, &(struct holder){.group = group});
        graph_each_holder(group, look_at_holder, p);
    }
}

/* Places on the path from `last` to a root, turned round: from[] leads the other way from now on. Gives the first. */
static uint32_t turn_round(struct graph *graph, uint32_t last)
{
    uint32_t next = 0; /* place + 1, as in from[] */
    for (uint32_t at = last + 1; at != 0;) {
        uint32_t before = graph->from[at - 1];
        graph->from[at - 1] = next;
        next = at;
        at = before;
    }
    return next - 1;
}

static void put_path(struct path *p)
{
    struct graph *graph = &p->graph;
    uint32_t first = turn_round(graph, (uint32_t)graph->reached - 1);
    put_root_of(p, graph->queue[first]);
    for (uint32_t at = first + 1; graph->from[at - 1] != 0; at = graph->from[at - 1]) {
        (void)graph_find(graph->queue[at - 1], &p->parent);
        p->child = graph->queue[graph->from[at - 1] - 1];
        p->told = false;
        writer_text(&p->w, "  -> ");
        put_object(p, &p->parent);
        graph_each_edge(&p->parent, put_edge, p);
        writer_text(&p->w, "\n");
    }
}

static void search(struct path *p)
{
    graph_reach_others(&p->graph);
    if (!p->graph.found) {
        graph_reach_own(&p->graph);
        p->own = p->graph.found;
    }
    if (!p->graph.found) {
        graph_reach_ending(&p->graph);
    }
}

static int tell_why(const struct question *q, const struct m_context *self)
{
    struct path p = {.told = false};
    struct object obj;
    uintptr_t word = ~q->hidden;
    int error = graph_init(&p.graph, self, GRAPH_PATHS);
    error = error != 0 ? error : writer_init(&p.w, q->fd);
    if (error != 0) {
        return error;
    }
    if (!graph_find(word, &obj)) {
        return EINVAL;
    }
    os_symbols_begin(&p.symbols, OS_VARIABLES);
    os_symbols_read(&p.symbols);
    p.graph.wanted = graph_address(&obj);
    search(&p);
    writer_format(&p.w, "0x%" PRIxPTR " (", word);
    put_name(&p, name_object(&obj));
    writer_format(&p.w, ", %zu bytes) is reached ", obj.span->elem_size);
    writer_text(&p.w, p.graph.found ? "from:\n" : "by nothing: the next cycle frees it\n");
    if (p.graph.found) {
        put_path(&p);
    }
    error = writer_end(&p.w);
    return error != 0 ? error : p.graph.found ? 0 : ESRCH;
}

int loam_why_alive(const void *obj, int fd)
{
    struct question q = {.answer = tell_why, .fd = fd, .hidden = ~(uintptr_t)obj};
    return snapshot_ask(&q);
}
