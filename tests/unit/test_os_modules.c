/* test_os_modules.c - data ranges, restartable stores, libraries that come and go, fork.
 *
 * Claim   Every global is in exactly one data range. A pc strictly inside a noted sequence goes back
 *         to its start, any other stays; libraries' sequences come and go with them, without leaking,
 *         while handlers read; code that took an old sequence's place is not believed to be it.
 * Oracle  Labels of the sequences written here by hand.
 *
 * The libraries are compiled here; without a compiler these cases are skipped.
 */
#include "os/os.h"

#include "base/bits.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* -- sequences: never run, only looked at ------------------------------------------------------ */

#define NOTE(type, name_size, name, begin, end) \
    ".pushsection .note.loam, \"a\", %note\n"   \
    ".balign 4\n"                               \
    ".long " name_size ", 8, " type "\n"        \
    ".asciz \"" name "\"\n"                     \
    ".balign 4\n"                               \
    ".long " begin " - .\n"                     \
    ".long " end " - .\n"                       \
    ".popsection\n"

#define TEN_NOPS "nop; nop; nop; nop; nop; nop; nop; nop; nop; nop\n"

/* The notes of the first stand before those of the second, its code behind. */
__asm__(".pushsection .text, 1\n"
        "many_high:\n"
        ".rept 500\n"
        "1: nop; nop; nop; nop\n"
        "2: nop; nop\n" NOTE("1", "5", "loam", "1b", "2b") /* 4 and 2 */
        ".endr\n"
        "many_high_end: nop\n"
        ".popsection\n"
        ".pushsection .text, 0\n"
        "seq_begin:\n" TEN_NOPS
        "seq_end: nop\n" NOTE("1", "5", "loam", "seq_begin",
                              "seq_end") "decoy_begin:\n" TEN_NOPS
                                         "decoy_end: nop\n" NOTE("2", "5", "loam", "decoy_begin",
                                                                 "decoy_end") /* another type */
        NOTE("1", "5", "loan", "decoy_begin", "decoy_end")                    /* another name */
        NOTE("1", "5", "loam", "decoy_end", "decoy_begin")                    /* backwards */
        NOTE("1", "5", "loam", "decoy_begin", "decoy_begin")                  /* empty */
        NOTE("1", "5", "loam", "test_word", "test_word + 8")                  /* not code */
        NOTE("1", "5", "loam", "decoy_end", "decoy_end + 0x10000000") /* out of the module */
        NOTE("1", "13", "loam and more", "decoy_begin",
             "decoy_end") ".pushsection .note.other, \"a\", %note\n"
                          ".balign 4\n"
                          ".long 4, 3, 9\n"
                          ".asciz \"odd\"\n"
                          ".byte 1, 2, 3\n"
                          ".balign 4\n"
                          ".popsection\n"
                          "after_begin:\n" TEN_NOPS
                          "after_end: nop\n" NOTE("1", "5", "loam", "after_begin",
                                                  "after_end") ".popsection\n");

/* Local labels: not by way of the GOT. */
#define HIDDEN __attribute__((visibility("hidden")))
extern const char many_high[] HIDDEN;
extern const char many_high_end[] HIDDEN;
extern const char seq_begin[] HIDDEN;
extern const char seq_end[] HIDDEN;
extern const char decoy_begin[] HIDDEN;
extern const char decoy_end[] HIDDEN;
extern const char after_begin[] HIDDEN;
extern const char after_end[] HIDDEN;

uintptr_t test_word = 1;
uintptr_t test_bss[100];

#if defined(__aarch64__)
#define NOP_BYTES 4
#else
#define NOP_BYTES 1
#endif

static void check_restarts(uintptr_t begin, uintptr_t end)
{
    assert_true(begin < end);
    assert_int_equal(os_stores_restart(begin), begin);
    for (uintptr_t pc = begin + 1; pc < end; pc++) {
        assert_int_equal(os_stores_restart(pc), begin);
    }
    assert_int_equal(os_stores_restart(end), end);
}

static void check_stays(uintptr_t begin, uintptr_t end)
{
    for (uintptr_t pc = begin; pc <= end; pc++) {
        assert_int_equal(os_stores_restart(pc), pc);
    }
}

static void test_before_any_refresh(void **state)
{
    (void)state;
    check_stays((uintptr_t)seq_begin, (uintptr_t)seq_end);
    assert_true(os_stores_changed(0));
}

