package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

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

// everyPair tries all flows and holds what packets did against what the policy says, in a table.
func everyPair(ctx context.Context, b *board, s *stage) error {
	rows := [][]string{{"FROM", "TO", "HTTP", "POSTGRESQL"}}
	for _, from := range s.order {
		for _, to := range s.order {
			if from == to {
				continue
			}
			row := []string{from, to}
			for _, service := range []service{web, postgres} {
				cell, err := b.tryFlow(ctx, s, flow{from, to, service})
				if err != nil {
					return err
				}
				row = append(row, cell)
			}
			rows = append(rows, row)
		}
	}
	return b.table(rows)
}

// tryFlow checks that packets, the simulator and the demo's own table agree.
func (b *board) tryFlow(ctx context.Context, s *stage, f flow) (cell string, err error) {
	explained, err := s.control.Explain(ctx, f.from, f.to, f.service.port().String())
	if err != nil {
		return "", err
	}
	want := allowed[f]
	ok := (explained.Verdict == "allow") == want && s.passes(ctx, f, want)
	verdict := "denied"
	if want {
		verdict = "allowed by " + explained.Rule
	}
	if !ok {
		verdict += " was wanted; explain says " + explained.Verdict + ", and packets went otherwise"
	}
	return b.mark(ok) + " " + verdict, ctx.Err()
}

// passes reports whether the flow goes as wanted over both families.
func (s *stage) passes(ctx context.Context, f flow, want bool) bool {
	for family := range s.agents[f.to].addrs {
		if (s.try(ctx, f, family) == nil) != want {
			return false
		}
	}
	return true
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
