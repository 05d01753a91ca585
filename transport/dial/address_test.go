package dial

import (
	"errors"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Address{
		"/dev/vg0/data":           {Volume: "/dev/vg0/data"},
		"image.img":               {Volume: "image.img"},
		"-":                       {Volume: "-"},
		"./ssh://odd":             {Volume: "./ssh://odd"},
		"host:/path":              {Volume: "host:/path"},
		"a b%20c":                 {Volume: "a b%20c"},
		"ssh://h/dev/sda":         {Scheme: SSH, Host: "h", Volume: "/dev/sda"},
		"SSH://h/dev/sda":         {Scheme: SSH, Host: "h", Volume: "/dev/sda"},
		"ssh://root@h:2222/x":     {Scheme: SSH, User: "root", Host: "h", Port: 2222, Volume: "/x"},
		"ssh://me%40corp@h_1.x/x": {Scheme: SSH, User: "me@corp", Host: "h_1.x", Volume: "/x"},
		"ssh://CORP%5Cme@h/x":     {Scheme: SSH, User: `CORP\me`, Host: "h", Volume: "/x"},
		"ssh://[::1]/x":           {Scheme: SSH, Host: "::1", Volume: "/x"},
		"ssh://u@[fe80::1%25eth0]:2/x": {
			Scheme: SSH, User: "u", Host: "fe80::1%eth0", Port: 2, Volume: "/x"},
		"ssh://h/a%20b/%C3%BC%3F%23%25;'$(id)": {Scheme: SSH, Host: "h", Volume: "/a b/ü?#%;'$(id)"},
		"ssh://h/-x":                           {Scheme: SSH, Host: "h", Volume: "/-x"},
		"ssh://h//x":                           {Scheme: SSH, Host: "h", Volume: "//x"},
		"tls://h:7443/db":                      {Scheme: TLS, Host: "h", Port: 7443, Volume: "db"},
		"tls://10.0.0.1:1/a/b":                 {Scheme: TLS, Host: "10.0.0.1", Port: 1, Volume: "a/b"},
		"tls://[2001:db8::1]:9/a%2Fb":          {Scheme: TLS, Host: "2001:db8::1", Port: 9, Volume: "a/b"},
		"unix:///run/f.sock?volume=db":         {Scheme: Unix, Socket: "/run/f.sock", Volume: "db"},
		"unix:///a%20b/%3F?volume=a+b%26c%3Dd": {
			Scheme: Unix, Socket: "/a b/?", Volume: "a+b&c=d"},
		"tcp://127.0.0.1:7/x": {Scheme: TCP, Host: "127.0.0.1", Port: 7, Volume: "x"},
		"tcp://[::1]:7/x":     {Scheme: TCP, Host: "::1", Port: 7, Volume: "x"},
		"tcp://localhost:7/x": {Scheme: TCP, Host: "localhost", Port: 7, Volume: "x"},
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", in, got, err, want)
			continue
		}
		if got.Local() != (got.Scheme == Path) {
			t.Errorf("%q: Local() = %v", in, got.Local())
		}
		if again, err := Parse(got.String()); err != nil || again != got {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", got.String(), again, err, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	long := strings.Repeat("x", maxVolume+1)
	for in, why := range map[string]string{
		"":                          "not a path",
		"a\x00b":                    "not a path",
		"http://h/x":                "unknown scheme",
		"file:///x":                 "unknown scheme",
		"ssh://h":                   "no volume path",
		"ssh://h/":                  "no volume path",
		"ssh:///x":                  "no host",
		"ssh://@h/x":                "no user",
		"ssh://-oProxyCommand=id/x": "begins with a minus",
		"ssh://-h/x":                "begins with a minus",
		"ssh://-l@h/x":              "user",
		"ssh://a%20b@h/x":           "user",
		"ssh://$(id)@h/x":           "user",
		"ssh://a%60id%60@h/x":       "user",
		"ssh://a%0Ab@h/x":           "user",
		"ssh://a%5C@h/x":            "user",
		"ssh://h;id/x":              "host",
		"ssh://$(id)/x":             "host",
		"ssh://a'b/x":               "host",
		"ssh://a%20b/x":             "",
		"ssh://[::1%25a;b]/x":       "host",
		"ssh://::1/x":               "",
		"ssh://h:/x":                "colon without a port",
		"ssh://h:0/x":               "port",
		"ssh://h:65536/x":           "port",
		"ssh://h:x/x":               "port",
		"ssh://h/x?y":               "? would cut",
		"ssh://h/x?":                "? would cut",
		"ssh://h/x#y":               "# would cut",
		"ssh://h/x%0Ay":             "not printable",
		"ssh://h/x%00y":             "not printable",
		"ssh://h/x%FFy":             "not printable",
		"ssh://h/%zz":               "",
		"ssh://h/" + long:           "limit",
		"ssh://me:secret@h/x":       "password",
		"tls://h/x":                 "no port",
		"tls://h:1":                 "no volume name",
		"tls://h:1/":                "no volume name",
		"tls://u@h:1/x":             "user has no meaning",
		"tcp://10.0.0.1:7/x":        "loopback",
		"tcp://example.org:7/x":     "loopback",
		"tcp://0.0.0.0:7/x":         "loopback",
		"unix://run/f?volume=x":     "three slashes",
		"unix:///run/f":             "no volume",
		"unix:///run/f?volume=":     "no volume",
		"unix:///run/f?name=x":      "no volume",
		"unix:///run/f?volume=a&b":  "no volume",
		"unix:///run/f?volume=%zz":  "",
		"unix:///?volume=x":         "no socket",
		"unix:///" + strings.Repeat("s", 107) + "?volume=x": "the kernel allows",
	} {
		got, err := Parse(in)
		var e *AddressError
		if !errors.As(err, &e) || got != (Address{}) {
			t.Errorf("Parse(%.60q) = %+v, %v; want an AddressError", in, got, err)
			continue
		}
		if !strings.Contains(e.Reason+e.Next, why) {
			t.Errorf("Parse(%.60q): %v; want something about %q", in, err, why)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("Parse(%q) tells the password: %v", in, err)
		}
	}
}

// A password in an address that cannot even be taken apart is not shown either.
func TestParseHidesPassword(t *testing.T) {
	for _, in := range []string{"ssh://me:secret@h:x/y", "ssh://me:secret@h/%zz", "tls://me:secret@[::1/x"} {
		if _, err := Parse(in); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("Parse(%q): %v", in, err)
		}
	}
}

