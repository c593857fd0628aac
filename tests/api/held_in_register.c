/* A thread that enters loam_enter_blocking may hold the only pointer to an object in a register that calls preserve.  It
 * stays alive as long as the thread is blocked, also when a stop of all threads (fork, gcstoptheworld) meets the thread
 * on its way in.
 *
 * TEST_LABEL: quick
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1,clobberfree=1 | | 60
 * TEST_RUN: fork | GODEBUG=clobberfree=1 | --fork 1 | 90 */
#include "../support/test.h"

#include <sys/wait.h>

#include "../support/heap.h"
#include "../support/threads.h"

#if !defined(__GNUC__) || defined(__clang__) || !(defined(__x86_64__) || defined(__aarch64__))
int main(int argc, char **argv)
{
    test_begin(argc, argv);
    test_skip("this compiler cannot reserve a register");
    return test_end();
}
#else

typedef struct item {
    uint64_t id;
    uint64_t check;
} item;
LOAM_TYPE_NOSCAN(item);

/* The compiler uses it for nothing else in this file, and saves it nowhere; the library does where it needs it. */
#ifdef __x86_64__
register uintptr_t held __asm__("r12");
#else
register uintptr_t held __asm__("x27");
#endif

static _Atomic(uint64_t) cycles; /* finished */
static _Atomic(bool) stop;
static _Atomic(size_t) slow_entries;

static void hold_new_item(void *arg)
{
    item *it = LOAM_NEW(item);
    (void)arg;
    EXPECT_NOT_NULL(it);
    it->id = 7;
    it->check = rng_mix(7);
    held = (uintptr_t)it;
}

/* In and out, until entering took long: so it was held up. Then the thread is blocked. */
static NOINLINE void enter_when_stopped(void)
{
    for (;;) {
        uint64_t start = now_ns();
        loam_enter_blocking();
        if (now_ns() - start > 10000 || atomic_load(&stop)) {
            return;
        }
        loam_exit_blocking();
    }
}

static NOINLINE void hold_while_blocked(void)
{
    call_deep(hold_new_item, NULL);
    enter_when_stopped();
    scrub_stack();
    /* Nothing is called here: it might save the register on the stack. */
    uint64_t enough = atomic_load(&cycles) + 2;
    while (atomic_load(&cycles) < enough && !atomic_load(&stop)) {
    }
    loam_exit_blocking();
    const item *it = (const item *)held;
    EXPECT_EQ(it->id, 7);
    EXPECT_EQ(it->check, rng_mix(7));
    atomic_fetch_add(&slow_entries, 1);
}

static void *hold_until_stop(void *arg)
{
    uintptr_t callers = held; /* who called us relies on it */
    EXPECT_EQ(loam_attach(), 0);
    while (!atomic_load(&stop)) {
        hold_while_blocked();
    }
    held = callers;
    return arg;
}

static void fork_once(void)
{
    int status = 0;
    pid_t pid = fork();
    EXPECT_MSG(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        _exit(0);
    }
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
}

static void while_threads_are_stopped(void)
{
    bool forks = test_number("fork", 0) != 0;
    pthread_t t[2];
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        t[i] = thread_start(hold_until_stop, NULL);
    }
    for (uint64_t start = now_ns(); seconds_since(start) < (double)test_number("seconds", 2);) {
        if (forks) {
            fork_once();
        }
        loam_gc();
        atomic_fetch_add(&cycles, 1);
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        thread_join(t[i]);
    }
    printf("  %zu times held up\n", atomic_load(&slow_entries));
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (TEST_SANITIZED || getenv("TEST_EMULATOR") != NULL) {
        test_skip("a reserved register under a sanitizer; fork of threads under qemu-user");
        return test_end();
    }
    RUN(while_threads_are_stopped);
    return test_end();
}
#endif
