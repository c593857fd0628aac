/* test_pacer.c - the pacer drives a model of a program and of a collector.
 *
 * Claim   A steady program's heap at the end of marking is within a tenth of the goal from the 25th
 *         cycle on, background and assists together take about the background's quarter of the
 *         processors, and a program whose behaviour changes comes back to that. Whatever the numbers,
 *         goal, trigger and assist are finite and in order: marked <= trigger <= goal. The collector
 *         tells it of every stack.
 * Oracle  struct program: bytes allocated and scanned per processor and nanosecond; time advances in
 *         slices of 200 us, as the collector's, in which the background marks on a quarter of the
 *         processors and the program allocates on the rest, paying assists by assist_work_per_mib from
 *         the background's credit first.
 * Replay  --seed N; --print shows every cycle
 */
#include "gc/gc.h"

#include "base/bits.h"
#include "base/rng.h"
#include "os/os.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

enum { CYCLES = 60, SETTLED = 25 };

static uint64_t seed, rng;
static bool print;

/* -- the model --------------------------------------------------------------------------------- */

/* Rates in KiB per millisecond of one processor, sizes in bytes. */
struct program {
    const char *name;
    int procs, gc_percent;
    double alloc, scan;
    double live;      /* what a cycle would find alive if the program stood still */
    double scannable; /* share of it that is scanned */
    double stacks, globals;
    double alloc_jitter; /* allocation is up to so many times more, or less */
    int step_at;         /* from this cycle on */
    double step_alloc;   /* allocation times this */
    double step_live;    /* live heap times this */
    double live_growth;  /* of the live heap in each of the first cycles, until it is `live` */
    /* what is expected when settled */
    double least_ratio, most_ratio; /* heap at the end of marking / goal */
    double most_util;
};

struct result {
    double ratio; /* heap at the end of marking / goal */
    double util;  /* background and assists / all processor time while marking */
    double peak, goal, trigger, marked;
};

static double jitter(const struct program *p)
{
    if (p->alloc_jitter == 0) {
        return 1;
    }
    double x = (double)(rng_next(&rng) >> 11) / (double)(UINT64_C(1) << 53); /* 0..1 */
    return pow(p->alloc_jitter, 2 * x - 1);
}

/* One cycle, from `size` live bytes; what is live after it. */
static double run_cycle(struct pacer *pc, const struct program *p, int number, double size,
                        struct result *r)
{
    const double slice = 200000, per_ns = 1024 / 1e6;
    bool stepped = p->step_at != 0 && number >= p->step_at;
    double alloc = p->alloc * (stepped ? p->step_alloc : 1) * jitter(p) * per_ns;
    double scan = p->scan * per_ns;
    double live = p->live * (stepped && p->step_live != 0 ? p->step_live : 1);
    if (p->live_growth != 0) {
        double grown = 1e6 * pow(p->live_growth, number);
        live = grown < live ? grown : live;
    }
    if (pc->trigger != UINT64_MAX && size < (double)pc->trigger) {
        size = (double)pc->trigger; /* the program allocates until then */
    }
    *r = (struct result){.trigger = size, .goal = (double)pc->goal};
    pacer_start_cycle(pc, (uint64_t)size);
    r->goal = (double)pc->goal; /* it may have been moved */
    double work = live * p->scannable + p->stacks + p->globals;
    double done = p->stacks; /* threads scan their stacks themselves, at once */
    double credit = 0, allocated = 0, assisted_ns = 0, ns = 0;
    while (done < work) {
        double owed = (double)load_rlx(&pc->assist_work_per_mib) / (double)MIB(1);
        double program_ns = slice * p->procs * (1 - PACER_UTILIZATION);
        double background = slice * p->procs * PACER_UTILIZATION * scan;
        credit += background;
        double bytes = program_ns * alloc;
        if (bytes * owed > credit) { /* allocating and assisting share the program's processors */
            bytes = (program_ns + credit / scan) / (1 / alloc + owed / scan);
        }
        double assist = bytes * owed > credit ? bytes * owed - credit : 0;
        credit = bytes * owed > credit ? 0 : credit - bytes * owed;
        done += background + assist;
        assisted_ns += assist / scan;
        allocated += bytes;
        ns += slice;
        pacer_revise(pc, (uint64_t)(size + allocated), (uint64_t)done);
        assert_true(ns < 1e14);
    }
    r->peak = size + allocated;
    r->ratio = r->peak / r->goal;
    r->util = PACER_UTILIZATION + assisted_ns / (ns * p->procs);
    r->marked = live + allocated; /* what is allocated while marking is marked */
    struct pacer_cycle c = {.live = (uint64_t)r->peak,
                            .marked = (uint64_t)r->marked,
                            .scan_work = (uint64_t)work,
                            .stack_scan = (uint64_t)p->stacks,
                            .globals_scan = (uint64_t)p->globals,
                            .duration_ns = ns,
                            .assist_ns = assisted_ns,
                            .procs = p->procs};
    pacer_end_cycle(pc, &c);
    return r->marked;
}

