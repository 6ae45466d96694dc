// Command bulkhead is a host's daemon and the command line of a mesh.
//
// It holds no logic: flags in, calls to packages daemon and api, answers out. The answer goes to stdout, all else
// to stderr; exit codes are those of `bulkhead help exit-codes`.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(code)
}
