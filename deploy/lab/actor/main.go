// Command actor is an ordinary program that does on its network what it is told on standard input, one JSON order a
// line, and answers each with one line. The lab's agents are actors: nothing in it knows of bulkhead.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// order is one line of input.
type order struct {
	Do      string   `json:"do"`      // serve, ask, hold, say, connect, knock, lookup, exec, mtls-serve, mtls-ask or jwt
	Network string   `json:"network"` // tcp or udp
	Local   string   `json:"local"`   // address to bind; empty: none
	Remote  string   `json:"remote"`
	Server  string   `json:"server"` // DNS server for lookup, host:port; socket of the Workload API for mtls and jwt
	Command []string `json:"command"`
	Count   int      `json:"count"` // of connect
}

// answer is one line of output.
type answer struct {
	Error  string   `json:"error,omitempty"`
	Local  string   `json:"local,omitempty"` // own address, as the kernel says
	Remote string   `json:"remote,omitempty"`
	Names  []string `json:"names,omitempty"`
	Output string   `json:"output,omitempty"`
	Took   []int64  `json:"took,omitempty"` // by each connect, ns
}

const (
	word    = "actor: hello"
	timeout = 1500 * time.Millisecond
)

func main() {
	a := &actor{}
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o order
		var reply answer
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			reply, err = a.obey(o)
		}
		if err != nil {
			reply.Error = err.Error()
		}
		if err := out.Encode(reply); err != nil {
			os.Exit(1)
		}
	}
}

// actor keeps what it opened.
type actor struct {
	held net.Conn // of hold, for say
}

func (a *actor) obey(o order) (answer, error) {
	switch o.Do {
	case "serve":
		return serve(o)
	case "ask":
		return ask(o)
	case "hold":
		conn, err := dial(o)
		if err != nil {
			return answer{}, err
		}
		a.held = conn
		return ends(conn), nil
	case "say":
		if a.held == nil {
			return answer{}, errors.New("nothing is held")
		}
		return answer{}, talk(a.held)
	case "connect":
		return connect(o)
	case "knock":
		return knock(o)
	case "lookup":
		return lookup(o)
	case "mtls-serve", "mtls-ask", "jwt":
		return workload(o)
	case "exec":
		out, err := exec.Command(o.Command[0], o.Command[1:]...).CombinedOutput()
		return answer{Output: string(out)}, err
	}
	return answer{}, fmt.Errorf("cannot %q", o.Do)
}

func ends(conn net.Conn) answer {
	return answer{Local: conn.LocalAddr().String(), Remote: conn.RemoteAddr().String()}
}

// serve echoes until the program ends.
func serve(o order) (answer, error) {
	if o.Network == "udp" {
		conn, err := net.ListenPacket("udp", o.Local)
		if err != nil {
			return answer{}, err
		}
		go echoPackets(conn)
		return answer{Local: conn.LocalAddr().String()}, nil
	}
	l, err := net.Listen("tcp", o.Local)
	if err != nil {
		return answer{}, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return answer{Local: l.Addr().String()}, nil
}

func echoPackets(conn net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}
}

func dial(o order) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	if o.Local != "" {
		addr, err := net.ResolveTCPAddr("tcp", o.Local)
		if err != nil {
			return nil, err
		}
		d.LocalAddr = addr
		if o.Network == "udp" {
			d.LocalAddr = (*net.UDPAddr)(addr)
		}
	}
	return d.Dial(o.Network, o.Remote)
}

// connect opens and closes connections, one after another, and says how long each took to open.
func connect(o order) (answer, error) {
	var a answer
	for range o.Count {
		begin := time.Now()
		conn, err := dial(o)
		if err != nil {
			return a, err
		}
		a.Took = append(a.Took, int64(time.Since(begin)))
		if err := conn.(*net.TCPConn).SetLinger(0); err != nil { // no port waits to be used again
			return a, err
		}
		if err := conn.Close(); err != nil {
			return a, err
		}
	}
	return a, nil
}

// knock sends datagrams, each from a socket of its own, until one is answered.
func knock(o order) (answer, error) {
	for end := time.Now().Add(20 * timeout); time.Now().Before(end); {
		conn, err := net.Dial("udp", o.Remote)
		if err != nil {
			continue // it is not an agent yet
		}
		_, err = conn.Write([]byte(word))
		if err == nil {
			err = conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		}
		if err == nil {
			_, err = conn.Read(make([]byte, len(word)))
		}
		reply := ends(conn)
		if closeErr := conn.Close(); err == nil {
			return reply, closeErr
		}
	}
	return answer{}, errors.New("nobody answers")
}

// ask opens a connection, or with network udp-loose sends from a socket that is not connected, and wants its word back.
func ask(o order) (answer, error) {
	if o.Network == "udp-loose" {
		return askLoose(o)
	}
	conn, err := dial(o)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return ends(conn), talk(conn)
}

func talk(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(word)); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != word {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

func askLoose(o order) (answer, error) {
	to, err := net.ResolveUDPAddr("udp", o.Remote)
	if err != nil {
		return answer{}, err
	}
	conn, err := net.ListenPacket("udp", o.Local)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return answer{}, err
	}
	if _, err := conn.WriteTo([]byte(word), to); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 2048)
	_, from, err := conn.ReadFrom(buf)
	if err != nil {
		return answer{}, err
	}
	return answer{Local: conn.LocalAddr().String(), Remote: from.String()}, nil
}

// lookup asks for the addresses of a name, or for the name of an address.
func lookup(o order) (answer, error) {
	r := resolver(o.Server)
	ctx, cancel := contextWithTimeout()
	defer cancel()
	if net.ParseIP(o.Remote) != nil {
		names, err := r.LookupAddr(ctx, o.Remote)
		return answer{Names: names}, err
	}
	names, err := r.LookupHost(ctx, strings.TrimSuffix(o.Remote, ".")+".")
	return answer{Names: names}, err
}
