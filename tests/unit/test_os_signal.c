/* test_os_signal.c - our handler beside the program's; contexts; spilled registers; our threads.
 *
 * Claim   The program's handlers go on being called in their manner, ours comes back when replaced,
 *         the two never call each other without end. A context shows every general register of what
 *         was interrupted, and where it goes on can be changed. os_call_spilled puts every
 *         callee-saved register in memory. Threads of ours take no signals. The search for frames
 *         changes nothing that another thread writes meanwhile.
 * Oracle  Registers loaded by hand with numbers of their own.
 */
#include "os/os.h"

#include "base/bits.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SIGNO SIGURG

static _Atomic int ours_called;
static _Atomic int ours_saw_own; /* os_signal_is_ours */
static _Atomic int program_called;
static _Atomic int program_bad; /* arguments not as they should be */

static void ours(int signo, void *siginfo, void *ucontext)
{
    add_rlx(&ours_called, 1);
    if (os_signal_is_ours(siginfo)) {
        add_rlx(&ours_saw_own, 1);
    }
    os_signal_chain(signo, siginfo, ucontext);
}

static void program_plain(int signo)
{
    add_rlx(&program_called, 1);
    if (signo != SIGNO) {
        add_rlx(&program_bad, 1);
    }
}

static void program_siginfo(int signo, siginfo_t *si, void *ucontext)
{
    add_rlx(&program_called, 1);
    if (signo != SIGNO || si->si_signo != SIGNO || si->si_pid != getpid() || ucontext == NULL) {
        add_rlx(&program_bad, 1);
    }
}

static struct sigaction program_found; /* what was installed when the program came */

static void program_chains(int signo, siginfo_t *si, void *ucontext)
{
    add_rlx(&program_called, 1);
    program_found.sa_sigaction(signo, si, ucontext);
}

static struct sigaction program_install(void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction sa;
    struct sigaction old;
    memset(&sa, 0, sizeof(sa));
    sa.sa_sigaction = handler;
    sa.sa_flags = SA_SIGINFO | flags;
    assert_int_equal(sigaction(SIGNO, &sa, &old), 0);
    return old;
}

static void counts_reset(void)
{
    store_rlx(&ours_called, 0);
    store_rlx(&ours_saw_own, 0);
    store_rlx(&program_called, 0);
    store_rlx(&program_bad, 0);
}

static void check_counts(int ours_expected, int program_expected)
{
    assert_int_equal(load_rlx(&ours_called), ours_expected);
    assert_int_equal(load_rlx(&program_called), program_expected);
    assert_int_equal(load_rlx(&program_bad), 0);
    counts_reset();
}

static bool install(void)
{
    bool changed = false;
    assert_int_equal(os_signal_install(SIGNO, ours, &changed), 0);
    return changed;
}

static void test_program_without_handler(void **state)
{
    (void)state;
    counts_reset();
    assert_true(install());
    assert_false(install());
    assert_int_equal(os_signal_install(SIGNO, ours, NULL), 0);
    raise(SIGNO);
    check_counts(1, 0);

    signal(SIGNO, SIG_IGN);
    assert_true(install());
    raise(SIGNO);
    check_counts(1, 0);

    bool changed = true;
    assert_int_equal(os_signal_install(1000, ours, &changed), EINVAL);
    assert_false(changed);
    assert_int_equal(os_signal_install(SIGKILL, ours, &changed), EINVAL);
    store_rlx(&os_fail_at, 1);
    assert_int_not_equal(os_signal_install(SIGNO, ours, &changed), 0);
}

