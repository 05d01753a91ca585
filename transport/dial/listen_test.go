package dial

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var plain = Options{AllowPlainTCP: true}

// echoAt answers one connection after another until the listener is closed, at
// the latest when the test ends.
func echoAt(t *testing.T, rawURL string, o Options) net.Listener {
	t.Helper()
	l, err := Listen(t.Context(), rawURL, o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c) // a client that is refused is an error here
			c.Close()
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("close listener: %v", err)
		}
		<-done
	})
	return l
}

// say reaches a and returns what the echo made of a word.
func say(t *testing.T, address string, o Options) (string, error) {
	t.Helper()
	a, err := Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := Dial(t.Context(), a, o)
	if err != nil {
		return "", err
	}
	if _, ok := conn.(net.Conn); !ok {
		t.Errorf("%s: not a net.Conn: %T", address, conn)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return "", err
	}
	got := make([]byte, 5)
	n, err := io.ReadFull(conn, got)
	return string(got[:n]), err
}

// loopbacks runs test for each way of naming this machine.
func loopbacks(t *testing.T, test func(t *testing.T, host string)) {
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]"} {
		t.Run(host, func(t *testing.T) {
			l, err := net.Listen("tcp", host+":0")
			if err != nil {
				t.Skipf("needs the loopback address %s: %v", host, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			test(t, host)
		})
	}
}

func TestTCP(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		url := URL(echoAt(t, "tcp://"+host+":0", plain))
		if got, err := say(t, url+"/x", plain); got != "hello" || err != nil {
			t.Errorf("%s: %q, %v", url, got, err)
		}
		if _, err := say(t, url+"/x", Options{}); err == nil || !strings.Contains(err.Error(), "--plain-tcp") {
			t.Errorf("%s without the option: %v", url, err)
		}
	})
	l := echoAt(t, "tcp://127.0.0.1:0", plain)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := say(t, URL(l)+"/x", plain); !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "failback serve") {
		t.Errorf("nobody listens: %v", err)
	}
}

// A name passes as loopback only if it resolves to loopback.
func TestLoopbackOnly(t *testing.T) {
	for address, ok := range map[string]bool{"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true,
		"10.0.0.1:1": false, "0.0.0.0:1": false, "[::]:1": false, "[::ffff:10.0.0.1]:1": false, "[fe80::1%lo]:1": false, "nonsense": false} {
		if err := loopbackOnly("tcp", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	for in, why := range map[string]string{
		"":                                    "not a URL",
		"/run/f.sock":                         "not a URL",
		"ssh://h:22":                          "cannot listen",
		"ssh://h":                             "no port",
		"http://h:1":                          "cannot listen",
		"tls://h":                             "no port",
		"tls://h:65536":                       "65535",
		"tls://h:x":                           "port",
		"tls://h:1/name":                      "no meaning",
		"tls://u@h:1":                         "more than a place",
		"tls://h:1?x":                         "? would cut",
		"tls://-h:1":                          "minus",
		"tcp://:0":                            "loopback",
		"tcp://0.0.0.0:0":                     "loopback",
		"tcp://[::]:0":                        "loopback",
		"unix://f.sock":                       "three slashes",
		"unix://":                             "no socket",
		"unix:///f?volume=x":                  "more than a place",
		"unix:///" + strings.Repeat("s", 108): "the kernel allows",
	} {
		l, err := Listen(t.Context(), in, plain)
		var e *AddressError
		if l != nil || !errors.As(err, &e) || !strings.Contains(err.Error(), why) {
			t.Errorf("Listen(%.60q): %v; want an AddressError about %q", in, err, why)
		}
	}
	if l, err := Listen(t.Context(), "tcp://127.0.0.1:0", Options{}); l != nil || err == nil || !strings.Contains(err.Error(), "--plain-tcp") {
		t.Errorf("without the option: %v", err)
	}
}

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a socket?")
	at := "unix://" + strings.NewReplacer(" ", "%20", "?", "%3F").Replace(path)
	old := unix.Umask(0)
	l := echoAt(t, at, Options{})
	unix.Umask(old)
	if URL(l) != at {
		t.Errorf("URL %s, want %s", URL(l), at)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	if got, err := say(t, at+"?volume=x", Options{}); got != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file is there after Close: %v", err)
	}
	if _, err := say(t, at+"?volume=x", Options{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "failback serve") {
		t.Errorf("nobody listens: %v", err)
	}
}

// stale leaves a socket file behind that nobody answers, as a killed server does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestUnixStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale(t, path)
	echoAt(t, "unix://"+path, Options{})
	if got, err := say(t, "unix://"+path+"?volume=x", Options{}); got != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if l, err := Listen(t.Context(), "unix://"+path, Options{}); l != nil || !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "a server answers") {
		t.Errorf("a second server: %v", err)
	}
	if got, err := say(t, "unix://"+path+"?volume=x", Options{}); got != "hello" || err != nil {
		t.Errorf("after a second server tried: %q, %v", got, err)
	}
}

// L4: a file that is not a socket, or not our socket, is never removed.
func TestUnixLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "file", "precious")
	if l, err := Listen(t.Context(), "unix://"+file, Options{}); l != nil || !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(t.Context(), "unix://"+link, Options{}); l != nil || !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a link: %v", err)
	}
	if b, err := os.ReadFile(link); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if l, err := Listen(t.Context(), "unix://"+dir+"/none/s", Options{}); l != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in no directory: %v", err)
	}

	path := filepath.Join(dir, "s")
	l, err := Listen(t.Context(), "unix://"+path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "s", "another's")
	if err := l.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "another's" {
		t.Errorf("Close removed what it had not made: %q, %v", b, err)
	}
}

// Of servers that find the same stale file at once, exactly one takes its place.
func TestUnixStaleRace(t *testing.T) {
	dir := t.TempDir()
	for range 50 {
		path := filepath.Join(dir, "s")
		stale(t, path)
		const servers = 4
		var listeners [servers]net.Listener
		var wg sync.WaitGroup
		for i := range servers {
			wg.Go(func() { listeners[i], _ = Listen(t.Context(), "unix://"+path, Options{}) })
		}
		wg.Wait()
		won := 0
		for _, l := range listeners {
			if l == nil {
				continue
			}
			won++
			if err := l.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if won != 1 {
			t.Fatalf("%d of %d servers listen", won, servers)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the socket file is there after Close: %v", err)
		}
	}
}
