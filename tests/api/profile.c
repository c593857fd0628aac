/* loam_write_heap_profile: the file is what pprof reads; of what is allocated at a rate of 1 each object is in it, by who
 * allocated it, of which type and size, in use until it is collected or freed; at other rates the sums are right; stacks begin in
 * the program and end where it does, on goroutines too; as of the last cycle; errors are told; and all that while threads
 * allocate, end and collect.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 120
 * TEST_RUN: variable | GODEBUG=memprofilerate=100000 | --only rates | 60
 * TEST_RUN: stress | GODEBUG=gcstress=50,clobberfree=1 | --only beside_others | 120
 * TEST_RUN: stoptheworld | GODEBUG=gcstoptheworld=1,gccheckmark=1 | | 120 */
#include "../support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <loam/sched.h>
#include <loam/stats.h>

#include "../support/child.h"
#include "../support/goroutines.h"
#include "../support/heap.h"
#include "../support/items.h"
#include "../support/threads.h"

typedef struct pair pair;
struct pair {
    pair *left, *right;
    uint64_t number;
};
LOAM_TYPE(pair, left, right);

/* -- reading a profile --------------------------------------------------------------------------- */

enum { VALUES = 4, STACK = 128 };

struct sample {
    uint64_t locations[STACK];
    size_t depth;
    int64_t values[VALUES]; /* allocated objects, bytes; in use objects, bytes */
    uint64_t bytes;         /* labels */
    char type[64];
};

struct profile {
    char *raw;
    size_t n;
    struct sample *samples;
    size_t nsamples;
    uint64_t *addresses; /* by id of location */
    uint64_t *called;    /* the function there */
    size_t nlocations;
    uint64_t *functions; /* names, by id */
    size_t nfunctions;
    char **strings;
    size_t nstrings;
    size_t nmappings, ntypes;
    uint64_t period;
    char *file; /* of the first mapping */
};

struct bytes {
    const uint8_t *at, *end;
};

static uint64_t take_varint(struct bytes *b)
{
    uint64_t v = 0;
    for (unsigned shift = 0;; shift += 7) {
        EXPECT(b->at < b->end);
        uint8_t byte = *b->at++;
        v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            return v;
        }
        EXPECT_LT(shift, 63);
    }
}

/* The next field: its number; a number's value, or the bytes of what is longer. */
static unsigned take_field(struct bytes *b, uint64_t *value, struct bytes *inner)
{
    uint64_t tag = take_varint(b);
    if ((tag & 7) == 0) {
        *value = take_varint(b);
    } else {
        EXPECT_EQ(tag & 7, 2);
        uint64_t n = take_varint(b);
        EXPECT_LE(n, (uint64_t)(b->end - b->at));
        *inner = (struct bytes){b->at, b->at + n};
        b->at += n;
    }
    return (unsigned)(tag >> 3);
}

static uint32_t crc_of(const uint8_t *p, size_t n)
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        }
    }
    return ~crc;
}

static uint32_t le(const uint8_t *p, int n)
{
    uint32_t v = 0;
    for (int i = 0; i < n; i++) {
        v |= (uint32_t)p[i] << (8 * i);
    }
    return v;
}

/* gzip with stored blocks. */
static void gunzip(struct profile *p, const uint8_t *z, size_t n)
{
    EXPECT(n > 18 && z[0] == 0x1f && z[1] == 0x8b && z[2] == 8 && z[3] == 0);
    p->raw = malloc(n);
    size_t at = 10;
    for (bool last = false; !last;) {
        EXPECT_LE(at + 5, n);
        last = z[at] == 1;
        EXPECT_LE(z[at], 1);
        size_t len = le(z + at + 1, 2);
        EXPECT_EQ(len ^ 0xffff, le(z + at + 3, 2));
        EXPECT_LE(at + 5 + len + 8, n);
        memcpy(p->raw + p->n, z + at + 5, len);
        p->n += len;
        at += 5 + len;
    }
    EXPECT_EQ(at + 8, n);
    EXPECT_EQ(le(z + at, 4), crc_of((const uint8_t *)p->raw, p->n));
    EXPECT_EQ(le(z + at + 4, 4), p->n);
}

