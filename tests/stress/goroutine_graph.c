/* Goroutines that move from thread to thread rewire one graph: its edges lie in heap objects, globals, channels and the
 * frames of parked goroutines, and are handed from stack to stack; every object that is reached has a whole canary.
 * Beside that, they recurse through mebibytes of their stacks, and a thousand at a time call the C library.
 *
 * --goroutines N, --seconds N, --mib N (where the graph is cut), --borrow 0 (no reading of others' frames)
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | --seconds 3 | 90
 * TEST_RUN: one_proc | GOMAXPROCS=1 GOGC=5 | --seconds 3 | 90 | stress
 * TEST_RUN: clobberfree | GOMAXPROCS=4 GODEBUG=clobberfree=1 GOGC=5 | --seconds 4 | 90
 * TEST_RUN: checkmark | GODEBUG=gccheckmark=1,clobberfree=1 GOGC=5 | --seconds 4 --mib 2 | 90
 * TEST_RUN: gcstress | GODEBUG=gcstress=5,clobberfree=1 | --seconds 4 --mib 2 | 90 | stress
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1,clobberfree=1 GOGC=5 | --seconds 3 --mib 4 | 90 | stress
 * TEST_RUN: many_callers | | --seconds 1 --callers 100000 --dive-mib 100 | 180 | stress
 * TEST_RUN: stress | GOMAXPROCS=4 GODEBUG=clobberfree=1 GOGC=5 | --seconds 30 | 180 | stress
 * TEST_RUN: stress_checkmark | GODEBUG=gccheckmark=1,clobberfree=1 GOGC=5 | --seconds 30 --mib 2 | 180 | stress
 * TEST_RUN: stress_long | GODEBUG=gcstress=20,clobberfree=1 GOGC=5 | --seconds 300 | 900 | long
 * TEST_RUN: checkmark_long | GODEBUG=gccheckmark=1,clobberfree=1 GOGC=5 | --seconds 300 | 900 | long */
#include "../support/test.h"

#include <netdb.h>
#include <sys/socket.h>

#include <loam/sched.h>
#include <loam/stats.h>

#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/threads.h"

/* ---- the graph ---- */

enum { SLOTS = 4, GLOBALS = 512, LOCALS = 8, CHANNELS = 12 };

typedef struct vertex {
    uint64_t magic, id, check;
    struct vertex *slot[SLOTS];
} vertex;
LOAM_TYPE(vertex, slot);

/* What goes through the channels. */
typedef struct parcel {
    vertex *first;
    uint64_t id; /* of both, mixed */
    vertex *second;
} parcel;
LOAM_TYPE(parcel, first, second);

/* A wish to another goroutine: `slot` lies in the frame of the one who sent it, who waits for `done`. */
typedef struct wish {
    vertex **slot;
    loam_chan *done;
    bool read; /* else write */
} wish;
LOAM_TYPE(wish, slot, done);

#define MAGIC UINT64_C(0x676F2D6772617068)

static vertex *globals[GLOBALS];
static loam_chan *channels[CHANNELS]; /* of parcels */
static loam_chan *wishes, *quit;
static _Atomic(bool) cut, stop;
static _Atomic(uint64_t) next_id, checked, sent, granted, moved;
static bool borrow;

static vertex *vertex_new(void)
{
    vertex *v = LOAM_NEW(vertex);
    EXPECT_NOT_NULL(v);
    EXPECT_EQ(v->magic, 0);
    v->magic = MAGIC;
    v->id = atomic_fetch_add_explicit(&next_id, 1, memory_order_relaxed) + 1;
    v->check = rng_mix(v->id);
    return v;
}

static vertex *vertex_check(vertex *v)
{
    if (v != NULL) {
        EXPECT_MSG(v->magic == MAGIC && v->check == rng_mix(v->id),
                   "vertex %p: magic %#" PRIx64 ", id %#" PRIx64 ", check %#" PRIx64,
                   (const void *)v, v->magic, v->id, v->check);
        atomic_fetch_add_explicit(&checked, 1, memory_order_relaxed);
    }
    return v;
}

static uint64_t parcel_id(const parcel *p)
{
    return rng_mix((p->first != NULL ? p->first->id : 0) * 3 +
                   (p->second != NULL ? p->second->id : 0));
}

