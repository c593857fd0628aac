/* heapdump.c - loam_write_heap_dump: the heap as a .heapsnapshot of V8's, for the Memory tab of Chrome DevTools.
 *
 * Model       node 0 the root; 1 "(GC roots)", by which the tab knows where to start; then one for each kind of roots; then
 *             threads and goroutines; then the objects that are reached, by address. Nodes, edges and strings are written
 *             in one pass each: objects are numbered by their bits (graph_ordinal), and how many edges each has was counted
 *             before. A string gets its number when it is first used, and its text at the end.
 *             Kinds of roots are `native`, not `synthetic`, and the root has a `shortcut` to each: from these the tab counts
 *             distances.
 *             ids are what is compared between dumps: of an object its place in the heap, odd, 32 bits as the tab keeps them
 *             (a heap of more than 16 GiB repeats them); of the others even.
 * Format      v8/src/profiler/heap-snapshot-generator.cc, HeapSnapshotJSONSerializer.
 * Tests       tests/api/heapdump.c
 */
#include "observe/names.h"
#include "observe/snapshot.h"
#include "observe/writer.h"

#include "sched/sched.h"

#include <errno.h>
#include <string.h>

#include <loam/stats.h>

enum node_type { NODE_OBJECT = 3, NODE_NATIVE = 8, NODE_SYNTHETIC = 9 };
enum edge_type { EDGE_ELEMENT = 1, EDGE_PROPERTY = 2, EDGE_INTERNAL = 3, EDGE_SHORTCUT = 5 };

enum {
    NODE_FIELDS = 7,
    ROOT = 0,
    GC_ROOTS = 1,
    FIRST_GROUP = 2,
    FIRST_HOLDER = FIRST_GROUP + GROUPS,
};

/* Names in the order in which they were first used; `slots` finds them by hash. String 0 is a dummy, as V8's. */
struct strings {
    struct name *names;
    size_t count, capacity;
    uint32_t *slots; /* number; 0: free */
    size_t nslots;   /* a power of two, at least twice the count */
};

struct dump {
    struct graph graph;
    struct writer w;
    struct os_symbols symbols;
    struct strings strings;
    uint32_t *edges_of; /* of each object, by ordinal */
    uint32_t first_object;
    uint32_t nholders;
    uint32_t at; /* the node that a pass is at */
    uint64_t nedges, nput;
    uint64_t n;      /* edges of the node */
    uint32_t target; /* of the next edge to a holder */
    bool began;      /* an array has its first number */
    const struct object *obj;
};

/* -- strings ----------------------------------------------------------------------------------- */

static _Noreturn void give_up(int error)
{
    os_snapshot_exit(error);
}

static void *map_more(const void *old, size_t old_bytes, size_t bytes)
{
    void *bigger = os_map(align_up(bytes, os_page_size()));
    if (bigger == NULL) {
        give_up(ENOMEM);
    }
    if (old != NULL) {
        memcpy(bigger, old, old_bytes);
        os_release((void *)(uintptr_t)old, align_up(old_bytes, os_page_size()));
    }
    return bigger;
}

static size_t name_slot(const struct strings *s, const struct name *name)
{
    uint64_t h = ((uintptr_t)name->of >> 3) * UINT64_C(0x9E3779B97F4A7C15);
    h = (h ^ name->n ^ (uint64_t)name->kind << 58) * UINT64_C(0xBF58476D1CE4E5B9);
    return (size_t)(h >> 24) & (s->nslots - 1);
}

static uint32_t *strings_find(struct strings *s, const struct name *name)
{
    size_t i = name_slot(s, name);
    while (s->slots[i] != 0) {
        const struct name *there = &s->names[s->slots[i] - 1];
        if (there->kind == name->kind && there->of == name->of && there->n == name->n) {
            break;
        }
        i = (i + 1) & (s->nslots - 1);
    }
    return &s->slots[i];
}

static void strings_grow(struct strings *s)
{
    size_t capacity = s->capacity == 0 ? 1024 : 2 * s->capacity;
    s->names = map_more(s->names, s->capacity * sizeof *s->names, capacity * sizeof *s->names);
    if (s->slots != NULL) {
        os_release(s->slots, align_up(s->nslots * sizeof *s->slots, os_page_size()));
    }
    s->capacity = capacity;
    s->nslots = 2 * capacity;
    s->slots = map_more(NULL, 0, s->nslots * sizeof *s->slots);
    for (size_t i = 0; i < s->count; i++) {
        *strings_find(s, &s->names[i]) = (uint32_t)i + 1;
    }
}

static uint32_t string_of(struct dump *d, struct name name)
{
    struct strings *s = &d->strings;
    if (s->count == s->capacity) {
        strings_grow(s);
    }
    uint32_t *slot = strings_find(s, &name);
    if (*slot == 0) {
        s->names[s->count++] = name;
        *slot = (uint32_t)s->count;
    }
    return *slot;
}

/* -- nodes ------------------------------------------------------------------------------------- */

