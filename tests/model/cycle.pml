/* cycle.pml - the collector's cycle, checked by spin.
 *
 * Two program threads, one collector with a worker and a sweeper, NS spans of SPS slots.  An object of a scan span holds
 * one pointer, of a noscan span none.  Steps carry the names of docs/internals/protocol.md, which the code cites too.
 *
 * All state is global and whatever names an object, a span or a thread is a small number, so that canon() can rename
 * them after every step (symmetry) and forget the fields that nothing can read any more.  Both are exact: no behaviour
 * is lost, and none is added.
 *
 * The store.  In the code it is a restartable sequence (test the flag, store), or the slow path (buffer the new value,
 * exchange, buffer the old one), which no acknowledgement interrupts.  By default it is one step here, at the moment of
 * the store or exchange: what comes before touches only what is the thread's own, and the flag; and the flag may be
 * read late: until a thread has acknowledged [H-ON] or [H-OFF] it may still act on the old value.  -DSEQ takes the
 * sequence apart; -DFINE takes apart the worker, the sweeper and the emptying of a full buffer.
 *
 * Instance: NS, SPS, NOSCAN (set of the spans whose objects hold no pointers), NL0 and NL1 (locals of each thread).
 * Options:  SEQ FINE THREADS BLOCK WEAK EPH FREE FORK (with THREADS) ROOTS CONS PARK MSTACK PAY NOSYM.  Variants: see run.sh.
 * LIVE:     does every cycle end?  Signals come from processes of their own, which fairness makes go on, and a thread
 *           that is blocked or has ended may stay so.  The label `progress` is a cycle's begin.
 */
#ifndef NS
#define NS 2
#endif
#ifndef SPS
#define SPS 2
#endif
#ifndef NOSCAN
#define NOSCAN 0
#endif
#ifndef NL0
#define NL0 2
#endif
#ifndef NL1
#define NL1 1
#endif
#define NO (NS*SPS)

/* Objects are 1..NO, spans 0..NS-1, threads 0 and 1.  In a set of objects bit o stands for object o; 0 is NULL. */
#define OB(o)     ((1<<(o)) & ~1)
#define SB(s)     (1<<(s))
#define TB(t)     (1<<(t))
#define SLOTS(s)  (((1<<SPS)-1) << ((s)*SPS+1))
#define ALLOBJ    ((1<<(NO+1))-2)
#define NSP(s)    (((NOSCAN>>(s))&1) * SLOTS(s))
#define SCANOBJ   (ALLOBJ & ~(NSP(0)|NSP(1)|NSP(2)))
#define IN(m,s)   ((((m) & SLOTS(s) & ALLOBJ) != 0) << (s))
#define SPANSOF(m) (IN(m,0)|IN(m,1)|IN(m,2))
#define SPANOF(o) (((o)-1)/SPS)

/* Handshakes, in their order. */
#define H_NONE     0
#define H_ON       1
#define H_BLACK    2
#define H_SCAN     3
#define H_FLUSH    4
#define H_OFF      5
#define H_GIVEBACK 6

/* gen[s] */
#define SWEPT   0      /* of the current sweep generation */
#define UNSWEPT 1      /* of the old one */
#define UNUSED  2      /* in the page heap */

/* st[t]: where the thread is */
#define IDLE     0     /* between two operations */
#define FAST     1     /* SEQ: has read the flag as 0 and not stored yet */
#define SLOW     2     /* SEQ: in the slow path, before the exchange; busy: acknowledges nothing */
#define STORED   3     /* STORE_FIRST: has stored and not tested yet */
#define BLOCKED  4
#define FLUSHING 5     /* FINE: emptying a full buffer: round dirtied, nothing marked yet; busy */
#define PUSHING  6     /* FINE: marked, not queued yet; busy */
#define SWAPPED  7     /* SEQ: after the exchange, the old value not buffered yet; busy */
#define LOOKING  8     /* WEAK_TORN: has looked at the sweep generation, not at the mark yet; busy */
#define PAYING  10     /* PAY: has looked at the sweep generation, not taken a span yet; busy */
#define FREEING  9     /* FREE: has looked at the phase, not marked yet; busy */

/* The heap.  alloc holds the slots of the runs too. */
byte alloc, mark, scanned;
byte fld[NO+1];        /* fld[0] is the global slot */
byte gen[NS] = UNUSED;
byte own[NS];          /* 0; t+1: cached by thread t; SWEEPER: being swept */
#define SWEEPER 3
byte queued;           /* set of spans: in the work queue */
byte todo;             /* what the worker has taken from a span and not scanned yet */

/* The threads. */
byte L[2];             /* locals: a set of objects */
byte rest[2];           /* slots that the thread may hand out without asking */
byte buf[2];           /* shaded, not marked yet */
byte st[2];
bit black[2];

/* The world. */
byte hs, req;          /* the handshake posted last, and who has not acknowledged it */
bit flag;              /* loam_write_barrier */
bit gblack;            /* the phase that an attaching thread takes */
bit draining;          /* workers may work */
bit unclean;           /* somebody has marked something in this round */
bit markdone;          /* between [mark-done] and [flip] */

byte tmp, tm2, o, words; /* scratch, 0 between steps */

#ifdef THREADS
byte alive = 3;
#elif defined(ONE)
#define alive 1
#else
#define alive 3
#endif
#ifdef SEQ
byte tgt[2], val[2];
#ifdef STORE_FIRST
byte old[2];
#endif
#endif
#ifdef BLOCK
byte claim;            /* t+1: the collector acts for the blocked thread t */
#endif
#ifdef PAY
bit sweepdone = 1;
byte pay[2];           /* the thread looks for a span to sweep: 1; 2: and the generation has moved on since */
#endif
#ifdef ROOTS
byte root;             /* a registered root or a pin */
#endif
#ifdef WEAK
byte wk;               /* a weak pointer */
#endif
#ifdef EPH
byte eo, ek, ev;       /* eo is an ephemeron: its value ev lives while eo and the key ek do */
#endif
#ifdef FORK
bit forked;
#endif
#ifdef PARK
byte pk, pko;          /* a loam_stack of one word, and its thread */
#endif
#ifdef MSTACK
byte mk, mko;          /* a managed stack of one word, and who has entered it */
bit mvis, msc;         /* in this cycle a marker has come to its object; it was searched */
#endif
#ifdef FINE
byte taking;           /* s+1: the worker has taken span s from the queue and not read its marks yet */
byte pend;             /* the worker has read this from a field and not marked it yet */
byte fb[2];            /* what a thread is moving from its full buffer to the marks */
#endif
#ifdef WEAK_TORN
byte look[2];
#endif
#ifdef FREE
byte fr[2];            /* what the thread frees */
#endif

