/* A program built with _FORTIFY_SOURCE may use all the bytes that loam_usable_size names: the C library's checks know
 * nothing of a smaller size. A size that is known to overflow compiles, and fails when it runs.
 *
 * TEST_LABEL: quick
 * TEST_TIMEOUT: 60 */
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__)
#undef _FORTIFY_SOURCE
#define _FORTIFY_SOURCE 3 /* without optimisation the C library warns that it can check nothing */
#endif
#include "../support/test.h"

#include <loam.h>

typedef struct node {
    struct node *next;
    char bytes[13];
} node;
LOAM_TYPE(node, next);

/* Each block where the compiler sees its allocation: that is what it draws conclusions from. */
static void usable_bytes_may_be_written(void)
{
    char *p = loam_alloc_noscan(20);
    memset(p, 1, loam_usable_size(p));
    EXPECT_EQ(p[loam_usable_size(p) - 1], 1);
    p = loam_alloc(33);
    memset(p, 0, loam_usable_size(p));
    p = loam_alloc_noscan(5000);
    memset(p, 1, loam_usable_size(p));
    EXPECT_EQ(p[loam_usable_size(p) - 1], 1);
    p = loam_realloc(p, 6000);
    memset(p, 1, loam_usable_size(p));
    p = loam_strdup("some");
    memset(p, 'x', loam_usable_size(p) - 1);
    EXPECT_EQ(p[4], 'x');
}

static void strings_may_grow(void)
{
    char *p = loam_alloc_noscan(9);
    EXPECT_GE(loam_usable_size(p), 16);
    strcpy(p, "123456789abcdef");
    EXPECT_EQ(snprintf(p, loam_usable_size(p), "%s", "fedcba987654321"), 15);
    EXPECT_STR_EQ(p, "fedcba987654321");
}

static void declared_types_too(void)
{
    node *n = LOAM_NEW(node);
    memset(n->bytes, 1, sizeof n->bytes);
    node *array = LOAM_NEW_ARRAY(node, 3);
    memset((void *)array, 0, loam_usable_size(array));
    node **pointers = LOAM_NEW_POINTERS(node, 3);
    memset((void *)pointers, 0, loam_usable_size((void *)pointers));
}

/* Constants: that this file compiles without a warning is the claim. */
static void sizes_known_to_overflow(void)
{
    EXPECT_ERRNO(LOAM_NEW_POINTERS(node, SIZE_MAX / 4), NULL, ENOMEM);
    EXPECT_ERRNO(LOAM_NEW_POINTERS(node, SIZE_MAX), NULL, ENOMEM);
    EXPECT_ERRNO(LOAM_NEW_ARRAY(node, SIZE_MAX / 4), NULL, ENOMEM);
    EXPECT_ERRNO(loam_alloc(SIZE_MAX), NULL, ENOMEM);
    EXPECT_ERRNO(loam_alloc_noscan(SIZE_MAX - 1), NULL, ENOMEM);
}

int main(int argc, char **argv)
{
    test_begin(argc, argv);
    RUN(usable_bytes_may_be_written);
    RUN(strings_may_grow);
    RUN(declared_types_too);
    RUN(sizes_known_to_overflow);
    return test_end();
}