static void read_label(struct profile *p, struct sample *s, struct bytes b)
{
    uint64_t key = 0, text = 0, number = 0, v;
    struct bytes inner;
    while (b.at < b.end) {
        unsigned field = take_field(&b, &v, &inner);
        *(field == 1 ? &key : field == 2 ? &text : &number) = field <= 3 ? v : number;
    }
    EXPECT_LT(key, p->nstrings);
    EXPECT_LT(text, p->nstrings);
    if (strcmp(p->strings[key], "bytes") == 0) {
        s->bytes = number;
    } else {
        EXPECT_STR_EQ(p->strings[key], p->ntypes == VALUES ? "type" : "state");
        snprintf(s->type, sizeof s->type, "%s", p->strings[text]);
    }
}

static void read_sample(struct profile *p, struct bytes b)
{
    struct sample *s = &p->samples[p->nsamples++];
    uint64_t v;
    size_t nvalues = 0;
    struct bytes inner;
    while (b.at < b.end) {
        switch (take_field(&b, &v, &inner)) {
        case 1:
            while (inner.at < inner.end) {
                uint64_t id = take_varint(&inner);
                EXPECT(id > 0 && id <= p->nlocations);
                EXPECT_LT(s->depth, STACK);
                s->locations[s->depth++] = p->addresses[id];
            }
            break;
        case 2:
            while (inner.at < inner.end) {
                EXPECT_LT(nvalues, VALUES);
                s->values[nvalues++] = (int64_t)take_varint(&inner);
            }
            break;
        case 3:
            read_label(p, s, inner);
            break;
        default:
            FAIL("an unknown field of a sample");
        }
    }
    EXPECT_EQ(nvalues, p->ntypes);
    EXPECT_GT(s->values[0], 0);
    EXPECT_GE(s->values[0], s->values[2]);
    EXPECT_GE(s->values[1], s->values[3]);
    EXPECT_GE(s->values[2], 0);
}

static void read_location(struct profile *p, struct bytes b)
{
    uint64_t id = 0, mapping = 0, address = 0, function = 0, v = 0;
    struct bytes line;
    while (b.at < b.end) {
        unsigned field = take_field(&b, &v, &line);
        if (field == 4) {
            EXPECT_EQ(take_field(&line, &function, &line), 1);
        } else {
            *(field == 1 ? &id : field == 2 ? &mapping : &address) = v;
        }
    }
    EXPECT_EQ(id, ++p->nlocations);
    EXPECT_LE(mapping, p->nmappings);
    EXPECT_LE(function, p->nfunctions);
    p->addresses[id] = address;
    p->called[id] = function;
}

static void read_function(struct profile *p, struct bytes b)
{
    uint64_t id = 0, name = 0, v;
    struct bytes inner;
    while (b.at < b.end) {
        unsigned field = take_field(&b, &v, &inner);
        *(field == 1 ? &id : &name) = v;
    }
    EXPECT_EQ(id, ++p->nfunctions);
    EXPECT_LT(name, p->nstrings);
    p->functions[id] = name;
}

static void read_mapping(struct profile *p, struct bytes b)
{
    uint64_t v;
    struct bytes inner;
    p->nmappings++;
    while (b.at < b.end) {
        if (take_field(&b, &v, &inner) == 5 && p->nmappings == 1) {
            EXPECT_LT(v, p->nstrings);
            p->file = p->strings[v];
        }
    }
}