// An Address made by hand passes the same checks before anything is run.
func TestDialChecksAddress(t *testing.T) {
	for _, a := range []Address{
		{},
		{Volume: "/dev/sda"},
		{Scheme: "http", Host: "h", Port: 80},
		{Scheme: SSH, Host: "-oProxyCommand=id", Volume: "/x"},
		{Scheme: SSH, Host: "h", User: "-oProxyCommand=id", Volume: "/x"},
		{Scheme: SSH, Host: "h", Port: -1, Volume: "/x"},
		{Scheme: TLS, Host: "h", Volume: "x"},
		{Scheme: TCP, Host: "127.0.0.1", Port: 1, Volume: "x"},
		{Scheme: TCP, Host: "10.0.0.1", Port: 1, Volume: "x"},
		{Scheme: Unix, Volume: "x"},
	} {
		conn, err := Dial(t.Context(), a, Options{SSH: []string{"/nonexistent"}})
		var e *AddressError
		if !errors.As(err, &e) {
			t.Errorf("Dial(%+v): %v; want an AddressError", a, err)
		}
		if conn != nil {
			t.Errorf("Dial(%+v) returned a connection", a)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"/dev/sda", "ssh://u@h:22/x%20y", "ssh://[fe80::1%25eth0]:2/x", "tls://h:1/a%2Fb", "unix:///a%3Fb?volume=x+y", "tcp://[::1]:7/x", "ssh://-o/x", "x://",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			var e *AddressError
			if !errors.As(err, &e) {
				t.Fatalf("Parse(%q): %T", s, err)
			}
			return
		}
		again, err := Parse(a.String())
		if err != nil || again != a {
			t.Fatalf("Parse(%q) = %+v, printed %q, read back %+v, %v", s, a, a.String(), again, err)
		}
		if a.Scheme != SSH {
			return
		}
		argv, err := sshCommand(a, Options{})
		if err != nil {
			t.Fatalf("sshCommand(%+v): %v", a, err)
		}
		if strings.HasPrefix(a.Host, "-") || strings.HasPrefix(a.User, "-") || argv[len(argv)-1] != "failback serve --stdio" {
			t.Fatalf("%q runs %q", s, argv)
		}
	})
}
