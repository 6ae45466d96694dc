package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
)

// maxDocument is what the API takes.
const maxDocument = 1 << 20

func (a *app) newPolicy() *cobra.Command {
	return noun("policy", "All segments and rules, as one signed document",
		a.newPolicyShow(), a.newPolicyCheck(), a.newPolicyApply(), a.newPolicyDiff(), a.newPolicyVersions(), a.newPolicyRollback(),
		a.newPolicyExplain(), a.newPolicyReach())
}

// readDocument reads the file of -f; - is stdin.
func (a *app) readDocument(path string) ([]byte, error) {
	if path == "" {
		return nil, usageError{errors.New("--file is missing (fix: name the policy document, or - for stdin)")}
	}
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read policy: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	if len(data) > maxDocument {
		return nil, fmt.Errorf("read policy: it has more than %d bytes", maxDocument)
	}
	return data, nil
}

func defineFile(c *cobra.Command, file *string) {
	c.Flags().StringVarP(file, "file", "f", "", "policy document, YAML or JSON; - for stdin")
}

func (a *app) newPolicyShow() *cobra.Command {
	var version uint64
	c := &cobra.Command{
		Use:     "show",
		Short:   "The policy document",
		Long:    "Show the policy document as it was signed; with -o json or yaml also its version, author and revocations.",
		Example: "  bulkhead policy show > policy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) (api.PolicyDocument, error) {
				if version != 0 {
					return client.PolicyAt(ctx, version)
				}
				return client.Policy(ctx)
			}, func(t *table, p api.PolicyDocument) {
				fmt.Fprintf(a.err, "Version %d of %s by %s.\n", p.Version, when(&p.Issued), printable(p.Author))
				t.line("%s", strings.TrimSuffix(p.Document, "\n"))
			})
		},
	}
	c.Flags().Uint64Var(&version, "version", 0, "an older `version` (default: the newest)")
	return c
}

func (a *app) newPolicyVersions() *cobra.Command {
	return &cobra.Command{
		Use: "versions", Short: "All policy versions, oldest first", Example: "  bulkhead policy versions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) ([]authority.VersionInfo, error) {
				return client.Versions(ctx)
			},
				func(t *table, versions []authority.VersionInfo) {
					t.row("VERSION", "ISSUED", "BY", "WHAT")
					for _, v := range versions {
						t.row(v.Version, when(&v.Issued), v.Author, v.Summary)
					}
				})
		},
	}
}

func (a *app) newPolicyRollback() *cobra.Command {
	var change changeFlags
	c := &cobra.Command{
		Use:     "rollback VERSION",
		Short:   "Make a new version with the content of an old one",
		Long:    `Make a new version with the segments, rules and tests of an old one. Revocations stay: they cannot be rolled back.`,
		Example: "  bulkhead policy rollback 7 --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			version, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || version == 0 {
				return usageError{fmt.Errorf("%q is no version (fix: choose one of `bulkhead policy versions`)", args[0])}
			}
			return a.change(c, change, func(ctx context.Context, client *api.Client) (authority.Change, error) {
				return client.Rollback(ctx, version)
			})
		},
	}
	change.define(c, false)
	return c
}