static void test_sequences(void **state)
{
    (void)state;
    uint64_t generation = os_stores_refresh();
    assert_int_not_equal(generation, 0);
    assert_int_equal(os_stores_refresh(), generation);
    assert_false(os_stores_changed(generation));
    assert_true(os_stores_changed(generation - 1));

    check_restarts((uintptr_t)seq_begin, (uintptr_t)seq_end);
    check_restarts((uintptr_t)after_begin, (uintptr_t)after_end);
    check_stays((uintptr_t)decoy_begin, (uintptr_t)decoy_end);
    for (uintptr_t at = (uintptr_t)many_high; at < (uintptr_t)many_high_end; at += 6 * NOP_BYTES) {
        check_restarts(at, at + 4 * NOP_BYTES);
        check_stays(at + 4 * NOP_BYTES, at + 6 * NOP_BYTES);
    }
    check_stays(0, 10);
    check_stays(UINTPTR_MAX - 10, UINTPTR_MAX - 1);
}

static void test_no_memory(void **state)
{
    (void)state;
    /* In a child, where nothing is known yet. Tests run in order; this one is the first. */
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        for (int64_t n = 1; n < 100; n++) {
            store_rlx(&os_fail_at, n);
            uint64_t generation = os_stores_refresh();
            bool failed = load_rlx(&os_fail_at) == 0;
            store_rlx(&os_fail_at, 0);
            if (failed != (generation == 0) || (n == 1 && !failed)) {
                _exit(1);
            }
            if (generation != 0) {
                uintptr_t pc = (uintptr_t)seq_begin + 1;
                _exit(os_stores_restart(pc) == pc - 1 ? 0 : 2);
            }
            if (!os_stores_changed(generation)) {
                _exit(3);
            }
        }
        _exit(4);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* -- data -------------------------------------------------------------------------------------- */

struct data_search {
    uintptr_t wanted;
    size_t found;
    size_t bytes;
};

static void data_range(void *arg, uintptr_t start, size_t bytes)
{
    struct data_search *s = arg;
    if (start % sizeof(uintptr_t) != 0 || bytes % sizeof(uintptr_t) != 0) {
        abort();
    }
    s->bytes += bytes;
    s->found += s->wanted - start < bytes;
}

static size_t data_count(const void *p)
{
    struct data_search s = {(uintptr_t)p, 0, 0};
    os_each_data_range(data_range, &s);
    assert_int_equal(os_mapped_low(s.wanted, s.wanted + 8), s.wanted);
    return s.found;
}

static uintptr_t local_word = 3;

static void test_data(void **state)
{
    (void)state;
    static uintptr_t in_function;
    uintptr_t on_stack = 0;
    assert_int_equal(data_count(&test_word), 1);
    assert_int_equal(data_count(&test_bss[99]), 1);
    assert_int_equal(data_count(&local_word), 1);
    assert_int_equal(data_count(&in_function), 1);
    assert_int_equal(data_count((void *)&os_fail_at), 1); /* linked into the executable */
    assert_int_equal(data_count((void *)&stdout), 1);     /* of the C library, copied or not */
    assert_int_equal(data_count(&on_stack), 0);
    assert_int_equal(data_count(seq_begin), 0);
}

/* -- libraries that come and go ---------------------------------------------------------------- */

static char dir[] = "/tmp/loam-modules-XXXXXX";
static char library[sizeof(dir) + 16];

static const char library_source[] =
    "unsigned long library_word = 1;\n"
    "extern const char lib_begin[], lib_end[];\n"
    "const char *lib_range[2] = { lib_begin, lib_end };\n"
    "__asm__(\".text\\n .balign 4096\\n .globl lib_begin, lib_end\\n\"\n"
    "\".hidden lib_begin, lib_end\\n lib_begin: nop; nop; nop; nop\\n\"\n"
    "\"lib_end: nop\\n\"\n"
    "\".pushsection .note.loam, \\\"a\\\", %note\\n .balign 4\\n .long 5, 8, 1\\n\"\n"
    "\".asciz \\\"loam\\\"\\n .balign 4\\n .long lib_begin - ., lib_end - .\\n "
    ".popsection\\n\");\n";

static bool library_build(void)
{
    char source[sizeof(dir) + 16];
    char command[1024];
    if (mkdtemp(dir) == NULL) {
        return false;
    }
    snprintf(source, sizeof(source), "%s/m.c", dir);
    snprintf(library, sizeof(library), "%s/m.so", dir);
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
             "for c in %s; do $c -O1 -shared -fPIC -nostdlib -o %s %s 2>/dev/null && exit 0; "
             "done; exit 1",
             compilers, library, source);
    bool ok = system(command) == 0;
    unlink(source);
    return ok;
}

static void library_remove(void)
{
    unlink(library);
    rmdir(dir);
}

struct loaded {
    void *handle;
    uintptr_t begin;
    uintptr_t end;
};

static bool library_open(struct loaded *l)
{
    l->handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (l->handle == NULL) {
        return false;
    }
    const char **range = dlsym(l->handle, "lib_range");
    assert_non_null(range);
    l->begin = (uintptr_t)range[0];
    l->end = (uintptr_t)range[1];
    return true;
}

