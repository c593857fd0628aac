/* start.c - the library starts at its first use, on whichever thread that is. */
#include "malloc/malloc.h"

#include "gc/ends.h"

#include <errno.h>
#include <signal.h>

static struct mutex start_lock;
static _Atomic bool started;

bool malloc_started(void)
{
    return load_acq(&started); /* acquire: pairs with start_locked */
}

/* Two copies would not see each other's roots, and would free what the other's objects point to. */
static bool only_copy(void)
{
    static bool told;
    char own[256];
    char other[256];
    if (os_copy_claim(own, other, sizeof(own))) {
        return true;
    }
    if (!told) {
        told = true;
        warnf("there are two copies of the library in this process, and each would free what only "
              "the other can see. The one in %s works; the one in %s gives no memory. Link both "
              "modules with libloam.so instead of libloam.a.",
              other, own);
    }
    return false;
}

/* Each step may be repeated when a later one was refused. */
static bool start_locked(void)
{
    if (!only_copy() || !mheap_init()) {
        return false;
    }
    gc_options_read();
    if (gc.options.disable_thp) {
        mheap_hugepages_off();
    }
    ends_alloc = malloc_typed;
    if (!gc_init() || !world_init()) {
        return false;
    }
    mheap_fill_reserve(); /* before a handler of the program can need it */
    if (gc.at_start != NULL) {
        gc.at_start();
    }
    gc_start_collector();
    store_rel(&started, true); /* release: pairs with malloc_started */
    return true;
}

COLD struct m *malloc_attach(void)
{
    if (!malloc_started()) {
        sigset_t all, old; /* a handler of the program that allocates would wait for our own lock */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        world_enter_stranger(); /* no child inherits half a library */
        mutex_lock(&start_lock);
        bool ok = malloc_started() || start_locked();
        mutex_unlock(&start_lock);
        world_leave_stranger();
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (!ok) {
            errno = ENOMEM;
            return NULL;
        }
    }
    return m_attach();
}
