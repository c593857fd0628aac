/* loam.h - Go's memory manager for C: allocate, never free.
 *
 *     #include <loam.h>
 *     typedef struct node { struct node *left, *right; char *name; int key; } node;
 *     LOAM_TYPE(node, left, right, name);          // the fields that hold pointers, at file scope
 *
 *     node *n = LOAM_NEW(node);                    // zeroed; collected when nothing points to it
 *     LOAM_SET(n->left, LOAM_NEW(node));           // a pointer into memory that others see
 *     n->key = 7;                                  // everything else is ordinary C
 *
 *     cc prog.c $(pkg-config --cflags --libs loam)
 *
 * The collector is concurrent: it marks while the program runs and never stops it. A program keeps
 * four rules.
 *
 *  1. Nothing has to be initialised. The first allocation on a thread attaches that thread; one
 *     that only holds pointers calls loam_attach(). A pointer handed to a new thread is held by
 *     nothing until that thread has attached, nor one that it returns until the join: pin it
 *     (loam_pin).
 *  2. Locals, __thread variables and pthread_setspecific values are ordinary C: read and write them
 *     freely. A pointer to an object's start or into its middle keeps it alive; one past its end
 *     does not.
 *  3. A pointer stored anywhere else (a heap object, fresh ones too, a global, a static, a
 *     registered root) is stored with LOAM_SET or one of its kin: the write barrier. Loads need
 *     nothing. `*p = s`, memcpy, qsort and std::swap over heap pointers are stores without it: use
 *     loam_copy (sort a copy in plain memory; the array itself keeps its elements alive meanwhile).
 *  4. Integers in noscan memory, files and memory from plain malloc are not searched for pointers,
 *     unless registered.
 *
 * GODEBUG=gccheckmark=1 finds the store that breaks rule 3, and a field that its type does not
 * list. GODEBUG=gcstoptheworld=1 needs no rule 3, so that a program can be moved over step by step.
 *
 * Below: Types, Memory, Stores, Roots and threads, Collection, Ends of objects; last, how the
 * macros are built. Unless it is said otherwise: any thread may call any function at any time, and
 * a signal handler may allocate and store; sizes are bytes; no argument may be NULL; a function
 * that can fail says how, and sets errno. C99 and later, C++17 and later; gcc and clang.
 */
#ifndef LOAM_H
#define LOAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOAM_VERSION "0.1.0"

#define LOAM_API __attribute__((__visibility__("default")))
#define LOAM_NOTHROW_ __attribute__((__nothrow__))

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the library that runs, as LOAM_VERSION is that of the header. A static string. */
LOAM_API const char *loam_version(void);

/* ---- Types --------------------------------------------------------------------------------------
 *
 * A type tells the marker which words of an object hold pointers. At file scope (in C++: in T's
 * namespace), once per type and translation unit, so a header may hold it:
 *
 *     LOAM_TYPE(node, left, right, name);          the fields that hold pointers, 1 to 64
 *     LOAM_TYPE_NOSCAN(pixel);                     no pointers at all
 *     LOAM_TYPE_FLEX(vec, items, meta, name);      the flexible tail first, then the head's fields
 *     LOAM_TYPE_SCANNED(value, value_scan);        the program finds the pointers itself
 *
 * T is one identifier (`typedef struct node node;` first) and complete; its alignment is at most
 * 16. A field is anything made of whole aligned words: a pointer, uintptr_t, _Atomic(T *), a union,
 * a struct, an array of these, `pos.next`. A word that is no heap address is ignored, so low tag
 * bits and integers do no harm. What is not listed is not searched. A flexible tail is searched if
 * its elements are whole aligned words: `void *items[]` is, `char data[]` is not; the head may have
 * no fields. What cannot work does not compile. Only a static inline function in C may use them.
 *
 * Descriptors of equal content are one type, copied at first use: a library that declares them may
 * be unloaded.
 *
 * value_scan(const value *obj, size_t bytes, loam_marker *m) calls loam_mark(m, p) for each
 * pointer. It runs on the collector's threads while the program writes, may see zeroed or
 * half-written objects, and calls nothing else. `bytes` is whole elements: large arrays come in
 * pieces.
 */
#define LOAM_TYPE(T, ...) LOAM_TYPE_(T, #__VA_ARGS__, __VA_ARGS__)
#define LOAM_TYPE_NOSCAN(T) LOAM_TYPE_NOSCAN_(T)
#define LOAM_TYPE_FLEX(T, ...) LOAM_TYPE_FLEX_(T, #__VA_ARGS__, __VA_ARGS__, )
#define LOAM_TYPE_SCANNED(T, fn) LOAM_TYPE_SCANNED_(T, fn)

typedef struct loam_type loam_type;
typedef struct loam_marker loam_marker;

/* Words that may hold pointers: `words` of them from `offset` bytes into the object. */
typedef struct loam_field {
    uint32_t offset;
    uint32_t words;
} loam_field;