static void test_library(void **state)
{
    (void)state;
    struct loaded l;
    uint64_t before = os_stores_refresh();
    if (library[0] == 0 || !library_open(&l)) {
        skip();
    }
    assert_true(os_stores_changed(before));
    check_stays(l.begin, l.end);
    uint64_t with = os_stores_refresh();
    assert_int_not_equal(with, before);
    assert_false(os_stores_changed(with));
    check_restarts(l.begin, l.end);
    check_restarts((uintptr_t)seq_begin, (uintptr_t)seq_end);
    assert_int_equal(data_count(dlsym(l.handle, "library_word")), 1);

    assert_int_equal(dlclose(l.handle), 0);
#ifdef __GLIBC__
    assert_true(os_stores_changed(with));
    assert_int_not_equal(os_stores_refresh(), with);
    check_stays(l.begin, l.end);
    check_restarts((uintptr_t)seq_begin, (uintptr_t)seq_end);
#endif
}

/* What lies where a library was is asked for its code, as long as no refresh knows better. */
static void test_other_code_in_its_place(void **state)
{
    (void)state;
    struct loaded l;
    if (library[0] == 0 || !library_open(&l)) {
        skip();
    }
    os_stores_refresh();
    check_restarts(l.begin, l.end);

    char *page = (char *)align_down(l.begin, os_page_size());
    if (mprotect(page, os_page_size(), PROT_READ | PROT_WRITE) != 0) {
        dlclose(l.handle);
        skip();
    }
    char saved[64];
    memcpy(saved, (char *)l.begin, sizeof(saved));

    /* A debugger's breakpoint is no other code. */
#if defined(__aarch64__)
    static const unsigned char breakpoint[] = {0x00, 0x00, 0x20, 0xd4};
#else
    static const unsigned char breakpoint[] = {0xcc};
#endif
    memcpy((char *)l.begin + sizeof(breakpoint), breakpoint, sizeof(breakpoint));
    check_restarts(l.begin, l.end);

    memset((char *)l.begin, 0x11, sizeof(saved));
    check_stays(l.begin, l.end);

    memcpy((char *)l.begin, saved, sizeof(saved));
    check_restarts(l.begin, l.end);
    assert_int_equal(mprotect(page, os_page_size(), PROT_READ | PROT_EXEC), 0);
    assert_int_equal(dlclose(l.handle), 0);
    os_stores_refresh();
}

static _Atomic bool readers_stop;
static _Atomic uint64_t readers_wrong;

static void *reader_main(void *arg)
{
    (void)arg;
    while (!load_rlx(&readers_stop)) {
        uintptr_t inside = (uintptr_t)seq_begin + 1;
        uintptr_t outside = (uintptr_t)decoy_begin + 1;
        if (os_stores_restart(inside) != (uintptr_t)seq_begin ||
            os_stores_restart(outside) != outside) {
            add_rlx(&readers_wrong, 1);
        }
    }
    return NULL;
}

/* From the list of mappings: under an emulator that has only the program's own. */
static size_t mapped_kib(void)
{
    size_t bytes = 0;
    char line[1024];
    FILE *f = fopen("/proc/self/maps", "r");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        unsigned long low = 0;
        unsigned long high = 0;
        if (sscanf(line, "%lx-%lx", &low, &high) == 2) {
            bytes += high - low;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return bytes / 1024;
}

static void test_loop_does_not_leak(void **state)
{
    (void)state;
    struct loaded l;
    if (library[0] == 0 || !library_open(&l)) {
        skip();
    }
    dlclose(l.handle);
    os_stores_refresh();
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, reader_main, NULL), 0);
    }
    size_t before = 0;
    for (int i = 0; i < 600; i++) {
        assert_true(library_open(&l));
        os_stores_refresh();
        assert_int_equal(os_stores_restart(l.begin + 1), l.begin);
        dlclose(l.handle);
        os_stores_refresh();
        if (i == 100) {
            before = mapped_kib();
        }
    }
    store_rlx(&readers_stop, true);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    assert_int_equal(load_rlx(&readers_wrong), 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    /* 500 snapshots would be 16 MiB and more. */
    assert_true(mapped_kib() < before + 2048);
#else
    (void)before;
#endif
}

/* -- fork -------------------------------------------------------------------------------------- */

int main(void)
{
    if (!library_build()) {
        library_remove();
        library[0] = 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_before_any_refresh),
        cmocka_unit_test(test_sequences),
        cmocka_unit_test(test_data),
        cmocka_unit_test(test_library),
        cmocka_unit_test(test_other_code_in_its_place),
        cmocka_unit_test(test_loop_does_not_leak),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (library[0] != 0) {
        library_remove();
    }
    return failed;
}
