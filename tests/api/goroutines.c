/* Goroutines run, end, wait for each other, sleep no shorter than asked, are numbered and named; keep errno and what
 * their locals hold while they are parked; come from plain threads and from goroutines, by the hundred thousand; and a
 * fork beside them or within one leaves a child that works.
 *
 * In the release step alone: under ThreadSanitizer it passes, but its clocks take up to 10 GB (see go_most).
 *
 * TEST_LABEL: stress
 * TEST_RUN: default | | | 90
 * TEST_RUN: one_proc | GOMAXPROCS=1 | | 90
 * TEST_RUN: four_procs | GOMAXPROCS=4 GOGC=10 | | 90
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 90
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1 | | 90
 * TEST_RUN: stress | GODEBUG=gcstress=1,clobberfree=1 | | 90 | stress */
#include "../support/test.h"

#include <execinfo.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <loam/sched.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

static _Atomic(size_t) ran;

static void count_run(void *arg)
{
    (void)arg;
    atomic_fetch_add(&ran, 1);
}

/* Where goroutines wait until a case lets them go. */
static loam_chan *gate;

static void gate_make(void)
{
    LOAM_SET(gate, loam_chan_make_bytes(0, 0));
    EXPECT_NOT_NULL(gate);
    atomic_store(&ran, 0);
}

static void wait_at_gate(void *arg)
{
    loam_chan *g = gate;
    count_run(arg);
    EXPECT(!loam_chan_recv(g, NULL));
}

/* ---- running and ending ---- */

static void write_after_a_while(void *arg)
{
    loam_sleep(MILLISECONDS(2));
    *(uint64_t *)arg +=
        1; /* plain: the end of the goroutine orders it before the return of loam_run */
}

static void run_waits_for_the_end(void)
{
    uint64_t here = 0;
    for (uint64_t i = 0; i < 20; i++) {
        go_run(write_after_a_while, &here);
        EXPECT_EQ(here, i + 1);
    }
    atomic_store(&ran, 0);
    go_run(count_run, NULL);
    EXPECT_EQ(atomic_load(&ran), 1);
}