enum {
    LOAM_TYPE_IS_NOSCAN = 1,       /* no pointers; fields is NULL */
    LOAM_TYPE_IS_FLEX = 2,         /* has a flexible tail: loam_new_flex */
    LOAM_TYPE_IS_SCANNED = 4,      /* scan finds the pointers; fields is NULL */
    LOAM_TYPE_TAIL_IS_POINTERS = 8 /* every word of the tail may hold a pointer */
};

/* What the LOAM_TYPE macros fill in; programs only pass its address. The library reads it once, at
 * its first use, and writes `interned`. The layout is ABI. */
struct loam_type {
    const char *name;
    const char *field_names;  /* "left, right, pos.next"; with a tail its name first; else "" */
    size_t size;              /* bytes: sizeof(T). With a tail an object has as many as reach the
                                end of its last element, and at least these */
    size_t align;             /* bytes; at most 16 */
    const loam_field *fields; /* in field_names' order, without the tail */
    uint32_t nfields;
    uint32_t flags;     /* LOAM_TYPE_IS_... */
    size_t tail_offset; /* bytes; with a tail, else 0 */
    size_t tail_size;   /* bytes of an element of the tail; with a tail, else 0 */
    void (*scan)(const void *obj, size_t bytes, loam_marker *m); /* if scanned, else NULL */
    void *interned; /* the library's own copy, or NULL; atomic, the library's alone */
};

/* The descriptor of a declared type: a const loam_type *. */
#define LOAM_TYPEOF(T) LOAM_TYPEOF_(T)

/* A type known only at run time: `size` bytes, pointers in the words at the n byte `offsets`
 * (in any order, multiples of the word; n == 0: noscan). Name and offsets are copied. The type
 * lives as long as the process; equal content gives the same one. NULL: EINVAL (an offset outside
 * or unaligned, size 0), ENOMEM. */
LOAM_API const loam_type *loam_type_make(const char *name, size_t size, const size_t offsets[],
                                         size_t n);

/* Marks what p points to, or ignores p if that is no object. Only from within a scan function. */
LOAM_API void loam_mark(loam_marker *m, const void *p);

/* Only the bits of mask make an address, in words on stacks, in fields and in stores: NaN boxing,
 * tags in high bits. (Low bits need no mask: a pointer into the middle of an object is one.) Before
 * the first allocation. 0, or -1: EBUSY (too late), EINVAL (a mask that cuts heap addresses). */
LOAM_API int loam_set_pointer_mask(uintptr_t mask);

/* ---- Memory -------------------------------------------------------------------------------------
 *
 * Go's hierarchy: a thread's mcache serves small sizes without a lock from 68 size classes,
 * mcentral and mheap refill it (runtime/malloc.go). All memory is zeroed. Untyped memory is aligned
 * to 16 from 16 bytes on, to 8 below; typed memory as its type needs. The collector owns it; nobody
 * needs to free it.
 *
 * A size of 0 gives a valid pointer. A size that overflows, or memory that an emergency collection
 * could not find, gives NULL and ENOMEM, and the heap goes on working.
 */
LOAM_API void *loam_alloc(size_t bytes) /* every word may hold a pointer */
    __attribute__((__malloc__));
LOAM_API void *loam_alloc_noscan(size_t bytes) /* never searched for pointers */
    __attribute__((__malloc__));

/* Objects of declared types: the forms to use. Each gives its T * (LOAM_NEW_POINTERS its T **), or
 * NULL and ENOMEM. Each argument is evaluated once. T of LOAM_NEW_POINTERS need not be declared,
 * nor complete. */
#define LOAM_NEW(T) LOAM_CAST_(T *, loam_new(LOAM_TYPEOF(T), 1))
#define LOAM_NEW_ARRAY(T, count) LOAM_CAST_(T *, loam_new(LOAM_TYPEOF(T), count))
#define LOAM_NEW_POINTERS(T, count) LOAM_CAST_(T **, loam_alloc(loam_pointer_bytes_(count)))
#define LOAM_NEW_FLEX(T, count) LOAM_CAST_(T *, loam_new_flex(LOAM_TYPEOF(T), count))

/* What LOAM_NEW... call. `count` elements of `type`, or one head with `count` elements of its
 * flexible tail. EINVAL: type is NULL; loam_new_flex of a type without a tail. */
LOAM_API void *loam_new(const loam_type *type, size_t count) __attribute__((__malloc__));
LOAM_API void *loam_new_flex(const loam_type *type, size_t count) __attribute__((__malloc__));

/* count single objects at once into out[], which is memory of the calling thread's stack (plain
 * stores). Gives how many came: fewer than count means ENOMEM; EINVAL: type or out is NULL. */
LOAM_API size_t loam_new_batch(const loam_type *type, size_t count, void *out[]);

/* p's object with a new size: contents kept up to the smaller size, type and scan kind too, new
 * bytes zeroed, the old block freed if it moved. p NULL: loam_alloc(bytes). NULL and ENOMEM: p is
 * as it was. */
LOAM_API void *loam_realloc(void *p, size_t bytes);

/* Optional, for the moment when no pointer to p is left on any thread. What p points to is treated
 * as by loam_clear. NULL is fine; what is no object's start ends the program with a message. */
