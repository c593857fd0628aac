/* test_os_stack.c - leaving one stack for another, and what has memory.
 *
 * Claim   A switch keeps all that a called function keeps, and how floating point rounds, for each stack apart; the chain of frames of a
 *         stack that was left can be walked to its first one; a guard is not to be touched; the lowest page with memory is found
 *         over holes.
 * Oracle  What was put into the registers; fegetround; the pages that were written.
 */
#include "os/os.h"

#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { STACK_BYTES = 256 << 10, STACKS = 3, ROUNDS = 1000, MAIN = STACKS };

/* Switches go past the sanitizers' notion of a stack. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CAN_SWITCH = 0 };
#else
enum { CAN_SWITCH = 1 };
#endif

static uintptr_t left_at[STACKS + 1]; /* [MAIN]: the test's own stack */
static size_t page;

static char *map(size_t bytes)
{
    char *low = os_map(bytes);
    assert_non_null(low);
    return low;
}

/* Not inlined: more values live over the switch than there are registers. */
static __attribute__((noinline)) uint64_t work(size_t self, size_t other, uint64_t seed)
{
    uint64_t v[12];
    for (size_t i = 0; i < 12; i++) {
        v[i] = (seed * (i + 3)) ^ i;
    }
    double d[4] = {(double)seed, (double)seed + 1, (double)seed + 2, (double)seed + 3};
    uint64_t got = (uintptr_t)os_switch(&left_at[self], left_at[other], (void *)(uintptr_t)seed);
    for (size_t i = 0; i < 12; i++) {
        if (v[i] != ((seed * (i + 3)) ^ i) || d[i % 4] != (double)seed + (double)(i % 4)) {
            abort();
        }
    }
    return got;
}

/* Gives back what it was given, plus its number. */
static void echo(void *arg)
{
    size_t self = (size_t)(uintptr_t)arg;
    static const int modes[] = {FE_TOWARDZERO, FE_UPWARD, FE_DOWNWARD};
    if (fegetround() != FE_TONEAREST) { /* as who prepared it had it */
        abort();
    }
    fesetround(modes[self]);
    for (uint64_t got = 0;;) {
        got = work(self, MAIN, got + self);
        if (fegetround() != modes[self]) {
            abort();
        }
    }
}

static void test_registers_and_rounding(void **state)
{
    (void)state;
    if (!CAN_SWITCH) {
        skip();
    }
    for (size_t i = 0; i < STACKS; i++) {
        left_at[i] = os_switch_prepare((uintptr_t)map(STACK_BYTES) + STACK_BYTES, echo);
        assert_int_equal(work(MAIN, i, i), i);
    }
    for (uint64_t round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < STACKS; i++) {
            assert_int_equal(work(MAIN, i, round), round + i);
            assert_int_equal(fegetround(), FE_TONEAREST);
        }
    }
}

/* -- walking ----------------------------------------------------------------------------------- */

enum { DEPTH = 20 };

static __attribute__((noinline)) uint64_t descend(size_t depth)
{
    volatile uint64_t more = depth;
    return depth == 0 ? work(0, MAIN, 7) : descend(depth - 1) + more;
}

static void go_deep(void *arg)
{
    (void)arg;
    for (;;) {
        (void)descend(DEPTH);
    }
}

static void test_a_left_stack_is_walked_to_its_end(void **state)
{
    (void)state;
    if (!CAN_SWITCH) {
        skip();
    }
    void *pcs[64];
    os_backtrace_prepare();
    left_at[0] = os_switch_prepare((uintptr_t)map(STACK_BYTES) + STACK_BYTES, go_deep);
    assert_int_equal(work(MAIN, 0, 0), 7);
    size_t n = os_backtrace_of(left_at[0], pcs, 64);
    /* work, DEPTH + 1 of descend, go_deep, and where a stack begins */
    assert_true(n >= DEPTH + 3 && n <= DEPTH + 4);
    for (size_t i = 2; i < DEPTH + 1; i++) {
        assert_ptr_equal(pcs[i], pcs[1 + DEPTH / 2]); /* each called by the one above */
    }
    assert_int_equal(os_backtrace_of(left_at[0], pcs, 5), 5);
}

/* -- memory ------------------------------------------------------------------------------------ */

static void test_a_guard_is_not_to_be_touched(void **state)
{
    (void)state;
    enum { PAGES = 8 };
    for (size_t at = 0; at < PAGES; at++) {
        char *low = map(PAGES * page);
        assert_true(os_guard(low + 2 * page, 3 * page));
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            signal(SIGSEGV, SIG_DFL);
            ((volatile char *)low)[at * page] = 1;
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(!(WIFEXITED(status) && WEXITSTATUS(status) == 0), at >= 2 && at < 5);
        munmap(low, PAGES * page);
    }
}

static void test_lowest_resident(void **state)
{
    (void)state;
    enum { PAGES = 300 };
    static const struct {
        size_t touched[4], lowest;
    } cases[] = {
        {{PAGES, PAGES, PAGES, PAGES}, PAGES}, /* none */
        {{299, 299, 299, 299}, 299},
        {{299, 298, 297, 290}, 290},
        {{299, 240, 299, 299}, 240}, /* within the window */
        {{299, 237, 235, 180}, 180}, /* over the end of one */
        {{240, 240, 240, 240}, 240},
        {{299, 100, 299, 299}, 299}, /* a hole that nobody looks over */
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        char *low = map(PAGES * page);
        os_huge(low, PAGES * page, false);
        for (size_t i = 0; i < 4; i++) {
            if (cases[c].touched[i] < PAGES) {
                low[cases[c].touched[i] * page] = 1;
            }
        }
        uintptr_t lowest = os_lowest_resident((uintptr_t)low, (uintptr_t)(low + PAGES * page));
        assert_int_equal((lowest - (uintptr_t)low) / page, cases[c].lowest);
        munmap(low, PAGES * page);
    }
    char *low = map(PAGES * page);
    os_huge(low, PAGES * page, false);
    memset(low + page, 1, (PAGES - 1) * page);
    assert_int_equal(os_lowest_resident((uintptr_t)low, (uintptr_t)(low + PAGES * page)),
                     (uintptr_t)(low + page));
    munmap(low, PAGES * page);
}

int main(void)
{
    page = os_page_size();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_registers_and_rounding),
        cmocka_unit_test(test_a_left_stack_is_walked_to_its_end),
        cmocka_unit_test(test_a_guard_is_not_to_be_touched),
        cmocka_unit_test(test_lowest_resident),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
