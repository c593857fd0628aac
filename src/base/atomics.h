/* atomics.h - atomic operations whose names carry their order.
 *
 * Every acquire and release in the tree has a comment that names its partner; implicit sequential
 * consistency is a compile error (clang's -Watomic-implicit-seq-cst).
 */
#ifndef BASE_ATOMICS_H
#define BASE_ATOMICS_H

#include "base/compiler.h"

#include <stdatomic.h>

#define load_rlx(p) atomic_load_explicit((p), memory_order_relaxed)
#define load_acq(p) atomic_load_explicit((p), memory_order_acquire)
#define load_sc(p) atomic_load_explicit((p), memory_order_seq_cst)
#define store_rlx(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define store_rel(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define store_sc(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)

#define xchg_rlx(p, v) atomic_exchange_explicit((p), (v), memory_order_relaxed)
#define xchg_acqrel(p, v) atomic_exchange_explicit((p), (v), memory_order_acq_rel)
#define xchg_sc(p, v) atomic_exchange_explicit((p), (v), memory_order_seq_cst)
#define add_rlx(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define sub_rlx(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define add_acqrel(p, v) atomic_fetch_add_explicit((p), (v), memory_order_acq_rel)
#define sub_acqrel(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define sub_sc(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_seq_cst)
#define or_acqrel(p, v) atomic_fetch_or_explicit((p), (v), memory_order_acq_rel)
#define and_acqrel(p, v) atomic_fetch_and_explicit((p), (v), memory_order_acq_rel)
#define or_sc(p, v) atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)
#define cas_rlx(p, expected, v)                                                         \
    atomic_compare_exchange_strong_explicit((p), (expected), (v), memory_order_relaxed, \
                                            memory_order_relaxed)
#define cas_acqrel(p, expected, v)                                                      \
    atomic_compare_exchange_strong_explicit((p), (expected), (v), memory_order_acq_rel, \
                                            memory_order_acquire)
#define cas_sc(p, expected, v)                                                          \
    atomic_compare_exchange_strong_explicit((p), (expected), (v), memory_order_seq_cst, \
                                            memory_order_seq_cst)

/* Of a number that one thread writes at a time. */
#define raise_rlx(p, v)              \
    do {                             \
        uint64_t raised_ = (v);      \
        if (raised_ > load_rlx(p)) { \
            store_rlx(p, raised_);   \
        }                            \
    } while (0)

#define fence_acq() atomic_thread_fence(memory_order_acquire)
#define fence_rel() atomic_thread_fence(memory_order_release)
#define fence_sc() atomic_thread_fence(memory_order_seq_cst)

#endif
