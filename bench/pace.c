/* pace.c - how a heap keeps to its goal, and to a memory limit, while a program changes its ways.
 *
 * Work        `-threads` (2) threads keep windows of nodes alive and put new ones into random places of them for `-seconds`
 *             (10). `-scenario` (steady) says how large the windows are, how fast the threads are, and what else there is:
 *                 steady fast small large   64 MiB at 200 MiB/s; as fast as it goes; 1 MiB; 400 MiB
 *                 step-alloc step-down      a quarter of the rate in the first half, or in the second
 *                 step-live oscillate       32 MiB, then 64; between 32 and 96, four times
 *                 jitter                    each 20 ms another rate, from half to twice as much
 *                 noscan                    each node has 960 bytes without pointers
 *                 stacks globals            1 MiB of frames for each thread; 8 MiB of pointers in a table of the program
 *                 limit                     from a tenth of `-limit` MiB (256) to nine tenths, in nine steps, as fast as it goes
 * Measured    The longest operation, and the longest less what its thread waited for a processor meanwhile, as the system
 *             counts it (not in Go, whose threads are not what it schedules); the longest stretch for which the collector kept
 *             a thread from running, as it counts itself (not in Go, which counts its stops alone); MiB allocated in a second;
 *             resident memory at most, and as long as no more than 80 % of the limit was alive. pace.py reads the heap's own
 *             lines for the goal.
 * Twin        go/pace/main.go
 */
#include "heap.h"

#include <fcntl.h>
#include <math.h>
#include <unistd.h>

typedef struct node node;
struct node {
    node *anchor;
    unsigned char *body;
    uint64_t place;
    uint64_t spare[5];
};
HEAP_TYPE(node, anchor, body);

enum { BODY_BYTES = 960, TABLE = 1 << 20, FRAME_WORDS = 64, LOOK_NS = 1000000 };

struct worker {
    uint64_t rng, longest_ns, longest_own_ns, bytes, sum;
    int schedstat;      /* descriptor of the thread's /proc file */
    uint64_t queued_ns; /* what the thread had waited for a processor by the last look */
    node **window;
    uint64_t used; /* places of the window that hold nodes */
};

static const char *scenario;
static double seconds, limit_mib;
static unsigned nthreads;
static bool noscan;
static uint64_t began;
static node *table[TABLE];
static node *anchor;
static struct worker workers[MAX_THREADS];

static bool is(const char *name)
{
    return strcmp(scenario, name) == 0;
}

/* MiB alive at time t of 0 to 1, of all threads. */
static double live_mib(double t)
{
    if (is("small")) {
        return 1;
    }
    if (is("large")) {
        return 400;
    }
    if (is("step-live")) {
        return t < 0.5 ? 32 : 64;
    }
    if (is("oscillate")) {
        return 64 + 32 * sin(8 * 3.14159265358979 * t);
    }
    if (is("limit")) {
        double step = floor(t * 9);
        return limit_mib * ((step < 8 ? step : 8) + 1) / 10;
    }
    return 64;
}

/* MiB in a second, of all threads; 0: as fast as it goes. */
static double rate_mib(double t)
{
    if (is("fast") || is("limit")) {
        return 0;
    }
    if (is("step-alloc")) {
        return t < 0.5 ? 50 : 200;
    }
    if (is("step-down")) {
        return t < 0.5 ? 200 : 50;
    }
    if (is("jitter")) {
        uint64_t x = (uint64_t)(t * seconds * 50);
        return 200 * pow(2, (double)(rng_next(&x) >> 11) / (double)(UINT64_C(1) << 52) - 1);
    }
    return 200;
}

static uint64_t node_bytes(void)
{
    return sizeof(node) + (noscan ? BODY_BYTES : 0);
}

static double now_t(void)
{
    return (double)(clock_ns() - began) / (seconds * 1e9);
}

static void free_node(node *n)
{
    if (HEAP_IS_MANUAL && n != NULL) {
        HEAP_FREE(n->body);
        HEAP_FREE(n);
    }
}

static void put(struct worker *w, uint64_t place)
{
    node *n = HEAP_NEW(node);
    HEAP_NULL(n->body);
    if (noscan) {
        unsigned char *body = HEAP_ALLOC_NOSCAN(BODY_BYTES);
        memset(body, (int)(place & 255), BODY_BYTES);
        HEAP_SET(n->body, body);
    }
    HEAP_SET(n->anchor, anchor);
    n->place = place;
    node *old = w->window[place];
    HEAP_SET(w->window[place], n);
    free_node(old);
    w->bytes += node_bytes();
}

static void resize(struct worker *w, uint64_t places)
{
    for (; w->used < places; w->used++) {
        put(w, w->used);
    }
    while (w->used > places) {
        node *old = w->window[--w->used];
        HEAP_SET(w->window[w->used], NULL);
        free_node(old);
    }
}

/* What the calling thread waited for a processor since it was last asked; 0 where the system does not count it. */
static uint64_t queued_since(struct worker *w)
{
    char text[64] = "";
    uint64_t ran = 0, queued = w->queued_ns, before = w->queued_ns;
    if (pread(w->schedstat, text, sizeof text - 1, 0) > 0 &&
        sscanf(text, "%" SCNu64 " %" SCNu64, &ran, &queued) == 2) {
        w->queued_ns = queued;
    }
    return w->queued_ns - before;
}

