/* options.c - GOGC, GOMEMLIMIT, GODEBUG and GOMAXPROCS, read once at the first use, with Go's syntax.
 *
 * What cannot be parsed is named on stderr and ignored. Keys of GODEBUG that are not ours are ignored
 * in silence, as Go does: the variable is shared.
 */
#include "gc/gc.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static bool parse_int(const char *text, size_t len, long *out)
{
    char buf[32];
    if (len == 0 || len >= sizeof buf || !(isdigit((unsigned char)*text) || *text == '-')) {
        return false;
    }
    memcpy(buf, text, len);
    buf[len] = '\0';
    char *end;
    errno = 0;
    long v = strtol(buf, &end, 10);
    if (*end != '\0' || errno != 0 || v > INT_MAX || v < INT_MIN) {
        return false;
    }
    *out = v;
    return true;
}

static void read_gogc(void)
{
    const char *text = getenv("GOGC");
    long v;
    store_rlx(&gc.gc_percent, 100);
    if (text == NULL || *text == '\0') {
        return;
    }
    if (strcmp(text, "off") == 0) {
        store_rlx(&gc.gc_percent, -1);
    } else if (parse_int(text, strlen(text), &v)) {
        store_rlx(&gc.gc_percent, v < 0 ? -1 : (int)v);
    } else {
        warnf("GOGC=%s: not a number nor off; using 100", text);
    }
}

/* Go's parseByteCount. */
static bool parse_bytes(const char *text, uint64_t *out)
{
    static const char *const units[] = {"", "B", "KiB", "MiB", "GiB", "TiB"};
    static const int shifts[] = {0, 0, 10, 20, 30, 40};
    if (!isdigit((unsigned char)*text)) {
        return false;
    }
    char *end;
    errno = 0;
    uint64_t n = strtoull(text, &end, 10);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(end, units[i]) == 0) {
            *out = n << shifts[i];
            return errno == 0 && n <= (uint64_t)INT64_MAX >> shifts[i];
        }
    }
    return false;
}

static void read_memory_limit(void)
{
    const char *text = getenv("GOMEMLIMIT");
    uint64_t bytes = UINT64_MAX;
    if (text != NULL && strcmp(text, "auto") == 0) {
        store_rlx(&gc.limit_auto, true);
        gc_read_container();
        return;
    }
    if (text != NULL && *text != '\0' && strcmp(text, "off") != 0 && !parse_bytes(text, &bytes)) {
        warnf("GOMEMLIMIT=%s: not a number of bytes (as 512MiB), off or auto; there is no limit",
              text);
    }
    store_rlx(&heap.limit, bytes == INT64_MAX ? UINT64_MAX : bytes);
}

static void read_max_procs(void)
{
    const char *text = getenv("GOMAXPROCS");
    long v;
    store_rlx(&gc.options.max_procs, os_ncpu());
    if (text == NULL || *text == '\0') {
        return;
    }
    if (parse_int(text, strlen(text), &v) && v >= 1) {
        store_rlx(&gc.options.max_procs, (int)v);
    } else {
        warnf("GOMAXPROCS=%s: not a positive number; using %d", text,
              load_rlx(&gc.options.max_procs));
    }
}

static void set_debug(const char *key, size_t klen, const char *value, size_t vlen)
{
    static const char *const keys[] = {
        "gctrace",    "gcpacertrace", "gccheckmark", "gcstoptheworld",
        "gcstress",   "clobberfree",  "scavtrace",   "madvdontneed",
        "disablethp", "stacksleep",   "mstackmove",  "memprofilerate",
        NULL};
    int which = 0;
    while (keys[which] != NULL &&
           !(strlen(keys[which]) == klen && memcmp(keys[which], key, klen) == 0)) {
        which++;
    }
    long v;
    if (keys[which] == NULL) {
        return;
    }
    if (!parse_int(value, vlen, &v) || v < 0) {
        warnf("GODEBUG %s=%.*s: not a number; ignored", keys[which], (int)vlen, value);
        return;
    }
    struct gc_options *o = &gc.options;
    switch (which) {
    case 0:
        o->trace = (int)v;
        break;
    case 1:
        o->pacer_trace = (int)v;
        break;
    case 2:
        o->checkmark = v != 0;
        break;
    case 3:
        o->stop_the_world = v != 0;
        break;
    case 4:
        o->stress = (int)v;
        break;
    case 5:
        o->clobber_free = v != 0;
        break;
    case 6:
        o->scavenge_trace = (int)v;
        break;
    case 7:
        heap.discard_lazily = v == 0;
        break;
    case 8:
        o->disable_thp = v != 0;
        break;
    case 10:
        o->mstack_move = v != 0;
        break;
    case 11:
        store_rlx(&heap.sample_rate, (int64_t)(v < INT_MAX ? v : INT_MAX));
        break;
    default:
        o->stack_sleep = v < 100 ? (int)v : 100;
        break;
    }
}

static void read_godebug(void)
{
    const char *p = getenv("GODEBUG");
    while (p != NULL && *p != '\0') {
        size_t len = strcspn(p, ",");
        const char *eq = memchr(p, '=', len);
        if (eq != NULL) {
            set_debug(p, (size_t)(eq - p), eq + 1, len - (size_t)(eq + 1 - p));
        } else if (len != 0) {
            warnf("GODEBUG: %.*s has no value (key=value,...); ignored", (int)len, p);
        }
        p += len + (p[len] == ',');
    }
}

void gc_options_read(void)
{
    read_gogc();
    read_memory_limit();
    read_max_procs();
    gc.options.stack_sleep = 2;
    read_godebug();
}
