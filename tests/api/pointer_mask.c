/* With a pointer mask, words whose high bits are boxed hold their objects alive on stacks, in fields, in static data and
 * through stores; loam_store_as does so for words that no mask decodes.  Each case is a process of its own, because a
 * mask is set before the first allocation.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 120 */
#include "../support/test.h"

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

#define MASK (((uintptr_t)1 << 48) - 1)

/* NaN boxing: the tag above 48 bits, or a double as it is. */
typedef uint64_t boxed;

enum { TAG_OBJECT = 0xFFFC, TAG_STRING = 0xFFFD };

typedef struct object {
    boxed fields[4];
    boxed text;
    uint64_t magic;
} object;
LOAM_TYPE(object, fields, text);

typedef struct string {
    uint64_t magic;
    uint64_t fill[3];
} string;
LOAM_TYPE_NOSCAN(string);

#define MAGIC UINT64_C(0x626F786564212121)

static boxed box(const void *p, uint64_t tag)
{
    return (uint64_t)(uintptr_t)p | tag << 48;
}

static void *unbox(boxed b)
{
    return (void *)(uintptr_t)(b & MASK);
}

static boxed string_new(void)
{
    string *s = LOAM_NEW(string);
    EXPECT_NOT_NULL(s);
    s->magic = MAGIC;
    return box(s, TAG_STRING);
}

static boxed object_new(void)
{
    object *o = LOAM_NEW(object);
    EXPECT_NOT_NULL(o);
    o->magic = MAGIC;
    LOAM_SET(o->text, string_new());
    double d = 3.25;
    memcpy(&o->fields[0], &d, sizeof d); /* a number: no pointer, no barrier needed over zero */
    return box(o, TAG_OBJECT);
}

static void boxed_check(boxed b)
{
    if (b >> 48 == TAG_OBJECT) {
        object *o = unbox(b);
        EXPECT_EQ(o->magic, MAGIC);
        EXPECT_EQ(((string *)unbox(o->text))->magic, MAGIC);
    } else {
        EXPECT_EQ(b >> 48, TAG_STRING);
        EXPECT_EQ(((string *)unbox(b))->magic, MAGIC);
    }
}

static boxed in_static[300];
static __thread boxed in_tls[300];
static struct watch batch;

static void fill(void *arg)
{
    boxed *slots = arg;
    for (size_t i = 0; i < batch.count; i++) {
        boxed b = object_new();
        watch_set(&batch, i, unbox(b));
        if (slots == in_tls) {
            slots[i] = b;
        } else {
            LOAM_SET(slots[i], b);
        }
    }
}

static void check_slots(boxed *slots, size_t count)
{
    watch_init(&batch, count);
    call_deep(fill, slots);
    EXPECT_ALL_LIVE(&batch);
    for (size_t i = 0; i < count; i++) {
        boxed_check(slots[i]);
    }
    loam_clear(slots, count * sizeof *slots);
    EXPECT_MOST_DIE(&batch);
}

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

/* Boxed values move between locals, fields and the heap while cycles run: barriers and stacks must decode them. */
static void *interpret(void *arg)
{
    struct team_member *me = arg;
    boxed local[24] = {0};
    object *holder = LOAM_NEW_ARRAY(object, 8);
    while (!atomic_load(&stop)) {
        size_t i = rng_below(&me->rng, COUNT_OF(local));
        boxed *field = &holder[rng_below(&me->rng, 8)].fields[rng_below(&me->rng, 4)];
        switch (rng_below(&me->rng, 4)) {
        case 0:
            local[i] = rng_below(&me->rng, 2) == 0 ? object_new() : string_new();
            break;
        case 1: /* out of the heap into a local; nothing is left behind */
            local[i] = *field;
            LOAM_SET(*field, 0);
            break;
        case 2:
            LOAM_SET(*field, local[i]);
            local[i] = 0;
            break;
        default: {
            boxed old = *field;
            loam_copy(field, &local[i], sizeof *field);
            local[i] = old;
        }
        }
        if (local[i] != 0) {
            boxed_check(local[i]);
        }
        if (*field != 0) {
            boxed_check(*field);
        }
    }
    return NULL;
}

static void child_masked(void)
{
    EXPECT_EQ(loam_set_pointer_mask(MASK), 0);
    boxed on_stack[300];
    static struct team team;
    check_slots(in_static, COUNT_OF(in_static));
    check_slots(on_stack, COUNT_OF(on_stack));
    check_slots(in_tls, COUNT_OF(in_tls));
    boxed *in_heap = loam_alloc(300 * sizeof *in_heap);
    check_slots(in_heap, 300);
    boxed *in_roots = calloc(300, sizeof *in_roots);
    EXPECT_EQ(loam_add_roots(in_roots, 300 * sizeof *in_roots), 0);
    check_slots(in_roots, 300);
    EXPECT_EQ(loam_remove_roots(in_roots, 300 * sizeof *in_roots), 0);
    free(in_roots);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, interpret, NULL);
    sleep_us(1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
    EXPECT_ERRNO(loam_set_pointer_mask(UINTPTR_MAX), -1, EBUSY);
}

