/* report.c - what each goroutine does, for people: asked for, when all wait for ever, and in a crash.
 *
 * Model       A parked stack is walked by the C library's unwinder, which is led onto it by a frame that looks as if the
 *             goroutine had called us from where it was left (os_backtrace_of). It runs on that stack, below what is in
 *             use, so the goroutine is claimed meanwhile, as by the collector.
 * From Go     traceback.go, checkdead; differs: a process whose other threads may still wake a goroutine is not stuck.
 * Tests       tests/api/channels.c (the report of a deadlock), tests/api/goroutines.c (an overflow)
 */
#include "sched/sched.h"

#include "base/check.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <loam/sched.h>

enum {
    FRAMES = 32,           /* in a crash */
    ROOM_BYTES = 16 << 10, /* of a stack, for the unwinder */
    CRASH_MOST = 100,      /* goroutines told of in a crash */
    TRIES = 100,           /* to look at one that somebody else looks at */
    PAUSE_NS = 100000,
};

static bool put(int fd, const char *text, size_t n)
{
    while (n != 0) {
        ssize_t done = write(fd, text, n);
        if (done < 0 && errno != EINTR) {
            return false;
        }
        text += done > 0 ? done : 0;
        n -= done > 0 ? (size_t)done : 0;
    }
    return true;
}

