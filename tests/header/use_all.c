/* use_all.c - everything that loam.h and loam/stats.h declare, in C; compiled only.
 *
 * Claim: every form that the contract allows compiles without a warning. See compile_all.sh. */
#include <loam.h>
#include <loam/stats.h>

#define FITS(name, cond) typedef char fits_##name[(cond) ? 1 : -1]

FITS(field, sizeof(loam_field) == 8);
FITS(cleanup, sizeof(loam_cleanup) == 8);
FITS(by_size, sizeof(((loam_memstats *)0)->by_size) == 68u * 3u * 8u);
FITS(version, sizeof(LOAM_VERSION) == 6);

/* ---- types ---- */

typedef struct node {
    struct node *left, *right;
    char *name;
    int key;
} node;
LOAM_TYPE(node, left, right, name);

typedef union tagged {
    uintptr_t bits;
    node *n;
    double d;
} tagged;

typedef struct every {
    const node *target;
    uintptr_t word;
    volatile uintptr_t quick;
    node *volatile hasty;
    tagged u;
    struct {
        void *next;
        void *prev;
    } pos;
    node *kids[3];
    tagged many[2][2];
#if __STDC_VERSION__ >= 201112L
    _Atomic(node *) shared;
    _Atomic(uintptr_t) count;
#endif
    node *const *walk;
    void (*fn)(void);
    int last;
} every;
LOAM_TYPE(every, target, word, quick, hasty, u, pos.next, pos, kids, kids[1], many, walk, fn);

typedef struct pixel {
    unsigned char r, g, b;
} pixel;
LOAM_TYPE_NOSCAN(pixel);
LOAM_TYPE_NOSCAN(double);

typedef struct vec {
    size_t n;
    node *meta;
    char *name;
    node *items[];
} vec;
LOAM_TYPE_FLEX(vec, items, meta, name);

typedef struct bare {
    size_t n;
    void *items[];
} bare;
LOAM_TYPE_FLEX(bare, items);

typedef struct text {
    node *owner;
    int n;
    char data[];
} text;
LOAM_TYPE_FLEX(text, data, owner);

typedef struct value {
    uint64_t boxed;
} value;
static void value_scan(const value *v, size_t bytes, loam_marker *m)
{
    for (size_t i = 0; i < bytes / sizeof(value); i++) {
        loam_mark(m, (const void *)(uintptr_t)(v[i].boxed & 0xffffffffffffu));
    }
}
LOAM_TYPE_SCANNED(value, value_scan);

typedef struct wide {
    void *f[64];
} wide;
#define EIGHT(i) f[i], f[i + 1], f[i + 2], f[i + 3], f[i + 4], f[i + 5], f[i + 6], f[i + 7]
LOAM_TYPE(wide, EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48),
          EIGHT(56));
FITS(wide, sizeof(wide_loam_fields_) == 65 * sizeof(loam_field));
FITS(bare, sizeof(bare_loam_fields_) == 1 * sizeof(loam_field));
FITS(vec, sizeof(vec_loam_fields_) == 3 * sizeof(loam_field));

typedef struct unused {
    void *p;
} unused;
LOAM_TYPE(unused, p);

/* ---- memory ---- */

static node *root;

node *make(size_t n);
node *make(size_t n)
{
    node *a = LOAM_NEW(node);
    node *b = LOAM_NEW_ARRAY(node, n);
    node **c = LOAM_NEW_POINTERS(node, n);
    const char **s = LOAM_NEW_POINTERS(const char, n);
    vec *v = LOAM_NEW_FLEX(vec, n);
    text *t = LOAM_NEW_FLEX(text, n);
    bare *e = LOAM_NEW_FLEX(bare, n);
    pixel *p = LOAM_NEW_ARRAY(pixel, n);
    double *d = LOAM_NEW(double);
    value *w = LOAM_NEW_ARRAY(value, n);
    void *out[4];
    const size_t offsets[] = {0, 8};

    if (a == NULL || loam_new_batch(LOAM_TYPEOF(node), 4, out) < 4) {
        return NULL;
    }
    LOAM_SET(a->left, b);
    LOAM_SET(c[0], a);
    LOAM_SET(s[0], loam_strdup("left"));
    LOAM_SET(v->items[0], LOAM_SET(v->meta, c[0]));
    LOAM_SET(t->owner, NULL);
    LOAM_SET(e->items[0], out[0]);
    (void)loam_new(loam_type_make("pair", 16, offsets, 2), 1);
    (void)loam_alloc(0);
    loam_free(loam_realloc(loam_alloc_noscan(10), loam_usable_size(p)));
    loam_keep_alive(d);
    loam_keep_alive(loam_base(w));
    return LOAM_SET(root, a);
}