static void check_numbers(const struct pacer *p)
{
    for (int i = 0; i < 4; i++) {
        assert_true(isfinite(p->cons_mark[i]) && p->cons_mark[i] >= 0);
    }
    if (p->gc_percent < 0) {
        assert_true(p->goal == UINT64_MAX && p->trigger == UINT64_MAX);
    } else if (!(p->marked <= p->trigger && p->trigger <= p->goal)) {
        fail_msg("marked %llu trigger %llu goal %llu percent %d", (unsigned long long)p->marked,
                 (unsigned long long)p->trigger, (unsigned long long)p->goal, p->gc_percent);
    }
    uint64_t work = load_rlx(&p->assist_work_per_mib);
    assert_true(work <= UINT64_C(1) << 50); /* more would overflow what an allocation owes */
}

static bool is_settled(const struct program *p, int number)
{
    return number >= SETTLED &&
           (p->step_at == 0 || number < p->step_at || number >= p->step_at + SETTLED);
}

static void run_program(const struct program *p)
{
    struct pacer pc;
    memset(&pc, 0, sizeof pc);
    pacer_init(&pc, p->gc_percent);
    double size = 0;
    int bad = 0;
    double worst_high = 0, worst_low = 1e9, worst_util = 0;
    for (int number = 1; number <= CYCLES; number++) {
        struct result r;
        size = run_cycle(&pc, p, number, size, &r);
        check_numbers(&pc);
        if (print) {
            printf(
                "%-16s %3d trigger %8.2f peak %8.2f goal %8.2f MB ratio %.3f util %.3f c/m %.3f\n",
                p->name, number, r.trigger / 1e6, r.peak / 1e6, r.goal / 1e6, r.ratio, r.util,
                pc.cons_mark[0]);
        }
        if (is_settled(p, number)) {
            worst_high = r.ratio > worst_high ? r.ratio : worst_high;
            worst_low = r.ratio < worst_low ? r.ratio : worst_low;
            worst_util = r.util > worst_util ? r.util : worst_util;
            bad += r.ratio < p->least_ratio || r.ratio > p->most_ratio || r.util > p->most_util;
        }
    }
    printf("%s: settled, heap/goal %.3f to %.3f, utilisation at most %.3f\n", p->name, worst_low,
           worst_high, worst_util);
    assert_int_equal(bad, 0);
}

/* What a program does not say is that of a steady one. */
static struct program completed(const struct program *given)
{
    struct program p = *given;
#define DEFAULT(field, value) p.field = p.field == 0 ? (value) : p.field
    DEFAULT(procs, 8);
    DEFAULT(gc_percent, 100);
    DEFAULT(alloc, 33);
    DEFAULT(scan, 1024);
    DEFAULT(live, 64e6);
    DEFAULT(scannable, 1);
    DEFAULT(stacks, 8192);
    DEFAULT(globals, 32768);
    DEFAULT(least_ratio, 0.90);
    DEFAULT(most_ratio, 1.10);
    DEFAULT(most_util, 0.30);
#undef DEFAULT
    return p;
}

/* -- programs ---------------------------------------------------------------------------------- */

