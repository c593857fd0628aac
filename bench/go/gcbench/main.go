// Ellis, Kovac and Boehm's GCBench. The twin of bench/gcbench.c.
package main

import (
	"flag"

	"loam.bench/report"
)

const (
	minDepth    = 4
	arrayLength = 500000
)

type node struct {
	left, right *node
	i, j        int32
}

var (
	longLivedTree  *node
	longLivedArray []float64
	stretchDepth   uint
)

func treeSize(depth uint) uint64 {
	return 1<<(depth+1) - 1
}

func populate(depth uint, n *node) {
	if depth == 0 {
		return
	}
	n.left = &node{}
	n.right = &node{}
	populate(depth-1, n.left)
	populate(depth-1, n.right)
}

func makeTree(depth uint) *node {
	if depth == 0 {
		return &node{}
	}
	left := makeTree(depth - 1)
	right := makeTree(depth - 1)
	return &node{left: left, right: right}
}

func count(n *node) uint64 {
	if n == nil {
		return 0
	}
	return 1 + count(n.left) + count(n.right)
}

// Both directions, and the nodes of the last pair as a check that costs little.
func construct(depth uint) uint64 {
	n := 2 * treeSize(stretchDepth) / treeSize(depth)
	var tree *node
	nodes := uint64(0)
	for i := uint64(0); i < n; i++ {
		tree = &node{}
		populate(depth, tree)
	}
	nodes += count(tree)
	for i := uint64(0); i < n; i++ {
		tree = makeTree(depth)
	}
	return nodes + count(tree)
}

func main() {
	depth := flag.Uint("depth", 16, "deepest temporary trees")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	report.SetGCPercent(*gogc)
	stretchDepth = *depth + 2

	began := report.NowNS()
	checksum := count(makeTree(stretchDepth))
	longLivedTree = &node{}
	populate(*depth, longLivedTree)
	longLivedArray = make([]float64, arrayLength)
	for i := 0; i < arrayLength/2; i++ {
		longLivedArray[i] = 1.0 / float64(i+1)
	}
	for d := uint(minDepth); d <= *depth; d += 2 {
		checksum = checksum*31 + construct(d)
	}
	checksum = checksum*31 + count(longLivedTree)
	checksum = checksum*31 + uint64(1.0/longLivedArray[1000])
	seconds := float64(report.NowNS()-began) / 1e9

	report.Begin("gcbench")
	report.Count("depth", uint64(*depth))
	report.Real("seconds", seconds)
	report.Count("cycles", report.Cycles())
	report.End(checksum)
}