static void no_function(void)
{
    static void (*volatile none)(void *);
    loam_go_options options = {"nothing", 0};
    size_t before = loam_num_goroutine();
    EXPECT_ERRNO(loam_go(none, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_run(none, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_go_with(&options, none, NULL), -1, EINVAL);
    EXPECT_ERRNO(loam_go_with(NULL, none, NULL), -1, EINVAL);
    EXPECT_EQ(loam_num_goroutine(), before);
}

/* loam_run returns, what the goroutine has started goes on. */
static void start_one_that_waits(void *arg)
{
    go(wait_at_gate, arg);
    go(count_run, NULL);
}

static void others_go_on(void)
{
    size_t before = loam_num_goroutine();
    for (int i = 0; i < 20; i++) {
        gate_make();
        go_run(start_one_that_waits, NULL);
        PARK_UNTIL(20, atomic_load(&ran) == 2);
        PARK_UNTIL(20, loam_num_goroutine() == before + 1);
        loam_chan_close(gate);
        PARK_UNTIL(20, loam_num_goroutine() == before);
    }
}

struct depth {
    size_t left;
    size_t seen;
};

static void run_deeper(void *arg)
{
    struct depth *d = arg;
    if (d->left > 0) {
        struct depth below = {d->left - 1, 0};
        go_run(run_deeper, &below);
        d->seen = below.seen + 1;
    }
}

static void run_within_run(void)
{
    struct depth d = {300, 0};
    size_t before = loam_num_goroutine();
    go_run(run_deeper, &d);
    EXPECT_EQ(d.seen, 300);
    EXPECT_EQ(loam_num_goroutine(), before);
}

/* Each starts two more and does not wait for them. */
static void branch(void *arg)
{
    uintptr_t height = (uintptr_t)arg;
    atomic_fetch_add(&ran, 1);
    if (height > 0) {
        go(branch, (void *)(height - 1));
        go(branch, (void *)(height - 1));
    }
}

static void started_by_each_other(void)
{
    uintptr_t height = 12;
    while (((size_t)2 << height) > go_most(test_scaled(20000))) {
        height--;
    }
    atomic_store(&ran, 0);
    go(branch, (void *)height);
    PARK_UNTIL(30, atomic_load(&ran) == ((size_t)2 << height) - 1);
}

/* ---- numbers ---- */

enum { NUMBERED = 1500 };
static uint64_t numbers[3 * NUMBERED];

static void note_number(void *arg)
{
    uint64_t *slot = arg;
    uint64_t before = loam_goroutine_id();
    EXPECT_NE(before, 0);
    loam_yield();
    EXPECT_EQ(loam_goroutine_id(), before);
    loam_sleep(1000);
    EXPECT_EQ(loam_goroutine_id(), before);
    *slot = before;
    atomic_fetch_add(&ran, 1);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void numbered_once(void)
{
    EXPECT_EQ(loam_goroutine_id(), 0);
    atomic_store(&ran, 0);
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        go(note_number, &numbers[i]);
        if ((i + 1) % NUMBERED == 0) { /* the next ones have used stacks */
            PARK_UNTIL(30, atomic_load(&ran) == i + 1);
            go_all_ended();
        }
    }
    EXPECT_EQ(loam_goroutine_id(), 0);
    qsort(numbers, COUNT_OF(numbers), sizeof numbers[0], by_value);
    for (size_t i = 1; i < COUNT_OF(numbers); i++) {
        EXPECT_LT(numbers[i - 1], numbers[i]);
    }
}

/* ---- yielding and sleeping ---- */

static _Atomic(size_t) turn;
static _Atomic(size_t) yields;

static void take_turns(void *arg)
{
    size_t me = (size_t)(uintptr_t)arg;
    for (size_t round = 0; round < go_scaled(5000); round++) {
        while (atomic_load(&turn) % 2 != me) {
            loam_yield();
            atomic_fetch_add(&yields, 1);
        }
        atomic_fetch_add(&turn, 1);
    }
    atomic_fetch_add(&ran, 1);
}

static void yield_lets_others_run(void)
{
    atomic_store(&ran, 0);
    atomic_store(&turn, 0);
    go(take_turns, (void *)0);
    go(take_turns, (void *)1);
    PARK_UNTIL(60, atomic_load(&ran) == 2);
    EXPECT_EQ(atomic_load(&turn), 2 * go_scaled(5000));
}

static void yield_alone(void)
{
    for (size_t i = 0; i < go_scaled(10000); i++) {
        loam_yield();
    }
}

static void no_sleep_at_all(void)
{
    uint64_t start = now_ns();
    for (int i = 0; i < 1000; i++) {
        loam_sleep(0);
        loam_sleep(-1);
        loam_sleep(INT64_MIN);
    }
    EXPECT_LT(seconds_since(start), 5);
}

static void sleep_long_enough(void)
{
    struct rng rng = rng_stream(3);
    for (int i = 0; i < 20; i++) {
        int64_t ns = (int64_t)rng_below(&rng, 5000000);
        uint64_t start = now_ns();
        loam_sleep(ns);
        EXPECT_GE(now_ns() - start, ns);
    }
}

static void sleep_some(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    for (int i = 0; i < 3; i++) {
        int64_t ns = (int64_t)rng_below(&rng, 50000000);
        uint64_t start = now_ns();
        loam_sleep(ns);
        EXPECT_GE(now_ns() - start, ns);
    }
    atomic_fetch_add(&ran, 1);
}

static void many_sleep(void)
{
    size_t count = go_most(test_scaled(20000));
    uint64_t start = now_ns();
    atomic_store(&ran, 0);
    for (size_t i = 0; i < count; i++) {
        go(sleep_some, (void *)i);
    }
    PARK_UNTIL(30, atomic_load(&ran) == count);
    printf("  %zu slept three times up to 50 ms in %.3f s\n", count, seconds_since(start));
}

/* Those who sleep long do not keep back one who sleeps shortly, in whichever order they lie down. */
static void sleep_very_long(void *arg)
{
    count_run(arg);
    loam_sleep(arg != NULL ? INT64_MAX : INT64_MAX / 2);
    FAIL("awake");
}

static void child_long_sleepers(void)
{
    for (int i = 0; i < 50; i++) {
        go(sleep_very_long, i % 2 == 0 ? &ran : NULL);
    }
    PARK_UNTIL(20, atomic_load(&ran) == 50);
    uint64_t start = now_ns();
    for (int i = 0; i < 20; i++) {
        go_run(write_after_a_while, &(uint64_t){0});
    }
    EXPECT_LT(seconds_since(start), 10);
    EXPECT_EQ(loam_num_goroutine(), 50);
}

/* ---- options ---- */

static char *goroutines_text(void)
{
    static char text[1 << 20];
    int fd = memfd_create("goroutines", MFD_CLOEXEC);
    EXPECT_GE(fd, 0);
    EXPECT_EQ(loam_write_goroutines(fd), 0);
    ssize_t got = pread(fd, text, sizeof text - 1, 0);
    EXPECT_GE(got, 0);
    text[got] = '\0';
    close(fd);
    return text;
}

static void names(void)
{
    char name[64];
    const char longest[] = "0123456789abcdef0123456789ABCDEF0123456789";
    gate_make();
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "the worker %d of fifty", i);
        go_named(name, wait_at_gate, NULL);
    }
    memset(name, 'x', sizeof name - 1); /* it was copied */
    go_named(longest, wait_at_gate, NULL);
    go_named("", wait_at_gate, NULL);
    go_named("a name with %s%n%d in it", wait_at_gate, NULL);
    EXPECT_EQ(loam_go_with(NULL, wait_at_gate, NULL), 0);
    PARK_UNTIL(20, atomic_load(&ran) == 54);
    loam_sleep(MILLISECONDS(5));
    const char *text = goroutines_text();
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "the worker %d of fifty", i);
        EXPECT_CONTAINS(text, name);
    }
    EXPECT_CONTAINS(text, "a name with %s%n%d in it");
    EXPECT_CONTAINS(text, "0123456789abcdef0123456789ABCDE");
    EXPECT_MSG(strstr(text, "0123456789abcdef0123456789ABCDEF") == NULL,
               "more than 31 bytes of it");
    loam_chan_close(gate);
    go_all_ended();
    EXPECT_MSG(strstr(goroutines_text(), "of fifty") == NULL, "what has ended is listed");
}

