/* test_os_pager.c - pages that are brought when they are touched.
 *
 * Claim   Who touches a watched page that was taken waits until it is put, in a call of the system too, and finds what was put; a page
 *         that is there is not put over; a refusal leaves everything where it was.
 * Oracle  What was written before.
 */
#include "os/os.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { PAGES = 16, AWAY = 8 };

static char *memory, *away, *fill;
static size_t page;
static _Atomic uint32_t asked;

/* Puts `fill` wherever somebody waits. */
static void *pager(void *arg)
{
    for (;;) {
        uintptr_t at = os_pager_next();
        add_rlx(&asked, 1u);
        if (!os_pager_put((void *)at, fill, page)) {
            abort();
        }
    }
    return arg;
}

static int begin(void **state)
{
    pthread_t t;
    (void)state;
    page = os_page_size();
    memory = os_map(PAGES * page);
    away = os_map(AWAY * page);
    fill = os_map(page);
    if (memory == NULL || away == NULL || fill == NULL) {
        return -1;
    }
    memset(fill, 'f', page);
    if (!os_pager_open()) {
        printf("skip: all of it (no userfaultfd that moves pages and sees the kernel's faults)\n");
        exit(0);
    }
    return os_pager_watch(away, AWAY * page) && pthread_create(&t, NULL, pager, NULL) == 0 ? 0 : -1;
}

static void test_taken_and_put(void **state)
{
    (void)state;
    memset(memory, 'm', PAGES * page);
    assert_true(os_pager_watch(memory, PAGES * page));
    assert_true(os_pager_take(away, memory + page, 2 * page));
    assert_int_equal(away[0], 'm');
    assert_int_equal(away[2 * page - 1], 'm');
    assert_false(os_resident(memory + page));
    assert_true(os_resident(memory));
    assert_true(os_pager_put(memory + page, fill, page));
    assert_int_equal(memory[page], 'f');
    memory[page] = 'x';
    assert_true(os_pager_put(memory + page, fill, page)); /* it is there */
    assert_int_equal(memory[page], 'x');
    assert_int_equal(load_rlx(&asked), 0);
    assert_int_equal(memory[2 * page], 'f'); /* brought by the thread */
    assert_int_equal(load_rlx(&asked), 1);
    os_discard(away, 2 * page);
    assert_true(os_pager_unwatch(memory, PAGES * page));
}

static void test_kernel_waits_too(void **state)
{
    int ends[2];
    (void)state;
    memset(memory, 'm', PAGES * page);
    assert_true(os_pager_watch(memory, page));
    assert_true(os_pager_take(away, memory, page));
    assert_int_equal(pipe(ends), 0);
    uint32_t before = load_rlx(&asked);
    assert_int_equal(write(ends[1], "hello", 5), 5);
    assert_int_equal(read(ends[0], memory + 1, 5), 5);
    assert_memory_equal(memory, "fhellof", 7);
    assert_int_equal(load_rlx(&asked), before + 1);
    close(ends[0]);
    close(ends[1]);
    os_discard(away, page);
    assert_true(os_pager_unwatch(memory, page));
}

/* What is not watched is nobody's business; where a page is none is put. */
static void test_refused(void **state)
{
    (void)state;
    memset(memory, 'm', PAGES * page);
    memset(fill, 'f', page);
    assert_true(os_pager_watch(memory, 2 * page));
    os_discard(memory + page, page);
    assert_false(os_pager_take(away, memory,
                               2 * page)); /* the second page is a hole: the first comes back */
    assert_int_equal(memory[0], 'm');
    assert_false(os_resident(away));
    assert_true(os_pager_unwatch(memory, 2 * page));
    assert_false(os_pager_put(memory + page, fill, page));
    assert_int_equal(memory[page], 0);
    store_rlx(&os_fail_at, INT64_C(1));
    assert_false(os_pager_watch(memory, page));
    store_rlx(&os_fail_at, INT64_C(1));
    assert_false(os_pager_take(away, memory, page));
    assert_int_equal(memory[0], 'm');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken_and_put),
        cmocka_unit_test(test_kernel_waits_too),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, begin, NULL);
}
