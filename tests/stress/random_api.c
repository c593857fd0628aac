/* Random sequences of the memory functions against a naive model: what the model says is reachable is whole, at its
 * place, with its edges; what it says is unreachable dies, 95 % of it.  The model lies in plain memory and keeps
 * addresses disguised, so that it holds nothing alive itself.
 *
 * --steps N, --seconds N, --objects N (the most at a time), --helpers N (threads that allocate and collect beside)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 120
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | --objects 1000 | 180
 * TEST_RUN: gcstress | GODEBUG=gcstress=1,clobberfree=1 | --objects 300 --helpers 1 | 180
 * TEST_RUN: alone | GOGC=off | --helpers 0 | 120 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

enum { MOST_OBJECTS = 20000, MOST_SLOTS = 40, NONE = -1 };

enum kind { TYPED, FLEX, UNTYPED, NOSCAN, MADE, SCANNED, ARRAY, KINDS };

typedef struct typed {
    void *a;
    uint64_t data0;
    void *b[2];
    uint64_t data1;
    struct {
        void *c;
        uint64_t data2;
    } inner;
} typed;
LOAM_TYPE(typed, a, b, inner.c);

typedef struct flex {
    uint64_t data0;
    void *head;
    void *items[];
} flex;
LOAM_TYPE_FLEX(flex, items, head);

typedef struct scanned {
    void *first;
    uint64_t data;
    void *second;
} scanned;

static SCANS void scanned_scan(const scanned *s, size_t bytes, loam_marker *m)
{
    for (size_t i = 0; i < bytes / sizeof *s; i++) {
        loam_mark(m, *(void *const volatile *)&s[i].first);
        loam_mark(m, *(void *const volatile *)&s[i].second);
    }
}
LOAM_TYPE_SCANNED(scanned, scanned_scan);

/* ---- the model ---- */

/* An object as it should be.  Words that are no slots hold rng_mix(stamp + index), unless never written (stamp 0). */
struct object {
    enum kind kind;
    bool used;         /* this entry stands for an object that has not been seen dead */
    bool reachable;    /* as of the last model_mark */
    bool counted;      /* among the unreachable that were counted */
    uintptr_t address; /* disguised */
    size_t words;
    uint64_t stamp;
    size_t slots;
    uint32_t slot_word[MOST_SLOTS];
    int32_t edge[MOST_SLOTS]; /* the object that the slot points to, or NONE */
    unsigned pins;
    bool finalizer;
    loam_cleanup cleanup;
};

enum root_kind { IN_GLOBAL, IN_RANGE, ON_STACK, IN_TLS, ROOT_KINDS };
enum { ROOTS_EACH = 50 };

struct pair {
    int32_t key, value; /* NONE: unused */
};
enum { PAIRS = 200 };

static struct object *objects;
static size_t most_objects;
static int32_t root[ROOT_KINDS][ROOTS_EACH];
static struct pair pairs[PAIRS];
static struct rng rng;
static uint64_t died, expected_dead, verified;

/* ---- what the model describes ---- */

static void *global_roots[ROOTS_EACH];
static void **range_roots;
static __thread void *tls_roots[ROOTS_EACH];
static void **stack_roots; /* in main's frame */
static loam_weak **weak;   /* of every entry */
static loam_ephemeron **ephemerons;
static _Atomic(unsigned) *finalized; /* by entry; reset at its making */
static _Atomic(unsigned) *cleaned;

static const loam_type *made_type;
static const size_t made_offsets[] = {8, 24, 32, 72};

static void *address_of(int32_t i)
{
    return i == NONE ? NULL : reveal(objects[i].address);
}

static void **slot_of(int32_t i, size_t slot)
{
    return (void **)address_of(i) + objects[i].slot_word[slot];
}

/* ---- reachability, naively ---- */

static int32_t *mark_stack;
static size_t mark_depth;

static void mark_push(int32_t i)
{
    if (i != NONE && !objects[i].reachable) {
        objects[i].reachable = true;
        mark_stack[mark_depth++] = i;
    }
}

