/* test_sizeclasses.c - the size class tables.
 *
 * Claim   The tables are Go's, every lookup gives the smallest class that fits, an object's index
 *         is exact, and the committed files are what the generator writes.
 * Oracle  Go's table of sizes and pages; linear search; division; tools/mksizeclasses.py --check,
 *         found from LOAM_SOURCE_DIR (environment or macro), or from the current directory.
 */
#include "heap/sizeclasses.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#ifndef LOAM_SOURCE_DIR
#define LOAM_SOURCE_DIR "."
#endif

/* internal/runtime/gc/sizeclasses.go at go1.26 */
static const struct {
    unsigned size;
    unsigned pages;
} go_classes[NUM_SIZE_CLASSES] = {
    {0, 0},     {8, 1},      {16, 1},    {24, 1},    {32, 1},    {48, 1},    {64, 1},    {80, 1},
    {96, 1},    {112, 1},    {128, 1},   {144, 1},   {160, 1},   {176, 1},   {192, 1},   {208, 1},
    {224, 1},   {240, 1},    {256, 1},   {288, 1},   {320, 1},   {352, 1},   {384, 1},   {416, 1},
    {448, 1},   {480, 1},    {512, 1},   {576, 1},   {640, 1},   {704, 1},   {768, 1},   {896, 1},
    {1024, 1},  {1152, 1},   {1280, 1},  {1408, 2},  {1536, 1},  {1792, 2},  {2048, 1},  {2304, 2},
    {2688, 1},  {3072, 3},   {3200, 2},  {3456, 3},  {4096, 1},  {4864, 3},  {5376, 2},  {6144, 3},
    {6528, 4},  {6784, 5},   {6912, 6},  {8192, 1},  {9472, 7},  {9728, 6},  {10240, 5}, {10880, 4},
    {12288, 3}, {13568, 5},  {14336, 7}, {16384, 2}, {18432, 9}, {19072, 7}, {20480, 5}, {21760, 8},
    {24576, 3}, {27264, 10}, {28672, 7}, {32768, 4},
};

static void test_same_as_go(void **state)
{
    (void)state;
    assert_int_equal(NUM_SIZE_CLASSES, 68);
    assert_int_equal(PAGE_SHIFT, 13);
    for (unsigned c = 0; c < NUM_SIZE_CLASSES; c++) {
        assert_int_equal(class_to_size[c], go_classes[c].size);
        assert_int_equal(class_to_pages[c], go_classes[c].pages);
    }
}

static void test_counts_and_limits(void **state)
{
    (void)state;
    unsigned most_objs = 0;
    unsigned most_pages = 0;
    assert_int_equal(class_to_objs[0], 0);
    for (unsigned c = 1; c < NUM_SIZE_CLASSES; c++) {
        unsigned span = (unsigned)class_to_pages[c] << PAGE_SHIFT;
        unsigned objs = span / class_to_size[c];
        assert_int_equal(class_to_objs[c], objs);
        assert_true(span - objs * class_to_size[c] <= span / 8);
        assert_true(class_to_size[c] > class_to_size[c - 1]);
        most_objs = objs > most_objs ? objs : most_objs;
        most_pages = class_to_pages[c] > most_pages ? class_to_pages[c] : most_pages;
    }
    assert_int_equal(MAX_OBJS_PER_SPAN, most_objs);
    assert_int_equal(MAX_SIZE_CLASS_PAGES, most_pages);
    assert_int_equal(class_to_size[NUM_SIZE_CLASSES - 1], MAX_SMALL_SIZE);
}

static void test_lookup_is_the_smallest_that_fits(void **state)
{
    (void)state;
    assert_int_equal(size_to_class(0), 0);
    assert_int_equal(size_to_class_align16(0), 0);
    unsigned want = 1;
    for (size_t size = 1; size <= MAX_SMALL_SIZE; size++) {
        while (class_to_size[want] < size) {
            want++;
        }
        assert_int_equal(size_to_class(size), want);
        unsigned aligned = want;
        while (class_to_size[aligned] >= 16 && class_to_size[aligned] % 16 != 0) {
            aligned++;
        }
        assert_int_equal(size_to_class_align16(size), aligned);
    }
    assert_int_equal(class_to_size[size_to_class_align16(17)], 32);
    assert_int_equal(class_to_size[size_to_class_align16(24)], 32);
}

static void test_object_index_is_exact(void **state)
{
    (void)state;
    for (unsigned c = 1; c < NUM_SIZE_CLASSES; c++) {
        size_t span = (size_t)class_to_pages[c] << PAGE_SHIFT;
        for (size_t offset = 0; offset <= span; offset++) {
            if (class_object_index(c, offset) != offset / class_to_size[c]) {
                fail_msg("class %u, offset %zu", c, offset);
            }
        }
    }
}

static void test_generated_files_are_current(void **state)
{
    (void)state;
    const char *dir = getenv("LOAM_SOURCE_DIR");
    char path[4096];
    char command[4200];
    (void)snprintf(path, sizeof path, "%s/tools/mksizeclasses.py",
                   dir != NULL ? dir : LOAM_SOURCE_DIR);
    if (access(path, R_OK) != 0 || system("python3 -c '' 2>/dev/null") != 0) {
        print_message("no python3 or no %s\n", path);
        skip();
    }
    (void)snprintf(command, sizeof command, "python3 '%s' --check", path);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_go),
        cmocka_unit_test(test_counts_and_limits),
        cmocka_unit_test(test_lookup_is_the_smallest_that_fits),
        cmocka_unit_test(test_object_index_is_exact),
        cmocka_unit_test(test_generated_files_are_current),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
