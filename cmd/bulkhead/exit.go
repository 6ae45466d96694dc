package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// The exit codes. They are a contract with scripts.
const (
	exitDone        = 0
	exitError       = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitDenied      = 4
	exitTestsFailed = 5
	exitNotStarted  = 125
)

const exitCodesHelp = `Exit codes of every command:

  0  done
  1  error: the message on stderr says what and how to mend it
  2  usage: unknown command or flag, or a value that cannot be
  3  the daemon, or control, is not reached
  4  denied: your role does not allow it, or ` + "`policy explain`" + ` says deny
  5  policy tests fail

` + "`run`" + ` exits as its command does: with the same code, or with 128+N if signal N ended it. If the command did not start:

  125  the message on stderr says why; 2 is for how ` + "`run`" + ` itself was written`

// usageError is a mistake in how the command was written.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// notStarted is why `run` did not start its command.
type notStarted struct{ error }

func (e notStarted) Unwrap() error { return e.error }

// verdict is an exit code for an answer that was given in full: nothing is printed for it.
type verdict struct{ code int }

func (verdict) Error() string { return "the answer is no" }

// exitCode maps what a command returned.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	if v, ok := errors.AsType[verdict](err); ok {
		return v.code
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[notStarted](err); ok {
		return exitNotStarted
	}
	if errors.Is(err, api.ErrUnreachable) {
		return exitUnreachable
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		switch p.Code {
		case api.CodeUnreachable, api.CodeNoControl:
			return exitUnreachable
		case authority.CodeDenied, api.CodeUnauthenticated:
			return exitDenied
		case authority.CodeTestsFailed:
			return exitTestsFailed
		}
	}
	return exitError
}

// newExitCodesTopic is help without a command.
func newExitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesHelp}
}
