package gossip

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// messageType is the first byte of a memberlist message. The numbers are memberlist's wire protocol.
type messageType byte

const (
	pingType messageType = iota
	indirectPingType
	ackType
	suspectType
	aliveType
	deadType
	pushPullType
	compoundType
	userType
	compressType
	encryptType
	nackType
	crcType
	errorType
)

// The structs are memberlist's messages; their field names are the keys on the wire.
type (
	ping struct {
		SeqNo      uint32
		Node       string
		SourceAddr []byte `codec:",omitempty"`
		SourcePort uint16 `codec:",omitempty"`
		SourceNode string `codec:",omitempty"`
	}
	indirectPing struct {
		SeqNo      uint32
		Target     []byte
		Port       uint16
		Node       string
		Nack       bool
		SourceAddr []byte `codec:",omitempty"`
		SourcePort uint16 `codec:",omitempty"`
		SourceNode string `codec:",omitempty"`
	}
	ack struct {
		SeqNo   uint32
		Payload []byte
	}
	nack struct {
		SeqNo uint32
	}
	suspect struct {
		Incarnation uint32
		Node        string
		From        string
	}
	dead  suspect
	alive struct {
		Incarnation uint32
		Node        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Vsn         []uint8
	}
	pushPullHeader struct {
		Nodes        int
		UserStateLen int
		Join         bool
	}
	nodeState struct {
		Name        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Incarnation uint32
		State       int // memberlist.NodeStateType
		Vsn         []uint8
	}
)

const (
	maxField  = 512 // bytes of one key or value: memberlist's limit of meta is the longest
	maxParts  = 64  // messages in one packet
	crcHeader = 5
)

var (
	errMalformed = errors.New("malformed message")
	errSender    = errors.New("host may not take part")
)

// encode returns the message as memberlist would send it.
func encode(kind messageType, message any) ([]byte, error) {
	b := bytes.NewBuffer([]byte{byte(kind)})
	if err := codec.NewEncoder(b, new(codec.MsgpackHandle)).Encode(message); err != nil {
		return nil, fmt.Errorf("encode message of type %d: %w", kind, err)
	}
	return b.Bytes(), nil
}

// decode reads the one message that body holds.
func decode(body []byte, message any) error {
	r := bufio.NewReader(bytes.NewReader(body))
	object, err := readObject(r)
	if err != nil {
		return err
	}
	if len(object) != len(body) {
		return errMalformed
	}
	return unmarshal(object, message)
}

// unmarshal decodes an object that readObject framed.
func unmarshal(object []byte, message any) error {
	if err := codec.NewDecoderBytes(object, new(codec.MsgpackHandle)).Decode(message); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return nil
}

// readObject reads the bytes of one msgpack map of short scalars, which all of memberlist's messages
// are. The library would allocate what a length says before it reads; nothing longer gets that far.
func readObject(r *bufio.Reader) ([]byte, error) {
	head, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	if head&0xf0 != 0x80 { // a map of at most 15 entries
		return nil, errMalformed
	}
	object := []byte{head}
	for range 2 * int(head&0x0f) {
		if object, err = appendScalar(object, r); err != nil {
			return nil, err
		}
	}
	return object, nil
}

// appendScalar copies one msgpack nil, boolean, integer, string or byte string from r.
func appendScalar(object []byte, r *bufio.Reader) ([]byte, error) {
	head, err := r.ReadByte()
	if err != nil {
		return nil, noEOF(err)
	}
	object = append(object, head)
	size, length := 0, 0 // bytes of the value; bytes of a length before it
	switch {
	case head < 0x80, head >= 0xe0, head == 0xc0, head == 0xc2, head == 0xc3:
	case head >= 0xa0 && head < 0xc0:
		size = int(head & 0x1f)
	case head == 0xc4, head == 0xd9:
		length = 1
	case head == 0xc5, head == 0xda:
		length = 2
	case head >= 0xcc && head <= 0xd3:
		size = 1 << (head & 0x03)
	default:
		return nil, errMalformed
	}
	if length > 0 {
		at := len(object)
		if object, err = appendN(object, r, length); err != nil {
			return nil, err
		}
		for _, b := range object[at:] {
			size = size<<8 | int(b)
		}
	}
	if size > maxField {
		return nil, errMalformed
	}
	return appendN(object, r, size)
}

func appendN(object []byte, r io.Reader, n int) ([]byte, error) {
	at := len(object)
	object = append(object, make([]byte, n)...)
	_, err := io.ReadFull(r, object[at:])
	return object, noEOF(err)
}

// noEOF makes the end of input inside a message an error of its own.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// stripCRC returns the packet inside memberlist's checksum, if it has one.
func stripCRC(b []byte) ([]byte, error) {
	if len(b) == 0 || messageType(b[0]) != crcType {
		return b, nil
	}
	if len(b) < crcHeader || crc32.ChecksumIEEE(b[crcHeader:]) != binary.BigEndian.Uint32(b[1:]) {
		return nil, errMalformed
	}
	return b[crcHeader:], nil
}

// split returns the messages of a packet without checksum: itself, or the parts of a compound.
func split(b []byte) ([][]byte, error) {
	if len(b) == 0 {
		return nil, errMalformed
	}
	if messageType(b[0]) != compoundType {
		return [][]byte{b}, nil
	}
	if len(b) < 2 || b[1] == 0 || b[1] > maxParts || len(b) < 2+2*int(b[1]) {
		return nil, errMalformed
	}
	n := int(b[1])
	lengths, rest := b[2:2+2*n], b[2+2*n:]
	parts := make([][]byte, 0, n)
	for i := range n {
		size := int(binary.BigEndian.Uint16(lengths[2*i:]))
		if size == 0 || size > len(rest) {
			return nil, errMalformed
		}
		parts, rest = append(parts, rest[:size:size]), rest[size:]
	}
	if len(rest) > 0 {
		return nil, errMalformed
	}
	return parts, nil
}