static void note_time(struct worker *w, uint64_t ns)
{
    w->longest_ns = ns > w->longest_ns ? ns : w->longest_ns;
    if (ns > LOOK_NS && ns > w->longest_own_ns) {
        uint64_t queued = queued_since(w);
        uint64_t own = ns > queued ? ns - queued : 0;
        w->longest_own_ns = own > w->longest_own_ns ? own : w->longest_own_ns;
    }
}

static uint64_t places_at(double t)
{
    double bytes = (double)(node_bytes() + sizeof(node *)); /* with its place in the window */
    return (uint64_t)(live_mib(t) * 1048576 / bytes / nthreads) + 1;
}

static void work(struct worker *w)
{
    uint64_t owed_from = clock_ns();
    double owed = 0; /* bytes that the rate allows and that were not yet allocated */
    for (double t = now_t(); t < 1; t = now_t()) {
        double rate = rate_mib(t) * 1048576 / nthreads;
        uint64_t places = places_at(t);
        resize(w, places);
        queued_since(w);
        uint64_t before = clock_ns(), now = before, first = before, from = w->bytes;
        owed += rate * (double)(now - owed_from) / 1e9;
        owed_from = now;
        while (now - first < LOOK_NS && (rate == 0 || (double)(w->bytes - from) < owed)) {
            put(w, rng_below(&w->rng, places));
            now = clock_ns();
            note_time(w, now - before);
            before = now;
        }
        owed -= (double)(w->bytes - from);
        owed = owed > rate / 10
                   ? rate / 10
                   : owed; /* what could not be done in a tenth of a second is let go */
        if (rate != 0 && now - first < LOOK_NS) {
            sleep_ns(LOOK_NS - (now - first));
        }
    }
    resize(w, places_at(1));
    for (uint64_t i = 0; i < w->used; i++) {
        const node *n = w->window[i];
        w->sum += n->anchor->place +
                  n->place * (noscan ? n->body[BODY_BYTES - 1] == (n->place & 255) : 1);
    }
}

/* Frames full of pointers below the work. */
static __attribute__((noinline)) uint64_t deep(struct worker *w, unsigned depth)
{
    node *volatile frame[FRAME_WORDS];
    for (int i = 0; i < FRAME_WORDS; i++) {
        frame[i] = anchor;
    }
    if (depth == 0) {
        work(w);
    } else {
        deep(w, depth - 1);
    }
    return frame[FRAME_WORDS - 1]->place;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    uint64_t most = 0;
    for (int i = 0; i <= 100; i++) {
        uint64_t places = places_at(i / 100.0);
        most = places > most ? places : most;
    }
    HEAP_SET(w->window, HEAP_NEW_POINTERS(node, most + most / 8)); /* the sine between two looks */
    w->rng = (uint64_t)(w - workers) + 1;
    w->schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    deep(w, is("stacks") ? (1 << 20) / (FRAME_WORDS * sizeof(node *)) : 0);
    return NULL;
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    heap_init();
    scenario = option_string("scenario", "steady");
    seconds = option_real("seconds", 10);
    limit_mib = option_real("limit", 256);
    nthreads = option_threads(2);
    result_as_json = option_flag("json");
    heap_option_gc_percent();
    options_end();
    noscan = is("noscan");
    HEAP_SET(anchor, HEAP_NEW(node));
    HEAP_NULL(anchor->anchor);
    HEAP_NULL(anchor->body);
    anchor->place = 1;
    for (size_t i = 0; is("globals") && i < TABLE; i++) {
        HEAP_SET(table[i], anchor);
    }
    began = clock_ns();
    pthread_t threads[MAX_THREADS];
    for (unsigned i = 0; i < nthreads; i++) {
        thread_start(&threads[i], worker_main, &workers[i]);
    }
    static struct pause_log kept;
    pause_log_take(&kept);
    uint64_t most = 0, most_at_80 = 0;
    for (double t = 0; t < 1; t = now_t()) {
        pause_log_take(&kept);
        uint64_t bytes = resident_bytes();
        most = bytes > most ? bytes : most;
        if (live_mib(t) <= limit_mib * 0.8) {
            most_at_80 = bytes > most_at_80 ? bytes : most_at_80;
        }
        sleep_ns(20000000);
    }
    pause_log_take(&kept);
    uint64_t longest = 0, longest_own = 0, bytes = 0, sum = 0;
    for (unsigned i = 0; i < nthreads; i++) {
        pthread_join(threads[i], NULL);
        longest = workers[i].longest_ns > longest ? workers[i].longest_ns : longest;
        longest_own = workers[i].longest_own_ns > longest_own ? workers[i].longest_own_ns
                                                              : longest_own;
        bytes += workers[i].bytes;
        sum += workers[i].sum;
    }
    result_begin("pace", HEAP_NAME);
    result_string("scenario", scenario);
    result_real("mib_per_s", (double)bytes / 1048576 / seconds);
    result_count("longest_ns", longest);
    result_count("longest_own_ns", longest_own);
    if (!HEAP_IS_MANUAL) {
        result_count("kept_ns", kept.pauses.max);
    }
    result_count("resident_bytes", most);
    result_count("resident_at_80_bytes", most_at_80);
    result_end(sum);
    return 0;
}