static void test_program_handlers(void **state)
{
    (void)state;
    counts_reset();
    struct sigaction sa;
    memset(&sa, 0, sizeof(sa));
    sa.sa_handler = program_plain;
    assert_int_equal(sigaction(SIGNO, &sa, NULL), 0);
    raise(SIGNO);
    check_counts(0, 1);
    assert_true(install());
    raise(SIGNO);
    check_counts(1, 1);
    assert_false(install());

    program_install(program_siginfo, 0);
    assert_true(install());
    raise(SIGNO);
    raise(SIGNO);
    check_counts(2, 2);

    program_install(program_siginfo, (int)SA_RESETHAND);
    assert_true(install());
    raise(SIGNO);
    raise(SIGNO);
    check_counts(2, 1);
}

static void test_no_endless_chain(void **state)
{
    (void)state;
    install();
    counts_reset();
    program_found = program_install(program_chains, 0);
    /* Before ours is back: the program's calls ours, ours must not call back for ever. */
    raise(SIGNO);
    counts_reset();
    assert_true(install());
    raise(SIGNO);
    /* Ours, the program's, ours. */
    check_counts(2, 1);
    raise(SIGNO);
    check_counts(2, 1);
    signal(SIGNO, SIG_DFL);
    install();
}

static sigjmp_buf jump_to;

static void program_jumps(int signo, siginfo_t *si, void *ucontext)
{
    (void)signo;
    (void)si;
    (void)ucontext;
    add_rlx(&program_called, 1);
    siglongjmp(jump_to, 1);
}

static void test_jump_out_of_a_chained_handler(void **state)
{
    (void)state;
    counts_reset();
    program_install(program_jumps, 0);
    assert_true(install());
    for (volatile int i = 0; i < 3; i++) {
        if (sigsetjmp(jump_to, 1) == 0) {
            raise(SIGNO);
            fail();
        }
    }
    check_counts(3, 3);
    signal(SIGNO, SIG_DFL);
    install();
}