static void reports_that_cannot_be_written(void)
{
    gate_make();
    go_named("somebody", wait_at_gate, NULL);
    PARK_UNTIL(20, atomic_load(&ran) == 1);
    EXPECT_ERRNO(loam_write_goroutines(-1), -1, EBADF);
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (full >= 0) {
        EXPECT_ERRNO(loam_write_goroutines(full), -1, ENOSPC);
        close(full);
    }
    loam_chan_close(gate);
}

/* While they start, park and end. */
static void reports_beside(void)
{
    atomic_store(&ran, 0);
    size_t count = go_most(test_scaled(5000));
    for (size_t i = 0; i < count; i++) {
        go(sleep_some, (void *)i);
        if (i % 50 == 0) {
            goroutines_text();
        }
    }
    while (atomic_load(&ran) < count) {
        goroutines_text();
        loam_yield();
    }
}

static NOINLINE uint64_t use_stack(size_t bytes)
{
    volatile char *frame = __builtin_alloca(bytes);
    uint64_t sum = 0;
    for (size_t i = bytes; i > 0; i -= i < 512 ? i : 512) {
        frame[i - 1] = (char)i;
    }
    for (size_t i = bytes; i > 0; i -= i < 512 ? i : 512) {
        sum += frame[i - 1] == (char)i;
    }
    return sum - (bytes + 511) / 512;
}

/* Down in frames of its own, with a collection at the bottom. */
static NOINLINE size_t descend(size_t frames)
{
    volatile char frame[900];
    item *mine = item_new(frames, NULL);
    frame[frames % sizeof frame] = (char)frames;
    size_t below = 0;
    if (frames > 0) {
        below = descend(frames - 1);
    } else {
        loam_gc();
    }
    item_check(mine);
    EXPECT_EQ(frame[frames % sizeof frame], (char)frames);
    return below + 1;
}

static void use_default_stack(void *arg)
{
    EXPECT_EQ(use_stack(200 * 1024), 0);
    EXPECT_EQ(descend(TEST_SANITIZED ? 40 : 120), TEST_SANITIZED ? 41 : 121);
    count_run(arg);
}

static void use_eight_mib(void *arg)
{
    EXPECT_EQ(use_stack(7 << 20), 0);
    EXPECT_EQ(descend(go_scaled(4000)), go_scaled(4000) + 1);
    count_run(arg);
}

/* What the smallest has room for: the library's own calls, and the signal that reaches running threads. */
static void use_smallest_stack(void *arg)
{
    for (size_t i = 0; i < go_scaled(300); i++) {
        item_check(item_new(i, NULL));
        loam_yield();
    }
    loam_gc();
    count_run(arg);
}

static void stack_sizes(void)
{
    static const size_t small[] = {1, 7, 4095, 4096, 4097, 8192, 12345, 16384, 65537};
    loam_go_options options = {NULL, 0};
    atomic_store(&ran, 0);
    for (size_t i = 0; i < COUNT_OF(small); i++) {
        options.stack_bytes = small[i];
        EXPECT_EQ(loam_go_with(&options, use_smallest_stack, NULL), 0);
    }
    PARK_UNTIL(60, atomic_load(&ran) == COUNT_OF(small));
    options.stack_bytes = 0;
    EXPECT_EQ(loam_go_with(&options, use_default_stack, NULL), 0);
    options.stack_bytes = 256 * 1024;
    EXPECT_EQ(loam_go_with(&options, use_default_stack, NULL), 0);
    options.stack_bytes = 8 << 20;
    EXPECT_EQ(loam_go_with(&options, use_eight_mib, NULL), 0);
    options.stack_bytes = (8 << 20) + 1;
    EXPECT_EQ(loam_go_with(&options, use_eight_mib, NULL), 0);
    PARK_UNTIL(60, atomic_load(&ran) == COUNT_OF(small) + 4);
}

