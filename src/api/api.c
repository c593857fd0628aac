/* api.c - the contract: argument checks and delegation. What a function means stands in loam.h. */
#include "gc/ends.h"
#include "malloc/malloc.h"
#include "observe/observe.h"
#include "sched/sched.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

/* What lies above the front door is told to it here. Another constructor may have allocated before. */
__attribute__((constructor)) static void install_hooks(void)
{
    gc.at_start = observe_init;
    if (malloc_started()) {
        observe_init();
    }
}

const char *loam_version(void)
{
    return LOAM_VERSION;
}

/* -- memory ------------------------------------------------------------------------------------ */

const loam_type *loam_type_make(const char *name, size_t size, const size_t offsets[], size_t n)
{
    struct m *m = malloc_self();
    if (m == NULL) {
        return NULL;
    }
    if (name == NULL || size == 0 || size > UINT32_MAX || n > UINT32_MAX ||
        (n != 0 && offsets == NULL)) {
        errno = EINVAL;
        return NULL;
    }
    m_enter(m);
    const loam_type *t = gctype_make(name, size, offsets, n);
    m_leave(m);
    return t;
}

int loam_set_pointer_mask(uintptr_t mask)
{
    if (malloc_started()) {
        errno = EBUSY;
        return -1;
    }
    if ((mask & UINT64_C(0x00007ffffffffff8)) != UINT64_C(0x00007ffffffffff8)) {
        errno = EINVAL;
        return -1;
    }
    heap.pointer_mask = mask;
    return 0;
}

int loam_set_signal(int signo)
{
    if (malloc_started()) {
        errno = EBUSY;
        return -1;
    }
    if (signo <= 0 || signo > SIGRTMAX || signo == SIGKILL || signo == SIGSTOP) {
        errno = EINVAL;
        return -1;
    }
    world.signo = signo;
    return 0;
}

void *loam_realloc(void *p, size_t bytes)
{
    if (p == NULL) {
        return loam_alloc(bytes);
    }
    struct m *m = malloc_self();
    return m != NULL ? malloc_realloc(m, p, bytes) : NULL;
}

void loam_free(void *p)
{
    struct m *m = p != NULL ? malloc_self() : NULL;
    if (m != NULL) {
        malloc_free(m, p);
    }
}

size_t loam_usable_size(const void *p)
{
    struct mspan *s;
    size_t index;
    return m_find_object((uintptr_t)p, &s, &index) ? s->elem_size : 0;
}

void *loam_base(const void *p)
{
    struct mspan *s;
    size_t index;
    uintptr_t addr = (uintptr_t)p & heap.pointer_mask;
    return m_find_object(addr, &s, &index) ? (void *)mspan_object(s, index) : NULL;
}

char *loam_strdup(const char *s)
{
    if (s == NULL) {
        errno = EINVAL;
        return NULL;
    }
    size_t n = strlen(s) + 1;
    char *copy = loam_alloc_noscan(n);
    return copy != NULL ? memcpy(copy, s, n) : NULL;
}

void loam_set_oom_handler(void (*fn)(void *arg), void *arg)
{
    malloc_set_oom_handler(malloc_must_attach(), fn, arg);
}

/* -- stores ------------------------------------------------------------------------------------ */

void loam_store(void *slot, const void *value)
{
    gc_store(malloc_must_attach(), slot, (uintptr_t)value);
}

void *loam_exchange(void *slot, const void *value)
{
    return (void *)gc_exchange(malloc_must_attach(), slot, (uintptr_t)value);
}

bool loam_compare_exchange(void *slot, void *expected, const void *desired)
{
    return gc_compare_exchange(malloc_must_attach(), slot, expected, (uintptr_t)desired);
}

void loam_copy(void *dst, const void *src, size_t bytes)
{
    gc_copy(malloc_must_attach(), dst, src, bytes);
}

void loam_clear(void *dst, size_t bytes)
{
    gc_clear(malloc_must_attach(), dst, bytes);
}

void loam_store_as(void *slot, uintptr_t word, const void *old, const void *now)
{
    gc_store_as(malloc_must_attach(), slot, word, (uintptr_t)old, (uintptr_t)now);
}

/* -- roots and threads ------------------------------------------------------------------------- */

static int fail(int error)
{
    if (error == 0) {
        return 0;
    }
    errno = error;
    return -1;
}

int loam_add_roots(void *start, size_t bytes)
{
    struct m *m = malloc_self();
    if (m == NULL) {
        return -1;
    }
    if (start == NULL || (uintptr_t)start + bytes < (uintptr_t)start) {
        return fail(EINVAL);
    }
    return fail(gc_add_roots(m, (uintptr_t)start, bytes));
}

int loam_remove_roots(void *start, size_t bytes)
{
    struct m *m = malloc_self();
    return m == NULL ? -1 : fail(gc_remove_roots(m, (uintptr_t)start, bytes));
}

void *loam_pin(void *p)
{
    struct m *m = malloc_self();
    void *base = loam_base(p);
    if (m == NULL) {
        return NULL;
    }
    if (base != NULL && !gc_pin(m, (uintptr_t)base)) {
        errno = ENOMEM;
        return NULL;
    }
    return p;
}

void loam_unpin(void *p)
{
    struct m *m = malloc_self();
    void *base = loam_base(p);
    if (m != NULL && base != NULL) {
        CHECK(gc_unpin(m, (uintptr_t)base), "unpin of %p, which is not pinned", p);
    } else if (m != NULL && p != NULL) {
        /* Freed since: the pin must not hold what comes there next. */
        (void)gc_unpin(m, (uintptr_t)p);
    }
}