static void test_whose_signal(void **state)
{
    (void)state;
    install();
    counts_reset();
    assert_int_equal(os_tgkill(os_gettid(), SIGNO), 0);
    assert_int_equal(load_rlx(&ours_called), 1);
    assert_int_equal(load_rlx(&ours_saw_own), 1);
    kill(getpid(), SIGNO);
    union sigval value = {0};
    sigqueue(getpid(), SIGNO, value);
    assert_int_equal(load_rlx(&ours_called), 3);
    assert_int_equal(load_rlx(&ours_saw_own), 1);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        /* Not ours there; in the child itself, ours again. */
        syscall(SYS_tgkill, parent, parent, SIGNO);
        counts_reset();
        os_tgkill(os_gettid(), SIGNO);
        _exit(load_rlx(&ours_saw_own) == 1 ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(load_rlx(&ours_called), 4);
    assert_int_equal(load_rlx(&ours_saw_own), 1);
    assert_int_equal(os_tgkill(0x3fffffff, SIGNO), ESRCH);
}

/* -- contexts ---------------------------------------------------------------------------------- */

#define MAGIC(i) (UINT64_C(0x5eed000000000000) + (i))

static _Atomic unsigned context_regs_seen;
static _Atomic bool context_sp_good;
static _Atomic bool context_pc_good;
/* Local labels: not by way of the GOT. */
#define HIDDEN __attribute__((visibility("hidden")))
extern const char loop_begin[] HIDDEN;
extern const char loop_end[] HIDDEN;

static void context_handler(int signo, void *siginfo, void *ucontext)
{
    (void)signo;
    (void)siginfo;
    uintptr_t pc = os_context_pc(ucontext);
    if (pc < (uintptr_t)loop_begin || pc >= (uintptr_t)loop_end) {
        return; /* not there yet */
    }
    store_rlx(&context_pc_good, true);
    size_t n = 0;
    const uintptr_t *regs = os_context_regs(ucontext, &n);
    unsigned seen = 0;
    for (size_t i = 0; i < n; i++) {
        for (unsigned j = 0; j < 32; j++) {
            seen |= regs[i] == MAGIC(j) ? 1u << j : 0;
        }
    }
    store_rlx(&context_regs_seen, seen);
    uintptr_t sp = os_context_sp(ucontext);
    uintptr_t low = 0;
    uintptr_t high = 0;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    /* The frame of the signal is between our sp and the interrupted one, or on the alternate stack
     * that the address sanitizer gives to threads. */
    uintptr_t uc = (uintptr_t)ucontext;
    bool good = here < uc && uc < sp;
    if (os_altstack_bounds(here, &low, &high)) {
        good = low <= here && here < uc && uc < high && (sp < low || sp >= high);
    }
    store_rlx(&context_sp_good, good);
    os_context_set_pc(ucontext, (uintptr_t)loop_end); /* nothing else ends the loop */
}

/* Load numbers into registers and spin at loop_begin until a handler says otherwise; returns which. */
static NOINLINE unsigned context_loop(void)
{
#if defined(__x86_64__)
    /* All but rsp and rbp. */
    __asm__ volatile("movabsq %[base], %%rax\n\t"
                     "leaq 1(%%rax), %%rbx\n\t"
                     "leaq 2(%%rax), %%rcx\n\t"
                     "leaq 3(%%rax), %%rdx\n\t"
                     "leaq 4(%%rax), %%rsi\n\t"
                     "leaq 5(%%rax), %%rdi\n\t"
                     "leaq 6(%%rax), %%r8\n\t"
                     "leaq 7(%%rax), %%r9\n\t"
                     "leaq 8(%%rax), %%r10\n\t"
                     "leaq 9(%%rax), %%r11\n\t"
                     "leaq 10(%%rax), %%r12\n\t"
                     "leaq 11(%%rax), %%r13\n\t"
                     "leaq 12(%%rax), %%r14\n\t"
                     "leaq 13(%%rax), %%r15\n"
                     "loop_begin: pause\n\t"
                     "jmp loop_begin\n"
                     "loop_end:\n"
                     :
                     : [base] "i"(MAGIC(0))
                     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
                       "r13", "r14", "r15", "memory", "cc");
    return (1u << 14) - 1;
#else
    /* x0-x28 but x18, which belongs to the platform; x29 is the frame. */
    __asm__ volatile("mov x0, %[base]\n\t"
                     "add x1, x0, #1\n\tadd x2, x0, #2\n\tadd x3, x0, #3\n\t"
                     "add x4, x0, #4\n\tadd x5, x0, #5\n\tadd x6, x0, #6\n\t"
                     "add x7, x0, #7\n\tadd x8, x0, #8\n\tadd x9, x0, #9\n\t"
                     "add x10, x0, #10\n\tadd x11, x0, #11\n\tadd x12, x0, #12\n\t"
                     "add x13, x0, #13\n\tadd x14, x0, #14\n\tadd x15, x0, #15\n\t"
                     "add x16, x0, #16\n\tadd x17, x0, #17\n\tadd x19, x0, #19\n\t"
                     "add x20, x0, #20\n\tadd x21, x0, #21\n\tadd x22, x0, #22\n\t"
                     "add x23, x0, #23\n\tadd x24, x0, #24\n\tadd x25, x0, #25\n\t"
                     "add x26, x0, #26\n\tadd x27, x0, #27\n\tadd x28, x0, #28\n\t"
                     "add x30, x0, #30\n"
                     "loop_begin: yield\n\t"
                     "b loop_begin\n"
                     "loop_end:\n"
                     :
                     : [base] "r"(MAGIC(0))
                     : "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11",
                       "x12", "x13", "x14", "x15", "x16", "x17", "x19", "x20", "x21", "x22", "x23",
                       "x24", "x25", "x26", "x27", "x28", "x30", "memory");
    return 0x7fffffffu & ~(1u << 18) & ~(1u << 29);
#endif
}

struct looper {
    _Atomic int tid;
    unsigned expected;
    _Atomic bool done;
};

static void *looper_main(void *arg)
{
    struct looper *l = arg;
    store_rel(&l->tid, os_gettid()); /* release: pairs with test_context */
    l->expected = context_loop();
    store_rel(&l->done, true); /* release: pairs with test_context */
    return NULL;
}

static void test_context(void **state)
{
    (void)state;
#if defined(__SANITIZE_THREAD__)
    skip(); /* it holds signals back until the next call that blocks, and gives a copy of the context */
#endif
    assert_int_equal(os_signal_install(SIGUSR2, context_handler, NULL), 0);
    static struct looper looper;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, looper_main, &looper), 0);
    while (load_acq(&looper.tid) == 0) { /* acquire: pairs with looper_main */
        os_sleep_ns(100000);
    }
    while (!load_acq(&looper.done)) { /* acquire: pairs with looper_main */
        os_tgkill(looper.tid, SIGUSR2);
        os_sleep_ns(1000000);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(load_rlx(&context_pc_good));
    assert_true(load_rlx(&context_sp_good));
    assert_int_equal(load_rlx(&context_regs_seen), looper.expected);
}