static void profile_parse(struct profile *p)
{
    struct bytes b = {(const uint8_t *)p->raw, (const uint8_t *)p->raw + p->n};
    uint64_t v;
    struct bytes inner;
    p->samples = calloc(p->n / 10 + 1, sizeof *p->samples);
    p->addresses = calloc(p->n / 4 + 2, sizeof *p->addresses);
    p->called = calloc(p->n / 4 + 2, sizeof *p->called);
    p->functions = calloc(p->n / 4 + 2, sizeof *p->functions);
    p->strings = calloc(p->n / 2 + 2, sizeof *p->strings);
    while (b.at < b.end) {
        switch (take_field(&b, &v, &inner)) {
        case 1:
            p->ntypes++;
            break;
        case 2:
            read_sample(p, inner);
            break;
        case 3:
            read_mapping(p, inner);
            break;
        case 4:
            read_location(p, inner);
            break;
        case 5:
            read_function(p, inner);
            break;
        case 6:
            p->strings[p->nstrings++] = strndup((const char *)inner.at,
                                                (size_t)(inner.end - inner.at));
            break;
        case 12:
            p->period = v;
            break;
        default:
            break;
        }
    }
    EXPECT_STR_EQ(p->strings[0], "");
    EXPECT_GE(p->nmappings, 1);
}

/* Another one is forgotten. */
static struct profile *profile_of(int (*write_it)(int fd))
{
    static struct profile p;
    int fd = memfd_create("profile", MFD_CLOEXEC);
    EXPECT_GE(fd, 0);
    EXPECT_EQ(write_it(fd), 0);
    off_t size = lseek(fd, 0, SEEK_END);
    uint8_t *z = malloc((size_t)size);
    EXPECT_EQ(pread(fd, z, (size_t)size, 0), size);
    close(fd);
    for (size_t i = 0; i < p.nstrings; i++) {
        free(p.strings[i]);
    }
    free(p.raw), free(p.samples), free(p.addresses), free(p.called), free(p.functions),
        free(p.strings);
    p = (struct profile){0};
    gunzip(&p, z, (size_t)size);
    free(z);
    profile_parse(&p);
    return &p;
}

static struct profile *profile_read(void)
{
    return profile_of(loam_write_heap_profile);
}

/* -- allocating ---------------------------------------------------------------------------------- */

enum { CODE = 1024 };
#define KNOWN \
    __attribute__((noinline, aligned(CODE))) /* no two of them begin in the same CODE bytes */

static bool is_in(uint64_t address, const void *fn)
{
    return address - (uintptr_t)fn < CODE;
}

static const char *name_at(const struct profile *p, uint64_t address)
{
    for (size_t id = 1; id <= p->nlocations; id++) {
        if (p->addresses[id] == address) {
            return p->strings[p->functions[p->called[id]]];
        }
    }
    return "";
}

/* Sums of the samples whose innermost call is in fn, of one type and size (NULL, 0: any). */
static struct sample sum_of(const struct profile *p, const void *fn, const char *type,
                            uint64_t bytes)
{
    struct sample sum = {0};
    for (size_t i = 0; i < p->nsamples; i++) {
        const struct sample *s = &p->samples[i];
        if (s->depth != 0 && is_in(s->locations[0], fn) &&
            (type == NULL || strcmp(s->type, type) == 0) && (bytes == 0 || s->bytes == bytes)) {
            for (int v = 0; v < VALUES; v++) {
                sum.values[v] += s->values[v];
            }
            sum.depth = s->depth > sum.depth ? s->depth : sum.depth;
            sum.locations[0] = s->locations[0];
        }
    }
    return sum;
}

static void *kept[20000];

KNOWN static void make_pairs(size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        kept[i] = LOAM_NEW(pair);
        EXPECT_NOT_NULL(kept[i]);
    }
    __asm__ volatile("" ::: "memory");
}

KNOWN static void make_bytes(size_t from, size_t to, size_t bytes)
{
    for (size_t i = from; i < to; i++) {
        kept[i] = loam_alloc_noscan(bytes);
        EXPECT_NOT_NULL(kept[i]);
    }
    __asm__ volatile("" ::: "memory");
}

static void forget(size_t from, size_t to)
{
    memset(&kept[from], 0, (to - from) * sizeof kept[0]);
}

static void rates(void)
{
    EXPECT_EQ(loam_set_mem_profile_rate(1), test_godebug("memprofilerate") ? 100000 : 512 << 10);
    EXPECT_EQ(loam_set_mem_profile_rate(-5), 1);
    EXPECT_EQ(loam_set_mem_profile_rate(0), 0);
    make_pairs(0, 1000);
    loam_gc();
    EXPECT_EQ(sum_of(profile_read(), make_pairs, NULL, 0).values[0], 0);
    EXPECT_EQ(loam_set_mem_profile_rate(1), 0);
    forget(0, 1000);
}

