/* Each field that a type lists keeps its target alive, whatever its shape; each word that it does not list keeps
 * nothing.  The oracle is a weak pointer to every target.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=10 | | 60
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 60 */
#include "../support/test.h"

#include "../support/heap.h"

typedef struct leaf {
    uint64_t id;
    uint64_t rest[3];
} leaf;
LOAM_TYPE_NOSCAN(leaf);

/* Objects that hold leaves; a case's only root. */
static void **holders;

/* The batches of the running case: leaves in listed words, and in words that no type lists. */
static struct watch listed;
static struct watch unlisted;
static size_t listed_used;
static size_t unlisted_used;

static leaf *leaf_new(uint64_t id)
{
    leaf *l = LOAM_NEW(leaf);
    l->id = id;
    return l;
}

static void note_listed(void *object)
{
    watch_set(&listed, listed_used++, object);
}

static void note_unlisted(void *object)
{
    watch_set(&unlisted, unlisted_used++, object);
}

#define PUT_LISTED(lvalue)                   \
    do {                                     \
        leaf *leaf_ = leaf_new(listed_used); \
        note_listed(leaf_);                  \
        LOAM_SET(lvalue, leaf_);             \
    } while (0)

#define PUT_WORD_LISTED(lvalue, tag)                \
    do {                                            \
        leaf *leaf_ = leaf_new(listed_used);        \
        note_listed(leaf_);                         \
        LOAM_SET(lvalue, (uintptr_t)leaf_ | (tag)); \
    } while (0)

#define PUT_UNLISTED(lvalue)                   \
    do {                                       \
        leaf *leaf_ = leaf_new(unlisted_used); \
        note_unlisted(leaf_);                  \
        (lvalue) = (uintptr_t)leaf_;           \
    } while (0)

/* Build below, collect, and compare; at last drop the holders, and the listed ones go too. */
static void check_case(size_t holder_count, size_t listed_per, size_t unlisted_per,
                       void (*build)(void *))
{
    watch_init(&listed, holder_count * listed_per);
    watch_init(&unlisted, holder_count * unlisted_per);
    listed_used = 0;
    unlisted_used = 0;
    LOAM_SET(holders, LOAM_NEW_POINTERS(void, holder_count));
    call_deep(build, &holder_count);
    EXPECT_EQ(listed_used, listed.count);
    EXPECT_EQ(unlisted_used, unlisted.count);
    EXPECT_ALL_LIVE(&listed);
    EXPECT_MOST_DIE(&unlisted);
    EXPECT_ALL_LIVE(&listed);
    LOAM_SET(holders, NULL);
    EXPECT_MOST_DIE(&listed);
}

typedef struct shapes {
    uint32_t kind;
    struct {
        uint64_t hidden;
        leaf *next;
    } pos;
    leaf *kids[5];
    union {
        leaf *p;
        double d;
        uintptr_t word;
    } either;
    struct {
        leaf *x, *y;
    } both;
    _Atomic(leaf *) shared;
    leaf *volatile watched;
    uintptr_t tagged;
    uint64_t secret[3];
    const leaf *last;
} shapes;
LOAM_TYPE(shapes, pos.next, kids, either, both, shared, watched, tagged, last);

static void build_shapes(void *arg)
{
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        shapes *s = LOAM_NEW(shapes);
        LOAM_SET(holders[i], s);
        PUT_LISTED(s->pos.next);
        for (size_t k = 0; k < 5; k++) {
            PUT_LISTED(s->kids[k]);
        }
        PUT_LISTED(s->either.p);
        PUT_LISTED(s->both.x);
        PUT_LISTED(s->both.y);
        PUT_LISTED(s->shared);
        PUT_LISTED(s->watched);
        PUT_WORD_LISTED(s->tagged, i % 8);
        PUT_LISTED(s->last);
        PUT_UNLISTED(s->pos.hidden);
        PUT_UNLISTED(s->secret[0]);
        PUT_UNLISTED(s->secret[1]);
        PUT_UNLISTED(s->secret[2]);
    }
}

static void fields_of_every_shape(void)
{
    check_case(200, 13, 4, build_shapes);
}

/* A union's word that holds no pointer does no harm. */
static void integers_in_listed_words(void)
{
    struct rng rng = rng_stream(1);
    shapes *s = LOAM_NEW_ARRAY(shapes, 3000);
    for (size_t i = 0; i < 3000; i++) {
        s[i].either.word = (uintptr_t)s + (uintptr_t)(rng_next(&rng) >> rng_between(&rng, 0, 63));
        s[i].tagged = (uintptr_t)rng_next(&rng);
        s[i].both.x = (leaf *)(uintptr_t)rng_between(
            &rng, 1, 1 << 20); /* never dereferenced, and no heap address */
    }
    loam_gc();
    loam_gc();
    loam_keep_alive(s);
}