/* -- alternate stacks -------------------------------------------------------------------------- */

static _Atomic uintptr_t alt_low;
static _Atomic uintptr_t alt_high;

static void alt_handler(int signo, void *siginfo, void *ucontext)
{
    (void)signo;
    (void)siginfo;
    uintptr_t low = 0;
    uintptr_t high = 0;
    if (os_altstack_bounds((uintptr_t)__builtin_frame_address(0), &low, &high) &&
        !os_altstack_bounds(os_context_sp(ucontext), &low, &high)) {
        store_rlx(&alt_low, low);
        store_rlx(&alt_high, high);
    }
}

/* ---- [frame.others] ---- */

enum { LOOKED_AT = 64 };
static uintptr_t words_looked_at[LOOKED_AT];
static _Atomic bool end_looking;

static void *look_for_frames(void *arg)
{
    (void)arg;
    while (!load_acq(&end_looking)) {
        os_signal_frames_restart((uintptr_t)words_looked_at,
                                 (uintptr_t)(words_looked_at + LOOKED_AT));
    }
    return NULL;
}

/* What another thread writes into a word that looks like a frame's stays as it wrote it. Where a frame is
 * known by the address that its handler returns to, there is that address everywhere before the word. */
static void test_frames_leave_others_words(void **state)
{
    (void)state;
    struct {
        uintptr_t handler, flags, restorer;
        uint64_t mask;
    } action = {0, 0, 0, 0};
    os_signal_fn *fn = ours;
    assert_int_equal(os_signal_install(SIGNO, fn, NULL), 0);
    assert_int_equal(syscall(SYS_rt_sigaction, SIGNO, NULL, &action, sizeof(action.mask)), 0);
    for (size_t i = 0; i < LOOKED_AT; i++) {
        words_looked_at[i] = action.restorer;
    }
    _Atomic uintptr_t *word = (_Atomic uintptr_t *)&words_looked_at[LOOKED_AT - 1];
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, look_for_frames, NULL), 0);
    for (uintptr_t i = 0; i < 1000000; i++) {
        store_rlx(word, (uintptr_t)1);
        for (int wait = (int)(i % 64); wait > 0; wait--) {
            compiler_barrier();
        }
        store_rlx(word, (uintptr_t)0);
        for (int wait = 0; wait < 64; wait++) {
            assert_int_equal(load_rlx(word), 0);
        }
    }
    store_rel(&end_looking, true);
    pthread_join(t, NULL);
}

