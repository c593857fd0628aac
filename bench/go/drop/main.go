// Drop: how soon memory goes back to the system when little of a large heap stays alive.
// The twin of bench/drop.c, line by line.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"loam.bench/report"
)

const bodyBytes = 1016

type piece struct {
	before *piece
	body   [bodyBytes]byte
}

var all []*piece

func fill(n uint64) {
	all = make([]*piece, n)
	for i := range all {
		p := new(piece)
		if i%16 != 0 {
			p.before = all[i-1]
		}
		for k := range p.body {
			p.body[k] = byte(i)
		}
		all[i] = p
	}
}

func drop(from uint64) {
	clear(all[from:])
}

func main() {
	peak := flag.Float64("peak", 2, "GiB")
	live := flag.Float64("live", 200, "MiB that stay")
	seconds := flag.Float64("seconds", 10, "idle")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	report.SetGCPercent(*gogc)
	n := uint64(*peak * 1048576.0)
	stay := uint64(*live * 1024.0)
	if n < 1 || stay > n {
		fmt.Fprintln(os.Stderr, "-peak GiB, -live MiB, not more than that")
		os.Exit(2)
	}
	before := report.Resident()
	fill(n)
	full := report.Resident() - before
	drop(stay)
	runtime.GC()
	wanted := before + (stay*(bodyBytes+8)+n*8)/5*6
	began := report.NowNS()
	var reached int64
	for float64(report.NowNS()-began) < *seconds*1e9 {
		if reached == 0 && report.Resident() <= wanted {
			reached = report.NowNS() - began
		}
		report.Sleep(20000000)
	}
	after := report.Resident() - before
	askedAt := report.NowNS()
	debug.FreeOSMemory()
	asking := uint64(report.NowNS() - askedAt)
	asked := report.Resident() - before

	sum := uint64(0)
	for i, p := range all[:stay] {
		sum = sum*31 + uint64(p.body[i%bodyBytes])
	}
	report.Begin("drop")
	report.Count("full_bytes", full)
	report.Real("seconds_to_live", float64(reached)/1e9)
	report.Count("after_bytes", after)
	report.Count("asked_bytes", asked)
	report.Count("asking_ns", asking)
	report.End(sum)
}
