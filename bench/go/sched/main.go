// Sched: what goroutines cost: to start, to switch, to wait, to be waited for. The twin of
// bench/sched.c, which tells what the cases are.
package main

import (
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"loam.bench/report"
)

const (
	maxRepeat   = 99
	collections = 3
	sleepNS     = 1000000
)

type task struct {
	id  uint64 // from 0
	ops uint64 // what this goroutine does of them
	sum uint64 // written at its end
}

// What the goroutines of a repetition share.
var crew struct {
	done        sync.WaitGroup
	ready       sync.WaitGroup
	mutex       sync.Mutex
	counter     uint64 // under mutex
	there, back chan uint64
	signal      chan struct{}
	four        [4]chan uint64
	lateNS      []uint64 // a row of each goroutine's sleeps
	tasks       []task
}

var lateness report.Hist

var parked struct {
	bytesEach, asleepBytesEach, startNSEach, gcNS, wakeNSEach float64
}

// crewStart starts tasks first to limit in fn, each with ops operations.
func crewStart(first, limit, ops uint64, fn func(*task)) {
	crew.done.Add(int(limit - first))
	for i := first; i < limit; i++ {
		crew.tasks[i] = task{i, ops, 0}
		go fn(&crew.tasks[i])
	}
}

// crewWait gives the sum over all tasks when all have ended.
func crewWait() uint64 {
	crew.done.Wait()
	sum := uint64(0)
	for i := range crew.tasks {
		sum += crew.tasks[i].sum
	}
	return sum
}

func crewEnd(t *task, sum uint64) {
	t.sum = sum
	crew.done.Done()
}

// Start and end.

func spawned(t *task) {
	crewEnd(t, t.id*31+1)
}

func runSpawn(ops uint64) uint64 {
	sum := uint64(0)
	goroutines := uint64(len(crew.tasks))
	for n := uint64(0); n < ops; n += goroutines {
		crewStart(0, goroutines, 1, spawned)
		sum += crewWait()
	}
	return sum
}

// Yields.

func yielder(t *task) {
	sum := uint64(0)
	for i := uint64(0); i < t.ops; i++ {
		runtime.Gosched()
		sum = sum*31 + i
	}
	crewEnd(t, sum)
}

func runYield(ops uint64) uint64 {
	goroutines := uint64(len(crew.tasks))
	crewStart(0, goroutines, ops/goroutines, yielder)
	return crewWait()
}

// Channels.

func pinger(t *task) {
	sum := uint64(0)
	for i := uint64(0); i < t.ops; i++ {
		crew.there <- i
		sum = sum*31 + <-crew.back
	}
	crewEnd(t, sum)
}

func ponger(t *task) {
	for i := uint64(0); i < t.ops; i++ {
		value := <-crew.there
		value++
		crew.back <- value
	}
	crewEnd(t, 0)
}

func runPingPong(ops uint64) uint64 {
	crew.there = make(chan uint64)
	crew.back = make(chan uint64)
	crewStart(0, 1, ops/2, ponger)
	crewStart(1, 2, ops/2, pinger)
	return crewWait()
}

func producer(t *task) {
	for i := uint64(0); i < t.ops; i++ {
		crew.there <- i
	}
	close(crew.there)
	crewEnd(t, 0)
}

func consumer(t *task) {
	sum := uint64(0)
	for {
		value, ok := <-crew.there
		if !ok {
			break
		}
		sum += value * value
	}
	crewEnd(t, sum)
}

func runFanout(ops uint64) uint64 {
	crew.there = make(chan uint64)
	crewStart(1, uint64(len(crew.tasks)), 0, consumer)
	crewStart(0, 1, ops, producer)
	return crewWait()
}

func runBuffered(ops uint64) uint64 {
	crew.there = make(chan uint64, 128)
	crewStart(1, 2, 0, consumer)
	crewStart(0, 1, ops, producer)
	return crewWait()
}

func waker(t *task) {
	for i := uint64(0); i < t.ops; i++ {
		crew.signal <- struct{}{}
		runtime.Gosched()
	}
	crewEnd(t, 0)
}

func woken(t *task) {
	sum := uint64(0)
	for i := uint64(0); i < t.ops; i++ {
		received := uint64(0)
		if _, ok := <-crew.signal; ok {
			received = 1
		}
		sum = sum*31 + received
	}
	crewEnd(t, sum)
}

func runParkReady(ops uint64) uint64 {
	crew.signal = make(chan struct{}, 1)
	crewStart(0, 1, ops, woken)
	crewStart(1, 2, ops, waker)
	return crewWait()
}