static void test_altstack(void **state)
{
    (void)state;
    uintptr_t low = 0;
    uintptr_t high = 0;
    assert_int_equal(os_signal_install(SIGUSR2, alt_handler, NULL), 0);
    stack_t old;
    stack_t ss;
    memset(&ss, 0, sizeof(ss));
    ss.ss_size = KIB(256);
    ss.ss_sp = os_map(ss.ss_size);
    assert_non_null(ss.ss_sp);
    assert_int_equal(sigaltstack(&ss, &old), 0);
    raise(SIGUSR2);
    assert_int_equal(load_rlx(&alt_low), (uintptr_t)ss.ss_sp);
    assert_int_equal(load_rlx(&alt_high), (uintptr_t)ss.ss_sp + ss.ss_size);
    assert_false(os_altstack_bounds((uintptr_t)__builtin_frame_address(0), &low, &high));
    old.ss_flags = old.ss_sp == NULL ? SS_DISABLE : old.ss_flags;
    assert_int_equal(sigaltstack(&old, NULL), 0);
    os_release(ss.ss_sp, ss.ss_size);
}

/* -- spilled registers ------------------------------------------------------------------------- */

struct spilled {
    unsigned seen;
    uintptr_t sp;
    bool aligned;
};

#if defined(__x86_64__)
#define SPILL_BYTES 56
#else
#define SPILL_BYTES 160
#endif

static NO_SANITIZE void spilled_fn(void *arg, uintptr_t sp)
{
    struct spilled *s = arg;
    s->sp = sp;
    s->aligned = sp % 16 == 0 && (uintptr_t)__builtin_frame_address(0) < sp;
    s->seen = 0;
    for (uintptr_t at = sp; at < sp + SPILL_BYTES; at += sizeof(uintptr_t)) {
        for (unsigned i = 0; i < 32; i++) {
            s->seen |= *(const uintptr_t *)at == MAGIC(i) ? 1u << i : 0;
        }
    }
}

