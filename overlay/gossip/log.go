package gossip

import (
	"bytes"
	"context"
	"log"
	"log/slog"

	"golang.org/x/time/rate"
)

// newLog returns a logger for memberlist that hands its lines to log. What other hosts do makes it
// write, so the number of lines is limited; its errors are warnings to us, because it goes on.
func newLog(to *slog.Logger) *log.Logger {
	return log.New(&logWriter{to: to, limit: rate.NewLimiter(5, 50)}, "", 0)
}

type logWriter struct {
	to    *slog.Logger
	limit *rate.Limiter
}

// Write takes one line like "[WARN] memberlist: text".
func (w *logWriter) Write(line []byte) (int, error) {
	level := slog.LevelWarn
	text := bytes.TrimSpace(line)
	if tag, rest, ok := bytes.Cut(text, []byte("] ")); ok && bytes.HasPrefix(tag, []byte("[")) {
		text = rest
		switch string(tag[1:]) {
		case "DEBUG", "INFO":
			level = slog.LevelDebug
		case "WARN": // its warnings are rumours about others
			level = slog.LevelInfo
		}
	}
	if w.to.Enabled(context.Background(), level) && w.limit.Allow() {
		w.to.Log(context.Background(), level, string(bytes.TrimPrefix(text, []byte("memberlist: "))))
	}
	return len(line), nil
}
