package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// sqlite is a SQLite database, worked on by the sqlite3 program. Transaction n
// inserts row n and changes an older one.
type sqlite struct {
	program string
	path    string
}

const sqliteSchema = `PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
CREATE TABLE IF NOT EXISTS entry (n INTEGER PRIMARY KEY, changed INTEGER, payload BLOB);
SELECT 'last', coalesce(max(n), 0) FROM entry;
`

func (s *sqlite) load(ctx context.Context, enough <-chan struct{}) (int64, error) {
	var errs bytes.Buffer
	c := exec.CommandContext(ctx, s.program, "-bail", "-batch", "-list", s.path)
	c.Stderr = &errs
	in, err := c.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	last, err := s.commit(in, bufio.NewReader(out), enough)
	err = errors.Join(err, in.Close(), c.Wait())
	if err != nil {
		return 0, fmt.Errorf("work on %s: %w: %s", s.path, err, strings.TrimSpace(errs.String()))
	}
	return last, nil
}

// commit runs transactions one by one: each is durable before the next begins.
func (s *sqlite) commit(in io.Writer, out *bufio.Reader, enough <-chan struct{}) (int64, error) {
	last, err := sqliteStep(in, out, sqliteSchema)
	for done := 0; err == nil; done++ {
		select {
		case <-enough:
			if done >= minTransactions {
				return last, nil
			}
		default:
		}
		n := last + 1
		last, err = sqliteStep(in, out, fmt.Sprintf(
			"BEGIN; INSERT INTO entry VALUES (%d, 0, randomblob(1500)); UPDATE entry SET changed = %d WHERE n = abs(random() %% %d); COMMIT; SELECT 'last', max(n) FROM entry;\n", n, n, n))
		if err == nil && last != n {
			return 0, fmt.Errorf("transaction %d is followed by %d", n, last)
		}
	}
	return 0, err
}

// sqliteStep sends statements that end with a line "last|n" and returns n.
func sqliteStep(in io.Writer, out *bufio.Reader, statements string) (int64, error) {
	if _, err := io.WriteString(in, statements); err != nil {
		return 0, err
	}
	for {
		line, err := out.ReadString('\n')
		if err != nil {
			return 0, err
		}
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "last|"); ok {
			return strconv.ParseInt(n, 10, 64)
		}
	}
}

func (s *sqlite) check(ctx context.Context) (int64, error) {
	out, err := output(ctx, s.program, "-bail", "-batch", "-list", s.path,
		"PRAGMA integrity_check; SELECT max(n), count(*) FROM entry;")
	if err != nil {
		return 0, err
	}
	lines := strings.Fields(out)
	if len(lines) != 2 || lines[0] != "ok" {
		return 0, fmt.Errorf("PRAGMA integrity_check of %s: %s", s.path, out)
	}
	last, count, _ := strings.Cut(lines[1], "|")
	if last != count {
		return 0, fmt.Errorf("%s: the last transaction is %s, but there are %s", s.path, last, count)
	}
	return strconv.ParseInt(last, 10, 64)
}
