/* Threads rewire one graph of typed, flexible, untyped and noscan objects while cycles run; whoever follows a path finds
 * every object whole.  Pointers live in globals, thread-local variables, registered roots, locals and each other, and
 * are moved by every kind of store.  The oracle is in each object: magic, and checksums of its id and shape.
 *
 * --threads N, --seconds N, --mib N (where the graph is cut)
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 120
 * TEST_RUN: gogc5 | GOGC=5 | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=20 | --threads 16 | 120
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 | --threads 8 --mib 4 | 180
 * TEST_RUN: gcstress | GODEBUG=gcstress=1,clobberfree=1 | --threads 4 --mib 2 | 180
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1,clobberfree=1 | --threads 8 | 120
 * TEST_RUN: one_proc | GOMAXPROCS=1 GOGC=20 | --threads 4 | 120
 * TEST_RUN: gogc5_long | GOGC=5 | --seconds 300 | 420 | long
 * TEST_RUN: gcstress_long | GOGC=5 GODEBUG=gcstress=20,clobberfree=1 | --seconds 300 | 420 | long
 * TEST_RUN: checkmark_long | GOGC=5 GODEBUG=gccheckmark=1 | --seconds 300 | 420 | long
 * TEST_RUN: clobberfree_long | GOGC=5 GODEBUG=clobberfree=1 | --seconds 300 | 420 | long */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/heap.h"
#include "../support/threads.h"

enum kind { TYPED = 1, FLEX, UNTYPED, NOSCAN, KINDS = NOSCAN };

/* The beginning of every object; fixed from its making on. */
struct head {
    uint64_t magic;
    uint64_t id;
    uint64_t check;
    uint32_t kind;
    uint32_t count; /* of slots, or of payload words */
};

typedef struct object {
    struct head head;
    struct object *slot[];
} object;
LOAM_TYPE_FLEX(object, slot);

enum { TYPED_SLOTS = 6 };
typedef struct vertex {
    struct head head;
    struct object *slot[TYPED_SLOTS];
} vertex;
LOAM_TYPE(vertex, slot);

#define MAGIC UINT64_C(0x63616E6172792121)

enum { GLOBALS = 1024, ROOTS = 256, LOCALS = 16, TLS_SLOTS = 32 };

static object *_Atomic globals[GLOBALS];
static object **roots; /* plain memory, registered */
static __thread object *tls[TLS_SLOTS];

static _Atomic(bool) stop;
static _Atomic(bool) cut; /* the graph is too large: take it apart */
static _Atomic(uint64_t) next_id, steps, made;

static uint64_t check_of(const struct head *h)
{
    return rng_mix(h->id ^ ((uint64_t)h->kind << 32) ^ ((uint64_t)h->count << 40));
}

static object *object_new(struct rng *rng)
{
    enum kind kind = (enum kind)rng_between(rng, 1, KINDS);
    uint32_t count = kind == TYPED ? TYPED_SLOTS
                                   : (uint32_t)rng_below(rng, rng_below(rng, 100) == 0 ? 5000 : 24);
    size_t bytes = sizeof(struct head) + count * sizeof(object *);
    object *o = NULL;

    switch (kind) {
    case TYPED:
        o = (object *)(void *)LOAM_NEW(vertex);
        break;
    case FLEX:
        o = LOAM_NEW_FLEX(object, count);
        break;
    case UNTYPED:
        o = loam_alloc(bytes);
        break;
    case NOSCAN:
        o = loam_alloc_noscan(bytes);
        break;
    }
    EXPECT_NOT_NULL(o);
    EXPECT_EQ(o->head.magic, 0);
    o->head = (struct head){MAGIC, atomic_fetch_add(&next_id, 1), 0, kind, count};
    o->head.check = check_of(&o->head);
    for (uint32_t i = 0; i < count; i++) {
        EXPECT_NULL(o->slot[i]);
        if (kind == NOSCAN) {
            ((uint64_t *)(void *)o->slot)[i] = rng_mix(o->head.id + i);
        }
    }
    atomic_fetch_add_explicit(&made, 1, memory_order_relaxed);
    return o;
}

static void object_check(const object *o)
{
    if (o->head.magic != MAGIC || o->head.check != check_of(&o->head)) {
        FAIL("object %p: magic %#" PRIx64 ", id %" PRIu64 ", check %#" PRIx64 ", kind %u, count %u",
             (const void *)o, o->head.magic, o->head.id, o->head.check, o->head.kind,
             o->head.count);
    }
    if (o->head.kind == NOSCAN) {
        const uint64_t *payload = (const uint64_t *)(const void *)o->slot;
        for (uint32_t i = 0; i < o->head.count; i++) {
            EXPECT_EQ(payload[i], rng_mix(o->head.id + i));
        }
    }
    loam_keep_alive(o); /* it may just have been taken out of the last slot that held it */
    atomic_fetch_add_explicit(&steps, 1, memory_order_relaxed);
}

static bool has_slots(const object *o)
{
    return o->head.kind != NOSCAN && o->head.count > 0;
}

static object *load(object **slot)
{
    return LOAD_SLOT(*slot); /* races with stores: the old or the new pointer */
}

/* Start anywhere, follow random edges, check each object on the way; gives where it ended, or NULL. */
static object *walk(struct rng *rng, object **locals)
{
    object *o = NULL;
    switch (rng_below(rng, 4)) {
    case 0:
        o = atomic_load_explicit(&globals[rng_below(rng, GLOBALS)], memory_order_acquire);
        break;
    case 1:
        o = load(&roots[rng_below(rng, ROOTS)]);
        break;
    case 2:
        o = tls[rng_below(rng, TLS_SLOTS)];
        break;
    default:
        o = locals[rng_below(rng, LOCALS)];
    }
    for (size_t n = rng_below(rng, 20); n > 0 && o != NULL; n--) {
        object_check(o);
        if (!has_slots(o)) {
            break;
        }
        object *next = load(&o->slot[rng_below(rng, o->head.count)]);
        if (next == NULL) {
            break;
        }
        o = next;
    }
    if (o != NULL) {
        object_check(o);
    }
    return o;
}