static void mark_drain(void)
{
    while (mark_depth > 0) {
        const struct object *o = &objects[mark_stack[--mark_depth]];
        for (size_t s = 0; s < o->slots; s++) {
            mark_push(o->edge[s]);
        }
    }
}

static void model_mark(void)
{
    for (size_t i = 0; i < most_objects; i++) {
        objects[i].reachable = false;
    }
    for (size_t k = 0; k < ROOT_KINDS; k++) {
        for (size_t i = 0; i < ROOTS_EACH; i++) {
            mark_push(root[k][i]);
        }
    }
    for (size_t i = 0; i < most_objects; i++) {
        if (objects[i].used && objects[i].pins > 0) {
            mark_push((int32_t)i);
        }
    }
    mark_drain();
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; i < PAIRS; i++) {
            if (pairs[i].key != NONE && objects[pairs[i].key].reachable && pairs[i].value != NONE &&
                !objects[pairs[i].value].reachable) {
                mark_push(pairs[i].value);
                again = true;
            }
        }
        mark_drain();
    }
}

/* A random object that is reached from a root, by walking the model from one; NONE if it comes out nowhere. */
static int32_t pick(void)
{
    int32_t i = root[rng_below(&rng, ROOT_KINDS)][rng_below(&rng, ROOTS_EACH)];
    for (size_t n = rng_below(&rng, 8); n > 0 && i != NONE && objects[i].slots > 0; n--) {
        int32_t next = objects[i].edge[rng_below(&rng, objects[i].slots)];
        if (next == NONE) {
            break;
        }
        i = next;
    }
    return i;
}

/* How many edges, roots and ephemerons name it, also those that are unreachable themselves. */
static size_t references(int32_t i)
{
    size_t count = 0;
    for (size_t n = 0; n < most_objects; n++) {
        for (size_t e = 0; objects[n].used && e < objects[n].slots; e++) {
            count += objects[n].edge[e] == i ? 1 : 0;
        }
    }
    for (size_t n = 0; n < ROOT_KINDS * ROOTS_EACH; n++) {
        count += root[n / ROOTS_EACH][n % ROOTS_EACH] == i ? 1 : 0;
    }
    for (size_t n = 0; n < PAIRS; n++) {
        count += pairs[n].key == i || pairs[n].value == i ? 1 : 0;
    }
    return count;
}

static NOINLINE void set_root(size_t k, size_t r, int32_t target)
{
    void *p = address_of(target);
    if (p != NULL && rng_below(&rng, 3) == 0 && (k == ON_STACK || k == IN_TLS)) {
        p = (char *)p +
            rng_below(&rng, objects[target].words * 8); /* into the middle holds as well */
    }
    switch (k) {
    case IN_GLOBAL:
        LOAM_SET(global_roots[r], p);
        break;
    case IN_RANGE:
        loam_store(&range_roots[r], p);
        break;
    case ON_STACK:
        *(void *volatile *)&stack_roots[r] = p;
        break;
    default:
        *(void *volatile *)&tls_roots[r] =
            p; /* it is never read: a plain store would be left out */
    }
    root[k][r] = target;
}

/* ---- checking ---- */

static bool is_slot(const struct object *o, size_t word)
{
    for (size_t s = 0; s < o->slots; s++) {
        if (o->slot_word[s] == word) {
            return true;
        }
    }
    return false;
}

static NOINLINE void object_check(int32_t i)
{
    const struct object *o = &objects[i];
    const uint64_t *p = address_of(i);
    for (size_t s = 0; s < o->slots; s++) {
        EXPECT_PTR_EQ(*slot_of(i, s), address_of(o->edge[s]));
    }
    size_t step = o->words > 100 ? o->words / 100 : 1;
    for (size_t w = 0; w < o->words; w += step) {
        if (!is_slot(o, w)) {
            EXPECT_EQ(p[w], o->stamp == 0 ? 0 : rng_mix(o->stamp + w));
        }
    }
    EXPECT_PTR_EQ(loam_base((const char *)p + rng_below(&rng, o->words * 8)), p);
    EXPECT_GE(loam_usable_size(p), o->words * 8);
    verified++;
}