typedef struct vec {
    uint64_t count;
    leaf *meta;
    uint64_t secret;
    leaf *name;
    leaf *items[];
} vec;
LOAM_TYPE_FLEX(vec, items, meta, name);

typedef struct text {
    leaf *owner;
    uint32_t bytes;
    char data[];
} text;
LOAM_TYPE_FLEX(text, data, owner);

typedef struct bag {
    uint64_t secret;
    struct {
        leaf *p;
        uintptr_t q;
    } entry[];
} bag;
LOAM_TYPE_FLEX(bag, entry);

static void build_flex(void *arg)
{
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        vec *v = LOAM_NEW_FLEX(vec, i);
        LOAM_SET(holders[i], v);
        PUT_LISTED(v->meta);
        PUT_LISTED(v->name);
        PUT_UNLISTED(v->secret);
        for (size_t k = 0; k < i && k < 3; k++) {
            leaf *l = leaf_new(k);
            LOAM_SET(v->items[k == 2 ? i - 1 : k], l);
            if (k == (i < 3 ? 0u : 2u)) {
                note_listed(l);
            }
        }
        if (i == 0) {
            note_listed(v);
        }
    }
}

static void flexible_tails(void)
{
    check_case(300, 3, 1, build_flex);
}

static void build_bag(void *arg)
{
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t count = i * i % 5000 + 1; /* up to a large object */
        bag *b = LOAM_NEW_FLEX(bag, count);
        LOAM_SET(holders[i], b);
        PUT_UNLISTED(b->secret);
        PUT_LISTED(b->entry[count - 1].p);
        PUT_WORD_LISTED(b->entry[count / 2].q, 1);
    }
}

static void flexible_tails_of_structs(void)
{
    check_case(200, 2, 1, build_bag);
}

static void build_text(void *arg)
{
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        text *t = LOAM_NEW_FLEX(text, 64 + i * 11);
        LOAM_SET(holders[i], t);
        PUT_LISTED(t->owner);
        leaf *l = leaf_new(i);
        note_unlisted(l);
        size_t skip = (8 - offsetof(text, data) % 8) % 8;
        memcpy(t->data + skip, &l, sizeof l); /* bytes, not a pointer: the tail is not searched */
    }
}

static void flexible_tails_of_bytes(void)
{
    check_case(400, 1, 1, build_text);
}

typedef struct wide {
    leaf *f01, *f02, *f03, *f04, *f05, *f06, *f07, *f08, *f09, *f10, *f11, *f12, *f13, *f14, *f15,
        *f16;
    uint64_t secret;
    leaf *f17, *f18, *f19, *f20, *f21, *f22, *f23, *f24, *f25, *f26, *f27, *f28, *f29, *f30, *f31,
        *f32;
    leaf *f33, *f34, *f35, *f36, *f37, *f38, *f39, *f40, *f41, *f42, *f43, *f44, *f45, *f46, *f47,
        *f48;
    leaf *f49, *f50, *f51, *f52, *f53, *f54, *f55, *f56, *f57, *f58, *f59, *f60, *f61, *f62, *f63,
        *f64;
} wide;
LOAM_TYPE(wide, f01, f02, f03, f04, f05, f06, f07, f08, f09, f10, f11, f12, f13, f14, f15, f16, f17,
          f18, f19, f20, f21, f22, f23, f24, f25, f26, f27, f28, f29, f30, f31, f32, f33, f34, f35,
          f36, f37, f38, f39, f40, f41, f42, f43, f44, f45, f46, f47, f48, f49, f50, f51, f52, f53,
          f54, f55, f56, f57, f58, f59, f60, f61, f62, f63, f64);

static void build_wide(void *arg)
{
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        wide *w = LOAM_NEW_ARRAY(wide, 3);
        LOAM_SET(holders[i], w);
        for (size_t k = 0; k < 3; k++) {
            leaf **half = &w[k].f01;
            for (size_t f = 0; f < 16; f++) {
                PUT_LISTED(half[f]);
            }
            half = &w[k].f17;
            for (size_t f = 0; f < 48; f++) {
                PUT_LISTED(half[f]);
            }
            PUT_UNLISTED(w[k].secret);
        }
    }
}

static void sixty_four_fields(void)
{
    check_case(100, 3 * 64, 3, build_wide);
}

/* A word is a pointer only if its kind says so, and then it is stored inverted: only the scan function can tell. */
typedef struct value {
    uint64_t kind;
    uintptr_t word;
} value;