LOAM_API void loam_free(void *p);

/* Bytes that may be used at p, the start of an object: at least what was asked for (so no allocation
 * is declared __alloc_size__: _FORTIFY_SOURCE would forbid the rest). NULL: 0. */
LOAM_API size_t loam_usable_size(const void *p);

/* The start of the object around p; NULL outside the heap or in a free slot. Any value will do; but one
 * that was no pointer to the object before, as a number read from somewhere, brings nothing back to life:
 * of an object that nothing names the start is found until it is collected, which may be at once. */
LOAM_API void *loam_base(const void *p);

/* A noscan copy of s. NULL and ENOMEM; EINVAL: s is NULL. */
LOAM_API char *loam_strdup(const char *s) __attribute__((__malloc__));

/* fn(arg) is called before an allocation gives NULL, on the allocating thread, no lock held; it may
 * longjmp or throw, and may allocate: what fails within it gives NULL without another call. Replaces
 * the last one; fn NULL: none. arg is a root while it is set. */
LOAM_API void loam_set_oom_handler(void (*fn)(void *arg), void *arg);

/* ---- Stores -------------------------------------------------------------------------------------
 *
 * Go's hybrid write barrier (Yuasa's deletion with Dijkstra's insertion; proposal 17503,
 * runtime/mbarrier.go): while a cycle marks, the overwritten pointer and the new one are shaded.
 * Otherwise it costs one load and one branch. All of these run for NULL too: what is overwritten
 * counts. They work on every memory, also outside the heap.
 *
 *     LOAM_SET(n->left, child)
 *
 * An expression with the value stored. The compiler checks the types as for `n->left = child`; each
 * argument is evaluated once; the lvalue may be volatile, _Atomic, a uintptr_t; no bit-field. It is
 * a release store: what was written into the object before is visible to whoever loads the pointer.
 * A plain load that races with it sees the old or the new pointer.
 */
#define LOAM_SET(lvalue, value) LOAM_SET_(lvalue, value)

/* LOAM_SET without the types: *(void **)slot = value. slot is word-aligned. */
LOAM_API void loam_store(void *slot, const void *value) LOAM_NOTHROW_;

/* Stores value and gives the old one, atomically, sequentially consistent. */
LOAM_API void *loam_exchange(void *slot, const void *value) LOAM_NOTHROW_;

/* As atomic_compare_exchange_strong on pointers, sequentially consistent. `expected` is the address
 * of a pointer of any type in ordinary memory; it takes what was found if that was another. */
LOAM_API bool loam_compare_exchange(void *slot, void *expected, const void *desired) LOAM_NOTHROW_;

/* memmove with the barrier: regions may overlap, whole aligned words are never torn. Release as
 * LOAM_SET. */
LOAM_API void loam_copy(void *dst, const void *src, size_t bytes) LOAM_NOTHROW_;

/* memset to 0 with the barrier. */
LOAM_API void loam_clear(void *dst, size_t bytes) LOAM_NOTHROW_;

/* Stores a word that no mask decodes: the program names the target that is overwritten and the new
 * one (or NULL). Plain stores of others into the same slot must not race with it: `old` would be
 * wrong. */
LOAM_API void loam_store_as(void *slot, uintptr_t word, const void *old,
                            const void *now) LOAM_NOTHROW_;

/* ---- Roots and threads --------------------------------------------------------------------------
 *
 * Roots without being asked: the writable data of the program and of every loaded library (also
 * after dlopen, until dlclose), each attached thread's stack, registers and thread-local storage.
 * The rest is registered here.
 *
 * Threads need not poll: one that computes without calling anything is reached by a signal
 * (SIGURG), one blocked in a system call neither holds a collection up nor sees EINTR where
 * SA_RESTART can prevent it. fork works: the child has a working heap. Not where a signal
 * handler forks that interrupted the library, and where another thread waits for the fork
 * with a lock that fork wants (it goes on after five seconds): that child says so when it
 * comes to use the heap.
 */

/* Searches [start, start + bytes) too. Stores into it obey rule 3. The memory stays the program's
 * and must stay mapped until it is removed. Ranges may overlap. 0, or -1: EINVAL (NULL, or wraps),
 * ENOMEM. */
LOAM_API int loam_add_roots(void *start, size_t bytes);

/* Exactly what an add gave; what it points to is treated as by loam_clear. 0, or -1: EINVAL (no
 * such range). */
LOAM_API int loam_remove_roots(void *start, size_t bytes);

/* Keeps p's object alive wherever the pointer is kept, until as many unpins (Go: runtime.Pinner). p
 * may point into the middle; p outside the heap is not an error. Gives p, or NULL and ENOMEM. */
LOAM_API void *loam_pin(void *p);
LOAM_API void loam_unpin(void *p);

/* A loam_stack is memory that is searched together with the calling thread's own stack, so that
 * plain stores into it need no LOAM_SET: an interpreter's value stack, a worklist, a coroutine's
 * stack. `top` is where the program keeps the live end (raise it before writing above it), or NULL:
 * all of it is live. NULL: EINVAL, ENOMEM. */
