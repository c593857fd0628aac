// Alloc: what one small allocation costs, its share of collection included. The twin of
// bench/alloc.c. Go has no macros and its generic functions do not know the size of a type, so the
// loops are written out: each allocates a type of constant size, as real programs do.
package main

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"loam.bench/report"
)

type job struct {
	count, window uint64
	ns            int64
	sum           uint64
}

type typed16 struct {
	link [2]unsafe.Pointer
}

type typed32 struct {
	link [2]unsafe.Pointer
	rest [16]byte
}

type typed64 struct {
	link [2]unsafe.Pointer
	rest [48]byte
}

type typed256 struct {
	link [2]unsafe.Pointer
	rest [240]byte
}

type typed1024 struct {
	link [2]unsafe.Pointer
	rest [1008]byte
}

// In each loop: keep the last `window` objects, drop the oldest; read from it before.

func noscan16(j *job, gate *sync.WaitGroup) {
	window := make([]*[2]uint64, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([2]uint64)
		p[0] = i
		if old := window[slot]; old != nil {
			sum += old[0]
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func typed16Loop(j *job, gate *sync.WaitGroup) {
	window := make([]*typed16, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new(typed16)
		if old := window[slot]; old != nil {
			sum++
			if old.link[1] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func untyped16(j *job, gate *sync.WaitGroup) {
	window := make([]*[2]unsafe.Pointer, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([2]unsafe.Pointer)
		if old := window[slot]; old != nil {
			sum++
			if old[0] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func noscan32(j *job, gate *sync.WaitGroup) {
	window := make([]*[4]uint64, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([4]uint64)
		p[0] = i
		if old := window[slot]; old != nil {
			sum += old[0]
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func typed32Loop(j *job, gate *sync.WaitGroup) {
	window := make([]*typed32, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new(typed32)
		if old := window[slot]; old != nil {
			sum++
			if old.link[1] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func untyped32(j *job, gate *sync.WaitGroup) {
	window := make([]*[4]unsafe.Pointer, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([4]unsafe.Pointer)
		if old := window[slot]; old != nil {
			sum++
			if old[0] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func noscan64(j *job, gate *sync.WaitGroup) {
	window := make([]*[8]uint64, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([8]uint64)
		p[0] = i
		if old := window[slot]; old != nil {
			sum += old[0]
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func typed64Loop(j *job, gate *sync.WaitGroup) {
	window := make([]*typed64, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new(typed64)
		if old := window[slot]; old != nil {
			sum++
			if old.link[1] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func untyped64(j *job, gate *sync.WaitGroup) {
	window := make([]*[8]unsafe.Pointer, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([8]unsafe.Pointer)
		if old := window[slot]; old != nil {
			sum++
			if old[0] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func noscan256(j *job, gate *sync.WaitGroup) {
	window := make([]*[32]uint64, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([32]uint64)
		p[0] = i
		if old := window[slot]; old != nil {
			sum += old[0]
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func typed256Loop(j *job, gate *sync.WaitGroup) {
	window := make([]*typed256, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new(typed256)
		if old := window[slot]; old != nil {
			sum++
			if old.link[1] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func untyped256(j *job, gate *sync.WaitGroup) {
	window := make([]*[32]unsafe.Pointer, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([32]unsafe.Pointer)
		if old := window[slot]; old != nil {
			sum++
			if old[0] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func noscan1024(j *job, gate *sync.WaitGroup) {
	window := make([]*[128]uint64, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([128]uint64)
		p[0] = i
		if old := window[slot]; old != nil {
			sum += old[0]
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func typed1024Loop(j *job, gate *sync.WaitGroup) {
	window := make([]*typed1024, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new(typed1024)
		if old := window[slot]; old != nil {
			sum++
			if old.link[1] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

func untyped1024(j *job, gate *sync.WaitGroup) {
	window := make([]*[128]unsafe.Pointer, j.window)
	slot, sum := uint64(0), uint64(0)
	gate.Done()
	gate.Wait()
	began := report.NowNS()
	for i := uint64(0); i < j.count; i++ {
		p := new([128]unsafe.Pointer)
		if old := window[slot]; old != nil {
			sum++
			if old[0] != nil {
				sum++
			}
		}
		window[slot] = p
		if slot++; slot == j.window {
			slot = 0
		}
	}
	j.ns = report.NowNS() - began
	j.sum = sum
}

var loops = map[string]func(*job, *sync.WaitGroup){
	"noscan-16":    noscan16,
	"typed-16":     typed16Loop,
	"untyped-16":   untyped16,
	"noscan-32":    noscan32,
	"typed-32":     typed32Loop,
	"untyped-32":   untyped32,
	"noscan-64":    noscan64,
	"typed-64":     typed64Loop,
	"untyped-64":   untyped64,
	"noscan-256":   noscan256,
	"typed-256":    typed256Loop,
	"untyped-256":  untyped256,
	"noscan-1024":  noscan1024,
	"typed-1024":   typed1024Loop,
	"untyped-1024": untyped1024,
}

func main() {
	kind := flag.String("kind", "noscan", "noscan, typed or untyped")
	bytes := flag.Uint64("bytes", 16, "16, 32, 64, 256 or 1024")
	threads := flag.Int("threads", 1, "goroutines")
	count := flag.Uint64("count", 50000000, "allocations of each goroutine")
	window := flag.Uint64("window", 10000, "objects of each goroutine alive")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	report.SetGCPercent(*gogc)

	loop := loops[fmt.Sprintf("%s-%d", *kind, *bytes)]
	if loop == nil {
		fmt.Fprintln(os.Stderr, "-kind noscan|typed|untyped, -bytes 16|32|64|256|1024")
		os.Exit(2)
	}
	jobs := make([]job, *threads)
	var gate, done sync.WaitGroup
	gate.Add(*threads)
	for i := range jobs {
		jobs[i] = job{count: *count, window: *window}
		done.Add(1)
		go func() {
			loop(&jobs[i], &gate)
			done.Done()
		}()
	}
	done.Wait()

	ns := int64(0)
	sum := uint64(0)
	for i := range jobs {
		ns += jobs[i].ns
		sum += jobs[i].sum
	}
	report.Begin("alloc")
	report.String("kind", *kind)
	report.Count("bytes", *bytes)
	report.Count("threads", uint64(*threads))
	report.Count("count", *count)
	report.Real("ns_per_alloc", float64(ns)/float64(*count*uint64(*threads)))
	report.Count("cycles", report.Cycles())
	report.End(sum)
}