static NOINLINE bool is_dead(int32_t i)
{
    return loam_weak_value(weak[i]) == NULL;
}

static NOINLINE void forget(int32_t i)
{
    struct object *o = &objects[i];
    EXPECT_EQ(atomic_load(&finalized[i]), o->finalizer ? 1u : 0u);
    EXPECT_EQ(atomic_load(&cleaned[i]), o->cleanup != 0 ? 1u : 0u);
    o->used = false;
    o->slots = 0;
    died += o->counted ? 1 : 0;
    LOAM_SET(weak[i], NULL);
}

/* Everything reachable is whole; what is seen dead is struck off the model. */
static void verify_all(void)
{
    model_mark();
    for (size_t n = 0; n < PAIRS; n++) {
        if (pairs[n].key == NONE) {
            continue;
        }
        void *value = loam_ephemeron_value(ephemerons[n]);
        if (objects[pairs[n].key].reachable) {
            EXPECT_PTR_EQ(value, address_of(pairs[n].value));
        } else if (is_dead(pairs[n].key)) {
            EXPECT_NULL(loam_ephemeron_value(ephemerons[n]));
            pairs[n] = (struct pair){NONE, NONE};
            LOAM_SET(ephemerons[n], NULL);
        }
    }
    for (size_t n = 0; n < most_objects; n++) {
        int32_t i = (int32_t)n;
        struct object *o = &objects[n];
        if (!o->used) {
            continue;
        }
        if (o->reachable) {
            EXPECT_MSG(!is_dead(i), "object %d is reachable and was collected", i);
            EXPECT_PTR_EQ(loam_weak_value(weak[i]), address_of(i));
            EXPECT_EQ(atomic_load(&finalized[i]), 0);
            object_check(i);
        } else {
            expected_dead += o->counted ? 0 : 1;
            o->counted = true;
        }
    }
    for (size_t n = 0; n < most_objects; n++) {
        const struct object *o = &objects[n];
        if (!o->used || o->reachable || !is_dead((int32_t)n)) {
            continue;
        }
        /* Its end is due, but its number is used again only after that. */
        bool waits = (o->finalizer && atomic_load(&finalized[n]) == 0) ||
                     (o->cleanup != 0 && atomic_load(&cleaned[n]) == 0);
        for (size_t k = 0; k < PAIRS; k++) {
            waits = waits || pairs[k].key == (int32_t)n || pairs[k].value == (int32_t)n;
        }
        if (!waits) {
            forget((int32_t)n);
        }
    }
    scrub_stack();
}

/* ---- operations ---- */

static void count_finalized(void *obj, void *arg)
{
    size_t i = (size_t)(uintptr_t)arg;
    EXPECT_PTR_EQ(loam_base(obj), obj);
    atomic_fetch_add(&finalized[i], 1);
}

static void count_cleaned(void *arg)
{
    atomic_fetch_add(&cleaned[(size_t)(uintptr_t)arg], 1);
}

static void slots_every(struct object *o, size_t first, size_t step)
{
    for (size_t w = first; w < o->words && o->slots < MOST_SLOTS; w += step) {
        o->slot_word[o->slots++] = (uint32_t)w;
    }
}

