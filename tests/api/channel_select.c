/* loam_select does exactly one of its cases, any that can be done, by a fair lot; waits if none can, or says so; leaves
 * nothing behind in the channels of the others. The oracle is Go's specification, and counting.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: one_proc | GOMAXPROCS=1 | | 90
 * TEST_RUN: four_procs | GOMAXPROCS=4 GOGC=10 | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stress | GODEBUG=gcstress=1,clobberfree=1 | | 90 | stress */
#include "../support/test.h"

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static loam_chan *chan_bytes(size_t elem_size, size_t capacity)
{
    loam_chan *c = loam_chan_make_bytes(elem_size, capacity);
    EXPECT_NOT_NULL(c);
    return c;
}

static loam_select_case sends(loam_chan *c, void *elem)
{
    return (loam_select_case){c, LOAM_SEND, elem, false};
}

static loam_select_case receives(loam_chan *c, void *elem)
{
    return (loam_select_case){c, LOAM_RECV, elem, false};
}

/* Globals are searched. */
static loam_chan *chan[4];

static void chans_make(size_t capacity)
{
    for (size_t i = 0; i < COUNT_OF(chan); i++) {
        LOAM_SET(chan[i], chan_bytes(8, capacity));
    }
}

/* ---- without waiting ---- */

static void nothing_is_ready(void)
{
    uint64_t value = 5;
    loam_chan *empty = chan_bytes(8, 0);
    loam_chan *full = chan_bytes(8, 1);
    loam_chan_send(full, &value);
    loam_select_case cases[] = {receives(empty, &value), sends(empty, &value), sends(full, &value),
                                receives(NULL, &value), sends(NULL, &value)};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        cases[i].received = true;
    }
    for (size_t n = 0; n <= COUNT_OF(cases); n++) {
        EXPECT_EQ(loam_select(cases, n, false), (uint64_t)-1);
    }
    EXPECT_EQ(loam_select(NULL, 0, false), (uint64_t)-1);
    EXPECT_EQ(value, 5);
    EXPECT_EQ(loam_chan_len(empty), 0);
    EXPECT_EQ(loam_chan_len(full), 1);
}

static void what_is_ready_is_done(void)
{
    for (int block = 0; block < 2; block++) {
        uint64_t out = 0;
        uint64_t in = 7;
        loam_chan *empty = chan_bytes(8, 0);
        loam_chan *one = chan_bytes(8, 1);
        loam_select_case cases[] = {receives(empty, &out), sends(one, &in), receives(NULL, &out)};
        cases[0].received = true;
        EXPECT_EQ(loam_select(cases, 3, block), 1);
        EXPECT_EQ(loam_chan_len(one), 1);
        EXPECT_EQ(out, 0);
        EXPECT(cases[0].received); /* not the chosen one */
        loam_select_case more[] = {sends(empty, &in), receives(empty, &in), receives(one, &out)};
        EXPECT_EQ(loam_select(more, 3, block), 2);
        EXPECT(more[2].received);
        EXPECT_EQ(out, 7);
        EXPECT_EQ(loam_chan_len(one), 0);
        /* dropped */
        loam_chan_send(one, &in);
        more[2].elem = NULL;
        EXPECT_EQ(loam_select(more, 3, block), 2);
        EXPECT(more[2].received);
        /* closed and empty: ready, and gives zeroes */
        loam_chan_close(one);
        out = 99;
        more[2].elem = &out;
        EXPECT_EQ(loam_select(more, 3, block), 2);
        EXPECT(!more[2].received);
        EXPECT_EQ(out, 0);
        EXPECT_EQ(in, 7);
        /* signals */
        loam_chan *signal = chan_bytes(0, 1);
        loam_select_case both[] = {sends(signal, NULL), receives(signal, NULL)};
        EXPECT_EQ(loam_select(both, 2, block), 0);
        EXPECT_EQ(loam_select(both, 2, block), 1);
        EXPECT(both[1].received);
    }
}

/* ---- the lot ---- */