func feeder(t *task) {
	for i := uint64(0); i < t.ops; i++ {
		crew.four[i%4] <- i
	}
	crewEnd(t, 0)
}

func selector(t *task) {
	sum := uint64(0)
	for i := uint64(0); i < t.ops; i++ {
		var value, which uint64
		select {
		case value = <-crew.four[0]:
		case value = <-crew.four[1]:
			which = 1
		case value = <-crew.four[2]:
			which = 2
		case value = <-crew.four[3]:
			which = 3
		}
		sum = sum*31 + value*4 + which
	}
	crewEnd(t, sum)
}

func runSelect4(ops uint64) uint64 {
	for i := range crew.four {
		crew.four[i] = make(chan uint64)
	}
	crewStart(0, 1, ops, selector)
	crewStart(1, 2, ops, feeder)
	return crewWait()
}

// Mutex.

func locker(t *task) {
	for i := uint64(0); i < t.ops; i++ {
		crew.mutex.Lock()
		crew.counter += t.id + 1
		crew.mutex.Unlock()
	}
	crewEnd(t, 0)
}

func yieldingLocker(t *task) {
	for i := uint64(0); i < t.ops; i++ {
		crew.mutex.Lock()
		crew.counter += t.id + 1
		runtime.Gosched()
		crew.mutex.Unlock()
	}
	crewEnd(t, 0)
}

func runLockers(ops uint64, fn func(*task)) uint64 {
	crew.counter = 0
	goroutines := uint64(len(crew.tasks))
	crewStart(0, goroutines, ops/goroutines, fn)
	return crewWait() + crew.counter
}

func runMutex(ops uint64) uint64 {
	return runLockers(ops, locker)
}

func runMutexYield(ops uint64) uint64 {
	return runLockers(ops, yieldingLocker)
}

// Sleep.

func sleeper(t *task) {
	lateNS := crew.lateNS[t.id*t.ops:][:t.ops]
	longEnough := uint64(0)
	for i := range lateNS {
		before := report.NowNS()
		time.Sleep(sleepNS)
		slept := report.NowNS() - before
		if slept >= sleepNS {
			longEnough++
		}
		lateNS[i] = uint64(max(slept-sleepNS, 0))
	}
	crewEnd(t, longEnough)
}

func runSleep(ops uint64) uint64 {
	if crew.lateNS == nil {
		crew.lateNS = make([]uint64, ops)
	}
	goroutines := uint64(len(crew.tasks))
	crewStart(0, goroutines, ops/goroutines, sleeper)
	sum := crewWait()
	for _, late := range crew.lateNS {
		lateness.Add(late)
	}
	return sum
}

// Parked.

// takenBytes gives the resident memory and the page tables of the process.
func takenBytes() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sum := uint64(0)
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d", &kib); n == 1 {
			sum += kib
		}
		if n, _ := fmt.Sscanf(line, "VmPTE: %d", &kib); n == 1 {
			sum += kib
		}
	}
	return sum * 1024
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func waiter(t *task) {
	crew.ready.Done()
	value := <-crew.there
	crewEnd(t, value*value)
}

func runParked(uint64) uint64 {
	n := uint64(len(crew.tasks))
	crew.there = make(chan uint64)
	crew.ready.Add(int(n))
	bytesBefore := takenBytes()
	began := report.NowNS()
	crewStart(0, n, 1, waiter)
	crew.ready.Wait()
	parked.startNSEach = float64(report.NowNS()-began) / float64(n)
	time.Sleep(20 * sleepNS) // those that have said they are ready come to the channel
	bytesAfter := takenBytes()
	parked.bytesEach = (float64(bytesAfter) - float64(bytesBefore)) / float64(n)

	var gcNS [collections]float64
	for i := range gcNS {
		began = report.NowNS()
		runtime.GC()
		gcNS[i] = float64(report.NowNS() - began)
	}
	parked.gcNS = median(gcNS[:])
	bytesNow := takenBytes()
	for {
		bytesAfter = bytesNow
		time.Sleep(300 * sleepNS)
		if bytesNow = takenBytes(); bytesNow >= bytesAfter {
			break
		}
	}
	parked.asleepBytesEach = (float64(bytesNow) - float64(bytesBefore)) / float64(n)

	began = report.NowNS()
	for i := uint64(0); i < n; i++ {
		crew.there <- i
	}
	sum := crewWait()
	parked.wakeNSEach = float64(report.NowNS()-began) / float64(n)
	return sum
}

