/* An allocation in a handler may have to wait for a cycle.  What the handler's locals hold stays meanwhile, on the
 * thread's own stack and on an alternate one that nobody registered, and so does what the interrupted function holds.
 *
 * TEST_LABEL: quick
 * TEST_ENV: GODEBUG=gcstress=1,clobberfree=1 */
#include "../support/test.h"

#include <sys/mman.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
    uint64_t fill[6];
} item;
LOAM_TYPE_NOSCAN(item);

enum { ITEMS = 8, STACK_BYTES = 64 * 1024 };

static void hold_items(item *volatile *kept, uint64_t first)
{
    for (uint64_t i = 0; i < ITEMS; i++) {
        item *it = LOAM_NEW(item);
        EXPECT_NOT_NULL(it);
        it->id = first + i;
        it->check = rng_mix(first + i);
        kept[i] = it;
    }
}

static void check_items(item *volatile *kept, uint64_t first)
{
    for (uint64_t i = 0; i < ITEMS; i++) {
        EXPECT_EQ(kept[i]->id, first + i);
        EXPECT_EQ(kept[i]->check, rng_mix(first + i));
    }
}

/* Under gcstress every allocation asks for a cycle, and waits for the one that the last allocation asked for. */
static void make_garbage(void)
{
    for (size_t i = 0; i < 20; i++) {
        EXPECT_NOT_NULL(LOAM_NEW(item));
    }
}

static _Atomic(size_t) handled;

static void hold_and_allocate(int signo)
{
    item *volatile kept[ITEMS];
    (void)signo;
    hold_items(kept, 100);
    make_garbage();
    check_items(kept, 100);
    atomic_fetch_add(&handled, 1);
}

static void *interrupt_often(void *arg)
{
    item *volatile kept[ITEMS];
    stack_t ss = {.ss_sp = arg, .ss_size = STACK_BYTES};
    if (arg != NULL) {
        EXPECT_EQ(sigaltstack(&ss, NULL), 0);
    }
    hold_items(kept, 0);
    for (size_t i = 0; i < 20; i++) {
        raise(SIGUSR1);
        check_items(kept, 0);
    }
    ss.ss_flags = SS_DISABLE;
    EXPECT_EQ(sigaltstack(&ss, NULL), 0);
    return NULL;
}

static void install(int flags)
{
    struct sigaction sa = {.sa_handler = hold_and_allocate, .sa_flags = flags};
    EXPECT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
    atomic_store(&handled, 0);
}

static void on_the_threads_stack(void)
{
    install(0);
    interrupt_often(NULL);
    thread_run(interrupt_often, NULL);
    EXPECT_EQ(atomic_load(&handled), 40);
}

static void on_an_alternate_stack(void)
{
    void *memory = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                        0);
    EXPECT_PTR_NE(memory, MAP_FAILED);
    install(SA_ONSTACK);
    interrupt_often(memory);
    thread_run(interrupt_often, memory);
    EXPECT_EQ(atomic_load(&handled), 40);
    munmap(memory, STACK_BYTES);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(on_the_threads_stack);
    RUN(on_an_alternate_stack);
    return test_end();
}
