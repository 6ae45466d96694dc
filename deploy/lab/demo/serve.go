package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/bulkhead-mesh/bulkhead/deploy/lab"
)

const (
	webPort      = 80
	postgresPort = 5432

	patience = 3 * time.Second // of a client or server with the other

	// A download is a chunk a tick, about 100 Mbit/s: much, but it leaves the machine time for all else.
	chunk = 64 << 10
	tick  = 5 * time.Millisecond
)

// server is one agent's web server and database.
type server struct {
	web       *http.Server
	listeners []net.Listener // of the database
	running   sync.WaitGroup
}

// serve starts both on every address.
func serve(host *lab.Node, addrs []netip.Addr) (*server, error) {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, greeting(host.Agent)) })
	routes.HandleFunc("GET /download", download)
	s := &server{web: &http.Server{Handler: routes, ReadHeaderTimeout: patience}}
	err := host.Do(func() error {
		for _, addr := range addrs {
			pages, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, webPort)))
			if err != nil {
				return err
			}
			s.running.Go(func() { _ = s.web.Serve(pages) }) // ends with close
			rows, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, postgresPort)))
			if err != nil {
				return err
			}
			s.listeners = append(s.listeners, rows)
			s.running.Go(func() { s.database(rows) })
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve on %s: %w", host.Name, err), s.close())
	}
	return s, nil
}

// greeting is the page that agent serves.
func greeting(agent string) string { return "this is " + agent }

// download sends bytes until the client has gone.
func download(w http.ResponseWriter, r *http.Request) {
	pace := time.NewTicker(tick)
	defer pace.Stop()
	data := make([]byte, chunk)
	for {
		if _, err := w.Write(data); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-pace.C:
		}
	}
}

func (s *server) database(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		s.running.Go(func() {
			defer conn.Close()
			// A client that goes away half way is its own business.
			_ = errors.Join(conn.SetDeadline(time.Now().Add(patience)), admit(conn))
		})
	}
}

func (s *server) close() error {
	err := s.web.Close()
	for _, l := range s.listeners {
		err = errors.Join(err, l.Close())
	}
	s.running.Wait()
	return err
}

// drain reads until the other side closes.
func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}
