package segment

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of a policy's text, far above what a policy within the bounds of Validate needs.
const (
	// MaxDocument is the longest policy text, bytes.
	MaxDocument = 4 << 20
	maxMarks    = 100_000 // characters that can begin a token: each token costs the parser memory
	maxDepth    = 16      // of nesting; a policy needs 4
	maxKeys     = 64      // of one mapping: the parser's time grows with their square
)

// Parse reads a policy, YAML or JSON, and validates it. The error is a *PolicyError whose problems all carry line,
// column, field and fix. An empty document denies everything.
func Parse(data []byte) (*Policy, error) {
	root, err := parseTree(data)
	if err != nil {
		return nil, err
	}
	r := &reader{places: make(map[string]token.Position)}
	policy := r.policy(root)
	if len(r.problems) > 0 {
		return nil, refuse(r.problems...)
	}
	if err := policy.Validate(); err != nil {
		refusal, ok := errors.AsType[*PolicyError](err)
		if !ok {
			return nil, err
		}
		for i := range refusal.Problems {
			r.locate(&refusal.Problems[i])
		}
		return nil, refuse(refusal.Problems...)
	}
	return policy, nil
}

// parseTree returns the node of the one document; nil if it is empty. The text is bounded, and what policy has no
// use for is refused, before the parser, which recurses, sees it.
func parseTree(data []byte) (root ast.Node, err error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if len(data) > MaxDocument {
		return nil, refuseAt(nil, "split it, or shorten descriptions", "has %d bytes, more than %d", len(data), MaxDocument)
	}
	if marks := countMarks(data); marks > maxMarks {
		return nil, refuseAt(nil, "split it", "has %d parts, more than %d", marks, maxMarks)
	}
	defer func() { // other people's parser, anyone's bytes
		if recover() != nil {
			root, err = nil, refuseAt(nil, "check quotes, brackets and indentation", "is not YAML")
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if err := checkTokens(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // the reader refuses them, by field
	if err != nil {
		return nil, refuseSyntax(err)
	}
	if len(file.Docs) == 0 {
		return nil, nil
	}
	return file.Docs[0].Body, nil // checkTokens has seen that there is no other
}

func countMarks(data []byte) (marks int) {
	for _, c := range data {
		switch c {
		case '\n', '\r', ',', ':', '#', '[', ']', '{', '}', '"', '\'', '&', '*', '!', '|', '>', '%', '?':
			marks++
		}
	}
	return marks
}

// checkTokens refuses a second document, of which the parser may drop one in silence, anchors, aliases, tags and the
// like, deep nesting, and mappings with very many keys.
func checkTokens(tokens token.Tokens) error {
	var n nesting
	begun, ended := false, false
	for i, t := range tokens {
		if t.Type == token.CommentType {
			continue
		}
		if ended || (begun && t.Type == token.DocumentHeaderType) {
			return refuseAt(t, "keep one document, with no --- or ... inside", "has a second document")
		}
		begun, ended = true, t.Type == token.DocumentEndType
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return refuseAt(t, "write the value out at each place", "has an anchor or alias")
		case token.TagType:
			return refuseAt(t, "leave the ! away, or put the value in quotes", "has a tag")
		case token.DirectiveType:
			return refuseAt(t, "leave it out", "has a directive")
		case token.MappingKeyType:
			return refuseAt(t, "write it like key: value", "has a question mark for a key")
		}
		if err := n.enter(tokens, i); err != nil {
			return err
		}
	}
	return nil
}

// nesting follows how deep the text is nested: flow collections by their brackets, block collections by columns.
type nesting struct {
	flow  int
	block []level
}

type level struct {
	column, keys int
	list         bool
}

func (n *nesting) enter(tokens token.Tokens, i int) error {
	t := tokens[i]
	switch t.Type {
	case token.MappingStartType, token.SequenceStartType:
		n.flow++
	case token.MappingEndType, token.SequenceEndType:
		n.flow = max(n.flow-1, 0)
	case token.SequenceEntryType:
		if n.flow == 0 {
			n.enterBlock(t.Position.Column, true)
		}
	case token.MappingValueType:
		if n.flow == 0 && i > 0 && n.enterBlock(tokens[i-1].Position.Column, false) > maxKeys {
			return refuseAt(t, "leave out what is too much", "has a mapping with more than %d keys", maxKeys)
		}
	}
	if n.flow+len(n.block) > maxDepth {
		return refuseAt(t, "nest less: a policy is four levels deep", "nests more than %d levels deep", maxDepth)
	}
	return nil
}

// enterBlock notes a key or list entry at column and returns how many its collection has so far.
func (n *nesting) enterBlock(column int, list bool) int {
	for len(n.block) > 0 {
		top := &n.block[len(n.block)-1]
		if top.column < column || (top.column == column && list && !top.list) {
			break // deeper; a list may stand at the column of the key it belongs to
		}
		if top.column == column && top.list == list {
			top.keys++
			return top.keys
		}
		n.block = n.block[:len(n.block)-1]
	}
	n.block = append(n.block, level{column: column, keys: 1, list: list})
	return 1
}

// refuseAt is the error of the text as a whole; at its beginning if t is nil.
func refuseAt(t *token.Token, fix, format string, args ...any) error {
	p := Problem{Line: 1, Column: 1, Field: "document", Message: fmt.Sprintf(format, args...), Fix: fix}
	if t != nil && t.Position != nil {
		p.Line, p.Column = max(t.Position.Line, 1), max(t.Position.Column, 1)
	}
	return refuse(p)
}

func refuseSyntax(err error) error {
	syntax, ok := errors.AsType[*yaml.SyntaxError](err)
	if !ok {
		return refuseAt(nil, "check quotes, brackets and indentation", "is not YAML")
	}
	fix := "check quotes, brackets and indentation here"
	if strings.Contains(syntax.Message, "invalid header option") {
		fix = `put the value in quotes, like ">=internal"`
	}
	return refuseAt(syntax.Token, fix, "%.200s", syntax.Message)
}
