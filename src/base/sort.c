/* sort.c - see sort.h.
 *
 * Source      Williams, "Algorithm 232: Heapsort", 1964.
 * Tests       tests/unit/test_os_modules.c, tests/api/heapdump.c
 */
#include "base/sort.h"

#include "base/check.h"

#include <string.h>

enum { ITEM_MOST = 64 };

static uintptr_t key_at(const char *items, size_t i, size_t bytes)
{
    uintptr_t key;
    memcpy(&key, items + i * bytes, sizeof key);
    return key;
}

/* Items [0, n) are a heap but for the root, which sinks to its place. */
static void sift(char *items, size_t root, size_t n, size_t bytes)
{
    char moved[ITEM_MOST];
    memcpy(moved, items + root * bytes, bytes);
    uintptr_t key = key_at(moved, 0, bytes);
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        child += child + 1 < n && key_at(items, child, bytes) < key_at(items, child + 1, bytes);
        if (key >= key_at(items, child, bytes)) {
            break;
        }
        memcpy(items + root * bytes, items + child * bytes, bytes);
    }
    memcpy(items + root * bytes, moved, bytes);
}

void sort_by_address(void *items, size_t n, size_t bytes)
{
    char *at = items;
    char last[ITEM_MOST];
    CHECK(bytes <= ITEM_MOST, "an item of %zu bytes is too large to be sorted", bytes);
    for (size_t i = n / 2; i > 0; i--) {
        sift(at, i - 1, n, bytes);
    }
    for (size_t i = n; i-- > 1;) {
        memcpy(last, at + i * bytes, bytes);
        memcpy(at + i * bytes, at, bytes);
        memcpy(at, last, bytes);
        sift(at, 0, i, bytes);
    }
}
