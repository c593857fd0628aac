/* A goroutine that waits for long keeps no page of its stack, and nobody can tell: its locals are as it left them, for itself,
 * for other goroutines and threads that have their addresses, for the kernel, for a fork's child; and what only they point to
 * lives. Where the system cannot do it (see README) all of that holds without it.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 120
 * TEST_RUN: one_proc | GOMAXPROCS=1 | | 120
 * TEST_RUN: at_once | GODEBUG=stacksleep=1 GOMAXPROCS=4 | | 120
 * TEST_RUN: off | GODEBUG=stacksleep=0 | | 120
 * TEST_RUN: stress | GODEBUG=gcstress=1,clobberfree=1,stacksleep=1 | | 120 | stress */
#include "../support/test.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

/* Does the kernel move pages for us? As the library asks it. */
static bool can_sleep(void)
{
    if (test_godebug("stacksleep=0") || emulated()) {
        return false;
    }
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        fd = device < 0 ? -1 : ioctl(device, _IO(0xAA, 0x00), O_CLOEXEC);
        if (device >= 0) {
            close(device);
        }
    }
    struct uffdio_api api = {.api = UFFD_API, .features = UINT64_C(1) << 16};
    bool can = fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return can;
}

static bool sleeps;

static bool is_there(const void *at)
{
    unsigned char there = 0;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    EXPECT_EQ(mincore((void *)((uintptr_t)at & ~(page - 1)), 1, &there), 0);
    return (there & 1) != 0;
}

/* ---- who waits, and has told others where its locals are ---- */

enum { MANY = 10000, NUMBERS = 4, TEXT_BYTES = 64 };

struct sleeper {
    uint64_t *numbers; /* its locals, of NUMBERS, and of TEXT_BYTES */
    char *text;
    item **pointer;
    uint64_t expected[NUMBERS];
    char expected_text[TEXT_BYTES];
    uint64_t expected_id;
    _Atomic(bool) waits;
};

static struct sleeper sleepers[MANY];
static size_t count;
static loam_chan *gate; /* closed, to let them go on */
static loam_waitgroup running;

/* Not inlined: its locals are within one page or two. */
static NOINLINE void wait_at_gate(struct sleeper *s)
{
    uint64_t numbers[NUMBERS];
    char text[TEXT_BYTES] = "as it was";
    item *pointer = item_new((uint64_t)(s - sleepers), NULL);
    for (size_t i = 0; i < NUMBERS; i++) {
        s->expected[i] = numbers[i] = (uint64_t)(s - sleepers) * NUMBERS + i;
    }
    strcpy(s->expected_text, text);
    s->expected_id = pointer->id;
    s->numbers = numbers;
    s->text = text;
    s->pointer = &pointer;
    atomic_store(&s->waits, true);
    EXPECT(!loam_chan_recv(gate, NULL));
    __asm__ volatile("" : : "r"(numbers), "r"(text), "r"(&pointer) : "memory");
    for (size_t i = 0; i < NUMBERS; i++) {
        EXPECT_EQ(numbers[i], s->expected[i]);
    }
    EXPECT_EQ(strcmp(text, s->expected_text), 0);
    item_check(pointer);
    EXPECT_EQ(pointer->id, s->expected_id);
}

static void sleeper_main(void *arg)
{
    wait_at_gate(arg);
    loam_waitgroup_done(&running);
}

static void start_sleepers(size_t n)
{
    count = n;
    LOAM_SET(gate, loam_chan_make_bytes(0, 0));
    EXPECT_NOT_NULL(gate);
    for (size_t i = 0; i < n; i++) {
        sleepers[i].numbers = NULL;
        atomic_store(&sleepers[i].waits, false);
        loam_waitgroup_add(&running, 1);
        go(sleeper_main, &sleepers[i]);
    }
    for (size_t i = 0; i < n; i++) {
        PARK_UNTIL(60, atomic_load(&sleepers[i].waits));
    }
}

static size_t asleep(void)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        n += !is_there(sleepers[i].numbers);
    }
    return n;
}

/* Where stacks sleep at all, nine of ten do. */
static void until_they_sleep(void)
{
    uint64_t start = now_ns();
    for (int i = 0; i < 4 || (sleeps && 10 * asleep() < 9 * count); i++) {
        EXPECT_MSG(seconds_since(start) < 30, "after %d cycles %zu of %zu sleep", i, asleep(),
                   count);
        loam_gc();
        loam_sleep(MICROSECONDS(200));
    }
}

static void end_sleepers(void)
{
    loam_chan_close(gate);
    loam_waitgroup_wait(&running);
}

static size_t some(void)
{
    return go_most(go_scaled(MANY));
}

