/* test_trace.c - the ring of the trace.
 *
 * Claim   What is put by a thread and by signal handlers over it comes out whole, each one's own in the order in which they
 *         put it, and nothing twice; what does not come out is counted as dropped. A ring that is full takes nothing. Slots
 *         are used again for ever, past the end of the numbers too.
 * Oracle  Events carry their number and its complement; numbers of each writer rise, and their sum is what was put.
 * Replay  --seed N
 */
#include "world/trace.h"

#include "world/world.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define MAIN TRACE_ASSIST
#define HANDLER TRACE_ANSWER

static struct trace_ring *ring;
static struct trace_source source;

static int fresh(void **state)
{
    (void)state;
    ring = calloc(1, sizeof *ring);
    assert_non_null(ring);
    ring->tid = 77;
    source.own = ring;
    store_rel(&source.ring, ring);
    return 0;
}

static int gone(void **state)
{
    (void)state;
    store_rlx(&source.ring, NULL);
    free(ring);
    return 0;
}

static void put(enum trace_kind kind, uint64_t number)
{
    trace_add(&source, kind, (int64_t)number, (int64_t)number + 1, number, ~number);
}

static void check(const struct trace_event *e)
{
    assert_int_equal(e->tid, 77);
    assert_int_equal(e->b, ~e->a);
    assert_int_equal(e->begin, e->a);
    assert_int_equal(e->end, e->a + 1);
}

static void full(void **state)
{
    struct trace_event e;
    (void)state;
    for (uint64_t i = 0; i < TRACE_SLOTS + 10; i++) {
        put(MAIN, i);
    }
    assert_int_equal(load_rlx(&ring->dropped), 10);
    for (uint64_t i = 0; i < TRACE_SLOTS; i++) {
        assert_true(trace_take(ring, &e));
        check(&e);
        assert_int_equal(e.a, i);
    }
    assert_false(trace_take(ring, &e));
    put(MAIN, 5);
    assert_true(trace_take(ring, &e));
    assert_int_equal(e.a, 5);
}

static void past_the_end_of_the_numbers(void **state)
{
    struct trace_event e;
    (void)state;
    uint32_t near = 0u - TRACE_SLOTS - 100;
    store_rlx(&ring->head, near);
    store_rlx(&ring->tail, near);
    for (uint64_t i = 0; i < 2 * TRACE_SLOTS; i++) {
        put(MAIN, i);
        assert_true(trace_take(ring, &e));
        check(&e);
        assert_int_equal(e.a, i);
        assert_false(trace_take(ring, &e));
    }
    assert_int_equal(load_rlx(&ring->dropped), 0);
}

static void off(void **state)
{
    struct trace_event e;
    (void)state;
    store_rlx(&source.ring, NULL);
    assert_int_equal(trace_begin(&source), 0);
    trace_end(&source, MAIN, 0, 0, 0);
    trace_now(&source, MAIN, 0, 0);
    put(MAIN, 0);
    assert_false(trace_take(ring, &e));
}

/* -- a writer, its handlers, a reader ---------------------------------------------------------- */

static uint64_t handled; /* the handler's; read when it cannot run any more */
static _Atomic bool done;
static uint64_t put_by_main;

static void on_signal(int signo)
{
    (void)signo;
    for (int i = 0; i < 3; i++) {
        put(HANDLER, handled++);
    }
}

static void *write_events(void *arg)
{
    (void)arg;
    while (!load_acq(&done)) {
        put(MAIN, put_by_main++);
    }
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    return NULL;
}

static void *signal_it(void *writer)
{
    for (int i = 0; i < 20000; i++) {
        pthread_kill(*(pthread_t *)writer, SIGUSR1);
        if (i % 64 == 0) {
            os_sleep_ns(10000);
        }
    }
    store_rel(&done, true); /* release: pairs with write_events */
    return NULL;
}

struct seen {
    uint64_t next_main, next_handler, taken;
};

static bool take_one(struct seen *s)
{
    struct trace_event e;
    if (!trace_take(ring, &e)) {
        return false;
    }
    uint64_t *next = e.kind == MAIN ? &s->next_main : &s->next_handler;
    check(&e);
    assert_true(e.kind == MAIN || e.kind == HANDLER);
    assert_true(e.a >= *next);
    *next = e.a + 1;
    s->taken++;
    return true;
}

static void with_handlers_over_it(void **state)
{
    (void)state;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
    struct seen seen = {0};
    pthread_t writer, signaller;
    assert_int_equal(pthread_create(&writer, NULL, write_events, NULL), 0);
    assert_int_equal(pthread_create(&signaller, NULL, signal_it, &writer), 0);
    while (!load_acq(&done)) { /* acquire: pairs with signal_it */
        (void)take_one(&seen);
    }
    pthread_join(signaller, NULL);
    pthread_join(writer, NULL);
    while (take_one(&seen)) {
    }
    assert_true(handled > 0);
    assert_int_equal(seen.taken + load_rlx(&ring->dropped), put_by_main + handled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(full, fresh, gone),
        cmocka_unit_test_setup_teardown(past_the_end_of_the_numbers, fresh, gone),
        cmocka_unit_test_setup_teardown(off, fresh, gone),
        cmocka_unit_test_setup_teardown(with_handlers_over_it, fresh, gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
