package overlay

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
	"github.com/bulkhead-mesh/bulkhead/segment"
)

// A pull is one stream: the request as one frame, the answer as frames until the end of the stream.
// Frames are a 4-byte big-endian length and that many bytes; an answer's frame begins with its type.
const (
	maxRequest = 512 << 10 // what a host says that it has of 5,000 others
	maxAnswer  = signed.MaxPolicy + 1

	frameRecord byte = 'R' // one signed record
	framePolicy byte = 'P' // one signed policy
)

// pullRequest asks for what the sender lacks. The answer holds every record that it names in Want or,
// when Have is given, that is newer than Have says, and the policy if newer than PolicyVersion.
type pullRequest struct {
	Want          []string          `json:"want,omitempty"`
	Have          map[string]uint64 `json:"have,omitempty"` // record sequence by host
	PolicyVersion uint64            `json:"policyVersion"`

	rumour bool // others said that there is news: if there is none, the host that is asked did not lie
}

var errFrame = errors.New("malformed frame")

func writeFrame(w io.Writer, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	buf := make([]byte, 4, 4+n)
	binary.BigEndian.PutUint32(buf, uint32(n))
	for _, p := range parts {
		buf = append(buf, p...)
	}
	_, err := w.Write(buf)
	return err
}

// readFrame returns io.EOF at the end of the stream and errFrame for a frame of more than limit bytes.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || int64(n) > int64(limit) {
		return nil, fmt.Errorf("%w of %d bytes", errFrame, n)
	}
	// ReadAll grows with what really arrives, so a lying length costs its sender the bytes.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return nil, err
	}
	if len(body) != int(n) {
		return nil, io.ErrUnexpectedEOF
	}
	return body, nil
}

func writeRequest(w Stream, req pullRequest) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := writeFrame(w, body); err != nil {
		return err
	}
	return w.CloseWrite()
}

func parsePullRequest(body []byte) (pullRequest, error) {
	var req pullRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return pullRequest{}, fmt.Errorf("parse pull request: %w", err)
	}
	if len(req.Want) > maxPullsAhead {
		return pullRequest{}, fmt.Errorf("parse pull request: it wants %d records, at most %d are given", len(req.Want), maxPullsAhead)
	}
	for i, host := range req.Want {
		if segment.ValidName(host) != nil || slices.Contains(req.Want[:i], host) {
			return pullRequest{}, fmt.Errorf("parse pull request: it wants %.64q, which is no name or there twice", host)
		}
	}
	return req, nil
}

// answerPull writes what req asks for out of s.
func answerPull(w io.Writer, req pullRequest, s *Snapshot) error {
	if s.Policy != nil && s.Policy.Version > req.PolicyVersion {
		if err := writeFrame(w, []byte{framePolicy}, s.Policy.Raw); err != nil {
			return err
		}
	}
	send := func(host string) error {
		record := s.Records[host]
		if record == nil {
			return nil
		}
		return writeFrame(w, []byte{frameRecord}, record.Raw)
	}
	for _, host := range req.Want {
		if err := send(host); err != nil {
			return err
		}
	}
	if req.Have == nil {
		return nil
	}
	for host, record := range s.Records {
		if record.Sequence > req.Have[host] {
			if err := send(host); err != nil {
				return err
			}
		}
	}
	return nil
}
