/* Random sequences of every function of loam.h against a naive model: what the model says is reachable is whole, at its
 * place, with its edges; what it says is unreachable dies, 95 % of it.  The model lies in plain memory and keeps
 * addresses disguised, so that it holds nothing alive itself.
 *
 * --steps N, --seconds N, --objects N (the most at a time), --helpers N (threads that allocate and collect beside),
 * --mask 1 (every stored pointer carries a tag in its high bits), --signal N (that reaches threads)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 120
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | --objects 1000 | 180
 * TEST_RUN: gcstress | GODEBUG=gcstress=1,clobberfree=1 | --objects 300 --helpers 1 | 180
 * TEST_RUN: alone | GOGC=off | --helpers 0 | 120
 * TEST_RUN: mask | GODEBUG=clobberfree=1 GOGC=20 | --mask 1 | 120
 * TEST_RUN: mask_checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | --mask 1 --objects 1000 | 180
 * TEST_RUN: signal | GODEBUG=clobberfree=1 | --signal 40 | 120 */
#include "../support/test.h"

#include <setjmp.h>

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

/* `hidden` is the inverse of an address, which no mask decodes, or 0. */
typedef struct scanned {
    void *first;
    uint64_t data;
    uintptr_t hidden;
} scanned;

static SCANS void scanned_scan(const scanned *s, size_t bytes, loam_marker *m)
{
    for (size_t i = 0; i < bytes / sizeof *s; i++) {
        uintptr_t hidden = *(const volatile uintptr_t *)&s[i].hidden;
        loam_mark(m, *(void *const volatile *)&s[i].first);
        if (hidden != 0) {
            loam_mark(m, reveal(hidden));
        }
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

enum root_kind { IN_GLOBAL, IN_RANGES, ON_STACK, IN_TLS, ON_LOAM_STACK, ROOT_KINDS };
enum { ROOTS_EACH = 50 };

/* What is registered of range_roots; ranges overlap and come twice. */
struct cover {
    size_t from, count;
};
enum { MOST_COVERS = 8 };

/* How much of loam_stack_roots is live: up to stack_top, all, or what loam_stack_set said. */
enum stack_mode { UP_TO_TOP, WHOLE, PARKED };

struct pair {
    int32_t key, value; /* NONE: unused */
};
enum { PAIRS = 200 };

static struct object *objects;
static size_t most_objects;
static int32_t root[ROOT_KINDS][ROOTS_EACH];
static struct cover covers[MOST_COVERS];
static size_t ncovers;
static enum stack_mode stack_mode;
static size_t live_from, live_to; /* slots of the loam_stack that are live */
static int32_t oom_arg = NONE;
static bool oom_set;
static struct pair pairs[PAIRS];
static struct rng rng;
static uint64_t died, expected_dead, verified;

/* ---- what the model describes ---- */

static void *global_roots[ROOTS_EACH];
static void **range_roots;
static __thread void *tls_roots[ROOTS_EACH];
static void **stack_roots; /* in main's frame */
static void **loam_stack_roots;
static void *stack_top; /* where the live part ends, while UP_TO_TOP */
static loam_stack *stack;
static loam_weak **weak; /* of every entry */
static loam_ephemeron **ephemerons;
static _Atomic(unsigned) *finalized; /* by entry; reset at its making */
static _Atomic(unsigned) *cleaned;

static const loam_type *made_type;
static const size_t made_offsets[] = {8, 24, 32, 72};

static uintptr_t mask = UINTPTR_MAX;
#define MASK_48 (((uintptr_t)1 << 48) - 1)

static void *address_of(int32_t i)
{
    return i == NONE ? NULL : reveal(objects[i].address);
}

/* What a slot or a root that points to i holds: with a mask, the address with a tag above it. */
static void *word_of(int32_t i)
{
    uintptr_t tag = (uintptr_t)rng_mix((uint64_t)i) & ~mask;
    return i == NONE ? NULL : (void *)((uintptr_t)address_of(i) | tag);
}

static bool is_hidden(const struct object *o, size_t slot)
{
    return o->kind == SCANNED && slot % 2 == 1;
}

/* The word in a slot of o that points to `target`. */
static uintptr_t slot_word_of(const struct object *o, size_t slot, int32_t target)
{
    return is_hidden(o, slot) && target != NONE ? disguise(address_of(target))
                                                : (uintptr_t)word_of(target);
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
    mark_push(oom_arg);
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
    size_t count = i == oom_arg ? 1 : 0;
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

static bool is_covered(size_t r)
{
    for (size_t n = 0; n < ncovers; n++) {
        if (r - covers[n].from < covers[n].count) {
            return true;
        }
    }
    return false;
}

/* Is the place a root at all? */
static bool is_live(size_t k, size_t r)
{
    return k == IN_RANGES       ? is_covered(r)
           : k == ON_LOAM_STACK ? r >= live_from && r < live_to
                                : true;
}

/* Volatile: they are never read, and a plain store would be left out. */
static void store_plain(void **slot, void *p)
{
    *(void *volatile *)slot = p;
}

/* Where the place is no root nothing happens: the target may be lost. */
static NOINLINE void set_root(size_t k, size_t r, int32_t target)
{
    void *p = word_of(target);
    if (!is_live(k, r)) {
        return;
    }
    if (p != NULL && rng_below(&rng, 3) == 0 && k != IN_GLOBAL && k != IN_RANGES) {
        p = (char *)p +
            rng_below(&rng, objects[target].words * 8); /* into the middle holds as well */
    }
    switch (k) {
    case IN_GLOBAL:
        LOAM_SET(global_roots[r], p);
        break;
    case IN_RANGES:
        loam_store(&range_roots[r], p);
        break;
    case ON_STACK:
        store_plain(&stack_roots[r], p);
        break;
    case IN_TLS:
        store_plain(&tls_roots[r], p);
        break;
    default:
        store_plain(&loam_stack_roots[r], p);
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
        EXPECT_EQ((uintptr_t)*slot_of(i, s), slot_word_of(o, s, o->edge[s]));
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

/* Size and slots of an object of o's kind with n words, or elements. */
static void layout(struct object *o, size_t n)
{
    static const uint32_t typed_slots[] = {0, 2, 3, 5};
    switch (o->kind) {
    case TYPED:
        o->words = sizeof(typed) / 8;
        o->slots = COUNT_OF(typed_slots);
        memcpy(o->slot_word, typed_slots, sizeof typed_slots);
        break;
    case FLEX:
        o->words = sizeof(flex) / 8 + n;
        slots_every(o, 1, 1);
        break;
    case UNTYPED:
        o->words = n;
        slots_every(o, 0, n > 100 ? n / 40 + 1 : 3);
        break;
    case NOSCAN:
        o->words = n + 1; /* not so small that objects share a block */
        break;
    case MADE:
        o->words = 10 * n;
        for (size_t e = 0; e < n; e++) {
            for (size_t k = 0; k < COUNT_OF(made_offsets) && o->slots < MOST_SLOTS; k++) {
                o->slot_word[o->slots++] = (uint32_t)(e * 10 + made_offsets[k] / 8);
            }
        }
        break;
    case SCANNED:
        o->words = 3 * n;
        for (size_t e = 0; e < n && o->slots + 1 < MOST_SLOTS; e++) {
            o->slot_word[o->slots++] = (uint32_t)(e * 3);
            o->slot_word[o->slots++] = (uint32_t)(e * 3 + 2);
        }
        break;
    default:
        o->words = sizeof(typed) / 8 * n;
        slots_every(o, 0, sizeof(typed) / 8);
    }
}

static void *allocate(enum kind kind, size_t n)
{
    switch (kind) {
    case TYPED:
        return LOAM_NEW(typed);
    case FLEX:
        return LOAM_NEW_FLEX(flex, n);
    case UNTYPED:
        return rng_below(&rng, 2) == 0 ? loam_alloc(n * 8) : (void *)LOAM_NEW_POINTERS(void, n);
    case NOSCAN:
        return loam_alloc_noscan((n + 1) * 8);
    case MADE:
        return loam_new(made_type, n);
    case SCANNED:
        return LOAM_NEW_ARRAY(scanned, n);
    default:
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

/* Entry i of the model stands for the fresh object p from here on; a random root holds it. */
static void adopt(int32_t i, enum kind kind, size_t n, void *p)
{
    struct object *o = &objects[i];
    memset(o, 0, sizeof *o);
    o->kind = kind;
    layout(o, n);
    for (size_t s = 0; s < MOST_SLOTS; s++) {
        o->edge[s] = NONE;
    }
    EXPECT_NOT_NULL(p);
    o->used = true;
    o->address = disguise(p);
    atomic_store(&finalized[i], 0);
    atomic_store(&cleaned[i], 0);
    loam_weak *w = loam_weak_make(p);
    EXPECT_NOT_NULL(w);
    LOAM_SET(weak[i], w);
    object_check(i); /* zero */
    if (rng_below(&rng, 2) == 0 && o->words < 2000 && o->kind != ARRAY) {
        stamp(i);
    }
    set_root(rng_below(&rng, ROOT_KINDS), rng_below(&rng, ROOTS_EACH), i);
}

static NOINLINE void op_new(void)
{
    size_t i = rng_below(&rng, most_objects);
    size_t n = rng_below(&rng, 50) == 0 ? rng_between(&rng, 1, 9000) : rng_between(&rng, 1, 30);
    enum kind kind = (enum kind)rng_below(&rng, KINDS);
    if (!objects[i].used) {
        void *p = allocate(kind, n);
        adopt((int32_t)i, kind, n, p);
        loam_keep_alive(p);
    }
}

/* Several at once; entries of the model that are taken already let theirs go. */
static NOINLINE void op_batch(void)
{
    static const enum kind kinds[] = {TYPED, MADE, SCANNED, ARRAY};
    enum kind kind = kinds[rng_below(&rng, COUNT_OF(kinds))];
    const loam_type *type = kind == MADE      ? made_type
                            : kind == SCANNED ? LOAM_TYPEOF(scanned)
                                              : LOAM_TYPEOF(typed);
    void *out[20];
    size_t count = rng_between(&rng, 0, COUNT_OF(out));
    EXPECT_EQ(loam_new_batch(type, count, out), count);
    for (size_t n = 0; n < count; n++) {
        size_t i = rng_below(&rng, most_objects);
        if (!objects[i].used) {
            adopt((int32_t)i, kind, 1, out[n]);
        }
    }
    memset(out, 0, sizeof out);
    loam_keep_alive(out);
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
    void *old = word_of(objects[a].edge[s]);
    void *now = word_of(b);
    if (is_hidden(&objects[a], s)) { /* only the program knows what such a word stands for */
        loam_store_as(slot, slot_word_of(&objects[a], s, b), address_of(objects[a].edge[s]),
                      address_of(b));
        objects[a].edge[s] = b;
        return;
    }
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
        loam_store_as(slot, (uintptr_t)now, address_of(objects[a].edge[s]), address_of(b));
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
        EXPECT_PTR_EQ(loam_pin(word_of(i)), word_of(i));
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

/* ---- ranges of roots: they overlap, come twice, and go one by one ---- */

/* Pointers that are in the memory before it is registered count as those that are stored later. */
static void fill_unregistered(void **slots, size_t kind, size_t r)
{
    int32_t target = rng_below(&rng, 2) == 0 ? NONE : pick();
    store_plain(&slots[r], word_of(target));
    root[kind][r] = target;
}

static void add_range(void)
{
    struct cover *c = &covers[ncovers];
    *c = rng_below(&rng, 3) == 0 && ncovers > 0
             ? covers[rng_below(&rng, ncovers)]
             : (struct cover){rng_below(&rng, ROOTS_EACH / 2),
                              rng_between(&rng, 1, ROOTS_EACH / 2)};
    for (size_t r = c->from; r < c->from + c->count; r++) {
        if (!is_covered(r)) {
            fill_unregistered(range_roots, IN_RANGES, r);
        }
    }
    EXPECT_EQ(loam_add_roots(range_roots + c->from, c->count * sizeof *range_roots), 0);
    ncovers++;
}

static void remove_range(size_t n)
{
    struct cover c = covers[n];
    EXPECT_EQ(loam_remove_roots(range_roots + c.from, c.count * sizeof *range_roots), 0);
    covers[n] = covers[--ncovers];
    for (size_t r = c.from; r < c.from + c.count; r++) {
        if (!is_covered(r)) {
            root[IN_RANGES][r] = NONE; /* the word stays where it is, and holds nothing */
        }
    }
}

static NOINLINE void op_ranges(void)
{
    if (ncovers == 0 || (ncovers < MOST_COVERS && rng_below(&rng, 2) == 0)) {
        add_range();
    } else {
        remove_range(rng_below(&rng, ncovers));
    }
    EXPECT_ERRNO(loam_remove_roots(range_roots + 1, (ROOTS_EACH + 1) * sizeof *range_roots), -1,
                 EINVAL);
}

/* ---- the loam_stack: it grows and shrinks, is parked, handed over, and registered anew ---- */

/* Live from now on is [from, to).  What was not live before holds old words: they are cleared, as a push would write. */
static void set_live(size_t from, size_t to)
{
    for (size_t r = 0; r < ROOTS_EACH; r++) {
        bool was = is_live(ON_LOAM_STACK, r);
        bool is = r >= from && r < to;
        if (is && !was) {
            store_plain(&loam_stack_roots[r], NULL);
        } else if (!is) {
            root[ON_LOAM_STACK][r] = NONE;
        }
    }
    live_from = from;
    live_to = to;
}

static void move_top(size_t depth)
{
    store_plain(&stack_top, loam_stack_roots + depth); /* before anything is written below it */
    set_live(0, depth);
}

static void back_to_top(void)
{
    size_t depth = rng_below(&rng, ROOTS_EACH + 1);
    if (stack_mode == PARKED) {
        store_plain(&stack_top, loam_stack_roots + depth);
        set_live(0, depth);
        EXPECT_EQ(loam_stack_set(stack, NULL, 0), 0);
        stack_mode = UP_TO_TOP;
    }
}

static void park(void)
{
    size_t from = rng_below(&rng, ROOTS_EACH);
    size_t count = rng_below(&rng, ROOTS_EACH - from + 1);
    set_live(from, from + count);
    EXPECT_EQ(loam_stack_set(stack, loam_stack_roots + from, count * sizeof *loam_stack_roots), 0);
    stack_mode = PARKED;
}

static void register_stack(void)
{
    stack_mode = rng_below(&rng, 2) == 0 ? UP_TO_TOP : WHOLE;
    live_from = 0;
    live_to = stack_mode == WHOLE ? ROOTS_EACH : rng_below(&rng, ROOTS_EACH + 1);
    store_plain(&stack_top, loam_stack_roots + live_to);
    for (size_t r = 0; r < live_to; r++) {
        fill_unregistered(loam_stack_roots, ON_LOAM_STACK, r);
    }
    stack = loam_stack_add(loam_stack_roots, ROOTS_EACH * sizeof *loam_stack_roots,
                           stack_mode == WHOLE ? NULL : &stack_top);
    EXPECT_NOT_NULL(stack);
}

static void unregister_stack(void)
{
    loam_stack_remove(stack);
    stack = NULL;
    for (size_t r = 0; r < ROOTS_EACH; r++) {
        root[ON_LOAM_STACK][r] = NONE;
    }
}

/* Another thread has it for a while and reorders it with plain stores.  The first thread waits. */
static void *borrow_stack(void *arg)
{
    EXPECT_EQ(loam_attach(), 0);
    EXPECT_EQ(loam_stack_set(stack, loam_stack_roots + live_from,
                             (live_to - live_from) * sizeof *loam_stack_roots),
              0);
    for (int n = 0; n < 100 && live_from < live_to; n++) {
        size_t a = rng_between(arg, live_from, live_to - 1);
        size_t b = rng_between(arg, live_from, live_to - 1);
        void *word = loam_stack_roots[a];
        int32_t target = root[ON_LOAM_STACK][a];
        store_plain(&loam_stack_roots[a], loam_stack_roots[b]);
        store_plain(&loam_stack_roots[b], word);
        root[ON_LOAM_STACK][a] = root[ON_LOAM_STACK][b];
        root[ON_LOAM_STACK][b] = target;
        if (target != NONE) {
            object_check(target);
        }
    }
    return NULL;
}

static void lend_stack(void)
{
    thread_run(borrow_stack, &rng);
    stack_mode = PARKED; /* its thread has ended: nobody's */
    park();
}

static NOINLINE void op_loam_stack(void)
{
    size_t what = rng_below(&rng, 40);
    if (what == 0) {
        lend_stack();
    } else if (what < 4) {
        unregister_stack();
        register_stack();
    } else if (what < 10) {
        park();
    } else if (what < 20) {
        back_to_top();
    } else if (stack_mode == UP_TO_TOP) {
        move_top(rng_below(&rng, ROOTS_EACH + 1));
    }
    EXPECT_ERRNO(loam_stack_set(stack, loam_stack_roots + 1, ROOTS_EACH * sizeof(void *)), -1,
                 EINVAL);
}

/* ---- the thread detaches, and its next call attaches it again ---- */

static void forget_own_roots(void)
{
    for (size_t r = 0; r < ROOTS_EACH; r++) {
        set_root(ON_STACK, r, NONE);
        set_root(IN_TLS, r, NONE);
        set_root(ON_LOAM_STACK, r, NONE);
    }
    scrub_stack();
}

/* Calls that take no heap pointers: a detached thread has none. */
static void call_anything(void)
{
    loam_memstats m;
    switch (rng_below(&rng, 8)) {
    case 0:
        EXPECT_NOT_NULL(LOAM_NEW(typed));
        break;
    case 1:
        EXPECT_NOT_NULL(loam_alloc(rng_below(&rng, 100000)));
        break;
    case 2:
        loam_gc();
        break;
    case 3:
        loam_read_memstats(&m);
        break;
    case 4:
        loam_clear(global_roots, ROOTS_EACH * sizeof *global_roots);
        memset(root[IN_GLOBAL], 0xFF, sizeof root[IN_GLOBAL]);
        break;
    case 5:
        EXPECT_NULL(loam_pin(NULL));
        break;
    case 6:
        loam_enter_blocking();
        loam_exit_blocking();
        break;
    default:
        break;
    }
}

static NOINLINE void op_detach(void)
{
    forget_own_roots();
    loam_detach();
    if (rng_below(&rng, 4) == 0) {
        sleep_us(rng_below(&rng, 1000)); /* cycles pass by */
    }
    call_anything();
    EXPECT_EQ(loam_attach(), 0);
    /* The stack lost its owner with the detaching. */
    EXPECT_EQ(loam_stack_set(stack, loam_stack_roots + live_from,
                             (live_to - live_from) * sizeof *loam_stack_roots),
              0);
    stack_mode = PARKED;
}

/* ---- no memory: the handler is called, its argument is a root ---- */

static unsigned oom_calls;
static jmp_buf oom_exit;
static bool oom_leaves;

static void out_of_memory(void *arg)
{
    EXPECT_PTR_EQ(arg, word_of(oom_arg));
    oom_calls++;
    EXPECT_NOT_NULL(LOAM_NEW(typed));
    if (oom_leaves) {
        longjmp(oom_exit, 1);
    }
}

static void set_oom_handler(bool set, int32_t target)
{
    loam_set_oom_handler(set ? out_of_memory : NULL, word_of(target));
    oom_set = set;
    oom_arg = target;
}

/* More than any machine has, in each of the ways to ask for it. */
static void ask_for_too_much(void)
{
    volatile size_t bytes = SIZE_MAX - rng_below(&rng, 1000); /* volatile: gcc would warn */
    volatile size_t mapped = (size_t)1 << 46;
    void *none = NULL;
    switch (rng_below(&rng, 5)) {
    case 0:
        EXPECT_ERRNO(none = loam_alloc(bytes), NULL, ENOMEM);
        break;
    case 1:
        EXPECT_ERRNO(none = loam_alloc_noscan(mapped), NULL, ENOMEM);
        break;
    case 2:
        EXPECT_ERRNO(none = LOAM_NEW_ARRAY(typed, bytes), NULL, ENOMEM);
        break;
    case 3:
        EXPECT_ERRNO(none = LOAM_NEW_FLEX(flex, bytes), NULL, ENOMEM);
        break;
    default:
        EXPECT_ERRNO(none = LOAM_NEW_POINTERS(void, bytes), NULL, ENOMEM);
    }
    EXPECT_NULL(none);
}

static NOINLINE void op_oom(void)
{
    if (rng_below(&rng, 2) == 0) {
        set_oom_handler(true, pick());
    } else if (rng_below(&rng, 4) == 0) {
        set_oom_handler(false, NONE);
    }
    unsigned before = oom_calls;
    oom_leaves = rng_below(&rng, 2) == 0;
    if (setjmp(oom_exit) == 0) {
        ask_for_too_much();
        EXPECT(!oom_set || !oom_leaves);
    }
    EXPECT_EQ(oom_calls, before + (oom_set ? 1 : 0));
}

/* ---- settings, and what is left ---- */

static NOINLINE void op_settings(void)
{
    static const int percents[] = {100, 20, 200, -1};
    static const int64_t min_heaps[] = {4 << 20, 0, 1 << 20, 16 << 20};
    static int64_t min_heap = -1; /* not set: Go's floor, which GOGC scales */
    switch (rng_below(&rng, 5)) {
    case 0:
        loam_set_gc_percent(percents[rng_below(&rng, COUNT_OF(percents))]);
        break;
    case 1:
        min_heap = min_heap < 0 ? loam_set_min_heap(-1) : min_heap;
        EXPECT_EQ(loam_set_min_heap(-1), min_heap);
        EXPECT_EQ(loam_set_min_heap(min_heaps[rng_below(&rng, COUNT_OF(min_heaps))]), min_heap);
        min_heap = loam_set_min_heap(-1);
        break;
    case 2:
        loam_set_max_procs((int)rng_between(&rng, 1, 4));
        EXPECT_LE(loam_set_max_procs(0), 4);
        break;
    case 3:
        EXPECT_ERRNO(loam_set_pointer_mask(MASK_48), -1, EBUSY);
        EXPECT_ERRNO(loam_set_signal(SIGUSR1), -1, EBUSY);
        break;
    default:
        EXPECT_STR_EQ(loam_version(), LOAM_VERSION);
    }
}

static NOINLINE void op_other(void)
{
    loam_memstats m;
    switch (rng_below(&rng, 6)) {
    case 0:
        loam_gc();
        break;
    case 1:
        loam_read_memstats(&m);
        EXPECT_EQ(m.heap_objects, m.mallocs - m.frees);
        break;
    case 2:
        loam_enter_blocking();
        loam_enter_blocking();
        sleep_us(10);
        loam_exit_blocking();
        loam_exit_blocking();
        break;
    case 3:
        EXPECT_STR_EQ(loam_strdup("random"), "random");
        break;
    case 4:
        EXPECT_EQ(loam_attach(), 0);
        break;
    default:
        if (rng_below(&rng, 20) == 0) {
            loam_free_os_memory();
        }
    }
}

static NOINLINE void step(void)
{
    static const struct {
        unsigned share;
        void (*op)(void);
    } ops[] = {{280, op_new},      {300, op_edge}, {150, op_root},   {80, op_copy_or_clear},
               {40, op_realloc},   {30, op_free},  {20, op_pin},     {40, op_ends},
               {30, op_ephemeron}, {8, op_batch},  {6, op_ranges},   {6, op_loam_stack},
               {1, op_detach},     {2, op_oom},    {2, op_settings}, {5, op_other}};
    size_t at = rng_below(&rng, 1000);
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

static void before_the_first_allocation(void)
{
    uint64_t signo = test_number("signal", 0);
    if (test_number("mask", 0) != 0) {
        mask = MASK_48;
        EXPECT_EQ(loam_set_pointer_mask(mask), 0);
    }
    if (signo != 0) {
        EXPECT_EQ(loam_set_signal((int)signo), 0);
    }
}

static NOINLINE void setup(void)
{
    objects = calloc(MOST_OBJECTS, sizeof *objects);
    mark_stack = calloc(MOST_OBJECTS, sizeof *mark_stack);
    finalized = calloc(MOST_OBJECTS, sizeof *finalized);
    cleaned = calloc(MOST_OBJECTS, sizeof *cleaned);
    range_roots = calloc(ROOTS_EACH, sizeof *range_roots);
    loam_stack_roots = calloc(ROOTS_EACH, sizeof *loam_stack_roots);
    memset(root, 0xFF, sizeof root);
    memset(pairs, 0xFF, sizeof pairs);
    before_the_first_allocation();
    add_range();
    register_stack();
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
    unregister_stack();
    while (ncovers > 0) {
        remove_range(ncovers - 1);
    }
    set_oom_handler(false, NONE);
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
