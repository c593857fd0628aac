/* The first thread's stack grows below what its limit allowed when the thread was attached, if the program raises the
 * limit: what only such frames hold stays alive.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 60
 * TEST_RUN: forked | GODEBUG=clobberfree=1 GOGC=5 | --forked 1 | 60
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 60 */
#include "../support/test.h"

#include <sys/resource.h>
#include <sys/wait.h>

#include "../support/heap.h"
#include "../support/items.h"

enum { MIB = 1 << 20, FRAME = 16 * 1024 };

static NOINLINE void hold_below(size_t frames)
{
    item *volatile held = item_new(frames, item_new(frames + 1, NULL));
    volatile char frame[FRAME];
    frame[0] = frame[FRAME - 1] = 1;
    if (frames == 0) {
        for (int i = 0; i < 3; i++) {
            loam_gc();
            for (uint64_t k = 0; k < 10000; k++) {
                item_new(k, NULL);
            }
        }
    } else {
        hold_below(frames - 1);
    }
    item_check(held);
    EXPECT_EQ(held->next->id, frames + 1);
    item_check(held->next);
    EXPECT_EQ(frame[0], 1);
}

static NOINLINE void only_go_down(size_t frames)
{
    volatile char frame[FRAME];
    frame[0] = frame[FRAME - 1] = 1;
    if (frames > 0) {
        only_go_down(frames - 1);
    }
    EXPECT_EQ(frame[0], 1);
}

/* An emulator's stack has the size that it began with. */
static bool stack_grows(const struct rlimit *low, const struct rlimit *high)
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        EXPECT_EQ(setrlimit(RLIMIT_STACK, low), 0);
        EXPECT_EQ(setrlimit(RLIMIT_STACK, high), 0);
        only_go_down(16 * MIB / FRAME);
        _exit(0);
    }
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void limit_raised_after_attaching(void)
{
    struct rlimit limit;
    EXPECT_EQ(getrlimit(RLIMIT_STACK, &limit), 0);
    if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < 64 * MIB) {
        printf("skip: the stack's limit may not be raised\n");
        return;
    }
    rlim_t before = limit.rlim_cur;
    struct rlimit low = limit, high = limit;
    low.rlim_cur = MIB;
    high.rlim_cur = 64 * MIB;
    if (!stack_grows(&low, &high)) {
        printf("skip: the stack does not grow\n");
        return;
    }
    EXPECT_EQ(setrlimit(RLIMIT_STACK, &low), 0);
    item_new(1, NULL); /* attached */
    EXPECT_EQ(setrlimit(RLIMIT_STACK, &high), 0);
    hold_below(16 * MIB / FRAME);
    limit.rlim_cur = before;
    EXPECT_EQ(setrlimit(RLIMIT_STACK, &limit), 0);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (test_number("forked", 0) !=
        0) { /* a daemon: the child goes on, in which the library starts */
        int status = 0;
        pid_t pid = fork();
        EXPECT_MSG(pid >= 0, "fork: %s", strerror(errno));
        if (pid != 0) {
            EXPECT_EQ(waitpid(pid, &status, 0), pid);
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        }
    }
    RUN(limit_raised_after_attaching);
    return test_end();
}
