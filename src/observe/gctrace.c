/* gctrace.c - one line a cycle on stderr: GODEBUG=gctrace=1, gcpacertrace=1, scavtrace=1.
 *
 * Purpose     Go's format, so that what reads Go's traces reads these; docs/internals/gctrace.md
 *             says what each number means here.
 * Locking     none: the collector's thread, between two cycles. One write per line, no allocation.
 * From Go     printing in gcMarkTermination (mgc.go) and gcControllerState.endCycle; differs: loam
 *             does not stop, so where Go prints its stops handshakes stand; fields after ` | ` are
 *             ours.
 * Tests       tests/api/environment.c
 */
#include "observe/observe.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

enum { MS_TEXT = 32, LINE = 512 };

struct ms_text {
    char s[MS_TEXT];
};

/* As Go's fmtNSAsMS: whole milliseconds from 10 ms on, else two digits, three decimals at most. */
static struct ms_text as_ms(int64_t ns)
{
    struct ms_text t;
    uint64_t us = ns > 0 ? (uint64_t)ns / 1000 : 0;
    if (us >= 10000) {
        snprintf(t.s, sizeof t.s, "%" PRIu64, us / 1000);
        return t;
    }
    uint64_t scale = 1000;
    int decimals = 3;
    while (us >= 100) {
        us /= 10;
        scale /= 10;
        decimals--;
    }
    if (us == 0) {
        snprintf(t.s, sizeof t.s, "0");
    } else {
        snprintf(t.s, sizeof t.s, "%" PRIu64 ".%0*" PRIu64, us / scale, decimals, us % scale);
    }
    return t;
}

static void write_line(const char *line, int len)
{
    ssize_t ignored = write(STDERR_FILENO, line, len < LINE ? (size_t)len : (size_t)LINE - 1);
    (void)ignored;
}

void gctrace_print_cycle(void)
{
    const struct gc_cycle_stats *st = &gc.last;
    char line[LINE];
    int64_t begin = st->mark_begin - st->begin;
    int64_t end = st->given_back - st->mark_end;
    uint64_t at_ms = (uint64_t)(st->begin - observe.start) / 1000000;
    int n = snprintf(
        line, sizeof line,
        "gc %" PRIu32 " @%" PRIu64 ".%03" PRIu64
        "s %d%%: %s+%s+%s ms clock, %s+%s/%s/%s+%s ms cpu, "
        "%" PRIu64 "->%" PRIu64 "->%" PRIu64 " MB, %" PRIu64 " MB goal, %" PRIu64 " MB stacks, "
        "%" PRIu64 " MB globals, %d P%s | handshake max %" PRId64 "us, pause max %" PRIu64
        "us, answer max %" PRIu64 "us, rounds %" PRIu32 "\n",
        st->number, at_ms / 1000, at_ms % 1000, (int)(observe_gc_cpu_fraction() * 100),
        as_ms(begin).s, as_ms(st->mark_end - st->mark_begin).s, as_ms(end).s, as_ms(begin).s,
        as_ms(st->assist_ns).s, as_ms(st->worker_ns).s, as_ms(st->idle_ns).s, as_ms(end).s,
        st->live_begin >> 20, st->live_end >> 20, st->marked >> 20, st->goal >> 20,
        st->stack_scan >> 20, st->globals_scan >> 20, load_rlx(&gc.options.max_procs),
        st->forced ? " (forced)" : "", st->handshake_ns / 1000, st->pause_max_ns / 1000,
        st->answer_max_ns / 1000, st->rounds);
    write_line(line, n);
}

void gctrace_print_pacer(void)
{
    const struct gc_cycle_stats *st = &gc.last;
    char line[LINE];
    double all = (double)(st->mark_end - st->mark_begin) * load_rlx(&gc.options.max_procs);
    double used = (double)(st->worker_ns + st->assist_ns);
    uint64_t scan = load_rlx(&gc.scan_work);
    uint64_t of_heap = scan > st->globals_scan ? scan - st->globals_scan : 0;
    int n = snprintf(line, sizeof line,
                     "pacer: %d%% CPU (%d exp.) for %" PRIu64 "+%" PRIu64 "+%" PRIu64
                     " B work in %" PRIu64 " B -> %" PRIu64 " B (goal %" PRIu64 " B, delta %" PRId64
                     ", cons/mark %.3e)\n",
                     all > 0 ? (int)(used / all * 100) : 0, (int)(PACER_UTILIZATION * 100), of_heap,
                     st->stack_scan, st->globals_scan, st->live_begin, st->live_end, st->goal,
                     (int64_t)(st->live_end - st->goal), gc.pacer.cons_mark[0]);
    write_line(line, n);
}

/* Since the last line; forced: loam_free_os_memory. */
void gctrace_print_scavenger(bool forced)
{
    static _Atomic uint64_t told_bg, told_eager;
    uint64_t bg = load_rlx(&gc.scavenged_bg);
    uint64_t eager = load_rlx(&gc.scavenged_eager);
    mutex_lock(&heap.lock);
    uint64_t released = (uint64_t)mheap_pages_locked().scavenged << PAGE_SHIFT;
    uint64_t inuse = load_rlx(&heap.stats.heap_inuse);
    uint64_t have = load_rlx(&heap.stats.heap_sys) - released;
    mutex_unlock(&heap.lock);
    char line[LINE];
    int n = snprintf(line, sizeof line,
                     "scav %" PRIu64 " KiB work (bg), %" PRIu64 " KiB work (eager), %" PRIu64
                     " KiB now, %" PRIu64 "%% util%s\n",
                     (bg - xchg_rlx(&told_bg, bg)) >> 10,
                     (eager - xchg_rlx(&told_eager, eager)) >> 10, released >> 10,
                     have == 0 ? 0 : inuse * 100 / have, forced ? " (forced)" : "");
    write_line(line, n);
}
