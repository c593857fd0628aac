// Ring: a queue of messages; each push allocates one and drops the oldest. The twin of bench/ring.c.
package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"

	"loam.bench/report"
)

const maxBytes = 1 << 16

var (
	ring [][]byte
	body [maxBytes]byte
)

func main() {
	slots := flag.Uint64("messages", 200000, "messages alive")
	bytes := flag.Uint64("bytes", 1024, "bytes of a message")
	pushes := flag.Uint64("pushes", 10000000, "messages pushed")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	report.SetGCPercent(*gogc)

	if *slots < 1 || *bytes < 8 || *bytes > maxBytes {
		fmt.Fprintf(os.Stderr, "-messages from 1, -bytes from 8 to %d\n", maxBytes)
		os.Exit(2)
	}
	for i := range body {
		body[i] = byte(i * 7)
	}

	ring = make([][]byte, *slots)
	var latency report.Hist
	sum := uint64(0)
	slot := uint64(0)
	began := report.NowNS()
	before := began
	for i := uint64(0); i < *pushes; i++ {
		message := make([]byte, *bytes)
		copy(message, body[:])
		binary.NativeEndian.PutUint64(message, i)
		if old := ring[slot]; old != nil {
			sum = sum*31 + binary.NativeEndian.Uint64(old) + uint64(old[*bytes-1])
		}
		ring[slot] = message
		if slot++; slot == *slots {
			slot = 0
		}
		now := report.NowNS()
		latency.Add(uint64(now - before))
		before = now
	}
	report.Begin("ring")
	report.Count("pushes", *pushes)
	report.Real("seconds", float64(before-began)/1e9)
	report.Latency(&latency)
	report.Histogram("op_hist_ns", &latency)
	report.Count("cycles", report.Cycles())
	report.End(sum)
}
