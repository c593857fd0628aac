/* GOGC, GOMAXPROCS and GODEBUG are read with Go's syntax; what cannot be parsed is named on stderr and ignored; what can
 * be parsed says nothing and counts.  Each case is a process of its own.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 120 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/child.h"
#include "../support/heap.h"

/* Prints what the environment made of the settings, and lives a little. */
static void child_settings(void)
{
    for (int i = 0; i < 20000; i++) {
        EXPECT_NOT_NULL(loam_alloc(100));
    }
    loam_gc();
    fprintf(stderr, "percent=%d procs=%d\n", loam_set_gc_percent(-1), loam_set_max_procs(0));
}

static void child_collect(void)
{
    for (int i = 0; i < 3; i++) {
        loam_gc();
    }
}

/* Every other object of a batch is garbage; those that live keep the pages where they are. */
enum { CLOBBERED = 500 };
static uintptr_t dropped[CLOBBERED];
static void **neighbours;

static void build_dropped(void *arg)
{
    (void)arg;
    LOAM_SET(neighbours, LOAM_NEW_POINTERS(void, CLOBBERED));
    for (size_t i = 0; i < CLOBBERED; i++) {
        dropped[i] = disguise(loam_alloc_noscan(400));
        LOAM_SET(neighbours[i], loam_alloc_noscan(400));
    }
}

static void child_clobber(void)
{
    size_t clobbered = 0;
    call_deep(build_dropped, NULL);
    loam_gc();
    for (size_t i = 0; i < CLOBBERED; i++) {
        clobbered += ((volatile uint32_t *)reveal(dropped[i]))[20] == 0xdeadbeef ? 1 : 0;
    }
    fprintf(stderr, "clobbered=%zu\n", clobbered);
}

/* Counts cycles that nobody asked for, over a fixed amount of garbage. */
static void child_cycles(void)
{
    loam_memstats m;
    for (int i = 0; i < 100000; i++) {
        EXPECT_NOT_NULL(loam_alloc(1000));
    }
    loam_read_memstats(&m);
    fprintf(stderr, "cycles=%u\n", m.num_gc);
}

/* With gcstress every allocation collects. */
static void child_stress(void)
{
    loam_memstats m;
    for (int i = 0; i < 100; i++) {
        EXPECT_NOT_NULL(loam_alloc(100));
    }
    loam_read_memstats(&m);
    fprintf(stderr, "cycles=%u\n", m.num_gc);
}

static const struct child_case children[] = {
    {"settings", child_settings}, {"collect", child_collect}, {"clobber", child_clobber},
    {"cycles", child_cycles},     {"stress", child_stress},
};

static const char *const clean[] = {"GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GODEBUG"};

static void run(struct child *c, const char *name, const char *setting)
{
    const char *environment[8] = {NULL};
    size_t n = 0;
    for (size_t i = 0; i < COUNT_OF(clean); i++) {
        environment[n++] = clean[i];
    }
    environment[n] = setting;
    child_run(c, name, environment, 30);
    EXPECT_MSG(child_exited(c, 0), "with %s the child ended with status %#x; it said: %s",
               setting != NULL ? setting : "nothing set", (unsigned)c->status, c->text);
}

static long number_after(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    EXPECT_MSG(at != NULL, "no %s in: %s", key, text);
    return strtol(at + strlen(key), NULL, 0);
}

static size_t lines(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++) {
        n += *text == '\n' ? 1 : 0;
    }
    return n;
}

static void defaults(void)
{
    struct child c;
    run(&c, "settings", NULL);
    EXPECT_EQ(lines(c.text), 1);
    EXPECT_EQ(number_after(c.text, "percent="), 100);
    EXPECT_GE(number_after(c.text, "procs="), 1);
}

struct good {
    const char *setting;
    const char *key;
    int64_t value;
};

static void what_can_be_parsed(void)
{
    static const struct good cases[] = {
        {"GOGC=50", "percent=", 50},
        {"GOGC=1", "percent=", 1},
        {"GOGC=100", "percent=", 100},
        {"GOGC=1000000", "percent=", 1000000},
        {"GOGC=", "percent=", 100},
        {"GOMAXPROCS=1", "procs=", 1},
        {"GOMAXPROCS=3", "procs=", 3},
        {"GODEBUG=", "percent=", 100},
        {"GODEBUG=gctrace=0,gcpacertrace=0,scavtrace=0,gccheckmark=0,gcstoptheworld=0,gcstress=0,"
         "clobberfree=0,"
         "madvdontneed=1",
         "percent=", 100},
        {"GODEBUG=clobberfree=1", "percent=", 100},
        {"GODEBUG=gcstoptheworld=1", "percent=", 100},
        {"GODEBUG=gcstoptheworld=2", "percent=", 100},
        {"GODEBUG=gccheckmark=1", "percent=", 100},
        {"GODEBUG=madvdontneed=0", "percent=", 100},
    };
    struct child c;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        run(&c, "settings", cases[i].setting);
        EXPECT_MSG(lines(c.text) == 1, "with %s it said: %s", cases[i].setting, c.text);
        EXPECT_MSG(number_after(c.text, cases[i].key) == cases[i].value, "with %s it said: %s",
                   cases[i].setting, c.text);
    }
    run(&c, "settings", "GOGC=off");
    EXPECT_EQ(lines(c.text), 1);
    EXPECT_LT(number_after(c.text, "percent=") + 1000, 1000); /* negative */
}