static void *make(struct object *o)
{
    size_t n = rng_below(&rng, 50) == 0 ? rng_between(&rng, 1, 9000) : rng_between(&rng, 1, 30);
    switch (o->kind) {
    case TYPED: {
        static const uint32_t words[] = {0, 2, 3, 5};
        o->words = sizeof(typed) / 8;
        o->slots = COUNT_OF(words);
        memcpy(o->slot_word, words, sizeof words);
        return LOAM_NEW(typed);
    }
    case FLEX:
        o->words = sizeof(flex) / 8 + n;
        slots_every(o, 1, 1);
        return LOAM_NEW_FLEX(flex, n);
    case UNTYPED:
        o->words = n;
        slots_every(o, 0, n > 100 ? n / 40 + 1 : 3);
        return rng_below(&rng, 2) == 0 ? loam_alloc(n * 8) : (void *)LOAM_NEW_POINTERS(void, n);
    case NOSCAN:
        o->words = n + 1; /* not so small that objects share a block */
        return loam_alloc_noscan(o->words * 8);
    case MADE:
        o->words = 10 * n;
        for (size_t e = 0; e < n; e++) {
            for (size_t k = 0; k < COUNT_OF(made_offsets) && o->slots < MOST_SLOTS; k++) {
                o->slot_word[o->slots++] = (uint32_t)(e * 10 + made_offsets[k] / 8);
            }
        }
        return loam_new(made_type, n);
    case SCANNED:
        o->words = 3 * n;
        for (size_t e = 0; e < n && o->slots + 1 < MOST_SLOTS; e++) {
            o->slot_word[o->slots++] = (uint32_t)(e * 3);
            o->slot_word[o->slots++] = (uint32_t)(e * 3 + 2);
        }
        return LOAM_NEW_ARRAY(scanned, n);
    default:
        o->words = sizeof(typed) / 8 * n;
        for (size_t e = 0; e < n && o->slots < MOST_SLOTS; e++) {
            o->slot_word[o->slots++] = (uint32_t)(e * (sizeof(typed) / 8));
        }
        return LOAM_NEW_ARRAY(typed, n);
    }
}

/* Words that no slot describes, in memory that is searched, must not look like pointers: mixed numbers seldom do. */
static void stamp(int32_t i)
{
    struct object *o = &objects[i];
    uint64_t *p = address_of(i);
    o->stamp = rng_next(&rng) | 1;
    for (size_t w = 0; w < o->words; w++) {
        if (!is_slot(o, w)) {
            p[w] = rng_mix(o->stamp + w);
        }
    }
}

static NOINLINE void op_new(void)
{
    size_t i = rng_below(&rng, most_objects);
    struct object *o = &objects[i];
    if (o->used) {
        return;
    }
    memset(o, 0, sizeof *o);
    o->kind = (enum kind)rng_below(&rng, KINDS);
    for (size_t s = 0; s < MOST_SLOTS; s++) {
        o->edge[s] = NONE;
    }
    void *p = make(o);
    EXPECT_NOT_NULL(p);
    o->used = true;
    o->address = disguise(p);
    atomic_store(&finalized[i], 0);
    atomic_store(&cleaned[i], 0);
    loam_weak *w = loam_weak_make(p);
    EXPECT_NOT_NULL(w);
    LOAM_SET(weak[i], w);
    object_check((int32_t)i); /* zero */
    if (rng_below(&rng, 2) == 0 && o->words < 2000 && o->kind != ARRAY) {
        stamp((int32_t)i);
    }
    set_root(rng_below(&rng, ROOT_KINDS), rng_below(&rng, ROOTS_EACH), (int32_t)i);
    loam_keep_alive(p);
}

static NOINLINE void op_edge(void)
{
    int32_t a = pick();
    int32_t b = rng_below(&rng, 5) == 0 ? NONE : pick();
    if (a == NONE || objects[a].slots == 0) {
        return;
    }
    size_t s = rng_below(&rng, objects[a].slots);
    void **slot = slot_of(a, s);
    void *old = address_of(objects[a].edge[s]);
    void *now = address_of(b);
    switch (rng_below(&rng, 6)) {
    case 0:
        EXPECT_PTR_EQ(LOAM_SET(*slot, now), now);
        break;
    case 1:
        loam_store(slot, now);
        break;
    case 2:
        EXPECT_PTR_EQ(loam_exchange(slot, now), old);
        break;
    case 3: {
        void *expected = old;
        EXPECT(loam_compare_exchange(slot, &expected, now));
        break;
    }
    case 4: {
        void *expected = (char *)slot + 1; /* wrong: nothing happens */
        EXPECT(!loam_compare_exchange(slot, &expected, now));
        EXPECT_PTR_EQ(expected, old);
        return;
    }
    default:
        loam_store_as(slot, (uintptr_t)now, old, now);
    }
    objects[a].edge[s] = b;
}

