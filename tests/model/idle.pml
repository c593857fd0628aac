/* idle.pml - who puts work and who goes to sleep, checked by spin: is work ever left while a P is idle?
 *
 * src/sched/worker.c and monitor.c as they are: PS Ps, each with its queue, at most NW workers, producers that each put K
 * goroutines into the global queue and call sched_wake_p, and the monitor, which takes a P from a worker that is not busy
 * and makes workers. Who takes from the global queue may take one more, into its own. A goroutine's own code is one step in
 * which its worker is not busy; NSTUCK of them may wait in it for ever. What is done under sched.lock is one step, but
 * where its counters are read without it meanwhile. [p.retake] is taken as shown: who is busy knows whether it has a P.
 *
 * Options  PREP        begins with a goroutine in the queue of each P, none of them a worker's
 *          PREP_STUCK  begins with a worker that never comes back and has a goroutine in the queue of its P; another one has the
 *                      second P; no more can be made
 *          POLL        workers without work wait in the poll, which an event ends at any time
 * Unsafe   SLEEP_BLIND who sleeps does not look at the queues once more after it can be found
 *          WAKE_ONCE   who claimed the spinning and found the P gone does not look again
 *          POLL_BLIND  who has left others' queues to one who spins does not look at them before he polls
 *          LEAVE_VAINLY the monitor has claimed the spinning, can make no worker, and does not look again
 *          MAKE_PLAIN  a worker that is made does not spin, so that it may find work without a look for more
 */
#ifndef PS
#define PS 1
#endif
#ifndef NW
#define NW 2
#endif
#ifndef NPROD
#define NPROD 2
#endif
#ifndef K
#define K 2
#endif
#ifndef NBEGUN
#define NBEGUN NW
#endif
#ifndef EVENTS
#define EVENTS 2
#endif
#ifndef NSTUCK
#define NSTUCK 0
#endif
#define NONE 255
#if PS > 1
#define WORK (global != 0 || q[0] != 0 || q[1] != 0)
#else
#define WORK (global != 0 || q[0] != 0)
#endif

byte global, nidle = PS, spinning;
byte q[PS], stuck;
byte owner[PS];   /* 255: nobody's */
bool idle[PS];    /* in the list of idle Ps */
byte wp[NW];      /* the P that a worker takes for its own */
bool busy[NW], spins[NW], woken[NW], listed[NW], begun[NW];
bool wanted, starting, polling, poke;
byte events = EVENTS;

inline take_idle(p)   /* under lock */
{
	p = NONE;
	if
	:: idle[0] -> p = 0
#if PS > 1
	:: else -> if :: idle[1] -> p = 1 :: else fi
#else
	:: else
#endif
	fi;
	if :: p != NONE -> idle[p] = false; nidle-- :: else fi
}

inline give_idle(p)
{
	owner[p] = NONE; idle[p] = true; nidle++
}

inline own(w, p)
{
	wp[w] = p; owner[p] = w
}

/* Under lock: an idle P to who sleeps. p is NONE if there is no P, w if nobody sleeps. */
inline hand_idle_over(p, w, spin)
{
	w = 0;
	do
	:: w < NW && !listed[w] -> w++
	:: else -> break
	od;
	if
	:: w < NW && nidle != 0 -> take_idle(p); listed[w] = false; spins[w] = spin; own(w, p); woken[w] = true
	:: else -> p = (nidle != 0 -> 0 : NONE); w = NONE
	fi
}

inline wake_p(p, w)
{
	do
	:: nidle == 0 -> break
	:: else ->
		atomic { if :: spinning != 0 -> break :: else -> spinning = 1 fi };
		atomic { hand_idle_over(p, w, true) };
		if :: w != NONE -> break :: else fi;
		spinning--;
		if
		:: p != NONE ->
			if :: polling -> poke = true :: else -> wanted = true fi;
			break
		:: else
#ifdef WAKE_ONCE
			-> break
#endif
		fi
	od
}

inline acquire_p(w, p)
{
	if
	:: atomic { nidle == 0 -> p = NONE }
	:: else -> atomic { take_idle(p); if :: p != NONE -> own(w, p) :: else fi }
	fi
}

inline sleep_idle(w, p, v)
{
	atomic { woken[w] = false; listed[w] = true };
#ifndef SLEEP_BLIND
	if :: WORK -> wake_p(p, v) :: else fi;
#endif
	atomic { p = 0; v = 0; busy[w] = false };
	atomic { woken[w] -> busy[w] = true }
}