typedef struct loam_stack loam_stack;
LOAM_API loam_stack *loam_stack_add(void *start, size_t bytes, void *const *top);

/* Which part of a parked stack is live, from now on instead of `top` (live NULL: `top` again). The
 * stack belongs to the thread that called this last; nobody else may be writing to it. 0, or -1:
 * EINVAL (outside the stack). */
LOAM_API int loam_stack_set(loam_stack *s, void *live, size_t bytes);
LOAM_API void loam_stack_remove(loam_stack *s);

/* The calling thread's stack, registers and thread-local storage are roots from here on. Allocating
 * attaches, too; attaching twice is harmless. 0, or -1: ENOMEM, EAGAIN. */
LOAM_API int loam_attach(void);

/* The opposite; automatic at thread exit. The thread holds no heap pointers afterwards, until it
 * attaches again. Its loam_stacks belong to no thread from now on: whoever goes on with one, this thread
 * too, says so by loam_stack_set. */
LOAM_API void loam_detach(void);

/* Optional, around a long wait or computation that touches no heap memory: the collector answers
 * for the thread instead of signalling it. They nest. What the thread holds when it enters stays alive; its
 * stack may be read at any moment in between, so no pointer to an object is moved from one variable to another. */
LOAM_API void loam_enter_blocking(void);
LOAM_API void loam_exit_blocking(void);

/* The signal that reaches running threads; SIGURG unless set, as in Go. Before the first
 * allocation. The program leaves it alone: unblocked, its handler in place. 0, or -1: EBUSY (too
 * late), EINVAL (no signal that can be caught). */
LOAM_API int loam_set_signal(int signo);

/* ---- Collection ---------------------------------------------------------------------------------
 *
 * Go's pacer (runtime/mgcpacer.go): a cycle starts so that it is finished when the heap has grown
 * by GOGC percent over what the last one found alive. GOGC, GOMEMLIMIT (`off`; bytes, with B, KiB, MiB, GiB or
 * TiB behind the number; `auto`: 90 % of the container's limit), GOMAXPROCS and GODEBUG
 * (`key=value,...`) are read once, at first use, with Go's syntax and defaults; what cannot be parsed
 * is named on stderr and ignored. These change them while the program runs, at once.
 */

/* A full collection, sweep included, finished when it returns (Go: runtime.GC). Waits: not from a
 * finalizer, a cleanup or a signal handler. */
LOAM_API void loam_gc(void);

/* GOGC, in percent, 100 unless set; negative turns it off. Gives the old value (negative: it was
 * off). */
LOAM_API int loam_set_gc_percent(int percent);

/* No cycle starts by itself below this heap, in bytes; unless set, the goal is at least Go's
 * 4 MiB * GOGC / 100. Negative only asks. Gives the old value, at first that of Go. */
LOAM_API int64_t loam_set_min_heap(int64_t bytes);

/* GOMEMLIMIT, in bytes: what the library has from the system and has not returned stays below it for as long
 * as that is possible, with GOGC off, too: cycles start earlier, and free memory goes back. Unless set there is none,
 * INT64_MAX. A limit below what is alive is not kept; then the program goes on with the share of the processors that
 * loam_set_gc_cpu_limit leaves it. Negative only asks. Gives the old value. Stacks of goroutines count as the last cycle
 * found them. The stacks of threads, data of the program and what it has from malloc are not counted. (Go: debug.SetMemoryLimit) */
LOAM_API int64_t loam_set_memory_limit(int64_t bytes);

/* With a memory limit the collector, and allocators that work for it, use at most about this share of the processor
 * time that the process uses (over some seconds), 0 to 1, and rather exceed the limit; 0.5 unless set. What marks in the
 * background, a quarter of the processors while a cycle runs, is counted, not slowed down. Negative and NaN only ask.
 * Gives the old value. (Go's CPU limiter: there fixed.) */
LOAM_API double loam_set_gc_cpu_limit(double share);

/* Memory outside the heap that heap objects own (a buffer of malloc's, a mapping), in bytes: delta more, or less when it
 * is negative. It counts as live heap when the collector decides when to run, so a small object that owns much does not
 * wait for the heap to grow; not for the memory limit, nor in statistics. The sum never falls below 0. Any attached
 * thread, also from finalizers and cleanups; a thread that adds pays for it as for an allocation. */
LOAM_API void loam_add_external_bytes(int64_t delta);

/* Memory is short: what must stay (what is alive, with what the library needs for it) is above 75 % of the memory limit
 * (NEAR), 95 % (AT), or above it (OVER). Caches may shrink. */
typedef enum loam_pressure {
    LOAM_PRESSURE_NEAR = 1,
    LOAM_PRESSURE_AT,
    LOAM_PRESSURE_OVER
} loam_pressure;

/* fn(level, arg) is called after each cycle that finds memory short, and with OVER before an allocation fails, when a
 * collection has not helped (the out-of-memory handler comes after it); then another collection follows. On the
 * library's own thread, as finalizers, in the order of the calls; it may allocate. arg is kept alive. 0; -1 and ENOMEM,
 * or EINVAL: fn is NULL. The same fn and arg may be added more than once. */
