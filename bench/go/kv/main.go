// Kv: a key-value server that speaks the protocol of redis (RESP2), as far as redis-benchmark uses it. The
// twin of examples/kv: shards with a mutex each, a goroutine for each client, values that are never changed
// in place, replies that are sent when all input that has been read is consumed.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"net"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	shardCount = 256
	bufferSize = 16 << 10
	valueMax   = 512 << 20
	argsMax    = 1 << 20
	argsKept   = 1 << 10
	largeInput = 64 << 10
)

// ---- the store ----

type entry struct {
	value   []byte
	expires int64 // ms since the start; 0: never
	used    uint32
}

type shard struct {
	mu      sync.Mutex
	entries map[string]*entry
	_       [48]byte // a cache line of its own
}

var (
	shards  [shardCount]shard
	seed    = maphash.MakeSeed()
	started = time.Now()
)

func nowMS() int64 { return int64(time.Since(started)/time.Millisecond) + 1 }

// open locks the key's shard; the entry is nil if there is none.
func open(key []byte, now int64) (*shard, *entry) {
	s := &shards[maphash.Bytes(seed, key)%shardCount]
	s.mu.Lock()
	e := s.entries[string(key)]
	if e == nil {
		return s, nil
	}
	if e.expires != 0 && e.expires <= now {
		delete(s.entries, string(key))
		return s, nil
	}
	e.used = uint32(now)
	return s, e
}

// put is called between open and Unlock.
func (s *shard) put(key []byte, e *entry, value []byte, expires, now int64) {
	if e != nil {
		e.value, e.expires = value, expires
		return
	}
	if s.entries == nil {
		s.entries = make(map[string]*entry)
	}
	s.entries[string(key)] = &entry{value, expires, uint32(now)}
}

func get(key []byte, now int64) []byte {
	s, e := open(key, now)
	defer s.mu.Unlock()
	if e == nil {
		return nil
	}
	return e.value
}

func valueOf(b []byte) []byte {
	v := make([]byte, len(b))
	copy(v, b)
	return v
}

// ---- a client ----

type client struct {
	conn    net.Conn
	in      *bufio.Reader
	out     *bufio.Writer
	input   []byte // of this command
	ends    []int  // of the arguments in it
	args    [][]byte
	now     int64
	closing bool
}

// Read is what in reads from: the replies go first.
func (c *client) Read(p []byte) (int, error) {
	if err := c.out.Flush(); err != nil {
		return 0, err
	}
	return c.conn.Read(p)
}

type protocolError string

func (e protocolError) Error() string { return "ERR Protocol error: " + string(e) }

func (c *client) line() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, protocolError("too big inline request")
	}
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

func number(b []byte) (n int, ok bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	for _, d := range b {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int(d-'0')
	}
	return n, true
}

func (c *client) bulk() error {
	line, err := c.line()
	if err != nil {
		return err
	}
	if len(line) == 0 || line[0] != '$' {
		return protocolError("expected '$' before an argument")
	}
	n, ok := number(line[1:])
	if !ok || n > valueMax {
		return protocolError("invalid bulk length")
	}
	from := len(c.input)
	for left := n + 2; left > 0; { // memory as it comes, not as it is announced
		part := min(left, largeInput)
		at := len(c.input)
		if cap(c.input)-at < part {
			c.input = append(make([]byte, 0, 2*cap(c.input)+part), c.input...)
		}
		c.input = c.input[:at+part]
		if _, err := io.ReadFull(c.in, c.input[at:]); err != nil {
			return err
		}
		left -= part
	}
	if c.input[from+n] != '\r' || c.input[from+n+1] != '\n' {
		return protocolError("expected the end of a line behind an argument")
	}
	c.ends = append(c.ends, from+n)
	return nil
}

