/* test_os_tls.c - every place where a thread keeps storage of its own is found.
 *
 * Claim   __thread variables of the executable and of libraries loaded later, by whatever model, and
 *         values of pthread_setspecific, however many keys there are, lie in the ranges given: for the
 *         calling thread, from a signal handler, and for a thread that stands still. What the loader has
 *         freed and still names is read as far as it is mapped.
 * Oracle  A number of its own for each variable; the same search must not find it before it is stored
 *         and after it is wiped.
 *
 * The libraries are compiled here; without a compiler these cases are skipped.
 */
#include "os/os.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define KEYS 100
#define LIBRARIES 24 /* more than a thread's dtv has room for at its start */

/* Numbers are made from an index, and nowhere else stored as such. */
static uintptr_t number(unsigned i)
{
    volatile uintptr_t base = UINT64_C(0x5eed000100000000);
    return base + i * UINT64_C(0x10001);
}

struct search {
    uintptr_t wanted;
    size_t found;
    size_t bytes; /* in all ranges */
};

static NO_SANITIZE void search_range(void *arg, uintptr_t start, size_t bytes)
{
    struct search *s = arg;
    if (start % sizeof(uintptr_t) != 0 || bytes % sizeof(uintptr_t) != 0) {
        abort();
    }
    s->bytes += bytes;
    for (uintptr_t at = start; at < start + bytes; at += sizeof(uintptr_t)) {
        s->found += *(const uintptr_t *)at == s->wanted;
    }
}

static bool tls_has(uintptr_t tp, unsigned i)
{
    struct search s = {number(i), 0, 0};
    os_each_tls_range(tp, search_range, &s);
    return s.found != 0;
}

/* -- a thread that stands still while another looks at it -------------------------------------- */

enum step { STEP_RUN, STEP_STILL, STEP_GO_ON };

struct still {
    _Atomic uint32_t step;
    uintptr_t tp;
    void (*fill)(void);
    void (*wipe)(void);
    bool wiped;
};

static void still_wait(struct still *st, uint32_t step)
{
    uint32_t now;
    while ((now = load_acq(&st->step)) != step) { /* acquire: pairs with still_set */
        os_futex_wait(&st->step, now, -1);
    }
}

static void still_set(struct still *st, uint32_t step)
{
    store_rel(&st->step, step); /* release: pairs with still_wait */
    os_futex_wake(&st->step, 8);
}

static void *still_main(void *arg)
{
    struct still *st = arg;
    st->tp = os_thread_pointer();
    st->fill();
    still_set(st, STEP_STILL);
    still_wait(st, STEP_GO_ON);
    st->wipe();
    still_set(st, STEP_STILL);
    still_wait(st, STEP_RUN);
    return NULL;
}

/* Numbers [first, first + n) are found in a thread after fill, and no more after wipe. */
static void check_still_thread(void (*fill)(void), void (*wipe)(void), unsigned first, unsigned n)
{
    struct still st = {.fill = fill, .wipe = wipe};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, still_main, &st), 0);
    still_wait(&st, STEP_STILL);
    for (unsigned i = first; i < first + n; i++) {
        assert_true(tls_has(st.tp, i));
        assert_false(tls_has(os_thread_pointer(), i));
    }
    still_set(&st, STEP_GO_ON);
    still_wait(&st, STEP_STILL);
    for (unsigned i = first; i < first + n; i++) {
        assert_false(tls_has(st.tp, i));
    }
    still_set(&st, STEP_RUN);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* -- the same from a signal handler of the thread ---------------------------------------------- */

static unsigned handler_first;
static unsigned handler_n;
static _Atomic unsigned handler_found;

static void handler(int signo)
{
    (void)signo;
    unsigned found = 0;
    for (unsigned i = handler_first; i < handler_first + handler_n; i++) {
        found += tls_has(os_thread_pointer(), i);
    }
    store_rlx(&handler_found, found);
}

static void check_in_handler(unsigned first, unsigned n, unsigned expected)
{
    handler_first = first;
    handler_n = n;
    struct sigaction sa;
    memset(&sa, 0, sizeof(sa));
    sa.sa_handler = handler;
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
    assert_int_equal(load_rlx(&handler_found), expected);
}

