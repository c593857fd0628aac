/* check.h - three levels of assertion, and the way a fatal error leaves.
 *
 *   CHECK        every build: a caller's error or visible corruption; prints operands, aborts.
 *   ASSERT       LOAM_DEBUG_LEVEL >= 1: our own pre- and post-conditions.
 *   ASSERT_SLOW  LOAM_DEBUG_LEVEL >= 2: walks a structure.
 * Compiled-out asserts are still parsed.
 */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include "base/compiler.h"

#ifndef LOAM_DEBUG_LEVEL
#define LOAM_DEBUG_LEVEL 0
#endif

/* Print "loam: fatal: ..." to stderr with no allocation and no lock, then abort. */
_Noreturn COLD PRINTF_LIKE(1, 2) void throwf(const char *fmt, ...);

/* Print "loam: ..." to stderr, one write, no allocation; for what the user must know. */
COLD PRINTF_LIKE(1, 2) void warnf(const char *fmt, ...);

#define CHECK(cond, ...)         \
    do {                         \
        if (unlikely(!(cond))) { \
            throwf(__VA_ARGS__); \
        }                        \
    } while (0)

#define ASSERT_ON_(cond)                                                       \
    do {                                                                       \
        if (unlikely(!(cond))) {                                               \
            throwf("assertion failed: %s (%s:%d)", #cond, __FILE__, __LINE__); \
        }                                                                      \
    } while (0)
#define ASSERT_OFF_(cond) ((void)sizeof(!(cond)))

#if LOAM_DEBUG_LEVEL >= 1
#define ASSERT(cond) ASSERT_ON_(cond)
#else
#define ASSERT(cond) ASSERT_OFF_(cond)
#endif
#if LOAM_DEBUG_LEVEL >= 2
#define ASSERT_SLOW(cond) ASSERT_ON_(cond)
#else
#define ASSERT_SLOW(cond) ASSERT_OFF_(cond)
#endif

#endif