static NOINLINE void op_root(void)
{
    int32_t target = rng_below(&rng, 3) == 0 ? NONE : pick();
    set_root(rng_below(&rng, ROOT_KINDS), rng_below(&rng, ROOTS_EACH), target);
}

/* Runs of slots that lie word by word: FLEX only. */
static NOINLINE void op_copy_or_clear(void)
{
    int32_t a = pick();
    int32_t b = pick();
    if (a == NONE || b == NONE || objects[a].kind != FLEX || objects[b].kind != FLEX) {
        return;
    }
    size_t most = objects[a].slots < objects[b].slots ? objects[a].slots : objects[b].slots;
    size_t count = rng_between(&rng, 1, most);
    size_t to = rng_below(&rng, objects[a].slots - count + 1);
    size_t from = rng_below(&rng, objects[b].slots - count + 1);
    int32_t moved[MOST_SLOTS];
    if (rng_below(&rng, 3) == 0) {
        loam_clear(slot_of(a, to), count * sizeof(void *));
        for (size_t s = 0; s < count; s++) {
            objects[a].edge[to + s] = NONE;
        }
        return;
    }
    loam_copy(slot_of(a, to), slot_of(b, from), count * sizeof(void *));
    memcpy(moved, &objects[b].edge[from], count * sizeof moved[0]);
    for (size_t s = 0; s < count; s++) {
        objects[a].edge[to + s] = moved[s];
    }
}

/* A root that is its object's only reference. */
static bool only_reference(size_t *k, size_t *r)
{
    *k = rng_below(&rng, ROOT_KINDS);
    *r = rng_below(&rng, ROOTS_EACH);
    int32_t i = root[*k][*r];
    return i != NONE && objects[i].pins == 0 && !objects[i].finalizer && objects[i].cleanup == 0 &&
           references(i) == 1;
}

static NOINLINE void op_realloc(void)
{
    size_t k, r;
    if (!only_reference(&k, &r)) {
        return;
    }
    int32_t i = root[k][r];
    struct object *o = &objects[i];
    if (o->kind != NOSCAN && o->kind != UNTYPED) {
        return;
    }
    size_t least = o->kind == NOSCAN ? 2 : o->slots > 0 ? o->slot_word[o->slots - 1] + 1u : 1;
    size_t words = least + rng_below(&rng, rng_below(&rng, 10) == 0 ? 9000 : 60);
    size_t kept = words < o->words ? words : o->words;
    uint64_t *old = address_of(i);
    uint64_t *p = loam_realloc(old, words * 8);
    EXPECT_NOT_NULL(p);
    if (p != old) {
        EXPECT(is_dead(i));
        loam_weak *w = loam_weak_make(p);
        LOAM_SET(weak[i], w);
        o->address = disguise(p);
    }
    o->words = words;
    set_root(k, r,
             i); /* also where it stayed: the root may have pointed into the part that is cut off */
    for (size_t n = kept; n < words; n++) {
        EXPECT_EQ(p[n], 0);
    }
    if (words > kept && o->stamp != 0) {
        for (size_t n = kept; n < words; n++) {
            if (!is_slot(o, n)) {
                p[n] = rng_mix(o->stamp + n);
            }
        }
    }
    object_check(i);
}

static NOINLINE void op_free(void)
{
    size_t k, r;
    if (!only_reference(&k, &r)) {
        return;
    }
    int32_t i = root[k][r];
    void *p = address_of(i);
    set_root(k, r, NONE);
    loam_free(p);
    EXPECT_MSG(is_dead(i), "object %d was freed and lives", i);
    forget(i);
}

static NOINLINE void op_pin(void)
{
    int32_t i = (int32_t)rng_below(&rng, most_objects);
    if (objects[i].used && objects[i].pins > 0) {
        objects[i].pins--;
        loam_unpin(address_of(i));
    }
    i = pick();
    if (i != NONE && objects[i].pins < 3) {
        EXPECT_PTR_EQ(loam_pin(address_of(i)), address_of(i));
        objects[i].pins++;
    }
    i = pick();
    if (i != NONE && objects[i].pins > 0) {
        objects[i].pins--;
        loam_unpin(address_of(i));
    }
}

