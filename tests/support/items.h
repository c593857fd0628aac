/* items.h - what most tests allocate: an item that tells whether it is whole, and lists of them.
 *
 * An item fails its check when something else was written there.  A test whose claim hangs on what its objects are
 * (without pointers, of a certain size, with fields of another meaning) has a type of its own. */
#ifndef TESTS_SUPPORT_ITEMS_H
#define TESTS_SUPPORT_ITEMS_H

#include "test.h"

#include <loam.h>

typedef struct item {
    struct item *next;
    uint64_t id;
    uint64_t check;   /* rng_mix(id) */
    uint64_t fill[3]; /* the test's own; zero at first */
} item;
LOAM_TYPE(item, next);

static inline item *item_new(uint64_t id, item *next)
{
    item *it = LOAM_NEW(item);
    EXPECT_NOT_NULL(it);
    EXPECT_EQ(it->check, 0); /* memory comes zeroed */
    it->id = id;
    it->check = rng_mix(id);
    LOAM_SET(it->next, next);
    return it;
}

static inline void item_check(const item *it)
{
    EXPECT_NOT_NULL(it);
    EXPECT_EQ(it->check, rng_mix(it->id));
}

/* Its ids fall to 0. */
static inline item *list_new(size_t length)
{
    item *list = NULL;
    for (size_t i = 0; i < length; i++) {
        list = item_new(i, list);
    }
    return list;
}

/* Checks each; gives the length. */
static inline size_t list_check(const item *it)
{
    size_t length = 0;
    for (; it != NULL; it = it->next) {
        item_check(it);
        length++;
    }
    return length;
}

#endif
