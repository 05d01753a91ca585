package line

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func openNetwork(t *testing.T, o NetworkOptions) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_SYS_ADMIN and CAP_NET_ADMIN for network namespaces")
	}
	for _, name := range []string{"ip", "tc", "iptables"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs the program %s", name)
		}
	}
	n, err := NewNetwork(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// talk is what the processes at both ends of a network do in these tests: this test binary, started with one of these in
// its environment.
const (
	talkEnv   = "FAILBACK_BENCH_TALK"
	talkBytes = 256 << 10
)

func TestMain(m *testing.M) {
	if mode, addr, ok := strings.Cut(os.Getenv(talkEnv), " "); ok {
		if err := talk(mode, addr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// talk sends talkBytes to the first who connects, or takes as many.
func talk(mode, addr string) error {
	if mode == "dial" {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		n, err := io.Copy(io.Discard, c)
		if err == nil && n != talkBytes {
			err = fmt.Errorf("%d bytes came, want %d", n, talkBytes)
		}
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	_, err = c.Write(make([]byte, talkBytes))
	return errors.Join(err, c.Close(), l.Close())
}

func TestNetworkJoinsAndGoes(t *testing.T) {
	n := openNetwork(t, NetworkOptions{Rate: 100e6, Loss: 0.01})
	before, err := n.Bytes(t.Context(), Far)
	if err != nil {
		t.Fatal(err)
	}
	self := func(e End, mode string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), "env", talkEnv+"="+mode+" "+n.Addr(Far)+":7000", os.Args[0])
		c.Args = append(n.In(e), c.Args...)
		c.Path, _ = exec.LookPath(c.Args[0])
		c.Stderr = t.Output()
		return c
	}
	far := self(Far, "listen")
	said, err := far.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := far.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	if err := errors.Join(self(Near, "dial").Run(), far.Wait()); err != nil {
		t.Fatal(err)
	}
	after, err := n.Bytes(t.Context(), Far)
	if err != nil {
		t.Fatal(err)
	}
	if after-before < talkBytes {
		t.Errorf("the far end sent %d bytes by its counter, %d by what arrived", after-before, talkBytes)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob("/run/netns/" + n.ends[0].space); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNetworkSweepsTheDead(t *testing.T) {
	n := openNetwork(t, NetworkOptions{})
	// A process of the highest number there can be does not exist.
	dead := netPrefix + "4194304-0"
	if err := command(t.Context(), "ip", "netns", "add", dead); err != nil {
		t.Fatal(err)
	}
	sweepNetworks(t.Context())
	if _, err := os.Stat("/run/netns/" + dead); err == nil {
		t.Errorf("the namespace of a process that is gone is still there")
	}
	if _, err := os.Stat("/run/netns/" + n.ends[0].space); err != nil {
		t.Errorf("the namespace of a living process went: %v", err)
	}
}

func TestNetworkFailsClean(t *testing.T) {
	openNetwork(t, NetworkOptions{}) // skips where networks cannot be
	before, _ := filepath.Glob("/run/netns/" + netPrefix + "*")
	n, err := NewNetwork(NetworkOptions{MTU: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Open(t.Context()); err == nil {
		t.Error("a line with packets of one byte was made", n.Close())
	}
	after, _ := filepath.Glob("/run/netns/" + netPrefix + "*")
	if len(after) > len(before) {
		t.Errorf("left behind: %v", after)
	}
}

func TestNetworkRefusesNonsense(t *testing.T) {
	for _, o := range []NetworkOptions{{Rate: -1}, {Loss: -0.1}, {Loss: 1.1}, {Loss: math.NaN()}} {
		if _, err := NewNetwork(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