static void parcel_check(const parcel *p)
{
    vertex_check(p->first);
    vertex_check(p->second);
    EXPECT_EQ(p->id, parcel_id(p));
}

/* Follow random edges from a global or a local. */
static vertex *walk(struct rng *rng, vertex **locals)
{
    size_t k = rng_below(rng, LOCALS);
    vertex *v = rng_below(rng, 2) == 0 ? LOAD_SLOT(globals[rng_below(rng, GLOBALS)])
                                       : LOAD_SLOT(locals[k]);
    for (size_t n = rng_below(rng, 12); n > 0 && vertex_check(v) != NULL; n--) {
        vertex *next = LOAD_SLOT(v->slot[rng_below(rng, SLOTS)]);
        if (next == NULL) {
            break;
        }
        v = next;
    }
    return vertex_check(v);
}

/* On the way down each frame holds one more, and some give the thread away. */
static NOINLINE size_t walk_deep(struct rng *rng, vertex *from, size_t levels)
{
    vertex *here = vertex_check(from);
    vertex *next = here != NULL ? LOAD_SLOT(here->slot[rng_below(rng, SLOTS)]) : NULL;
    vertex *fresh = rng_below(rng, 8) == 0 ? vertex_new() : NULL;
    if (rng_below(rng, 16) == 0) {
        loam_yield();
    }
    size_t below = levels > 0 ? walk_deep(rng, next != NULL ? next : fresh, levels - 1) : 0;
    vertex_check(here);
    vertex_check(next);
    vertex_check(fresh);
    return below + 1;
}

static void let_go(struct rng *rng, vertex **locals)
{
    LOAM_SET(globals[rng_below(rng, GLOBALS)], NULL);
    LOAM_SET(locals[rng_below(rng, LOCALS)], NULL);
    vertex *v = walk(rng, locals);
    if (v != NULL) {
        loam_clear(v->slot, sizeof v->slot);
    }
}

/* ---- through channels ---- */

static void exchange_parcels(struct rng *rng, vertex **locals)
{
    parcel out[2];
    parcel in[2];
    loam_select_case cases[5];
    for (size_t i = 0; i < 2; i++) {
        out[i] = (parcel){walk(rng, locals), 0, rng_below(rng, 2) == 0 ? vertex_new() : NULL};
        out[i].id = parcel_id(&out[i]);
        cases[i] = (loam_select_case){channels[rng_below(rng, CHANNELS)], LOAM_SEND, &out[i],
                                      false};
        cases[i + 2] = (loam_select_case){channels[rng_below(rng, CHANNELS)], LOAM_RECV, &in[i],
                                          false};
    }
    cases[4] = (loam_select_case){quit, LOAM_RECV, NULL, false};
    bool block = rng_below(rng, 3) != 0;
    int i = loam_select(cases, block ? 5 : 4, block);
    if (i == 0 || i == 1) {
        parcel_check(&out[i]);
        atomic_fetch_add_explicit(&sent, 1, memory_order_relaxed);
    } else if (i == 2 || i == 3) {
        parcel_check(&in[i - 2]);
        LOAM_SET(locals[rng_below(rng, LOCALS)], in[i - 2].first);
        LOAM_SET(globals[rng_below(rng, GLOBALS)], in[i - 2].second);
    }
}

/* Straight into a heap object, which becomes part of the graph. */
typedef struct crate {
    uint64_t magic, id, check;
    vertex *slot[SLOTS]; /* a vertex up to here */
    parcel what;
} crate;
LOAM_TYPE(crate, slot, what.first, what.second);

static void receive_into_a_crate(struct rng *rng, vertex **locals)
{
    crate *c = LOAM_NEW(crate);
    EXPECT_NOT_NULL(c);
    c->magic = MAGIC;
    c->id = atomic_fetch_add(&next_id, 1) + 1;
    c->check = rng_mix(c->id);
    if (rng_below(rng, 2) == 0) { /* others may see it before it has something */
        LOAM_SET(globals[rng_below(rng, GLOBALS)], (vertex *)(void *)c);
        loam_yield();
    }
    if (chan_try_recv(channels[rng_below(rng, CHANNELS)], &c->what)) {
        parcel_check(&c->what);
        LOAM_SET(c->slot[0], c->what.first);
        LOAM_SET(c->slot[1], c->what.second);
        loam_yield();
        parcel_check(&c->what);
    }
    LOAM_SET(locals[rng_below(rng, LOCALS)], (vertex *)(void *)c);
}

