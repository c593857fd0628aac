/* The out-of-memory handler may throw: the exception passes through every function that allocates, local objects are
 * destroyed on its way, the heap works on, and the thread is reached by the collector as before. Exceptions of the
 * program's own, thrown while cycles run, lose nothing that the remaining frames hold.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 120
 * TEST_RUN: clobberfree | GODEBUG=clobberfree=1 GOGC=5 | | 120 */
#include "../support/test.h"

#include <atomic>
#include <memory>
#include <new>
#include <thread>

#include "../support/child.h"
#include "../support/heap.h"

struct item {
    uint64_t id;
    uint64_t check;
    uint64_t fill[4];
};
LOAM_TYPE_NOSCAN(item);

static item *item_new(uint64_t id)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    it->id = id;
    it->check = rng_mix(id);
    return it;
}

static void item_check(const item *it)
{
    EXPECT_EQ(it->check, rng_mix(it->id));
}

struct block {
    block *next;
    loam_weak *weak;
    char *text;
    uint64_t check;
    char bytes[]; // C's flexible array, which g++ and clang++ know
};
LOAM_TYPE_FLEX(block, bytes, next, weak, text);

struct picture {
    char pixels[30000];
};
LOAM_TYPE_NOSCAN(picture);

enum { LIMIT_MIB = 400 };

/* What the handler throws. */
struct no_memory : std::bad_alloc {
};

static std::atomic<unsigned> thrown;

static void throw_no_memory(void *)
{
    thrown++;
    throw no_memory();
}

/* Counts how many of its kind are alive: none is left behind by an exception. */
static int scopes;

struct scope {
    scope()
    {
        scopes++;
    }
    ~scope()
    {
        scopes--;
    }
};

template <class Allocate> static void expect_throw(const char *what, Allocate allocate)
{
    unsigned before = thrown;
    bool caught = false;
    try {
        scope here;
        allocate();
    } catch (const no_memory &) {
        caught = true;
    }
    EXPECT_MSG(caught, "%s did not throw", what);
    EXPECT_EQ(thrown, before + 1);
    EXPECT_EQ(scopes, 0);
}

#define EXPECT_THROW(call) expect_throw(#call, [&] { (void)(call); })

/* Another thread's collection comes to its end while this one computes and calls nothing. */
static void is_reached_by_the_collector()
{
    std::atomic<bool> done{false};
    std::thread other([&] {
        loam_gc();
        done = true;
    });
    uint64_t start = now_ns();
    while (!done) {
        EXPECT_MSG(seconds_since(start) < 20, "a collection waits for the thread that threw");
    }
    other.join();
}

static void heap_works_on()
{
    loam_gc();
    for (size_t i = 0; i < 1000; i++) {
        EXPECT_NOT_NULL(loam_alloc(i * 50));
    }
    is_reached_by_the_collector();
}

/* ---- sizes that overflow: no memory is needed to find that out ---- */

static volatile size_t too_much = SIZE_MAX; /* volatile: the compilers warn of such a constant */

static void through_every_function_that_allocates()
{
    char *p = static_cast<char *>(loam_alloc_noscan(100));
    memset(p, 7, 100);
    loam_set_oom_handler(throw_no_memory, nullptr);
    EXPECT_THROW(loam_alloc(too_much));
    EXPECT_THROW(loam_alloc_noscan(too_much));
    EXPECT_THROW(loam_realloc(p, too_much));
    EXPECT_THROW(loam_realloc(nullptr, too_much));
    EXPECT_THROW(LOAM_NEW_ARRAY(item, too_much / 2));
    EXPECT_THROW(LOAM_NEW_POINTERS(item, too_much / 2));
    EXPECT_THROW(LOAM_NEW_FLEX(block, too_much));
    for (int i = 0; i < 100; i++) {
        EXPECT_EQ(p[i], 7); /* what could not grow is as it was */
    }
    loam_set_oom_handler(nullptr, nullptr);
    EXPECT_ERRNO(loam_alloc(too_much), nullptr, ENOMEM);
    heap_works_on();
}

/* ---- memory that has ended, in processes of their own ---- */

static block *blocks; /* what is held */

static void block_add(size_t bytes)
{
    scope here;
    block *b = LOAM_NEW_FLEX(block, bytes);
    EXPECT_NOT_NULL(b);
    b->check = 1;
    LOAM_SET(b->next, blocks);
    LOAM_SET(blocks, b);
}

/* Allocates and holds until the handler throws; how many came. */
static NOINLINE size_t fill_heap(size_t each)
{
    size_t count = 0;
    try {
        for (;; count++) {
            scope outer;
            block_add(each);
        }
    } catch (const std::bad_alloc &) {
    }
    EXPECT_EQ(scopes, 0);
    return count;
}

static NOINLINE size_t count_blocks()
{
    size_t count = 0;
    for (block *b = blocks; b != nullptr; b = b->next) {
        EXPECT_EQ(b->check, 1);
        count++;
    }
    return count;
}

static void drop_blocks()
{
    LOAM_SET(blocks, nullptr);
    scrub_stack();
    loam_gc();
}

static void limit_memory()
{
    struct rlimit limit = {static_cast<rlim_t>(LIMIT_MIB) << 20, static_cast<rlim_t>(LIMIT_MIB)
                                                                     << 20};
    EXPECT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    loam_set_oom_handler(throw_no_memory, nullptr);
}

