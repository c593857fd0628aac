/* trace_json.c - events as Chrome trace-event JSON, for a descriptor.
 *
 * Purpose     What Perfetto and chrome://tracing open: stretches as complete events on the track of their thread, moments
 *             as instant events, figures as counters. Times are CLOCK_MONOTONIC in microseconds, with nanoseconds behind
 *             the point.
 * Model       An event is made in one piece and goes to the buffer whole, or not at all: what is written can be parsed up
 *             to the event where a reader stopped.
 * Locking     tracer.lock.
 * Tests       tests/api/trace.c
 */
#include "observe/tracer.h"

#include "base/check.h"
#include "sched/sched.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum {
    EVENT_MOST = 512,
    READER_NS = 5000000, /* while it drains, for a reader that is a little slow */
};

enum how { NOTHING, NUMBER, TEXT, MICROSECONDS, BYTES };

/* How a kind of event is written. name NULL: the text in a. */
static const struct shape {
    const char *name, *category;
    char ph;
    struct {
        const char *name;
        enum how how;
    } a, b;
} shapes[TRACE_KINDS] = {
    [TRACE_CYCLE] = {"cycle", "gc", 'X', {"number", NUMBER}, {"forced", NUMBER}},
    [TRACE_BEGIN] = {"begin", "gc", 'X', {"cycle", NUMBER}, {NULL, NOTHING}},
    [TRACE_MARK] = {"mark", "gc", 'X', {"cycle", NUMBER}, {NULL, NOTHING}},
    [TRACE_END] = {"end", "gc", 'X', {"cycle", NUMBER}, {NULL, NOTHING}},
    [TRACE_SWEEP] = {"sweep", "gc", 'X', {"cycle", NUMBER}, {NULL, NOTHING}},
    [TRACE_HANDSHAKE] = {NULL, "handshake", 'X', {NULL, NOTHING}, {NULL, NOTHING}},
    [TRACE_ANSWER_FOR] = {"answer for", "handshake", 'X', {"handshake", TEXT}, {"thread", NUMBER}},
    [TRACE_ROOTS] = {"roots", "gc", 'X', {NULL, NOTHING}, {NULL, NOTHING}},
    [TRACE_STACKS] = {"parked stacks", "gc", 'X', {NULL, NOTHING}, {NULL, NOTHING}},
    [TRACE_DRAIN] = {"drain", "gc", 'X', {"bytes", NUMBER}, {NULL, NOTHING}},
    [TRACE_ROUND] = {"round", "gc", 'X', {"clean", NUMBER}, {NULL, NOTHING}},
    [TRACE_SPANS] = {"sweep spans", "gc", 'X', {"spans", NUMBER}, {NULL, NOTHING}},
    [TRACE_SCAVENGE] = {"scavenge", "gc", 'X', {"bytes", NUMBER}, {NULL, NOTHING}},
    [TRACE_ANSWER] =
        {"answer", "handshake", 'X', {"handshake", TEXT}, {"latency us", MICROSECONDS}},
    [TRACE_STOP] = {"stopped", "gc", 'X', {NULL, NOTHING}, {NULL, NOTHING}},
    [TRACE_ASSIST] = {"assist", "gc", 'X', {"bytes", NUMBER}, {NULL, NOTHING}},
    [TRACE_WAIT] = {"wait", "gc", 'X', {"most us", MICROSECONDS}, {NULL, NOTHING}},
    [TRACE_WAIT_CYCLE] = {"wait for cycle", "gc", 'X', {"number", NUMBER}, {NULL, NOTHING}},
    [TRACE_BLOCKED] = {"blocked", "thread", 'X', {NULL, NOTHING}, {NULL, NOTHING}},
    [TRACE_G] = {"G ", "goroutine", 'X', {"goroutine", NUMBER}, {"then", TEXT}},
    [TRACE_GO] = {"go", "goroutine", 'i', {"goroutine", NUMBER}, {NULL, NOTHING}},
    [TRACE_READY] = {"ready", "goroutine", 'i', {"goroutine", NUMBER}, {NULL, NOTHING}},
    [TRACE_RETAKE] = {"P taken", "goroutine", 'i', {"thread", NUMBER}, {NULL, NOTHING}},
    [TRACE_HEAP] = {"heap", "gc", 'C', {"live", BYTES}, {"goal", BYTES}},
    [TRACE_LIMITS] = {"limits", "gc", 'C', {"trigger", BYTES}, {"memory limit", BYTES}},
    [TRACE_SCHED] = {"sched", "goroutine", 'C', {"goroutines", NUMBER}, {"Ps running", NUMBER}},
    [TRACE_PAUSE] = {"long pause", "gc", 'i', {"us", MICROSECONDS}, {NULL, NOTHING}},
    [TRACE_DROPPED] = {"dropped", "trace", 'C', {"events", NUMBER}, {NULL, NOTHING}},
};

