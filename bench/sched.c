/* sched.c - what goroutines cost: to start, to switch, to wait, to be waited for.
 *
 * Work        `-case` is one of these; what counts as an operation stands behind it:
 *                 spawn         start a goroutine, wait for its end                    a goroutine
 *                 spawn-batch   start `-goroutines` (10 000), wait for all of them     a goroutine
 *                 yield         2 goroutines give way to each other                    a yield
 *                 yield-many    the same with 1000
 *                 ping-pong     2 goroutines, 2 unbuffered channels, to and fro        a message
 *                 buffered      one sends, one receives, room for 128                  a message
 *                 park-ready    one wakes another through a channel with room for one, then gives way   a wake
 *                 select4       one receives from 4 unbuffered channels that another feeds in turn      a message
 *                 mutex         2 goroutines add to a number under one mutex           a lock
 *                 mutex-yield   the same; who holds it gives way once: all others queue
 *                 sleep         1000 goroutines sleep for a millisecond, over and over a sleep
 *                 fanout        one sends, 8 receive from one unbuffered channel       a message
 *                 parked        a million wait in one unbuffered channel; once each they are sent a number
 *             `-procs` sets GOMAXPROCS, `-ops` how many operations there are in all.
 * Measured    Time and processor time for an operation: the median of `-repeat` (5) repetitions after one that does not
 *             count. sleep: how much later than a millisecond each goroutine ran again. parked, once: resident memory for
 *             each, page tables included, the time to start and park them, of a collection meanwhile, and to wake and
 *             end them.
 * Twin        go/sched/main.go
 */
#include "report.h"

#include <loam.h>
#include <loam/sched.h>

#include <sys/resource.h>

enum { MAX_REPEAT = 99, COLLECTIONS = 3, SLEEP_NS = 1000000 };

struct task {
    uint64_t id;  /* from 0 */
    uint64_t ops; /* what this goroutine does of them */
    uint64_t sum; /* written at its end */
};

/* What the goroutines of a repetition share. Stores of channels run the write barrier: it is a global. */
static struct {
    loam_waitgroup done;
    loam_waitgroup ready;
    loam_mutex mutex;
    uint64_t counter; /* under mutex */
    loam_chan *there, *back;
    loam_chan *four[4];
    uint64_t *late_ns; /* a row of each goroutine's sleeps */
    struct task *tasks;
    uint64_t goroutines; /* tasks there are */
} crew;

static struct hist lateness;

static struct {
    double bytes_each, asleep_bytes_each, start_ns_each, gc_ns, wake_ns_each;
} parked;

static void *checked(void *p)
{
    if (p == NULL) {
        perror("sched");
        exit(1);
    }
    return p;
}

static void start(void (*fn)(void *), void *arg)
{
    if (loam_go(fn, arg) != 0) {
        perror("no goroutine");
        exit(1);
    }
}

static loam_chan *channel(size_t elem_size, size_t capacity)
{
    return checked(loam_chan_make_bytes(elem_size, capacity));
}

/* Tasks first to limit start in fn, each with ops operations. */
static void crew_start(uint64_t first, uint64_t limit, uint64_t ops, void (*fn)(void *))
{
    loam_waitgroup_add(&crew.done, (int)(limit - first));
    for (uint64_t i = first; i < limit; i++) {
        crew.tasks[i] = (struct task){i, ops, 0};
        start(fn, &crew.tasks[i]);
    }
}

/* The sum over all tasks when all have ended. */
static uint64_t crew_wait(void)
{
    loam_waitgroup_wait(&crew.done);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < crew.goroutines; i++) {
        sum += crew.tasks[i].sum;
    }
    return sum;
}

static void crew_end(struct task *task, uint64_t sum)
{
    task->sum = sum;
    loam_waitgroup_done(&crew.done);
}

/* ---- start and end -------------------------------------------------------------------------- */

static void spawned(void *arg)
{
    struct task *task = arg;
    crew_end(task, task->id * 31 + 1);
}

/* Also spawn-batch: then there is more than one. */
static uint64_t run_spawn(uint64_t ops)
{
    uint64_t sum = 0;
    for (uint64_t n = 0; n < ops; n += crew.goroutines) {
        crew_start(0, crew.goroutines, 1, spawned);
        sum += crew_wait();
    }
    return sum;
}

/* ---- yields --------------------------------------------------------------------------------- */

static void yielder(void *arg)
{
    struct task *task = arg;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < task->ops; i++) {
        loam_yield();
        sum = sum * 31 + i;
    }
    crew_end(task, sum);
}

static uint64_t run_yield(uint64_t ops)
{
    crew_start(0, crew.goroutines, ops / crew.goroutines, yielder);
    return crew_wait();
}