static void put_numbers(struct dump *d, const uint64_t *numbers, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (d->began) {
            writer_put(&d->w, ",", 1);
        }
        d->began = true;
        writer_number(&d->w, numbers[i]);
    }
    writer_put(&d->w, "\n", 1);
    if (d->w.error != 0) {
        give_up(d->w.error);
    }
}

static void put_node(struct dump *d, enum node_type type, struct name name, uint32_t id,
                     size_t bytes, uint64_t edges)
{
    const uint64_t fields[NODE_FIELDS] = {type, string_of(d, name), id, bytes, edges, 0, 0};
    put_numbers(d, fields, NODE_FIELDS);
}

static uint32_t holder_id(const struct holder *h)
{
    if (h->m != NULL) {
        return ((uint32_t)h->m->tid + 64) * 2;
    }
    return h->g != NULL ? ((uint32_t)h->g->id | UINT32_C(0x40000000)) << 1
                        : ((uint32_t)h->group + FIRST_GROUP + 1) * 2;
}

static void count_edge(void *arg, uintptr_t where, const struct object *to)
{
    (void)where, (void)to;
    ((struct dump *)arg)->n++;
}

static void count_source(void *arg, const struct source *s, const struct object *to)
{
    (void)s, (void)to;
    ((struct dump *)arg)->n++;
}

static void count_holder(void *arg, const struct holder *h)
{
    (void)h;
    ((struct dump *)arg)->n++;
}

/* A group points to its holders, or to what its roots point to. */
static uint64_t edges_of_holder(struct dump *d, const struct holder *h)
{
    d->n = 0;
    if (h->m == NULL && h->g == NULL) {
        graph_each_holder(h->group, count_holder, d);
    }
    graph_each_source(&d->graph, h, count_source, d);
    return d->n;
}

/* All groups, then all holders: the order of their nodes. */
static void each_holder(struct dump *d, void (*fn)(void *arg, const struct holder *h))
{
    for (enum group group = 0; group < GROUPS; group++) {
        fn(d, &(struct holder){.group = group});
    }
    for (enum group group = 0; group < GROUPS; group++) {
        graph_each_holder(group, fn, d);
    }
}

static void put_holder_node(void *arg, const struct holder *h)
{
    struct dump *d = arg;
    put_node(d, NODE_NATIVE, name_holder(h), holder_id(h), 0, edges_of_holder(d, h));
}

static void put_object_node(void *arg, const struct object *obj)
{
    struct dump *d = arg;
    uintptr_t off = graph_address(obj) - heap.base;
    put_node(d, NODE_OBJECT, name_object(obj), (uint32_t)(off / 8 * 2 + 1), obj->span->elem_size,
             d->edges_of[d->at++]);
}

static void put_nodes(struct dump *d)
{
    d->began = false;
    d->at = 0;
    writer_text(&d->w, "\"nodes\":[");
    put_node(d, NODE_SYNTHETIC, (struct name){NAME_TEXT, "", 0}, (ROOT + 1) * 2, 0, GROUPS + 1);
    put_node(d, NODE_SYNTHETIC, (struct name){NAME_TEXT, "(GC roots)", 0}, (GC_ROOTS + 1) * 2, 0,
             GROUPS);
    each_holder(d, put_holder_node);
    graph_each_reached(put_object_node, d);
    writer_text(&d->w, "],\n");
}

/* -- edges ------------------------------------------------------------------------------------- */

static void put_edge(struct dump *d, enum edge_type type, uint64_t name_or_index, uint32_t node)
{
    d->nput++;
    const uint64_t fields[] = {type, name_or_index, (uint64_t)node * NODE_FIELDS};
    put_numbers(d, fields, sizeof fields / sizeof fields[0]);
}

static void put_source_edge(void *arg, const struct source *s, const struct object *to)
{
    struct dump *d = arg;
    put_edge(d, EDGE_INTERNAL, string_of(d, name_source(s)),
             d->first_object + graph_ordinal(&d->graph, to));
}

static void put_edge_to_holder(void *arg, const struct holder *h)
{
    struct dump *d = arg;
    (void)h;
    put_edge(d, EDGE_ELEMENT, d->n++, d->target++);
}

static void put_edges_of_holder(void *arg, const struct holder *h)
{
    struct dump *d = arg;
    d->n = 0;
    if (h->m == NULL && h->g == NULL) {
        graph_each_holder(h->group, put_edge_to_holder, d);
    }
    graph_each_source(&d->graph, h, put_source_edge, d);
}

static void put_object_edge(void *arg, uintptr_t where, const struct object *to)
{
    struct dump *d = arg;
    struct edge_name e = name_edge(d->obj, where, to);
    uint32_t node = d->first_object + graph_ordinal(&d->graph, to);
    if (e.indexed) {
        put_edge(d, EDGE_ELEMENT, e.index, node);
    } else {
        put_edge(d, e.name.kind == NAME_TEXT ? EDGE_INTERNAL : EDGE_PROPERTY, string_of(d, e.name),
                 node);
    }
}

static void put_edges_of_object(void *arg, const struct object *obj)
{
    struct dump *d = arg;
    d->obj = obj;
    if (!obj->span->noscan) {
        graph_each_edge(obj, put_object_edge, d);
    }
}

