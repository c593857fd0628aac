/* numa.c - nodes of memory: which there are, where a thread runs, where memory shall lie.
 *
 * Model       A node is a bit of a mask, by the kernel's number. Nodes without memory, of processors only, do not count.
 *             All calls go through os_numa, so that a test puts a machine of its own in the place of this one.
 * From Go     no twin: Go's heap knows no nodes (golang/go 20307 and the proposals it names).
 * Tests       tests/unit/test_numa.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"
#include "os/os_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    NUMA_PREFERRED = 1
}; /* MPOL_PREFERRED of the kernel's interface; <numaif.h> is not everywhere */

uint64_t os_numa_parse(const char *list)
{
    uint64_t mask = 0;
    while (*list >= '0' && *list <= '9') {
        char *end;
        unsigned long first = strtoul(list, &end, 10);
        unsigned long last = *end == '-' ? strtoul(end + 1, &end, 10) : first;
        for (unsigned long i = first; i <= last && i < 64; i++) {
            mask |= UINT64_C(1) << i;
        }
        list = *end == ',' ? end + 1 : end;
    }
    return mask;
}

static uint64_t numa_nodes(void)
{
    char text[512];
    int saved_errno = errno;
    (void)file_read("/sys/devices/system/node/has_memory", text, sizeof text);
    errno = saved_errno;
    uint64_t mask = os_numa_parse(text);
    return mask != 0 ? mask : 1;
}

static int numa_here(void)
{
    unsigned node = 0;
    int saved_errno = errno;
    (void)syscall(SYS_getcpu, NULL, &node, NULL);
    errno = saved_errno;
    return (int)(node & 63);
}

static void numa_prefer(void *addr, size_t bytes, int node)
{
    unsigned long mask[2] = {0, 0}; /* the kernel wants to know of one bit more than there are */
    mask[(size_t)node / (8 * sizeof mask[0])] = 1UL << (size_t)node % (8 * sizeof mask[0]);
    int saved_errno = errno;
    (void)syscall(SYS_mbind, addr, bytes, NUMA_PREFERRED, mask, 65UL, 0U);
    errno = saved_errno;
}

struct os_numa os_numa = {numa_nodes, numa_here, numa_prefer};
