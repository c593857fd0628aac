/* drop.c - how soon memory goes back to the system when little of a large heap stays alive.
 *
 * Work        Objects of 1 KiB up to `-peak` GiB (2); then all but the first `-live` MiB (200) are dropped (freed,
 *             under malloc), and collected once. Then the program is idle for `-seconds` (10). At last it asks for
 *             memory to be given back.
 * Measured    Resident memory: how long after the collection it is within a fifth of what is alive, what it is at the
 *             end, what it is after asking, and how long asking took. 0 seconds_to_live: not in that time.
 * Twin        go/drop/main.go
 */
#include "heap.h"

#if defined(USE_MALLOC)
#include <malloc.h>
#endif

enum { BODY_BYTES = 1016 };

typedef struct piece piece;
struct piece {
    piece *before;
    unsigned char body[BODY_BYTES];
};
HEAP_TYPE(piece, before);

static piece **all;

static void fill(uint64_t n)
{
    HEAP_SET(all, HEAP_NEW_POINTERS(piece, n));
    for (uint64_t i = 0; i < n; i++) {
        piece *p = HEAP_NEW(piece);
        HEAP_NULL(p->before);
        if (i % 16 != 0) {
            HEAP_SET(p->before, all[i - 1]);
        }
        memset(p->body, (int)(i & 255), sizeof p->body);
        HEAP_SET(all[i], p);
    }
}

static void drop(uint64_t from, uint64_t n)
{
    for (uint64_t i = from; i < n; i++) {
        piece *p = all[i];
        HEAP_SET(all[i], NULL);
        HEAP_FREE(p);
    }
}

static void give_back(void)
{
#if defined(USE_MALLOC)
    malloc_trim(0);
#elif defined(USE_BOEHM)
    GC_gcollect_and_unmap();
#else
    loam_free_os_memory();
#endif
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    double peak = option_real("peak", 2);
    double live = option_real("live", 200);
    double seconds = option_real("seconds", 10);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    options_end();
    uint64_t n = (uint64_t)(peak * 1048576.0);
    uint64_t stay = (uint64_t)(live * 1024.0);
    if (n < 1 || stay > n) {
        fprintf(stderr, "-peak GiB, -live MiB, not more than that\n");
        return 2;
    }
    uint64_t before = resident_bytes();
    fill(n);
    uint64_t full = resident_bytes() - before;
    drop(stay, n);
    heap_gc();
    uint64_t wanted = before + (stay * sizeof(piece) + n * sizeof(piece *)) / 5 * 6;
    uint64_t began = clock_ns();
    uint64_t reached = 0;
    while ((double)(clock_ns() - began) < seconds * 1e9) {
        if (reached == 0 && resident_bytes() <= wanted) {
            reached = clock_ns() - began;
        }
        sleep_ns(20000000);
    }
    uint64_t after = resident_bytes() - before;
    uint64_t asked_at = clock_ns();
    give_back();
    uint64_t asking = clock_ns() - asked_at;
    uint64_t asked = resident_bytes() - before;

    uint64_t sum = 0;
    for (uint64_t i = 0; i < stay; i++) {
        sum = sum * 31 + all[i]->body[i % BODY_BYTES];
    }
    result_begin("drop", HEAP_NAME);
    result_count("full_bytes", full);
    result_real("seconds_to_live", (double)reached / 1e9);
    result_count("after_bytes", after);
    result_count("asked_bytes", asked);
    result_count("asking_ns", asking);
    result_end(sum);
    return 0;
}
