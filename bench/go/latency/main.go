// Latency: what each operation takes while a collector works beside it, and for how long it stops.
// The twin of bench/latency.c, line by line.
package main

import (
	"flag"
	"log"
	"math"
	"os"
	"runtime"
	"runtime/trace"
	"sync/atomic"

	"loam.bench/report"
)

const (
	treeLevels  = 12
	freshLevels = 5
	ringSlots   = 1 << 14
	bodyBytes   = 496
	sampleNS    = 20 * 1000 * 1000
	nodeBytes   = 48
	treeBytes   = (1<<treeLevels - 1) * nodeBytes
)

type node struct {
	left, right, parent *node
	key                 uint64
	check               uint64 // nodeCheck(key, level)
	spare               uint64
}

// A second object behind each message, so that a message that is freed too early shows.
type note struct {
	inverse uint64
	spare   [3]uint64
}

type message struct {
	about *note
	stamp uint64
	body  [bodyBytes]byte
}

type worker struct {
	rng           report.RNG
	first, ntrees uint64 // its share of the roots
	cursor        uint64 // in the ring
	ops           uint64
	sum           uint64 // of the messages received
	latency       report.Hist
}

var (
	roots   []*node
	ring    [ringSlots]atomic.Pointer[message]
	workers []worker

	// Written by main before the goroutines start.
	maxOps     uint64
	deadlineNS int64
	text       [bodyBytes]byte // of every message

	// Goroutines still at work: main watches it while it samples the pauses.
	running atomic.Int32
)

func nodeCheck(key uint64, level uint) uint64 {
	return (key^0x5bd1e9955bd1e995)*0x2545f4914f6cdd1d + uint64(level)
}

func grow(rng *report.RNG, parent *node, levels uint) *node {
	n := new(node)
	n.key = rng.Next()
	n.check = nodeCheck(n.key, levels)
	n.parent = parent
	if levels > 1 {
		n.left = grow(rng, n, levels-1)
		n.right = grow(rng, n, levels-1)
	}
	return n
}

// A random node `steps` below the root of a random tree of the worker's.
func pick(w *worker, steps uint) *node {
	n := roots[w.first+w.rng.Below(w.ntrees)]
	path := w.rng.Next()
	for i := uint(0); i < steps; i++ {
		if path>>i&1 != 0 {
			n = n.right
		} else {
			n = n.left
		}
	}
	return n
}

func opReplace(w *worker) {
	at := pick(w, treeLevels-freshLevels-1)
	fresh := grow(&w.rng, at, freshLevels)
	if fresh.key&1 != 0 {
		at.left = fresh
	} else {
		at.right = fresh
	}
}

func opSwap(w *worker) {
	a := pick(w, treeLevels-freshLevels-1)
	b := pick(w, treeLevels-freshLevels-1)
	fromA := a.left
	fromB := b.right
	a.left = fromB
	fromB.parent = a
	b.right = fromA
	fromA.parent = b
}

func (m *message) value() uint64 {
	if m.about.inverse != ^m.stamp || m.body[m.stamp%bodyBytes] != byte(m.stamp) {
		report.Lost("message")
	}
	return m.stamp
}

func opMessage(w *worker) {
	m := new(message)
	m.stamp = w.rng.Next()
	m.body = text
	m.body[m.stamp%bodyBytes] = byte(m.stamp)
	about := new(note)
	about.inverse = ^m.stamp
	m.about = about
	old := ring[w.cursor].Swap(m)
	w.cursor = (w.cursor + 1) % ringSlots
	if old != nil {
		w.sum += old.value()
	}
}

func plant(w *worker) {
	for i := uint64(0); i < w.ntrees; i++ {
		roots[w.first+i] = grow(&w.rng, nil, treeLevels)
	}
}

func change(w *worker) {
	before := report.NowNS()
	for w.ops < maxOps && before < deadlineNS {
		kind := w.rng.Next() >> 60
		if kind < 2 {
			opReplace(w)
		} else if kind < 6 {
			opSwap(w)
		} else {
			opMessage(w)
		}
		w.ops++
		now := report.NowNS()
		w.latency.Add(uint64(now - before))
		before = now
	}
}