static void check_own(void (*fill)(void), void (*wipe)(void), unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        assert_false(tls_has(os_thread_pointer(), i));
    }
    fill();
    for (unsigned i = first; i < first + n; i++) {
        assert_true(tls_has(os_thread_pointer(), i));
    }
    check_in_handler(first, n, n);
    wipe();
    for (unsigned i = first; i < first + n; i++) {
        assert_false(tls_has(os_thread_pointer(), i));
    }
    check_in_handler(first, n, 0);
}

struct own {
    void (*fill)(void);
    void (*wipe)(void);
    unsigned first;
    unsigned n;
};

static void *own_main(void *arg)
{
    const struct own *o = arg;
    check_own(o->fill, o->wipe, o->first, o->n);
    return NULL;
}

/* This thread, one that looks at itself, one that stands still. */
static void check_everywhere(void (*fill)(void), void (*wipe)(void), unsigned first, unsigned n)
{
    check_own(fill, wipe, first, n);
    struct own o = {fill, wipe, first, n};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, own_main, &o), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    check_still_thread(fill, wipe, first, n);
}

/* -- static ------------------------------------------------------------------------------------ */

static __thread uintptr_t static_bss;
static __thread uintptr_t static_data = 1;
static __thread uintptr_t static_large[5000];

static void static_fill(void)
{
    *(volatile uintptr_t *)&static_bss = number(0);
    *(volatile uintptr_t *)&static_data = number(1);
    *(volatile uintptr_t *)&static_large[0] = number(2);
    *(volatile uintptr_t *)&static_large[4999] = number(3);
}

static void static_wipe(void)
{
    *(volatile uintptr_t *)&static_bss = 0;
    *(volatile uintptr_t *)&static_data = 0;
    *(volatile uintptr_t *)&static_large[0] = 0;
    *(volatile uintptr_t *)&static_large[4999] = 0;
}

static void test_static(void **state)
{
    (void)state;
    assert_true(os_tls_static_bytes() >= sizeof(static_large));
    check_everywhere(static_fill, static_wipe, 0, 4);
}

/* -- pthread_setspecific ----------------------------------------------------------------------- */

static pthread_key_t keys[KEYS];

static void specific_fill(void)
{
    for (unsigned i = 0; i < KEYS; i++) {
        assert_int_equal(pthread_setspecific(keys[i], (void *)number(100 + i)), 0);
    }
}

static void specific_wipe(void)
{
    for (unsigned i = 0; i < KEYS; i++) {
        assert_int_equal(pthread_setspecific(keys[i], NULL), 0);
    }
}

static void test_specific(void **state)
{
    (void)state;
    for (unsigned i = 0; i < KEYS; i++) {
        assert_int_equal(pthread_key_create(&keys[i], NULL), 0);
    }
#ifdef __GLIBC__
    check_everywhere(specific_fill, specific_wipe, 100, KEYS);
#else
    check_own(specific_fill, specific_wipe, 100, KEYS);
#endif
    /* And once more with the probe made when the low keys are taken. */
    os_tls_init();
    check_own(specific_fill, specific_wipe, 100, KEYS);
    for (unsigned i = 0; i < KEYS; i++) {
        assert_int_equal(pthread_key_delete(keys[i]), 0);
    }
}

/* -- libraries --------------------------------------------------------------------------------- */

typedef void set_fn(unsigned where, uintptr_t value);
static set_fn *library_set[LIBRARIES];
static unsigned library_count;

static const char library_source[] =
    "static __thread unsigned long first = 1;\n"
    "static __thread unsigned long last[SIZE];\n"
    "void set(unsigned where, unsigned long value);\n"
    "void set(unsigned where, unsigned long value)\n"
    "{ *(volatile unsigned long *)(where ? &last[SIZE - 1] : &first) = value; }\n";

/* Compile and load one; false: no compiler. */
static bool library_load(const char *dir, unsigned i, const char *flags)
{
    char source[256];
    char object[256];
    char command[1024];
    snprintf(source, sizeof(source), "%s/tls.c", dir);
    snprintf(object, sizeof(object), "%s/tls%u.so", dir, i);
    FILE *f = fopen(source, "w");
    if (f == NULL) {
        return false;
    }
    fputs(library_source, f);
    fclose(f);
#if defined(__aarch64__)
    const char *compilers = "aarch64-linux-gnu-gcc cc";
#else
    const char *compilers = "cc gcc clang";
#endif
    snprintf(command, sizeof(command),
             "for c in %s; do $c %s -O1 -shared -fPIC -nostdlib -o %s %s 2>/dev/null && exit 0; "
             "done; exit 1",
             compilers, flags, object, source);
    if (system(command) != 0) {
        return false;
    }
    void *library = dlopen(object, RTLD_NOW | RTLD_LOCAL);
    unlink(object);
    unlink(source);
    if (library == NULL) {
        return false;
    }
    *(void **)&library_set[library_count] = dlsym(library, "set");
    assert_non_null(library_set[library_count]);
    library_count++;
    return true;
}

