/* test.h - expectations, random numbers with a printed seed, arguments, clock.
 *
 * A failed expectation prints the place, both operands and the seed, and ends the process with status 1 at once, from
 * whatever thread it is on.  Include this before anything else. */
#ifndef TESTS_SUPPORT_TEST_H
#define TESTS_SUPPORT_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#ifndef __cplusplus /* there: <atomic> */
#include <stdatomic.h>
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((__noinline__))
#define UNUSED __attribute__((__unused__))
#define NORETURN __attribute__((__noreturn__))
#define PRINTF_LIKE(format, first) __attribute__((__format__(__printf__, format, first)))
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define TEST_SANITIZED 1
#endif
#endif
#ifndef TEST_SANITIZED
#define TEST_SANITIZED 0
#endif

/* ThreadSanitizer delivers signals at the next call that it intercepts, and takes plain loads that race with
 * LOAM_SET for races, though the contract allows them: LOAD_SLOT(lvalue) is such a load. SCANS is for functions of
 * LOAM_TYPE_SCANNED, which read what the program is writing. */
#if defined(__SANITIZE_THREAD__)
#define TEST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_TSAN 1
#endif
#endif
#ifdef TEST_TSAN
#define LOAD_SLOT(slot) __atomic_load_n(&(slot), __ATOMIC_ACQUIRE)
#define SCANS __attribute__((__no_sanitize__("thread")))
#else
#define TEST_TSAN 0
#define LOAD_SLOT(slot) (*(__typeof__(slot) volatile *)&(slot))
#define SCANS
#endif

/* The process's one test: set by test_begin, read-only from then on, but for `name` (the running case). */
struct test_state {
    uint64_t seed;
    int argc;
    char **argv;
    const char *volatile name;
    uint64_t started_ns;
};

static struct test_state test_state;

/* ---- clock ---- */

static inline uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

static inline double seconds_since(uint64_t start_ns)
{
    return (double)(now_ns() - start_ns) * 1e-9;
}

