/* test_os_cgroup.c - the container's memory limit is found, whatever the version and depth.
 *
 * Claim   The least limit of the group and all above it; files that are missing, say "max", are empty or make no sense
 *         are passed over; without any, there is no limit.
 * Oracle  Trees of files that are written here.
 */
#include "os/os.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char root[64];

static void put(const char *where, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", root, where);
    for (char *slash = strchr(path + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static uint64_t limit(void)
{
    char proc[96];
    char sys[96];
    snprintf(proc, sizeof(proc), "%s/cgroup", root);
    snprintf(sys, sizeof(sys), "%s/sys", root);
    errno = 77;
    uint64_t bytes = os_cgroup_memory_limit(proc, sys);
    assert_int_equal(errno, 77);
    return bytes;
}

static int begin(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/loam-cgroup-XXXXXX");
    return mkdtemp(root) == NULL;
}

static int end(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command) != 0;
}

static void test_version_2(void **state)
{
    (void)state;
    put("cgroup", "0::/\n");
    put("sys/memory.max", "536870912\n");
    assert_true(limit() == 536870912);
    put("sys/memory.max", "max\n");
    assert_true(limit() == UINT64_MAX);
    put("cgroup", "0::/a/b c/d\n");
    put("sys/a/b c/d/memory.max", "3000\n");
    put("sys/a/b c/memory.max", "max\n");
    put("sys/a/memory.max", "2000\n");
    assert_true(limit() == 2000);
    put("sys/a/b c/d/memory.max", "1000\n"); /* it changes while the program runs */
    assert_true(limit() == 1000);
    put("cgroup", "0::/of/the/host\n"); /* only the root is there */
    put("sys/memory.max", "4000\n");
    assert_true(limit() == 4000);
}

static void test_version_1(void **state)
{
    (void)state;
    put("cgroup", "12:cpu,cpuacct:/x\n5:memory:/docker/abc\n1:name=systemd:/y\n0::/z\n");
    put("sys/memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_true(limit() == UINT64_MAX);
    put("sys/memory/docker/abc/memory.limit_in_bytes", "7000\n");
    assert_true(limit() == 7000);
    put("sys/memory/docker/memory.limit_in_bytes", "6000\n");
    assert_true(limit() == 6000);
    put("cgroup", "4:hugetlb,memory,pids:/docker/abc"); /* without a line's end */
    assert_true(limit() == 6000);
    put("cgroup", "4:memoryx:/docker/abc\n");
    assert_true(limit() == UINT64_MAX);
}

static void test_nothing_of_the_kind(void **state)
{
    (void)state;
    assert_true(limit() == UINT64_MAX);
    static const char *const groups[] = {"", "\n\n", "0:", "::", "0::", "0::/\n:::::\n", "garbage"};
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        put("cgroup", groups[i]);
        assert_true(limit() == UINT64_MAX);
    }
    static const char *const limits[] = {"", "\n", "-5\n", "99999999999999999999999\n", "x"};
    put("cgroup", "0::/\n");
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        put("sys/memory.max", limits[i]);
        assert_true(limit() == UINT64_MAX);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_version_2, begin, end),
        cmocka_unit_test_setup_teardown(test_version_1, begin, end),
        cmocka_unit_test_setup_teardown(test_nothing_of_the_kind, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