/* ---- from stack to stack ---- */

/* Somebody writes into, or reads from, a local of this frame; then it is overwritten, without a barrier: it is this
 * goroutine's own. */
static NOINLINE void make_a_wish(struct rng *rng, vertex **locals)
{
    vertex *volatile slot[3] = {vertex_new(), vertex_new(), NULL};
    size_t k = rng_below(rng, 2);
    wish w = {(vertex **)(uintptr_t)&slot[k], loam_chan_make_bytes(0, 1),
              borrow && rng_below(rng, 2) == 0};
    loam_select_case cases[] = {{wishes, LOAM_SEND, &w, false}, {quit, LOAM_RECV, NULL, false}};
    if (loam_select(cases, 2, true) == 0) {
        loam_chan_recv(w.done, NULL);
        atomic_fetch_add_explicit(&granted, 1, memory_order_relaxed);
    }
    vertex_check(slot[0]);
    vertex_check(slot[1]);
    if (w.read) { /* whoever has read it holds it now, and nobody else */
        slot[0] = slot[1] = NULL;
    } else {
        LOAM_SET(locals[rng_below(rng, LOCALS)], slot[k]);
    }
    loam_yield();
    vertex_check(slot[0]);
    vertex_check(slot[1]);
}

static NOINLINE void grant_wishes(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg + 500);
    vertex *kept[32] = {NULL};
    for (size_t n = 0; !atomic_load(&stop); n++) {
        wish w;
        loam_select_case cases[] = {{wishes, LOAM_RECV, &w, false}, {quit, LOAM_RECV, NULL, false}};
        if (loam_select(cases, 2, true) == 1) {
            break;
        }
        size_t k = rng_below(&rng, COUNT_OF(kept));
        if (w.read) {
            vertex_check(kept[k]);
            kept[k] = LOAD_SLOT(*w.slot);
        } else if (rng_below(&rng, 2) == 0) {
            LOAM_SET(*w.slot, vertex_new());
        } else {
            vertex *old = loam_exchange(w.slot, vertex_new());
            vertex_check(old);
            vertex_check(kept[k]);
            kept[k] = old;
        }
        loam_chan_send(w.done, NULL);
        if (rng_below(&rng, 4) == 0) {
            loam_yield();
        }
    }
    for (size_t i = 0; i < COUNT_OF(kept); i++) {
        vertex_check(kept[i]);
    }
}

/* ---- children ---- */

typedef struct errand {
    vertex *what, *back;
    uint64_t id;
} errand;
LOAM_TYPE(errand, what, back);

static void do_errand(void *arg)
{
    errand *e = arg;
    vertex *fresh = vertex_new();
    loam_yield();
    EXPECT_EQ(vertex_check(e->what)->id, e->id);
    LOAM_SET(fresh->slot[0], e->what);
    LOAM_SET(e->back, fresh);
    loam_yield();
    vertex_check(fresh);
}

static NOINLINE void send_on_an_errand(struct rng *rng, vertex **locals)
{
    errand *e = LOAM_NEW(errand);
    EXPECT_NOT_NULL(e);
    vertex *what = vertex_new();
    LOAM_SET(e->what, what);
    e->id = what->id;
    if (rng_below(rng, 2) == 0) {
        go_run(do_errand, e);
        EXPECT_PTR_EQ(vertex_check(e->back)->slot[0], what);
        LOAM_SET(locals[rng_below(rng, LOCALS)], e->back);
    } else {
        go(do_errand, e);
    }
}

/* ---- work ---- */

