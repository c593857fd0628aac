/* The program's first cycle may become due in a handler that interrupted malloc, on a thread that has allocated from the
 * heap before: nothing that the collector does for it takes the C library's locks.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 120 */
#include "../support/test.h"

#include <sys/time.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/threads.h"

static volatile size_t handled;

static void allocate_in_handler(int signo)
{
    (void)signo;
    for (size_t i = 0; i < 200; i++) {
        EXPECT_NOT_NULL(loam_alloc(4096));
    }
    handled++;
    if (handled == 20) { /* where this takes longer than the timer, nothing else would run again */
        static const struct itimerval never;
        setitimer(ITIMER_REAL, &never, NULL);
    }
}

static void *sleep_on(void *arg)
{
    pause();
    return arg;
}

/* Blocks that the C library keeps in no cache of the thread: it takes its lock for each. */
static void use_malloc(void)
{
    void *blocks[64] = {NULL};
    struct rng rng = rng_stream(1);
    while (handled < 20) {
        size_t i = rng_below(&rng, COUNT_OF(blocks));
        free(blocks[i]);
        blocks[i] = malloc(rng_between(&rng, 2000, 6000));
        EXPECT_NOT_NULL(blocks[i]);
    }
}

static void first_cycle_in_handler(void)
{
    sigset_t set, old;
    struct sigaction sa = {.sa_handler = allocate_in_handler, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 200}, {0, 200}};

    EXPECT_NOT_NULL(loam_alloc(8)); /* attached */
    EXPECT_EQ(sigaction(SIGALRM, &sa, NULL), 0);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    EXPECT_EQ(pthread_sigmask(SIG_BLOCK, &set, &old), 0);
    thread_start(sleep_on, NULL); /* malloc locks nothing in a process of one thread */
    EXPECT_EQ(pthread_sigmask(SIG_SETMASK, &old, NULL), 0);
    EXPECT_EQ(setitimer(ITIMER_REAL, &often, NULL), 0);
    use_malloc();
}

static void starts_no_thread(void)
{
    static struct child c;
    for (int i = 0; i < 10; i++) {
        child_run(&c, "first_cycle_in_handler", NULL, 30);
        EXPECT_CHILD_PASSED(&c);
    }
}

int main(int argc, char **argv)
{
    static const struct child_case cases[] = {{"first_cycle_in_handler", first_cycle_in_handler}};
    test_begin(argc, argv);
    child_dispatch(cases, COUNT_OF(cases));
    if (TEST_SANITIZED) {
        test_skip("handlers over the malloc of a sanitizer");
        return test_end();
    }
    RUN(starts_no_thread);
    return test_end();
}