static void each_object(void)
{
    loam_set_mem_profile_rate(1);
    make_pairs(0, 1000);
    make_bytes(1000, 1500, 200);
    make_bytes(1500, 1510, 100000);
    loam_gc();
    const struct profile *p = profile_read();
    EXPECT_EQ(p->period, 1);
    struct sample s = sum_of(p, make_pairs, "pair", 0);
    EXPECT_EQ(s.values[0], 1000);
    EXPECT_EQ(s.values[1], 1000 * 24 /* class 24 */);
    EXPECT_EQ(s.values[2], 1000);
    EXPECT_GE(s.depth, 2); /* main, too */
    EXPECT_STR_EQ(name_at(p, s.locations[0]), "make_pairs");
    s = sum_of(p, make_bytes, NULL, 208);
    EXPECT_EQ(s.values[0], 500);
    EXPECT_EQ(s.values[3], 500 * 208);
    s = sum_of(p, make_bytes, NULL, 106496);
    EXPECT_EQ(s.values[2], 10);
    forget(0, 500);
    forget(1500, 1505);
    for (int i = 0; i < 3; i++) {
        scrub_stack();
        loam_gc();
    }
    p = profile_read();
    s = sum_of(p, make_pairs, "pair", 0);
    EXPECT_EQ(s.values[0], 1000);
    EXPECT_GE(s.values[2], 500);
    EXPECT_LE(s.values[2], 520);
    s = sum_of(p, make_bytes, NULL, 106496);
    EXPECT_GE(s.values[2], 5);
    EXPECT_LE(s.values[2], 6);
    for (size_t i = 1000; i < 1500; i++) {
        loam_free(kept[i]);
        kept[i] = NULL;
    }
    loam_gc();
    s = sum_of(profile_read(), make_bytes, NULL, 208);
    EXPECT_EQ(s.values[0], 500);
    EXPECT_EQ(s.values[2], 0);
    forget(0, 1510);
}

/* What was allocated since the last cycle is not in it. */
static void as_of_the_last_cycle(void)
{
    loam_set_mem_profile_rate(1);
    loam_gc();
    int64_t before = sum_of(profile_read(), make_pairs, NULL, 0).values[0];
    make_pairs(0, 100);
    int64_t at_once = sum_of(profile_read(), make_pairs, NULL, 0).values[0];
    loam_gc();
    EXPECT_EQ(sum_of(profile_read(), make_pairs, NULL, 0).values[0], before + 100);
    EXPECT_LE(at_once, before + 100); /* a cycle may have ended by itself */
    forget(0, 100);
}

KNOWN static void make_garbage(struct rng *rng, size_t bytes)
{
    static void *volatile last;
    for (size_t done = 0; done < bytes;) {
        size_t n = rng_below(rng, 1000) == 0 ? 40000 + rng_below(rng, 300000)
                   : rng_below(rng, 10) != 0 ? 16 + rng_below(rng, 100)
                                             : rng_below(rng, 4000);
        last = loam_alloc_noscan(n);
        done += n;
    }
    (void)last;
}

static void sums_of_samples(void)
{
    struct rng rng = rng_stream(1);
    size_t bytes = emulated()       ? (size_t)64 << 20
                   : TEST_SANITIZED ? (size_t)256 << 20
                                    : (size_t)1 << 30;
    loam_set_mem_profile_rate(bytes >> 14);
    loam_gc();
    loam_memstats before, after;
    loam_read_memstats(&before);
    make_garbage(&rng, bytes);
    loam_read_memstats(&after);
    loam_gc();
    struct sample s = sum_of(profile_read(), make_garbage, NULL, 0);
    double share = (double)s.values[1] / (double)(after.total_alloc - before.total_alloc);
    double of_objects = (double)s.values[0] / (double)(after.mallocs - before.mallocs);
    printf("%.4f of the bytes, %.4f of the objects are in the profile\n", share, of_objects);
    EXPECT(share > 0.95 && share < 1.05);          /* 16384 samples: six times what is usual */
    EXPECT(of_objects > 0.8 && of_objects < 1.25); /* of small ones there are some thousand */
    EXPECT_LE(s.values[3], (int64_t)bytes / 20);
}