proctype worker(byte w)
{
	byte p, v;
	bool spun;
	atomic { begun[w] -> busy[w] = true; starting = false };
again:
	atomic { p = 0; v = 0; spun = false; if :: wp[w] != NONE && owner[wp[w]] != w -> wp[w] = NONE :: else fi };
	if
	:: wp[w] == NONE ->
		acquire_p(w, p);
		if
		:: p == NONE ->
			atomic { if :: spins[w] -> spins[w] = false; spinning-- :: else fi };
			sleep_idle(w, p, v);
			goto again
		:: else
		fi
	:: else
	fi;
	/* look_for_work */
	atomic { spun = false; if :: q[wp[w]] != 0 -> q[wp[w]]--; spun = true :: else fi };
	if
	:: !spun ->
		atomic {
			if
			:: global != 0 ->
				global--; spun = true;
				if :: global != 0 -> global--; q[wp[w]]++ :: true fi
			:: else
			fi
		}
	:: else
	fi;
	if
	:: !spun ->
		if
		:: atomic { !spins[w] -> spins[w] = true; spinning++ }
		:: spinning != 0
		fi;
#if PS > 1
		atomic { if :: spins[w] && q[1 - wp[w]] != 0 -> q[1 - wp[w]]--; spun = true :: else fi }
#endif
	:: else
	fi;
	if
	:: !spun ->
		/* go_idle */
		atomic {
			if
			:: global != 0 -> goto again
			:: else -> p = wp[w]; give_idle(p); wp[w] = NONE
			fi
		};
		atomic { spun = spins[w]; if :: spun -> spins[w] = false; spinning-- :: else fi };
		if
#ifdef POLL_BLIND
		:: spun && WORK ->
#else
		:: WORK ->
#endif
			acquire_p(w, p);
			atomic { if :: p != NONE -> spins[w] = true; spinning++ :: else fi };
			goto again
		:: else
		fi;
#ifdef POLL
		spun = false;
		atomic { if :: !polling -> polling = true; spun = true :: else fi };
		if
		:: spun ->   /* there is nothing to wait for any more */
			polling = false;
			spun = false
		:: spun
		:: else
		fi;
		if
		:: spun ->
			busy[w] = false;
			if
			:: atomic { poke -> poke = false }
			:: atomic { events > 0 -> events-- }
			fi;
			busy[w] = true;
			polling = false;
			acquire_p(w, p);
			if :: p != NONE -> spins[w] = true; spinning++ :: else fi;
			goto again
		:: else
		fi;
#endif
		sleep_idle(w, p, v);
		goto again
	:: else
	fi;
	atomic { spun = (spins[w] && spinning == 1); if :: spins[w] -> spins[w] = false; spinning-- :: else fi };
	if :: spun -> wake_p(p, v) :: else fi;
	atomic { p = 0; v = 0; spun = false; busy[w] = false };   /* the goroutine's own code */
	if
	:: busy[w] = true
	:: atomic { stuck < NSTUCK -> stuck++ }; false
	fi;
	goto again
}

proctype producer()
{
	byte i, p, w;
	do
	:: i < K ->
		atomic { global++ };
		wake_p(p, w);
		atomic { p = 0; w = 0; i++ }
	:: else -> break
	od
}

#define TAKEABLE(p) ((global != 0 || q[p] != 0) && owner[p] != NONE && !busy[owner[p]])

inline pass_on(p, w)
{
	atomic { give_idle(p) };
	if :: q[p] != 0 || global != 0 -> wake_p(p, w) :: else fi;
	atomic { p = 0; w = 0 }
}

inline make(w)   /* under lock */
{
	w = 0;
	do
	:: w < NW && begun[w] -> w++
	:: else -> break
	od
}

proctype monitor()
{
	byte p, w;
	bool claimed;
	do
	:: wanted ->
		wanted = false;
#ifdef MAKE_PLAIN
		atomic {
			hand_idle_over(p, w, false)
		};
		atomic {
			if
			:: w == NONE && !starting -> make(w); if :: w < NW -> starting = true; begun[w] = true :: else fi
			:: else
			fi;
			p = 0; w = 0
		}
#else
		atomic { claimed = (spinning == 0); if :: claimed -> spinning = 1 :: else fi };
		if
		:: claimed ->
			atomic {
				hand_idle_over(p, w, true);
				if
				:: w == NONE && p != NONE ->
					make(w);
					if :: w < NW -> starting = true; spins[w] = true; begun[w] = true :: else -> w = NONE fi
				:: else
				fi
			};
			if
			:: w == NONE ->
				spinning--;
#ifndef LEAVE_VAINLY
				atomic { w = 0; do :: w < NW && !listed[w] -> w++ :: else -> break od };
				if
				:: p == NONE || w < NW -> wake_p(p, w)
				:: else -> if :: polling -> poke = true :: else fi
				fi
#endif
			:: else
			fi
		:: else
		fi;
		atomic { p = 0; w = 0; claimed = false }
#endif
	:: atomic { TAKEABLE(0) -> p = 0; owner[0] = NONE }; pass_on(p, w)
#if PS > 1
	:: atomic { TAKEABLE(1) -> p = 1; owner[1] = NONE }; pass_on(p, w)
#endif
	:: timeout ->
		assert(!WORK);
		break
	od
}

init
{
	byte i;
	atomic {
#ifdef PREP_STUCK
		nidle = 0; stuck = 1; wanted = true;
		owner[0] = 1; q[0] = 1; wp[1] = 0; begun[1] = true;
		owner[1] = 0; wp[0] = 1; begun[0] = true;
		run worker(0);
#else
		do
#ifdef PREP
		:: i < PS -> owner[i] = NONE; idle[i] = true; q[i] = 1; wanted = true; i++
#else
		:: i < PS -> owner[i] = NONE; idle[i] = true; i++
#endif
		:: else -> break
		od;
		i = 0;
		do
		:: i < NW -> wp[i] = NONE; begun[i] = (i < NBEGUN); run worker(i); i++
		:: else -> break
		od;
#endif
		i = 0;
		do
		:: i < NPROD -> run producer(); i++
		:: else -> break
		od;
		run monitor()
	}
}
