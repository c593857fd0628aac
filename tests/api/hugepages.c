/* Where the heap asks the system for huge pages: not in its first 64 MiB; in the arenas of 64 MiB behind that when they
 * have been full for some cycles, as long as they have no holes.  GODEBUG=disablethp=1: nowhere.  GODEBUG=madvdontneed=0: what went back and is taken again
 * reads as zero all the same.
 *
 * TEST_LABEL: quick
 * TEST_RUN: default | | | 60 */
#include "../support/test.h"

#include <loam/stats.h>

#include "../support/child.h"
#include "../support/heap.h"

enum { MIB = 1 << 20, PIECE = 64 << 10, PIECES = 256 * MIB / PIECE, ARENA = 64 * MIB };

static unsigned char **pieces;

/* Is the flag (hg, nh) set on the mapping around p?  *known: the kernel tells. */
static bool is_advised(const void *p, const char *flag, bool *known)
{
    char line[1024];
    bool inside = false, found = false;
    FILE *f = fopen("/proc/self/smaps", "re");
    *known = false;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        uintptr_t from, to;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
            inside = (uintptr_t)p >= from && (uintptr_t)p < to;
        } else if (inside && strncmp(line, "VmFlags:", 8) == 0) {
            char word[8];
            snprintf(word, sizeof word, " %s ", flag);
            *known = true;
            found = strstr(line, word) != NULL;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return found;
}

static bool huge_pages_exist(void)
{
    return access("/sys/kernel/mm/transparent_hugepage/enabled", R_OK) == 0 &&
           getenv("TEST_EMULATOR") == NULL; /* whose maps are another's */
}

static NOINLINE void fill(void)
{
    LOAM_SET(pieces, (unsigned char **)loam_alloc(PIECES * sizeof(void *)));
    EXPECT_NOT_NULL(pieces);
    for (size_t i = 0; i < PIECES; i++) {
        unsigned char *p = loam_alloc_noscan(PIECE);
        EXPECT_NOT_NULL(p);
        p[0] = p[PIECE - 1] = (unsigned char)i;
        LOAM_SET(pieces[i], p);
    }
}

/* Pieces lie in the order of their addresses, but for some at the ends. */
static unsigned char *in_arena(size_t n)
{
    return pieces[(n * ARENA + ARENA / 2) / PIECE];
}

static void expect_advice(const void *p, const char *flag, bool expected)
{
    bool known;
    bool set = is_advised(p, flag, &known);
    EXPECT_MSG(!known || set == expected, "flag %s of %p: %d", flag, p, set);
}

static NOINLINE void punch_holes(void)
{
    for (size_t i = 0; i < PIECES; i += 3) {
        loam_free(pieces[i]);
        LOAM_SET(pieces[i], NULL);
    }
    loam_free_os_memory();
}

static NOINLINE void fill_holes(void)
{
    for (size_t i = 0; i < PIECES; i += 3) {
        unsigned char *p = loam_alloc_noscan(PIECE);
        for (size_t b = 0; b < PIECE; b++) {
            EXPECT_EQ(p[b], 0);
        }
        LOAM_SET(pieces[i], p);
    }
}

static void check_pieces(void)
{
    for (size_t i = 0; i < PIECES; i++) {
        EXPECT(i % 3 == 0 ||
               (pieces[i][0] == (unsigned char)i && pieces[i][PIECE - 1] == (unsigned char)i));
    }
}

static void collect(int cycles)
{
    for (int i = 0; i < cycles; i++) {
        loam_gc();
    }
}

static void follows_the_holes(void)
{
    fill();
    if (huge_pages_exist()) {
        collect(2);
        expect_advice(in_arena(2), "hg", false);
        collect(16);
        expect_advice(in_arena(2), "hg", true);
        expect_advice(pieces[10], "hg", false);
    }
    punch_holes();
    if (huge_pages_exist()) {
        expect_advice(in_arena(2), "nh", true);
    }
    fill_holes();
    unsigned char *more = loam_alloc_noscan(4 * MIB); /* whatever is left of the last holes */
    collect(18);
    if (huge_pages_exist()) {
        expect_advice(in_arena(1), "hg", true);
    }
    check_pieces();
    loam_keep_alive(more);
}

static void disabled(void)
{
    fill();
    if (huge_pages_exist()) {
        expect_advice(in_arena(2), "hg", false);
        expect_advice(in_arena(2), "nh", true);
        expect_advice(pieces[10], "nh", true);
    }
    punch_holes();
    fill_holes();
    check_pieces();
}

static void lazily(void)
{
    loam_memstats st;
    fill();
    punch_holes();
    loam_read_memstats(&st);
    EXPECT_GT(st.heap_released, (uint64_t)40 * MIB);
    fill_holes();
    check_pieces();
}

static const struct child_case children[] = {{"disabled", disabled}, {"lazily", lazily}};

static void by_variable(void)
{
    static struct child c;
    const char *const thp[] = {"GODEBUG=disablethp=1", NULL};
    const char *const dontneed[] = {"GODEBUG=madvdontneed=0", NULL};
    child_run(&c, "disabled", thp, 60);
    EXPECT_CHILD_PASSED(&c);
    child_run(&c, "lazily", dontneed, 60);
    EXPECT_CHILD_PASSED(&c);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    child_dispatch(children, COUNT_OF(children));
    RUN(follows_the_holes);
    RUN(by_variable);
    return test_end();
}
