package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/failback/failback/bench/line"
)

// tlsPort is where the server of a network scenario listens; the namespace has no other.
const tlsPort = "7411"

// tls makes a case of a sync from the near end of a network to a server at its far end, over TLS. pki is a directory
// made by [engine.pki].
func (e engine) tls(name string, n *line.Network, pki string, flags ...string) Case {
	addr := net.JoinHostPort(n.Addr(line.Far), tlsPort)
	server := append(n.In(line.Far), e.binary, "serve", "--listen", "tls://"+addr, "--pki", filepath.Join(pki, "far"),
		"--volume", "target="+e.set.Target+",rw")
	client := append(n.In(line.Near), e.binary, "sync", "--json", "--no-progress", "--pki", filepath.Join(pki, "near"))
	return Case{Name: name, Facts: jsonFacts, Args: append(append(client, flags...), e.set.Source, "tls://"+addr+"/target"),
		Servers: []Server{{Args: server, Line: tlsPort}}}
}

// pki makes certificates for both ends of a network below dir, which must not be there.
func (e engine) pki(ctx context.Context, dir string, n *line.Network) error {
	ca := filepath.Join(dir, "ca")
	if err := e.run(ctx, "pki", "ca", "--dir", ca); err != nil {
		return err
	}
	for end, name := range map[line.End]string{line.Near: "near", line.Far: "far"} {
		if err := e.run(ctx, "pki", "cert", "--ca-dir", ca, "--dir", filepath.Join(dir, name), name, "--host", n.Addr(end)); err != nil {
			return err
		}
	}
	return nil
}

// networkScenarios: real connections between two namespaces, over a narrow line and over one that loses packets.
func (b *Bench) networkScenarios(bool) ([]Scenario, error) {
	if os.Geteuid() != 0 {
		b.miss(errors.New("suite network: left out: needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN)"))
		return nil, nil
	}
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	d := Divergence{Percent: 1, Runs: true}
	div, err := b.Set.Plan(d)
	if err != nil {
		return nil, err
	}
	narrow, err := b.network(e, "100 Mbit/s "+d.String(), d, line.NetworkOptions{Rate: 100e6})
	if err != nil {
		return nil, err
	}
	exact := e.exact("", div.LeafList)
	for _, codec := range []string{"none", "lz4", "zstd-fast", "zstd", "auto"} {
		c := e.tls("failback, "+codec, narrow.net, narrow.pki, "--codec", codec, "--dirty", exact.dirtyMap())
		c.Prepare = exact.Prepare
		narrow.Cases = append(narrow.Cases, c)
	}
	out := []Scenario{narrow.Scenario}
	for _, d := range []Divergence{{}, {Percent: 1}} {
		for _, loss := range []float64{0, 0.01} {
			sc, err := b.network(e, fmt.Sprintf("loss %g%% %v", 100*loss, d), d, line.NetworkOptions{Rate: 1e9, Loss: loss})
			if err != nil {
				return nil, err
			}
			sc.Cases = []Case{e.tls("failback", sc.net, sc.pki), e.tls("failback, 4 streams", sc.net, sc.pki, "--streams", "4")}
			out = append(out, sc.Scenario)
		}
	}
	return out, nil
}

// A networked scenario has a network and certificates of its own; its Close takes them away.
type networked struct {
	Scenario
	net *line.Network
	pki string
}

// network opens what a scenario needs when its cases first run and not before: namespaces are the machine's, and a run
// may be over before its turn comes.
func (b *Bench) network(e engine, name string, d Divergence, o line.NetworkOptions) (networked, error) {
	n, err := line.NewNetwork(o)
	if err != nil {
		return networked{}, err
	}
	dir, err := os.MkdirTemp(b.Set.Dir, "pki-")
	if err != nil {
		return networked{}, err
	}
	w := networked{net: n, pki: dir}
	w.Scenario = Scenario{Name: name, Divergence: d,
		Open: func(ctx context.Context) error {
			if err := n.Open(ctx); err != nil {
				return err
			}
			return e.pki(ctx, w.pki, n)
		},
		Close: func() error { return errors.Join(n.Close(), os.RemoveAll(w.pki)) },
	}
	return w, nil
}