/* ---- stores ---- */

static void *find(void)
{
    return root;
}

void store(every *e, node *n, size_t i);
void store(every *e, node *n, size_t i)
{
    static every table[3];
    every local = table[0];

    LOAM_SET(e->target, n);
    LOAM_SET(e->word, (uintptr_t)n | 1u);
    LOAM_SET(e->word, 0);
    LOAM_SET(e->quick, e->word);
    LOAM_SET(e->hasty, n);
    LOAM_SET(e->u.bits, e->quick);
    LOAM_SET(e->u.n, e->hasty);
    LOAM_SET(e->pos.next, n);
    LOAM_SET(*(e->kids + i), NULL);
    LOAM_SET(table[i++ % 3].kids[0], find());
    LOAM_SET(e->many[0][1].n, 0);
    LOAM_SET(e->walk, &e->kids[0]);
#if __STDC_VERSION__ >= 201112L
    LOAM_SET(e->shared, n);
    LOAM_SET(e->count, (uintptr_t)n);
    LOAM_SET(e->kids[0], e->shared);
#endif
    LOAM_SET(local.kids[1], n);
    if (LOAM_SET(n->left, n->right) == NULL)
        LOAM_SET(n->right, n);
    else
        LOAM_SET(n->right, local.kids[1]);
    e->last = LOAM_SET(n->left, n->right)->key;
}

/* A C99 inline function with external linkage may store. */
inline void link_nodes(node *a, node *b)
{
    LOAM_SET(a->left, b);
}
extern inline void link_nodes(node *a, node *b);

/* ---- every function, with its exact type ---- */

static void on_oom(void *arg)
{
    (void)arg;
}
static void on_end(void *obj, void *arg)
{
    (void)obj;
    (void)arg;
}
int call_all(void *p, void *q);
int call_all(void *p, void *q)
{
    node *expected = NULL;
    const char *version = loam_version();
    loam_stack *stack = loam_stack_add(p, 4096, NULL);
    loam_weak *weak = loam_weak_make(p);
    loam_ephemeron *pair = loam_ephemeron_make(p, q);
    loam_cleanup c = loam_add_cleanup(p, on_oom, q);
    static loam_memstats m;
    int sum = version[0];

    loam_set_oom_handler(on_oom, NULL);
    sum += loam_set_pointer_mask(~(uintptr_t)0) + loam_set_signal(10);
    loam_store(p, q);
    loam_store_as(p, 1, NULL, q);
    q = loam_exchange(p, q);
    sum += loam_compare_exchange(p, &expected, q);
    loam_copy(p, q, 8);
    loam_clear(p, 8);
    sum += loam_add_roots(p, 8) + loam_remove_roots(p, 8);
    loam_unpin(loam_pin(p));
    sum += loam_stack_set(stack, p, 8);
    loam_stack_remove(stack);
    sum += loam_attach();
    loam_enter_blocking();
    loam_exit_blocking();
    loam_detach();
    loam_gc();
    sum += loam_set_gc_percent(100) + loam_set_max_procs(0);
    sum += loam_set_finalizer(p, on_end, q) + loam_set_finalizer(p, NULL, NULL);
    loam_cleanup_stop(c);
    sum += loam_weak_value(weak) == loam_ephemeron_value(pair);
    loam_read_memstats(&m);
    sum += loam_write_heap_dump(1) + loam_why_alive(p, 1);
    sum += loam_set_mem_profile_rate(1) + loam_write_heap_profile(1) +
           loam_write_goroutine_profile(1);
    sum += m.enable_gc && m.gc_cpu_fraction < 1 && m.num_gc >= m.num_forced_gc;
    sum += m.by_size[1].size == 8 && m.pause_ns[255] == m.pause_end[255];
    return sum;
}