LOAM_API int loam_add_pressure_handler(void (*fn)(loam_pressure level, void *arg), void *arg);

/* Undo one such call; fn may still be running, or run once more, when it returns. 0; -1 and EINVAL: there is none. */
LOAM_API int loam_remove_pressure_handler(void (*fn)(loam_pressure level, void *arg), void *arg);

/* GOMAXPROCS: processors that the collector reckons with; n < 1 only asks. Gives the old value. */
LOAM_API int loam_set_max_procs(int n);

/* A collection, and as much memory back to the system as possible (Go: debug.FreeOSMemory). As
 * loam_gc, it waits. */
LOAM_API void loam_free_os_memory(void);

/* ---- Ends of objects ----------------------------------------------------------------------------
 *
 * Go's meanings. obj is the start of a heap object, else EINVAL. Functions run on the library's own
 * thread, one after the other; they may allocate, store, and use locks that no allocation is made
 * under. `arg` is kept alive while it is pending. Nothing of this is run because the program ends.
 */

/* fn(obj, arg) runs once, after obj has become unreachable, the object whole and alive again for
 * it; owners run before what they own; a cycle of objects with finalizers is never finalized
 * (runtime.SetFinalizer). fn NULL clears. 0, or -1: EINVAL, EEXIST (one is set), ENOMEM. */
LOAM_API int loam_set_finalizer(void *obj, void (*fn)(void *obj, void *arg), void *arg);

/* fn(arg) runs after obj is gone; any number each (runtime.AddCleanup). arg must not reach obj, or
 * neither ever ends. The id, or 0: EINVAL (also arg == obj), ENOMEM. */
typedef uint64_t loam_cleanup;
LOAM_API loam_cleanup loam_add_cleanup(void *obj, void (*fn)(void *arg), void *arg);

/* It will not run, unless it has been queued already. Any id, also 0, also one that has run. */
LOAM_API void loam_cleanup_stop(loam_cleanup c);

/* A pointer that does not keep its object alive (weak.Pointer). A heap object itself: store it with
 * LOAM_SET. The same obj gives the same one while that lives. Cleared before a finalizer of obj is
 * queued. NULL: EINVAL, ENOMEM. */
typedef struct loam_weak loam_weak;
LOAM_API loam_weak *loam_weak_make(void *obj);
LOAM_API void *loam_weak_value(const loam_weak *w); /* NULL once the object is gone */

/* A pair whose value lives only while its key does, even if the value reaches the key (Hayes 1997).
 * A heap object itself. value may be anything. NULL: EINVAL (key no object's start), ENOMEM. */
typedef struct loam_ephemeron loam_ephemeron;
LOAM_API loam_ephemeron *loam_ephemeron_make(void *key, void *value);
LOAM_API void *loam_ephemeron_value(const loam_ephemeron *e); /* NULL once the key is gone */

/* p's object is alive at least until here (runtime.KeepAlive). Where nothing else holds an object, and the last use of it is a
 * loop over its contents, it belongs behind that: a compiler may keep, instead of p, an address that lies outside of the
 * object and a distance (of `p[i]`, compared with what is computed from n + i, gcc keeps p - n and n + i). */
LOAM_API void loam_keep_alive(const void *p);

/* ---- How the macros are built -------------------------------------------------------------------
 *
 * Nothing below is for programs: names that end in _ may change. Parameters begin with loam_: a
 * program may call its types and globals anything, and -Wshadow says nothing.
 *
 * loam_write_barrier is nonzero while the barrier is on. A thread that acknowledged the handshake
 * between its test of it and the store would lose an object. So test and store are one restartable
 * sequence (Bershad, Redell, Ellis 1992; Linux: rseq): a note tells its range, and the handshake's
 * signal handler sets a thread that it interrupts at begin < pc < end back to begin. Hence nothing
 * in the range changes what the range reads, but the slot, by its last instruction.
 *
 * The note (ELF, section .note.loam, one per sequence): namesz 5, descsz 8, type 1, "loam" padded
 * to 8 bytes, then two signed 32-bit distances, of begin and of end, each from the place where it
 * stands. Aligned to 4, so it is found in PT_NOTE by dl_iterate_phdr. "?" puts it into the COMDAT
 * group of the function around it, if any: the linker keeps or drops both. Flag and note are ABI.
 *
 * LOAM_NO_INLINE_STORE makes LOAM_SET call loam_store, as it does where it has no assembly: on
 * other machines and under ThreadSanitizer. clang -masm=intel needs it.
 */
#ifdef LOAM_LIBRARY_ /* the library's own sources */
extern LOAM_API volatile uint32_t loam_write_barrier;
#else
extern LOAM_API const volatile uint32_t loam_write_barrier;
#endif

#if defined(LOAM_NO_INLINE_STORE) || defined(__SANITIZE_THREAD__) || !defined(__ELF__) || \
    !defined(__LP64__)
#define LOAM_STORE_CALLS_ 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LOAM_STORE_CALLS_ 1
#endif
#endif