static void put_edges(struct dump *d)
{
    d->began = false;
    d->target = FIRST_HOLDER;
    writer_text(&d->w, "\"edges\":[");
    put_edge(d, EDGE_ELEMENT, 1, GC_ROOTS);
    for (enum group group = 0; group < GROUPS; group++) {
        struct name name = name_holder(&(struct holder){.group = group});
        put_edge(d, EDGE_SHORTCUT, string_of(d, name), FIRST_GROUP + group);
    }
    for (enum group group = 0; group < GROUPS; group++) {
        put_edge(d, EDGE_ELEMENT, group, FIRST_GROUP + group);
    }
    each_holder(d, put_edges_of_holder);
    graph_each_reached(put_edges_of_object, d);
    ASSERT(d->nput == d->nedges); /* [graph.still] */
    writer_text(&d->w, "],\n");
}

/* -- the file ---------------------------------------------------------------------------------- */

static const char meta[] =
    "{\"snapshot\":{\"meta\":{"
    "\"node_fields\":[\"type\",\"name\",\"id\",\"self_size\",\"edge_count\",\"trace_node_id\","
    "\"detachedness\"],"
    "\"node_types\":[[\"hidden\",\"array\",\"string\",\"object\",\"code\",\"closure\",\"regexp\","
    "\"number\",\"native\",\"synthetic\",\"concatenated string\",\"sliced string\",\"symbol\","
    "\"bigint\",\"object shape\"],\"string\",\"number\",\"number\",\"number\",\"number\","
    "\"number\"],"
    "\"edge_fields\":[\"type\",\"name_or_index\",\"to_node\"],"
    "\"edge_types\":[[\"context\",\"element\",\"property\",\"internal\",\"hidden\",\"shortcut\","
    "\"weak\"],\"string_or_number\",\"node\"],"
    "\"trace_function_info_fields\":[\"function_id\",\"name\",\"script_name\",\"script_id\","
    "\"line\",\"column\"],"
    "\"trace_node_fields\":[\"id\",\"function_info_index\",\"count\",\"size\",\"children\"],"
    "\"sample_fields\":[\"timestamp_us\",\"last_assigned_id\"],"
    "\"location_fields\":[\"object_index\",\"script_id\",\"line\",\"column\"]},\n";

static void put_head(struct dump *d)
{
    writer_text(&d->w, meta);
    writer_text(&d->w, "\"node_count\":");
    writer_number(&d->w, d->first_object + d->graph.reached);
    writer_text(&d->w, ",\"edge_count\":");
    writer_number(&d->w, d->nedges);
    writer_text(&d->w, ",\"trace_function_count\":0},\n");
}

static void put_strings(struct dump *d)
{
    writer_text(&d->w, "\"trace_function_infos\":[],\n\"trace_tree\":[],\n\"samples\":[],\n"
                       "\"locations\":[],\n\"strings\":[\"<dummy>\"");
    for (size_t i = 0; i < d->strings.count && d->w.error == 0; i++) {
        char text[NAME_BYTES_MOST];
        name_text(&d->strings.names[i], &d->symbols, text);
        writer_text(&d->w, ",\n");
        writer_quoted(&d->w, text);
    }
    writer_text(&d->w, "]}\n");
}

static void count_edges_of_holder(void *arg, const struct holder *h)
{
    struct dump *d = arg;
    d->nholders++;
    d->nedges += edges_of_holder(d, h);
}

static void count_edges_of_object(void *arg, const struct object *obj)
{
    struct dump *d = arg;
    d->n = 0;
    if (!obj->span->noscan) {
        graph_each_edge(obj, count_edge, d);
    }
    d->edges_of[d->at++] = (uint32_t)d->n;
    d->nedges += d->n;
}

static void count(struct dump *d)
{
    d->nedges = 2 * GROUPS + 1; /* those of the first two nodes */
    each_holder(d, count_edges_of_holder);
    d->first_object = FIRST_GROUP + d->nholders;
    d->edges_of = map_more(NULL, 0, (d->graph.reached + 1) * sizeof *d->edges_of);
    graph_each_reached(count_edges_of_object, d);
}

static int write_dump(const struct question *q, const struct m_context *self)
{
    struct dump d = {.at = 0};
    int error = graph_init(&d.graph, self, GRAPH_ALL);
    error = error != 0 ? error : writer_init(&d.w, q->fd);
    if (error != 0) {
        return error;
    }
    graph_reach_others(&d.graph);
    graph_reach_own(&d.graph);
    graph_reach_ending(&d.graph);
    error = graph_number(&d.graph);
    if (error != 0) {
        return error;
    }
    count(&d);
    put_head(&d);
    put_nodes(&d);
    put_edges(&d);
    os_symbols_begin(&d.symbols, OS_VARIABLES);
    os_symbols_read(&d.symbols);
    put_strings(&d);
    return writer_end(&d.w);
}

int loam_write_heap_dump(int fd)
{
    struct question q = {.answer = write_dump, .fd = fd};
    return snapshot_ask(&q);
}