static _Atomic(size_t) odd_pieces;

static SCANS void value_scan(const value *obj, size_t bytes, loam_marker *m)
{
    if (bytes % sizeof *obj != 0) {
        atomic_fetch_add(&odd_pieces, 1);
    }
    for (size_t i = 0; i < bytes / sizeof *obj; i++) {
        if (obj[i].kind == 7) {
            loam_mark(m, (const void *)~obj[i].word);
        }
    }
}
LOAM_TYPE_SCANNED(value, value_scan);

static void put_value(value *v, uint64_t kind, leaf *l)
{
    v->kind = kind;
    loam_store_as(&v->word, ~(uintptr_t)l, NULL, kind == 7 ? l : NULL);
}

static void build_values(void *arg)
{
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t count = i == 0 ? 100000 : i + 4;
        value *v = LOAM_NEW_ARRAY(value, count);
        LOAM_SET(holders[i], v);
        leaf *l = leaf_new(i);
        note_listed(l);
        put_value(&v[count - 1], 7, l);
        l = leaf_new(i);
        note_listed(l);
        put_value(&v[count / 3], 7, l);
        l = leaf_new(i);
        note_unlisted(l);
        put_value(&v[count - 2], 3, l);
    }
}

static void scanned_by_the_program(void)
{
    atomic_store(&odd_pieces, 0);
    check_case(300, 2, 1, build_values);
    EXPECT_EQ(atomic_load(&odd_pieces), 0);
}

/* Types made at run time: random size, random words, random array lengths. */
static void build_made(void *arg)
{
    struct rng rng = rng_stream(2);
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t words = rng_between(&rng, 4, i % 10 == 0 ? 3000 : 60);
        size_t order[3000];
        size_t offsets[3000];
        size_t n = rng_between(&rng, 2, words - 2);
        for (size_t k = 0; k < words; k++) {
            order[k] = k;
        }
        rng_shuffle(&rng, order, words);
        for (size_t k = 0; k < n; k++) {
            offsets[k] = order[k] * sizeof(void *);
        }
        const loam_type *type = loam_type_make("made", words * sizeof(void *), offsets, n);
        EXPECT_NOT_NULL(type);
        size_t count = rng_between(&rng, 1, 20);
        uintptr_t *p = loam_new(type, count);
        EXPECT_NOT_NULL(p);
        LOAM_SET(holders[i], (void *)p);
        uintptr_t *element = p + rng_below(&rng, count) * words;
        PUT_WORD_LISTED(element[order[0]], 0);
        PUT_WORD_LISTED(element[order[n - 1]], 0);
        PUT_UNLISTED(element[order[n]]);
        PUT_UNLISTED(element[order[words - 1]]);
    }
}

static void made_at_run_time(void)
{
    check_case(300, 2, 2, build_made);
}

static void equal_types_are_one(void)
{
    size_t offsets[] = {0, 16, 24};
    const loam_type *a = loam_type_make("thing", 40, offsets, 3);
    EXPECT_NOT_NULL(a);
    EXPECT_PTR_EQ(loam_type_make("thing", 40, offsets, 3), a);
    EXPECT_PTR_NE(loam_type_make("thing", 48, offsets, 3), a);
    EXPECT_PTR_NE(loam_type_make("thing", 40, offsets, 2), a);
    offsets[0] = 8; /* the library has its own copy */
    const loam_type *b = loam_type_make("thing", 40, offsets, 3);
    EXPECT_PTR_NE(b, a);
    for (int i = 0; i < 20000; i++) {
        EXPECT_PTR_EQ(loam_type_make("thing", 40, offsets, 3), b);
    }
}

/* In whatever order the same words are named, and however often. */
static void order_does_not_matter(void)
{
    enum { WORDS = 200 };
    struct rng rng = rng_stream(5);
    size_t order[WORDS];
    size_t offsets[2 * WORDS];
    for (size_t i = 0; i < WORDS; i++) {
        order[i] = i * sizeof(void *);
    }
    for (size_t n = 1; n < WORDS; n += rng_between(&rng, 1, 30)) {
        rng_shuffle(&rng, order, WORDS);
        memcpy(offsets, order, n * sizeof *offsets);
        const loam_type *a = loam_type_make("mixed", WORDS * sizeof(void *), offsets, n);
        EXPECT_NOT_NULL(a);
        memcpy(offsets + n, order, n * sizeof *offsets); /* each twice */
        rng_shuffle(&rng, offsets + n, n);
        EXPECT_PTR_EQ(loam_type_make("mixed", WORDS * sizeof(void *), offsets + n, n), a);
        rng_shuffle(&rng, offsets, 2 * n);
        EXPECT_PTR_EQ(loam_type_make("mixed", WORDS * sizeof(void *), offsets, 2 * n), a);
        EXPECT_PTR_NE(loam_type_make("mixed", WORDS * sizeof(void *), order, n + 1), a);
        offsets[rng_below(&rng, 2 * n)] += 4;
        EXPECT_ERRNO(loam_type_make("mixed", WORDS * sizeof(void *), offsets, 2 * n), NULL, EINVAL);
    }
}

