package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/failback/failback/transport/dial"
)

const schemaPKI = "failback.pki/1"

func (a *app) pkiCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "pki",
		Short: "Make the certificates that tls:// needs",
		Long: `Make the certificates that tls:// needs: one CA, then a certificate for each
machine. Both ends show theirs and take only certificates of the same CA.
Nothing is ever overwritten.`,
		Example: `  failback pki ca --dir ca
  failback pki cert --ca-dir ca --dir home home --host home.example.org
  failback pki cert --ca-dir ca --dir away away
  scp -r home root@home:/etc/failback        # then: FAILBACK_PKI=/etc/failback failback serve ...`,
		RunE: a.group,
	}
	c.AddCommand(a.pkiCACommand(), a.pkiCertCommand())
	return c
}

func (a *app) pkiCACommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:         "ca",
		Short:       "Make a certificate authority",
		Long:        "Make a certificate authority in a directory: ca.pem, which goes to every machine, and\nca-key.pem, which makes certificates and stays. Valid for ten years.",
		Example:     "  failback pki ca --dir ca",
		Args:        exactly(0, "none: the place is --dir"),
		Annotations: map[string]string{schemaKey: schemaPKI},
	}
	c.Flags().StringVar(&dir, "dir", "ca", "`DIR` to make it in")
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure")
	return a.runs(c, func(context.Context, []string) error {
		if err := dial.NewCA(dir); err != nil {
			return err
		}
		return a.showPKI("", dial.Credentials{CA: filepath.Join(dir, dial.CAFile), Key: filepath.Join(dir, dial.CAKeyFile), Dir: dir})
	})
}

func (a *app) pkiCertCommand() *cobra.Command {
	var ca, dir string
	var hosts []string
	c := &cobra.Command{
		Use:   "cert NAME",
		Short: "Make the certificate of one machine",
		Long: `Make the certificate and key of one machine, for serving and for connecting:
NAME.pem, NAME-key.pem and ca.pem in one directory, which is all the machine
needs. Valid for two years.`,
		Example:     "  failback pki cert --ca-dir ca --dir home home --host home.example.org --host 192.0.2.7",
		Args:        exactly(1, "NAME"),
		Annotations: map[string]string{schemaKey: schemaPKI},
	}
	f := c.Flags()
	f.StringVar(&ca, "ca-dir", "ca", "`DIR` of the CA")
	f.StringVar(&dir, "dir", "", "`DIR` to make it in (default NAME)")
	f.StringArrayVar(&hosts, "host", nil, "`HOST` name or IP address by which the machine is reached; may be repeated (default NAME)")
	f.BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure")
	return a.runs(c, func(_ context.Context, args []string) error {
		if dir == "" {
			dir = args[0]
		}
		made, err := dial.NewCertificate(ca, args[0], hosts, dir)
		if err != nil {
			return err
		}
		return a.showPKI(args[0], made)
	})
}

type pkiJSON struct {
	Schema string `json:"schema"`
	Result string `json:"result"`
	Name   string `json:"name,omitempty"`
	Dir    string `json:"dir"`
	CA     string `json:"ca"`
	Cert   string `json:"cert,omitempty"`
	Key    string `json:"key"`
}

func (a *app) showPKI(name string, c dial.Credentials) error {
	if a.json {
		return writeJSON(a.stdout, pkiJSON{schemaPKI, "made", name, c.Dir, c.CA, c.Cert, c.Key})
	}
	next := fmt.Sprintf("on that machine: %s=%s failback ...", dial.PKIEnv, c.Dir)
	if name == "" {
		next = fmt.Sprintf("a certificate for each machine: failback pki cert --ca-dir %s NAME", c.Dir)
	}
	return writeLines(a.stdout, []line{{"ca", c.CA}, {"cert", c.Cert}, {"key", c.Key}, {"next", next}})
}
