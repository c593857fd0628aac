/* One goroutine too many is an error that leaves all others as they are, whatever has run out: addresses for stacks, or what a limit of
 * the process allows. When some have ended there is room again. What a goroutine has locked when it returns stays locked.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60 */
#include "../support/test.h"

#include <sys/resource.h>

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/items.h"

static loam_chan *gate; /* closed, to let them go on */
static _Atomic(size_t) waiting, ended;

static void wait_at_the_gate(void *arg)
{
    item *mine = item_new(7, NULL);
    atomic_fetch_add(&waiting, 1);
    loam_chan_recv(gate, NULL);
    item_check(mine);
    atomic_fetch_add(&ended, 1);
    (void)arg;
}

static void gate_make(void)
{
    LOAM_SET(gate, loam_chan_make_bytes(0, 0));
    atomic_store(&waiting, 0);
    atomic_store(&ended, 0);
}

/* Start until it is refused; how many there are. */
static size_t start_all(const loam_go_options *options, size_t most)
{
    size_t n = 0;
    errno = 0;
    while (n < most && loam_go_with(options, wait_at_the_gate, NULL) == 0) {
        n++;
    }
    EXPECT_LT(n, most);
    EXPECT_EQ(errno, ENOMEM);
    for (int i = 0; i < 3; i++) {
        EXPECT_ERRNO(loam_go_with(options, wait_at_the_gate, NULL), -1, ENOMEM);
    }
    PARK_UNTIL(60, atomic_load(&waiting) == n);
    return n;
}

static void let_go(size_t n)
{
    loam_chan_close(gate);
    PARK_UNTIL(60, atomic_load(&ended) == n);
    go_all_ended();
}

static void no_addresses_left(void)
{
    loam_go_options giant = {"giant", (size_t)64 << 30};
    if (TEST_SANITIZED || emulated()) {
        test_skip("there is less address space");
        return;
    }
    for (int round = 0; round < 3; round++) {
        gate_make();
        size_t n = start_all(&giant, 100);
        EXPECT_GE(n, 1);
        let_go(n);
    }
}

static void under_a_limit(void)
{
    struct rlimit limit = {(rlim_t)1 << 30, (rlim_t)1 << 30};
    EXPECT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    size_t first = 0;
    for (int round = 0; round < 3; round++) {
        gate_make();
        size_t n = start_all(NULL, 1000000);
        EXPECT_GE(n, 100);
        EXPECT_GE(n, first / 2);
        first = n;
        loam_gc();
        let_go(n);
    }
}

static void no_memory_left(void)
{
    struct child c;
    if (TEST_SANITIZED || emulated()) {
        test_skip("it maps more than any limit by itself");
        return;
    }
    child_run(&c, "under_a_limit", NULL, 50);
    EXPECT_CHILD_PASSED(&c);
}

/* ---- locks that stay locked ---- */

static loam_mutex left_locked;

static void lock_and_return(void *arg)
{
    (void)arg;
    loam_mutex_lock(&left_locked);
}

static void locked_by_one_that_is_gone(void)
{
    go_run(lock_and_return, NULL);
    EXPECT(!loam_mutex_trylock(&left_locked));
    loam_mutex_unlock(&left_locked); /* it belongs to nobody */
    EXPECT(loam_mutex_trylock(&left_locked));
    loam_mutex_unlock(&left_locked);
}

static void lock_for_ever(void)
{
    go_run(lock_and_return, NULL);
    go_run(lock_and_return, NULL);
}

static void nobody_can_unlock(void)
{
    struct child c;
    if (emulated()) {
        test_skip("all asleep under qemu-user, which has threads of its own that could wake one");
        return;
    }
    child_run(&c, "lock_for_ever", NULL, 40);
    EXPECT(!c.timed_out && c.status != 0);
    EXPECT_CONTAINS(c.text, "asleep");
    EXPECT_CONTAINS(c.text, "mutex");
}

static const struct child_case children[] = {
    {"under_a_limit", under_a_limit},
    {"lock_for_ever", lock_for_ever},
};

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN_BOTH(no_addresses_left);
    RUN(no_memory_left);
    RUN_BOTH(locked_by_one_that_is_gone);
    RUN(nobody_can_unlock);
    return test_end();
}
