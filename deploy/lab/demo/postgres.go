package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The beginning of the PostgreSQL protocol, version 3.0: the client asks for TLS, is told no, introduces itself,
// and is let in. Messages have a length that counts itself.
const (
	sslRequest     = 80877103
	protocol3      = 3 << 16
	maxStartup     = 10_000 // bytes, as in PostgreSQL
	noSSL          = 'N'
	authentication = 'R'
	readyForQuery  = 'Z'
)

// admit is the server's part.
func admit(conn net.Conn) error {
	code, _, err := readStartup(conn)
	if err != nil {
		return err
	}
	if code == sslRequest {
		if _, err := conn.Write([]byte{noSSL}); err != nil {
			return err
		}
		if code, _, err = readStartup(conn); err != nil {
			return err
		}
	}
	if code != protocol3 {
		return fmt.Errorf("unknown protocol %#x", code)
	}
	answer := append(message(authentication, 0, 0, 0, 0), message(readyForQuery, 'I')...)
	if _, err := conn.Write(answer); err != nil {
		return err
	}
	return drain(conn)
}

// login is the client's part. It ends when the server is ready for a query.
func login(conn net.Conn, user string) error {
	if _, err := conn.Write(startup(sslRequest, "")); err != nil {
		return err
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if answer[0] != noSSL {
		return fmt.Errorf("answer %q to the request for TLS", answer)
	}
	if _, err := conn.Write(startup(protocol3, "user\x00"+user+"\x00database\x00demo\x00\x00")); err != nil {
		return err
	}
	want := append(message(authentication, 0, 0, 0, 0), message(readyForQuery, 'I')...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != string(want) {
		return fmt.Errorf("answer %x to the login", got)
	}
	return nil
}

// startup is a message of the kind that begins a connection, without a type.
func startup(code uint32, parameters string) []byte {
	m := binary.BigEndian.AppendUint32(nil, uint32(8+len(parameters)))
	m = binary.BigEndian.AppendUint32(m, code)
	return append(m, parameters...)
}

func readStartup(r io.Reader) (code uint32, parameters []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 8 || length > maxStartup {
		return 0, nil, errors.New("startup message of a wrong length")
	}
	parameters = make([]byte, length-8)
	_, err = io.ReadFull(r, parameters)
	return binary.BigEndian.Uint32(head[4:]), parameters, err
}

// message is one with a type.
func message(kind byte, body ...byte) []byte {
	m := binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body)))
	return append(m, body...)
}
