/* use_sched.c - the forms of loam/sched.h that macros make, in what C and C++ share; compiled only.
 *
 * Claim: every form that the contract allows compiles without a warning. See compile_all.sh. */
#include <loam/sched.h>

typedef struct frame {
    void *constant;
    struct frame *caller;
    void **window, *regs[4];
} frame;
LOAM_TYPE(frame, constant, regs);
LOAM_FRAME_INNER(frame, caller, window);

typedef struct one {
    struct one *inner;
} one;
LOAM_TYPE_NOSCAN(one);
LOAM_FRAME_INNER(one, inner);

typedef struct plain {
    void *p;
} plain;
LOAM_TYPE(plain, p);
LOAM_FRAME(plain);

typedef struct word {
    uintptr_t bits;
} word;
static void word_scan(const word *w, size_t bytes, loam_marker *m)
{
    (void)bytes;
    (void)w;
    loam_mark(m, NULL);
}
static void word_adjust(word *w, size_t bytes, const loam_move *move)
{
    (void)bytes;
    w->bits += loam_moved(move, w) == w;
}
LOAM_TYPE_SCANNED(word, word_scan);
LOAM_FRAME_ADJUSTED(word, word_adjust);

static void on_move(loam_mstack *s, const loam_move *move, void *arg)
{
    (void)s;
    (void)move;
    (void)arg;
}

size_t call_all_of_sched(void);
size_t call_all_of_sched(void)
{
    loam_mstack *s = loam_mstack_make(0);
    size_t used = 0;
    int sum = loam_mstack_enter(s);
    frame *f = LOAM_PUSH(s, frame, 1);
    plain *p = LOAM_PUSH(s, plain, 3);
    const loam_frame_map *map = LOAM_FRAMEOF(one);
    sum += loam_mstack_push(s, map, 2) == LOAM_PUSH(s, word, used);
    f->regs[3] = p->p;
    loam_mstack_pop(s);
    loam_mstack_unwind(s, f);
    loam_mstack_on_move(s, on_move, NULL);
    sum += loam_mstack_top(s) == loam_mstack_below(s, p);
    used += loam_mstack_bytes(s, &used) + loam_mstack_bytes(s, NULL);
    loam_mstack_leave(s);
    return used + (size_t)sum;
}