static void absurd_stack_sizes(void)
{
    static const size_t gib = (size_t)1 << 30;
    const size_t too_much[] = {64 * gib + 1, 65 * gib, SIZE_MAX, SIZE_MAX - 4095, SIZE_MAX / 2 + 1};
    loam_go_options options = {"giant", 0};
    for (size_t i = 0; i < COUNT_OF(too_much); i++) {
        options.stack_bytes = too_much[i];
        EXPECT_ERRNO(loam_go_with(&options, count_run, NULL), -1, EINVAL);
    }
    atomic_store(&ran, 0);
    size_t started = 0;
    for (size_t size = gib; size <= 64 * gib; size *= 8) {
        options.stack_bytes = size;
        int got = loam_go_with(&options, use_default_stack, NULL);
        /* A sanitizer, an emulator or a limit may leave less address space. */
        EXPECT_MSG(got == 0 || (errno == ENOMEM && (TEST_SANITIZED || emulated())), "%zu bytes: %s",
                   size, strerror(errno));
        started += got == 0;
    }
    PARK_UNTIL(60, atomic_load(&ran) == started);
    /* Address space that ended ones had comes back: together more than there is. */
    for (int i = 0; i < 3000 && !TEST_SANITIZED && !emulated(); i++) {
        options.stack_bytes = 64 * gib;
        EXPECT_MSG(loam_go_with(&options, count_run, NULL) == 0, "number %d: %s", i,
                   strerror(errno));
        PARK_UNTIL(60, atomic_load(&ran) == started + (size_t)i + 1);
        PARK_UNTIL(60, loam_num_goroutine() <= 1);
    }
}

static NOINLINE uint64_t fall_for_ever(uint64_t n)
{
    volatile char frame[256];
    frame[n % sizeof frame] = (char)n;
    uint64_t below = n < UINT64_MAX ? fall_for_ever(n + 1) : 0;
    return below + (uint64_t)frame[n % sizeof frame];
}

static void fall(void *arg)
{
    *(volatile uint64_t *)arg = fall_for_ever(0);
}

static void child_overflow(void)
{
    static uint64_t sink;
    go_named("the bottomless", fall, &sink);
    for (;;) {
        loam_sleep(MILLISECONDS(100));
    }
}

static void child_overflow_small(void)
{
    static uint64_t sink;
    loam_go_options options = {"the bottomless", 16384};
    EXPECT_EQ(loam_go_with(&options, fall, &sink), 0);
    for (;;) {
        loam_sleep(MILLISECONDS(100));
    }
}

static void beyond_its_stack(void)
{
    static const char *const names[] = {"overflow", "overflow_small"};
    struct child c;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        child_run(&c, names[i], NULL, 40);
        /* A sanitizer has the last word, and exits. */
        EXPECT_MSG(!c.timed_out && (WIFSIGNALED(c.status) || (TEST_SANITIZED && c.status != 0)),
                   "status %#x, it said: %s", (unsigned)c.status, c.text);
        EXPECT_CONTAINS(c.text, "the bottomless");
    }
}

/* ---- what goes with a goroutine ---- */

/* Noinline: a compiler may keep errno's address over a call. */
static NOINLINE void errno_set(int value)
{
    errno = value;
}

static NOINLINE int errno_get(void)
{
    return errno;
}

static void keep_errno(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    for (size_t i = 0; i < go_scaled(300); i++) {
        int mine = (int)rng_between(&rng, 1, 130);
        errno_set(mine);
        switch (rng_below(&rng, 4)) {
        case 0:
            loam_sleep((int64_t)rng_below(&rng, 20000));
            break;
        case 1:
            EXPECT_EQ(close(-1), (uint64_t)-1); /* somebody's EBADF */
            errno_set(mine);
            loam_yield();
            break;
        default:
            loam_yield();
        }
        int now = errno_get();
        EXPECT_EQ(now, mine);
        errno = mine + 1; /* in one function, around a park */
        loam_yield();
        now = errno;
        EXPECT_EQ(now, mine + 1);
    }
    atomic_fetch_add(&ran, 1);
}

static void errno_goes_along(void)
{
    size_t count = 100;
    atomic_store(&ran, 0);
    for (size_t i = 0; i < count; i++) {
        go(keep_errno, (void *)i);
    }
    PARK_UNTIL(60, atomic_load(&ran) == count);
}

static NOINLINE uint64_t jump_over_parks(struct rng *rng)
{
    jmp_buf env;
    volatile uint64_t came = 0;
    int got = setjmp(env);
    if (got < 5) {
        char volatile frame[64];
        frame[0] = (char)got;
        loam_yield();
        came += 1 + (uint64_t)(frame[0] - got);
        if (rng_below(rng, 2) == 0) {
            loam_sleep(1000);
        }
        longjmp(env, got + 1);
    }
    return came;
}