c_decl {
    static int reach(void);
    static int sole(int t, int x);
    static void canon(void);
}

c_code {
    typedef unsigned char u8;

    static int close_over(int m)
    {
        int i, before;
        do {
            before = m;
            for (i = 1; i <= NO; i++)
                if (m & (1 << i))
                    m |= 1 << now.fld[i];
#ifdef EPH
            if ((m & (1 << now.eo)) && (m & (1 << now.ek)))
                m |= 1 << now.ev;
#endif
        } while (m != before);
        return m & ~1;
    }

    static int roots(void)
    {
        int m = now.L[0] | now.L[1] | 1 << now.fld[0];
#ifdef ROOTS
        m |= 1 << now.root;
#endif
#ifdef PARK
        m |= 1 << now.pk;
#endif
#ifdef MSTACK
        m |= 1 << now.mk;
#endif
        return m;
    }

    /* What the program can touch. */
    static int reach(void) { return close_over(roots()); }

    /* The contract of loam_free: thread t holds the only pointer to x. */
    static int sole(int t, int x)
    {
        int r, keep = now.L[t];
        now.L[t] &= ~(1 << x);
        r = reach();
        now.L[t] = keep;
        return !(r >> x & 1) && (now.st[!t] == IDLE || now.st[!t] == BLOCKED);
    }

    /* The renamings: any order of the spans of one kind, any order of the slots within each. */
    static struct perm { u8 obj[8], span[4], set[256]; } perms[64];
    static int nperms;

    static void make_perms(void)
    {
        static const u8 orders[6][3] = {{0,1,2},{1,0,2},{0,2,1},{2,1,0},{1,2,0},{2,0,1}};
        int a, s, i, m, flips;
        for (a = 0; a < 6; a++) {
            int ok = 1;
            for (s = 0; s < 3; s++)
                if (s < NS ? orders[a][s] >= NS || (NOSCAN >> s & 1) != (NOSCAN >> orders[a][s] & 1)
                           : orders[a][s] != s)
                    ok = 0;
            for (flips = 0; ok && flips < (SPS == 2 ? 1 << NS : 1); flips++) {
                struct perm *p = &perms[nperms++];
                for (s = 0; s < NS; s++) {
                    p->span[s] = orders[a][s];
                    for (i = 0; i < SPS; i++)
                        p->obj[1 + s * SPS + i] = 1 + orders[a][s] * SPS + (i ^ (flips >> s & 1));
                }
                for (m = 0; m < 256; m++) {
                    int r = m & 1;
                    for (i = 1; i <= NO; i++)
                        if (m & (1 << i))
                            r |= 1 << p->obj[i];
                    p->set[m] = r;
                }
            }
        }
    }

    /* The globals of `from` under renaming p, threads exchanged if w is 1. */
    static void rename_state(State *to, const State *from, const struct perm *p, int w)
    {
        int i, t;
#define SET(x) to->x = p->set[from->x]
#define OBJ(x) to->x = p->obj[from->x]
#define THR(x) to->x = w ? ((from->x) & 1) << 1 | ((from->x) >> 1 & 1) : from->x   /* a set of threads, or t+1 */
        SET(alloc); SET(mark); SET(scanned); SET(todo); THR(req);
        to->fld[0] = p->obj[from->fld[0]];
        for (i = 1; i <= NO; i++)
            to->fld[p->obj[i]] = p->obj[from->fld[i]];
        to->queued = 0;
        for (i = 0; i < NS; i++) {
            to->gen[p->span[i]] = from->gen[i];
            if (from->queued & (1 << i))
                to->queued |= 1 << p->span[i];
        }
        for (i = 0; i < NS; i++)
            to->own[p->span[i]] = w && (from->own[i] == 1 || from->own[i] == 2) ? 3 - from->own[i] : from->own[i];
        for (t = 0; t < 2; t++) {
            to->L[t] = p->set[from->L[t ^ w]];
            to->rest[t] = p->set[from->rest[t ^ w]];
            to->buf[t] = p->set[from->buf[t ^ w]];
            to->st[t] = from->st[t ^ w];
            to->black[t] = from->black[t ^ w];
#ifdef SEQ
            to->tgt[t] = p->obj[from->tgt[t ^ w]];
            to->val[t] = p->obj[from->val[t ^ w]];
#ifdef STORE_FIRST
            to->old[t] = p->obj[from->old[t ^ w]];
#endif
#endif
#ifdef FINE
            to->fb[t] = p->set[from->fb[t ^ w]];
#endif
#ifdef PAY
            to->pay[t] = from->pay[t ^ w];
#endif
#ifdef WEAK_TORN
            to->look[t] = from->look[t ^ w];
#endif
#ifdef FREE
            to->fr[t] = p->obj[from->fr[t ^ w]];
#endif
        }
#ifdef THREADS
        THR(alive);
#endif
#ifdef BLOCK
        THR(claim);
#endif
#ifdef ROOTS
        OBJ(root);
#endif
#ifdef WEAK
        OBJ(wk);
#endif
#ifdef EPH
        OBJ(eo); OBJ(ek); OBJ(ev);
#endif
#ifdef PARK
        OBJ(pk); THR(pko);
#endif
#ifdef MSTACK
        OBJ(mk); THR(mko);
#endif
#ifdef FINE
        OBJ(pend);
        to->taking = from->taking ? p->span[from->taking - 1] + 1 : 0;
#endif
    }

    /* After every step: forget what nobody can read, and rename to the least of all equal states. */
    static void canon(void)
    {
        static State best, try;
        unsigned long long least = ~0ull, key;
        int i, m, w, n = 0;

        m = roots() | now.buf[0] | now.buf[1] | now.todo | (now.mark & ~now.scanned);
#ifdef WEAK
        m |= 1 << now.wk;
#endif
#ifdef FINE
        m |= 1 << now.pend | now.fb[0] | now.fb[1];
#endif
#ifdef SEQ
        m |= 1 << now.tgt[0] | 1 << now.tgt[1] | 1 << now.val[0] | 1 << now.val[1];
#endif
#ifdef STORE_FIRST
        m |= 1 << now.old[0] | 1 << now.old[1];
#endif
#ifdef CONS
        m |= now.alloc;
#endif
        m = close_over(m);
#ifdef EPH
        if (m >> now.eo & 1)
            m = close_over(m | 1 << now.ek | 1 << now.ev);
        else if (!(now.mark >> now.eo & 1))
            now.eo = now.ek = now.ev = 0;
#endif
        for (i = 1; i <= NO; i++)
            if (!(m & (1 << i)))
                now.fld[i] = 0;
#ifndef NOSYM
        if (!nperms)
            make_perms();
        static u8 tie[128];
#if defined(LIVE) || defined(ONE) /* fairness tells the threads apart */
        for (w = 0; w < 1; w++)
#else
        for (w = 0; w < (NL0 == NL1 ? 2 : 1); w++)
#endif
            for (i = 0; i < nperms; i++) {
                const struct perm *p = &perms[i];
                key = p->set[now.alloc];
                key = key << 8 | p->set[now.mark];
                key = key << 8 | p->set[now.L[w]];
                key = key << 8 | p->set[now.L[!w]];
                key = key << 8 | p->set[now.rest[w]];
                key = key << 8 | p->set[now.scanned];
                key = key << 8 | p->set[now.buf[w]];
                key = key << 8 | p->obj[now.fld[0]];
                if (key < least) {
                    least = key;
                    n = 0;
                }
                if (key == least)
                    tie[n++] = w << 6 | i;
            }
        if (n == 1 && tie[0] == 0)
            return;
        memcpy(&best, &now, offsetof(State, sv));
        memcpy(&try, &now, offsetof(State, sv));
        rename_state(&best, &now, &perms[tie[0] & 63], tie[0] >> 6);
        for (i = 1; i < n; i++) {
            rename_state(&try, &now, &perms[tie[i] & 63], tie[i] >> 6);
            if (memcmp(&try, &best, offsetof(State, sv)) < 0)
                memcpy(&best, &try, offsetof(State, sv));
        }
        memcpy(&now, &best, offsetof(State, sv));
#endif
    }
}

