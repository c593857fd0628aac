/* ends.h - what happens at the end of an object: finalizers, cleanups, weak pointers, ephemerons, samples.
 *
 * A `special` is a record, off the heap, that belongs to one object. A span keeps its specials by
 * object index (mspan.specials), so finding those of an object is one load.
 */
#ifndef GC_ENDS_H
#define GC_ENDS_H

#include "gc/gc.h"

bool ends_init(void);

/* Set once by malloc/start.c: zeroed memory of a builtin type, called while not busy; may collect.
 * NULL: no memory; or it does not return, if the out-of-memory handler leaves. */
extern void *(*ends_alloc)(struct m *m, struct gctype *type, size_t bytes);

/* [roots]: finalizer arguments and what finalizable objects reach (not themselves), cleanup arguments,
 * weak handles of objects, and everything queued for the library's own thread. */
void ends_mark_roots(struct gcwork *w);
/* For each word that is a root here: fn(arg, kind, the object it is for, word). World stopped; fn calls
 * nothing of this file. What finalizable objects reach is not told. */
void ends_each_root(void (*fn)(void *arg, const char *kind, uintptr_t where, uintptr_t word),
                    void *arg);

/* The same for each object with a finalizer that is not yet queued: fn(arg, the object). */
void ends_each_finalizable(void (*fn)(void *arg, uintptr_t obj), void *arg);
/* Of an ephemeron a walk shows the value if the key is marked. */
bool ends_is_ephemeron(const struct gctype *t);

/* An object with an ephemeron's key on it was marked: queue its ephemerons. Any marker; lock-free. */
void ends_key_marked(struct mspan *s, size_t index);
/* Mark the values of queued ephemerons whose own object is marked too. */
void ends_drain_keys(struct gcwork *w);

/* Before s is swept: specials of objects that are not marked. A finalizer makes its object marked
 * again and is queued; weak pointers are cleared first; the rest is queued or freed. */
void ends_sweep_span(struct mspan *s);
/* Before the pages of s, which holds no live object any more, return to the page heap. */
void ends_span_freed(struct mspan *s);
/* loam_free of an object that has specials, before its alloc bit is cleared; the caller is busy. */
void ends_free_object(struct mspan *s, size_t index);
/* A cycle has ended: if something is queued and its thread could not be had, try again. No lock
 * held, not busy: it starts a thread. */
void ends_cycle_ended(void);
/* There will be something to run: its thread, unless m is over the library. */
void ends_prepare(const struct m *m);
/* The library's own thread shall look for work, of others, too (gc_pressure_tell). Not busy. */
void ends_call(void);
bool ends_is_runner(const struct m *m);

/* The contract; errno on failure. The caller is not busy. */
int ends_set_finalizer(struct m *m, void *obj, void (*fn)(void *, void *), void *arg);
uint64_t ends_add_cleanup(struct m *m, void *obj, void (*fn)(void *), void *arg);
void ends_cleanup_stop(uint64_t id);
void *ends_weak_make(struct m *m, void *obj);
void *ends_weak_value(struct m *m, const void *handle);
void *ends_ephemeron_make(struct m *m, void *key, void *value);
void *ends_ephemeron_value(struct m *m, const void *ephemeron);

/* obj, which the caller holds, is a sample of the heap profile: when it ends, ends_sample_ended is told what and when, with
 * ends.lock held. False: no memory. The caller is busy. */
bool ends_add_sample(void *obj, void *what, uint32_t when);
extern void (*ends_sample_ended)(void *what, uint32_t when); /* set once at start */

/* In the child, single-threaded. */
void ends_fork_child(void);
/* For reports: bytes of the system's that specials take (their index arrays are metaalloc's), and finalizers and cleanups
 * since the start. */
uint64_t ends_bytes(void);
struct ends_counts {
    _Atomic uint64_t finalizers_queued, finalizers_executed, cleanups_queued, cleanups_executed;
};
const struct ends_counts *ends_counts(void);

#endif