static void the_lot_is_fair(void)
{
    enum { CASES = 5, TURNS = 20000 };
    loam_chan *c[CASES];
    loam_select_case cases[CASES];
    size_t chosen[CASES] = {0};
    uint64_t value = 0;
    size_t turns = TEST_SANITIZED || emulated() ? TURNS / 10 : TURNS;
    for (size_t i = 0; i < CASES; i++) {
        c[i] = chan_bytes(8, 2);
        loam_chan_send(c[i], &value);
        cases[i] = i % 2 == 0 ? receives(c[i], &value) : sends(c[i], &value);
    }
    for (size_t n = 0; n < turns; n++) {
        int i = loam_select(cases, CASES, n % 2 == 0);
        EXPECT_LT(i, CASES);
        chosen[i]++;
        if (i % 2 == 0) { /* as it was */
            loam_chan_send(c[i], &value);
        } else {
            EXPECT(loam_chan_recv(c[i], NULL));
        }
    }
    for (size_t i = 0; i < CASES; i++) {
        /* A fifth each: 8 standard deviations of a binomial law are 11 % of 4000, 36 % of 400. */
        size_t slack = turns == TURNS ? turns / CASES / 4 : turns / CASES * 3 / 4;
        EXPECT_GT(chosen[i], turns / CASES - slack);
        EXPECT_LT(chosen[i], turns / CASES + slack);
    }
}

/* The same channel twice: each of the two, about as often. */
static void the_same_twice(void)
{
    size_t chosen[2] = {0, 0};
    size_t turns = 2000;
    uint64_t value = 0;
    uint64_t a = 0;
    uint64_t b = 0;
    loam_chan *c = chan_bytes(8, 1);
    loam_select_case cases[] = {receives(c, &a), receives(c, &b)};
    for (uint64_t n = 1; n <= turns; n++) {
        value = n;
        a = b = 0;
        loam_chan_send(c, &value);
        int i = loam_select(cases, 2, true);
        EXPECT_EQ(i == 0 ? a : b, n);
        EXPECT_EQ(i == 0 ? b : a, 0);
        chosen[i]++;
    }
    EXPECT_GT(chosen[0], turns * 3 / 10);
    EXPECT_GT(chosen[1], turns * 3 / 10);
    /* Sending and receiving at once does not talk to itself. */
    loam_chan *d = chan_bytes(8, 0);
    loam_select_case both[] = {sends(d, &value), receives(d, &a), sends(d, &value),
                               receives(d, &b)};
    EXPECT_EQ(loam_select(both, 4, false), (uint64_t)-1);
    EXPECT_EQ(loam_chan_len(d), 0);
}

/* ---- waiting ---- */

static _Atomic(int) result;
static _Atomic(bool) result_received;
static _Atomic(uint64_t) result_value;

/* Waits for chan[0] and [1] to give something, and for [2] and [3] to take something. */
static void select_of_four(void *arg)
{
    uint64_t got[2] = {UINT64_MAX, UINT64_MAX};
    uint64_t out[2] = {1002, 1003};
    loam_select_case cases[] = {receives(chan[0], &got[0]), receives(chan[1], &got[1]),
                                sends(chan[2], &out[0]), sends(chan[3], &out[1]),
                                receives(NULL, &got[0])};
    (void)arg;
    int i = loam_select(cases, COUNT_OF(cases), true);
    EXPECT(i >= 0 && i < 4);
    atomic_store(&result_received, i < 2 && cases[i].received);
    atomic_store(&result_value, i < 2 ? got[i] : out[i - 2]);
    EXPECT_EQ(got[i == 0 ? 1 : 0], UINT64_MAX); /* the others are untouched */
    atomic_store(&result, i);
}

static void waits_for_each_kind(void)
{
    for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
        for (int closed = 0; closed < 2; closed++) {
            for (int i = 0; i < 4 - 2 * closed; i++) {
                static struct crew crew;
                uint64_t value = 500 + (uint64_t)i;
                chans_make(0);
                atomic_store(&result, -1);
                crew_start(&crew, (enum where)where, select_of_four, NULL);
                loam_sleep(MILLISECONDS(5));
                EXPECT_EQ(atomic_load(&result), (uint64_t)-1);
                if (closed) {
                    loam_chan_close(chan[i]);
                } else if (i < 2) {
                    loam_chan_send(chan[i], &value);
                } else {
                    EXPECT(loam_chan_recv(chan[i], &value));
                    EXPECT_EQ(value, 1000 + (uint64_t)i);
                }
                crew_join(&crew);
                EXPECT_EQ(atomic_load(&result), i);
                EXPECT_EQ(atomic_load(&result_received), !closed && i < 2);
                EXPECT_EQ(atomic_load(&result_value), closed ? 0 : value);
                /* Nothing of it is left where it was not chosen. */
                for (int k = 0; k < 4; k++) {
                    if (!(closed && k == i)) {
                        EXPECT(!chan_try_send(chan[k], &value));
                        EXPECT(!chan_try_recv(chan[k], &value));
                    }
                }
            }
        }
    }
}

static void send_value(void *arg)
{
    loam_chan_send(chan[0], arg);
}