KNOWN static void on_goroutine(void *arg)
{
    (void)arg;
    make_pairs(0, 50);
    __asm__ volatile("" ::: "memory"); /* not its last call: a frame of its own */
}

static void goroutines(void)
{
    loam_set_mem_profile_rate(1);
    loam_gc();
    EXPECT_EQ(loam_run(on_goroutine, NULL), 0);
    loam_gc();
    const struct profile *p = profile_read();
    size_t found = 0;
    for (size_t i = 0; i < p->nsamples; i++) {
        const struct sample *s = &p->samples[i];
        if (s->depth >= 2 && is_in(s->locations[0], make_pairs) &&
            is_in(s->locations[1], on_goroutine)) {
            EXPECT_LE(s->depth, 6); /* to the goroutine's first frame */
            found += (size_t)s->values[0];
        }
    }
    EXPECT_EQ(found, 50);
    forget(0, 50);
}

static loam_chan *never;

KNOWN static void waits(void *arg)
{
    uint64_t got;
    (void)arg;
    (void)loam_chan_recv(never, &got);
    __asm__ volatile("" ::: "memory");
}

KNOWN static void sleeps(void *arg)
{
    (void)arg;
    loam_sleep(SECONDS(100));
    __asm__ volatile("" ::: "memory");
}

static int64_t parked_in(const void *fn, const char *state)
{
    return sum_of(profile_of(loam_write_goroutine_profile), fn, state, 0).values[0];
}

static void goroutine_profile(void)
{
    never = loam_chan_make_bytes(sizeof(uint64_t), 0);
    EXPECT_NOT_NULL(never);
    for (int i = 0; i < 100; i++) {
        go(waits, NULL);
    }
    go(sleeps, NULL);
    WAIT_FOR(60, parked_in(waits, NULL) == 100 && parked_in(sleeps, NULL) == 1);
    EXPECT_EQ(parked_in(waits, "channel receive"), 100);
    EXPECT_EQ(parked_in(sleeps, "sleep"), 1);
    loam_chan_close(never);
    WAIT_FOR(60, parked_in(waits, NULL) == 0);
    EXPECT_ERRNO(loam_write_goroutine_profile(-1), -1, EBADF);
}

static _Atomic(size_t) finalized;

static void at_end(void *obj, void *arg)
{
    (void)obj, (void)arg;
    atomic_fetch_add(&finalized, 1);
}

KNOWN static void make_ending(void *arg)
{
    (void)arg;
    for (int i = 0; i < 100; i++) {
        void *p = LOAM_NEW(pair);
        EXPECT_EQ(loam_set_finalizer(p, at_end, NULL), 0);
    }
}

/* In use for as long as it is there. */
static void finalizers(void)
{
    loam_set_mem_profile_rate(1);
    call_deep(make_ending, NULL);
    COLLECT_UNTIL(30, atomic_load(&finalized) >= 95);
    COLLECT_UNTIL(30, sum_of(profile_read(), make_ending, NULL, 0).values[2] <= 5);
    EXPECT_EQ(sum_of(profile_read(), make_ending, NULL, 0).values[0], 100);
}

static void errors(void)
{
    int fds[2];
    EXPECT_ERRNO(loam_write_heap_profile(-1), -1, EBADF);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT_ERRNO(loam_write_heap_profile(null), -1, EBADF);
    close(null);
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    EXPECT_ERRNO(loam_write_heap_profile(full), -1, ENOSPC);
    close(full);
    EXPECT_EQ(pipe(fds), 0);
    close(fds[0]);
    EXPECT_ERRNO(loam_write_heap_profile(fds[1]), -1, EPIPE);
    close(fds[1]);
}

static _Atomic(bool) stop;

static void *write_profiles(void *arg)
{
    int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    (void)arg;
    while (!atomic_load(&stop)) {
        EXPECT_EQ(loam_write_heap_profile(fd), 0);
        EXPECT_EQ(loam_write_goroutine_profile(fd), 0);
    }
    close(fd);
    return NULL;
}

