package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

// board is what the audience reads. It counts the checks.
type board struct {
	out            io.Writer
	live           bool // a terminal: what is being done now stands on the last line
	passed, failed int
}

func newBoard(out *os.File) *board { return &board{out: out, live: term.IsTerminal(int(out.Fd()))} }

func (b *board) title(text string) { fmt.Fprintf(b.out, "\n%s\n", text) }

func (b *board) line(format string, args ...any) { fmt.Fprintf(b.out, "  "+format+"\n", args...) }

// step does something that takes a while, and says so.
func (b *board) step(what string, do func() error) error {
	begin := time.Now()
	if b.live {
		fmt.Fprintf(b.out, "  … %s", what)
	}
	err := do()
	if b.live {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
	b.check(err == nil, "%s (%s)", what, seconds(time.Since(begin)))
	return err
}

// check marks one thing that must be so.
func (b *board) check(ok bool, format string, args ...any) {
	b.line("%s %s", b.mark(ok), fmt.Sprintf(format, args...))
}

// mark counts a check and gives its sign.
func (b *board) mark(ok bool) string {
	if ok {
		b.passed++
		return "✓"
	}
	b.failed++
	return "✗"
}

// table prints rows in columns.
func (b *board) table(rows [][]string) error {
	w := tabwriter.NewWriter(b.out, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
	}
	return w.Flush()
}

func (b *board) fault(err error) { b.line("✗ %s", strings.ReplaceAll(err.Error(), "\n", "\n    ")) }

// sum says how it went, and whether every check passed.
func (b *board) sum(took time.Duration) bool {
	if b.failed > 0 {
		b.line("%d of %d checks failed, in %s.", b.failed, b.passed+b.failed, seconds(took))
		return false
	}
	b.line("%d checks passed in %s.", b.passed, seconds(took))
	return true
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