func (c *client) command() error {
	c.args, c.ends, c.input = c.args[:0], c.ends[:0], c.input[:0]
	if cap(c.input) > largeInput || cap(c.args) > argsKept {
		c.args, c.ends, c.input = nil, nil, nil
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	if len(line) == 0 || line[0] != '*' {
		c.input = append(c.input, line...)
		c.args = append(c.args, bytes.Fields(c.input)...)
		return nil
	}
	n, ok := number(line[1:])
	if !ok || n > argsMax {
		return protocolError("invalid multibulk length")
	}
	for range n {
		if err := c.bulk(); err != nil {
			return err
		}
	}
	from := 0
	for _, end := range c.ends {
		c.args = append(c.args, c.input[from:end])
		from = end + 2
	}
	return nil
}

func serve(conn net.Conn) {
	defer conn.Close()
	c := &client{conn: conn, out: bufio.NewWriterSize(conn, bufferSize)}
	c.in = bufio.NewReaderSize(c, bufferSize)
	for !c.closing {
		if err := c.command(); err != nil {
			if _, ok := err.(protocolError); ok {
				c.fail(err.Error())
			}
			break
		}
		c.run()
	}
	c.out.Flush()
}

// ---- replies ----

func (c *client) sayNumber(kind byte, n int64) {
	var text [32]byte
	b := strconv.AppendInt(append(text[:0], kind), n, 10)
	c.out.Write(append(b, "\r\n"...))
}

func (c *client) say(s string) {
	c.out.WriteString(s)
	c.out.WriteString("\r\n")
}

func (c *client) fail(s string) {
	c.out.WriteByte('-')
	c.say(s)
}

func (c *client) sayBulk(b []byte) {
	if b == nil {
		c.say("$-1")
		return
	}
	c.sayNumber('$', int64(len(b)))
	c.out.Write(b)
	c.out.WriteString("\r\n")
}

// ---- commands ----

const (
	syntax     = "ERR syntax error"
	notInteger = "ERR value is not an integer or out of range"
)

func (c *client) set() string {
	var absent, present bool
	var expires int64
	for i := 3; i < len(c.args); i++ {
		switch word := strings.ToLower(string(c.args[i])); {
		case (word == "ex" || word == "px") && expires == 0 && i+1 < len(c.args):
			i++
			n, err := strconv.ParseInt(string(c.args[i]), 10, 64)
			if err != nil {
				return notInteger
			}
			if n <= 0 || n > math.MaxInt64/2000 {
				return "ERR invalid expire time in 'set' command"
			}
			if word == "ex" {
				n *= 1000
			}
			expires = c.now + n
		case word == "nx":
			absent = true
		case word == "xx":
			present = true
		default:
			return syntax
		}
	}
	if absent && present {
		return syntax
	}
	value := valueOf(c.args[2])
	s, e := open(c.args[1], c.now)
	wanted := e == nil && !present || e != nil && !absent
	if wanted {
		s.put(c.args[1], e, value, expires, c.now)
	}
	s.mu.Unlock()
	if wanted {
		c.say("+OK")
	} else {
		c.say("$-1")
	}
	return ""
}

func (c *client) add(n int64) string {
	s, e := open(c.args[1], c.now)
	defer s.mu.Unlock()
	var sum, expires int64
	if e != nil {
		var err error
		if sum, err = strconv.ParseInt(string(e.value), 10, 64); err != nil {
			return notInteger
		}
		expires = e.expires
	}
	if n > 0 && sum > math.MaxInt64-n || n < 0 && sum < math.MinInt64-n {
		return "ERR increment or decrement would overflow"
	}
	sum += n
	s.put(c.args[1], e, strconv.AppendInt(make([]byte, 0, 20), sum, 10), expires, c.now)
	c.sayNumber(':', sum)
	return ""
}

func (c *client) mset() string {
	if len(c.args)%2 == 0 {
		return "ERR wrong number of arguments for 'mset' command"
	}
	for i := 1; i < len(c.args); i += 2 {
		value := valueOf(c.args[i+1])
		s, e := open(c.args[i], c.now)
		s.put(c.args[i], e, value, 0, c.now)
		s.mu.Unlock()
	}
	c.say("+OK")
	return ""
}

func (c *client) count(remove bool) string {
	var n int64
	for _, key := range c.args[1:] {
		s, e := open(key, c.now)
		if e != nil {
			n++
			if remove {
				delete(s.entries, string(key))
			}
		}
		s.mu.Unlock()
	}
	c.sayNumber(':', n)
	return ""
}

func (c *client) mget() string {
	c.sayNumber('*', int64(len(c.args)-1))
	for _, key := range c.args[1:] {
		c.sayBulk(get(key, c.now))
	}
	return ""
}

func (c *client) config() string {
	known := [][2]string{{"appendonly", "no"}, {"save", ""}}
	var found []string
	for _, k := range known {
		for _, pattern := range c.args[2:] {
			if ok, _ := path.Match(string(pattern), k[0]); ok {
				found = append(found, k[0], k[1])
				break
			}
		}
	}
	c.sayNumber('*', int64(len(found)))
	for _, s := range found {
		c.sayBulk([]byte(s))
	}
	return ""
}

func (c *client) size() int64 {
	n := 0
	for i := range shards {
		shards[i].mu.Lock()
		n += len(shards[i].entries)
		shards[i].mu.Unlock()
	}
	return int64(n)
}

func flushAll() {
	for i := range shards {
		shards[i].mu.Lock()
		shards[i].entries = nil
		shards[i].mu.Unlock()
	}
}

// lower gives the name in small letters, in memory of the caller's.
func lower(name []byte, word *[8]byte) []byte {
	if len(name) > len(word) {
		return nil
	}
	for i, b := range name {
		word[i] = b | 0x20
	}
	return word[:len(name)]
}

func (c *client) run() {
	n := len(c.args)
	if n == 0 {
		return
	}
	c.now = nowMS()
	var word [8]byte
	problem := ""
	switch name := string(lower(c.args[0], &word)); {
	case name == "get" && n == 2:
		c.sayBulk(get(c.args[1], c.now))
	case name == "set" && n >= 3:
		problem = c.set()
	case name == "incr" && n == 2:
		problem = c.add(1)
	case name == "decr" && n == 2:
		problem = c.add(-1)
	case name == "mget" && n >= 2:
		problem = c.mget()
	case name == "mset" && n >= 3:
		problem = c.mset()
	case name == "del" && n >= 2:
		problem = c.count(true)
	case name == "exists" && n >= 2:
		problem = c.count(false)
	case name == "ping" && n == 1:
		c.say("+PONG")
	case name == "echo" && n == 2:
		c.sayBulk(c.args[1])
	case name == "dbsize" && n == 1:
		c.sayNumber(':', c.size())
	case name == "flushall":
		flushAll()
		c.say("+OK")
	case name == "config" && n >= 3:
		problem = c.config()
	case name == "command":
		c.say("*0")
	case name == "quit":
		c.say("+OK")
		c.closing = true
	default:
		problem = fmt.Sprintf("ERR unknown command %.64q, or a wrong number of arguments", c.args[0])
	}
	if problem != "" {
		c.fail(problem)
	}
}

func main() {
	bind := flag.String("bind", "127.0.0.1", "address of this machine")
	port := flag.Int("port", 6379, "0: any free port")
	flag.Parse()
	listener, err := net.Listen("tcp", net.JoinHostPort(*bind, strconv.Itoa(*port)))
	if err != nil {
		fmt.Fprintln(os.Stderr, "kv:", err)
		os.Exit(1)
	}
	fmt.Println("listening on", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "kv:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go serve(conn)
	}
}