/* -- a piece of text --------------------------------------------------------------------------- */

struct text {
    size_t n;
    char s[EVENT_MOST];
};

static void put_text(struct text *t, const char *s)
{
    size_t n = strlen(s);
    ASSERT(t->n + n <= EVENT_MOST);
    memcpy(t->s + t->n, s, n);
    t->n += n;
}

/* As JSON has it, in quotes; what is not ASCII becomes a question mark, for a thread's name may be cut amid a letter. */
static void put_quoted(struct text *t, const char *s)
{
    put_text(t, "\"");
    for (; *s != 0; s++) {
        if (*s == '"' || *s == '\\') {
            put_text(t, "\\");
        }
        char c[2] = {*s >= ' ' && *s < 127 ? *s : '?', 0};
        put_text(t, c);
    }
    put_text(t, "\"");
}

static void put_number(struct text *t, uint64_t v)
{
    char digits[21];
    size_t at = sizeof digits - 1;
    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v != 0);
    put_text(t, digits + at);
}

static void put_micros(struct text *t, int64_t ns)
{
    uint64_t v = ns > 0 ? (uint64_t)ns : 0;
    uint64_t rest = v % 1000;
    char point[5] = {'.', (char)('0' + rest / 100), (char)('0' + rest / 10 % 10),
                     (char)('0' + rest % 10), 0};
    put_number(t, v / 1000);
    put_text(t, point);
}

/* A name and a value of the arguments; nothing of a text that is not there, and of bytes that are none (no limit). */
static void put_arg(struct text *t, const char *name, enum how how, uint64_t v)
{
    const char *s = how == TEXT ? (const char *)(uintptr_t)v : NULL;
    if (how == NOTHING || (how == TEXT && s == NULL) || (how == BYTES && v > INT64_MAX)) {
        return;
    }
    put_text(t, t->s[t->n - 1] == '{' ? "" : ",");
    put_quoted(t, name);
    put_text(t, ":");
    if (how == TEXT) {
        put_quoted(t, s);
    } else if (how == MICROSECONDS) {
        put_micros(t, (int64_t)v);
    } else {
        put_number(t, v);
    }
}

static void put_event_head(const struct trace_out *o, struct text *t, const char *ph,
                           const char *name, uint32_t tid)
{
    put_text(t, ",\n{\"ph\":\"");
    put_text(t, ph);
    put_text(t, "\",\"name\":");
    put_quoted(t, name);
    put_text(t, ",\"pid\":");
    put_number(t, (uint64_t)o->pid);
    put_text(t, ",\"tid\":");
    put_number(t, tid);
}

/* -- the buffer -------------------------------------------------------------------------------- */

int trace_out_open(struct trace_out *o, int fd, int64_t start)
{
    int own = os_write_open(fd);
    if (own < 0) {
        return -own;
    }
    char *buf = tracer_map(TRACE_OUT_BYTES);
    if (buf == NULL) {
        os_write_close(own);
        return ENOMEM;
    }
    *o = (struct trace_out){.fd = own, .pid = getpid(), .start = start, .buf = buf};
    return 0;
}

void trace_out_close(struct trace_out *o)
{
    if (o->buf != NULL) {
        os_write_close(o->fd);
        tracer_unmap(o->buf, TRACE_OUT_BYTES);
        o->buf = NULL;
    }
}

