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
    double alloc_jitter;   /* allocation is up to so many times more, or less */
    double alloc_swing;    /* it goes up and down by so much of itself, in eight cycles */
    double scan_swing;     /* and so does what is scanned of the live heap */
    int step_at;           /* from this cycle on */
    double step_alloc;     /* allocation times this */
    double step_live;      /* live heap times this */
    double step_scannable; /* what is scanned of it times this */
    double live_growth;    /* of the live heap in each of the first cycles, until it is `live` */
    /* what is expected when settled */
    double least_ratio, most_ratio; /* heap at the end of marking / goal */
    double most_util, least_util;
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
    double swing = sin(number * 3.14159265358979 / 4);
    double alloc = p->alloc * (stepped ? p->step_alloc : 1) * jitter(p) *
                   (1 + p->alloc_swing * swing) * per_ns;
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
    double scannable = p->scannable * (1 + p->scan_swing * swing) *
                       (stepped && p->step_scannable != 0 ? p->step_scannable : 1);
    double work = live * scannable + p->stacks + p->globals;
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

static void print_cycle(const char *name, int number, const struct result *r,
                        const struct pacer *pc)
{
    if (print) {
        printf("%-16s %3d trigger %8.2f peak %8.2f goal %8.2f MB ratio %.3f util %.3f c/m %.3f\n",
               name, number, r->trigger / 1e6, r->peak / 1e6, r->goal / 1e6, r->ratio, r->util,
               pc->cons_mark[0]);
    }
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
        print_cycle(p->name, number, &r, &pc);
        if (is_settled(p, number)) {
            worst_high = r.ratio > worst_high ? r.ratio : worst_high;
            worst_low = r.ratio < worst_low ? r.ratio : worst_low;
            worst_util = r.util > worst_util ? r.util : worst_util;
            bad += r.ratio < p->least_ratio || r.ratio > p->most_ratio || r.util > p->most_util ||
                   r.util < p->least_util;
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
    {.name = "steady",
     .least_ratio = 0.95,
     .most_ratio = 1.05,
     .least_util = 0.245,
     .most_util = 0.255},
    {.name = "steady fast", .alloc = 200, .most_util = 0.35}, /* the trigger is at its lowest */
    {.name = "small slow", .live = 2e6, .alloc = 1},
    {.name = "medium slow", .alloc = 1},
    {.name = "large slow", .live = 4e9, .alloc = 1},
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
    {.name = "step noscan", .alloc = 66, .step_at = 30, .step_alloc = 1, .step_scannable = 0.3},
    {.name = "step scan",
     .alloc = 66,
     .scannable = 0.3,
     .step_at = 30,
     .step_alloc = 1,
     .step_scannable = 3},
    {.name = "swing alloc", .alloc = 66, .alloc_swing = 0.4, .most_util = 0.40},
    {.name = "swing scan", .alloc = 66, .scannable = 0.6, .scan_swing = 0.5, .most_util = 0.40},
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
/* -- the memory limit -------------------------------------------------------------------------- */

/* What is neither objects nor free pages is a twentieth of the heap here, and all free pages are kept. */
static void tell_memory(struct pacer *pc, uint64_t limit, double size)
{
    uint64_t used = (uint64_t)size;
    pc->memory =
        (struct pacer_memory){.limit = limit, .mapped = used + used / 20, .overhead = used / 20};
    pacer_commit(pc);
}

/* The goal leaves room for the overhead; the heap at the end of marking keeps to it, with GOGC off as well, also when
 * the program becomes larger than it was. Above the limit it is marked and little more, and below again it is back. */
static void test_memory_limit(void **state)
{
    (void)state;
    const uint64_t limit = MIB(512);
    for (int off = 0; off < 2; off++) {
        struct program p = {.procs = 4, .alloc = 500, .scan = 800, .live = 100e6, .scannable = 0.9};
        struct pacer pc;
        memset(&pc, 0, sizeof pc);
        pacer_init(&pc, off ? -1 : 400);
        double size = 4e6;
        for (int i = 0; i < CYCLES; i++) {
            struct result r;
            p.live = i < 20 ? 100e6 : i < 40 ? 380e6 : i < 50 ? 700e6 : 100e6;
            tell_memory(&pc, limit, size);
            /* What is marked, and a little, is a goal also where it does not fit. */
            assert_true(pc.goal <= limit || pc.goal <= pc.marked + pc.marked / 128 + KIB(256));
            assert_true(pc.trigger <= pc.goal);
            size = run_cycle(&pc, &p, i, size, &r);
            print_cycle(off ? "limit GOGC off" : "limit GOGC 400", i + 1, &r, &pc);
            if (i > 2 && i != 20 && i != 40 && i != 50 && i < 40) {
                assert_true(r.peak * 1.05 < (double)limit * 1.02);
                assert_true(off == 0 || r.peak > (double)limit * 0.6);
            }
            if (i > 42 && i < 50) {
                tell_memory(&pc, limit, size);
                assert_true((double)pc.goal < size * 1.02); /* as often as makes sense */
            }
        }
    }
}

/* Exactly Go's formula, where that is not clamped. */
static void test_limit_goal(void **state)
{
    (void)state;
    struct pacer pc;
    pacer_init(&pc, -1);
    pc.marked = MIB(100);
    pc.memory = (struct pacer_memory){.limit = MIB(1000), .mapped = MIB(400), .overhead = MIB(50)};
    pacer_commit(&pc);
    assert_int_equal(pc.goal, MIB(1000) - MIB(50) - MIB(1000) / 100 * 3);
    pc.memory = (struct pacer_memory){.limit = MIB(1000), .mapped = MIB(1200), .overhead = MIB(50)};
    pacer_commit(&pc);
    assert_int_equal(pc.goal, MIB(1000) - MIB(50) - MIB(200) - MIB(1000) / 100 * 3);
    pc.memory = (struct pacer_memory){.limit = MIB(10), .mapped = MIB(5), .overhead = MIB(1)};
    pc.marked = MIB(2);
    pacer_commit(&pc);
    assert_int_equal(pc.goal, MIB(10) - MIB(1) - MIB(1)); /* headroom of a MiB at least */
    pc.memory = (struct pacer_memory){.limit = 1, .mapped = MIB(400), .overhead = MIB(300)};
    pc.marked = MIB(256);
    pacer_commit(&pc);
    assert_true(pc.goal > pc.marked && pc.goal <= pc.marked + MIB(3)); /* no cycle without growth */
    assert_true(pc.trigger > pc.marked && pc.trigger <= pc.goal);
    pc.memory = (struct pacer_memory){
        .limit = MIB(1000), .mapped = MIB(400), .external = MIB(300), .overhead = MIB(50)};
    pacer_commit(&pc);
    assert_int_equal(pc.goal, MIB(1000) - MIB(50) - MIB(1000) / 100 * 3 + MIB(300));
    pc.memory = (struct pacer_memory){.limit = PACER_NO_LIMIT};
    pacer_commit(&pc);
    assert_true(pc.goal == UINT64_MAX && pc.trigger == UINT64_MAX);
}

/* Work that the collector has while it may: it settles at the share, whatever that is above the background's. */
static void test_cpu_limiter(void **state)
{
    (void)state;
    static const double shares[] = {0.3, 0.5, 0.9};
    for (size_t i = 0; i < COUNT_OF(shares); i++) {
        const int procs = 4;
        const int64_t slice = 1000000 * procs;
        struct pacer_limiter l;
        pacer_limiter_init(&l);
        assert_true(l.share == 0.5 && !l.limiting);
        l.share = shares[i];
        double collector = 0, all = 0;
        bool limited = false;
        for (int t = 0; t < 200000; t++) {
            double share = l.limiting ? PACER_UTILIZATION : 0.95;
            int64_t used = (int64_t)(share * (double)slice);
            pacer_limiter_account(&l, used, slice - used, procs);
            limited = limited || l.limiting;
            if (t >= 100000) {
                collector += (double)used;
                all += (double)slice;
            }
        }
        assert_true(limited);
        assert_true(fabs(collector / all - shares[i]) < 0.02);
    }
    struct pacer_limiter l;
    pacer_limiter_init(&l);
    for (int t = 0; t < 100000; t++) {
        pacer_limiter_account(&l, 450000, 550000, 1);
        assert_false(l.limiting); /* below its share it never acts */
    }
}

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
        cmocka_unit_test(test_memory_limit),
        cmocka_unit_test(test_limit_goal),
        cmocka_unit_test(test_cpu_limiter),
        cmocka_unit_test(test_gogc_off),
        cmocka_unit_test(test_gogc_0),
        cmocka_unit_test(test_live_heap_explodes),
        cmocka_unit_test(test_min_heap),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_stacks_are_counted),
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