static const struct program programs[] = {
    {.name = "steady"},
    {.name = "steady fast", .alloc = 200, .most_util = 0.35}, /* the trigger is at its lowest */
    {.name = "steady 1 proc", .procs = 1},
    {.name = "steady 2 procs", .procs = 2, .alloc = 100},
    {.name = "ramp", .live_growth = 2},
    {.name = "big stacks", .alloc = 132, .stacks = 128e6},
    {.name = "big globals", .alloc = 132, .globals = 128e6},
    {.name = "half noscan", .scannable = 0.5, .alloc = 100},
    {.name = "nearly noscan", .scannable = 0.01, .alloc = 100},
    {.name = "step alloc", .step_at = 30, .step_alloc = 3},
    {.name = "step down", .alloc = 99, .step_at = 30, .step_alloc = 0.33},
    {.name = "step live", .step_at = 30, .step_alloc = 1, .step_live = 1.3},
    {.name = "jitter", .alloc = 66, .alloc_jitter = 1.2, .most_util = 0.40},
    {.name = "heavy jitter",
     .alloc = 66,
     .alloc_jitter = 2,
     .least_ratio = 0.85,
     .most_util = 0.60},
    {.name = "GOGC 1500", .gc_percent = 1500, .alloc = 165},
    {.name = "GOGC 1500 fast", .gc_percent = 1500, .alloc = 800},
    {.name = "GOGC 25", .gc_percent = 25},
    {.name = "tiny heap", .live = 1e6},
};

static void test_program(void **state)
{
    struct program p = completed(*state);
    run_program(&p);
}

static void test_gogc_off(void **state)
{
    (void)state;
    struct pacer pc;
    memset(&pc, 0, sizeof pc);
    struct program p = completed(&(struct program){.name = "GOGC off", .gc_percent = -1});
    pacer_init(&pc, -1);
    assert_true(pc.goal == UINT64_MAX && pc.trigger == UINT64_MAX);
    struct result r;
    for (int i = 1; i <= 5; i++) { /* forced cycles */
        run_cycle(&pc, &p, i, 100e6 * i, &r);
        check_numbers(&pc);
        assert_true(pc.trigger == UINT64_MAX);
        assert_true(r.util <= 0.5);
    }
    pc.gc_percent = 100; /* on again: from what the last cycle found */
    pacer_commit(&pc);
    check_numbers(&pc);
    assert_true(pc.goal >= 2 * pc.marked && pc.goal < 3 * pc.marked);
}

/* A step that is too much: the heap outgrows its goal in that cycle, and not without limit. */
static void test_live_heap_explodes(void **state)
{
    (void)state;
    struct pacer pc;
    memset(&pc, 0, sizeof pc);
    struct program p = completed(&(struct program){.name = "explodes"});
    struct result r;
    double size = 0;
    pacer_init(&pc, 100);
    for (int i = 1; i <= 30; i++) {
        size = run_cycle(&pc, &p, i, size, &r);
    }
    double goal = (double)pc.goal;
    p.live *= 2; /* all that was allocated since the last cycle turns out to be alive */
    p.alloc *= 10;
    run_cycle(&pc, &p, 31, size, &r);
    check_numbers(&pc);
    assert_true(r.peak < 2.2 * goal); /* one more GOGC, and a tenth */
}

/* -- extremes ---------------------------------------------------------------------------------- */

static const uint64_t sizes[] = {
    0, 1, 8191, MIB(4), GIB(1), (uint64_t)GIB(1) << 20, UINT64_MAX / 4, UINT64_MAX / 2,
};
static const double times[] = {0, 1, 1e6, 1e18};
static const int percents[] = {-1, 0, 1, 100, 1500, INT_MAX};
static const int many_procs[] = {0, 1, 64, INT_MAX};

#define ANY(array) ((array)[(rng_next(&rng) >> 11) % COUNT_OF(array)])

static void check_revise(struct pacer *p)
{
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        pacer_revise(p, sizes[i], ANY(sizes));
        check_numbers(p);
        assert_true(load_rlx(&p->assist_work_per_mib) > 0);
        assert_true(load_rlx(&p->assist_goal) > 0);
    }
}

static void test_extremes(void **state)
{
    (void)state;
    for (int i = 0; i < 20000; i++) {
        struct pacer p;
        memset(&p, 0, sizeof p);
        pacer_init(&p, ANY(percents));
        check_numbers(&p);
        p.min_heap = (int64_t)(ANY(sizes) >> 1);
        pacer_commit(&p);
        check_numbers(&p);
        for (int k = 0; k < 6; k++) {
            pacer_start_cycle(&p, ANY(sizes));
            assert_true(p.goal >= p.triggered || p.triggered >= UINT64_MAX / 2);
            check_revise(&p);
            struct pacer_cycle c = {
                .live = ANY(sizes),
                .marked = ANY(sizes),
                .scan_work = ANY(sizes),
                .stack_scan = ANY(sizes),
                .globals_scan = ANY(sizes),
                .duration_ns = ANY(times),
                .assist_ns = ANY(times),
                .idle_ns = ANY(times),
                .procs = ANY(many_procs),
            };
            pacer_end_cycle(&p, &c);
            check_numbers(&p);
            p.gc_percent = ANY(percents);
            pacer_commit(&p);
            check_numbers(&p);
        }
    }
}

