package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/term"
)

// progress says what is being done: on a terminal one line that changes, elsewhere a line for each step.
type progress struct {
	out   *os.File
	live  bool
	begin time.Time
}

func newProgress(out *os.File) *progress {
	return &progress{out: out, live: term.IsTerminal(int(out.Fd())), begin: time.Now()}
}

func (p *progress) say(format string, args ...any) {
	line := fmt.Sprintf("%4.0f s  %s", time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
	if p.live {
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
		return
	}
	fmt.Fprintln(p.out, line)
}

// end leaves the cursor on an empty line.
func (p *progress) end() {
	if p.live {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