/* Without a mask the same words are integers. */
static void child_unmasked(void)
{
    watch_init(&batch, 300);
    call_deep(fill, in_static);
    EXPECT_MOST_DIE(&batch);
}

static void child_bad_mask(void)
{
    EXPECT_ERRNO(loam_set_pointer_mask(0xFFFF), -1, EINVAL);
    EXPECT_ERRNO(loam_set_pointer_mask(0), -1, EINVAL);
    EXPECT_EQ(loam_set_pointer_mask(MASK), 0);
    EXPECT_EQ(loam_set_pointer_mask(UINTPTR_MAX), 0); /* still before the first allocation */
    boxed b = string_new();
    boxed_check(b);
    EXPECT_ERRNO(loam_set_pointer_mask(MASK), -1, EBUSY);
}

/* ---- words that no mask decodes: stored inverted, found by a scan function ---- */

typedef struct cell {
    uint64_t word; /* the inverse of the address; 0: empty */
} cell;

static SCANS void cell_scan(const cell *cells, size_t bytes, loam_marker *m)
{
    for (size_t i = 0; i < bytes / sizeof *cells; i++) {
        uint64_t word = *(const volatile uint64_t *)&cells[i].word;
        if (word != 0) {
            loam_mark(m, (const void *)(uintptr_t)~word);
        }
    }
}
LOAM_TYPE_SCANNED(cell, cell_scan);

static string *cell_target(const cell *c)
{
    return c->word != 0 ? (string *)(uintptr_t)~c->word : NULL;
}

static void cell_set(cell *c, string *s)
{
    loam_store_as(&c->word, s != NULL ? ~(uintptr_t)s : 0, cell_target(c), s);
}

static void *move_cells(void *arg)
{
    enum { COUNT = 200 };
    struct team_member *me = arg;
    cell *cells = LOAM_NEW_ARRAY(cell, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        cell_set(&cells[i], unbox(string_new()));
    }
    while (!atomic_load(&stop)) {
        size_t a = rng_below(&me->rng, COUNT);
        size_t b = (a + rng_between(&me->rng, 1, COUNT - 1)) % COUNT;
        string *carried = cell_target(&cells[a]);
        cell_set(&cells[a], NULL);
        string *other = cell_target(&cells[b]);
        cell_set(&cells[b], carried);
        cell_set(&cells[a], rng_below(&me->rng, 8) == 0 ? unbox(string_new()) : other);
        EXPECT_EQ(carried->magic, MAGIC);
        EXPECT_EQ(other->magic, MAGIC);
    }
    for (size_t i = 0; i < COUNT; i++) {
        EXPECT_EQ(cell_target(&cells[i])->magic, MAGIC);
    }
    return NULL;
}

static cell *cells;

static void fill_cells(void *arg)
{
    (void)arg;
    LOAM_SET(cells, LOAM_NEW_ARRAY(cell, batch.count));
    for (size_t i = 0; i < batch.count; i++) {
        string *s = unbox(string_new());
        watch_set(&batch, i, s);
        cell_set(&cells[i], s);
    }
}

static void child_store_as(void)
{
    static struct team team;
    watch_init(&batch, 1000);
    call_deep(fill_cells, NULL);
    EXPECT_ALL_LIVE(&batch);
    LOAM_SET(cells, NULL);
    EXPECT_MOST_DIE(&batch);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 4, move_cells, NULL);
    sleep_us(1000000);
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

static const struct child_case children[] = {
    {"masked", child_masked},
    {"unmasked", child_unmasked},
    {"bad_mask", child_bad_mask},
    {"store_as", child_store_as},
};

int main(int argc, char **argv)
{
    static const char *const clobber[] = {"GODEBUG=clobberfree=1", "GOGC=5", NULL};
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    for (size_t i = 0; i < 2 * COUNT_OF(children); i++) {
        struct child c;
        child_run(&c, children[i / 2].name, i % 2 == 0 ? NULL : clobber, 60);
        EXPECT_MSG(child_exited(&c, 0), "case %s%s ended with status %#x%s; it said: %s",
                   children[i / 2].name, i % 2 == 0 ? "" : " with clobberfree", (unsigned)c.status,
                   c.timed_out ? " (timed out)" : "", c.text);
        printf("ok %s\n", children[i / 2].name);
    }
    return test_end();
}