/* ---- channels ------------------------------------------------------------------------------- */

static void pinger(void *arg)
{
    struct task *task = arg;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < task->ops; i++) {
        uint64_t value = i;
        loam_chan_send(crew.there, &value);
        loam_chan_recv(crew.back, &value);
        sum = sum * 31 + value;
    }
    crew_end(task, sum);
}

static void ponger(void *arg)
{
    struct task *task = arg;
    for (uint64_t i = 0; i < task->ops; i++) {
        uint64_t value;
        loam_chan_recv(crew.there, &value);
        value++;
        loam_chan_send(crew.back, &value);
    }
    crew_end(task, 0);
}

static uint64_t run_ping_pong(uint64_t ops)
{
    LOAM_SET(crew.there, channel(sizeof(uint64_t), 0));
    LOAM_SET(crew.back, channel(sizeof(uint64_t), 0));
    crew_start(0, 1, ops / 2, ponger);
    crew_start(1, 2, ops / 2, pinger);
    return crew_wait();
}

static void producer(void *arg)
{
    struct task *task = arg;
    for (uint64_t i = 0; i < task->ops; i++) {
        loam_chan_send(crew.there, &i);
    }
    loam_chan_close(crew.there);
    crew_end(task, 0);
}

static void consumer(void *arg)
{
    uint64_t sum = 0;
    uint64_t value;
    while (loam_chan_recv(crew.there, &value)) {
        sum += value * value;
    }
    crew_end(arg, sum);
}

/* One task sends, the others receive. */
static uint64_t run_fanout(uint64_t ops)
{
    LOAM_SET(crew.there, channel(sizeof(uint64_t), 0));
    crew_start(1, crew.goroutines, 0, consumer);
    crew_start(0, 1, ops, producer);
    return crew_wait();
}

static uint64_t run_buffered(uint64_t ops)
{
    LOAM_SET(crew.there, channel(sizeof(uint64_t), 128));
    crew_start(1, 2, 0, consumer);
    crew_start(0, 1, ops, producer);
    return crew_wait();
}

static void waker(void *arg)
{
    struct task *task = arg;
    for (uint64_t i = 0; i < task->ops; i++) {
        loam_chan_send(crew.there, NULL);
        loam_yield();
    }
    crew_end(task, 0);
}

static void woken(void *arg)
{
    struct task *task = arg;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < task->ops; i++) {
        sum = sum * 31 + (uint64_t)loam_chan_recv(crew.there, NULL);
    }
    crew_end(task, sum);
}

static uint64_t run_park_ready(uint64_t ops)
{
    LOAM_SET(crew.there, channel(0, 1));
    crew_start(0, 1, ops, woken);
    crew_start(1, 2, ops, waker);
    return crew_wait();
}

static void feeder(void *arg)
{
    struct task *task = arg;
    for (uint64_t i = 0; i < task->ops; i++) {
        loam_chan_send(crew.four[i % 4], &i);
    }
    crew_end(task, 0);
}

static void selector(void *arg)
{
    struct task *task = arg;
    uint64_t sum = 0;
    uint64_t value;
    for (uint64_t i = 0; i < task->ops; i++) {
        loam_select_case cases[4] = {
            {crew.four[0], LOAM_RECV, &value, false},
            {crew.four[1], LOAM_RECV, &value, false},
            {crew.four[2], LOAM_RECV, &value, false},
            {crew.four[3], LOAM_RECV, &value, false},
        };
        uint64_t which = (uint64_t)loam_select(cases, 4, true);
        sum = sum * 31 + value * 4 + which;
    }
    crew_end(task, sum);
}

static uint64_t run_select4(uint64_t ops)
{
    for (int i = 0; i < 4; i++) {
        LOAM_SET(crew.four[i], channel(sizeof(uint64_t), 0));
    }
    crew_start(0, 1, ops, selector);
    crew_start(1, 2, ops, feeder);
    return crew_wait();
}

/* ---- mutex ---------------------------------------------------------------------------------- */

static void locker(void *arg)
{
    struct task *task = arg;
    for (uint64_t i = 0; i < task->ops; i++) {
        loam_mutex_lock(&crew.mutex);
        crew.counter += task->id + 1;
        loam_mutex_unlock(&crew.mutex);
    }
    crew_end(task, 0);
}

static void yielding_locker(void *arg)
{
    struct task *task = arg;
    for (uint64_t i = 0; i < task->ops; i++) {
        loam_mutex_lock(&crew.mutex);
        crew.counter += task->id + 1;
        loam_yield();
        loam_mutex_unlock(&crew.mutex);
    }
    crew_end(task, 0);
}