/* ------------------------------------------------------------------ marking */

#define DONE c_code { canon(); }
#if NS == 1
#define EACH_SPAN(X) X(0)
#define ANY_SPAN(X) (X(0))
#elif NS == 2
#define EACH_SPAN(X) X(0) X(1)
#define ANY_SPAN(X) (X(0) || X(1))
#else
#define EACH_SPAN(X) X(0) X(1) X(2)
#define ANY_SPAN(X) (X(0) || X(1) || X(2))
#endif

/* x becomes any member of the set m, which is not empty. */
inline pick(x, m) {
    x = 1;
    do
    :: ((m) & OB(x)) -> break
    :: ((m) >> (x+1)) -> x++
    od
}

/* Marks what of m is allocated and not marked, and queues its spans.  tmp becomes what was new. */
inline markset(m) {
    tmp = (m) & alloc & ~mark & ALLOBJ;
    mark = mark | tmp;
#if defined(EPH) && !defined(EPH_NOSCAN_KEY)
    /* nobody scans a noscan key: the ephemeron is looked at when the key is marked */
    if
    :: (tmp & OB(ek) & ~SCANOBJ) && (mark & OB(eo)) ->
        tmp = tmp | (OB(ev) & alloc & ~mark & ALLOBJ); mark = mark | tmp
    :: else
    fi;
#endif
    queued = queued | SPANSOF(tmp & ~scanned & SCANOBJ)
}

/* ------------------------------------------------------------------ what a thread sees of the world */

#define ACKED(t,h)   (hs == (h) && !(req & TB(t)))
#define PENDING(t,h) (hs == (h) && (req & TB(t)))

/* May thread t read the flag as 0, as 1?  Exactly with SEQ, else also late. */
#ifdef SEQ
#define READ0(t)     (!flag)
#define READ1(t)     (flag)
#elif defined(OFF_EARLY)
#define READ0(t)     (!flag || hs == H_NONE || PENDING(t,H_ON) || ACKED(t,H_FLUSH))
#define READ1(t)     (flag && !ACKED(t,H_FLUSH))
#else
#define READ0(t)     (!flag || hs == H_NONE || PENDING(t,H_ON))
#ifndef SKIP_OFF
#define READ1(t)     (flag || (markdone && hs == H_FLUSH) || PENDING(t,H_OFF))
#else
#define READ1(t)     (flag || (markdone && hs == H_FLUSH) || PENDING(t,H_GIVEBACK))
#endif
#endif

#ifdef FLIP_APART
bit flipped, newborn[2];
#define POSTFLIP(t)  (black[t] && flipped && !newborn[t])
#else
#define POSTFLIP(t)  (black[t] && hs == H_GIVEBACK)
#endif

/* Into the buffer of thread t; what is marked already would make no difference there. */
#define SHADE(t,m)   buf[t] = (buf[t] | (m)) & ~mark & ALLOBJ
#ifdef DEL_REMOVED
#define SHADE_STORE(t,old,new) SHADE(t, OB(new))
#elif defined(INS_REMOVED)
#define SHADE_STORE(t,old,new) SHADE(t, OB(old))
#else
#define SHADE_STORE(t,old,new) SHADE(t, OB(old)|OB(new))
#endif

/* If the flag is set, what a library call makes unreachable or reachable is shaded. */
inline shade(t, m) {
    if
    :: READ1(t) -> SHADE(t, m)
    :: READ0(t) -> skip
    fi
}

/* A word that only looks like a pointer. */
#ifdef CONS
byte cons;
#define CONS_WORD | cons
#define CONS_PICK if :: alloc -> pick(cons, alloc); cons = OB(cons) :: skip fi;
#define CONS_END ; cons = 0
#define FULL(t) (buf[t] || READ1(t))
#else
#define CONS_WORD
#define CONS_PICK
#define CONS_END
#define FULL(t) buf[t]
#endif

/* Hands over the buffer: marks, and dirties the round.  After [mark-done] there is nothing left to mark. */
inline handover(t) {
    if
#ifndef LATE_FLUSH_MARKS
    :: markdone -> skip
    :: else ->
#else
    :: true ->
#endif
        markset(buf[t] CONS_WORD);
        if :: tmp -> unclean = 1 :: else fi
    fi;
    tmp = 0; buf[t] = 0
}
/* ------------------------------------------------------------------ acknowledgements */

inline blacken(t) {
    black[t] = 1;
#ifndef NO_REST
    mark = mark | rest[t]; scanned = scanned | rest[t]
#endif
}

#ifdef PARK
#define PARKED(t) | ((pko & TB(t)) -> OB(pk) : 0)
#elif defined(MSTACK)
#define PARKED(t) | ((mko & TB(t)) -> OB(mk) : 0)
#define INMARK      (!markdone && (draining || hs == H_SCAN || hs == H_FLUSH))
#define ANSWERED(t) (hs == H_FLUSH || ACKED(t, H_SCAN))
#else
#define PARKED(t)
#endif
#ifdef REGS
#define REG(t) | OB(old[t]) | OB(val[t])
#else
#define REG(t)
#endif

