/* fault.c - the Nth call of the system that can fail, fails.
 *
 * Purpose     Tests run a scenario with failure at call 1, 2, 3 ... until it passes untouched.
 * Ordering    relaxed throughout: a test sets the countdown before it starts what it counts.
 * Tests       every test/fault scenario; test_os_memory.c
 */
#include "os/os.h"

_Atomic int64_t os_fail_at;
_Atomic bool os_fail_repeat;

bool os_fault(void)
{
    int64_t n = load_rlx(&os_fail_at);
    for (;;) {
        if (likely(n <= 0)) {
            return false;
        }
        int64_t next = n == 1 && load_rlx(&os_fail_repeat) ? 1 : n - 1;
        if (cas_rlx(&os_fail_at, &n, next)) { /* relaxed: a countdown, publishes nothing */
            return n == 1;
        }
    }
}