/* Finalizers only on objects without slots: a cycle would never end.  Their owners go first or with them. */
static NOINLINE void op_ends(void)
{
    int32_t i = pick();
    if (i == NONE) {
        return;
    }
    struct object *o = &objects[i];
    void *p = address_of(i);
    switch (rng_below(&rng, 4)) {
    case 0:
        if (o->kind == NOSCAN && !o->finalizer) {
            EXPECT_EQ(loam_set_finalizer(p, count_finalized, (void *)(uintptr_t)i), 0);
            o->finalizer = true;
        } else if (o->finalizer) {
            EXPECT_ERRNO(loam_set_finalizer(p, count_finalized, NULL), -1, EEXIST);
        }
        break;
    case 1:
        if (o->finalizer) {
            EXPECT_EQ(loam_set_finalizer(p, NULL, NULL), 0);
            o->finalizer = false;
        }
        break;
    case 2:
        if (o->cleanup == 0) {
            o->cleanup = loam_add_cleanup(p, count_cleaned, (void *)(uintptr_t)i);
            EXPECT_NE(o->cleanup, 0);
        }
        break;
    default:
        loam_cleanup_stop(o->cleanup);
        o->cleanup = 0;
    }
    EXPECT_EQ(atomic_load(&finalized[i]), 0);
    EXPECT_PTR_EQ(loam_weak_make(p), weak[i]);
}

static NOINLINE void op_ephemeron(void)
{
    size_t n = rng_below(&rng, PAIRS);
    int32_t key = pick();
    int32_t value = pick();
    if (pairs[n].key != NONE) {
        LOAM_SET(ephemerons[n], NULL);
        pairs[n] = (struct pair){NONE, NONE};
    } else if (key != NONE && value != NONE) {
        loam_ephemeron *e = loam_ephemeron_make(address_of(key), address_of(value));
        EXPECT_NOT_NULL(e);
        LOAM_SET(ephemerons[n], e);
        pairs[n] = (struct pair){key, value};
    }
}

static NOINLINE void op_other(void)
{
    static const int percents[] = {100, 20, 200, -1};
    void *batch[20];
    loam_memstats m;
    switch (rng_below(&rng, 12)) {
    case 0:
        loam_gc();
        break;
    case 1:
        loam_set_gc_percent(percents[rng_below(&rng, COUNT_OF(percents))]);
        break;
    case 2:
        loam_read_memstats(&m);
        EXPECT_EQ(m.heap_objects, m.mallocs - m.frees);
        break;
    case 3:
        loam_enter_blocking();
        sleep_us(10);
        loam_exit_blocking();
        break;
    case 4:
        EXPECT_EQ(loam_new_batch(LOAM_TYPEOF(typed), COUNT_OF(batch), batch), COUNT_OF(batch));
        EXPECT_NULL(((typed *)batch[19])->a);
        memset(batch, 0, sizeof batch);
        break;
    case 5:
        EXPECT_STR_EQ(loam_strdup("random"), "random");
        break;
    case 6: {
        volatile size_t too_much = SIZE_MAX - rng_below(&rng, 1000); /* volatile: gcc would warn */
        EXPECT_ERRNO(loam_alloc(too_much), NULL, ENOMEM);
    } break;
    case 7:
        EXPECT_EQ(loam_attach(), 0);
        break;
    case 8:
        if (rng_below(&rng, 20) == 0) {
            loam_free_os_memory();
        }
        break;
    case 9:
        loam_set_max_procs((int)rng_between(&rng, 1, 4));
        break;
    case 10:
        break;
    default: { /* the registered range comes and goes, while its objects have other roots or die */
        for (size_t r = 0; r < ROOTS_EACH; r++) {
            set_root(IN_RANGE, r, NONE);
        }
        EXPECT_EQ(loam_remove_roots(range_roots, ROOTS_EACH * sizeof *range_roots), 0);
        EXPECT_EQ(loam_add_roots(range_roots, ROOTS_EACH * sizeof *range_roots), 0);
    }
    }
}