static uint64_t run_lockers(uint64_t ops, void (*fn)(void *))
{
    crew.counter = 0;
    crew_start(0, crew.goroutines, ops / crew.goroutines, fn);
    return crew_wait() + crew.counter;
}

static uint64_t run_mutex(uint64_t ops)
{
    return run_lockers(ops, locker);
}

static uint64_t run_mutex_yield(uint64_t ops)
{
    return run_lockers(ops, yielding_locker);
}

/* ---- sleep ---------------------------------------------------------------------------------- */

static void sleeper(void *arg)
{
    struct task *task = arg;
    uint64_t *late_ns = crew.late_ns + task->id * task->ops;
    uint64_t long_enough = 0;
    for (uint64_t i = 0; i < task->ops; i++) {
        uint64_t before = clock_ns();
        loam_sleep(SLEEP_NS);
        uint64_t slept = clock_ns() - before;
        long_enough += slept >= SLEEP_NS;
        late_ns[i] = slept >= SLEEP_NS ? slept - SLEEP_NS : 0;
    }
    crew_end(task, long_enough);
}

static uint64_t run_sleep(uint64_t ops)
{
    if (crew.late_ns == NULL) {
        crew.late_ns = checked(calloc(ops, sizeof *crew.late_ns));
    }
    crew_start(0, crew.goroutines, ops / crew.goroutines, sleeper);
    uint64_t sum = crew_wait();
    for (uint64_t i = 0; i < ops; i++) {
        hist_add(&lateness, crew.late_ns[i]);
    }
    return sum;
}

/* ---- parked --------------------------------------------------------------------------------- */

/* Resident memory and page tables of the process. */
static uint64_t taken_bytes(void)
{
    FILE *status = checked(fopen("/proc/self/status", "r"));
    char line[256];
    uint64_t kib = 0;
    uint64_t sum = 0;
    while (fgets(line, sizeof line, status) != NULL) {
        if (sscanf(line, "VmRSS: %" SCNu64, &kib) == 1 ||
            sscanf(line, "VmPTE: %" SCNu64, &kib) == 1) {
            sum += kib;
        }
    }
    fclose(status);
    return sum * 1024;
}

static int compare_real(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare_real);
    return values[n / 2];
}

static void waiter(void *arg)
{
    uint64_t value;
    loam_waitgroup_done(&crew.ready);
    loam_chan_recv(crew.there, &value);
    crew_end(arg, value * value);
}

static uint64_t run_parked(uint64_t ops)
{
    (void)ops;
    uint64_t n = crew.goroutines;
    LOAM_SET(crew.there, channel(sizeof(uint64_t), 0));
    loam_waitgroup_add(&crew.ready, (int)n);
    uint64_t bytes_before = taken_bytes();
    uint64_t began = clock_ns();
    crew_start(0, n, 1, waiter);
    loam_waitgroup_wait(&crew.ready);
    parked.start_ns_each = (double)(clock_ns() - began) / (double)n;
    loam_sleep(20 * SLEEP_NS); /* those that have said they are ready come to the channel */
    uint64_t bytes_after = taken_bytes();
    parked.bytes_each = ((double)bytes_after - (double)bytes_before) / (double)n;

    double gc_ns[COLLECTIONS];
    for (int i = 0; i < COLLECTIONS; i++) {
        began = clock_ns();
        loam_gc();
        gc_ns[i] = (double)(clock_ns() - began);
    }
    parked.gc_ns = median(gc_ns, COLLECTIONS);
    uint64_t bytes_now = taken_bytes(); /* stacks fall asleep after the cycles, in their own time */
    do {
        bytes_after = bytes_now;
        loam_sleep(300 * SLEEP_NS);
        bytes_now = taken_bytes();
    } while (bytes_now < bytes_after);
    parked.asleep_bytes_each = ((double)bytes_now - (double)bytes_before) / (double)n;

    began = clock_ns();
    for (uint64_t i = 0; i < n; i++) {
        loam_chan_send(crew.there, &i);
    }
    uint64_t sum = crew_wait();
    parked.wake_ns_each = (double)(clock_ns() - began) / (double)n;
    return sum;
}

/* ---- main ----------------------------------------------------------------------------------- */