#define LOAM_STORE_NOTE_                              \
    "2:\n\t.pushsection .note.loam,\"a?\",%%note\n\t" \
    ".balign 4\n\t.long 5, 8, 1\n\t"                  \
    ".asciz \"loam\"\n\t.balign 4\n\t"                \
    ".long 1b - .\n\t.long 2b - .\n\t"                \
    ".popsection"

#ifdef __cplusplus
#define LOAM_CAST_(T, value) static_cast<T>(value)
#define LOAM_BITS_(p) reinterpret_cast<uintptr_t>(p)
#define LOAM_POINTER_(bits) reinterpret_cast<void *>(bits)
#define LOAM_INLINE_ inline __attribute__((__always_inline__, __nothrow__))
#else /* not static: C99 inline functions of the program may use it. Never emitted by itself. */
#define LOAM_INLINE_ extern inline __attribute__((__gnu_inline__, __always_inline__, __nothrow__))
#define LOAM_CAST_(T, value) ((T)(value))
#define LOAM_BITS_(p) ((uintptr_t)(p))
#define LOAM_POINTER_(bits) ((void *)(bits))
#endif

typedef void *__attribute__((__may_alias__)) loam_word_;

/* *slot = value, with the barrier. The slot is an input: an asm goto has no outputs in gcc 10. */
LOAM_INLINE_ void loam_set_(void *loam_slot_, const void *loam_value_)
{
#if defined(__x86_64__) && !defined(LOAM_STORE_CALLS_)
    __asm__ goto("1:\t{cmpl $0, %[on]|cmp %[on], 0}\n\t"
                 "jne %l[slow]\n\t"
                 "{movq %[value], %[slot]|mov %[slot], %[value]}\n" /* x86 stores release */
                 LOAM_STORE_NOTE_
                 :
                 : [on] "m"(loam_write_barrier), [value] "r"(loam_value_),
                   [slot] "m"(*LOAM_CAST_(loam_word_ *, loam_slot_))
                 : "memory", "cc"
                 : slow);
    return;
slow:
#elif defined(__aarch64__) && !defined(LOAM_STORE_CALLS_)
    __asm__ goto("1:\tldr w16, %[on]\n\t"
                 "cbnz w16, %l[slow]\n\t"
                 "stlr %x[value], [%x[slot]]\n" LOAM_STORE_NOTE_
                 :
                 : [on] "m"(loam_write_barrier), [value] "rZ"(loam_value_), [slot] "r"(loam_slot_)
                 : "memory", "x16"
                 : slow);
    return;
slow:
#endif
    loam_store(loam_slot_, loam_value_);
}

/* Saturates: SIZE_MAX is what loam_alloc refuses. */
LOAM_INLINE_ size_t loam_pointer_bytes_(size_t loam_count_)
{
    return loam_count_ > SIZE_MAX / sizeof(void *) ? SIZE_MAX : loam_count_ * sizeof(void *);
}

#ifdef __cplusplus
} /* extern "C" */
#endif

/* LOAM_REQUIRE_(cond, what) is a constant 0, or an error that names `what`. LOAM_IN_(T) stands for
 * an object of type T that nobody evaluates. Type class 8 is floating, 5 a pointer.
 *
 * LOAM_SET in C: the first arm of the conditional stores words; the second, never evaluated, is the
 * compiler's own check of the assignment. The comma in __typeof__ drops qualifiers and _Atomic. */
#ifndef __cplusplus

#define LOAM_NULL_ NULL
#define LOAM_IN_(T) (*(T *)0)
#define LOAM_REQUIRE_(cond, what) (0 * sizeof(struct { unsigned int what : (cond) ? 1 : -1; }))

#define LOAM_SET_(lv, v)                                                                          \
    ((__typeof__((void)0, (lv)))(1 + LOAM_REQUIRE_(LOAM_IS_WORD_(lv), loam_set_needs_a_word)      \
                                     ? loam_set_word_((void *)(uintptr_t) & (lv), (uintptr_t)(v)) \
                                     : ((void)((lv) = (v)), (uintptr_t)0)))
#define LOAM_IS_WORD_(lv) (sizeof(lv) == sizeof(void *) && __builtin_classify_type(lv) != 8)

LOAM_INLINE_ uintptr_t loam_set_word_(void *loam_slot_, uintptr_t loam_value_)
{
    loam_set_(loam_slot_, (const void *)loam_value_);
    return loam_value_;
}

#define LOAM_TYPEOF_(T) ((const loam_type *)&T##_loam_type_)
#define LOAM_DEFINE_TYPEOF_(T)
#define LOAM_TABLES_BEGIN_
#define LOAM_TABLES_END_

#else /* C++: LOAM_SET is overloaded; LOAM_TYPEOF finds T's function by argument-dependent lookup */

#define LOAM_NULL_ nullptr
#define LOAM_IN_(T) (*static_cast<T *>(nullptr))
#define LOAM_REQUIRE_(cond, what) (loam_require_<(cond), struct what>::zero)
#define LOAM_SET_(lv, v) (::loam_assign_(lv, v))