static NOINLINE void step(void)
{
    static const struct {
        unsigned share;
        void (*op)(void);
    } ops[] = {{30, op_new}, {30, op_edge}, {15, op_root}, {8, op_copy_or_clear}, {4, op_realloc},
               {3, op_free}, {2, op_pin},   {4, op_ends},  {3, op_ephemeron},     {1, op_other}};
    size_t at = rng_below(&rng, 100);
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        if (at < ops[i].share) {
            ops[i].op();
            return;
        }
        at -= ops[i].share;
    }
}

/* ---- beside it ---- */

static _Atomic(bool) stop;

static void *help(void *arg)
{
    struct team_member *me = arg;
    while (!atomic_load(&stop)) {
        typed *t = LOAM_NEW_ARRAY(typed, rng_between(&me->rng, 1, 50));
        LOAM_SET(t->a, LOAM_NEW(typed));
        if (rng_below(&me->rng, 300) == 0) {
            loam_gc();
        }
        if (rng_below(&me->rng, 100) == 0) {
            sleep_us(200);
        }
    }
    return NULL;
}

static NOINLINE void setup(void)
{
    objects = calloc(MOST_OBJECTS, sizeof *objects);
    mark_stack = calloc(MOST_OBJECTS, sizeof *mark_stack);
    finalized = calloc(MOST_OBJECTS, sizeof *finalized);
    cleaned = calloc(MOST_OBJECTS, sizeof *cleaned);
    range_roots = calloc(ROOTS_EACH, sizeof *range_roots);
    memset(root, 0xFF, sizeof root);
    memset(pairs, 0xFF, sizeof pairs);
    EXPECT_EQ(loam_add_roots(range_roots, ROOTS_EACH * sizeof *range_roots), 0);
    LOAM_SET(weak, LOAM_NEW_POINTERS(loam_weak, MOST_OBJECTS));
    LOAM_SET(ephemerons, LOAM_NEW_POINTERS(loam_ephemeron, PAIRS));
    made_type = loam_type_make("made", 80, made_offsets, COUNT_OF(made_offsets));
    EXPECT_NOT_NULL(made_type);
}

static NOINLINE void finish(void)
{
    for (size_t k = 0; k < ROOT_KINDS; k++) {
        for (size_t r = 0; r < ROOTS_EACH; r++) {
            set_root(k, r, NONE);
        }
    }
    for (size_t i = 0; i < most_objects; i++) {
        for (; objects[i].used && objects[i].pins > 0; objects[i].pins--) {
            loam_unpin(address_of((int32_t)i));
        }
    }
    for (int round = 0; round < 10; round++) {
        scrub_stack();
        loam_gc();
        sleep_us(20000); /* finalizers and cleanups */
        verify_all();
    }
}

int main(int argc, char **argv)
{
    void *here[ROOTS_EACH] = {NULL};
    static struct team team;

    test_begin(argc, argv);
    rng = rng_stream(1);
    stack_roots = here;
    most_objects = test_number("objects", 5000);
    EXPECT_LE(most_objects, MOST_OBJECTS);
    setup();
    team_start(&team, test_number("helpers", 2), help, NULL);
    uint64_t steps = test_number("steps", UINT64_MAX);
    uint64_t start = now_ns();
    uint64_t n = 0;
    for (; n < steps && seconds_since(start) < (double)test_number("seconds", 10); n++) {
        step();
        if (n % 20000 == 19999) {
            scrub_stack();
            loam_gc();
            verify_all();
        }
    }
    atomic_store(&stop, true);
    team_join(&team);
    finish();
    printf("%" PRIu64 " steps, %" PRIu64 " objects verified, %" PRIu64 " of %" PRIu64
           " unreachable ones died\n",
           n, verified, died, expected_dead);
    EXPECT_MSG(died * 100 >= expected_dead * 95,
               "%" PRIu64 " of %" PRIu64 " unreachable objects died", died, expected_dead);
    return test_end();
}