PRINTF_LIKE(2, 3) static bool say(int fd, const char *fmt, ...)
{
    char line[256];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    return n < 0 || put(fd, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

static bool say_head(int fd, const struct g *g, const char *state)
{
    return say(fd, "goroutine %llu [%s]%s%s:\n", (unsigned long long)g->id, state,
               g->name[0] != 0 ? " " : "", g->name);
}

struct looking {
    struct goroutine_look look;
    struct g *g;
    bool done;
};

/* Busy while the goroutine is claimed, so that nobody who waits for it waits for a thread that stands still; and
 * called with the loader's lock where the unwinder takes that, too, and which is held while threads are made to stop. */
static void look_once(void *arg, uintptr_t start, size_t bytes)
{
    struct looking *l = arg;
    struct goroutine_look *look = &l->look;
    struct g *g = l->g;
    struct m *m = m_self;
    (void)start, (void)bytes;
    if (l->done) {
        return;
    }
    l->done = true;
    if (m != NULL) {
        m_enter_shallow(m);
    }
    look->why = load_acq(&g->status) == G_RUNNING ? "running" : NULL;
    if (gscan_claim(g, G_PARKED)) {
        const char *why = load_rlx(&g->why);
        look->why = why != NULL ? why : "runnable";
        look->n = g->sp - g->stack_low > ROOM_BYTES
                      ? os_backtrace_of(g->sp, look->pcs, GOROUTINE_FRAMES)
                      : 0;
        gscan_unclaim(g);
    }
    if (m != NULL) {
        m_leave_shallow(m);
    }
}

/* Somebody else may have it in hand: the collector, or another report. */
bool report_look(uint32_t index, struct goroutine_look *look)
{
    for (int i = 0; i < TRIES; i++) {
        struct looking l = {.g = allg_get(index)};
        if (load_acq(&l.g->status) == G_DEAD) {
            return false;
        }
        if (os_unwind_locks()) {
            os_each_data_range(look_once, &l);
        } else {
            look_once(&l, 0, 0);
        }
        if (l.look.why != NULL) {
            *look = l.look;
            return true;
        }
        os_sleep_ns(PAUSE_NS);
    }
    return false;
}

static bool report_one(int fd, uint32_t index, struct goroutine_look *look)
{
    bool ok = say_head(fd, allg_get(index), look->why);
    if (look->n != 0) {
        os_backtrace_write(look->pcs, look->n, fd);
    }
    return ok && put(fd, "\n", 1);
}

static int report(int fd, uint32_t most)
{
    uint32_t told = 0;
    for (uint32_t i = 0; i < allg_count(); i++) {
        struct goroutine_look look;
        if (!report_look(i, &look)) {
            continue;
        }
        if (told++ == most) {
            (void)say(fd, "... and more\n");
            break;
        }
        if (!report_one(fd, i, &look)) {
            return -1;
        }
    }
    return 0;
}

int loam_write_goroutines(int fd)
{
    return report(fd, UINT32_MAX);
}

/* -- all wait ---------------------------------------------------------------------------------- */

/* Who polls may have begun when there was something to wait for. What is in no list of those that wait is in the monitor's
 * hand, or in a queue: looked at in this order. */
static bool all_wait_locked(void)
{
    bool polls = load_sc(&sched.polling);
    if (sched.nidle_workers + (polls ? 1 : 0) != sched.nworkers || sched.starting != 0 ||
        (load_rlx(&sched.ngs) == 0 && load_rlx(&sched.waiting_threads) == 0) || sched_any_waits()) {
        return false;
    }
    fence_acq(); /* who has taken what waited has said so before */
    if (load_sc(&sched.in_hand) || sched_any_work()) {
        return false;
    }
    fence_acq();
    /* The same poller: with a goroutine in its hand it does not get back there without sched.lock. */
    return load_sc(&sched.polling) == polls;
}

/* No thread of the program could wake anybody: each of them waits for a goroutine. */
static bool no_thread_runs(void)
{
    int others = os_count_threads();
    return others >= 0 && (uint32_t)others <= load_acq(&sched.waiting_threads);
}

void report_if_stuck(void)
{
    mutex_lock(&sched.lock);
    bool stuck = all_wait_locked();
    mutex_unlock(&sched.lock);
    if (!stuck || !no_thread_runs()) {
        return;
    }
    mutex_lock(&sched.lock);
    stuck = all_wait_locked();
    mutex_unlock(&sched.lock);
    static _Atomic bool
        told; /* the worker that went to sleep last, and the monitor, may both find it out */
    if (stuck && no_thread_runs() && !xchg_rlx(&told, true)) {
        static const char what[] = "loam: fatal: all goroutines are asleep - deadlock!\n\n";
        (void)put(STDERR_FILENO, what, sizeof what - 1);
        (void)report(STDERR_FILENO, UINT32_MAX);
        _exit(2); /* Go's */
    }
}

/* -- crashes ----------------------------------------------------------------------------------- */

static struct g *crashed_on(void)
{
    struct worker *w = sched_worker();
    return w == NULL ? NULL : w->g;
}

/* On the alternate stack. What the program has for the signal goes first; without that the process dies of it. */
static void on_fault(int signo, void *info, void *ucontext)
{
    static _Atomic bool told;
    int saved_errno = errno;
    struct g *g = crashed_on();
    uintptr_t at = os_fault_address(info);
    bool first = g != NULL && !xchg_rlx(&told, true); /* relaxed: once is enough */
    if (first && stack_guards(g, at)) {
        (void)say(STDERR_FILENO,
                  "loam: fatal: the stack of goroutine %llu %s is full: it has %zu KiB "
                  "(loam_go_options.stack_bytes asks for more)\n",
                  (unsigned long long)g->id, g->name, (g->stack_high - g->stack_low) >> 10);
    }
    if (first) {
        (void)say_head(STDERR_FILENO, g, signo == SIGBUS ? "bus error" : "segmentation fault");
        void *pcs[FRAMES];
        size_t n = os_backtrace_context(ucontext, pcs, FRAMES);
        os_backtrace_write(pcs, n, STDERR_FILENO);
        (void)put(STDERR_FILENO, "\n", 1);
        (void)report(STDERR_FILENO, CRASH_MOST);
    }
    errno = saved_errno;
    os_signal_chain_fault(signo, info, ucontext);
}

void report_init(void)
{
    (void)os_signal_install(SIGSEGV, on_fault, NULL);
    (void)os_signal_install(SIGBUS, on_fault, NULL);
}