/* The rest of the run is free again, and the span nobody's. */
inline giveback(t) {
    mark = mark & ~rest[t]; scanned = scanned & ~rest[t]; alloc = alloc & ~rest[t]; rest[t] = 0;
    uncache(t)
}
inline uncache(t) {
    tmp = 0;
    do
    :: tmp < NS -> if :: own[tmp] == t+1 -> own[tmp] = 0 :: else fi; tmp++
    :: else -> break
    od;
    tmp = 0
}

/* What thread t does at its acknowledgement, or the collector for it. */
inline acknowledge(t) {
    if
    :: hs == H_ON ->
#ifdef MERGE_ON_BLACK
        blacken(t)
#else
        skip
#endif
    :: hs == H_BLACK ->
        blacken(t)
    :: hs == H_SCAN ->
#ifdef MERGE_BLACK_SCAN
        blacken(t);
#endif
        CONS_PICK
        words = L[t] PARKED(t) REG(t) CONS_WORD; markset(words); words = 0 CONS_END
#ifdef MSTACK
        ; if :: (mko & TB(t)) -> msc = 1 :: else fi
#endif
    :: hs == H_FLUSH ->
        words = buf[t] REG(t); markset(words); words = 0; buf[t] = 0;
        if :: tmp -> unclean = 1 :: else fi
    :: hs == H_OFF ->
        buf[t] = 0;
#ifdef WHITE_AT_OFF
        giveback(t); black[t] = 0
#endif
    :: hs == H_GIVEBACK ->
        giveback(t); black[t] = 0; buf[t] = 0
    fi;
    tmp = 0;
    req = req & ~TB(t)
}

#ifdef MSTACK
inline msearch() {
    markset(OB(mk)); if :: tmp -> unclean = 1 :: else fi; tmp = 0;
    if :: INMARK -> msc = 1 :: else fi
}
#endif

/* ------------------------------------------------------------------ allocation */

#define GENOF(t)    (POSTFLIP(t) -> UNSWEPT : SWEPT)
#define FREEIN(s)   (SLOTS(s) & ~alloc)
#ifdef ALLOC_UNSWEPT
#define MAYTAKE(t,s) (gen[s] == UNUSED || gen[s] == SWEPT || !black[t])
#elif defined(BLACK_NEWGEN)
#define MAYTAKE(t,s) (gen[s] == UNUSED || gen[s] == SWEPT)
#else
#define MAYTAKE(t,s) (gen[s] == UNUSED || gen[s] == GENOF(t))
#endif
#define CANREFILL(t,s) (FREEIN(s) && (own[s] == t+1 || (own[s] == 0 && MAYTAKE(t,s))))

/* Takes span s into the cache of thread t, and of it a run: all free slots, or one. */
inline refill(t, s) {
    uncache(t);
    own[s] = t+1;
#ifdef BLACK_NEWGEN
    if :: gen[s] == UNUSED -> gen[s] = SWEPT :: else fi;
#else
    if :: gen[s] == UNUSED -> gen[s] = GENOF(t) :: else fi;
#endif
    if
    :: rest[t] = FREEIN(s)
    :: (FREEIN(s) & (FREEIN(s)-1)) -> pick(o, FREEIN(s)); rest[t] = OB(o); o = 0
    fi;
    alloc = alloc | rest[t];
    if :: black[t] -> blacken(t) :: else fi
}

/* v becomes a local of thread t, in the place of another if there is no room. */
#define MANY(m)     (((m) & ((m)-1)) != 0)
#define ROOM(t)     (L[t] == 0 || ((t -> NL1 : NL0) > 1 && !MANY(L[t])))
inline tolocal(t, v) {
    assert(v == 0 || (alloc & OB(v)));
    if
    :: v == 0 || (L[t] & OB(v)) -> skip
    :: v && !(L[t] & OB(v)) && ROOM(t) -> L[t] = L[t] | OB(v)
    :: v && !(L[t] & OB(v)) && !ROOM(t) -> pick(o, L[t]); L[t] = (L[t] & ~OB(o)) | OB(v); o = 0
    fi
}

/* ------------------------------------------------------------------ sweeping */

#ifdef SWEEP_CACHED
#define SWEEPABLE(s) (gen[s] == UNSWEPT)
#else
#define SWEEPABLE(s) (gen[s] == UNSWEPT && own[s] == 0)
#endif
inline sweep(s) {
    tmp = alloc & SLOTS(s) & ~mark;
    assert(c_expr { !(now.tmp & reach()) });
    alloc = alloc & ~tmp;
#ifdef WEAK
    if :: (tmp & OB(wk)) -> wk = 0 :: else fi;
#endif
#ifdef EPH
    if :: (tmp & (OB(eo)|OB(ek))) -> eo = 0; ek = 0; ev = 0 :: else fi;
#endif
#if !defined(CLEAR_IN_ON) && !defined(CLEAR_IN_BLACK)
    mark = mark & ~SLOTS(s); scanned = scanned & ~SLOTS(s);
#endif
    gen[s] = ((alloc & SLOTS(s)) -> SWEPT : UNUSED);
    tmp = 0
}
#ifndef FINE
#define SWEEPSTEP(s) :: atomic { SWEEPABLE(s) -> sweep(s); DONE }
#else
#define SWEEPSTEP(s) :: atomic { SWEEPABLE(s) -> own[s] = SWEEPER; DONE } :: atomic { own[s] == SWEEPER -> sweep(s); own[s] = 0; DONE }
#endif

/* ------------------------------------------------------------------ a program thread */

#define RUNS(t)   (st[t] == IDLE && (alive & TB(t)))
#ifdef SLOW_ACK
#define CANACK(t) (req & alive & TB(t))
#else
#define CANACK(t) ((req & alive & TB(t)) && (st[t] == IDLE || st[t] == FAST || st[t] == STORED))
#endif
#ifdef NO_RESTART
#define RESTART(t)
#else
#define RESTART(t) if :: st[t] == FAST -> st[t] = IDLE; tgt[t] = 0; val[t] = 0 :: else fi;
#endif

/* The target and the value of a store: a field of a local or the global slot; a local or NULL. */
#ifdef EPH
#define FIELDS (SCANOBJ & ~OB(eo))          /* an ephemeron has no other field */
#else
#define FIELDS SCANOBJ
#endif
inline choose(t, x, v) {
    if :: x = 0 :: (L[t] & FIELDS) -> pick(x, L[t] & FIELDS) fi;
    if :: v = 0 :: L[t] -> pick(v, L[t]) fi
}

