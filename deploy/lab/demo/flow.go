package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-mesh/bulkhead/control/api"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// service is what agents ask each other for.
type service string

const (
	web      service = "HTTP"
	postgres service = "PostgreSQL"
)

func (s service) port() segment.Port {
	if s == web {
		return segment.Port{Proto: segment.TCP, Number: webPort}
	}
	return segment.Port{Proto: segment.TCP, Number: postgresPort}
}

// flow is one agent that asks another.
type flow struct {
	from, to string
	service  service
}

// everyPair tries all flows at once and holds what packets did against what the policy says, in a table.
func everyPair(ctx context.Context, b *board, s *stage) error {
	var flows []flow
	for _, from := range s.order {
		for _, to := range s.order {
			if from != to {
				flows = append(flows, flow{from, to, web}, flow{from, to, postgres})
			}
		}
	}
	outcomes := make([]outcome, len(flows))
	err := b.step(fmt.Sprintf("try %d flows", len(flows)), func() error {
		group, ctx := errgroup.WithContext(ctx)
		for i, f := range flows {
			group.Go(func() (err error) {
				outcomes[i], err = s.judge(ctx, f)
				return err
			})
		}
		return group.Wait()
	})
	if err != nil {
		return err
	}
	rows := [][]string{{"FROM", "TO", "HTTP", "POSTGRESQL"}}
	for i := 0; i < len(flows); i += 2 {
		rows = append(rows, []string{flows[i].from, flows[i].to, b.cell(outcomes[i]), b.cell(outcomes[i+1])})
	}
	return b.table(rows)
}

// outcome is what became of a flow.
type outcome struct {
	wanted  bool // by the demo's own table
	passed  bool // packets did as wanted, over both families
	verdict api.Explanation
}

func (s *stage) judge(ctx context.Context, f flow) (o outcome, err error) {
	o.wanted = allowed[f]
	o.passed = s.passes(ctx, o.wanted, f)
	o.verdict, err = s.control.Explain(ctx, f.from, f.to, f.service.port().String())
	return o, err
}

// cell checks that packets, the simulator and the demo's own table agree.
func (b *board) cell(o outcome) string {
	text := "denied"
	if o.wanted {
		text = "allowed by " + o.verdict.Rule
	}
	if !o.passed {
		text += " was wanted, packets went otherwise"
	}
	explained := (o.verdict.Verdict == "allow") == o.wanted
	if !explained {
		text += " was wanted, explain says " + o.verdict.Verdict
	}
	return b.mark(o.passed && explained) + " " + text
}

// passes reports whether all flows go as wanted, over both families.
func (s *stage) passes(ctx context.Context, want bool, flows ...flow) bool {
	var tries errgroup.Group
	for _, f := range flows {
		for family := range s.agents[f.to].addrs {
			tries.Go(func() error {
				if (s.try(ctx, f, family) == nil) != want {
					return errors.New("not as wanted")
				}
				return nil
			})
		}
	}
	return tries.Wait() == nil
}

// try asks for the service once and looks at the answer.
func (s *stage) try(ctx context.Context, f flow, family int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if f.service == web {
		page, err := s.get(ctx, f, family, "/")
		if err != nil {
			return err
		}
		defer page.Close()
		text, err := io.ReadAll(io.LimitReader(page, 1000))
		if err == nil && strings.TrimSpace(string(text)) != greeting(f.to) {
			err = fmt.Errorf("%s serves %q", f.to, text)
		}
		return err
	}
	conn, err := s.dial(ctx, f, family)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return login(conn, f.from)
}

// get asks the web server for a page and returns its body, which ends with ctx.
func (s *stage) get(ctx context.Context, f flow, family int, path string) (io.ReadCloser, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a connection per request: each is judged anew
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx, f, family) },
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address(f, family).String()+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", f.to, response.Status)
	}
	return response.Body, nil
}

// dial connects from the agent's host and address.
func (s *stage) dial(ctx context.Context, f flow, family int) (conn net.Conn, err error) {
	from := s.agents[f.from]
	err = from.node.Do(func() (err error) {
		dialer := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.addrs[family], 0))}
		conn, err = dialer.DialContext(ctx, "tcp", s.address(f, family).String())
		return err
	})
	return conn, err
}

func (s *stage) address(f flow, family int) netip.AddrPort {
	return netip.AddrPortFrom(s.agents[f.to].addrs[family], f.service.port().Number)
}