static void library_fill(void)
{
    for (unsigned i = 0; i < library_count; i++) {
        library_set[i](0, number(300 + 2 * i));
        library_set[i](1, number(301 + 2 * i));
    }
}

static void library_wipe(void)
{
    for (unsigned i = 0; i < library_count; i++) {
        library_set[i](0, 0);
        library_set[i](1, 0);
    }
}

static void test_libraries(void **state)
{
    (void)state;
    /* This thread is there before the libraries: its dtv is too short for them. */
    char dir[] = "/tmp/loam-tls-XXXXXX";
    assert_non_null(mkdtemp(dir));
    bool built = true;
    for (unsigned i = 0; i < LIBRARIES && built; i++) {
        /* Small, large, and in the static area; a size as malloc maps it by itself. */
        static const char *const kinds[] = {
            "-DSIZE=1 -ftls-model=global-dynamic",
            "-DSIZE=3000 -ftls-model=global-dynamic",
            "-DSIZE=4 -ftls-model=initial-exec",
            "-DSIZE=100000 -ftls-model=local-dynamic",
        };
        built = library_load(dir, i, kinds[i % 4]);
    }
    rmdir(dir);
    if (!built) {
        skip();
    }
    os_stores_refresh();
    check_everywhere(library_fill, library_wipe, 300, 2 * library_count);
}

/* -- a block that the loader has freed and still names -------------------------------------------- */

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
enum { STALE = 5, AROUND = 64 << 10 };

static void test_freed(void **state)
{
    (void)state;
    /* Like a thread of glibc's: a dtv that names our blocks, and nothing else. */
    char *around = calloc(1, 2 * AROUND);
    assert_non_null(around);
    assert_true(os_tls_static_bytes() + 4096 < AROUND);
    uintptr_t tp = (uintptr_t)around + AROUND;
    uintptr_t dtv[2 * (STALE + 3)] = {STALE + 1};
#if defined(__x86_64__)
    ((uintptr_t *)tp)[1] = (uintptr_t)&dtv[2];
#else
    ((uintptr_t *)tp)[0] = (uintptr_t)&dtv[2];
#endif
    size_t page = os_page_size();
    char *map = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    assert_int_equal(munmap(map + 2 * page, page), 0);
    uintptr_t *good = malloc(5000);
    assert_non_null(good);
    memset(good, 0, 5000);
    good[620] = number(400);
    uintptr_t blocks[STALE + 1] = {
        (uintptr_t)map + 2 * page + 16,  /* gone, with its head */
        (uintptr_t)map + 2 * page,       /* gone behind its head */
        (uintptr_t)map + page,           /* a head that says nothing */
        (uintptr_t)map + page + 1024,    /* a head of a chunk that reaches into what is gone */
        (uintptr_t)map + 3 * page + 512, /* a head of 1: smaller than any */
        (uintptr_t)good,
    };
    *(uintptr_t *)(map + page + 1024 - 8) = (UINT64_C(1) << 40) | 1;
    *(uintptr_t *)(map + 2 * page - 8) = 4096 | 1;
    *(uintptr_t *)(map + page + 1024) = number(401);
    *(uintptr_t *)(map + 3 * page + 512 - 8) = 1;
    for (size_t i = 0; i <= STALE; i++) {
        dtv[2 * (i + 2)] = blocks[i];
        dtv[2 * (i + 2) + 1] = blocks[i];
    }
    errno = 77;
    assert_true(tls_has(tp, 400));
    assert_int_equal(errno, 77);
    assert_true(tls_has(tp, 401)); /* stale, but there */
    free(good);
    assert_int_equal(munmap(map, 4 * page), 0);
    free(around);
}
#else
static void test_freed(void **state)
{
    (void)state;
    skip(); /* musl never unloads; a sanitizer's malloc is asked for sizes, and aborts */
}
#endif

int main(void)
{
    os_tls_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_static),
        cmocka_unit_test(test_specific),
        cmocka_unit_test(test_libraries),
        cmocka_unit_test(test_freed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