static inline void sleep_us(uint64_t us)
{
    uint64_t until = now_ns() +
                     us * 1000; /* absolute: signals without end must not make it sleep for ever */
    struct timespec ts = {(time_t)(until / 1000000000), (long)(until % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) {
    }
}

/* ---- failing ---- */

PRINTF_LIKE(3, 4)
NORETURN static inline void test_fail_at(const char *file, int line, const char *format, ...)
{
    va_list ap;
    char text[2048];

    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    fflush(stdout);
    fprintf(stderr, "%s:%d: in %s: %s\n  replay: %s --seed %" PRIu64 "\n", file, line,
            test_state.name != NULL ? test_state.name : "main", text,
            test_state.argv != NULL ? test_state.argv[0] : "?", test_state.seed);
    fflush(stderr);
    if (getenv("TEST_ABORT") != NULL) {
        abort();
    }
    _exit(1);
}

#define FAIL(...) test_fail_at(__FILE__, __LINE__, __VA_ARGS__)

#define EXPECT(condition)                    \
    do {                                     \
        if (!(condition)) {                  \
            FAIL("expected %s", #condition); \
        }                                    \
    } while (0)

#define EXPECT_MSG(condition, ...) \
    do {                           \
        if (!(condition)) {        \
            FAIL(__VA_ARGS__);     \
        }                          \
    } while (0)

/* Unsigned and equality comparisons; negative values compare by their 64-bit pattern. */
#define EXPECT_CMP_(a, op, b)                                                         \
    do {                                                                              \
        const uint64_t left_ = (uint64_t)(a);                                         \
        const uint64_t right_ = (uint64_t)(b);                                        \
        if (!(left_ op right_)) {                                                     \
            FAIL("expected %s %s %s: left %" PRIu64 " (%#" PRIx64 "), right %" PRIu64 \
                 " (%#" PRIx64 "), errno %d",                                         \
                 #a, #op, #b, left_, left_, right_, right_, errno);                   \
        }                                                                             \
    } while (0)

#define EXPECT_EQ(a, b) EXPECT_CMP_(a, ==, b)
#define EXPECT_NE(a, b) EXPECT_CMP_(a, !=, b)
#define EXPECT_LT(a, b) EXPECT_CMP_(a, <, b)
#define EXPECT_LE(a, b) EXPECT_CMP_(a, <=, b)
#define EXPECT_GT(a, b) EXPECT_CMP_(a, >, b)
#define EXPECT_GE(a, b) EXPECT_CMP_(a, >=, b)

#define EXPECT_PTR_CMP_(a, op, b)                                                              \
    do {                                                                                       \
        const void *left_ = (const void *)(a);                                                 \
        const void *right_ = (const void *)(b);                                                \
        if (!(left_ op right_)) {                                                              \
            FAIL("expected %s %s %s: left %p, right %p, errno %d", #a, #op, #b, left_, right_, \
                 errno);                                                                       \
        }                                                                                      \
    } while (0)

#define EXPECT_PTR_EQ(a, b) EXPECT_PTR_CMP_(a, ==, b)
#define EXPECT_PTR_NE(a, b) EXPECT_PTR_CMP_(a, !=, b)
#define EXPECT_NULL(a) EXPECT_PTR_CMP_(a, ==, NULL)
#define EXPECT_NOT_NULL(a) EXPECT_PTR_CMP_(a, !=, NULL)

#define EXPECT_STR_EQ(a, b)                                                             \
    do {                                                                                \
        const char *left_ = (a);                                                        \
        const char *right_ = (b);                                                       \
        if (left_ == NULL || right_ == NULL || strcmp(left_, right_) != 0) {            \
            FAIL("expected %s equal to %s: left \"%s\", right \"%s\"", #a, #b,          \
                 left_ != NULL ? left_ : "(null)", right_ != NULL ? right_ : "(null)"); \
        }                                                                               \
    } while (0)

#define EXPECT_CONTAINS(text, part)                                                            \
    do {                                                                                       \
        const char *text_ = (text);                                                            \
        const char *part_ = (part);                                                            \
        if (strstr(text_, part_) == NULL) {                                                    \
            FAIL("expected \"%s\" within: %s", part_, text_[0] != '\0' ? text_ : "(nothing)"); \
        }                                                                                      \
    } while (0)

/* The call fails with this errno: `result` is the value it gave, `bad` what failure looks like. */
#define EXPECT_ERRNO(call, bad, code)                                                          \
    do {                                                                                       \
        errno = 0;                                                                             \
        const uintptr_t got_ = (uintptr_t)(call);                                              \
        const int errno_ = errno;                                                              \
        if (got_ != (uintptr_t)(bad) || errno_ != (code)) {                                    \
            FAIL("expected %s to fail with %s (%d): gave %#" PRIxPTR ", errno %d (%s)", #call, \
                 #code, (code), got_, errno_, strerror(errno_));                               \
        }                                                                                      \
    } while (0)

/* Wait until the condition holds; fail after `seconds`. */
#define WAIT_FOR(seconds, condition) WAIT_BY(seconds, condition, sleep_us(200))
#define WAIT_BY(seconds, condition, nap)                                           \
    do {                                                                           \
        const uint64_t start_ = now_ns();                                          \
        while (!(condition)) {                                                     \
            if (seconds_since(start_) > (double)(seconds)) {                       \
                FAIL("waited %g s in vain for %s", (double)(seconds), #condition); \
            }                                                                      \
            nap;                                                                   \
        }                                                                          \
    } while (0)

/* ---- random numbers: splitmix64 (Steele, Lea, Flood 2014) ---- */

struct rng {
    uint64_t state;
};

static inline uint64_t rng_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static inline uint64_t rng_next(struct rng *r)
{
    r->state += UINT64_C(0x9E3779B97F4A7C15);
    return rng_mix(r->state);
}

/* 0 <= result < bound; bound 0 gives 0. */
static inline size_t rng_below(struct rng *r, size_t bound)
{
    return bound == 0 ? 0 : (size_t)(rng_next(r) % bound);
}

/* low <= result <= high */
static inline size_t rng_between(struct rng *r, size_t low, size_t high)
{
    return low + rng_below(r, high - low + 1);
}

/* Stream number `stream` of this run's seed: one for each thread, one for each case. */
static inline struct rng rng_stream(uint64_t stream)
{
    return (struct rng){rng_mix(test_state.seed + rng_mix(stream + 1))};
}

static inline void rng_shuffle(struct rng *r, size_t *values, size_t count)
{
    for (size_t i = count; i > 1; i--) {
        size_t j = rng_below(r, i);
        size_t kept = values[i - 1];
        values[i - 1] = values[j];
        values[j] = kept;
    }
}

/* ---- arguments ---- */

/* The word after `--name`, or NULL. */
static inline const char *test_argument(const char *name)
{
    for (int i = 1; i + 1 < test_state.argc; i++) {
        const char *arg = test_state.argv[i];
        if (strncmp(arg, "--", 2) == 0 && strcmp(arg + 2, name) == 0) {
            return test_state.argv[i + 1];
        }
    }
    return NULL;
}

static inline uint64_t test_number(const char *name, uint64_t otherwise)
{
    const char *word = test_argument(name);
    return word != NULL ? strtoull(word, NULL, 0) : otherwise;
}

/* Does GODEBUG ask for `key`?  Slow modes make the loops shorter. */
static inline bool test_godebug(const char *key)
{
    const char *value = getenv("GODEBUG");
    return value != NULL && strstr(value, key) != NULL;
}

/* A loop count that the slow modes divide. */
static inline size_t test_scaled(size_t count)
{
    size_t by = test_godebug("gcstress")                        ? 50
                : test_godebug("gccheckmark") || TEST_SANITIZED ? 5
                                                                : 1;
    return count / by > 0 ? count / by : 1;
}

static inline void test_begin(int argc, char **argv)
{
    test_state.argc = argc;
    test_state.argv = argv;
    test_state.started_ns = now_ns();
    test_state.seed = test_number("seed", rng_mix(now_ns() ^ (uint64_t)getpid()) % 1000000000);
    if (test_argument("child") == NULL) {
        printf("seed %" PRIu64 "\n", test_state.seed);
        fflush(stdout);
    }
}

static inline void test_run_case(const char *name, void (*run)(void))
{
    const char *only = test_argument("only");
    if (only != NULL && strcmp(only, name) != 0) {
        return;
    }
    uint64_t start = now_ns();
    test_state.name = name;
    run();
    test_state.name = NULL;
    printf("ok %s (%.3f s)\n", name, seconds_since(start));
    fflush(stdout);
}

#define RUN(test) test_run_case(#test, test)

PRINTF_LIKE(1, 2) static inline void test_skip(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    printf("skip: ");
    vprintf(format, ap);
    printf("\n");
    va_end(ap);
}

static inline int test_end(void)
{
    printf("passed in %.2f s\n", seconds_since(test_state.started_ns));
    return fflush(stdout) == 0 ? 0 : 1;
}

#endif