static void rewire(struct rng *rng, vertex **locals)
{
    vertex *a = walk(rng, locals);
    vertex *b = walk(rng, locals);
    switch (rng_below(rng, 12)) {
    case 0:
    case 1:
    case 2: {
        vertex *v = vertex_new();
        LOAM_SET(v->slot[0], a);
        LOAM_SET(v->slot[SLOTS - 1], b);
        if (rng_below(rng, 2) == 0) {
            LOAM_SET(globals[rng_below(rng, GLOBALS)], v);
        } else {
            LOAM_SET(locals[rng_below(rng, LOCALS)], v);
        }
        break;
    }
    case 3:
        if (a != NULL) {
            vertex *old = loam_exchange(&a->slot[rng_below(rng, SLOTS)], b);
            loam_yield();
            vertex_check(old);
        }
        break;
    case 4:
        if (a != NULL && b != NULL) {
            loam_copy(a->slot, b->slot, sizeof a->slot);
        }
        break;
    case 5:
    case 6:
    case 7:
        exchange_parcels(rng, locals);
        break;
    case 8:
        receive_into_a_crate(rng, locals);
        break;
    case 9:
        make_a_wish(rng, locals);
        break;
    case 10:
        send_on_an_errand(rng, locals);
        break;
    default:
        walk_deep(rng, a, rng_below(rng, 60));
    }
    if (atomic_load_explicit(&cut, memory_order_relaxed)) {
        let_go(rng, locals);
    }
    vertex_check(a);
    vertex_check(b);
}

static uint64_t thread_now(void)
{
    return (uint64_t)gettid();
}

static void work(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    vertex *locals[LOCALS] = {NULL};
    uint64_t thread = thread_now();
    while (!atomic_load(&stop)) {
        rewire(&rng, locals);
        if (thread_now() != thread) {
            thread = thread_now();
            atomic_fetch_add_explicit(&moved, 1, memory_order_relaxed);
        }
        if (rng_below(&rng, 500) == 0) {
            loam_sleep((int64_t)rng_below(&rng, 300000));
        }
        if (rng_below(&rng, 3000) == 0) {
            loam_enter_blocking();
            sleep_us(100);
            loam_exit_blocking();
        }
    }
    for (size_t i = 0; i < LOCALS; i++) {
        vertex_check(LOAD_SLOT(locals[i]));
    }
}

static void graph(void)
{
    size_t workers = test_number("goroutines", TEST_SANITIZED || emulated() ? 40 : 150);
    uint64_t most = test_number("mib", 8) << 20;
    loam_memstats m;
    uint64_t largest = 0;
    uint32_t cycles_before;
    borrow = test_number("borrow", 1) != 0;
    loam_read_memstats(&m);
    cycles_before = m.num_gc;
    for (size_t i = 0; i < CHANNELS; i++) {
        LOAM_SET(channels[i], loam_chan_make(LOAM_TYPEOF(parcel), i / 2 * (i / 2)));
        EXPECT_NOT_NULL(channels[i]);
    }
    LOAM_SET(wishes, loam_chan_make(LOAM_TYPEOF(wish), 0));
    LOAM_SET(quit, loam_chan_make_bytes(0, 0));
    for (size_t i = 0; i < workers; i++) {
        go_named("worker", work, (void *)i);
        if (i % 10 == 0) {
            go_named("granter", grant_wishes, (void *)i);
        }
    }
    uint64_t start = now_ns();
    while (seconds_since(start) < (double)test_number("seconds", 10)) {
        sleep_us(10000);
        if (!test_godebug("gcstress")) {
            loam_gc();
        }
        loam_read_memstats(&m);
        largest = m.heap_objects > largest ? m.heap_objects : largest;
        atomic_store(&cut, m.heap_alloc > most);
    }
    atomic_store(&stop, true);
    loam_chan_close(quit);
    go_all_ended();
    loam_gc();
    for (size_t i = 0; i < GLOBALS; i++) {
        vertex_check(LOAD_SLOT(globals[i]));
    }
    loam_read_memstats(&m);
    printf("  %" PRIu64 " made, %" PRIu64 " checked, %" PRIu64 " sent, %" PRIu64 " wishes, %" PRIu64
           " moves to another thread, %u cycles, at most %" PRIu64 " objects\n",
           atomic_load(&next_id), atomic_load(&checked), atomic_load(&sent), atomic_load(&granted),
           atomic_load(&moved), m.num_gc - cycles_before, largest);
    EXPECT_GT(m.num_gc - cycles_before, 1);
    EXPECT_GT(atomic_load(&sent), 0);
    EXPECT_GT(atomic_load(&granted), 0);
}

/* ---- deep ---- */