// Sum of all keys; ends the program where a node is not what it was.
func treeSum(n, parent *node, levels uint) uint64 {
	if n == nil || n.check != nodeCheck(n.key, levels) || n.parent != parent {
		report.Lost("node")
	}
	if levels == 1 {
		return n.key
	}
	return n.key + treeSum(n.left, n, levels-1) + treeSum(n.right, n, levels-1)
}

// Run fn on each worker, and look at the collector's pauses until all have ended.
func run(fn func(*worker), pauses *report.Pauses) {
	running.Store(int32(len(workers)))
	done := make(chan struct{})
	for i := range workers {
		go func() {
			fn(&workers[i])
			if running.Add(-1) == 0 {
				close(done)
			}
		}()
	}
	for pauses != nil && running.Load() != 0 {
		report.Sleep(sampleNS)
		pauses.Take()
	}
	<-done
}

// startTrace returns what ends it.
func startTrace(name string) func() {
	if name == "" {
		return func() {}
	}
	f, err := os.Create(name)
	if err == nil {
		err = trace.Start(f)
	}
	if err != nil {
		log.Fatal(err)
	}
	return func() {
		trace.Stop()
		if err := f.Close(); err != nil {
			log.Fatal(err)
		}
	}
}

func main() {
	liveGiB := flag.Float64("live", 1, "GiB of live trees")
	seconds := flag.Float64("seconds", 30, "how long to change them")
	threads := flag.Int("threads", 2, "goroutines")
	flag.Uint64Var(&maxOps, "ops", 0, "operations of each goroutine, instead of -seconds")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	traceFile := flag.String("trace", "", "write an execution trace of the changes to this file")
	flag.Parse()
	report.SetGCPercent(*gogc)

	perThread := max(uint64(*liveGiB*1073741824.0)/treeBytes/uint64(*threads), 1)
	roots = make([]*node, perThread*uint64(*threads))
	workers = make([]worker, *threads)
	for i := range workers {
		w := &workers[i]
		w.rng = report.RNG(i + 1)
		w.first = uint64(i) * perThread
		w.ntrees = perThread
		w.cursor = uint64(i) * ringSlots / uint64(*threads)
	}
	for i := range text {
		text[i] = 'm'
	}
	run(plant, nil)
	runtime.GC()

	// Pauses while the heap grew are another question: only what comes from here on counts.
	var pauses report.Pauses
	pauses.Begin()
	buildCycles := pauses.Cycles

	stopTrace := startTrace(*traceFile)
	began := report.NowNS()
	deadlineNS = math.MaxInt64
	if maxOps == 0 {
		deadlineNS = began + int64(*seconds*1e9)
		maxOps = math.MaxUint64
	}
	run(change, &pauses)
	took := float64(report.NowNS()-began) / 1e9
	pauses.End()
	stopTrace()
	result(took, &pauses, buildCycles)
}

func result(seconds float64, pauses *report.Pauses, buildCycles uint64) {
	var all report.Hist
	var ops, sum uint64
	for i := range workers {
		all.Merge(&workers[i].latency)
		ops += workers[i].ops
		sum += workers[i].sum
	}
	for _, tree := range roots {
		sum += treeSum(tree, nil, treeLevels)
	}
	for i := range ring {
		if m := ring[i].Load(); m != nil {
			sum += m.value()
		}
	}
	report.Begin("latency")
	report.Count("live_bytes", uint64(len(roots))*treeBytes)
	report.Count("threads", uint64(len(workers)))
	report.Real("seconds", seconds)
	report.Count("ops", ops)
	report.Latency(&all)
	report.Histogram("op_hist_ns", &all)
	report.Count("build_cycles", buildCycles)
	report.Count("cycles", pauses.Cycles-buildCycles)
	report.Count("pause_max_ns", pauses.Single.Max)
	report.Count("pause_cycle_max_ns", pauses.ByCycle.Max)
	report.Count("pause_count", pauses.Single.Count)
	report.Count("pause_lost", pauses.Lost)
	report.Histogram("pause_hist_ns", &pauses.Single)
	report.End(sum)
}
