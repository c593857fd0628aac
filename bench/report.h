/* report.h - options, clock, histogram and result line of every benchmark.
 *
 * Nothing here allocates: a benchmark that measures an allocator must not disturb it. The Go twins
 * have the same in go/report; both print the same keys, so that compare.py can read either.
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- clock ---------------------------------------------------------------------------------- */

/* CLOCK_MONOTONIC through the vDSO: the very clock of Go's runtime.nanotime, so that neither side
 * pays more for looking at it. */
static inline uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void sleep_ns(uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

/* ---- random numbers ------------------------------------------------------------------------- */

/* SplitMix64: the same sequence in C and in Go from the same seed. */
static inline uint64_t rng_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* A number in [0, n), n < 2^32, without a division. */
static inline uint64_t rng_below(uint64_t *state, uint64_t n)
{
    return ((rng_next(state) >> 32) * n) >> 32;
}

/* ---- histogram ------------------------------------------------------------------------------ */

/* Log-linear: each power of two is cut into HIST_STEPS equal parts, so a reported percentile is at
 * most 1/32 too high. Values from 2^40 ns (18 minutes) on fall into the last bucket; max is exact. */
enum {
    HIST_STEP_BITS = 5,
    HIST_STEPS = 1 << HIST_STEP_BITS,
    HIST_MAX_BITS = 40,
    HIST_BUCKETS = (HIST_MAX_BITS - HIST_STEP_BITS + 1) * HIST_STEPS
};

struct hist {
    uint64_t count;
    uint64_t sum;
    uint64_t max;
    uint64_t bucket[HIST_BUCKETS];
};

static inline unsigned hist_index(uint64_t value)
{
    if (value < HIST_STEPS) {
        return (unsigned)value;
    }
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HIST_STEP_BITS;
    unsigned index = (shift + 1) * HIST_STEPS + (unsigned)((value >> shift) - HIST_STEPS);
    return index < HIST_BUCKETS ? index : HIST_BUCKETS - 1;
}

/* The largest value that falls into a bucket. */
static inline uint64_t hist_upper(unsigned index)
{
    if (index < HIST_STEPS) {
        return index;
    }
    unsigned shift = index / HIST_STEPS - 1;
    return ((uint64_t)(HIST_STEPS + index % HIST_STEPS + 1) << shift) - 1;
}

static inline void hist_add(struct hist *h, uint64_t value)
{
    h->count++;
    h->sum += value;
    h->bucket[hist_index(value)]++;
    if (value > h->max) {
        h->max = value;
    }
}

static inline void hist_merge(struct hist *into, const struct hist *from)
{
    into->count += from->count;
    into->sum += from->sum;
    if (from->max > into->max) {
        into->max = from->max;
    }
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        into->bucket[i] += from->bucket[i];
    }
}

/* The value that `share` of all values do not exceed. */
static inline uint64_t hist_percentile(const struct hist *h, double share)
{
    uint64_t wanted = (uint64_t)(share * (double)h->count);
    uint64_t seen = 0;
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen > wanted) {
            return hist_upper(i) < h->max ? hist_upper(i) : h->max;
        }
    }
    return h->max;
}

/* ---- options -------------------------------------------------------------------------------- */

/* "-name value" and "-name=value", one dash or two, as Go's flag package reads them. Each option is
 * asked for by name; options_end refuses what nobody asked for, or a typing error would silently
 * measure something else. */
static struct {
    int argc;
    char **argv;
    bool taken[64];
} options;

static inline void options_begin(int argc, char **argv)
{
    if (argc > 64) {
        fprintf(stderr, "too many arguments\n");
        exit(2);
    }
    options.argc = argc;
    options.argv = argv;
}

static inline const char *option_find(const char *name, bool has_value)
{
    size_t length = strlen(name);
    for (int i = 1; i < options.argc; i++) {
        const char *arg = options.argv[i];
        if (options.taken[i] || arg[0] != '-') {
            continue;
        }
        arg += arg[1] == '-' ? 2 : 1;
        if (strncmp(arg, name, length) != 0 || (arg[length] != '\0' && arg[length] != '=')) {
            continue;
        }
        options.taken[i] = true;
        if (arg[length] == '=') {
            return arg + length + 1;
        }
        if (!has_value) {
            return "true";
        }
        if (i + 1 < options.argc) {
            options.taken[i + 1] = true;
            return options.argv[i + 1];
        }
        fprintf(stderr, "-%s needs a value\n", name);
        exit(2);
    }
    return NULL;
}

static inline const char *option_string(const char *name, const char *otherwise)
{
    const char *text = option_find(name, true);
    return text != NULL ? text : otherwise;
}

