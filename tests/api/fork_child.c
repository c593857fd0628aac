/* After fork the child has a working heap: it allocates, collects, starts threads, runs finalizers, forks again, and
 * finds the parent's structures whole, also when the fork fell into a running cycle.  The parent goes on.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 90 */
#include "../support/test.h"

#include <spawn.h>

#include "../support/child.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static item *in_static;

static void *short_thread(void *arg)
{
    EXPECT_EQ(list_check(list_new(500)), 500);
    loam_gc();
    return arg;
}

static _Atomic(size_t) finalized;

static void count_finalized(void *obj, void *arg)
{
    (void)arg;
    EXPECT_EQ(list_check(obj), 1);
    atomic_fetch_add(&finalized, 1);
}

static void build_finalized(void *arg)
{
    (void)arg;
    for (size_t i = 0; i < 200; i++) {
        EXPECT_EQ(loam_set_finalizer(item_new(i, NULL), count_finalized, NULL), 0);
    }
}

static NOINLINE void live_as_child(const item *parents, size_t length)
{
    EXPECT_EQ(list_check(parents), length);
    EXPECT_EQ(list_check(in_static), length);
    item *mine = list_new(2000);
    loam_gc();
    EXPECT_EQ(list_check(parents), length);
    EXPECT_EQ(list_check(in_static), length);
    EXPECT_EQ(list_check(mine), 2000);
    LOAM_SET(in_static, mine);
    loam_gc();
    EXPECT_EQ(list_check(in_static), 2000);
}

static void allocates_and_collects(void)
{
    item *list = list_new(1000);
    LOAM_SET(in_static, list);
    for (int i = 0; i < 10; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            live_as_child(list, 1000);
            _exit(0);
        }
        child_wait(pid);
        EXPECT_EQ(list_check(list), 1000);
        loam_gc();
    }
}

static void starts_threads_and_runs_finalizers(void)
{
    item *list = list_new(1000);
    LOAM_SET(in_static, list);
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t t[4];
        for (size_t i = 0; i < COUNT_OF(t); i++) {
            t[i] = thread_start(short_thread, NULL);
        }
        for (size_t i = 0; i < COUNT_OF(t); i++) {
            thread_join(t[i]);
        }
        atomic_store(&finalized, 0);
        call_deep(build_finalized, NULL);
        COLLECT_UNTIL(20, atomic_load(&finalized) >= 190);
        live_as_child(list, 1000);
        _exit(0);
    }
    child_wait(pid);
}

static void forks_again(void)
{
    item *list = list_new(1000);
    LOAM_SET(in_static, list);
    pid_t pid = fork();
    if (pid == 0) {
        loam_gc();
        pid_t grandchild = fork();
        if (grandchild == 0) {
            live_as_child(list, 1000);
            _exit(0);
        }
        child_wait(grandchild);
        live_as_child(list, 1000);
        _exit(0);
    }
    child_wait(pid);
}

/* The parent's finalizers and cleanups that were set before the fork are the child's too. */
static void inherits_finalizers(void)
{
    atomic_store(&finalized, 0);
    int percent = loam_set_gc_percent(-1);
    call_deep(build_finalized, NULL);
    pid_t pid = fork();
    if (pid == 0) {
        COLLECT_UNTIL(20, atomic_load(&finalized) >= 190);
        _exit(0);
    }
    child_wait(pid);
    COLLECT_UNTIL(20, atomic_load(&finalized) >= 190);
    loam_set_gc_percent(percent);
}

/* ---- while the parent's threads are at work ---- */

static _Atomic(bool) stop;

static void *collect_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return NULL;
}

static void *allocate_until_stop(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        EXPECT_EQ(list_check(list_new(100)), 100);
    }
    return NULL;
}

static void during_cycles(void)
{
    static struct team team;
    item *list = list_new(1000);
    LOAM_SET(in_static, list);
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 3, allocate_until_stop, NULL);
    for (size_t i = 0; i < test_scaled(30); i++) {
        pid_t pid = fork();
        if (pid == 0) {
            live_as_child(list, 1000);
            _exit(0);
        }
        child_wait(pid);
        EXPECT_EQ(list_check(list), 1000);
    }
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* vfork and posix_spawn: the child shares the memory and must not disturb it. */
static void spawned(void)
{
    extern char **environ;
    static struct team team;
    char *const arguments[] = {(char[]){"true"}, NULL};
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    team_start(&team, 2, allocate_until_stop, NULL);
    for (size_t i = 0; i < 30; i++) {
        pid_t pid = -1;
        int err = posix_spawnp(&pid, "true", NULL, NULL, arguments, environ);
        EXPECT_EQ(err, 0);
        child_wait(pid);
    }
    atomic_store(&stop, true);
    team_join(&team);
    thread_join(collector);
}

/* fork in a thread that is not the main one: that thread is the child's only one. */
static void *fork_in_thread(void *arg)
{
    item *list = list_new(1000);
    pid_t pid = fork();
    if (pid == 0) {
        LOAM_SET(in_static, list);
        live_as_child(list, 1000);
        thread_run(short_thread, NULL);
        _exit(0);
    }
    child_wait(pid);
    EXPECT_EQ(list_check(list), 1000);
    return arg;
}

static void from_another_thread(void)
{
    for (int i = 0; i < 5; i++) {
        thread_run(fork_in_thread, NULL);
    }
}

/* Several threads at once, each between loam_enter_blocking and loam_exit_blocking: one that forks is stopped by another
 * that does. */
static _Atomic(size_t) blocked_done;

static void *fork_blocked(void *arg)
{
    item *list = list_new(20);
    for (size_t i = 0; i < test_scaled(100); i++) {
        loam_enter_blocking();
        pid_t pid = fork();
        if (pid == 0) {
            loam_exit_blocking();
            EXPECT_EQ(list_check(list), 20);
            list_new(20);
            _exit(0);
        }
        child_wait(pid);
        loam_exit_blocking();
        EXPECT_EQ(list_check(list), 20);
        list_new(20);
    }
    atomic_fetch_add(&blocked_done, 1);
    return arg;
}

static void by_threads_that_block(void)
{
    pthread_t t[4];
    atomic_store(&blocked_done, 0);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        t[i] = thread_start(fork_blocked, NULL);
    }
    WAIT_FOR(40, atomic_load(&blocked_done) == COUNT_OF(t));
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        thread_join(t[i]);
    }
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (getenv("TEST_EMULATOR") != NULL) {
        test_skip("fork of several threads under qemu-user, which fails an assertion of its own");
        return test_end();
    }
    RUN(allocates_and_collects);
    RUN(starts_threads_and_runs_finalizers);
    RUN(forks_again);
    RUN(inherits_finalizers);
    RUN(during_cycles);
    RUN(spawned);
    RUN(from_another_thread);
    RUN(by_threads_that_block);
    return test_end();
}