static void jump(void *arg)
{
    struct rng rng = rng_stream((uintptr_t)arg);
    for (int i = 0; i < 20; i++) {
        EXPECT_EQ(jump_over_parks(&rng), 5);
    }
    atomic_fetch_add(&ran, 1);
}

static void longjmp_within(void)
{
    atomic_store(&ran, 0);
    for (size_t i = 0; i < 50; i++) {
        go(jump, (void *)i);
    }
    PARK_UNTIL(60, atomic_load(&ran) == 50);
}

/* The stack is as the ABI wants it, its unwinding ends, floating point is as on a thread. */
static void ordinary_c(void *arg)
{
    void *frames[64];
    char text[128];
    volatile double third = 1.0 / 3;
    volatile long double big = 1e300L * 1e10L;
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
    EXPECT_EQ(frame % 16, 0);
    int depth = TEST_SANITIZED ? 1 : backtrace(frames, COUNT_OF(frames));
    EXPECT_MSG(depth >= 1 && depth < 32, "a backtrace of %d", depth);
    snprintf(text, sizeof text, "%.10f %.3Le %s", third * 3, big, "x");
    EXPECT_STR_EQ(text, "1.0000000000 1.000e+310 x");
    count_run(arg);
}

static void ordinary_c_runs(void)
{
    void *frames[4];
    (void)backtrace(frames, COUNT_OF(frames)); /* loads what it needs here */
    atomic_store(&ran, 0);
    for (size_t i = 0; i < 20; i++) {
        go_run(ordinary_c, NULL);
    }
    EXPECT_EQ(atomic_load(&ran), 20);
}

/* ---- what they hold ---- */

static _Atomic(bool) stop;

static void hold_on_stack(void *arg)
{
    item *mine[3];
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        mine[i] = item_new((uintptr_t)arg + i, NULL);
    }
    wait_at_gate(NULL);
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        item_check(mine[i]);
        EXPECT_EQ(mine[i]->id, (uintptr_t)arg + i);
    }
    atomic_fetch_add(&ran, 1);
}

static void parked_ones_hold(void)
{
    size_t count = go_most(test_scaled(10000));
    gate_make();
    for (size_t i = 0; i < count; i++) {
        go(hold_on_stack, (void *)(10 * i));
    }
    PARK_UNTIL(60, atomic_load(&ran) == count);
    for (int i = 0; i < 3; i++) {
        loam_gc();
        list_new(test_scaled(10000));
    }
    loam_chan_close(gate);
    PARK_UNTIL(60, atomic_load(&ran) == 2 * count);
}

/* Their stacks are searched no longer, whether they are used again or not. */
static void hold_watched(void *arg)
{
    struct watch *w = arg;
    item *mine[20];
    size_t number = atomic_fetch_add(&ran, 1);
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        mine[i] = item_new(i, NULL);
        watch_set(w, number * COUNT_OF(mine) + i, mine[i]);
    }
    loam_yield();
    for (size_t i = 0; i < COUNT_OF(mine); i++) {
        item_check(mine[i]);
    }
}

static void ended_ones_do_not(void)
{
    struct watch w;
    size_t count = 100;
    watch_init(&w, count * 20);
    atomic_store(&ran, 0);
    for (size_t i = 0; i < count; i++) {
        go(hold_watched, &w);
    }
    go_all_ended();
    EXPECT_EQ(atomic_load(&ran), count);
    EXPECT_MOST_DIE(&w);
}

/* arg is held although the function has forgotten it, and before it runs. */
static void check_and_forget(void *arg)
{
    item_check(arg);
    arg = NULL;
    scrub_stack();
    wait_at_gate(arg);
}

struct watch_start {
    struct watch *watch;
    size_t count;
};

static void start_with_args(void *arg)
{
    struct watch_start *s = arg;
    for (size_t i = 0; i < s->count; i++) {
        item *it = item_new(i, NULL);
        watch_set(s->watch, i, it);
        go(check_and_forget, it);
    }
}

static void arg_is_kept(void)
{
    struct watch w;
    size_t count = 1000;
    gate_make();
    watch_init(&w, count);
    call_deep(start_with_args, &(struct watch_start){&w, count});
    loam_gc();
    PARK_UNTIL(60, atomic_load(&ran) == count);
    EXPECT_ALL_LIVE(&w);
    EXPECT_ALL_LIVE(&w);
    loam_chan_close(gate);
    go_all_ended();
    EXPECT_MOST_DIE(&w);
}

static void *collect_until_stop(void *arg)
{
    while (!atomic_load(&stop)) {
        loam_gc();
    }
    return arg;
}

