/* cgroup.c - how much memory the container may use.
 *
 * Model       /proc/self/cgroup names the group: "0::/path" (version 2), or a line with the controller memory (version
 *             1). The limit is the least of the group's and of all above it. Inside a container the path may
 *             be one of the host, of which only the root is mounted: what is not there is passed over.
 * Tests       tests/unit/test_os_cgroup.c
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os/os.h"
#include "os/os_internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GROUP_TEXT = 4096 };

bool file_read(const char *path, char *text, size_t size)
{
    text[0] = '\0';
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t n = read(fd, text, size - 1);
    (void)close(fd);
    text[n < 0 ? 0 : n] = '\0';
    return n > 0;
}

/* The least limit in the files `name` of root/group and the folders above it, down to root itself. */
static uint64_t least_limit(const char *root, char *group, const char *name)
{
    char path[GROUP_TEXT];
    char text[GROUP_TEXT];
    uint64_t least = UINT64_MAX;
    for (;;) {
        int n = snprintf(path, sizeof path, "%s%s/%s", root, group, name);
        if (n > 0 && (size_t)n < sizeof path && file_read(path, text, sizeof text) &&
            isdigit((unsigned char)text[0])) { /* otherwise: max */
            errno = 0;
            uint64_t bytes = strtoull(text, NULL, 10);
            /* Version 1 says no limit with the largest number of pages. */
            least = errno == 0 && bytes < least && bytes < UINT64_C(1) << 62 ? bytes : least;
        }
        char *last = strrchr(group, '/');
        if (last == NULL) {
            return least;
        }
        *last = '\0';
    }
}

/* Is `memory` one of the controllers in [from, to), with commas between? */
static bool names_memory(const char *from, const char *to)
{
    while (from < to) {
        const char *comma = memchr(from, ',', (size_t)(to - from));
        const char *end = comma != NULL ? comma : to;
        if (end - from == 6 && memcmp(from, "memory", 6) == 0) {
            return true;
        }
        from = end + 1;
    }
    return false;
}

uint64_t os_cgroup_memory_limit(const char *proc, const char *sys)
{
    char groups[GROUP_TEXT];
    char path[GROUP_TEXT];
    int saved = errno;
    uint64_t least = UINT64_MAX;
    (void)file_read(proc, groups, sizeof groups);
    for (char *line = groups, *next; line != NULL && *line != '\0'; line = next) {
        next = strchr(line, '\n');
        if (next != NULL) {
            *next++ = '\0';
        }
        char *controllers = strchr(line, ':');
        char *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (group == NULL) {
            continue;
        }
        bool two = group == controllers + 1;
        if (!two && !names_memory(controllers + 1, group)) {
            continue;
        }
        group++;
        if (strcmp(group, "/") == 0) {
            group++;
        }
        (void)snprintf(path, sizeof path, two ? "%s" : "%s/memory", sys);
        uint64_t bytes = least_limit(path, group, two ? "memory.max" : "memory.limit_in_bytes");
        least = bytes < least ? bytes : least;
    }
    errno = saved;
    return least;
}