/* Thousands of types at once, each with objects of its own. */
static void many_types(void)
{
    enum { TYPES = 3000 };
    char name[32];
    void **kept = LOAM_NEW_POINTERS(void, TYPES);
    for (size_t i = 0; i < TYPES; i++) {
        size_t offset = (i % 50) * sizeof(void *);
        snprintf(name, sizeof name, "type%zu", i);
        const loam_type *type = loam_type_make(name, 50 * sizeof(void *), &offset, 1);
        EXPECT_NOT_NULL(type);
        void **object = loam_new(type, 1);
        EXPECT_NOT_NULL(object);
        LOAM_SET(object[i % 50], (void *)leaf_new(i));
        LOAM_SET(kept[i], (void *)object);
    }
    loam_gc();
    for (size_t i = 0; i < TYPES; i++) {
        leaf *l = ((void **)kept[i])[i % 50];
        EXPECT_EQ(l->id, i);
    }
}

static void build_arrays(void *arg)
{
    struct rng rng = rng_stream(3);
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t count = rng_between(&rng, 1, i % 8 == 0 ? 20000 : 50);
        shapes *s = LOAM_NEW_ARRAY(shapes, count);
        LOAM_SET(holders[i], s);
        PUT_LISTED(s[0].pos.next);
        PUT_LISTED(s[count - 1].last);
        PUT_LISTED(s[count / 2].both.y);
        PUT_UNLISTED(s[count - 1].secret[2]);
        PUT_UNLISTED(s[count / 2].pos.hidden);
        PUT_UNLISTED(s[0].secret[0]);
    }
}

static void arrays_of_any_length(void)
{
    check_case(150, 3, 3, build_arrays);
}

static void build_untyped(void *arg)
{
    struct rng rng = rng_stream(4);
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        size_t words = rng_between(&rng, 1, i % 8 == 0 ? 40000 : 100);
        uintptr_t *scan = loam_alloc(words * sizeof *scan);
        uintptr_t *noscan = loam_alloc_noscan(words * sizeof *noscan);
        void **two = LOAM_NEW_POINTERS(void, 2);
        LOAM_SET(holders[i], (void *)two);
        LOAM_SET(two[0], (void *)scan);
        LOAM_SET(two[1], (void *)noscan);
        PUT_WORD_LISTED(scan[rng_below(&rng, words)], 0);
        PUT_UNLISTED(noscan[rng_below(&rng, words)]);
    }
}

static void untyped_and_noscan(void)
{
    check_case(400, 1, 1, build_untyped);
}

/* Into the middle, to the last byte: alive.  One past the end: not. */
static void build_interior(void *arg)
{
    enum { EVERY = 10 };
    for (size_t i = 0; i < *(size_t *)arg; i++) {
        char **two = LOAM_NEW_POINTERS(char, 3);
        LOAM_SET(holders[i], (void *)two);
        for (int k = 0; k < EVERY;
             k++) { /* neighbours, so that the slot behind is seldom watched too */
            char *p = loam_alloc_noscan(48);
            if (k == EVERY / 2) {
                note_unlisted(p);
                LOAM_SET(two[2], p + loam_usable_size(p));
            } else if (k == EVERY - 1) {
                note_listed(p);
                LOAM_SET(two[0], p + loam_usable_size(p) - 1);
            } else if (k == 0) {
                note_listed(p);
                LOAM_SET(two[1], p + 17);
            }
        }
    }
}

static void interior_and_past_the_end(void)
{
    check_case(300, 2, 1, build_interior);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(fields_of_every_shape);
    RUN(integers_in_listed_words);
    RUN(flexible_tails);
    RUN(flexible_tails_of_structs);
    RUN(flexible_tails_of_bytes);
    RUN(sixty_four_fields);
    RUN(scanned_by_the_program);
    RUN(made_at_run_time);
    RUN(equal_types_are_one);
    RUN(order_does_not_matter);
    RUN(many_types);
    RUN(arrays_of_any_length);
    RUN(untyped_and_noscan);
    RUN(interior_and_past_the_end);
    return test_end();
}