void trace_out_flush(struct trace_out *o, int64_t wait_ns)
{
    size_t done = 0;
    while (done < o->n && o->err == 0) {
        world_lib_pause(); /* a fork waits for no reader */
        int64_t n = os_write(o->fd, o->buf + done, o->n - done, wait_ns);
        world_lib_resume();
        if (n == 0) {
            break;
        }
        done += n > 0 ? (size_t)n : 0;
        o->err = n < 0 ? (int)-n : 0;
    }
    o->n -= done;
    o->slow = done == 0 && o->n != 0;
    memmove(o->buf, o->buf + done, o->n);
}

/* false: there is no room, and the reader does not make any. Some is kept for the tail. */
static bool out_put(struct trace_out *o, const char *s, size_t n, size_t keep)
{
    if (o->n + n > TRACE_OUT_BYTES - keep && o->err == 0 && !o->slow) {
        trace_out_flush(o, READER_NS);
    }
    if (o->err != 0 || o->n + n > TRACE_OUT_BYTES - keep) {
        return false;
    }
    memcpy(o->buf + o->n, s, n);
    o->n += n;
    return true;
}

/* -- the document ------------------------------------------------------------------------------ */

void trace_out_head(struct trace_out *o)
{
    struct text t = {0};
    put_text(&t, "{\"traceEvents\":[\n{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":");
    put_number(&t, (uint64_t)o->pid);
    put_text(&t, ",\"tid\":0,\"args\":{\"name\":");
    char name[OS_THREAD_NAME];
    put_quoted(&t, os_thread_name((int)o->pid, name) ? name : "loam");
    put_text(&t, "}}");
    (void)out_put(o, t.s, t.n, EVENT_MOST);
}

void trace_out_thread(struct trace_out *o, uint32_t tid, const char *name)
{
    struct text t = {0};
    put_event_head(o, &t, "M", "thread_name", tid);
    put_text(&t, ",\"args\":{\"name\":");
    put_quoted(&t, name);
    put_text(&t, "}}");
    (void)out_put(o, t.s, t.n, EVENT_MOST);
}

static void put_name(const struct trace_out *o, struct text *t, const struct shape *shape,
                     const struct trace_event *e)
{
    char ph[2] = {shape->ph, 0};
    if (e->kind == TRACE_G) {
        struct text name = {0};
        put_text(&name, shape->name);
        put_number(&name, e->a);
        name.s[name.n] = 0;
        put_event_head(o, t, ph, name.s, e->tid);
    } else {
        put_event_head(o, t, ph, shape->name != NULL ? shape->name : (const char *)(uintptr_t)e->a,
                       e->tid);
    }
}

void trace_out_event(struct trace_out *o, const struct trace_event *e)
{
    if (e->end < o->start || e->kind >= TRACE_KINDS) {
        return; /* left from an earlier trace */
    }
    const struct shape *shape = &shapes[e->kind];
    int64_t begin = e->begin > o->start ? e->begin : o->start;
    struct text t = {0};
    put_name(o, &t, shape, e);
    put_text(&t, ",\"cat\":");
    put_quoted(&t, shape->category);
    put_text(&t, ",\"ts\":");
    put_micros(&t, begin);
    if (shape->ph == 'X') {
        put_text(&t, ",\"dur\":");
        put_micros(&t, e->end - begin);
    } else if (shape->ph == 'i') {
        put_text(&t, ",\"s\":\"t\"");
    }
    put_text(&t, ",\"args\":{");
    put_arg(&t, shape->a.name, shape->a.how, e->a);
    put_arg(&t, shape->b.name, shape->b.how, e->b);
    put_text(&t, "}}");
    o->dropped += out_put(o, t.s, t.n, EVENT_MOST) ? 0 : 1;
}

void trace_out_tail(struct trace_out *o, uint64_t dropped)
{
    struct text t = {0};
    put_text(&t, "\n],\"displayTimeUnit\":\"ns\",\"otherData\":{\"version\":\"" LOAM_VERSION "\"");
    put_arg(&t, "GOMAXPROCS", NUMBER, (uint64_t)load_rlx(&gc.options.max_procs));
    put_arg(&t, "dropped events", NUMBER, dropped + o->dropped);
    put_arg(&t, "threads without a ring", NUMBER, load_rlx(&trace.refused));
    put_text(&t, "}}\n");
    (void)out_put(o, t.s, t.n, 0);
}