/* Into a slot of the heap by one of the ways to store. */
static void put(struct rng *rng, object **slot, object *value)
{
    object *expected;
    switch (rng_below(rng, 4)) {
    case 0:
        LOAM_SET(*slot, value);
        break;
    case 1:
        loam_store(slot, value);
        break;
    case 2: {
        object *old = loam_exchange(slot, value);
        if (old != NULL) {
            object_check(old);
        }
        break;
    }
    default:
        expected = load(slot);
        if (!loam_compare_exchange(slot, &expected, value) && expected != NULL) {
            object_check(expected);
        }
    }
}

static void publish(struct rng *rng, object **locals, object *o)
{
    switch (rng_below(rng, 5)) {
    case 0:
    case 1:
        LOAM_SET(globals[rng_below(rng, GLOBALS)], o);
        break;
    case 2:
        put(rng, &roots[rng_below(rng, ROOTS)], o);
        break;
    case 3:
        tls[rng_below(rng, TLS_SLOTS)] = o;
        break;
    default:
        locals[rng_below(rng, LOCALS)] = o;
    }
}

static void rewire(struct rng *rng, object **locals)
{
    object *a = walk(rng, locals);
    object *b = walk(rng, locals);

    switch (rng_below(rng, 6)) {
    case 0:
    case 1: { /* a fresh object takes old ones, and is published */
        object *o = object_new(rng);
        if (has_slots(o)) {
            LOAM_SET(o->slot[0], a);
            LOAM_SET(o->slot[o->head.count - 1], b);
        }
        publish(rng, locals, o);
        break;
    }
    case 2: /* an edge */
        if (a != NULL && has_slots(a)) {
            put(rng, &a->slot[rng_below(rng, a->head.count)], b);
        }
        break;
    case 3: /* steal: the only pointer goes through a register */
        if (a != NULL && has_slots(a)) {
            object *stolen = loam_exchange(&a->slot[rng_below(rng, a->head.count)], NULL);
            if (stolen != NULL) {
                object_check(stolen);
                publish(rng, locals, stolen);
            }
        }
        break;
    case 4: /* many edges at once */
        if (a != NULL && b != NULL && has_slots(a) && has_slots(b)) {
            size_t most = a->head.count < b->head.count ? a->head.count : b->head.count;
            size_t count = rng_between(rng, 1, most);
            loam_copy(&a->slot[a->head.count - count], &b->slot[0], count * sizeof(object *));
        }
        break;
    default:
        if (a != NULL && has_slots(a)) {
            size_t from = rng_below(rng, a->head.count);
            loam_clear(&a->slot[from],
                       rng_between(rng, 1, a->head.count - from) * sizeof(object *));
        }
    }
    if (atomic_load_explicit(&cut, memory_order_relaxed)) {
        LOAM_SET(globals[rng_below(rng, GLOBALS)], NULL);
        put(rng, &roots[rng_below(rng, ROOTS)], NULL);
        tls[rng_below(rng, TLS_SLOTS)] = NULL;
        locals[rng_below(rng, LOCALS)] = NULL;
        if (a != NULL && has_slots(a)) {
            loam_clear(a->slot, a->head.count * sizeof(object *));
        }
    }
}

static void *work(void *arg)
{
    struct team_member *me = arg;
    object *locals[LOCALS] = {NULL};
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        rewire(&me->rng, locals);
        if (rng_below(&me->rng, 2000) == 0) {
            loam_enter_blocking();
            sleep_us(50);
            loam_exit_blocking();
        }
    }
    for (size_t i = 0; i < LOCALS + TLS_SLOTS; i++) {
        object *o = i < LOCALS ? locals[i] : tls[i - LOCALS];
        if (o != NULL) {
            object_check(o);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static struct team team;
    loam_memstats m;

    test_begin(argc, argv);
    size_t threads = test_number("threads", 32);
    uint64_t most = test_number("mib", 16) << 20;
    roots = calloc(ROOTS, sizeof *roots);
    EXPECT_EQ(loam_add_roots(roots, ROOTS * sizeof *roots), 0);
    team_start(&team, threads, work, NULL);
    uint64_t start = now_ns();
    uint64_t largest = 0;
    while (seconds_since(start) < (double)test_number("seconds", 10)) {
        sleep_us(20000);
        loam_gc(); /* what is there now is nearly all alive */
        loam_read_memstats(&m);
        largest = m.heap_objects > largest ? m.heap_objects : largest;
        atomic_store(&cut, m.heap_alloc > most);
    }
    atomic_store(&stop, true);
    team_join(&team);
    loam_gc();
    for (size_t i = 0; i < GLOBALS + ROOTS; i++) {
        object *o = i < GLOBALS ? atomic_load(&globals[i]) : roots[i - GLOBALS];
        if (o != NULL) {
            object_check(o);
        }
    }
    loam_read_memstats(&m);
    printf("%" PRIu64 " objects made, %" PRIu64 " checked, %u cycles, at most %" PRIu64
           " objects alive\n",
           atomic_load(&made), atomic_load(&steps), m.num_gc, largest);
    EXPECT_GT(m.num_gc, 1);
    EXPECT_GT(largest, 500); /* there was a graph to lose */
    EXPECT_EQ(loam_remove_roots(roots, ROOTS * sizeof *roots), 0);
    return test_end();
}