static inline double option_real(const char *name, double otherwise)
{
    const char *text = option_find(name, true);
    if (text == NULL) {
        return otherwise;
    }
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0') {
        fprintf(stderr, "-%s: %s is not a number\n", name, text);
        exit(2);
    }
    return value;
}

static inline uint64_t option_count(const char *name, uint64_t otherwise)
{
    double value = option_real(name, (double)otherwise);
    if (value < 0) {
        fprintf(stderr, "-%s: must not be negative\n", name);
        exit(2);
    }
    return (uint64_t)value;
}

static inline bool option_flag(const char *name)
{
    const char *text = option_find(name, false);
    return text != NULL && strcmp(text, "true") == 0;
}

/* Read after the named ones: the first argument that is no option. */
static inline uint64_t option_positional(uint64_t otherwise)
{
    for (int i = 1; i < options.argc; i++) {
        if (!options.taken[i] && options.argv[i][0] != '-') {
            options.taken[i] = true;
            return strtoull(options.argv[i], NULL, 10);
        }
    }
    return otherwise;
}

static inline void options_end(void)
{
    for (int i = 1; i < options.argc; i++) {
        if (!options.taken[i]) {
            fprintf(stderr, "%s: unknown argument %s\n", options.argv[0], options.argv[i]);
            exit(2);
        }
    }
}

/* ---- result --------------------------------------------------------------------------------- */

/* The largest resident set so far. From VmHWM and not ru_maxrss: that one survives exec, so it can
 * hold the peak of the program that started us. */
static inline uint64_t peak_rss_bytes(void)
{
    FILE *status = fopen("/proc/self/status", "r");
    if (status == NULL) {
        return 0;
    }
    char line[256];
    uint64_t kib = 0;
    while (fgets(line, sizeof line, status) != NULL) {
        if (sscanf(line, "VmHWM: %" SCNu64, &kib) == 1) {
            break;
        }
    }
    fclose(status);
    return kib * 1024;
}

/* The resident set now. */
static inline uint64_t resident_bytes(void)
{
    unsigned long size = 0;
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f == NULL || fscanf(f, "%lu %lu", &size, &pages) != 2) {
        fprintf(stderr, "no /proc/self/statm\n");
        exit(1);
    }
    fclose(f);
    return pages * 4096;
}

static bool result_as_json;

static inline void result_key(const char *key)
{
    if (result_as_json) {
        printf(", \"%s\": ", key);
    } else {
        printf("%-24s", key);
    }
}

static inline void result_end_of_value(void)
{
    if (!result_as_json) {
        putchar('\n');
    }
}

static inline void result_string(const char *key, const char *value)
{
    result_key(key);
    printf(result_as_json ? "\"%s\"" : "%s", value);
    result_end_of_value();
}

static inline void result_count(const char *key, uint64_t value)
{
    result_key(key);
    printf("%" PRIu64, value);
    result_end_of_value();
}

static inline void result_real(const char *key, double value)
{
    result_key(key);
    printf("%.6f", value);
    result_end_of_value();
}

/* One pair [lower bound in ns, how many] for each power of two that occurs. */
static inline void result_hist(const char *key, const struct hist *h)
{
    uint64_t octave[HIST_MAX_BITS + 1] = {0};
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        uint64_t upper = hist_upper(i);
        octave[upper == 0 ? 0 : 63 - __builtin_clzll(upper)] += h->bucket[i];
    }
    result_key(key);
    putchar('[');
    const char *separator = "";
    for (unsigned bit = 0; bit <= HIST_MAX_BITS; bit++) {
        if (octave[bit] != 0) {
            printf("%s[%" PRIu64 ", %" PRIu64 "]", separator, UINT64_C(1) << bit, octave[bit]);
            separator = ", ";
        }
    }
    putchar(']');
    result_end_of_value();
}

/* The percentiles of timed operations, under the same names everywhere. */
static inline void result_latency(const struct hist *h)
{
    result_real("ns_per_op", h->count == 0 ? 0 : (double)h->sum / (double)h->count);
    result_count("p50_ns", hist_percentile(h, 0.5));
    result_count("p99_ns", hist_percentile(h, 0.99));
    result_count("p99_9_ns", hist_percentile(h, 0.999));
    result_count("p99_99_ns", hist_percentile(h, 0.9999));
    result_count("max_ns", h->max);
}

static inline void result_begin(const char *bench, const char *peer)
{
    if (result_as_json) {
        printf("{\"bench\": \"%s\"", bench);
    } else {
        printf("%-24s%s\n", "bench", bench);
    }
    result_string("peer", peer);
}

static inline void result_end(uint64_t checksum)
{
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, checksum);
    result_count("peak_rss_bytes", peak_rss_bytes());
    result_string("checksum", text);
    if (result_as_json) {
        printf("}\n");
    }
}

#endif
