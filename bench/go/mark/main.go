// Mark: what a collection costs for each object that is alive, by the shape of the heap. The twin of
// bench/mark.c.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"

	"loam.bench/report"
)

type node struct {
	left, right, other *node
	key                uint64
}

const row = 512

var (
	root  *node
	table [][]*node // rows of nodes
	all   []*node
)

func buildTree(n uint64, nextKey *uint64) *node {
	if n == 0 {
		return nil
	}
	tree := &node{key: *nextKey}
	*nextKey++
	tree.left = buildTree((n-1)/2, nextKey)
	tree.right = buildTree(n-1-(n-1)/2, nextKey)
	return tree
}

func buildAll(n uint64) {
	all = make([]*node, n)
	for i := range all {
		all[i] = &node{key: uint64(i)}
	}
}

func shuffleAll(n uint64, rng *report.RNG) {
	for i := n - 1; i > 0; i-- {
		j := rng.Below(i + 1)
		all[i], all[j] = all[j], all[i]
	}
}

func buildShuffledTree(n uint64, rng *report.RNG) {
	buildAll(n)
	shuffleAll(n, rng)
	for i := uint64(0); i < n; i++ {
		if 2*i+1 < n {
			all[i].left = all[2*i+1]
		}
		if 2*i+2 < n {
			all[i].right = all[2*i+2]
		}
	}
	root = all[0]
	all = nil
}

func buildList(n uint64, rng *report.RNG) {
	buildAll(n)
	shuffleAll(n, rng)
	for i := uint64(0); i+1 < n; i++ {
		all[i].right = all[i+1]
	}
	root = all[0]
	all = nil
}

func buildGraph(n uint64, rng *report.RNG) {
	buildAll(n)
	for i := range all {
		all[i].left = all[rng.Below(n)]
		all[i].right = all[rng.Below(n)]
		all[i].other = all[rng.Below(n)]
	}
}

func buildRows(n uint64, rng *report.RNG) {
	buildAll(n)
	shuffleAll(n, rng)
	table = make([][]*node, (n+row-1)/row)
	for i := range all {
		if i%row == 0 {
			table[i/row] = make([]*node, row)
		}
		table[i/row][i%row] = all[i]
	}
	all = nil
}

func treeSum(n *node) uint64 {
	sum := uint64(0)
	for ; n != nil; n = n.right {
		sum += n.key*0x9e3779b97f4a7c15 + 1
		sum += treeSum(n.left)
	}
	return sum
}

func graphSum() uint64 {
	sum := uint64(0)
	for _, at := range all {
		sum = sum*31 + at.key + at.left.key + 3*at.right.key + 5*at.other.key
	}
	return sum
}

func rowsSum(n uint64) uint64 {
	sum := uint64(0)
	for i := uint64(0); i < n; i++ {
		sum = sum*31 + table[i/row][i%row].key
	}
	return sum
}

func build(shape string, n uint64) bool {
	rng := report.RNG(1)
	switch shape {
	case "tree":
		nextKey := uint64(0)
		root = buildTree(n, &nextKey)
	case "shuffled-tree":
		buildShuffledTree(n, &rng)
	case "list":
		buildList(n, &rng)
	case "graph":
		buildGraph(n, &rng)
	case "rows":
		buildRows(n, &rng)
	default:
		return false
	}
	return true
}

func main() {
	shape := flag.String("shape", "tree", "tree, shuffled-tree, list, graph or rows")
	objects := flag.Uint64("objects", 8000000, "objects alive")
	rounds := flag.Int("rounds", 7, "collections timed")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	report.SetGCPercent(*gogc)
	if *objects < 1 || *rounds < 1 || !build(*shape, *objects) {
		fmt.Fprintln(os.Stderr, "-shape tree|shuffled-tree|list|graph|rows")
		os.Exit(2)
	}
	took := make([]int64, *rounds)
	runtime.GC()
	for i := range took {
		began := report.NowNS()
		runtime.GC()
		took[i] = report.NowNS() - began
	}
	slices.Sort(took)

	perObject := func(ns int64) float64 { return float64(ns) / float64(*objects) }
	report.Begin("mark")
	report.String("shape", *shape)
	report.Count("objects", *objects)
	report.Real("ns_per_object", perObject(took[*rounds/2]))
	report.Real("ns_per_object_min", perObject(took[0]))
	report.Real("ns_per_object_max", perObject(took[*rounds-1]))
	if all != nil {
		report.End(graphSum())
	} else if table != nil {
		report.End(rowsSum(*objects))
	} else {
		report.End(treeSum(root))
	}
}