/* About 200 bytes a frame, each holds one. */
static NOINLINE size_t descend(struct rng *rng, size_t levels)
{
    volatile char frame[100];
    vertex *mine = vertex_new();
    frame[levels % sizeof frame] = (char)levels;
    if (rng_below(rng, 1000) == 0) {
        loam_yield();
    }
    size_t below = levels > 0 ? descend(rng, levels - 1) : 0;
    vertex_check(mine);
    EXPECT_EQ(frame[levels % sizeof frame], (char)levels);
    return below + 1;
}

enum { DEEP_BYTES_EACH = 8 << 20 };
static _Atomic(size_t) deep_done;

/* A kilobyte a frame. */
static NOINLINE size_t fall(size_t levels)
{
    volatile char frame[1000];
    frame[levels % sizeof frame] = (char)levels;
    size_t below = levels > 0 ? fall(levels - 1) : 0;
    EXPECT_EQ(frame[levels % sizeof frame], (char)levels);
    return below + 1;
}
static loam_chan *shallow;

static void go_deep(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    size_t levels = go_scaled(15000);
    EXPECT_EQ(descend(&rng, levels), levels + 1);
    atomic_fetch_add(&deep_done, 1);
    EXPECT(!loam_chan_recv(shallow, NULL)); /* up again, parked with little on its stack */
}

/* What is resident once those that wait at `shallow` were collected beneath; then they end. */
static size_t end_after_collections(void)
{
    for (int i = 0; i < 3; i++) {
        loam_gc();
    }
    size_t parked = resident();
    loam_chan_close(shallow);
    go_all_ended();
    return parked;
}

static void deep_recursion(void)
{
    enum { COUNT = 20 };
    loam_go_options options = {"diver", DEEP_BYTES_EACH};
    size_t before = resident();
    LOAM_SET(shallow, loam_chan_make_bytes(0, 0));
    atomic_store(&deep_done, 0);
    for (uintptr_t i = 0; i < COUNT; i++) {
        EXPECT_EQ(loam_go_with(&options, go_deep, (void *)i), 0);
    }
    PARK_UNTIL(90, atomic_load(&deep_done) == COUNT);
    size_t deep = resident();
    size_t parked = end_after_collections();
    loam_gc();
    loam_free_os_memory();
    size_t ended = resident();
    printf("  resident: %zu MiB, after the dive %zu, collected %zu, ended %zu\n", before >> 20,
           deep >> 20, parked >> 20, ended >> 20);
    if (!TEST_SANITIZED && !emulated()) {
        /* Memory of a stack that nobody uses goes back. */
        EXPECT_LT(ended, before + (deep > before ? (deep - before) / 2 : 0) + (8 << 20));
    }
}