static void what_cannot_be_parsed(void)
{
    static const char *const settings[] = {
        "GOGC=banana",
        "GOGC=10%",
        "GOGC= 10",
        "GOGC=99999999999999999999",
        "GOGC=0x10",
        "GOGC=1e3",
        "GOMAXPROCS=many",
        "GODEBUG=gctrace=yes",
        "GODEBUG=clobberfree=",
        "GODEBUG=gccheckmark",
    };
    struct child c;
    for (size_t i = 0; i < COUNT_OF(settings); i++) {
        char name[32];
        const char *value = strchr(settings[i], '=') + 1;
        snprintf(name, sizeof name, "%.*s", (int)(value - 1 - settings[i]), settings[i]);
        run(&c, "settings", settings[i]);
        EXPECT_MSG(strstr(c.text, name) != NULL && lines(c.text) >= 2,
                   "%s was not named on stderr; it said: %s", settings[i], c.text);
        EXPECT_MSG(number_after(c.text, "percent=") == 100, "%s was not ignored; it said: %s",
                   settings[i], c.text);
        EXPECT_MSG(number_after(c.text, "procs=") >= 1, "%s was not ignored; it said: %s",
                   settings[i], c.text);
    }
}

/* The rest of a GODEBUG with one bad part counts. */
static void good_parts_beside_bad_ones(void)
{
    struct child c;
    run(&c, "collect", "GODEBUG=clobberfree=maybe,gctrace=1");
    EXPECT_CONTAINS(c.text, "GODEBUG");
    EXPECT_CONTAINS(c.text, "gc 1 @");
    EXPECT_CONTAINS(c.text, "gc 3 @");
}

/* One line per cycle, with Go's fields: gc N @T s P%: a+b+c ms clock, ... MB goal, ... P */
static void gctrace(void)
{
    struct child c;
    run(&c, "collect", "GODEBUG=gctrace=1");
    EXPECT_EQ(lines(c.text), 3);
    for (int i = 1; i <= 3; i++) {
        char head[24];
        snprintf(head, sizeof head, "gc %d @", i);
        EXPECT_CONTAINS(c.text, head);
    }
    EXPECT_CONTAINS(c.text, "ms clock");
    EXPECT_CONTAINS(c.text, "ms cpu");
    EXPECT_CONTAINS(c.text, "->");
    EXPECT_CONTAINS(c.text, "MB goal");
    EXPECT_CONTAINS(c.text, " P");
    EXPECT_CONTAINS(c.text, "(forced)");
}

static void clobberfree(void)
{
    struct child c;
    run(&c, "clobber", "GODEBUG=clobberfree=1");
    EXPECT_GE(number_after(c.text, "clobbered="), CLOBBERED * 95 / 100);
    run(&c, "clobber", NULL);
    EXPECT_EQ(number_after(c.text, "clobbered="), 0);
}

static void gogc_counts(void)
{
    struct child often, seldom, never;
    run(&often, "cycles", "GOGC=50");
    run(&seldom, "cycles", "GOGC=400");
    run(&never, "cycles", "GOGC=off");
    EXPECT_GT(number_after(often.text, "cycles="), 2 * number_after(seldom.text, "cycles="));
    EXPECT_GT(number_after(seldom.text, "cycles="), 0);
    EXPECT_EQ(number_after(never.text, "cycles="), 0);
}

/* Whether or not a limit is read: it is neither named on stderr nor in the way of GOGC. */
static void with_a_memory_limit(void)
{
    struct child c;
    run(&c, "settings", "GOMEMLIMIT=32MiB");
    EXPECT_EQ(lines(c.text), 1);
    EXPECT_EQ(number_after(c.text, "percent="), 100);
    run(&c, "cycles", "GOMEMLIMIT=32MiB");
    EXPECT_GT(number_after(c.text, "cycles="), 0);
}

static void gcstress(void)
{
    struct child c;
    run(&c, "stress", "GODEBUG=gcstress=1");
    EXPECT_GE(number_after(c.text, "cycles="), 50);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(defaults);
    RUN(what_can_be_parsed);
    RUN(what_cannot_be_parsed);
    RUN(good_parts_beside_bad_ones);
    RUN(gctrace);
    RUN(clobberfree);
    RUN(gogc_counts);
    RUN(with_a_memory_limit);
    RUN(gcstress);
    return test_end();
}