/* Parked with one channel in several cases. */
static void same_channel_parked(void *arg)
{
    uint64_t got[3] = {0, 0, 0};
    uint64_t out = 9;
    loam_select_case cases[] = {receives(chan[0], &got[0]), sends(chan[0], &out),
                                receives(chan[0], &got[1]), sends(chan[0], &out),
                                receives(chan[0], &got[2])};
    (void)arg;
    int i = loam_select(cases, COUNT_OF(cases), true);
    EXPECT(i >= 0 && i < 5);
    EXPECT_EQ(got[0] + got[1] + got[2], i % 2 == 0 ? 77 : 0);
    atomic_store(&result, i);
}

static void the_same_several_times_parked(void)
{
    for (int n = 0; n < 30; n++) {
        static struct crew crew;
        uint64_t value = 77;
        chans_make(0);
        atomic_store(&result, -1);
        crew_start(&crew, n % 3 == 0 ? ON_THREAD : ON_GOROUTINE, same_channel_parked, NULL);
        loam_sleep(MICROSECONDS(500));
        EXPECT_EQ(atomic_load(&result), (uint64_t)-1); /* it does not meet itself */
        if (n % 2 == 0) {
            loam_chan_send(chan[0], &value);
        } else {
            EXPECT(loam_chan_recv(chan[0], &value));
            EXPECT_EQ(value, 9);
        }
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&result) % 2, n % 2);
        EXPECT(!chan_try_recv(chan[0], &value));
        EXPECT(!chan_try_send(chan[0], &value));
    }
}

/* ---- many cases ---- */

enum { MOST = 65536 };

static void sixty_five_thousand_cases(void)
{
    static loam_select_case *cases;
    static uint64_t value;
    static struct crew crew;
    loam_chan *never = chan_bytes(8, 0);
    LOAM_SET(chan[0], chan_bytes(8, 0));
    /* heap memory, so that the channels in it are alive */
    LOAM_SET(cases, loam_alloc(MOST * sizeof(loam_select_case)));
    EXPECT_NOT_NULL(cases);
    for (size_t i = 0; i < MOST; i++) {
        LOAM_SET(cases[i].chan, i % 3 == 0 ? NULL : never);
        cases[i].direction = i % 2 == 0 ? LOAM_SEND : LOAM_RECV;
        cases[i].elem = NULL;
        if (cases[i].direction == LOAM_SEND) {
            LOAM_SET(cases[i].elem, (void *)&value);
        }
    }
    EXPECT_EQ(loam_select(cases, MOST, false), (uint64_t)-1);
    LOAM_SET(cases[MOST - 1].chan, chan[0]);
    LOAM_SET(cases[MOST - 1].elem, (void *)&value);
    value = 0;
    static uint64_t to_send = 4711;
    crew_start(&crew, ON_GOROUTINE, send_value, &to_send);
    EXPECT_EQ(loam_select(cases, MOST, true), MOST - 1);
    EXPECT_EQ(value, 4711);
    crew_join(&crew);
    LOAM_SET(cases, NULL);
}

/* As many channels as cases: each is locked, queued in and left. */
static void send_to_one(void *arg)
{
    loam_chan **c = arg;
    uint64_t value = 1;
    loam_sleep(MILLISECONDS(2));
    loam_chan_send(*c, &value);
}

static void a_thousand_channels(void)
{
    size_t count = go_scaled(1000) + 10;
    struct rng rng = rng_stream(4);
    loam_chan **many = LOAM_NEW_POINTERS(loam_chan, count);
    loam_select_case *cases = loam_alloc(count * sizeof *cases);
    uint64_t value;
    for (size_t i = 0; i < count; i++) {
        LOAM_SET(many[i], chan_bytes(8, 0));
        LOAM_SET(cases[i].chan, many[i]);
        cases[i].direction = LOAM_RECV;
    }
    for (int n = 0; n < 20; n++) {
        static struct crew crew;
        size_t which = rng_below(&rng, count);
        crew_start(&crew, ON_GOROUTINE, send_to_one, &many[which]);
        EXPECT_EQ(loam_select(cases, count, true), which);
        EXPECT(cases[which].received);
        crew_join(&crew);
    }
    for (size_t i = 0; i < count; i++) {
        EXPECT(!chan_try_send(many[i], &value));
    }
}

/* ---- in traffic ----
 *
 * Everybody sends numbers of his own and receives others' by select; each number arrives once. */

enum { TALKERS = 24 };
static _Atomic(uint64_t) sum_sent, sum_received;
static _Atomic(size_t) count_sent, count_received;
static _Atomic(size_t) talkers_left;

