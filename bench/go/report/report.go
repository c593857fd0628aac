// Package report is bench/report.h in Go: clock, random numbers, histogram and result line of the
// twins. Nothing in it allocates while a benchmark runs.
package report

import (
	"fmt"
	"math"
	"math/bits"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"
	_ "unsafe" // for go:linkname
)

// NowNS reads CLOCK_MONOTONIC alone, as clock_ns does in C; time.Now would read the wall clock too.
//
//go:linkname NowNS runtime.nanotime
func NowNS() int64

// RNG is SplitMix64: the same sequence as in C from the same seed.
type RNG uint64

func (r *RNG) Next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// Below gives a number in [0, n), n < 2^32.
func (r *RNG) Below(n uint64) uint64 {
	return ((r.Next() >> 32) * n) >> 32
}

const (
	stepBits = 5
	steps    = 1 << stepBits
	maxBits  = 40
	buckets  = (maxBits - stepBits + 1) * steps
)

// Hist is log-linear; see struct hist in bench/report.h.
type Hist struct {
	Count, Sum, Max uint64
	bucket          [buckets]uint64
}

func index(value uint64) uint {
	if value < steps {
		return uint(value)
	}
	shift := uint(63-bits.LeadingZeros64(value)) - stepBits
	i := (shift+1)*steps + uint(value>>shift-steps)
	return min(i, buckets-1)
}

func upper(i uint) uint64 {
	if i < steps {
		return uint64(i)
	}
	return uint64(steps+i%steps+1)<<(i/steps-1) - 1
}

func (h *Hist) Add(value uint64) {
	h.Count++
	h.Sum += value
	h.bucket[index(value)]++
	if value > h.Max {
		h.Max = value
	}
}

func (h *Hist) AddMany(value, count uint64) {
	h.Count += count
	h.Sum += value * count
	h.bucket[index(value)] += count
	if count > 0 && value > h.Max {
		h.Max = value
	}
}

func (h *Hist) Merge(from *Hist) {
	h.Count += from.Count
	h.Sum += from.Sum
	h.Max = max(h.Max, from.Max)
	for i := range h.bucket {
		h.bucket[i] += from.bucket[i]
	}
}

func (h *Hist) Percentile(share float64) uint64 {
	wanted := uint64(share * float64(h.Count))
	seen := uint64(0)
	for i := uint(0); i < buckets; i++ {
		seen += h.bucket[i]
		if seen > wanted {
			return min(upper(i), h.Max)
		}
	}
	return h.Max
}

// Pauses follows the stops of the collector.
type Pauses struct {
	ByCycle Hist // MemStats.PauseNs: both stops of a cycle together
	Single  Hist // /sched/pauses/total/gc:seconds: each stop, by the lower end of its bucket
	Cycles  uint64
	Lost    uint64

	stats  debug.GCStats
	sample []metrics.Sample
	before []uint64
}

// Begin forgets what was before.
func (p *Pauses) Begin() {
	p.sample = []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(p.sample)
	p.before = append(p.before[:0], p.sample[0].Value.Float64Histogram().Counts...)
	debug.ReadGCStats(&p.stats)
	p.Cycles = uint64(p.stats.NumGC)
	p.ByCycle = Hist{}
	p.Lost = 0
}

// Take must be called more than once in 256 cycles. By ReadGCStats and not ReadMemStats, which would
// stop the world itself.
func (p *Pauses) Take() {
	debug.ReadGCStats(&p.stats)
	fresh := uint64(p.stats.NumGC) - p.Cycles
	if n := uint64(len(p.stats.Pause)); fresh > n {
		p.Lost += fresh - n
		fresh = n
	}
	for _, pause := range p.stats.Pause[:fresh] {
		p.ByCycle.Add(uint64(pause))
	}
	p.Cycles = uint64(p.stats.NumGC)
}

// End fills Single. The lower end of a bucket is used, so that Go is never charged with more than it
// has measured.
func (p *Pauses) End() {
	p.Take()
	metrics.Read(p.sample)
	h := p.sample[0].Value.Float64Histogram()
	for i, count := range h.Counts {
		seconds := h.Buckets[i]
		if math.IsInf(seconds, 0) || seconds < 0 {
			seconds = 0
		}
		p.Single.AddMany(uint64(math.Round(seconds*1e9)), count-p.before[i])
	}
}

// Cycles gives the number of collections since the program began.
func Cycles() uint64 {
	var stats debug.GCStats
	debug.ReadGCStats(&stats)
	return uint64(stats.NumGC)
}

// SetGCPercent is -gogc: 0 leaves GOGC of the environment alone.
func SetGCPercent(percent int) {
	if percent > 0 {
		debug.SetGCPercent(percent)
	}
}

// Sleep is sleep_ns.
func Sleep(ns int64) {
	time.Sleep(time.Duration(ns))
}

// AsJSON chooses between one line of JSON and a table.
var AsJSON bool

func key(key string) {
	if AsJSON {
		fmt.Printf(", %q: ", key)
	} else {
		fmt.Printf("%-24s", key)
	}
}

func endOfValue() {
	if !AsJSON {
		fmt.Println()
	}
}

func String(name, value string) {
	key(name)
	if AsJSON {
		fmt.Printf("%q", value)
	} else {
		fmt.Print(value)
	}
	endOfValue()
}

func Count(name string, value uint64) {
	key(name)
	fmt.Print(value)
	endOfValue()
}

func Real(name string, value float64) {
	key(name)
	fmt.Printf("%.6f", value)
	endOfValue()
}

// Histogram prints [lower bound in ns, how many] for each power of two that occurs.
func Histogram(name string, h *Hist) {
	var octave [maxBits + 1]uint64
	for i := uint(0); i < buckets; i++ {
		octave[max(bits.Len64(upper(i)), 1)-1] += h.bucket[i]
	}
	key(name)
	fmt.Print("[")
	separator := ""
	for bit, count := range octave {
		if count != 0 {
			fmt.Printf("%s[%d, %d]", separator, uint64(1)<<bit, count)
			separator = ", "
		}
	}
	fmt.Print("]")
	endOfValue()
}

func Latency(h *Hist) {
	Real("ns_per_op", float64(h.Sum)/math.Max(float64(h.Count), 1))
	Count("p50_ns", h.Percentile(0.5))
	Count("p99_ns", h.Percentile(0.99))
	Count("p99_9_ns", h.Percentile(0.999))
	Count("p99_99_ns", h.Percentile(0.9999))
	Count("max_ns", h.Max)
}

func Begin(bench string) {
	if AsJSON {
		fmt.Printf("{\"bench\": %q", bench)
	} else {
		fmt.Printf("%-24s%s\n", "bench", bench)
	}
	String("peer", "go")
}

func End(checksum uint64) {
	Count("peak_rss_bytes", peakRSS())
	String("checksum", fmt.Sprintf("%016x", checksum))
	if AsJSON {
		fmt.Println("}")
	}
}

// Lost ends a program whose heap is not what it was.
func Lost(what string) {
	fmt.Fprintf(os.Stderr, "a %s was lost\n", what)
	os.Exit(1)
}

// Resident is the resident set now.
func Resident() uint64 {
	var size, pages uint64
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscanf(string(text), "%d %d", &size, &pages)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "no /proc/self/statm")
		os.Exit(1)
	}
	return pages * 4096
}

func peakRSS() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	var kib uint64
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "VmHWM: %d", &kib); n == 1 {
			break
		}
	}
	return kib * 1024
}
