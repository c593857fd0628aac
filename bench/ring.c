/* ring.c - a queue of messages: each push allocates one and drops the oldest.
 *
 * Work        200 000 messages of 1 KB alive, 10 million pushed; every message is written in full,
 *             its number first.
 *             The live heap is small and steady: what shows is allocation, sweeping, and what the
 *             collector asks of the allocating thread.
 * Measured    Every push, from the end of the one before.
 * Twin        go/ring/main.go
 */
#include "heap.h"

enum { MAX_BYTES = 1 << 16 };

static unsigned char **ring;
static unsigned char body[MAX_BYTES];

static uint64_t number_of(const unsigned char *message)
{
    uint64_t number;
    memcpy(&number, message, sizeof number);
    return number;
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    uint64_t slots = option_count("messages", 200000);
    uint64_t bytes = option_count("bytes", 1024);
    uint64_t pushes = option_count("pushes", 10000000);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    options_end();
    if (slots < 1 || bytes < sizeof(uint64_t) || bytes > MAX_BYTES) {
        fprintf(stderr, "-messages from 1, -bytes from 8 to %d\n", MAX_BYTES);
        return 2;
    }
    for (unsigned i = 0; i < MAX_BYTES; i++) {
        body[i] = (unsigned char)(i * 7);
    }

    HEAP_SET(ring, HEAP_NEW_POINTERS(unsigned char, slots));
    static struct hist latency;
    uint64_t sum = 0;
    uint64_t slot = 0;
    uint64_t began = clock_ns();
    uint64_t before = began;
    for (uint64_t i = 0; i < pushes; i++) {
        unsigned char *message = HEAP_ALLOC_NOSCAN(bytes);
        memcpy(message, body, bytes);
        memcpy(message, &i, sizeof i);
        unsigned char *old = ring[slot];
        if (old != NULL) {
            sum = sum * 31 + number_of(old) + old[bytes - 1];
        }
        HEAP_SET(ring[slot], message);
        HEAP_FREE(old);
        slot = slot + 1 == slots ? 0 : slot + 1;
        uint64_t now = clock_ns();
        hist_add(&latency, now - before);
        before = now;
    }
    result_begin("ring", HEAP_NAME);
    result_count("pushes", pushes);
    result_real("seconds", (double)(before - began) / 1e9);
    result_latency(&latency);
    result_hist("op_hist_ns", &latency);
    result_count("cycles", heap_cycles());
    result_end(sum);
    return 0;
}