/* A list moves from frame to frame, from before a park to after it, while cycles run. */
static NOINLINE size_t grow_list(item *list, size_t levels)
{
    item *mine = item_new(levels, list);
    if (levels % 4 == 0) {
        loam_yield();
    }
    size_t below = levels > 0 ? grow_list(mine, levels - 1) : list_check(mine);
    item_check(mine);
    return below;
}

static void grow_lists(void *arg)
{
    for (size_t i = 0; i < go_scaled(60); i++) {
        EXPECT_EQ(grow_list(NULL, 50), 51);
    }
    count_run(arg);
}

static void collected_while_they_run(void)
{
    atomic_store(&ran, 0);
    atomic_store(&stop, false);
    pthread_t collector = thread_start(collect_until_stop, NULL);
    for (size_t i = 0; i < 50; i++) {
        go(grow_lists, NULL);
    }
    PARK_UNTIL(90, atomic_load(&ran) == 50);
    atomic_store(&stop, true);
    thread_join(collector);
}

static void collect_and_count(void *arg)
{
    item *mine = list_new(20);
    for (int i = 0; i < 3; i++) {
        loam_gc();
        EXPECT_EQ(list_check(mine), 20);
    }
    count_run(arg);
}

static void all_collect(void)
{
    atomic_store(&ran, 0);
    for (size_t i = 0; i < 30; i++) {
        go(collect_and_count, NULL);
    }
    PARK_UNTIL(60, atomic_load(&ran) == 30);
}

/* ---- plain threads ---- */

static void *start_some(void *arg)
{
    for (size_t i = 0; i < go_scaled(1000); i++) {
        go(count_run, NULL);
        if (i % 10 == 0) {
            uint64_t here = 0;
            go_run(write_after_a_while, &here);
            EXPECT_EQ(here, 1);
        }
        loam_yield();
    }
    return arg;
}

static void started_by_threads(void)
{
    pthread_t t[6];
    atomic_store(&ran, 0);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        t[i] = thread_start(start_some, NULL); /* not attached before */
    }
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        thread_join(t[i]);
    }
    PARK_UNTIL(30, atomic_load(&ran) == COUNT_OF(t) * go_scaled(1000));
    go_all_ended();
}

static void *only_this(void *arg)
{
    EXPECT_EQ(list_check(arg), 5);
    return arg;
}

static void start_a_thread(void *arg)
{
    item *list = loam_pin(list_new(5));
    EXPECT_EQ(loam_attach(), 0);
    thread_run(only_this, list);
    loam_unpin(list);
    EXPECT_EQ(list_check(list), 5);
    count_run(arg);
}

static void threads_started_by_them(void)
{
    atomic_store(&ran, 0);
    for (size_t i = 0; i < 20; i++) {
        go(start_a_thread, NULL);
    }
    PARK_UNTIL(60, atomic_load(&ran) == 20);
}

/* ---- many ---- */

static void hold_one(void *arg)
{
    item *mine = item_new((uintptr_t)arg, NULL);
    wait_at_gate(NULL);
    item_check(mine);
    EXPECT_EQ(mine->id, (uintptr_t)arg);
}

static void a_hundred_thousand(void)
{
    size_t count = test_godebug("gcstress") ? 1000 : go_most(100000);
    size_t after_first = 0;
    for (int round = 0; round < 3; round++) {
        uint64_t start = now_ns();
        go_all_ended();
        gate_make();
        for (size_t i = 0; i < count; i++) {
            go(hold_one, (void *)i);
        }
        double made = seconds_since(start);
        PARK_UNTIL(60, atomic_load(&ran) == count);
        EXPECT_EQ(loam_num_goroutine(), count);
        size_t most = resident();
        double parked = seconds_since(start);
        loam_gc();
        double collected = seconds_since(start);
        loam_chan_close(gate);
        go_all_ended();
        printf("  %zu: made %.2f s, parked %.2f s, collected %.2f s, ended %.2f s; %zu MiB\n",
               count, made, parked, collected, seconds_since(start), most >> 20);
        if (round == 0) {
            after_first = most;
        }
        /* What the first have left is used again. */
        EXPECT_LT(most, after_first + after_first / 2 + (64 << 20));
    }
}

/* GOMAXPROCS changes under them. */
static void procs_that_change(void)
{
    struct rng rng = rng_stream(8);
    int procs = loam_set_max_procs(0);
    atomic_store(&ran, 0);
    for (size_t i = 0; i < 40; i++) {
        go(grow_lists, NULL);
    }
    while (atomic_load(&ran) < 40) {
        loam_set_max_procs((int)rng_between(&rng, 1, 8));
        loam_sleep(MILLISECONDS(1));
    }
    loam_set_max_procs(procs);
    EXPECT_EQ(loam_set_max_procs(0), procs);
}