#ifdef EPH
#define KEYDEAD (!(mark & OB(ek)) && (markdone || gen[SPANOF(ek)] == UNSWEPT))
#endif
#if defined(WEAK_DIRECT) || defined(WEAK_BUFFER)
#define WEAKDEAD 0
#elif defined(WEAK_GENONLY)
#define WEAKDEAD (!(mark & OB(wk)) && gen[SPANOF(wk)] == UNSWEPT)
#elif defined(WEAK)
#define WEAKDEAD (!(mark & OB(wk)) && (markdone || gen[SPANOF(wk)] == UNSWEPT))
#endif

/* A weak reference to x becomes strong: under the weak lock. */
inline weakmark(t, x) {
    if
    :: READ1(t) && !markdone -> markset(OB(x)); if :: tmp -> unclean = 1 :: else fi; tmp = 0
    :: READ0(t) || markdone -> skip
    fi
}

/* Does a cycle mark?  FREE_IN_END: or has it done so, and not flipped yet. */
#ifdef FREE_IN_END
#define FREE_MARKS (markdone || (hs != H_NONE && hs != H_GIVEBACK))
#else
#define FREE_MARKS (!markdone && hs != H_NONE && hs != H_GIVEBACK)
#endif

#ifdef PAY
#define PAYABLE(t,s) (own[s] == 0 && gen[s] == (pay[t] == 1 -> UNSWEPT : SWEPT))
#define PAYABLE_T(s) PAYABLE(t,s)
#define PAYSTEP(s)   :: PAYABLE(t,s) -> sweep(s)
#define PAYERS       (st[0] == PAYING || st[1] == PAYING)
#else
#define PAYERS       0
#endif
#define REFILLSTEP(s) :: CANREFILL(t,s) -> refill(t, s)
#define CANREFILL_T(s) CANREFILL(t,s)

