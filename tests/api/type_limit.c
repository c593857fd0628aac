/* There may be more types, and more sizes of their arrays, than the library tells apart: the objects of those that come
 * too late are zeroed, aligned, kept alive and die as those of any other, and one line on stderr says so.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 120 */
#include "../support/test.h"

#include "../support/child.h"
#include "../support/heap.h"

enum { NAME_BYTES = 16, PAIRS = 16384, SCANNED = 1100, LATE = 200 };

static const char warning[] = "more pairs of type and size class";

typedef struct leaf {
    uint64_t id;
} leaf;
LOAM_TYPE_NOSCAN(leaf);

/* Only the scan function can tell that `hidden`, inverted, is a pointer. */
typedef struct value {
    uint64_t kind;
    uintptr_t hidden;
    uint64_t rest[2];
} value;

static SCANS void value_scan(const value *obj, size_t bytes, loam_marker *m)
{
    for (size_t i = 0; i < bytes / sizeof *obj; i++) {
        if (obj[i].kind == 7) {
            loam_mark(m, reveal(obj[i].hidden));
        }
    }
}
LOAM_TYPE_SCANNED(value, value_scan);

/* A type of its own: the second of three words is a pointer. */
static const loam_type *made_type(const char *kind, size_t i)
{
    static const size_t offset = sizeof(void *);
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s%zu", kind, i);
    return loam_type_make(name, 3 * sizeof(void *), &offset, 1);
}

static void use_up_the_pairs(void)
{
    for (size_t i = 0; i < PAIRS; i++) {
        const loam_type *type = made_type("early", i);
        EXPECT_NOT_NULL(type);
        EXPECT_NOT_NULL(loam_new(type, 1));
    }
}

/* Types that differ in the name alone; static, since the library is told their addresses. */
static const loam_type *scanned_type(size_t i)
{
    static loam_type types[SCANNED + LATE];
    static char names[SCANNED + LATE][NAME_BYTES];
    if (types[i].name == NULL) {
        snprintf(names[i], sizeof names[i], "value%zu", i);
        types[i] = *LOAM_TYPEOF(value);
        types[i].name = names[i];
        types[i].interned = NULL;
    }
    return &types[i];
}

static void **holders;
static struct watch held;
static struct watch unheld;

static leaf *leaf_new(struct watch *w, size_t i)
{
    leaf *l = LOAM_NEW(leaf);
    EXPECT_NOT_NULL(l);
    l->id = i;
    watch_set(w, i, l);
    return l;
}

static void expect_fresh(const void *p, size_t bytes)
{
    EXPECT_NOT_NULL(p);
    EXPECT_PTR_EQ(loam_base(p), p);
    EXPECT_GE(loam_usable_size(p), bytes);
    EXPECT_EQ((uintptr_t)p % 8, 0);
    for (size_t i = 0; i < bytes; i++) {
        EXPECT_EQ(((const unsigned char *)p)[i], 0);
    }
}

static void build_late(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < LATE; i++) {
        size_t count = i % 2 == 0 ? 1 : i; /* an array of each length is a size class of its own */
        const loam_type *type = made_type("late", i);
        void **p = loam_new(type, count);
        expect_fresh((void *)p, count * 3 * sizeof *p);
        LOAM_SET(holders[i], (void *)p);
        LOAM_SET(p[3 * (count - 1) + 1], (void *)leaf_new(&held, i));
    }
}

/* Without a pointer, so they must not be searched; and aligned to 16, as their size is a multiple of it. */
static void build_noscan(void *arg)
{
    char name[NAME_BYTES];
    (void)arg;
    for (size_t i = 0; i < LATE; i++) {
        snprintf(name, sizeof name, "plain%zu", i);
        const loam_type *type = loam_type_make(name, 48, NULL, 0);
        uintptr_t *p = loam_new(type, 1);
        expect_fresh(p, 48);
        EXPECT_EQ((uintptr_t)p % 16, 0);
        LOAM_SET(holders[i], (void *)p);
        p[1] = (uintptr_t)leaf_new(&unheld, i);
    }
}