static NOINLINE unsigned spill_call(struct spilled *s)
{
    void (*fn)(void *, uintptr_t) = spilled_fn;
    void *arg = s;
    uint64_t base = MAGIC(0);
#if defined(__x86_64__)
    register uint64_t r12 __asm__("r12") = base + 1;
    register uint64_t r13 __asm__("r13") = base + 2;
    register uint64_t r14 __asm__("r14") = base + 3;
    register uint64_t r15 __asm__("r15") = base + 4;
    /* Below the red zone, sp as for a call. */
    __asm__ volatile("pushq %%rbp\n\t"
                     "movq %%rsp, %%rbp\n\t"
                     "subq $136, %%rsp\n\t"
                     "andq $-16, %%rsp\n\t"
                     "call os_call_spilled\n\t"
                     "movq %%rbp, %%rsp\n\t"
                     "popq %%rbp"
                     : "+D"(fn), "+S"(arg), "+b"(base), "+r"(r12), "+r"(r13), "+r"(r14), "+r"(r15)
                     :
                     : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
    if (base != MAGIC(0) || r12 != MAGIC(1) || r13 != MAGIC(2) || r14 != MAGIC(3) ||
        r15 != MAGIC(4)) {
        return 0;
    }
    return 0x1f;
#else
    register void *x0 __asm__("x0") = (void *)(uintptr_t)fn;
    register void *x1 __asm__("x1") = arg;
    __asm__ volatile("mov x19, %[base]\n\t"
                     "add x20, x19, #1\n\tadd x21, x19, #2\n\tadd x22, x19, #3\n\t"
                     "add x23, x19, #4\n\tadd x24, x19, #5\n\tadd x25, x19, #6\n\t"
                     "add x26, x19, #7\n\tadd x27, x19, #8\n\tadd x28, x19, #9\n\t"
                     "add x2, x19, #10\n\tfmov d8, x2\n\t"
                     "add x2, x19, #17\n\tfmov d15, x2\n\t"
                     "bl os_call_spilled\n\t"
                     "sub x28, x28, x19\n\t"
                     "cmp x28, #9\n\t"
                     "csel x0, x0, xzr, eq\n"
                     : "+r"(x0), "+r"(x1)
                     : [base] "r"(base)
                     : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
                       "x14", "x15", "x16", "x17", "x19", "x20", "x21", "x22", "x23", "x24", "x25",
                       "x26", "x27", "x28", "x30", "d8", "d15", "memory", "cc");
    return 0x3ff | 1u << 10 | 1u << 17;
#endif
}

static void test_spill(void **state)
{
    (void)state;
    struct spilled s = {0, 0, false};
    unsigned expected = spill_call(&s);
    assert_int_not_equal(expected, 0);
    assert_int_equal(s.seen, expected);
    assert_true(s.aligned);
}

/* -- threads ----------------------------------------------------------------------------------- */

struct worker {
    _Atomic uint32_t done;
    int tid;
    bool blocked;
    bool bounds;
    size_t stack;
    char name[16];
    int low; /* nice value at OS_PRIORITY_LOW */
    int quick_policy;
};

static void worker_main(void *arg)
{
    struct worker *w = arg;
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    w->blocked = sigismember(&set, SIGNO) == 1 && sigismember(&set, SIGTERM) == 1 &&
                 sigismember(&set, SIGSEGV) == 1;
    uintptr_t low = 0;
    uintptr_t high = 0;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    w->bounds = os_stack_bounds(&low, &high) && low < here && here < high;
    w->stack = high - low;
    prctl(PR_GET_NAME, w->name);
    w->tid = os_gettid();
    os_thread_set_priority(0, OS_PRIORITY_LOW);
    w->low = getpriority(PRIO_PROCESS, 0);
    os_thread_set_priority(0, OS_PRIORITY_NORMAL);
    os_thread_set_priority(0, OS_PRIORITY_QUICK);
    w->quick_policy = (int)syscall(SYS_sched_getscheduler, 0);
    store_rel(&w->done, 1u); /* release: pairs with test_thread */
    os_futex_wake(&w->done, 1);
}

static void test_thread(void **state)
{
    (void)state;
    sigset_t before;
    sigset_t after;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    static struct worker w;
    assert_int_equal(os_thread_start(worker_main, &w, "a name that is too long"), 0);
    while (load_acq(&w.done) == 0) { /* acquire: pairs with worker_main */
        os_futex_wait(&w.done, 0, -1);
    }
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    assert_int_equal(sigismember(&before, SIGNO), sigismember(&after, SIGNO));
    assert_true(w.blocked);
    assert_true(w.bounds);
    assert_true(w.stack >= KIB(256));
    assert_string_equal(w.name, "a name that is ");
    assert_true(w.tid != os_gettid());
    int own = getpriority(PRIO_PROCESS, (id_t)getpid());
    assert_int_equal(w.low, own + 10 < 19 ? own + 10 : 19);
    assert_int_equal(w.quick_policy, SCHED_OTHER);
    assert_int_equal(getpriority(PRIO_PROCESS, (id_t)getpid()), own);
    for (int i = 0; i < 5000 && os_tgkill(w.tid, 0) == 0; i++) {
        os_sleep_ns(1000000);
    }
    assert_int_equal(os_tgkill(w.tid, 0), ESRCH);

    store_rlx(&os_fail_at, 1);
    assert_int_equal(os_thread_start(worker_main, &w, "no"), EAGAIN);
}

static void test_ncpu(void **state)
{
    (void)state;
    assert_true(os_ncpu() >= 1);
    cpu_set_t all;
    cpu_set_t one;
    if (sched_getaffinity(0, sizeof(all), &all) != 0) {
        skip();
    }
    assert_int_equal(os_ncpu(), CPU_COUNT(&all));
    int first = 0;
    while (!CPU_ISSET(first, &all)) {
        first++;
    }
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(os_ncpu(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

int main(void)
{
    os_tls_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_program_without_handler),
        cmocka_unit_test(test_program_handlers),
        cmocka_unit_test(test_no_endless_chain),
        cmocka_unit_test(test_jump_out_of_a_chained_handler),
        cmocka_unit_test(test_whose_signal),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_frames_leave_others_words),
        cmocka_unit_test(test_altstack),
        cmocka_unit_test(test_spill),
        cmocka_unit_test(test_thread),
        cmocka_unit_test(test_ncpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