static void talk(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    uint64_t next = rng_next(&rng);
    uint64_t got[2];
    size_t left = go_scaled(1500);
    while (left > 0) {
        size_t a = rng_below(&rng, COUNT_OF(chan));
        size_t b = rng_below(&rng, COUNT_OF(chan));
        loam_select_case cases[] = {sends(chan[a], &next), receives(chan[b], &got[0]),
                                    receives(chan[a], &got[1])};
        bool block = rng_below(&rng, 4) != 0;
        int i = loam_select(cases, COUNT_OF(cases), block);
        if (i == 0) {
            atomic_fetch_add(&sum_sent, next);
            atomic_fetch_add(&count_sent, 1);
            next = rng_next(&rng);
            left--;
        } else if (i > 0) {
            EXPECT(cases[i].received);
            atomic_fetch_add(&sum_received, got[i - 1]);
            atomic_fetch_add(&count_received, 1);
        } else {
            EXPECT(!block);
            loam_yield();
        }
    }
    atomic_fetch_sub(&talkers_left, 1);
}

/* Takes what the last talkers would wait with, until they have ended. */
static void talk_in_traffic(void)
{
    for (size_t capacity = 0; capacity < 3; capacity++) {
        static struct crew crew;
        uint64_t got;
        chans_make(capacity);
        atomic_store(&sum_sent, 0);
        atomic_store(&sum_received, 0);
        atomic_store(&count_sent, 0);
        atomic_store(&count_received, 0);
        atomic_store(&talkers_left, TALKERS);
        for (uintptr_t i = 0; i < TALKERS; i++) {
            crew_start(&crew, i % 8 == 0 ? ON_THREAD : ON_GOROUTINE, talk, (void *)i);
        }
        for (size_t left = TALKERS; left > 0;) {
            left = atomic_load(&talkers_left); /* with 0 the last look */
            for (size_t c = 0; c < COUNT_OF(chan); c++) {
                while (chan_try_recv(chan[c], &got)) {
                    atomic_fetch_add(&sum_received, got);
                    atomic_fetch_add(&count_received, 1);
                }
            }
            loam_yield();
        }
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&count_sent), TALKERS * go_scaled(1500));
        EXPECT_EQ(atomic_load(&count_received), atomic_load(&count_sent));
        EXPECT_EQ(atomic_load(&sum_received), atomic_load(&sum_sent));
    }
}

/* Two that each offer what the other wants, in both orders: neither blocks the other out, both agree who sent. */
static _Atomic(uint64_t) was_sent[2], was_received[2];
static size_t rounds_to_do;

static void cross(void *arg)
{
    size_t me = (uintptr_t)arg;
    for (size_t n = 0; n < rounds_to_do; n++) {
        uint64_t out = me * 1000000 + n;
        uint64_t in = UINT64_MAX;
        loam_select_case cases[] = {sends(chan[me], &out), receives(chan[1 - me], &in)};
        loam_select_case swapped[] = {cases[1], cases[0]};
        bool as_is = n % 2 == me;
        int i = loam_select(as_is ? cases : swapped, 2, true);
        bool sent = (i == 0) == as_is;
        if (sent) {
            atomic_fetch_add(&was_sent[me], 1);
        } else {
            EXPECT_EQ(in, (1 - me) * 1000000 + n); /* the other is in the same round */
            atomic_fetch_add(&was_received[me], 1);
        }
    }
}

static void crossed(void)
{
    for (int where = ON_GOROUTINE; where <= ON_THREAD; where++) {
        static struct crew crew;
        chans_make(0);
        rounds_to_do = go_scaled(where == ON_GOROUTINE ? 20000 : 4000);
        for (size_t i = 0; i < 2; i++) {
            atomic_store(&was_sent[i], 0);
            atomic_store(&was_received[i], 0);
        }
        crew_start(&crew, ON_GOROUTINE, cross, (void *)0);
        crew_start(&crew, (enum where)where, cross, (void *)1);
        crew_join(&crew);
        EXPECT_EQ(atomic_load(&was_sent[0]), atomic_load(&was_received[1]));
        EXPECT_EQ(atomic_load(&was_sent[1]), atomic_load(&was_received[0]));
        EXPECT_EQ(atomic_load(&was_sent[0]) + atomic_load(&was_sent[1]), rounds_to_do);
    }
}

/* All who wait in a select see the close, while others come. */
static void until_closed(void *arg)
{
    uint64_t got;
    uint64_t out = 1;
    (void)arg;
    for (;;) {
        loam_select_case cases[] = {receives(chan[1], &got), sends(chan[1], &out),
                                    receives(chan[0], NULL)};
        if (loam_select(cases, 3, true) == 2) {
            EXPECT(!cases[2].received);
            break;
        }
    }
}

