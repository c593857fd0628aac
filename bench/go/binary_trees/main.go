// The Benchmarks Game's binary trees. The twin of bench/binary_trees.c.
package main

import (
	"flag"
	"strconv"
	"sync"

	"loam.bench/report"
)

const minDepth = 4

type node struct {
	left, right *node
}

var longLived *node

func build(depth uint) *node {
	if depth == 0 {
		return &node{}
	}
	return &node{build(depth - 1), build(depth - 1)}
}

func count(n *node) uint64 {
	if n.left == nil {
		return 1
	}
	return 1 + count(n.left) + count(n.right)
}

// All trees of one depth; the main goroutine works too, so that one thread means no other.
func buildAll(depth uint, ntrees uint64, threads uint64) uint64 {
	nodes := make([]uint64, threads)
	share := func(i uint64) {
		mine := ntrees / threads
		if i < ntrees%threads {
			mine++
		}
		sum := uint64(0)
		for ; mine > 0; mine-- {
			sum += count(build(depth))
		}
		nodes[i] = sum
	}
	var others sync.WaitGroup
	for i := uint64(1); i < threads; i++ {
		others.Add(1)
		go func() {
			share(i)
			others.Done()
		}()
	}
	share(0)
	others.Wait()
	sum := uint64(0)
	for _, n := range nodes {
		sum += n
	}
	return sum
}

func main() {
	threads := flag.Uint64("threads", 1, "goroutines")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	report.SetGCPercent(*gogc)
	depth := uint(18)
	if flag.NArg() > 0 {
		n, _ := strconv.Atoi(flag.Arg(0))
		depth = uint(n)
	}
	depth = max(depth, minDepth+2)

	began := report.NowNS()
	checksum := buildAll(depth+1, 1, 1)
	longLived = build(depth)
	for d := uint(minDepth); d <= depth; d += 2 {
		checksum = checksum*31 + buildAll(d, 1<<(depth-d+minDepth), *threads)
	}
	checksum = checksum*31 + count(longLived)
	seconds := float64(report.NowNS()-began) / 1e9

	report.Begin("binary_trees")
	report.Count("depth", uint64(depth))
	report.Count("threads", *threads)
	report.Real("seconds", seconds)
	report.Count("cycles", report.Cycles())
	report.End(checksum)
}
