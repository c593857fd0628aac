/* test_phase.c - holding the phase, and closing it.
 *
 * Claim   While the phase is closed nobody is inside and it may be changed; everybody who holds it sees one phase;
 *         a handler that interrupts a holder holds too, and one that interrupts a waiting thread waits; nobody is lost.
 * Oracle  Counts of who is inside, kept by the threads themselves.
 */
#include "gc/gc.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>
#include <loam.h>

#define THREADS 6
#define SECONDS 2

static _Atomic bool stop, closed;
static _Atomic uint64_t entered, nested, wrong;
static _Atomic uint32_t inside;

static void hold_once(struct m *m, int spin)
{
    struct phase_hold h = gc_hold_phase(m);
    if (h.phase != GC_OFF) {
        add_acqrel(&inside, 1u);
        for (int i = 0; i < spin; i++) {
            if (load_sc(&closed) || load_acq(&gc.phase) != h.phase) {
                add_rlx(&wrong, UINT64_C(1));
            }
        }
        sub_acqrel(&inside, 1u);
        add_rlx(&entered, UINT64_C(1));
    }
    gc_release_phase(m, h);
}

/* As a store of the program's handler over busy code. */
static void on_signal(int signo)
{
    (void)signo;
    struct m *m = m_self;
    if (m != NULL && m_busy(m) != 0) {
        m_enter_shallow(m);
        hold_once(m, 3);
        m_leave_shallow(m);
        add_rlx(&nested, UINT64_C(1));
    }
}

static void *hold_main(void *arg)
{
    assert_int_equal(loam_attach(), 0);
    struct m *m = m_self;
    for (unsigned i = (unsigned)(uintptr_t)arg; !load_rlx(&stop); i++) {
        m_enter(m);
        hold_once(m, i % 50 == 0 ? 5000 : 20);
        m_leave(m);
    }
    return NULL;
}

static void *signal_main(void *arg)
{
    const pthread_t *threads = arg;
    for (unsigned i = 0; !load_rlx(&stop); i++) {
        (void)pthread_kill(threads[i % THREADS], SIGUSR1);
        os_sleep_ns(20000);
    }
    return NULL;
}

static void test_closed_means_nobody_inside(void **state)
{
    (void)state;
    pthread_t threads[THREADS], signals;
    uint64_t closings = 0;
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    assert_int_equal(sigaction(SIGUSR1, &sa, NULL), 0);
    assert_int_equal(loam_attach(), 0);
    loam_set_gc_percent(-1);
    store_rel(&gc.phase, (uint32_t)GC_MARK); /* no cycle runs, and none will */
    for (uintptr_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, hold_main, (void *)i), 0);
    }
    assert_int_equal(pthread_create(&signals, NULL, signal_main, threads), 0);
    for (int64_t end = os_nanotime() + SECONDS * INT64_C(1000000000); os_nanotime() < end;) {
        gc_close_phase();
        store_sc(&closed, true);
        assert_int_equal(load_sc(&inside), 0);
        store_rel(&gc.phase, (uint32_t)(closings % 2 == 0 ? GC_END : GC_MARK));
        assert_int_equal(load_sc(&inside), 0);
        store_sc(&closed, false);
        gc_open_phase();
        closings++;
        os_sleep_ns(closings % 10 == 0 ? 2000000 : 50000);
    }
    store_sc(&stop, true);
    assert_int_equal(pthread_join(signals, NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    store_rel(&gc.phase, (uint32_t)GC_OFF);
    assert_int_equal(load_rlx(&wrong), 0);
    assert_true(load_rlx(&entered) > 1000);
    assert_true(load_rlx(&nested) > 10);
    assert_true(closings > 10);
    assert_int_equal(load_rlx(&m_self->hold), 0);
}

/* GC_OFF is not held: who closes does not wait for who decides by it. */
static void test_off_is_not_held(void **state)
{
    (void)state;
    struct m *m = m_self;
    m_enter(m);
    struct phase_hold h = gc_hold_phase(m);
    assert_int_equal(h.phase, GC_OFF);
    assert_false(h.entered);
    gc_close_phase();
    gc_open_phase();
    gc_release_phase(m, h);
    m_leave(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_closed_means_nobody_inside),
        cmocka_unit_test(test_off_is_not_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