/* ---- the C library ---- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static NOINLINE void print_to_memory(struct rng *rng)
{
    char *text = NULL;
    size_t size = 0;
    uint64_t number = rng_next(rng);
    char expected[64];
    FILE *f = open_memstream(&text, &size);
    EXPECT_NOT_NULL(f);
    for (int i = 0; i < 20; i++) {
        EXPECT_GT(fprintf(f, "%d %" PRIu64 " %.3f\n", i, number, (double)i / 7), 0);
    }
    EXPECT_EQ(fclose(f), 0);
    snprintf(expected, sizeof expected, "19 %" PRIu64 " 2.714\n", number);
    EXPECT_CONTAINS(text, expected);
    free(text);
}

static NOINLINE void sort_numbers(struct rng *rng)
{
    uint64_t numbers[500];
    uint64_t sum = 0;
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        sum += numbers[i] = rng_next(rng);
    }
    qsort(numbers, COUNT_OF(numbers), sizeof numbers[0], by_value);
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        sum -= numbers[i];
        EXPECT(i == 0 || numbers[i - 1] <= numbers[i]);
    }
    EXPECT_EQ(sum, 0);
}

static NOINLINE void resolve_address(struct rng *rng)
{
    char host[32];
    char port[8];
    char back[64];
    struct addrinfo hints;
    struct addrinfo *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    hints.ai_socktype = SOCK_STREAM;
    snprintf(host, sizeof host, "127.%zu.%zu.1", rng_below(rng, 256), rng_below(rng, 256));
    snprintf(port, sizeof port, "%zu", rng_between(rng, 1, 65535));
    EXPECT_EQ(getaddrinfo(host, port, &hints, &found), 0);
    EXPECT_EQ(
        getnameinfo(found->ai_addr, found->ai_addrlen, back, sizeof back, NULL, 0, NI_NUMERICHOST),
        0);
    EXPECT_STR_EQ(back, host);
    freeaddrinfo(found);
}

static NOINLINE void tell_the_time(struct rng *rng)
{
    time_t t = (time_t)rng_below(rng, 2000000000);
    struct tm tm;
    char text[64];
    EXPECT_NOT_NULL(gmtime_r(&t, &tm));
    EXPECT_GT(strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm), 0);
    EXPECT_EQ(timegm(&tm), t);
}

static _Atomic(size_t) callers_done;

static void call_the_c_library(void *arg)
{
    static void (*const calls[])(struct rng *) = {print_to_memory, sort_numbers, resolve_address,
                                                  tell_the_time};
    struct rng rng = rng_stream((uintptr_t)arg);
    vertex *mine = vertex_new();
    void *block = NULL;
    for (size_t i = 0; i < go_scaled(40) + 1; i++) {
        free(block);
        calls[rng_below(&rng, COUNT_OF(calls))](&rng);
        block = malloc(rng_between(&rng, 1, 5000)); /* freed on another thread, maybe */
        EXPECT_NOT_NULL(block);
        memset(block, 1, 1);
        loam_yield();
        vertex_check(mine);
        mine = vertex_new();
    }
    free(block);
    atomic_fetch_add(&callers_done, 1);
}

/* Each of them once, on as many goroutines as are asked for: they need more stack than most. */
static void call_each_once(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    vertex *mine = vertex_new();
    print_to_memory(&rng);
    loam_yield();
    resolve_address(&rng);
    loam_yield();
    sort_numbers(&rng);
    vertex_check(mine);
    atomic_fetch_add(&callers_done, 1);
}

static void many_call_the_c_library(void)
{
    size_t count = (size_t)test_number("callers", 200);
    atomic_store(&callers_done, 0);
    for (uintptr_t i = 0; i < count; i++) {
        go(call_each_once, (void *)i);
    }
    PARK_UNTIL(90, atomic_load(&callers_done) == count);
}

static void c_library(void)
{
    size_t count = TEST_SANITIZED || emulated() || test_godebug("gcstress") ? 200 : 1000;
    atomic_store(&callers_done, 0);
    for (uintptr_t i = 0; i < count; i++) {
        go(call_the_c_library, (void *)i);
    }
    PARK_UNTIL(90, atomic_load(&callers_done) == count);
}

static void go_to_the_bottom(void *arg)
{
    size_t levels = (size_t)(uintptr_t)arg << 10;
    EXPECT_EQ(fall(levels), levels + 1);
    atomic_fetch_add(&deep_done, 1);
    EXPECT(!loam_chan_recv(shallow, NULL));
}

/* One stack, as deep as --dive-mib says: what it has used goes back while it waits. */
static void one_very_deep(void)
{
    size_t mib = TEST_SANITIZED || emulated() ? 2 : (size_t)test_number("dive-mib", 20);
    loam_go_options options = {"diver", (mib + mib / 2 + 2) << 20};
    size_t before = resident();
    LOAM_SET(shallow, loam_chan_make_bytes(0, 0));
    atomic_store(&deep_done, 0);
    EXPECT_EQ(loam_go_with(&options, go_to_the_bottom, (void *)mib), 0);
    PARK_UNTIL(90, atomic_load(&deep_done) == 1);
    size_t deep = resident();
    size_t parked = end_after_collections();
    printf("  resident: %zu MiB, after the dive %zu, collected %zu\n", before >> 20, deep >> 20,
           parked >> 20);
    if (!TEST_SANITIZED && !emulated()) {
        EXPECT_GT(deep, before + (mib << 20) / 2);
        EXPECT_LT(parked, before + (4 << 20));
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    start_watching();
    RUN(graph);
    RUN_BOTH(deep_recursion);
    RUN_BOTH(c_library);
    RUN(many_call_the_c_library);
    RUN(one_very_deep);
    go_all_ended();
    return test_end();
}
