/* A handler of the program's own interrupts LOAM_SET anywhere, also between its test of the barrier and its store, and
 * a cycle begins before it returns: what the store overwrites is not lost to a thread that has read it.  The handler is
 * brought to each instruction in turn by single steps; marking is held up by a scan function until the store is done.
 *
 * TEST_LABEL: quick
 * TEST_ENV: GODEBUG=clobberfree=1 */
#include "../support/test.h"

#if !defined(__x86_64__) || !defined(__linux__)
int main(int argc, char **argv)
{
    test_begin(argc, argv);
    test_skip("single steps are of x86-64");
    return test_end();
}
#else

#include <sys/mman.h>
#include <ucontext.h>

#include "../support/heap.h"
#include "../support/threads.h"

typedef struct item {
    uint64_t id;
    uint64_t check;
    uint64_t fill[6];
} item;
LOAM_TYPE_NOSCAN(item);

/* The only reference to the item.  In plain memory, so that the thread that stores holds no heap pointer; it belongs to
 * the gate, whose scan function reads it when the store is done. */
static struct slot {
    item *value;
} * slot;

static _Atomic(bool) gate_closed, gate_reached;

typedef struct gate {
    uint64_t unused;
} gate;

static SCANS void gate_scan(const gate *g, size_t bytes, loam_marker *m)
{
    (void)g;
    (void)bytes;
    atomic_store(&gate_reached, true);
    while (atomic_load(&gate_closed)) {
    }
    loam_mark(m, LOAD_SLOT(slot->value));
}
LOAM_TYPE_SCANNED(gate, gate_scan);

static gate *the_gate;

/* ---- the store, and the handler that comes in between ---- */

/* In a section of its own: its bounds are those of the steps. */
extern const char __start_cut_text[], __stop_cut_text[];

NOINLINE __attribute__((__section__("cut_text"))) static void cut(struct slot *s)
{
    LOAM_SET(s->value, NULL);
}

enum how { COMPUTING, BLOCKING };
static enum how how;
static size_t stop_at, steps; /* the step of cut at which the handler stays */
static _Atomic(bool) in_handler, release_handler, cut_done;

static void stay(void)
{
    if (how == BLOCKING) {
        loam_enter_blocking();
    }
    atomic_store(&in_handler, true);
    while (!atomic_load(&release_handler)) {
    }
    if (how == BLOCKING) {
        loam_exit_blocking();
    }
}

static void on_step(int signo, siginfo_t *si, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    uintptr_t pc = (uintptr_t)regs[REG_RIP];
    (void)signo;
    (void)si;
    if (pc >= (uintptr_t)__start_cut_text && pc < (uintptr_t)__stop_cut_text &&
        steps++ == stop_at) {
        regs[REG_EFL] &= ~0x100;
        stay();
    }
}

static void cut_stepping(struct slot *s)
{
#define TRAP_FLAG(change)                                             \
    __asm__ volatile("leaq -128(%%rsp), %%rsp\n\tpushfq\n\t" change   \
                     " (%%rsp)\n\tpopfq\n\tleaq 128(%%rsp), %%rsp" :: \
                         : "memory", "cc")
    TRAP_FLAG("orq $0x100,");
    cut(s);
    TRAP_FLAG("andq $~0x100,");
#undef TRAP_FLAG
}

static void *store_null(void *arg)
{
    stack_t ss = {.ss_sp = arg, .ss_size = 128 * 1024};
    EXPECT_EQ(loam_attach(), 0);
    if (arg != NULL) {
        EXPECT_EQ(sigaltstack(&ss, NULL), 0);
    }
    cut_stepping(slot);
    atomic_store(&cut_done, true);
    return NULL;
}

/* ---- one cycle around it ---- */

static void *collect_once(void *arg)
{
    loam_gc();
    return arg;
}

static void fill_slot(void *arg)
{
    item *it = LOAM_NEW(item);
    (void)arg;
    EXPECT_NOT_NULL(it);
    it->id = 7;
    it->check = rng_mix(7);
    LOAM_SET(slot->value, it);
}

/* False: the store has no such step. */
static bool interrupt_at(size_t step, void *alternate_stack)
{
    call_deep(fill_slot, NULL);
    stop_at = step;
    steps = 0;
    atomic_store(&in_handler, false);
    atomic_store(&release_handler, false);
    atomic_store(&cut_done, false);
    atomic_store(&gate_reached, false);
    atomic_store(&gate_closed, true);
    pthread_t storing = thread_start(store_null, alternate_stack);
    WAIT_FOR(20, atomic_load(&in_handler) || atomic_load(&cut_done));
    bool interrupted = atomic_load(&in_handler);
    pthread_t collecting = thread_start(collect_once, NULL);
    WAIT_FOR(20, atomic_load(&gate_reached)); /* all stacks have been scanned */
    item *volatile mine = LOAD_SLOT(slot->value);
    atomic_store(&release_handler, true);
    WAIT_FOR(20, atomic_load(&cut_done));
    atomic_store(&gate_closed, false);
    thread_join(storing);
    thread_join(collecting);
    EXPECT_NULL(slot->value);
    if (mine != NULL) {
        EXPECT_EQ(mine->id, 7);
        EXPECT_EQ(mine->check, rng_mix(7));
    }
    return interrupted;
}

static void at_every_step(enum how what, bool alternate)
{
    enum { BYTES = 128 * 1024 };
    struct sigaction sa = {.sa_sigaction = on_step,
                           .sa_flags = SA_SIGINFO | (alternate ? SA_ONSTACK : 0)};
    void *stack = NULL;
    size_t step = 0;

    EXPECT_EQ(sigaction(SIGTRAP, &sa, NULL), 0);
    if (alternate) {
        stack = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        EXPECT_PTR_NE(stack, MAP_FAILED);
    }
    how = what;
    while (interrupt_at(step, stack)) {
        step++;
    }
    EXPECT_GE(step, 3); /* test, branch, store */
    if (stack != NULL) {
        munmap(stack, BYTES);
    }
}

static void in_a_handler_on_the_threads_stack(void)
{
    at_every_step(COMPUTING, false);
}

static void in_a_handler_on_an_alternate_stack(void)
{
    at_every_step(COMPUTING, true);
}

static void in_a_handler_that_blocks(void)
{
    at_every_step(BLOCKING, false);
}

static void in_a_handler_that_blocks_on_an_alternate_stack(void)
{
    at_every_step(BLOCKING, true);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    if (TEST_SANITIZED || getenv("TEST_EMULATOR") != NULL) {
        test_skip("single steps under a sanitizer or an emulator");
        return test_end();
    }
    loam_set_gc_percent(-1);
    slot = mmap(NULL, sizeof *slot, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_PTR_NE(slot, MAP_FAILED);
    LOAM_SET(the_gate, LOAM_NEW(gate));
    EXPECT_NOT_NULL(the_gate);
    RUN(in_a_handler_on_the_threads_stack);
    RUN(in_a_handler_on_an_alternate_stack);
    RUN(in_a_handler_that_blocks);
    RUN(in_a_handler_that_blocks_on_an_alternate_stack);
    return test_end();
}
#endif