static void as_they_were_left(void)
{
    start_sleepers(some());
    until_they_sleep();
    for (int i = 0; i < 3; i++) {
        loam_gc();
        list_new(test_scaled(10000)); /* where what was lost would be found again */
    }
    end_sleepers();
}

static void *write_numbers(void *arg)
{
    size_t from = (size_t)arg;
    for (size_t i = from; i < count; i += 4) {
        struct sleeper *s = &sleepers[i];
        EXPECT_EQ(s->numbers[0], s->expected[0]);
        s->numbers[1] = s->expected[1] = from;
        memset(s->text, 'x', TEXT_BYTES - 1);
        memset(s->expected_text, 'x', TEXT_BYTES - 1);
    }
    return NULL;
}

static loam_waitgroup writing;

static void write_numbers_go(void *arg)
{
    (void)write_numbers(arg);
    loam_waitgroup_done(&writing);
}

/* Four at a time, each its own: two goroutines, two threads that are not attached. */
static void written_by_others(void)
{
    start_sleepers(some());
    until_they_sleep();
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++) {
        threads[i] = thread_start(write_numbers, (void *)i);
        loam_waitgroup_add(&writing, 1);
        go(write_numbers_go, (void *)(i + 2));
    }
    for (size_t i = 0; i < 2; i++) {
        thread_join(threads[i]);
    }
    loam_waitgroup_wait(&writing);
    end_sleepers();
}

/* All of them the same one at once. */
static void *write_one(void *arg)
{
    for (size_t i = 0; i < count; i++) {
        __atomic_fetch_add(&sleepers[i].numbers[2], 1, __ATOMIC_RELAXED);
    }
    return arg;
}

static void touched_by_many_at_once(void)
{
    start_sleepers(some() / 10);
    until_they_sleep();
    pthread_t threads[4];
    for (size_t i = 0; i < COUNT_OF(threads); i++) {
        threads[i] = thread_start(write_one, NULL);
    }
    for (size_t i = 0; i < COUNT_OF(threads); i++) {
        thread_join(threads[i]);
    }
    for (size_t i = 0; i < count; i++) {
        sleepers[i].expected[2] += COUNT_OF(threads);
    }
    end_sleepers();
}

/* What only a sleeper's local points to, put there while it slept. */
static void pointers_of_others(void)
{
    start_sleepers(some());
    for (int round = 0; round < 3; round++) {
        until_they_sleep();
        for (size_t i = 0; i < count; i++) {
            struct sleeper *s = &sleepers[i];
            s->expected_id = i * 3 + (size_t)round;
            item *mine = item_new(s->expected_id, NULL);
            LOAM_SET(*s->pointer, mine);
        }
        for (int i = 0; i < 2; i++) {
            loam_gc();
            list_new(test_scaled(10000));
        }
    }
    end_sleepers();
}

/* read(2) and write(2) are given the address of a local that has no page. */
static void touched_by_the_kernel(void)
{
    int ends[2];
    start_sleepers(some() / 10);
    until_they_sleep();
    EXPECT_EQ(pipe(ends), 0);
    for (size_t i = 0; i < count; i++) {
        struct sleeper *s = &sleepers[i];
        uint64_t got;
        if (i % 2 == 0) {
            uint64_t sent = i + 5;
            EXPECT_EQ(write(ends[1], &sent, sizeof sent), (ssize_t)sizeof sent);
            EXPECT_EQ(read(ends[0], &s->numbers[3], sizeof sent), (ssize_t)sizeof sent);
            s->expected[3] = sent;
        } else {
            EXPECT_EQ(write(ends[1], s->numbers, sizeof got), (ssize_t)sizeof got);
            EXPECT_EQ(read(ends[0], &got, sizeof got), (ssize_t)sizeof got);
            EXPECT_EQ(got, s->expected[0]);
        }
    }
    close(ends[0]);
    close(ends[1]);
    end_sleepers();
}

/* What the kernel holds for a device does not sleep: that would write into a page that is nobody's. */
static void held_by_the_kernel(void)
{
    struct io_uring_params params = {0};
    start_sleepers(8);
    int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
    struct iovec held[8];
    for (size_t i = 0; i < count; i++) {
        held[i] = (struct iovec){sleepers[i].numbers, NUMBERS * sizeof(uint64_t)};
    }
    bool holds = ring >= 0 && syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, held,
                                      (unsigned)count) == 0;
    for (int i = 0; i < 6; i++) {
        loam_gc();
        loam_sleep(MILLISECONDS(5));
    }
    if (holds) {
        EXPECT_EQ(asleep(), 0);
    } else {
        printf("skip: held_by_the_kernel (io_uring: %s)\n", strerror(errno));
    }
    if (ring >= 0) {
        close(ring);
    }
    until_they_sleep();
    end_sleepers();
}

