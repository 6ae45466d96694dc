package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/control/authority"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

func (a *app) newToken() *cobra.Command {
	return noun("token", "Tokens by which hosts join, and programs use the API", a.newTokenCreate(), a.newTokenList(), a.newTokenRevoke())
}

func (a *app) newTokenCreate() *cobra.Command {
	var uses int
	var ttl time.Duration
	var grant []string
	var control bool
	var role string
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a token; it is shown this once",
		Long: `Make a token for hosts to join with. It carries the addresses of control, the fingerprint of the mesh's root and
a secret. The agents of a joining host can claim no labels other than those granted. With --role, make an API token
for a program instead: put it into a file and name that with --credential.`,
		Example: `  bulkhead token create --ttl 10m --grant function=retrieval,sensitivity=internal
  bulkhead token create --role viewer --ttl 720h -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			granted, err := segment.ParseLabels(grant)
			if err != nil {
				return usageError{fmt.Errorf("--grant: %w", err)}
			}
			if ttl < 0 || uses < 0 {
				return usageError{fmt.Errorf("--ttl and --uses must be above zero")}
			}
			request := api.TokenRequest{Uses: uses, Grant: granted, Control: control, Role: authority.Role(role)}
			if ttl > 0 {
				request.TTL = ttl.String()
			}
			return call(a, c, func(ctx context.Context, client *api.Client) (authority.CreatedToken, error) {
				return client.CreateToken(ctx, request)
			}, func(t *table, token authority.CreatedToken) {
				t.line("%s", token.Token)
				fmt.Fprintf(a.err, "Token %s is good until %s. It is shown this once.\n", token.ID, when(&token.Expires))
			})
		},
	}
	flags := c.Flags()
	flags.IntVar(&uses, "uses", 0, "how many hosts may join with it (default 1)")
	flags.DurationVar(&ttl, "ttl", 0, "how long it is good, like 10m or 24h (default 1h; 720h with --role)")
	flags.StringSliceVar(&grant, "grant", nil, "`key=value` labels that agents may claim, separated by commas")
	flags.BoolVar(&control, "control", false, "the joining host gets the control role")
	flags.StringVar(&role, "role", "", "make an API token with this role: admin, operator or viewer")
	c.MarkFlagsMutuallyExclusive("role", "control")
	c.MarkFlagsMutuallyExclusive("role", "grant")
	c.MarkFlagsMutuallyExclusive("role", "uses")
	return c
}

func (a *app) newTokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All tokens, without their secrets", Example: "  bulkhead token list", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return call(a, c, func(ctx context.Context, client *api.Client) ([]authority.TokenInfo, error) {
				return client.Tokens(ctx)
			},
				func(t *table, tokens []authority.TokenInfo) {
					t.row("ID", "FOR", "USED", "EXPIRES", "GRANT", "BY")
					for _, token := range tokens {
						purpose, used := "join", fmt.Sprintf("%d of %d", token.Used, token.Uses)
						if token.Control {
							purpose = "join with control"
						}
						if token.Role != "" {
							purpose, used = "API as "+string(token.Role), "-"
						}
						t.row(token.ID, purpose, used, when(&token.Expires), labels(token.Grant), token.Author)
					}
				})
		},
	}
}

func (a *app) newTokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Make a token worthless", Example: "  bulkhead token revoke 3f0c9a1b2d4e5f60", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id := bare("token", args[0])
			return call(a, c, func(ctx context.Context, client *api.Client) (map[string]string, error) {
				return map[string]string{"revoked": id}, client.RevokeToken(ctx, id)
			}, func(t *table, _ map[string]string) { t.line("Token %s is revoked.", id) })
		},
	}
}
