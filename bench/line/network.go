package line

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// NetworkOptions describes the line between both ends of a [Network].
type NetworkOptions struct {
	Rate int64   // bits a second in each direction, by a token bucket; 0 is no limit
	Loss float64 // share of packets dropped at random in each direction, 0 to 1
	MTU  int     // bytes of a packet; default 1500. Smaller packets make more drops of a share
}

// A Network is two network namespaces joined by a line, for real processes on both ends. It needs root and the programs
// ip, and tc or iptables where a rate or loss is asked for.
//
// There is no delay: it would need the kernel's netem, which many lack. [Link] has one.
type Network struct {
	ends [2]netEnd
	opts NetworkOptions
}

type netEnd struct{ space, device, addr string }

// End names one end of a [Network].
type End int

// The two ends.
const (
	Near End = 0
	Far  End = 1
)

const netPrefix = "failback-bench-"

// netNumber tells the networks of one process apart.
var netNumber atomic.Int64

// NewNetwork describes a network. Nothing is there before [Network.Open].
func NewNetwork(o NetworkOptions) (*Network, error) {
	if !(o.Loss >= 0 && o.Loss <= 1) || o.Rate < 0 {
		return nil, fmt.Errorf("network of rate %d, loss %v: want a rate of at least 0, a loss from 0 to 1", o.Rate, o.Loss)
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	n := &Network{opts: o}
	number := netNumber.Add(1)
	for i := range n.ends {
		n.ends[i] = netEnd{
			space:  fmt.Sprintf("%s%d-%d-%d", netPrefix, os.Getpid(), number, i),
			device: fmt.Sprintf("fbb%d", i),
			addr:   fmt.Sprintf("198.18.0.%d", i+1), // set aside for measuring networks by RFC 2544
		}
	}
	return n, nil
}

// Open makes the namespaces and joins them. It first removes those of processes that died without doing so. What it made
// is removed again when it fails; otherwise Close must be called, also after a failure of what ran in between.
func (n *Network) Open(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("make network namespaces: needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN)")
	}
	sweepNetworks(ctx)
	if err := n.build(ctx); err != nil {
		return errors.Join(fmt.Errorf("make network: %w", err), n.Close())
	}
	return nil
}

func (n *Network) build(ctx context.Context) error {
	for _, e := range n.ends {
		if err := command(ctx, "ip", "netns", "add", e.space); err != nil {
			return err
		}
	}
	a, b := n.ends[0], n.ends[1]
	if err := command(ctx, "ip", "link", "add", a.device, "netns", a.space, "type", "veth", "peer", "name", b.device, "netns", b.space); err != nil {
		return err
	}
	for i := range n.ends {
		for _, step := range n.shape(End(i)) {
			if err := command(ctx, append(n.In(End(i)), step...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// shape returns the commands that make one end of the line what it is to be.
func (n *Network) shape(end End) [][]string {
	e, o, mtu := n.ends[end], n.opts, strconv.Itoa(n.opts.MTU)
	steps := [][]string{
		{"ip", "addr", "add", e.addr + "/24", "dev", e.device},
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "set", e.device, "mtu", mtu, "up"},
	}
	if o.Rate > 0 {
		burst := max(o.Rate/8/200, 64<<10) // 5 ms, but never less than one large packet
		steps = append(steps, []string{"tc", "qdisc", "add", "dev", e.device, "root", "tbf",
			"rate", strconv.FormatInt(o.Rate, 10) + "bit", "burst", strconv.FormatInt(burst, 10), "latency", "50ms"})
	}
	if o.Loss > 0 {
		steps = append(steps, []string{"iptables", "-A", "INPUT", "-i", e.device, "-m", "statistic", "--mode", "random",
			"--probability", strconv.FormatFloat(o.Loss, 'f', -1, 64), "-j", "DROP"})
	}
	if o.Rate > 0 || o.Loss > 0 {
		// Offload makes packets of 64 KiB, of which a share of drops is not what a share of real packets is.
		steps = append(steps, []string{"ip", "link", "set", e.device, "gso_max_size", mtu, "gso_max_segs", "1"})
	}
	return steps
}

// In returns the words that run a command line at one end; the command line follows them.
func (n *Network) In(e End) []string { return []string{"ip", "netns", "exec", n.ends[e].space} }

// Addr returns the address of one end.
func (n *Network) Addr(e End) string { return n.ends[e].addr }

// Bytes returns how many bytes one end has sent so far, with the headers of its packets.
func (n *Network) Bytes(ctx context.Context, e End) (int64, error) {
	args := append(n.In(e), "cat", filepath.Join("/sys/class/net", n.ends[e].device, "statistics/tx_bytes"))
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return 0, fmt.Errorf("read counter of %s: %w", n.ends[e].device, err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}

// Close removes the namespaces, and the line with them. It may be called twice. Processes that still run in one keep it
// alive until they end, without a name.
func (n *Network) Close() error {
	var all error
	for _, e := range n.ends {
		if _, err := os.Stat(filepath.Join("/run/netns", e.space)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		// Without the caller's context: when that has ended there is all the more to clear away.
		all = errors.Join(all, finish(exec.Command("ip", "netns", "del", e.space)))
	}
	return all
}

// sweepNetworks removes namespaces whose maker is gone.
func sweepNetworks(ctx context.Context) {
	left, _ := filepath.Glob("/run/netns/" + netPrefix + "*")
	for _, path := range left {
		name := filepath.Base(path)
		pid, err := strconv.Atoi(strings.SplitN(strings.TrimPrefix(name, netPrefix), "-", 2)[0])
		if err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		_ = command(ctx, "ip", "netns", "del", name) // the next one tries again
	}
}

func command(ctx context.Context, args ...string) error {
	return finish(exec.CommandContext(ctx, args[0], args[1:]...))
}

// finish runs a command and makes its last words part of its error.
func finish(c *exec.Cmd) error {
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, bytes.Join(bytes.Fields(out), []byte(" ")))
	}
	return nil
}
