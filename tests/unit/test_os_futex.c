/* test_os_futex.c - the mutex, sleeping and waking, clocks.
 *
 * Claim   The mutex excludes, loses no wake-up and ends free; a wait ends by wake, change or time.
 * Oracle  A plain counter that only the mutex protects.
 */
#include "os/os.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define THREADS 8
#define ROUNDS 20000
#define MS INT64_C(1000000)

static struct mutex mu;
static uint64_t counter; /* under mu */

static void *count_main(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 16 != 0 || !mutex_try_lock(&mu)) {
            mutex_lock(&mu);
        }
        counter++;
        if (i % 1000 == 0) {
            os_sleep_ns(10000); /* so that others come to sleep */
        }
        mutex_unlock(&mu);
    }
    return NULL;
}

static void test_mutex_excludes(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, count_main, NULL), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    assert_int_equal(counter, (uint64_t)THREADS * ROUNDS);
    assert_false(mutex_is_held(&mu));
}

static void test_try_lock(void **state)
{
    (void)state;
    struct mutex own = {0};
    assert_true(mutex_try_lock(&own));
    assert_true(mutex_is_held(&own));
    assert_true(mutex_may_be_mine(&own));
    assert_false(mutex_try_lock(&own));
    mutex_unlock(&own);
    assert_false(mutex_may_be_mine(&own));
    assert_true(mutex_try_lock(&own));
    mutex_unlock(&own);
    assert_false(mutex_is_held(&own));
}

static void test_wait_ends_by_time_and_by_change(void **state)
{
    (void)state;
    _Atomic uint32_t word = 5;
    int64_t start = os_nanotime();
    errno = 77;
    os_futex_wait(&word, 4, -1); /* not 4: no sleep */
    os_futex_wait(&word, 5, 0);
    os_futex_wait(&word, 5, 20 * MS);
    assert_int_equal(errno, 77);
    int64_t took = os_nanotime() - start;
    assert_true(took >= 20 * MS);
}

struct turn {
    _Atomic uint32_t word;
};

static void *turn_main(void *arg)
{
    struct turn *t = arg;
    for (uint32_t i = 1; i < 2000; i += 2) {
        while (load_acq(&t->word) != i) { /* acquire: pairs with the other side's store */
            os_futex_wait(&t->word, i - 1, -1);
        }
        store_rel(&t->word, i + 1); /* release: pairs with the other side's load */
        os_futex_wake(&t->word, 1);
    }
    return NULL;
}

static void test_wake_is_not_lost(void **state)
{
    (void)state;
    static struct turn turn;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, turn_main, &turn), 0);
    for (uint32_t i = 0; i < 2000; i += 2) {
        while (load_acq(&turn.word) != i) { /* acquire: pairs with turn_main */
            os_futex_wait(&turn.word, i - 1, -1);
        }
        store_rel(&turn.word, i + 1); /* release: pairs with turn_main */
        os_futex_wake(&turn.word, 1);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(load_rlx(&turn.word), 2000);
}

static void test_clocks(void **state)
{
    (void)state;
    int64_t wall = os_walltime();
    assert_true(wall > INT64_C(1500000000) * 1000 * MS);
    int64_t mono = os_nanotime();
    int64_t cpu = os_thread_cputime();
    int64_t all = os_process_cputime();
    os_sleep_ns(5 * MS);
    os_sleep_ns(-1);
    assert_true(os_nanotime() - mono >= 5 * MS);
    volatile unsigned work = 0;
    for (unsigned i = 0; i < 3000000; i++) {
        work += i;
    }
    (void)work;
    assert_true(os_thread_cputime() > cpu);
    assert_true(os_process_cputime() > all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_try_lock),
        cmocka_unit_test(test_mutex_excludes),
        cmocka_unit_test(test_wait_ends_by_time_and_by_change),
        cmocka_unit_test(test_wake_is_not_lost),
        cmocka_unit_test(test_clocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
