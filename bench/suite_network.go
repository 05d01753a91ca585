package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// tlsPort is where the server of a network scenario listens; the namespace has no other.
const tlsPort = "7411"

// TLS makes a case of a sync from the near end of a network to a server at its far end, over TLS. pki is a directory
// made by [Engine.PKI].
func (e Engine) TLS(name string, n *Network, pki string, flags ...string) Case {
	addr := net.JoinHostPort(n.Addr(Far), tlsPort)
	server := append(n.In(Far), e.Binary, "serve", "--listen", "tls://"+addr, "--pki", filepath.Join(pki, "far"),
		"--volume", "target="+e.Set.Target)
	client := append(n.In(Near), e.Binary, "sync", "--json", "--no-progress", "--pki", filepath.Join(pki, "near"))
	return Case{Name: name, Facts: JSONFacts, Args: append(append(client, flags...), e.Set.Source, "tls://"+addr+"/target"),
		Servers: []Server{{Args: server, Line: tlsPort}}}
}

// PKI makes certificates for both ends of a network below dir, which must not be there.
func (e Engine) PKI(ctx context.Context, dir string, n *Network) error {
	ca := filepath.Join(dir, "ca")
	if err := e.run(ctx, "pki", "ca", "--dir", ca); err != nil {
		return err
	}
	for end, name := range map[End]string{Near: "near", Far: "far"} {
		if err := e.run(ctx, "pki", "cert", "--ca-dir", ca, "--dir", filepath.Join(dir, name), name, "--host", n.Addr(end)); err != nil {
			return err
		}
	}
	return nil
}

// networkScenarios: real connections between two namespaces, over a narrow line and over one that loses packets.
func (b *Bench) networkScenarios(bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	d := Divergence{Percent: 1, Runs: true}
	div, err := b.Set.Plan(d)
	if err != nil {
		return nil, err
	}
	narrow, err := b.network(e, "100 Mbit/s "+d.String(), d, NetworkOptions{Rate: 100e6})
	if err != nil {
		return nil, err
	}
	exact := e.Exact("", div.LeafList)
	for _, codec := range []string{"none", "lz4", "zstd-fast", "zstd", "auto"} {
		c := e.TLS("failback, "+codec, narrow.net, narrow.pki, "--codec", codec, "--dirty", exact.dirtyMap())
		c.Prepare = exact.Prepare
		narrow.Cases = append(narrow.Cases, c)
	}
	out := []Scenario{narrow.Scenario}
	for _, d := range []Divergence{{}, {Percent: 1}} {
		for _, loss := range []float64{0, 0.01} {
			sc, err := b.network(e, fmt.Sprintf("loss %g%% %v", 100*loss, d), d, NetworkOptions{Rate: 1e9, Loss: loss})
			if err != nil {
				return nil, err
			}
			sc.Cases = []Case{e.TLS("failback", sc.net, sc.pki), e.TLS("failback, 4 streams", sc.net, sc.pki, "--streams", "4")}
			out = append(out, sc.Scenario)
		}
	}
	return out, nil
}

// A networked scenario has a network and certificates of its own; its Close takes them away.
type networked struct {
	Scenario
	net *Network
	pki string
}

// network opens what a scenario needs when its cases first run and not before: namespaces are the machine's, and a run
// may be over before its turn comes.
func (b *Bench) network(e Engine, name string, d Divergence, o NetworkOptions) (networked, error) {
	n, err := NewNetwork(o)
	if err != nil {
		return networked{}, err
	}
	w := networked{net: n, pki: filepath.Join(b.Set.Dir, filepath.Base(n.ends[0].space)+"-pki")}
	w.Scenario = Scenario{Name: name, Divergence: d,
		Open: func(ctx context.Context) error {
			if err := n.Open(ctx); err != nil {
				return err
			}
			return e.PKI(ctx, w.pki, n)
		},
		Close: func() error { return errors.Join(n.Close(), os.RemoveAll(w.pki)) },
	}
	return w, nil
}