proctype thread(byte t) {
end:
    do
#ifndef LIVE
    :: atomic { CANACK(t) ->
#ifdef SEQ
            RESTART(t)
#endif
            acknowledge(t); DONE }
#endif

    /* load, drop */
    :: atomic { RUNS(t) && fld[0] -> tolocal(t, fld[0]); DONE }
    :: atomic { RUNS(t) && (L[t] & SCANOBJ) ->
            pick(tm2, L[t] & SCANOBJ); tm2 = fld[tm2]; tolocal(t, tm2); tm2 = 0; DONE }
    :: atomic { RUNS(t) && L[t] -> pick(o, L[t]); L[t] = L[t] & ~OB(o); o = 0; DONE }

    /* [alloc], [refill] */
    :: atomic { RUNS(t) && rest[t] ->
            pick(tm2, rest[t]); rest[t] = rest[t] & ~OB(tm2); fld[tm2] = 0;
#ifndef ALLOC_UNSWEPT
            assert(black[t] || gen[SPANOF(tm2)] == SWEPT);
#endif
            tolocal(t, tm2); tm2 = 0; DONE }
    :: atomic { RUNS(t) && !rest[t] && ANY_SPAN(CANREFILL_T) -> if EACH_SPAN(REFILLSTEP) fi;
#ifdef NORUN
            pick(tm2, rest[t]); rest[t] = rest[t] & ~OB(tm2); fld[tm2] = 0; tolocal(t, tm2); tm2 = 0;
#endif
            DONE }

    /* [store] */
#ifndef SEQ
    :: atomic { RUNS(t) ->
            choose(t, tmp, tm2);
            if
            :: READ1(t) -> SHADE_STORE(t, fld[tmp], tm2)
            :: READ0(t) -> skip
            fi;
            fld[tmp] = tm2; tmp = 0; tm2 = 0; DONE }
#elif defined(STORE_FIRST)
    :: atomic { RUNS(t) -> choose(t, tgt[t], val[t]); old[t] = fld[tgt[t]]; st[t] = FAST; DONE }
    :: atomic { st[t] == FAST ->
#ifdef XCHG_FIRST
            old[t] = fld[tgt[t]];
#endif
            fld[tgt[t]] = val[t]; tgt[t] = 0; st[t] = STORED; DONE }
    :: atomic { st[t] == STORED ->
            if :: READ1(t) -> SHADE_STORE(t, old[t], val[t]) :: else fi;
            old[t] = 0; val[t] = 0; st[t] = IDLE; DONE }
#else
    :: atomic { RUNS(t) ->
            choose(t, tgt[t], val[t]);
            if
#ifdef LOAD_STORE
            :: READ1(t) -> SHADE_STORE(t, fld[tgt[t]], val[t]); st[t] = SLOW
#else
            :: READ1(t) -> SHADE_STORE(t, 0, val[t]); st[t] = SLOW
#endif
            :: READ0(t) -> st[t] = FAST
            fi; DONE }
    :: atomic { st[t] == FAST -> fld[tgt[t]] = val[t]; tgt[t] = 0; val[t] = 0; st[t] = IDLE; DONE }
    :: atomic { st[t] == SLOW ->
            tmp = fld[tgt[t]]; fld[tgt[t]] = val[t]; tgt[t] = 0; val[t] = tmp; st[t] = SWAPPED;
#ifdef LOAD_STORE
            val[t] = 0;
#endif
            tmp = 0; DONE }
    :: atomic { st[t] == SWAPPED -> SHADE_STORE(t, val[t], 0); val[t] = 0; st[t] = IDLE; DONE }
    :: atomic { st[t] == SLOW && buf[t] -> handover(t); DONE }
#endif

    /* [buffer-full] */
#ifndef FINE
    :: atomic { RUNS(t) && FULL(t) -> CONS_PICK handover(t) CONS_END; DONE }
#else
    :: atomic { RUNS(t) && FULL(t) ->
            CONS_PICK
            if
            :: markdone -> skip
            :: else ->
                fb[t] = (buf[t] CONS_WORD) & alloc & ~mark;
                if
                :: fb[t] -> st[t] = FLUSHING;
#if !defined(DIRTY_LATE) && !defined(DONE_APART)
                    unclean = 1
#endif
                :: else
                fi
            fi;
            buf[t] = 0 CONS_END; DONE }
    :: atomic { st[t] == FLUSHING -> fb[t] = fb[t] & alloc & ~mark; mark = mark | fb[t]; st[t] = PUSHING;
#ifdef DONE_APART
            unclean = 1;
#endif
            DONE }
    :: atomic { st[t] == PUSHING ->
            queued = queued | SPANSOF(fb[t] & ~scanned & SCANOBJ); fb[t] = 0; st[t] = IDLE;
#ifdef DIRTY_LATE
            unclean = 1;
#endif
            DONE }
#endif

#ifdef FREE
    /* [free]: loam_free. The slot is free at once; while a cycle marks, what it pointed to is marked before, and an
       object that is not marked dirties the round: it may lie in another thread's buffer, whose owner's answer would
       have done so, and now finds nothing; what was loaded from it lies in this thread's */
    :: atomic { RUNS(t) && L[t] ->
            pick(tm2, L[t]);
            c_code { now.tmp = sole(Pthread->t, now.tm2); };
            if
            :: tmp -> tmp = 0;
#if defined(FREE_BUFFER) || defined(FREE_UNSHADED)
                L[t] = L[t] & ~OB(tm2); alloc = alloc & ~OB(tm2);
#ifdef FREE_BUFFER
                shade(t, OB(fld[tm2]));
#endif
#else
                if
                :: FREE_MARKS -> fr[t] = tm2; st[t] = FREEING
                :: else -> L[t] = L[t] & ~OB(tm2); alloc = alloc & ~OB(tm2)
                fi;
#endif
#ifdef WEAK
                if :: wk == tm2 -> wk = 0 :: else fi;
#endif
                tm2 = 0
            :: else -> tm2 = 0
            fi; DONE }
    :: atomic { st[t] == FREEING ->
            markset(OB(fld[fr[t]])); if :: tmp -> unclean = 1 :: else fi; tmp = 0;
#ifndef FREE_CLEAN
            if :: !(mark & OB(fr[t])) -> unclean = 1 :: else fi;
#endif
            L[t] = L[t] & ~OB(fr[t]); alloc = alloc & ~OB(fr[t]); fr[t] = 0; st[t] = IDLE; DONE }
#endif

#ifdef PAY
    /* [pay]: the lists of the unswept go by the parity of the generation; a thread that has read the one before the flip
       finds what has been swept since */
#ifdef PAY_UNASKED
    :: atomic { RUNS(t) -> pay[t] = 1; st[t] = PAYING; DONE }
#else
    :: atomic { RUNS(t) && !sweepdone -> pay[t] = 1; st[t] = PAYING; DONE }
#endif
    :: atomic { st[t] == PAYING && ANY_SPAN(PAYABLE_T) -> if EACH_SPAN(PAYSTEP) fi; pay[t] = 0; st[t] = IDLE; DONE }
    :: atomic { st[t] == PAYING && !ANY_SPAN(PAYABLE_T) -> pay[t] = 0; st[t] = IDLE; DONE }
#endif

#ifdef ROOTS
    /* [add-root]: loam_add_roots, loam_pin shade what becomes a root. [remove-root]: the code shades, where it
       can; dlclose cannot, so here nothing is shaded */
    :: atomic { RUNS(t) && root -> tolocal(t, root); DONE }
    :: atomic { RUNS(t) && !root && L[t] ->
            pick(root, L[t]);
#ifndef ADD_UNSHADED
            shade(t, OB(root));
#endif
            DONE }
    :: atomic { RUNS(t) && root ->
#ifdef REMOVE_SHADED
            shade(t, OB(root));
#endif
            root = 0; DONE }
#endif

#ifdef PARK
    /* [stack]: plain reads and writes of a thread's own loam_stack; taking over another's shades what it holds */
    :: atomic { RUNS(t) && (pko & TB(t)) && pk -> tolocal(t, pk); DONE }
    :: atomic { RUNS(t) && (pko & TB(t)) -> if :: pk = 0 :: L[t] -> pick(pk, L[t]) fi; DONE }
    :: atomic { RUNS(t) && !(pko & TB(t)) ->
            pko = TB(t);
#ifndef PARK_UNSHADED
            shade(t, OB(pk));
#endif
            DONE }
#endif

#ifdef MSTACK
    /* [mstack]: plain reads and writes of a managed stack by who has entered it. While a cycle marks it is searched by who
       enters it, if that was not done, and by who leaves it, unless it was done and he has answered [H-SCAN] */
    :: atomic { RUNS(t) && (mko & TB(t)) && mk -> tolocal(t, mk); DONE }
    :: atomic { RUNS(t) && (mko & TB(t)) -> if :: mk = 0 :: L[t] -> pick(mk, L[t]) fi; DONE }
    :: atomic { RUNS(t) && !mko ->
            mko = TB(t);
#ifndef MS_ENTER_UNSEARCHED
            if :: INMARK && !msc -> msearch() :: else fi;
#endif
            DONE }
    :: atomic { RUNS(t) && (mko & TB(t)) ->
#ifdef MS_ANYBODY_COUNTS
            if :: flag && !markdone && !(INMARK && msc) -> msearch() :: else fi;
#elif !defined(MS_LEAVE_UNSEARCHED)
            if :: flag && !markdone && !(INMARK && ANSWERED(t) && msc) -> msearch() :: else fi;
#endif
            mko = 0; DONE }
    /* another stack in its place: no marker comes to an object that was allocated black */
    :: atomic { RUNS(t) && !mko -> mk = 0; mvis = black[t]; msc = 0; DONE }
#endif

#ifdef WEAK
    /* [weak] */
    :: atomic { RUNS(t) && !wk && L[t] -> pick(wk, L[t]); DONE }
#ifdef WEAK_TORN
    :: atomic { RUNS(t) && wk -> look[t] = 1 + (markdone || gen[SPANOF(wk)] == UNSWEPT); st[t] = LOOKING; DONE }
    :: atomic { st[t] == LOOKING && !wk -> look[t] = 0; st[t] = IDLE; DONE }
    :: atomic { st[t] == LOOKING && wk ->
            if
            :: look[t] == 2 && !(mark & OB(wk)) -> assert(c_expr { !(reach() >> now.wk & 1) })
            :: else -> weakmark(t, wk); tolocal(t, wk)
            fi;
            look[t] = 0; st[t] = IDLE; DONE }
#else
    :: atomic { RUNS(t) && wk ->
            if
            :: WEAKDEAD -> assert(c_expr { !(reach() >> now.wk & 1) })
            :: else ->
#ifdef WEAK_BUFFER
                shade(t, OB(wk));
#else
                weakmark(t, wk);
#endif
                tolocal(t, wk)
            fi; DONE }
#endif
#endif

#ifdef EPH
    /* [ephemeron]: loam_ephemeron_make(key, value). eo is the new ephemeron; the value is stored as any pointer is */
    :: atomic { RUNS(t) && !eo && (L[t] & SCANOBJ) ->
            pick(eo, L[t] & SCANOBJ);
            if
            :: fld[eo] -> eo = 0
            :: else ->
                pick(ek, L[t]); pick(ev, L[t]);
                if :: fld[ek] -> ev = fld[ek] :: skip fi;
#ifndef EPH_MAKE_PLAIN
                shade(t, OB(ev))
#endif
            fi; DONE }
    :: atomic { RUNS(t) && eo && (L[t] & OB(eo)) ->
            if
            :: KEYDEAD -> assert(c_expr { !(reach() >> now.ek & 1) })
            :: else ->
#ifndef EPH_VALUE_PLAIN
                weakmark(t, ev);
#endif
                tolocal(t, ev)
            fi; DONE }
#endif

#ifdef THREADS
    /* [exit]: the end of a thread */
    :: atomic { RUNS(t) ->
#ifdef EXIT_DROPS
            buf[t] = 0;
#elif defined(EXIT_UNCOUNTED)
            markset(buf[t]); tmp = 0; buf[t] = 0;
#else
            handover(t);
#endif
            giveback(t);
#ifdef PARK
            if :: (pko & TB(t)) -> pko = 3 & ~TB(t); pk = 0 :: else fi;
#endif
#ifdef MSTACK
            if :: (mko & TB(t)) -> if :: flag && !markdone -> msearch() :: else fi; mko = 0 :: else fi;
#endif
            L[t] = 0; black[t] = 0; alive = alive & ~TB(t);
#ifndef EXIT_OWES
            req = req & ~TB(t);
#endif
            DONE }
#ifdef LIVE
    :: atomic { !(alive & TB(t)) -> DONE }      /* perhaps nobody comes */
#endif
    /* [attach]: a new one takes the phase and enters the registry in one step */
    :: atomic { !(alive & TB(t)) ->
            alive = alive | TB(t);
#ifndef ATT_STALE
            black[t] = gblack;
#endif
#ifdef FLIP_APART
            newborn[t] = flipped;
#endif
#ifdef ATT_ARG
            if :: L[1-t] -> pick(o, L[1-t]); L[t] = OB(o); o = 0 :: skip fi;
#endif
            DONE }
#endif

#ifdef BLOCK
    /* [block], [unblock] */
    :: atomic { RUNS(t) -> st[t] = BLOCKED; DONE }
#ifdef LIVE
    :: atomic { st[t] == BLOCKED -> DONE }      /* for as long as it likes */
#endif
#ifdef BK_NOLOCK
    :: atomic { st[t] == BLOCKED ->
#else
    :: atomic { st[t] == BLOCKED && claim != t+1 ->
#endif
            st[t] = IDLE;
#ifdef LIVE
            if :: (req & TB(t)) -> acknowledge(t) :: else fi;
#endif
            DONE }
#endif

#ifdef FORK
    /* [fork]: the child has this thread alone, and no cycle */
    :: atomic { RUNS(t) ->
            alive = TB(t); L[1-t] = 0; buf[0] = 0; buf[1] = 0; st[1-t] = IDLE;
            tm2 = 1-t; giveback(tm2); tm2 = 0; black[0] = 0; black[1] = 0;
            flag = 0; gblack = 0; draining = 0; unclean = 0; markdone = 0; hs = H_NONE; req = 0;
            queued = 0; todo = 0;
#ifndef FORK_KEEPS_MARKS
            mark = 0; scanned = 0;
#endif
            do
            :: tmp < NS -> if :: gen[tmp] == UNSWEPT -> gen[tmp] = SWEPT :: else fi; tmp++
            :: else -> break
            od;
            tmp = 0; forked = 1; DONE }
#endif
    od
}

#ifdef LIVE
/* The signal reaches the thread whatever else it does. */
proctype signal(byte t) {
end:
    do
    :: atomic { CANACK(t) -> acknowledge(t); DONE }
    od
}
#endif

#ifdef BLOCK
/* [block]: the collector acts for a blocked thread: claims it, so that it cannot return, and acknowledges. */
proctype proxy() {
end:
    do
    :: atomic { !claim && (st[0] == BLOCKED && (req & TB(0)) || st[1] == BLOCKED && (req & TB(1))) ->
            if
            :: st[0] == BLOCKED && (req & TB(0)) -> claim = 1
            :: st[1] == BLOCKED && (req & TB(1)) -> claim = 2
            fi;
            if :: hs == H_SCAN -> markset(L[claim-1]); tmp = 0 :: else fi; DONE }
    :: atomic { claim ->
            tm2 = claim-1; claim = 0;
            if
            :: !(req & TB(tm2)) -> skip
            :: (req & TB(tm2)) && hs == H_SCAN -> req = req & ~TB(tm2)
            :: (req & TB(tm2)) && hs != H_SCAN ->
#ifdef BK_STALE
                req = req & ~TB(tm2)
#else
                acknowledge(tm2)
#endif
            fi;
            tm2 = 0; DONE }
    od
}
#endif

/* ------------------------------------------------------------------ the collector's worker and sweeper */

/* Object x is looked into. */
inline scan(x, word) {
    markset(OB(word));
#ifdef EPH
#ifndef EPH_NO_OWN_SIDE
    if :: x == eo && (mark & OB(ek)) -> markset(OB(ev)) :: else fi;
#endif
#ifndef EPH_NO_KEY_SIDE
    if :: x == ek && (mark & OB(eo)) -> markset(OB(ev)) :: else fi;
#endif
#endif
    tmp = 0
}

#ifdef FINE
#define WORKER_IDLE (!queued && !todo && !taking && !pend)
#elif defined(MSTACK)
#define WORKER_IDLE (!queued && !todo && mvis)
#else
#define WORKER_IDLE (!queued && !todo)
#endif

proctype worker() {
end:
    do
#ifdef MSTACK
    :: atomic { draining && !mvis ->
            mvis = 1;
            if :: !mko -> markset(OB(mk)); tmp = 0; msc = 1 :: else fi; DONE }
#endif
#ifndef FINE
    :: atomic { draining && !todo && queued ->
            tmp = 0;
            do
            :: (queued & SB(tmp)) -> break
            :: (queued >> (tmp+1)) -> tmp++
            od;
            queued = queued & ~SB(tmp);
            todo = mark & ~scanned & SLOTS(tmp) & SCANOBJ; scanned = scanned | todo;
            tmp = 0; DONE }
    :: atomic { todo -> pick(o, todo); todo = todo & ~OB(o); scan(o, fld[o]); o = 0; DONE }
#else
    :: atomic { draining && !todo && !pend && !taking && queued ->
            do
            :: (queued & SB(taking)) -> break
            :: (queued >> (taking+1)) -> taking++
            od;
            taking++;
#ifdef QUEUE_LATE
            todo = mark & ~scanned & SLOTS(taking-1) & SCANOBJ; scanned = scanned | todo;
#else
            queued = queued & ~SB(taking-1);
#endif
            DONE }
    :: atomic { taking ->
#ifdef QUEUE_LATE
            queued = queued & ~SB(taking-1);
#else
            todo = mark & ~scanned & SLOTS(taking-1) & SCANOBJ; scanned = scanned | todo;
#endif
            taking = 0; DONE }
    :: atomic { todo && !pend && !taking ->
            pick(o, todo); todo = todo & ~OB(o); pend = fld[o]; scan(o, 0); o = 0; DONE }
    :: atomic { pend -> markset(OB(pend)); pend = 0; tmp = 0; DONE }
#endif
    od
}

proctype sweeper() {
end:
    do
    EACH_SPAN(SWEEPSTEP)
    od
}

/* ------------------------------------------------------------------ the collector */

#define UNSWEPT_S(s) (gen[s] == UNSWEPT)
#define ALLSWEPT     (!ANY_SPAN(UNSWEPT_S))
#define ALLACKED     (req == 0)
#define POST(h)      hs = h; req = alive
#ifdef ROOTS
#define ROOTSET      (OB(fld[0]) | OB(root))
#else
#define ROOTSET      OB(fld[0])
#endif

inline flip() {
    tmp = 0;
    do
    :: tmp < NS -> if :: gen[tmp] == SWEPT -> gen[tmp] = UNSWEPT :: else fi; tmp++
    :: else -> break
    od;
#ifdef PAY
    sweepdone = 0;
    if :: pay[0] -> pay[0] = 2 :: else fi;
    if :: pay[1] -> pay[1] = 2 :: else fi;
#endif
    tmp = 0
}

proctype collector() {
again:
    {
    do
    :: /* [sweep-done] */
#if defined(SWEEP_IN_ON) || defined(SWEEP_IN_BLACK)
       atomic { ALLACKED -> hs = H_NONE; DONE }
#else
       atomic { ALLACKED && ALLSWEPT && !PAYERS ->
           hs = H_NONE;
#ifdef PAY
           sweepdone = 1;
#endif
#if !defined(CLEAR_IN_ON) && !defined(CLEAR_IN_BLACK)
           assert(!mark && !scanned && !queued && !buf[0] && !buf[1]);
#endif
#ifdef FLIP_APART
           flipped = 0; newborn[0] = 0; newborn[1] = 0;
#endif
           DONE }
#endif
progress:
       /* [H-ON] */
#ifdef MSTACK
       atomic { mvis = 0; msc = 0; DONE }
#endif
       atomic { flag = 1; DONE }
#ifdef MERGE_ON_BLACK
       atomic { gblack = 1; POST(H_ON); DONE }
#else
       atomic { POST(H_ON); DONE }
#endif
#ifdef CLEAR_IN_ON
       atomic { mark = 0; scanned = 0; DONE }
#endif
#ifdef SWEEP_IN_ON
       ALLSWEPT;
#endif
       /* [H-BLACK] */
#if !defined(MERGE_ON_BLACK) && !defined(MERGE_BLACK_SCAN)
       atomic { ALLACKED -> gblack = 1; POST(H_BLACK); DONE }
#endif
#ifdef CLEAR_IN_BLACK
       atomic { mark = 0; scanned = 0; DONE }
#endif
#ifdef SWEEP_IN_BLACK
       ALLSWEPT;
#endif
       /* [roots] */
#ifdef ROOTS_LATE
       atomic { ALLACKED -> draining = 1; DONE }
#else
       atomic { ALLACKED -> draining = 1; markset(ROOTSET); tmp = 0; DONE }
#endif
       /* [H-SCAN] */
       atomic { gblack = 1; POST(H_SCAN); DONE }
#ifdef ROOTS_LATE
       atomic { ALLACKED -> markset(ROOTSET); tmp = 0; DONE }
#endif
       do
       :: /* [drain] */
#ifdef DRAIN_IN_ROUND
          atomic { ALLACKED && WORKER_IDLE -> DONE }
#else
          atomic { ALLACKED && WORKER_IDLE -> draining = 0; DONE }
#endif
          /* [H-FLUSH] */
          atomic { unclean = 0; POST(H_FLUSH); DONE }
          atomic {
#ifdef DRAIN_IN_ROUND
              ALLACKED && WORKER_IDLE ->
#else
              ALLACKED ->
#endif
              if
#ifdef NO_QUEUE_LOOK
              :: unclean ->
#else
              :: unclean || queued ->
#endif
                  unclean = 0; draining = 1; DONE;
#ifdef ONE_ROUND
                  WORKER_IDLE -> draining = 0; markdone = 1; DONE; break
#endif
              :: else -> markdone = 1; draining = 0; DONE; break      /* [mark-done] */
              fi }
       od;
       /* [H-OFF] */
       atomic { flag = 0; DONE }
#ifndef SKIP_OFF
       atomic { POST(H_OFF); DONE }
#endif
       /* [flip], [H-GIVEBACK], and [sweep] from here on */
#ifdef FLIP_TELLS_FIRST
       atomic { ALLACKED -> sweepdone = 0; DONE }
#endif
#ifdef FLIP_APART
       atomic { ALLACKED -> flip(); flipped = 1; DONE }
       atomic { markdone = 0; gblack = 0; POST(H_GIVEBACK); DONE }
#elif defined(FLIP_LATE)
       atomic { ALLACKED -> markdone = 0; gblack = 0; POST(H_GIVEBACK); DONE }
       atomic { flip(); DONE }
#else
       atomic { ALLACKED -> flip(); markdone = 0; gblack = 0; POST(H_GIVEBACK); DONE }
#endif
    od
    }
#ifdef FORK
    unless { atomic { forked -> forked = 0; DONE }; goto again }
#endif
}

init {
    atomic {
#ifdef PARK
        pko = TB(0);
#endif
#ifdef PREP_EPH /* a quicker start: the global slot holds ephemeron 1, thread 0 its key 2; nothing else holds value 3 */
        alloc = ALLOBJ; gen[0] = SWEPT; gen[1] = SWEPT; gen[2] = SWEPT; eo = 1; ek = 2; ev = 3; fld[0] = 1; L[0] = OB(2);
#endif
#ifdef PREP_QUEUE /* 1 and 2 share a span; the stack's 2 points to 3 */
        alloc = OB(1)|OB(2)|OB(3); gen[0] = SWEPT; gen[1] = SWEPT; fld[0] = 1; L[0] = OB(2); fld[2] = 3;
#endif
#ifdef PREP_DEAD /* garbage: 1, known to a weak pointer, points to 2 */
        alloc = OB(1)|OB(2); gen[0] = SWEPT; gen[1] = SWEPT; fld[1] = 2; wk = 1;
#endif
        run thread(0);
#ifndef ONE
        run thread(1);
#endif
        run collector(); run worker(); run sweeper();
#ifdef LIVE
        run signal(0); run signal(1);
#endif
#if defined(BLOCK) && !defined(NO_PROXY)
        run proxy();
#endif
    }
}