static void again_and_again(void)
{
    start_sleepers(some() / 10);
    for (int round = 0; round < 5; round++) {
        until_they_sleep();
        for (size_t i = 0; i < count; i++) {
            sleepers[i].numbers[round % NUMBERS]++;
            sleepers[i].expected[round % NUMBERS]++;
        }
    }
    end_sleepers();
}

static void in_the_child_of_a_fork(void)
{
    start_sleepers(some() / 10);
    until_they_sleep();
    write_numbers((void *)1); /* a quarter is awake */
    pid_t pid = fork();
    if (pid == 0) {
        for (size_t i = 0; i < count; i++) {
            for (size_t k = 0; k < NUMBERS; k++) {
                if (sleepers[i].numbers[k] != sleepers[i].expected[k]) {
                    _exit(1);
                }
            }
            if (strcmp(sleepers[i].text, sleepers[i].expected_text) != 0) {
                _exit(2);
            }
        }
        _exit(0);
    }
    child_wait(pid);
    end_sleepers();
}

/* New goroutines on stacks whose neighbours sleep, and deep ones. */
static NOINLINE size_t dive(size_t depth)
{
    volatile char frame[1000];
    frame[0] = (char)depth;
    return depth == 0 ? 0 : dive(depth - 1) + (size_t)(frame[0] != (char)depth);
}

static void diver(void *arg)
{
    (void)arg;
    EXPECT_EQ(dive(100), 0);
    loam_yield();
    EXPECT_EQ(dive(150), 0);
    loam_waitgroup_done(&running);
}

static void others_beside_them(void)
{
    start_sleepers(some() / 2);
    until_they_sleep();
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < some() / 10; i++) {
            loam_waitgroup_add(&running, 1);
            go(diver, NULL);
        }
        loam_gc();
    }
    end_sleepers();
}

/* Not one mapping more can be had: those that sleep wake all the same, and grow. */
static void without_mappings(void)
{
    enum { MOST = 1 << 17 };
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    start_sleepers(some() / 10);
    until_they_sleep();
    char *all = mmap(NULL, MOST * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                     0);
    EXPECT(all != MAP_FAILED);
    size_t n = 0;
    while (n + 2 < MOST && mprotect(all + n * page, page, PROT_READ) == 0) {
        n += 2;
    }
    for (size_t i = 0; i < count; i += 2) { /* each between two that sleep */
        EXPECT_EQ(sleepers[i].numbers[0], sleepers[i].expected[0]);
    }
    bool refused = n + 2 < MOST;
    for (size_t i = 0; i < 100; i++) {
        loam_waitgroup_add(&running, 1);
        if (loam_go(diver, NULL) !=
            0) { /* a stack wants a mapping where the kernel has no guards */
            loam_waitgroup_done(&running);
        }
    }
    end_sleepers();
    EXPECT_EQ(munmap(all, MOST * page), 0);
    if (!refused) {
        printf("skip: without_mappings (the kernel gives more than %d)\n", MOST / 2);
    }
}

/* Each costs less than a page. */
static void memory_goes_back(void)
{
    if (!sleeps || test_godebug("gcstress") || some() < MANY) {
        return;
    }
    start_sleepers(some());
    size_t awake = resident();
    until_they_sleep();
    size_t least = count * 2048;
    EXPECT_MSG(resident() + least < awake, "%zu MiB awake, %zu asleep", awake >> 20,
               resident() >> 20);
    end_sleepers();
}

/* Reports find the stack of one who sleeps. */
static void reported(void)
{
    start_sleepers(3);
    until_they_sleep();
    FILE *f = tmpfile();
    EXPECT_NOT_NULL(f);
    EXPECT_EQ(loam_write_goroutines(fileno(f)), 0);
    rewind(f);
    char line[512];
    size_t found = 0;
    while (fgets(line, sizeof line, f) != NULL) {
        found += strstr(line, "[channel receive]") != NULL;
    }
    fclose(f);
    EXPECT_EQ(found, 3);
    end_sleepers();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    start_watching();
    sleeps = can_sleep();
    if (!sleeps && !test_godebug("stacksleep=0")) {
        printf("skip: that stacks sleep (no userfaultfd that moves pages)\n");
    }
    RUN_BOTH(as_they_were_left);
    RUN_BOTH(written_by_others);
    RUN_BOTH(touched_by_many_at_once);
    RUN_BOTH(pointers_of_others);
    RUN_BOTH(touched_by_the_kernel);
    RUN(held_by_the_kernel);
    RUN_BOTH(again_and_again);
    RUN(in_the_child_of_a_fork);
    RUN_BOTH(others_beside_them);
    if (!TEST_SANITIZED) { /* they want mappings themselves */
        RUN(without_mappings);
    }
    RUN(memory_goes_back);
    RUN(reported);
    go_all_ended();
    return test_end();
}