/* ---- signals ---- */

static void send_five(void *arg)
{
    for (int i = 0; i < 5; i++) {
        loam_chan_send(arg, &i);
    }
    loam_chan_close(arg);
}

static void send_and_receive(void *arg)
{
    loam_chan *c = loam_chan_make_bytes(sizeof(int), 1);
    int value = -1;
    int expected = 0;
    EXPECT_NOT_NULL(c);
    go(send_five, c);
    while (loam_chan_recv(c, &value)) {
        EXPECT_EQ(value, expected++);
    }
    EXPECT_EQ(expected, 5);
    loam_sleep(1000);
    loam_gc();
    count_run(arg);
}

static _Atomic(uint64_t) handled;

static void on_timer(int signo)
{
    int saved = errno;
    (void)signo;
    for (uint64_t i = 0; i < (test_godebug("gcstress") ? 3 : 20); i++) {
        item *it = item_new(i, NULL);
        LOAM_SET(it->next, item_new(i, NULL));
        item_check(it->next);
    }
    atomic_fetch_add(&handled, 1);
    errno = saved;
}

static void *wait_for_runs(void *arg)
{
    for (size_t i = 0; i < go_scaled(200); i++) {
        go_run(send_and_receive, NULL);
    }
    return arg;
}

/* A handler that allocates runs on whatever stack is there, in the middle of a switch, and on threads that wait. */
static void interrupted_while_they_switch(void)
{
    struct sigaction sa;
    struct sigaction before;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_timer;
    sa.sa_flags = SA_RESTART;
    sigemptyset(&sa.sa_mask);
    EXPECT_EQ(sigaction(SIGALRM, &sa, &before), 0);
    suseconds_t period = test_godebug("gcstress") ? 50000 : 1000; /* longer than the handler */
    struct itimerval often = {{0, period}, {0, period}};
    struct itimerval never = {{0, 0}, {0, 0}};
    pthread_t t[2];
    atomic_store(&ran, 0);
    EXPECT_EQ(setitimer(ITIMER_REAL, &often, NULL), 0);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        t[i] = thread_start(wait_for_runs, NULL);
    }
    for (size_t i = 0; i < 40; i++) {
        go(grow_lists, NULL);
        go(keep_errno, (void *)i);
    }
    PARK_UNTIL(90, atomic_load(&ran) == 80 + COUNT_OF(t) * go_scaled(200));
    EXPECT_EQ(setitimer(ITIMER_REAL, &never, NULL), 0);
    sleep_us(5000);
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        thread_join(t[i]);
    }
    EXPECT_EQ(sigaction(SIGALRM, &before, NULL), 0);
    EXPECT_GT(atomic_load(&handled), 0);
}

/* ---- fork ---- */

/* An ordinary thread, with no goroutines beside it. */
static NOINLINE void live_as_child(item *list, size_t length)
{
    EXPECT_EQ(loam_goroutine_id(), 0);
    EXPECT_EQ(loam_num_goroutine(), 0);
    EXPECT_EQ(list_check(list), length);
    loam_gc();
    EXPECT_EQ(list_check(list), length);
    EXPECT_EQ(list_check(list_new(500)), 500);
    loam_yield();
    loam_sleep(1000);
    atomic_store(&ran, 0);
    for (size_t i = 0; i < 20; i++) {
        go_run(send_and_receive, NULL);
    }
    EXPECT_EQ(atomic_load(&ran), 20);
    atomic_store(&ran, 0);
    for (size_t i = 0; i < 100; i++) {
        go(count_run, NULL);
    }
    PARK_UNTIL(30, atomic_load(&ran) == 100);
    EXPECT_EQ(list_check(list), length);
}

static void switch_until_stop(void *arg)
{
    item *mine = list_new(10);
    while (!atomic_load(&stop)) {
        loam_yield();
        EXPECT_EQ(list_check(mine), 10);
        list_new(5);
    }
    count_run(arg);
}

static void fork_beside_them(void)
{
    item *list = list_new(100);
    gate_make();
    atomic_store(&stop, false);
    for (size_t i = 0; i < 20; i++) {
        go(wait_at_gate, NULL);
        go(switch_until_stop, NULL);
        go(sleep_some, (void *)i);
    }
    for (size_t i = 0; i < go_scaled(20); i++) {
        pid_t pid = fork();
        if (pid == 0) {
            live_as_child(list, 100);
            if (i % 2 == 0) {
                fflush(stdout);
                exit(0);
            }
            _exit(0);
        }
        child_wait(pid);
        EXPECT_EQ(list_check(list), 100);
    }
    EXPECT_GT(loam_num_goroutine(), 20);
    atomic_store(&stop, true);
    loam_chan_close(gate);
    go_all_ended();
    EXPECT_EQ(atomic_load(&ran), 60);
}

