/* recorder.c - the flight recorder: the last seconds, kept until somebody asks for them.
 *
 * Model       A ring of events that new ones overwrite. Written are those that are not older than the configuration says,
 *             as a trace of their own: when the program asks, or once when a pause was longer than its bound.
 * Locking     tracer.calls, tracer.lock.
 * From Go     runtime/trace.FlightRecorder; differs: the bound for pauses.
 * Tests       tests/api/trace.c
 */
#include "observe/tracer.h"

#include "base/check.h"

#include <errno.h>
#include <string.h>

#include <loam/stats.h>

enum { DEFAULT_BYTES = 10 << 20 }; /* Go's, as the next one */
static const int64_t DEFAULT_AGE_NS = 10 * INT64_C(1000000000);
static const int64_t PATIENCE_NS = 5 * INT64_C(1000000000); /* with who reads what was asked for */

/* Under tracer.lock. */
static struct {
    struct trace_event *events; /* NULL: off */
    size_t bytes;               /* mapped */
    size_t room;                /* events */
    uint64_t n;                 /* ever put */
    int64_t age_ns;
    int64_t start;
    uint64_t dropped_before;
    struct trace_out on_pause; /* buf NULL: there is none, or it has been written */
    struct trace_out asked;    /* what loam_flight_recorder_write has in hand */
} recorder;

bool recorder_is_on(void)
{
    return recorder.events != NULL;
}

void recorder_put(const struct trace_event *e)
{
    if (recorder.events != NULL) {
        recorder.events[recorder.n++ % recorder.room] = *e;
    }
}

static uint64_t oldest(void)
{
    return recorder.n > recorder.room ? recorder.n - recorder.room : 0;
}

/* What there is now. While the reader is waited for, rings are drained, and new events may overwrite old ones that were not
 * written yet. 0, or an errno value. */
static int write_to(struct trace_out *o)
{
    int64_t from = os_nanotime() - recorder.age_ns;
    uint64_t end = recorder.n;
    uint64_t lost = 0;
    o->start = from > recorder.start ? from : recorder.start;
    trace_out_head(o);
    tracer_names(o);
    for (uint64_t i = oldest(); i < end; i++) {
        if (o->n > TRACE_OUT_BYTES / 2) {
            trace_out_flush(o, PATIENCE_NS);
            if (o->n != 0) {
                return o->err != 0 ? o->err : EAGAIN;
            }
            tracer_drain();
            uint64_t first = oldest() < end ? oldest() : end;
            lost += first > i ? first - i : 0;
            i = first > i ? first : i;
            if (i == end) {
                break;
            }
        }
        trace_out_event(o, &recorder.events[i % recorder.room]);
    }
    trace_out_tail(o, tracer_dropped() - recorder.dropped_before + lost);
    trace_out_flush(o, PATIENCE_NS);
    return o->err != 0 ? o->err : o->n != 0 ? EAGAIN : 0;
}

void recorder_pause(void)
{
    struct trace_out *o = &recorder.on_pause;
    if (o->buf == NULL) {
        return;
    }
    store_rlx(&trace.pause_bound, UINT64_C(0));
    tracer_drain();
    int err = write_to(o);
    if (err != 0) {
        warnf("the flight recorder could not write after a long pause: error %d", err);
    }
    trace_out_close(o);
}

void recorder_fork_child(void)
{
    trace_out_close(&recorder.on_pause);
    trace_out_close(&recorder.asked);
    if (recorder.events != NULL) {
        tracer_unmap(recorder.events, recorder.bytes);
    }
    memset(&recorder, 0, sizeof recorder);
}

/* -- calls ------------------------------------------------------------------------------------- */

static void close_recorder(void)
{
    store_rlx(&trace.pause_bound, UINT64_C(0));
    trace_out_close(&recorder.on_pause);
    tracer_unmap(recorder.events, recorder.bytes);
    recorder.events = NULL;
}

/* With the lock. 0, or an errno value. */
static int open_recorder(const loam_flight_recorder_config *config)
{
    if (recorder.events != NULL) {
        return EBUSY;
    }
    size_t bytes = config->max_bytes != 0 ? config->max_bytes : DEFAULT_BYTES;
    if (bytes > SIZE_MAX / 2) {
        return ENOMEM;
    }
    bytes = align_up(bytes, os_page_size());
    recorder.start = os_nanotime();
    if (config->pause_bound_ns != 0) {
        int err = trace_out_open(&recorder.on_pause, config->pause_fd, recorder.start);
        if (err != 0) {
            return err;
        }
    }
    recorder.events = tracer_map(bytes);
    if (recorder.events == NULL) {
        trace_out_close(&recorder.on_pause);
        return ENOMEM;
    }
    recorder.bytes = bytes;
    recorder.room = bytes / sizeof *recorder.events;
    recorder.n = 0;
    recorder.age_ns = config->min_age_ns != 0 ? config->min_age_ns : DEFAULT_AGE_NS;
    recorder.dropped_before = tracer_dropped();
    store_rlx(&trace.pause_ns, UINT64_C(0)); /* of an earlier one */
    store_rlx(&trace.pause_bound, (uint64_t)config->pause_bound_ns);
    return 0;
}

int loam_flight_recorder_start(const loam_flight_recorder_config *config)
{
    static const loam_flight_recorder_config usual;
    struct tracer_call call;
    config = config != NULL ? config : &usual;
    if (config->min_age_ns < 0 || config->pause_bound_ns < 0) {
        errno = EINVAL;
        return -1;
    }
    if (!tracer_enter(&call, "loam_flight_recorder_start")) {
        return -1;
    }
    tracer_lock();
    tracer_drain(); /* what is left from an earlier one */
    int err = open_recorder(config);
    tracer_unlock();
    if (err == 0) {
        err = tracer_run();
        if (err != 0) {
            close_recorder();
        }
    }
    tracer_leave(&call);
    errno = err != 0 ? err : errno;
    return err == 0 ? 0 : -1;
}

int loam_flight_recorder_write(int fd)
{
    struct tracer_call call;
    if (!tracer_enter(&call, "loam_flight_recorder_write")) {
        return -1;
    }
    tracer_lock();
    int err = recorder.events == NULL ? EINVAL : trace_out_open(&recorder.asked, fd, 0);
    if (err == 0) {
        tracer_drain();
        err = write_to(&recorder.asked);
        trace_out_close(&recorder.asked);
    }
    tracer_unlock();
    tracer_leave(&call);
    errno = err != 0 ? err : errno;
    return err == 0 ? 0 : -1;
}

void loam_flight_recorder_stop(void)
{
    struct tracer_call call;
    if (!tracer_enter(&call, "loam_flight_recorder_stop")) {
        return;
    }
    tracer_lock();
    if (recorder.events != NULL) {
        close_recorder();
    }
    tracer_unlock();
    tracer_rest();
    tracer_leave(&call);
}
