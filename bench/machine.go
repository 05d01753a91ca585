package bench

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Machine is where figures were taken: the first line of the raw figures of a run.
type Machine struct {
	Time   time.Time `json:"time"`
	CPU    string    `json:"machine"` // model name
	Cores  int       `json:"cores"`
	Memory int64     `json:"memory_bytes"`
	Kernel string    `json:"kernel"`
	Go     string    `json:"go"`
	Load   float64   `json:"load"` // of the last minute, when the run began: figures of a busy machine are worth less
}

// ThisMachine describes the machine this runs on. What it cannot find out stays empty.
func ThisMachine() Machine {
	m := Machine{Time: time.Now().UTC().Truncate(time.Second), Cores: runtime.GOMAXPROCS(0), Go: runtime.Version()}
	m.CPU = procField("/proc/cpuinfo", "model name")
	if kib, ok := strings.CutSuffix(procField("/proc/meminfo", "MemTotal"), " kB"); ok {
		n, _ := strconv.ParseInt(kib, 10, 64)
		m.Memory = n << 10
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _ = strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	}
	return m
}

// procField returns the first value of a key in a file of "key : value" lines.
func procField(path, key string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
		if k, v, ok := strings.Cut(in.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