static void fork_here(void *arg)
{
    item *list = list_new(100); /* nobody else has it */
    uint64_t id = loam_goroutine_id();
    bool again = arg != NULL;
    pid_t pid = fork();
    if (pid == 0) {
        live_as_child(list, 100);
        if (again) {
            pid = fork();
            if (pid == 0) {
                live_as_child(list, 100);
                _exit(0);
            }
            child_wait(pid);
        }
        if (id % 2 == 0) {
            exit(0);
        }
        _exit(0);
    }
    child_wait(pid);
    EXPECT_EQ(loam_goroutine_id(), id);
    EXPECT_EQ(list_check(list), 100);
    loam_yield();
    loam_gc();
    EXPECT_EQ(list_check(list), 100);
    count_run(NULL);
}

static void fork_within_one(void)
{
    gate_make();
    for (size_t i = 0; i < go_scaled(5); i++) {
        go_run(fork_here, i % 2 == 0 ? &ran : NULL);
    }
    EXPECT_EQ(atomic_load(&ran), go_scaled(5));
    /* several at a time, others beside them */
    atomic_store(&ran, 0);
    atomic_store(&stop, false);
    for (size_t i = 0; i < 5; i++) {
        go(switch_until_stop, NULL);
        go(wait_at_gate, NULL);
        go(fork_here, NULL);
    }
    PARK_UNTIL(60, atomic_load(&ran) == 10);
    atomic_store(&stop, true);
    loam_chan_close(gate);
    go_all_ended();
}

/* ---- the end of the process ---- */

static void spin(void *arg)
{
    volatile uint64_t n = 0;
    count_run(arg);
    for (;;) {
        n = n + 1;
    }
}

static void child_main_returns(void)
{
    gate_make();
    go(spin, NULL);
    go(wait_at_gate, NULL);
    go(sleep_very_long, NULL);
    PARK_UNTIL(20, atomic_load(&ran) == 3);
}

static void leave(void *arg)
{
    exit((int)(uintptr_t)arg);
}

static void child_exit_within(void)
{
    child_main_returns();
    go_run(leave, (void *)7);
    FAIL("it went on");
}

static void the_process_ends(void)
{
    struct child c;
    child_run(&c, "main_returns", NULL, 30);
    EXPECT_CHILD_PASSED(&c);
    child_run(&c, "exit_within", NULL, 30);
    EXPECT_MSG(child_exited(&c, 7), "status %#x, it said: %s", (unsigned)c.status, c.text);
}

static void very_long_sleep(void)
{
    struct child c;
    child_run(&c, "long_sleepers", NULL, 30);
    EXPECT_CHILD_PASSED(&c);
}

static const struct child_case children[] = {
    {"overflow", child_overflow},           {"overflow_small", child_overflow_small},
    {"main_returns", child_main_returns},   {"exit_within", child_exit_within},
    {"long_sleepers", child_long_sleepers},
};

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    start_watching();
    EXPECT_EQ(loam_num_goroutine(), 0);
    EXPECT_EQ(loam_goroutine_id(), 0);
    RUN_BOTH(run_waits_for_the_end);
    RUN_BOTH(no_function);
    RUN_BOTH(others_go_on);
    RUN_BOTH(run_within_run);
    RUN_BOTH(started_by_each_other);
    RUN(numbered_once);
    RUN_BOTH(yield_lets_others_run);
    RUN_BOTH(yield_alone);
    RUN_BOTH(no_sleep_at_all);
    RUN_BOTH(sleep_long_enough);
    RUN_BOTH(many_sleep);
    RUN(very_long_sleep);
    RUN_BOTH(names);
    RUN_BOTH(reports_that_cannot_be_written);
    RUN_BOTH(reports_beside);
    RUN_BOTH(stack_sizes);
    RUN_BOTH(absurd_stack_sizes);
    RUN(beyond_its_stack);
    RUN_BOTH(errno_goes_along);
    RUN(longjmp_within);
    RUN(ordinary_c_runs);
    RUN_BOTH(parked_ones_hold);
    RUN(ended_ones_do_not);
    RUN(arg_is_kept);
    RUN(collected_while_they_run);
    RUN_BOTH(all_collect);
    RUN(started_by_threads);
    RUN(threads_started_by_them);
    RUN(procs_that_change);
    RUN(interrupted_while_they_switch);
    RUN(a_hundred_thousand);
    if (emulated()) {
        test_skip("fork of several threads under qemu-user, which fails an assertion of its own");
    } else {
        RUN(fork_beside_them);
        RUN(fork_within_one);
    }
    RUN(the_process_ends);
    go_all_ended();
    return test_end();
}