static void child_fill()
{
    static const size_t sizes[] = {100, 3000, 100000};
    limit_memory();
    for (size_t each : sizes) {
        size_t count = fill_heap(each);
        EXPECT_GT(count * each, static_cast<size_t>(50) << 20);
        EXPECT_EQ(count_blocks(), count);
        for (int i = 0; i < 5; i++) { /* again and again */
            EXPECT_THROW(loam_alloc_noscan(static_cast<size_t>(600) << 20));
        }
        EXPECT_EQ(count_blocks(), count);
        drop_blocks();
        heap_works_on();
    }
}

static void set_weak_pointers()
{
    for (block *b = blocks; b != nullptr; b = b->next) {
        LOAM_SET(b->weak, loam_weak_make(b));
        EXPECT_NOT_NULL(b->weak);
    }
}

static size_t check_weak_pointers()
{
    size_t count = 0;
    for (block *b = blocks; b != nullptr; b = b->next) {
        if (b->weak != nullptr) {
            EXPECT_PTR_EQ(loam_weak_value(b->weak), b);
            count++;
        }
    }
    return count;
}

static void set_texts()
{
    for (block *b = blocks; b != nullptr; b = b->next) {
        LOAM_SET(b->text, loam_strdup("a text"));
    }
}

static void batch_of_pictures()
{
    void *pictures[100];
    loam_new_batch(LOAM_TYPEOF(picture), COUNT_OF(pictures), pictures);
}

/* The other functions that make objects, when all is full of small ones. */
static void child_others()
{
    limit_memory();
    size_t count = fill_heap(40);
    EXPECT_THROW(batch_of_pictures());
    EXPECT_THROW(set_weak_pointers());
    size_t weak = check_weak_pointers();
    EXPECT_LT(weak, count);
    EXPECT_THROW(set_texts());
    EXPECT_EQ(count_blocks(), count);
    EXPECT_EQ(check_weak_pointers(), weak);
    drop_blocks();
    heap_works_on();
}

/* Threads that throw and catch, each for itself. */
static void throw_and_catch()
{
    for (int i = 0; i < 30; i++) {
        unsigned parts = 0;
        try {
            block *mine = nullptr;
            for (;; parts++) {
                block *b = LOAM_NEW_FLEX(block, 1 << 20);
                LOAM_SET(b->next, mine);
                mine = b;
            }
        } catch (const no_memory &) {
        }
        EXPECT_LT(parts, LIMIT_MIB);
    }
}

static void child_threads()
{
    limit_memory();
    std::thread threads[3];
    for (std::thread &t : threads) {
        t = std::thread(throw_and_catch);
    }
    for (std::thread &t : threads) {
        t.join();
    }
    EXPECT_EQ(thrown, 3 * 30);
    heap_works_on();
}

static const struct child_case children[] = {
    {"fill", child_fill},
    {"others", child_others},
    {"threads", child_threads},
};

static void when_memory_has_ended()
{
    if (TEST_SANITIZED || getenv("TEST_EMULATOR") != nullptr) {
        test_skip("RLIMIT_AS under a sanitizer, or an emulator that does not pass it on");
        return;
    }
    for (const child_case &each : children) {
        auto c = std::make_unique<child>();
        child_run(c.get(), each.name, nullptr, 100);
        EXPECT_MSG(child_exited(c.get(), 0), "case %s ended with status %#x%s; it said: %s",
                   each.name, static_cast<unsigned>(c->status), c->timed_out ? " (timed out)" : "",
                   c->text);
        printf("  ok %s\n", each.name);
    }
}

/* ---- the program's own exceptions, while cycles run ---- */

/* A pointer in an exception lies in memory of the C++ library: it is pinned as long as it is there. */
class carries
{
  public:
    explicit carries(item *it) : held(static_cast<item *>(loam_pin(it)))
    {
    }
    carries(const carries &other) : held(static_cast<item *>(loam_pin(other.held)))
    {
    }
    carries &operator=(const carries &) = delete;
    ~carries()
    {
        loam_unpin(held);
    }
    item *held;
};

static NOINLINE uint64_t descend(size_t levels, const item *outer)
{
    item *here = item_new(levels);
    std::unique_ptr<int> freed_on_the_way(new int(1)); /* a destructor in each frame */
    item_check(outer);
    if (levels == 0) {
        throw carries(item_new(77));
    }
    uint64_t below = descend(levels - 1, here);
    item_check(here); /* not a tail call */
    return below + static_cast<uint64_t>(*freed_on_the_way);
}

static void over_frames_while_cycles_run()
{
    struct rng rng = rng_stream(1);
    std::atomic<bool> stop{false};
    std::thread collector([&] {
        while (!stop) {
            loam_gc();
        }
    });
    item *kept[8];
    for (size_t k = 0; k < COUNT_OF(kept); k++) {
        kept[k] = item_new(k);
    }
    for (size_t i = 0; i < test_scaled(3000); i++) {
        try {
            descend(rng_between(&rng, 1, 60), kept[i % COUNT_OF(kept)]);
            FAIL("nothing was thrown");
        } catch (const carries &c) {
            item_check(c.held);
            EXPECT_EQ(c.held->id, 77);
        }
        for (item *it : kept) {
            item_check(it);
        }
        kept[i % COUNT_OF(kept)] = item_new(i);
    }
    stop = true;
    collector.join();
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(through_every_function_that_allocates);
    RUN(when_memory_has_ended);
    RUN(over_frames_while_cycles_run);
    return test_end();
}