static const struct bench_case {
    const char *name;
    uint64_t (*run)(uint64_t ops); /* gives the checksum */
    uint64_t ops;
    uint64_t goroutines;
    bool fixed; /* -goroutines is refused */
} cases[] = {
    {"spawn", run_spawn, 500000, 1, true},
    {"spawn-batch", run_spawn, 500000, 10000, false},
    {"yield", run_yield, 4000000, 2, false},
    {"yield-many", run_yield, 4000000, 1000, false},
    {"ping-pong", run_ping_pong, 2000000, 2, true},
    {"buffered", run_buffered, 5000000, 2, true},
    {"park-ready", run_park_ready, 1000000, 2, true},
    {"select4", run_select4, 1000000, 2, true},
    {"mutex", run_mutex, 10000000, 2, false},
    {"mutex-yield", run_mutex_yield, 1000000, 2, false},
    {"sleep", run_sleep, 100000, 1000, false},
    {"fanout", run_fanout, 1000000, 8, false}, /* and the one that sends */
    {"parked", run_parked, 0, 1000000, false},
};

/* Chosen by the options; written before the goroutines start. */
static const struct bench_case *chosen;
static uint64_t ops, repeat;

/* Written by measure. */
static double ns_per_op[MAX_REPEAT], cpu_ns_per_op[MAX_REPEAT];
static uint64_t checksum;

static double processor_ns(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e9 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e3;
}

/* The goroutine that starts the others. */
static void measure(void *arg)
{
    (void)arg;
    bool once = chosen->run == run_parked;
    repeat = once ? 1 : repeat;
    if (!once) {
        chosen->run(ops);
        lateness = (struct hist){0};
    }
    for (uint64_t i = 0; i < repeat; i++) {
        double cpu_began = processor_ns();
        uint64_t began = clock_ns();
        uint64_t sum = chosen->run(ops);
        ns_per_op[i] = (double)(clock_ns() - began) / (double)ops;
        cpu_ns_per_op[i] = (processor_ns() - cpu_began) / (double)ops;
        checksum = checksum * 31 + sum;
    }
    if (once) {
        ns_per_op[0] = parked.start_ns_each + parked.wake_ns_each;
    }
}

static void choose(void)
{
    const char *name = option_string("case", "ping-pong");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (strcmp(cases[i].name, name) == 0) {
            chosen = &cases[i];
        }
    }
    if (chosen == NULL) {
        fprintf(stderr, "no case %s\n", name);
        exit(2);
    }
    uint64_t n = option_count("goroutines", chosen->goroutines);
    if (n < 1 || n > INT32_MAX || (chosen->fixed && n != chosen->goroutines)) {
        fprintf(stderr, "-goroutines: not with %s\n", name);
        exit(2);
    }
    ops = option_count("ops", chosen->ops);
    ops = ops < n ? n : ops - ops % n; /* as many for each */
    crew.goroutines = n + (chosen->run == run_fanout);
}

int main(int argc, char **argv)
{
    options_begin(argc, argv);
    choose();
    int procs = (int)option_count("procs", 0);
    repeat = option_count("repeat", 5);
    result_as_json = option_flag("json");
    double gc_percent = option_real("gogc", 0);
    options_end();
    if (repeat < 1 || repeat > MAX_REPEAT) {
        fprintf(stderr, "-repeat: 1 to %d\n", MAX_REPEAT);
        return 2;
    }
    if (gc_percent > 0) {
        loam_set_gc_percent((int)gc_percent);
    }
    loam_set_max_procs(procs);
    crew.tasks = checked(malloc(crew.goroutines * sizeof *crew.tasks));
    for (uint64_t i = 0; i < crew.goroutines; i++) {
        crew.tasks[i] = (struct task){i, 0, 0}; /* so that they are resident */
    }
    if (loam_run(measure, NULL) != 0) {
        perror("no goroutine");
        return 1;
    }

    result_begin("sched", "loam");
    result_string("case", chosen->name);
    result_count("procs", (uint64_t)loam_set_max_procs(0));
    result_count("goroutines", crew.goroutines);
    result_count("ops", ops);
    result_real("ns_per_op", median(ns_per_op, repeat));
    result_real("least_ns_per_op", ns_per_op[0]); /* sorted by now */
    result_real("most_ns_per_op", ns_per_op[repeat - 1]);
    result_real("cpu_ns_per_op", median(cpu_ns_per_op, repeat));
    if (chosen->run == run_sleep) {
        result_count("late_p50_ns", hist_percentile(&lateness, 0.5));
        result_count("late_p99_ns", hist_percentile(&lateness, 0.99));
        result_count("late_max_ns", lateness.max);
    }
    if (chosen->run == run_parked) {
        result_real("bytes_each", parked.bytes_each);
        result_real("asleep_bytes_each", parked.asleep_bytes_each);
        result_real("start_ns_each", parked.start_ns_each);
        result_real("gc_ns", parked.gc_ns);
        result_real("wake_ns_each", parked.wake_ns_each);
    }
    result_end(checksum);
    return 0;
}
