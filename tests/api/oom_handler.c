/* The handler of a failed allocation may itself allocate, and fail: it is not called again while it runs.  When it was
 * left by longjmp, or by switching to another stack, the next failure calls it again, however deep that is, and whatever
 * became of the memory where it ran.  No memory is used up for it: the sizes overflow.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 60 */
#include "../support/test.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <loam.h>

#include "../support/threads.h"

static _Atomic(unsigned) called;
static volatile size_t too_much = SIZE_MAX;

/* Deep in the stack, in frames that are written to. */
static NOINLINE void fail_at_depth(size_t depth)
{
    volatile char frame[40];
    memset((char *)frame, (int)depth, sizeof frame);
    if (depth == 0) {
        EXPECT_ERRNO(loam_alloc(too_much), NULL, ENOMEM);
    } else {
        fail_at_depth(depth - 1);
    }
    EXPECT_EQ(frame[7], (char)depth);
}

/* ---- it fails itself ---- */

static void fail_again(void *arg)
{
    atomic_fetch_add(&called, 1);
    for (size_t depth = 0; depth < 50; depth += 7) {
        fail_at_depth(depth);
    }
    EXPECT_NOT_NULL(loam_alloc(100));
    EXPECT_NULL(arg);
}

static void failing_in_the_handler_gives_null(void)
{
    atomic_store(&called, 0);
    loam_set_oom_handler(fail_again, NULL);
    for (unsigned i = 0; i < 100; i++) {
        EXPECT_EQ(atomic_load(&called), i);
        fail_at_depth(i % 10);
    }
}

static void *fail_on_a_thread(void *arg)
{
    for (unsigned i = 0; i < 200; i++) {
        fail_at_depth(i % 20);
    }
    return arg;
}

static void each_thread_for_itself(void)
{
    static struct team team;
    atomic_store(&called, 0);
    loam_set_oom_handler(fail_again, NULL);
    team_start(&team, 4, fail_on_a_thread, NULL);
    team_join(&team);
    EXPECT_EQ(atomic_load(&called), 4 * 200);
}

/* ---- it is left ---- */

static jmp_buf out;

static void leave(void *arg)
{
    atomic_fetch_add(&called, 1);
    fail_at_depth(3);
    EXPECT_NULL(arg);
    longjmp(out, 1);
}

static NOINLINE void fail_and_leave(size_t depth)
{
    if (setjmp(out) == 0) {
        fail_at_depth(depth);
        FAIL("the handler did not leave");
    }
}

static void left_handlers_are_called_again(void)
{
    struct rng rng = rng_stream(1);
    atomic_store(&called, 0);
    loam_set_oom_handler(leave, NULL);
    for (unsigned i = 0; i < 500; i++) { /* each deeper than the last one */
        fail_and_leave(i);
        EXPECT_EQ(atomic_load(&called), i + 1);
    }
    for (unsigned i = 500; i < 5000; i++) {
        fail_and_leave(rng_below(&rng, 300));
        EXPECT_EQ(atomic_load(&called), i + 1);
    }
}

static void replaced_after_it_was_left(void)
{
    loam_set_oom_handler(leave, NULL);
    fail_and_leave(20);
    failing_in_the_handler_gives_null();
}

/* ---- on other stacks ---- */

enum { STACK_BYTES = 128 * 1024 };

static ucontext_t home;
static ucontext_t away;

static void switch_home(void *arg)
{
    atomic_fetch_add(&called, 1);
    fail_at_depth(2);
    EXPECT_NULL(arg);
    setcontext(&home);
}

static void fail_there(void)
{
    fail_at_depth(5);
    FAIL("the handler did not leave");
}

static void return_there(void)
{
    fail_at_depth(5);
}

static void run_on(char *stack, void (*fn)(void))
{
    EXPECT_EQ(getcontext(&away), 0);
    away.uc_stack.ss_sp = stack;
    away.uc_stack.ss_size = STACK_BYTES;
    away.uc_link = &home;
    makecontext(&away, fn, 0);
    EXPECT_EQ(swapcontext(&home, &away), 0);
}

static char *stacks_map(size_t count)
{
    char *p = mmap(NULL, count * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    EXPECT(p != MAP_FAILED);
    return p;
}

/* Stack after stack, up and down, some without memory by now. */
static void stacks_that_are_gone(void)
{
    enum { STACKS = 8 };
    char *stacks = stacks_map(STACKS);
    unsigned expected = 0;
    atomic_store(&called, 0);
    loam_set_oom_handler(switch_home, NULL);
    for (unsigned i = 0; i < STACKS; i++) {
        run_on(stacks + i * STACK_BYTES, fail_there);
        EXPECT_EQ(atomic_load(&called), ++expected);
        EXPECT_EQ(munmap(stacks + i * STACK_BYTES, STACK_BYTES), 0);
        char *other = stacks_map(1);
        run_on(other, fail_there);
        EXPECT_EQ(atomic_load(&called), ++expected);
        EXPECT_EQ(munmap(other, STACK_BYTES), 0);
    }
    loam_set_oom_handler(fail_again, NULL);
    for (unsigned i = 0; i < 20; i++) {
        fail_at_depth(i);
        EXPECT_EQ(atomic_load(&called), ++expected);
    }
}

static void within_a_coroutine(void)
{
    char *stack = stacks_map(1);
    loam_set_oom_handler(fail_again, NULL);
    for (unsigned i = 0; i < 20; i++) {
        atomic_store(&called, 0);
        run_on(stack, return_there);
        EXPECT_EQ(atomic_load(&called), 1);
    }
    EXPECT_EQ(munmap(stack, STACK_BYTES), 0);
}

static void fail_on_signal(int signo)
{
    EXPECT_EQ(signo, SIGUSR1);
    fail_at_depth(5);
}

static void raise_signal(void *arg)
{
    EXPECT_NULL(arg);
    if (atomic_fetch_add(&called, 1) == 0) {
        raise(SIGUSR1);
    }
    fail_at_depth(4);
}

/* A signal that interrupts the handler has a stack of its own: once more at most for that. */
static void on_the_alternate_stack(void)
{
    stack_t alt = {.ss_sp = stacks_map(1), .ss_size = STACK_BYTES};
    struct sigaction action = {.sa_handler = fail_on_signal, .sa_flags = SA_ONSTACK};
    EXPECT_EQ(sigaltstack(&alt, NULL), 0);
    EXPECT_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    loam_set_oom_handler(raise_signal, NULL);
    for (unsigned i = 0; i < 20; i++) {
        atomic_store(&called, 0);
        fail_at_depth(i);
        EXPECT_GE(atomic_load(&called), 1);
        EXPECT_LE(atomic_load(&called), 2);
    }
    alt.ss_flags = SS_DISABLE;
    EXPECT_EQ(sigaltstack(&alt, NULL), 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(failing_in_the_handler_gives_null);
    RUN(each_thread_for_itself);
    RUN(left_handlers_are_called_again);
    RUN(replaced_after_it_was_left);
    RUN(on_the_alternate_stack);
    if (TEST_SANITIZED) {
        test_skip("stacks that a sanitizer was not told of");
        return test_end();
    }
    RUN(within_a_coroutine);
    RUN(stacks_that_are_gone);
    return test_end();
}
