package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// table collects what is printed at the end: titles, rows in columns, and notes below them.
type table struct {
	out  bytes.Buffer
	rows [][]string
}

func (t *table) title(format string, args ...any) {
	t.align()
	fmt.Fprintf(&t.out, "\n"+format+"\n", args...)
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) note(format string, args ...any) {
	t.align()
	fmt.Fprintf(&t.out, "  "+format+"\n", args...)
}

// align prints the rows since the last title or note.
func (t *table) align() {
	w := tabwriter.NewWriter(&t.out, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
	}
	t.rows = nil
	w.Flush() // into memory: it cannot fail
}

func (t *table) flush(out io.Writer) error {
	t.align()
	_, err := t.out.WriteTo(out)
	return err
}

// figure has about three digits that count.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func ratio(v float64) string { return fmt.Sprintf("%.3f", v) }

func span(s spread) string { return fmt.Sprintf("%.2f–%.2f", s.Min, s.Max) }

func megabytes(n uint64) string { return figure(float64(n) / 1e6) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

func mark(met bool) string {
	if met {
		return "✓"
	}
	return "✗"
}
