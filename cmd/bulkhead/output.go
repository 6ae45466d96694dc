package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func (a *app) checkFormat(c *cobra.Command) error {
	if value := os.Getenv("BULKHEAD_OUTPUT"); value != "" && !c.Flags().Changed("output") {
		a.format = value
	}
	if a.json {
		a.format = formatJSON
	}
	switch a.format {
	case formatTable, formatJSON, formatYAML:
		return nil
	}
	return usageError{fmt.Errorf("--output %q is not a format (fix: table, json or yaml)", a.format)}
}

// answer prints v on stdout: for programs as it is, for people as show lays it out.
func (a *app) answer(v any, show func(*table)) error {
	switch a.format {
	case formatJSON:
		encoder := json.NewEncoder(a.out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	case formatYAML:
		data, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("print answer: %w", err)
		}
		if data, err = yaml.JSONToYAML(data); err != nil {
			return fmt.Errorf("print answer: %w", err)
		}
		_, err = a.out.Write(data)
		return err
	default:
		t := &table{w: tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)}
		show(t)
		return t.w.Flush()
	}
}

// table lays out text for people.
type table struct{ w *tabwriter.Writer }

// row prints cells in columns. What came from elsewhere cannot move the cursor or forge lines.
func (t *table) row(cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, oneLine(fmt.Sprint(cell)))
	}
	fmt.Fprintln(t.w)
}

// line prints a line that is not part of the columns around it.
func (t *table) line(format string, args ...any) {
	fmt.Fprintln(t.w, printable(fmt.Sprintf(format, args...)))
}

// oneLine is s in one line that a terminal shows and does not obey; a dash if it is empty.
func oneLine(s string) string {
	s = strings.TrimSpace(strings.ReplaceAll(printable(s), "\n", " "))
	if s == "" {
		return "-"
	}
	return s
}

// printable replaces control characters other than newlines.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// list joins anything that prints.
func list[T any](items []T) string {
	var parts []string
	for _, item := range items {
		parts = append(parts, fmt.Sprint(item))
	}
	return strings.Join(parts, ", ")
}

// when prints a time for people; a dash if there is none.
func when(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// until prints the end of a certificate; a dash if this host does not know it.
func until(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return "until " + when(t)
}

// age prints a number of seconds in at most two units.
func age(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", seconds)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", seconds/60, seconds%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", seconds/3600, seconds/60%60)
	}
	return fmt.Sprintf("%dd%dh", seconds/86400, seconds/3600%24)
}

// bytesOf prints a number of bytes with a binary unit.
func bytesOf(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// isTerminal reports whether people watch w as it is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