loam_stack *loam_stack_add(void *start, size_t bytes, void *const *top)
{
    struct m *m = malloc_self();
    if (m == NULL) {
        return NULL;
    }
    if (start == NULL || bytes == 0 || (uintptr_t)start + bytes < (uintptr_t)start) {
        errno = EINVAL;
        return NULL;
    }
    loam_stack *s = gc_stack_add(m, (uintptr_t)start, bytes, top);
    if (s == NULL) {
        errno = ENOMEM;
    }
    return s;
}

int loam_stack_set(loam_stack *s, void *live, size_t bytes)
{
    struct m *m = malloc_self();
    if (m == NULL) {
        return -1;
    }
    return s == NULL ? fail(EINVAL) : fail(gc_stack_set(m, s, (uintptr_t)live, bytes));
}

void loam_stack_remove(loam_stack *s)
{
    struct m *m = s != NULL ? malloc_self() : NULL;
    if (m != NULL) {
        gc_stack_remove(m, s);
    }
}

int loam_attach(void)
{
    return malloc_self() != NULL ? 0 : -1;
}

void loam_detach(void)
{
    m_detach();
}

void loam_enter_blocking(void)
{
    struct m *m = malloc_self();
    if (m != NULL) {
        m->blocked_at = m->blocking_depth == 0 ? trace_begin(&m->trace) : m->blocked_at;
        m_enter_blocking(m, FRAME_END);
    }
}

void loam_exit_blocking(void)
{
    struct m *m = m_self;
    if (m != NULL) {
        m_exit_blocking(m);
        if (m->blocking_depth == 0) {
            trace_end(&m->trace, TRACE_BLOCKED, m->blocked_at, 0, 0);
            m->blocked_at = 0;
        }
    }
}

/* -- collection -------------------------------------------------------------------------------- */

void loam_gc(void)
{
    struct m *m = malloc_self();
    if (m != NULL) {
        gc_collect(m);
    }
}

int loam_set_gc_percent(int percent)
{
    struct m *m = malloc_self();
    return m != NULL ? gc_set_percent(m, percent) : 100;
}

int64_t loam_set_min_heap(int64_t bytes)
{
    struct m *m = malloc_self();
    return m != NULL ? gc_set_min_heap(m, bytes) : -1;
}

int64_t loam_set_memory_limit(int64_t bytes)
{
    struct m *m = malloc_self();
    return m != NULL ? gc_set_memory_limit(m, bytes) : -1;
}

double loam_set_gc_cpu_limit(double share)
{
    struct m *m = malloc_self();
    return m != NULL ? gc_set_cpu_limit(m, share) : -1;
}

void loam_add_external_bytes(int64_t delta)
{
    struct m *m = malloc_self();
    if (m != NULL) {
        malloc_external(m, delta);
    }
}

int loam_add_pressure_handler(void (*fn)(loam_pressure level, void *arg), void *arg)
{
    struct m *m = malloc_self();
    if (fn == NULL) {
        errno = EINVAL;
        return -1;
    }
    if (m == NULL || !gc_pressure_add(m, fn, arg)) {
        errno = ENOMEM;
        return -1;
    }
    return 0;
}

int loam_remove_pressure_handler(void (*fn)(loam_pressure level, void *arg), void *arg)
{
    struct m *m = malloc_self();
    if (m == NULL || !gc_pressure_remove(m, fn, arg)) {
        errno = EINVAL;
        return -1;
    }
    return 0;
}

int loam_set_max_procs(int n)
{
    struct m *m = malloc_self();
    if (m == NULL) {
        return os_ncpu();
    }
    int old = load_rlx(&gc.options.max_procs);
    if (n >= 1) {
        store_rlx(&gc.options.max_procs, n); /* relaxed: a number */
        (void)gc_count_processors();
        sched_set_procs(m, n);
    }
    return old;
}

void loam_free_os_memory(void)
{
    struct m *m = malloc_self();
    if (m != NULL) {
        add_acqrel(&heap.give_up_pages, 1u); /* release: seen in the cycle that is asked for now */
        gc_collect(m);
        sub_acqrel(&heap.give_up_pages, 1u);
        gc_scavenge_all(m);
        if (gc.options.scavenge_trace > 0) {
            m_enter(m);
            gctrace_print_scavenger(true);
            m_leave(m);
        }
    }
}

/* -- ends of objects --------------------------------------------------------------------------- */

int loam_set_finalizer(void *obj, void (*fn)(void *obj, void *arg), void *arg)
{
    struct m *m = malloc_self();
    return m != NULL ? ends_set_finalizer(m, obj, fn, arg) : -1;
}

loam_cleanup loam_add_cleanup(void *obj, void (*fn)(void *arg), void *arg)
{
    struct m *m = malloc_self();
    return m != NULL ? ends_add_cleanup(m, obj, fn, arg) : 0;
}

void loam_cleanup_stop(loam_cleanup c)
{
    if (malloc_self() != NULL) {
        ends_cleanup_stop(c);
    }
}

loam_weak *loam_weak_make(void *obj)
{
    struct m *m = malloc_self();
    return m != NULL ? ends_weak_make(m, obj) : NULL;
}

void *loam_weak_value(const loam_weak *w)
{
    struct m *m = w != NULL ? malloc_self() : NULL;
    return m != NULL ? ends_weak_value(m, w) : NULL;
}

loam_ephemeron *loam_ephemeron_make(void *key, void *value)
{
    struct m *m = malloc_self();
    return m != NULL ? ends_ephemeron_make(m, key, value) : NULL;
}

void *loam_ephemeron_value(const loam_ephemeron *e)
{
    struct m *m = e != NULL ? malloc_self() : NULL;
    return m != NULL ? ends_ephemeron_value(m, e) : NULL;
}

void loam_keep_alive(const void *p)
{
    __asm__ volatile("" : : "r"(p) : "memory");
}