#define LOAM_TYPEOF_(T) (loam_typeof_(loam_tag_<T>()))
#define LOAM_DEFINE_TYPEOF_(T)                                                            \
    extern "C++" {                                                                        \
    static inline __attribute__((__unused__)) const loam_type *loam_typeof_(loam_tag_<T>) \
    {                                                                                     \
        return &T##_loam_type_;                                                           \
    }                                                                                     \
    }
#define LOAM_TABLES_BEGIN_ \
    _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Winvalid-offsetof\"")
#define LOAM_TABLES_END_ _Pragma("GCC diagnostic pop")

extern "C++" {
template <bool, class> struct loam_require_; /* declared only: false is an error */
template <class What> struct loam_require_<true, What> {
    static constexpr size_t zero = 0;
};
template <class> struct loam_tag_ {
};
template <class T> struct loam_same_ {
    typedef T type;
};

/* value takes no part in deduction: NULL, nullptr and pointers to derived classes convert. */
template <class T>
LOAM_INLINE_ T *loam_assign_(T *&loam_slot_, typename loam_same_<T *>::type loam_value_)
{
    loam_set_(&loam_slot_,
              reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(loam_value_)));
    return loam_value_;
}
template <class T>
LOAM_INLINE_ T *loam_assign_(T *volatile &loam_slot_, typename loam_same_<T *>::type loam_value_)
{
    return loam_assign_(const_cast<T *&>(loam_slot_), loam_value_);
}
LOAM_INLINE_ uintptr_t loam_assign_(uintptr_t &loam_slot_, uintptr_t loam_value_)
{
    loam_set_(&loam_slot_, reinterpret_cast<const void *>(loam_value_));
    return loam_value_;
}
LOAM_INLINE_ uintptr_t loam_assign_(volatile uintptr_t &loam_slot_, uintptr_t loam_value_)
{
    return loam_assign_(const_cast<uintptr_t &>(loam_slot_), loam_value_);
}
/* std::atomic of a pointer or of uintptr_t, known without <atomic> by its members. */
template <class A>
LOAM_INLINE_ typename A::value_type loam_assign_(A &loam_slot_, typename A::value_type loam_value_)
{
    static_assert(A::is_always_lock_free && sizeof(A) == sizeof(void *), "LOAM_SET needs a word");
    loam_assign_(reinterpret_cast<typename A::value_type &>(loam_slot_), loam_value_);
    return loam_value_;
}
} /* extern "C++" */

#endif

/* LOAM_TYPE makes two statics per translation unit, the fields' table and the descriptor. The 64
 * slots of LOAM_FIELDS_ are always there; the empty ones expand to nothing (C99 has no empty `...`,
 * but empty arguments). A zero ends the table, which C does not let be empty. The struct declared
 * last takes the program's semicolon. */
#define LOAM_FIELD_(T, f)                                                                       \
    {LOAM_CAST_(uint32_t, __builtin_offsetof(T, f) +                                            \
                              LOAM_REQUIRE_(sizeof(LOAM_IN_(T).f) % sizeof(void *) == 0 &&      \
                                                __builtin_offsetof(T, f) % sizeof(void *) == 0, \
                                            loam_field_is_not_whole_aligned_words)),            \
     LOAM_CAST_(uint32_t, (0 + sizeof(LOAM_IN_(T).f)) / sizeof(void *))},
#define LOAM_NO_FIELD_(T, f)
#define LOAM_65TH_FIELD_(T, f) {loam_type_has_more_than_64_fields, f},

/* LOAM_EMPTY_ pasted to nothing is itself, two arguments, and the second is chosen. */
#define LOAM_EMPTY_ ~, LOAM_NO_FIELD_
#define LOAM_SECOND_(a, b, ...) b
#define LOAM_CHOOSE_(...) LOAM_SECOND_(__VA_ARGS__)
#define LOAM_SLOT_(T, f) LOAM_CHOOSE_(LOAM_EMPTY_##f, LOAM_FIELD_, ~)(T, f)
#define LOAM_LIMIT_(T, f) LOAM_CHOOSE_(LOAM_EMPTY_##f, LOAM_65TH_FIELD_, ~)(T, f)
/* clang-format off */
#define LOAM_8_(T, a, b, c, d, e, f, g, h)                                                        \
    LOAM_SLOT_(T, a) LOAM_SLOT_(T, b) LOAM_SLOT_(T, c) LOAM_SLOT_(T, d)                           \
    LOAM_SLOT_(T, e) LOAM_SLOT_(T, f) LOAM_SLOT_(T, g) LOAM_SLOT_(T, h)