/* No child inherits the loader's lock from a thread that writes a profile. */
static void forks(void)
{
    atomic_store(&stop, false);
    pthread_t t = thread_start(write_profiles, NULL);
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            loam_gc();
            (void)profile_read();
            _exit(0);
        }
        EXPECT_GT(pid, 0);
        child_wait(pid);
    }
    atomic_store(&stop, true);
    thread_join(t);
}

#if defined(__x86_64__) && !TEST_SANITIZED
/* Where a coroutine's stack ends some write an address that is none; nobody shall look what is there. */
void profile_switch(void **save, void *to);
__asm__(".text\n"
        ".type profile_switch, @function\n"
        "profile_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\n"
        "ret\n"
        ".size profile_switch, . - profile_switch\n");

static void *caller_sp, *coroutine_sp;

static void coroutine(void)
{
    for (int i = 0; i < 1000; i++) {
        EXPECT_NOT_NULL(LOAM_NEW(pair));
    }
    profile_switch(&coroutine_sp, caller_sp);
}

static void stack_of_its_own(void)
{
    enum { BYTES = 64 << 10, SAVED = 6 };
    void *mem = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(mem != MAP_FAILED);
    loam_stack *stack = loam_stack_add(mem, BYTES, NULL);
    EXPECT_NOT_NULL(stack);
    uintptr_t *top = (uintptr_t *)((char *)mem + BYTES - 128);
    *--top = 0xdeaddeaddeaddead;
    *--top = (uintptr_t)coroutine;
    loam_set_mem_profile_rate(1);
    profile_switch(&caller_sp, top - SAVED);
    loam_stack_remove(stack);
    munmap(mem, BYTES);
}
#endif

static void *churn(void *arg)
{
    struct team_member *me = arg;
    item *list = NULL;
    void *held[64] = {0};
    for (uint64_t i = 0; !atomic_load(&stop); i++) {
        list = i % 100 == 0 ? NULL : item_new(i, list);
        size_t slot = rng_below(&me->rng, COUNT_OF(held));
        if (held[slot] != NULL) {
            loam_free(held[slot]);
        }
        held[slot] = loam_alloc_noscan(1 + rng_below(&me->rng, 3000));
        if (rng_below(&me->rng, 500) == 0) {
            held[slot] = loam_realloc(held[slot], 40000 + rng_below(&me->rng, 100000));
        }
        if (i % 64 == 0) {
            EXPECT_EQ(loam_set_finalizer(item_new(i, NULL), at_end, NULL), 0);
        }
        if (rng_below(&me->rng, 5000) == 0) {
            loam_set_mem_profile_rate((int)rng_below(&me->rng, 3) * 100);
        }
    }
    EXPECT_GE(list_check(list), 0);
    return NULL;
}

static void beside_others(void)
{
    struct team team;
    size_t rounds = emulated() ? 3 : 10;
    loam_set_mem_profile_rate(1);
    for (size_t i = 0; i < rounds; i++) {
        atomic_store(&stop, false);
        team_start(&team, 8, churn, NULL);
        for (int k = 0; k < 5; k++) {
            (void)profile_read();
            pid_t pid = k == 0 && !emulated() ? fork() : -1;
            if (pid == 0) {
                (void)profile_read();
                _exit(0);
            }
            if (pid > 0) {
                child_wait(pid);
            }
        }
        loam_gc();
        atomic_store(&stop, true);
        team_join(&team);
    }
    loam_set_mem_profile_rate(512 << 10);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(rates);
    RUN(each_object);
    RUN(as_of_the_last_cycle);
    RUN(goroutines);
    RUN(goroutine_profile);
    RUN(finalizers);
    RUN(sums_of_samples);
    RUN(errors);
    if (!emulated()) { /* qemu-user fails an assertion of its own when a child with such a parent starts threads */
        RUN(forks);
    }
#if defined(__x86_64__) && !TEST_SANITIZED
    RUN(stack_of_its_own);
#endif
    RUN(beside_others);
    return test_end();
}