static void closed_under_all(void)
{
    for (int n = 0; n < 10; n++) {
        static struct crew crew;
        chans_make(0);
        for (size_t i = 0; i < 50; i++) {
            crew_start(&crew, i % 10 == 0 ? ON_THREAD : ON_GOROUTINE, until_closed, NULL);
        }
        loam_sleep(MICROSECONDS(300));
        loam_chan_close(chan[0]);
        crew_join(&crew);
    }
}

/* ---- pointers ---- */

typedef struct note {
    item *what;
} note;
LOAM_TYPE(note, what);

static loam_chan *notes[2];
static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return arg;
}

static void send_notes(void *arg)
{
    for (uint64_t i = 0; i < go_scaled(3000); i++) {
        note a = {item_new(2 * i, NULL)};
        note b = {item_new(2 * i + 1, NULL)};
        loam_select_case cases[] = {sends(notes[0], &a), sends(notes[1], &b)};
        loam_select(cases, 2, true);
    }
    loam_chan_close(notes[0]);
    (void)arg;
}

static void elements_with_pointers(void)
{
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (size_t capacity = 0; capacity < 5; capacity += 2) {
        static struct crew crew;
        note *in_heap = LOAM_NEW_ARRAY(note, 2);
        size_t got = 0;
        for (size_t i = 0; i < 2; i++) {
            LOAM_SET(notes[i], loam_chan_make(LOAM_TYPEOF(note), capacity));
        }
        crew_start(&crew, capacity == 2 ? ON_THREAD : ON_GOROUTINE, send_notes, NULL);
        for (;; got++) {
            loam_select_case cases[] = {receives(notes[0], &in_heap[0]),
                                        receives(notes[1], &in_heap[1])};
            int i = loam_select(cases, 2, true);
            if (!cases[i].received) {
                break;
            }
            item_check(in_heap[i].what);
            EXPECT_EQ(in_heap[i].what->id % 2, i);
            if (got % 8 == 0) {
                loam_yield();
            }
        }
        while (chan_try_recv(notes[1], &in_heap[1])) {
            item_check(in_heap[1].what);
            got++;
        }
        EXPECT_EQ(got, go_scaled(3000));
        crew_join(&crew);
    }
    atomic_store(&stop, true);
    thread_join(collector);
}

/* ---- what ends the program ---- */

static void child_select_send_closed(void)
{
    uint64_t value = 1;
    loam_chan *c = chan_bytes(8, 1);
    loam_select_case cases[] = {receives(NULL, &value), sends(c, &value)};
    loam_chan_close(c);
    loam_select(cases, 2, true);
}

static void child_try_send_closed(void)
{
    uint64_t value = 1;
    loam_chan *c = chan_bytes(8, 0);
    loam_chan_close(c);
    chan_try_send(c, &value);
}

static void select_to_send(void *arg)
{
    uint64_t value = 1;
    loam_select_case cases[] = {receives(chan[0], &value), sends(chan[1], &value)};
    (void)arg;
    loam_select(cases, 2, true);
}

static void child_close_under_select(void)
{
    chans_make(0);
    go(select_to_send, NULL);
    loam_sleep(MILLISECONDS(20));
    loam_chan_close(chan[1]);
    loam_sleep(MILLISECONDS(2000));
}

static const struct child_case children[] = {
    {"select_send_closed", child_select_send_closed},
    {"try_send_closed", child_try_send_closed},
    {"close_under_select", child_close_under_select},
};

static void what_ends_the_program(void)
{
    struct child c;
    for (size_t i = 0; i < COUNT_OF(children); i++) {
        child_run(&c, children[i].name, NULL, 30);
        EXPECT_CHILD_ABORTED(&c);
        EXPECT_CONTAINS(c.text, "clos");
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    start_watching();
    RUN_BOTH(nothing_is_ready);
    RUN_BOTH(what_is_ready_is_done);
    RUN_BOTH(the_lot_is_fair);
    RUN_BOTH(the_same_twice);
    RUN_BOTH(waits_for_each_kind);
    RUN_BOTH(the_same_several_times_parked);
    RUN_BOTH(sixty_five_thousand_cases);
    RUN_BOTH(a_thousand_channels);
    RUN_BOTH(talk_in_traffic);
    RUN(crossed);
    RUN_BOTH(closed_under_all);
    RUN_BOTH(elements_with_pointers);
    RUN(what_ends_the_program);
    go_all_ended();
    return test_end();
}
