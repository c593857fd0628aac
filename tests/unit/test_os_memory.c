/* test_os_memory.c - reserved, committed, discarded memory; what is mapped; faults on demand.
 *
 * Claim   Memory is aligned and zero when promised so, refusals change nothing, os_mapped_low finds
 *         every hole and touches nothing.
 * Oracle  The addresses and the bytes themselves; holes made by hand.
 */
#include "os/os.h"

#include "base/bits.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static bool is_zero(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (p[i] != 0) {
            return false;
        }
    }
    return true;
}

static void test_reserve_is_aligned(void **state)
{
    (void)state;
    for (size_t align = os_page_size(); align <= MIB(64); align *= 2) {
        char *p = os_reserve(MIB(1), align);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p & (align - 1), 0);
        assert_true(os_commit(p, MIB(1)));
        assert_true(is_zero(p, MIB(1)));
        memset(p, 0xA5, MIB(1));
        os_release(p, MIB(1));
    }
}

static void test_reserve_leaves_nothing_behind(void **state)
{
    (void)state;
    /* Each would leave 64 MiB of address space if it were not trimmed: 200 TiB, more than there is. */
    for (int i = 0; i < 3000; i++) {
        void *p = os_reserve(MIB(1), MIB(64));
        assert_non_null(p);
        os_release(p, MIB(1));
    }
    assert_null(os_reserve(SIZE_MAX & ~(size_t)0xffff, MIB(64)));
}

static void test_commit_part_and_discard(void **state)
{
    (void)state;
    size_t page = os_page_size();
    char *p = os_reserve(16 * page, page);
    assert_non_null(p);
    os_name(p, 16 * page, "loam test");
    assert_true(os_commit(p + 4 * page, 4 * page));
    memset(p + 4 * page, 1, 4 * page);
    errno = 77;
    os_discard(p + 5 * page, 2 * page);
    assert_int_equal(errno, 77);
    assert_true(is_zero(p + 5 * page, 2 * page));
    assert_int_equal(p[4 * page], 1);
    assert_int_equal(p[8 * page - 1], 1);
    /* Committing again loses nothing. */
    assert_true(os_commit(p, 16 * page));
    assert_int_equal(p[4 * page], 1);
    assert_true(is_zero(p, 4 * page));
    os_release(p, 16 * page);
}

static void test_discard_of_locked_memory_is_zero(void **state)
{
    (void)state;
    size_t page = os_page_size();
    char *p = os_map(2 * page);
    assert_non_null(p);
    memset(p, 1, 2 * page);
    if (mlock(p, 2 * page) != 0) {
        os_release(p, 2 * page);
        skip();
    }
    os_discard(p, 2 * page);
    assert_true(is_zero(p, 2 * page));
    os_release(p, 2 * page);
}

static void test_mapped_low_finds_every_hole(void **state)
{
    (void)state;
    size_t page = os_page_size();
    const size_t npages = 3000;
    char *p = os_reserve((npages + 2) * page, page);
    assert_non_null(p);
    /* A wall at either side, so that neighbours do not matter. */
    uintptr_t low = (uintptr_t)p + page;
    uintptr_t high = low + npages * page;
    assert_int_equal(os_mapped_low(low, high), low);
    assert_int_equal(os_mapped_low(low + 8, high - 8), low + 8);
    assert_int_equal(os_mapped_low(high, high), high);

    static const size_t holes[] = {0, 1, 1023, 1024, 1025, 1976, 1977, 2500, 2998, 2999};
    for (size_t i = 0; i < sizeof(holes) / sizeof(holes[0]); i++) {
        uintptr_t hole = low + holes[i] * page;
        assert_int_equal(munmap((void *)hole, page), 0);
        assert_int_equal(os_mapped_low(low, high), hole + page);
        assert_int_equal(os_mapped_low(hole + 100, hole + page), hole + page);
        if (hole + page < high) {
            assert_int_equal(os_mapped_low(low + 8, hole + page + 8), hole + page);
        }
    }
    assert_int_equal(os_mapped_low(high - page + 16, high - 16), high - 16);
    os_release(p, (npages + 2) * page);
}

static void test_mapped_low_of_the_stack(void **state)
{
    (void)state;
    uintptr_t low = 0;
    uintptr_t high = 0;
    assert_true(os_stack_bounds(&low, &high));
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    assert_true(low < here && here < high);
    uintptr_t mapped = os_mapped_low(low, high);
    assert_true(mapped >= low && mapped <= here);
}

static void test_faults_count_down(void **state)
{
    (void)state;
    size_t page = os_page_size();
    void *p = os_reserve(page, page);
    assert_non_null(p);

    store_rlx(&os_fail_repeat, false);
    store_rlx(&os_fail_at, 2);
    assert_true(os_commit(p, page));
    assert_false(os_commit(p, page));
    assert_true(os_commit(p, page));
    assert_int_equal(load_rlx(&os_fail_at), 0);

    store_rlx(&os_fail_at, 1);
    assert_null(os_map(page));
    store_rlx(&os_fail_at, 1);
    assert_null(os_reserve(page, page));

    store_rlx(&os_fail_repeat, true);
    store_rlx(&os_fail_at, 2);
    assert_true(os_commit(p, page));
    for (int i = 0; i < 3; i++) {
        assert_false(os_commit(p, page));
    }
    store_rlx(&os_fail_repeat, false);
    store_rlx(&os_fail_at, 0);
    assert_true(os_commit(p, page));
    os_release(p, page);
}

static void test_address_limit(void **state)
{
    (void)state;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit limit;
        getrlimit(RLIMIT_AS, &limit);
        limit.rlim_cur = GIB(512);
        bool set = setrlimit(RLIMIT_AS, &limit) == 0 && getrlimit(RLIMIT_AS, &limit) == 0;
        size_t expected = limit.rlim_cur == RLIM_INFINITY ? SIZE_MAX : (size_t)limit.rlim_cur;
        _exit(!set || os_address_limit() == expected ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reserve_is_aligned),
        cmocka_unit_test(test_reserve_leaves_nothing_behind),
        cmocka_unit_test(test_commit_part_and_discard),
        cmocka_unit_test(test_discard_of_locked_memory_is_zero),
        cmocka_unit_test(test_mapped_low_finds_every_hole),
        cmocka_unit_test(test_mapped_low_of_the_stack),
        cmocka_unit_test(test_faults_count_down),
        cmocka_unit_test(test_address_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