#define LOAM_FIELDS_(T,                                                                           \
                     a0, a1, a2, a3, a4, a5, a6, a7,                                              \
                     b0, b1, b2, b3, b4, b5, b6, b7,                                              \
                     c0, c1, c2, c3, c4, c5, c6, c7,                                              \
                     d0, d1, d2, d3, d4, d5, d6, d7,                                              \
                     e0, e1, e2, e3, e4, e5, e6, e7,                                              \
                     f0, f1, f2, f3, f4, f5, f6, f7,                                              \
                     g0, g1, g2, g3, g4, g5, g6, g7,                                              \
                     h0, h1, h2, h3, h4, h5, h6, h7, over, ...)                                   \
    LOAM_8_(T, a0, a1, a2, a3, a4, a5, a6, a7)                                                    \
    LOAM_8_(T, b0, b1, b2, b3, b4, b5, b6, b7)                                                    \
    LOAM_8_(T, c0, c1, c2, c3, c4, c5, c6, c7)                                                    \
    LOAM_8_(T, d0, d1, d2, d3, d4, d5, d6, d7)                                                    \
    LOAM_8_(T, e0, e1, e2, e3, e4, e5, e6, e7)                                                    \
    LOAM_8_(T, f0, f1, f2, f3, f4, f5, f6, f7)                                                    \
    LOAM_8_(T, g0, g1, g2, g3, g4, g5, g6, g7)                                                    \
    LOAM_8_(T, h0, h1, h2, h3, h4, h5, h6, h7)                                                    \
    LOAM_LIMIT_(T, over) {0, 0}
#define LOAM_FILL_(T, ...)                                                                        \
    LOAM_FIELDS_(T, __VA_ARGS__, ,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,                                \
                 ,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,)
/* clang-format on */

#define LOAM_TABLE_(T, ...)                                         \
    LOAM_TABLES_BEGIN_                                              \
    static const loam_field T##_loam_fields_[]                      \
        __attribute__((__unused__)) = {LOAM_FILL_(T, __VA_ARGS__)}; \
    LOAM_TABLES_END_
#define LOAM_NFIELDS_(T) LOAM_CAST_(uint32_t, sizeof(T##_loam_fields_) / sizeof(loam_field) - 1)

#define LOAM_DESCRIPTOR_(T, names, fields, nfields, flags, tail_offset, tail_size, scan)     \
    LOAM_TABLES_BEGIN_                                                                       \
    static loam_type T##_loam_type_ __attribute__((__unused__)) = {                          \
        #T,                                                                                  \
        names,                                                                               \
        sizeof(T),                                                                           \
        __alignof__(T) + LOAM_REQUIRE_(__alignof__(T) <= 16, loam_type_is_aligned_above_16), \
        fields,                                                                              \
        nfields,                                                                             \
        flags,                                                                               \
        tail_offset,                                                                         \
        tail_size,                                                                           \
        scan,                                                                                \
        LOAM_NULL_};                                                                         \
    LOAM_TABLES_END_                                                                         \
    LOAM_DEFINE_TYPEOF_(T)                                                                   \
    struct loam_semicolon_

#define LOAM_TYPE_(T, names, ...)                                  \
    LOAM_TABLE_(T, __VA_ARGS__)                                    \
    LOAM_DESCRIPTOR_(T, names, T##_loam_fields_, LOAM_NFIELDS_(T), \
                     LOAM_REQUIRE_(sizeof(names) > 1, loam_type_has_no_fields), 0, 0, LOAM_NULL_)

#define LOAM_TYPE_NOSCAN_(T) \
    LOAM_DESCRIPTOR_(T, "", LOAM_NULL_, 0, LOAM_TYPE_IS_NOSCAN, 0, 0, LOAM_NULL_)

#define LOAM_TYPE_FLEX_(T, names, tail, ...)                                                  \
    LOAM_TABLE_(T, __VA_ARGS__)                                                               \
    LOAM_DESCRIPTOR_(T, names, T##_loam_fields_, LOAM_NFIELDS_(T),                            \
                     LOAM_TYPE_IS_FLEX |                                                      \
                         (LOAM_TAIL_IS_WORDS_(T, tail) ? LOAM_TYPE_TAIL_IS_POINTERS : 0),     \
                     __builtin_offsetof(T, tail) +                                            \
                         LOAM_REQUIRE_(LOAM_TAIL_IS_WORDS_(T, tail) ||                        \
                                           __builtin_classify_type(LOAM_IN_(T).tail[0]) != 5, \
                                       loam_tail_is_not_whole_aligned_words),                 \
                     sizeof(LOAM_IN_(T).tail[0]), LOAM_NULL_)
#define LOAM_TAIL_IS_WORDS_(T, tail)                      \
    (sizeof(LOAM_IN_(T).tail[0]) % sizeof(void *) == 0 && \
     __builtin_offsetof(T, tail) % sizeof(void *) == 0)

#define LOAM_TYPE_SCANNED_(T, fn)                                             \
    static __attribute__((__unused__)) void T##_loam_scan_(                   \
        const void *loam_obj_, size_t loam_bytes_, loam_marker *loam_marker_) \
    {                                                                         \
        fn(LOAM_CAST_(const T *, loam_obj_), loam_bytes_, loam_marker_);      \
    }                                                                         \
    LOAM_DESCRIPTOR_(T, "", LOAM_NULL_, 0, LOAM_TYPE_IS_SCANNED, 0, 0, T##_loam_scan_)

#endif /* LOAM_H */