/* What the program set is the least trigger, whatever GOGC is; Go's floor is scaled by it. */
static void test_min_heap(void **state)
{
    static const int at[] = {10, 100, 400};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(at); i++) {
        struct pacer p;
        memset(&p, 0, sizeof p);
        pacer_init(&p, at[i]);
        assert_int_equal(pacer_min_heap(&p), (int64_t)(4 << 20) * at[i] / 100);
        assert_true(p.goal / 100 == (4 << 20) / 100 * (uint64_t)at[i] / 100);
        p.min_heap = 64 << 20;
        pacer_commit(&p);
        assert_int_equal(pacer_min_heap(&p), 64 << 20);
        assert_int_equal(p.trigger, 64 << 20);
        assert_in_range(p.goal, (64 << 20) + (4 << 20), (64 << 20) + (16 << 20));
        p.marked = 200 << 20;
        pacer_commit(&p);
        struct pacer q = p;
        q.min_heap = -1;
        pacer_commit(&q);
        if (at[i] >= 100) { /* of no meaning above it */
            assert_int_equal(p.trigger, q.trigger);
            assert_int_equal(p.goal, q.goal);
        }
        p.min_heap = 0;
        p.marked = 1 << 20;
        pacer_commit(&p);
        assert_true(p.goal <= (1 << 20) + (uint64_t)(1 << 20) * (uint64_t)at[i] / 100);
    }
}

/* GOGC=0 collects as often as it can, and still lets the program get on. */
static void test_gogc_0(void **state)
{
    (void)state;
    struct pacer pc;
    memset(&pc, 0, sizeof pc);
    struct program p = completed(&(struct program){.name = "GOGC 0"});
    p.gc_percent = 0;
    struct result r;
    double size = 0;
    pacer_init(&pc, 0);
    for (int i = 1; i <= 30; i++) {
        size = run_cycle(&pc, &p, i, size, &r);
        check_numbers(&pc);
        assert_true(r.peak < 2 * p.live);
    }
}

/* What the collector tells the pacer: stacks of the program's own are stacks. */
static void test_stacks_are_counted(void **state)
{
    (void)state;
    enum { BYTES = 16 << 20 };
    void *area = os_map(BYTES);
    assert_non_null(area);
    loam_stack *s = loam_stack_add(area, BYTES, NULL);
    assert_non_null(s);
    loam_gc();
    assert_true(gc.last.stack_scan >= BYTES && gc.last.stack_scan < 2 * BYTES);
    assert_true(gc.pacer.stack_scan == gc.last.stack_scan);
    loam_stack_remove(s);
    loam_gc();
    assert_true(gc.last.stack_scan < BYTES);
    os_release(area, BYTES);
}

int main(int argc, char **argv)
{
    seed = (uint64_t)os_nanotime() % 1000000;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            seed = strtoull(argv[++i], NULL, 0);
        } else if (strcmp(argv[i], "--print") == 0) {
            print = true;
        }
    }
    printf("seed %llu\n", (unsigned long long)seed);
    rng = seed * UINT64_C(0x9E3779B97F4A7C15) | 1;
    const struct CMUnitTest others[] = {
        cmocka_unit_test(test_gogc_off),           cmocka_unit_test(test_gogc_0),
        cmocka_unit_test(test_live_heap_explodes), cmocka_unit_test(test_min_heap),
        cmocka_unit_test(test_extremes),           cmocka_unit_test(test_stacks_are_counted),
    };
    struct CMUnitTest simulated[COUNT_OF(programs)];
    for (size_t i = 0; i < COUNT_OF(programs); i++) {
        simulated[i] = (struct CMUnitTest){.name = programs[i].name,
                                           .test_func = test_program,
                                           .initial_state = (void *)(uintptr_t)&programs[i]};
    }
    int failed = cmocka_run_group_tests(others, NULL, NULL);
    return failed + _cmocka_run_group_tests("programs", simulated, COUNT_OF(programs), NULL, NULL);
}