type benchCase struct {
	name            string
	run             func(ops uint64) uint64 // gives the checksum
	ops, goroutines uint64
	fixed           bool // -goroutines is refused
}

var cases = []benchCase{
	{"spawn", runSpawn, 500000, 1, true},
	{"spawn-batch", runSpawn, 500000, 10000, false},
	{"yield", runYield, 4000000, 2, false},
	{"yield-many", runYield, 4000000, 1000, false},
	{"ping-pong", runPingPong, 2000000, 2, true},
	{"buffered", runBuffered, 5000000, 2, true},
	{"park-ready", runParkReady, 1000000, 2, true},
	{"select4", runSelect4, 1000000, 2, true},
	{"mutex", runMutex, 10000000, 2, false},
	{"mutex-yield", runMutexYield, 1000000, 2, false},
	{"sleep", runSleep, 100000, 1000, false},
	{"fanout", runFanout, 1000000, 8, false}, // and the one that sends
	{"parked", runParked, 0, 1000000, false},
}

func processorNS() float64 {
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return float64(used.Utime.Nano() + used.Stime.Nano())
}

func main() {
	name := flag.String("case", "ping-pong", "what is measured")
	goroutines := flag.Uint64("goroutines", 0, "how many")
	ops := flag.Uint64("ops", 0, "operations of a repetition")
	procs := flag.Int("procs", 0, "GOMAXPROCS")
	repeat := flag.Int("repeat", 5, "repetitions")
	flag.BoolVar(&report.AsJSON, "json", false, "one line of JSON")
	gogc := flag.Int("gogc", 0, "GOGC")
	flag.Parse()
	which := slices.IndexFunc(cases, func(c benchCase) bool { return c.name == *name })
	if which < 0 {
		fmt.Fprintln(os.Stderr, "no case", *name)
		os.Exit(2)
	}
	chosen := cases[which]
	n := chosen.goroutines
	if *goroutines != 0 {
		n = *goroutines
	}
	if n > math.MaxInt32 || chosen.fixed && n != chosen.goroutines {
		fmt.Fprintln(os.Stderr, "-goroutines: not with", *name)
		os.Exit(2)
	}
	if *repeat < 1 || *repeat > maxRepeat {
		fmt.Fprintf(os.Stderr, "-repeat: 1 to %d\n", maxRepeat)
		os.Exit(2)
	}
	if *ops == 0 {
		*ops = chosen.ops
	}
	*ops = max(*ops-*ops%n, n) // as many for each
	if *name == "fanout" {
		n++
	}
	once := *name == "parked"
	if once {
		*repeat = 1
	}
	report.SetGCPercent(*gogc)
	runtime.GOMAXPROCS(*procs)
	crew.tasks = make([]task, n)
	for i := range crew.tasks {
		crew.tasks[i].id = uint64(i) // so that they are resident
	}

	if !once {
		chosen.run(*ops)
		lateness = report.Hist{}
	}
	nsPerOp := make([]float64, *repeat)
	cpuNSPerOp := make([]float64, *repeat)
	checksum := uint64(0)
	for i := range *repeat {
		cpuBegan := processorNS()
		began := report.NowNS()
		sum := chosen.run(*ops)
		nsPerOp[i] = float64(report.NowNS()-began) / float64(*ops)
		cpuNSPerOp[i] = (processorNS() - cpuBegan) / float64(*ops)
		checksum = checksum*31 + sum
	}
	if once {
		nsPerOp[0] = parked.startNSEach + parked.wakeNSEach
	}

	report.Begin("sched")
	report.String("case", *name)
	report.Count("procs", uint64(runtime.GOMAXPROCS(0)))
	report.Count("goroutines", n)
	report.Count("ops", *ops)
	report.Real("ns_per_op", median(nsPerOp))
	report.Real("least_ns_per_op", nsPerOp[0]) // sorted by now
	report.Real("most_ns_per_op", nsPerOp[*repeat-1])
	report.Real("cpu_ns_per_op", median(cpuNSPerOp))
	if *name == "sleep" {
		report.Count("late_p50_ns", lateness.Percentile(0.5))
		report.Count("late_p99_ns", lateness.Percentile(0.99))
		report.Count("late_max_ns", lateness.Max)
	}
	if once {
		report.Real("bytes_each", parked.bytesEach)
		report.Real("asleep_bytes_each", parked.asleepBytesEach)
		report.Real("start_ns_each", parked.startNSEach)
		report.Real("gc_ns", parked.gcNS)
		report.Real("wake_ns_each", parked.wakeNSEach)
	}
	report.End(checksum)
}
