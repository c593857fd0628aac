/* floor.c - how long does the machine itself hold a thread up that only computes?
 *
 * Each thread touches memory at random, in stretches of a tenth of a millisecond, and asks after each
 * how much processor time it was charged with. What is above the tenth nobody in this process took:
 * memory that the host has to find first, interrupts, a processor that was given to another machine.
 * No collector can be seen to hold a thread for less. bench/pauses.py shows it beside the stops.
 *
 * -live GIB  -seconds S  -threads N
 */
#include "report.h"

#include <pthread.h>
#include <stdatomic.h>

#define STRETCH_NS UINT64_C(100000)

static unsigned char *memory;
static size_t memory_bytes;
static atomic_bool stop;

struct worker {
    pthread_t thread;
    uint64_t rng, sum;
    struct hist charged;
};

static uint64_t charged_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *compute(void *arg)
{
    struct worker *w = arg;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint64_t before = charged_ns();
        uint64_t until = clock_ns() + STRETCH_NS;
        do {
            for (int i = 0; i < 16; i++) {
                w->sum += memory[rng_next(&w->rng) % memory_bytes];
            }
        } while (clock_ns() < until);
        hist_add(&w->charged, charged_ns() - before);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    double live = option_real("live", 1);
    double seconds = option_real("seconds", 10);
    uint64_t threads = option_count("threads", 2);
    result_as_json = option_flag("json");
    options_end();

    memory_bytes = (size_t)(live * (double)(UINT64_C(1) << 30));
    memory = malloc(memory_bytes);
    struct worker *workers = calloc(threads, sizeof *workers);
    if (memory == NULL || workers == NULL) {
        fprintf(stderr, "floor: no memory for %g GiB\n", live);
        return 1;
    }
    memset(memory, 1, memory_bytes);
    for (uint64_t i = 0; i < threads; i++) {
        workers[i].rng = i;
        if (pthread_create(&workers[i].thread, NULL, compute, &workers[i]) != 0) {
            fprintf(stderr, "floor: no thread\n");
            return 1;
        }
    }
    sleep_ns((uint64_t)(seconds * 1e9));
    atomic_store(&stop, true);
    static struct hist all;
    for (uint64_t i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        hist_merge(&all, &workers[i].charged);
    }
    result_begin("floor", "none");
    result_count("charged_max_ns", all.max);
    result_count("charged_p99_9_ns", hist_percentile(&all, 0.999));
    result_hist("charged_hist_ns", &all);
    result_end(threads);
    free(memory);
    free(workers);
    return 0;
}
