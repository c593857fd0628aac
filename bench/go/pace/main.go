// Pace: how a heap keeps to its goal, and to a memory limit, while a program changes its ways.
// The twin of bench/pace.c, line by line.
package main

import (
	"flag"
	"math"
	"sync"

	"loam.bench/report"
)

type node struct {
	anchor *node
	body   []byte
	place  uint64
	spare  [3]uint64
}

const (
	nodeSize   = 64
	bodyBytes  = 960
	tableSize  = 1 << 20
	frameWords = 64
	lookNS     = 1000000
)

type worker struct {
	rng        report.RNG
	longest    int64
	bytes, sum uint64
	window     []*node
	used       uint64
}

var (
	scenario string
	seconds  float64
	limitMiB float64
	nthreads uint64
	noscan   bool
	began    int64
	table    [tableSize]*node
	anchor   *node
	workers  []worker
)

func liveMiB(t float64) float64 {
	switch scenario {
	case "small":
		return 1
	case "large":
		return 400
	case "step-live":
		if t < 0.5 {
			return 32
		}
		return 64
	case "oscillate":
		return 64 + 32*math.Sin(8*math.Pi*t)
	case "limit":
		return limitMiB * (min(math.Floor(t*9), 8) + 1) / 10
	}
	return 64
}

func rateMiB(t float64) float64 {
	switch scenario {
	case "fast", "limit":
		return 0
	case "step-alloc":
		if t < 0.5 {
			return 50
		}
		return 200
	case "step-down":
		if t < 0.5 {
			return 200
		}
		return 50
	case "jitter":
		x := report.RNG(t * seconds * 50)
		return 200 * math.Pow(2, float64(x.Next()>>11)/(1<<52)-1)
	}
	return 200
}

func nodeBytes() uint64 {
	if noscan {
		return nodeSize + bodyBytes
	}
	return nodeSize
}

func nowT() float64 {
	return float64(report.NowNS()-began) / (seconds * 1e9)
}

func (w *worker) put(place uint64) {
	n := new(node)
	if noscan {
		n.body = make([]byte, bodyBytes)
		for i := range n.body {
			n.body[i] = byte(place)
		}
	}
	n.anchor = anchor
	n.place = place
	w.window[place] = n
	w.bytes += nodeBytes()
}

func (w *worker) resize(places uint64) {
	for ; w.used < places; w.used++ {
		w.put(w.used)
	}
	for w.used > places {
		w.used--
		w.window[w.used] = nil
	}
}

func placesAt(t float64) uint64 {
	bytes := float64(nodeBytes() + 8) // with its place in the window
	return uint64(liveMiB(t)*1048576/bytes/float64(nthreads)) + 1
}

func (w *worker) work() {
	owedFrom := report.NowNS()
	owed := 0.0
	for t := nowT(); t < 1; t = nowT() {
		rate := rateMiB(t) * 1048576 / float64(nthreads)
		places := placesAt(t)
		w.resize(places)
		before := report.NowNS()
		now, first, from := before, before, w.bytes
		owed += rate * float64(now-owedFrom) / 1e9
		owedFrom = now
		for now-first < lookNS && (rate == 0 || float64(w.bytes-from) < owed) {
			w.put(w.rng.Below(places))
			now = report.NowNS()
			w.longest = max(w.longest, now-before)
			before = now
		}
		owed -= float64(w.bytes - from)
		owed = min(owed, rate/10)
		if rate != 0 && now-first < lookNS {
			report.Sleep(lookNS - (now - first))
		}
	}
	w.resize(placesAt(1))
	for _, n := range w.window[:w.used] {
		if !noscan || n.body[bodyBytes-1] == byte(n.place) {
			w.sum += n.place
		}
		w.sum += n.anchor.place
	}
}

//go:noinline
func (w *worker) deep(depth int) uint64 {
	var frame [frameWords]*node
	for i := range frame {
		frame[i] = anchor
	}
	if depth == 0 {
		w.work()
	} else {
		w.deep(depth - 1)
	}
	return frame[w.used%frameWords].place
}

func (w *worker) main(number int) {
	most := uint64(0)
	for i := 0; i <= 100; i++ {
		most = max(most, placesAt(float64(i)/100))
	}
	w.window = make([]*node, most+most/8)
	w.rng = report.RNG(number + 1)
	if scenario == "stacks" {
		w.deep((1 << 20) / (frameWords * 8))
	} else {
		w.deep(0)
	}
}

func main() {
	flag.StringVar(&scenario, "scenario", "steady", "see bench/pace.c")
	flag.Float64Var(&seconds, "seconds", 10, "length")
	flag.Float64Var(&limitMiB, "limit", 256, "MiB")
	flag.Uint64Var(&nthreads, "threads", 2, "goroutines")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	report.SetGCPercent(*gogc)
	noscan = scenario == "noscan"
	anchor = &node{place: 1}
	if scenario == "globals" {
		for i := range table {
			table[i] = anchor
		}
	}
	began = report.NowNS()
	workers = make([]worker, nthreads)
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() { workers[i].main(i) })
	}
	var most, mostAt80 uint64
	for t := 0.0; t < 1; t = nowT() {
		bytes := report.Resident()
		most = max(most, bytes)
		if liveMiB(t) <= limitMiB*0.8 {
			mostAt80 = max(mostAt80, bytes)
		}
		report.Sleep(20000000)
	}
	all.Wait()
	var longest int64
	var bytes, sum uint64
	for i := range workers {
		longest = max(longest, workers[i].longest)
		bytes += workers[i].bytes
		sum += workers[i].sum
	}
	report.Begin("pace")
	report.String("scenario", scenario)
	report.Real("mib_per_s", float64(bytes)/1048576/seconds)
	report.Count("longest_ns", uint64(longest))
	report.Count("resident_bytes", most)
	report.Count("resident_at_80_bytes", mostAt80)
	report.End(sum)
}