static void build_scanned(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < LATE; i++) {
        size_t count = i % 3 + 1;
        value *v = loam_new(scanned_type(SCANNED + i), count);
        expect_fresh(v, count * sizeof *v);
        LOAM_SET(holders[i], (void *)v);
        leaf *l = leaf_new(&held, i);
        v[count - 1].kind = 7;
        loam_store_as(&v[count - 1].hidden, disguise(l), NULL, l);
        v[0].rest[0] = (uintptr_t)leaf_new(&unheld, i); /* which nobody says to be a pointer */
    }
}

static void check_late(void (*build)(void *), bool holds, bool does_not)
{
    LOAM_SET(holders, LOAM_NEW_POINTERS(void, LATE));
    watch_init(&held, LATE);
    watch_init(&unheld, LATE);
    call_deep(build, NULL);
    if (holds) {
        EXPECT_ALL_LIVE(&held);
    }
    if (does_not) {
        EXPECT_MOST_DIE(&unheld);
    }
    LOAM_SET(holders, NULL);
    EXPECT_MOST_DIE(&held);
}

static void child_made(void)
{
    use_up_the_pairs();
    check_late(build_late, true, false);
    check_late(build_late, true, false); /* the types are known by now */
    check_late(build_noscan, false, true);
    check_late(build_noscan, false, true);
}

static void child_scanned(void)
{
    use_up_the_pairs();
    for (size_t i = 0; i < SCANNED; i++) {
        EXPECT_NOT_NULL(loam_new(scanned_type(i), 1));
    }
    check_late(build_scanned, true, true);
    check_late(build_scanned, true, true);
}

/* The library's own objects have types, too, and this is the first time that it needs them. */
static void child_weak(void)
{
    use_up_the_pairs();
    check_late(build_late, true, false);
    leaf *key = LOAM_NEW(leaf);
    leaf *target = LOAM_NEW(leaf);
    loam_ephemeron *e = loam_ephemeron_make(key, target);
    EXPECT_NOT_NULL(e);
    loam_gc();
    EXPECT_PTR_EQ(loam_ephemeron_value(e), target);
    loam_keep_alive(key);
}

static void use_again(void *p, size_t bytes)
{
    expect_fresh(p, bytes);
    memset(p, 0x5A, bytes);
    loam_free(p);
}

static void child_free_and_realloc(void)
{
    use_up_the_pairs();
    for (size_t i = 0; i < LATE; i++) {
        use_again(loam_new(made_type("late", i), 1), 24);
        leaf *l = LOAM_NEW(leaf);
        l->id = i;
        void **p = loam_new(made_type("late", i), 1);
        LOAM_SET(p[1], (void *)l);
        p = loam_realloc((void *)p, 3000);
        EXPECT_PTR_EQ(p[1], l);
        loam_gc();
        EXPECT_EQ(((leaf *)p[1])->id, i);
    }
    for (size_t i = 0; i < SCANNED + LATE; i++) {
        use_again(loam_new(scanned_type(i), 2), 2 * sizeof(value));
    }
}

static const struct child_case children[] = {
    {"made", child_made},
    {"scanned", child_scanned},
    {"weak", child_weak},
    {"free_and_realloc", child_free_and_realloc},
};

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    for (size_t i = 0; i < COUNT_OF(children); i++) {
        struct child c;
        child_run(&c, children[i].name, NULL, 60);
        EXPECT_MSG(child_exited(&c, 0), "case %s ended with status %#x%s; it said: %s",
                   children[i].name, (unsigned)c.status, c.timed_out ? " (timed out)" : "", c.text);
        const char *told = strstr(c.text, warning);
        EXPECT_MSG(told != NULL, "case %s said nothing of it: %s", children[i].name, c.text);
        EXPECT_MSG(strstr(told + 1, warning) == NULL, "case %s said it twice: %s", children[i].name,
                   c.text);
        printf("ok %s\n", children[i].name);
    }
    return test_end();
}
