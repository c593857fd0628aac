/* tracer.h - the execution trace and the flight recorder: who takes events out of the rings, and where they go. */
#ifndef OBSERVE_TRACER_H
#define OBSERVE_TRACER_H

#include "observe/observe.h"

#include "world/trace.h"

/* -- trace_json.c: text for a descriptor ------------------------------------------------------- */

enum { TRACE_OUT_BYTES = 256 << 10 };

struct trace_out {
    int fd; /* our own */
    int pid;
    int err;          /* errno value of the write that failed: nothing is written any more */
    int64_t start;    /* what began before begins here */
    uint64_t dropped; /* events for which there was no room */
    bool slow;        /* the reader took nothing when it was tried last: it is not waited for */
    size_t n;         /* bytes that wait */
    char *buf;        /* of TRACE_OUT_BYTES; NULL: nobody writes */
};

int trace_out_open(struct trace_out *o, int fd, int64_t start); /* 0, or an errno value */
void trace_out_close(struct trace_out *o);
/* Write what waits, for as long as somebody reads: until nothing came for wait_ns. */
void trace_out_flush(struct trace_out *o, int64_t wait_ns);
void trace_out_head(struct trace_out *o);
void trace_out_thread(struct trace_out *o, uint32_t tid, const char *name);
/* Without room and a reader it is dropped, and counted. */
void trace_out_event(struct trace_out *o, const struct trace_event *e);
void trace_out_tail(struct trace_out *o, uint64_t dropped);

/* -- tracer.c ---------------------------------------------------------------------------------- */

enum { TRACER_PATIENCE_NS = 1000000000 }; /* with a reader that takes nothing, at the end */

/* A call of the program: one at a time, as a blocked thread. False and errno: no memory to attach. */
struct tracer_call {
    struct m *m;
    struct m_wait wait;
};
void *tracer_map(size_t bytes); /* counted; NULL: no memory */
void tracer_unmap(void *at, size_t bytes);
bool tracer_enter(struct tracer_call *c, const char *name);
void tracer_leave(struct tracer_call *c);
/* Between them: what the thread works on. Fork waits for who has it, and not for who waits for it. */
void tracer_lock(void);
void tracer_unlock(void);

int tracer_run(void);          /* the thread and the rings; 0, or an errno value */
void tracer_rest(void);        /* they are not wanted any more, unless somebody else does */
void tracer_drain(void);       /* with the lock */
uint64_t tracer_dropped(void); /* with the lock: by rings, ever */
void tracer_names(struct trace_out *o); /* with the lock */

/* -- recorder.c: all with the lock -------------------------------------------------------------- */
bool recorder_is_on(void);
void recorder_put(const struct trace_event *e);
void recorder_pause(void); /* there was a long one */
void recorder_fork_child(void);

#endif
