package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/bulkhead-mesh/bulkhead/"

// maxLines is how long a file can be and still tell one story.
const maxLines = 500

// layers gives every folder its height. Imports point down, so a folder imports lower ones only, and within one
// height only its own group. The longest matching folder counts.
var layers = map[string]int{
	"segment":          0,
	"overlay":          1,
	"overlay/identity": 1,
	"overlay/signed":   1,
	"overlay/gossip":   2,
	"overlay/link":     2,
	"overlay/tunnel":   2,
	"control":          2,
	"platform":         2,
	"daemon":           3,
	"deploy":           4,
	"cmd":              4,
}

// owners are the packages through which alone a big library is used, so that it can be replaced there.
var owners = map[string][]string{
	"golang.zx2c4.com/wireguard":                        {"overlay/tunnel", "deploy/lab/bench/barewg"}, // the latter is the baseline of the benchmark, no part of the product
	"github.com/quic-go/quic-go":                        {"overlay/link"},
	"github.com/hashicorp/memberlist":                   {"overlay/gossip"},
	"github.com/hashicorp/go-msgpack":                   {"overlay/gossip"},
	"go.etcd.io/bbolt":                                  {"platform/kv"},
	"github.com/vishvananda/netlink":                    {"platform", "platform/bind"},
	"github.com/vishvananda/netns":                      {"platform"},
	"github.com/coreos/go-iptables":                     {"platform"},
	"github.com/coreos/go-systemd":                      {"platform", "platform/scope"},
	"github.com/danielgtaylor/huma":                     {"control/api"},
	"github.com/spf13/cobra":                            {"cmd/bulkhead"},
	"github.com/spf13/pflag":                            {"cmd/bulkhead"},
	"github.com/schollz/progressbar":                    {"cmd/bulkhead"},
	"github.com/secure-systems-lab/go-securesystemslib": {"overlay/signed"},
	"github.com/goccy/go-yaml":                          {"segment", "daemon", "cmd/bulkhead"}, // policy, config, output
	"github.com/prometheus/client_golang":               {"daemon"},
	"github.com/cilium/ebpf":                            {"platform/bind"},
	"github.com/fsnotify/fsnotify":                      {"platform/workload"},
	"github.com/moby/moby":                              {"platform/workload"},
	"github.com/miekg/dns":                              {"daemon/names"},
	"github.com/spiffe/go-spiffe":                       {"daemon/spiffe", "deploy/lab/actor"}, // the latter is an agent that uses it
	"google.golang.org/grpc":                            {"daemon/spiffe"},
	"github.com/go-jose/go-jose":                        {"control/authority"},
	"github.com/godbus/dbus":                            {"platform/scope", "daemon/names"},
}

// impure is what segment does without: files, sockets, goroutines, logs, chance. It has package time for the types.
var impure = []string{"os", "net", "net/http", "io/fs", "log", "log/slog", "os/exec", "syscall", "context", "sync", "math/rand", "math/rand/v2"}

const sideways = " are of one layer and do not know each other: daemon wires them"

// source is one parsed file.
type source struct {
	path string // slash-separated, from the root of the module
	dir  string
	test bool
	file *ast.File
	size int // lines
}

// parseAll parses every Go file of the module.
func parseAll(t *testing.T) []source {
	t.Helper()
	const root = "../.."
	var all []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() && (base == "testdata" || base == "build" || base == "bin" || (strings.HasPrefix(base, ".") && name != root)) {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(base) != ".go" {
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		all = append(all, source{path: rel, dir: path.Dir(rel), test: strings.HasSuffix(base, "_test.go"), file: file,
			size: set.File(file.Pos()).LineCount()})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("only %d files found below %s", len(all), root)
	}
	return all
}

func (s source) imports(t *testing.T) []string {
	t.Helper()
	var paths []string
	for _, spec := range s.file.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatalf("%s: %v", s.path, err)
		}
		paths = append(paths, p)
	}
	return paths
}

// layer is the height of a folder, and the folder that gives it.
func layer(dir string) (height int, group string, ok bool) {
	for group = dir; group != "."; group = path.Dir(group) {
		if height, ok = layers[group]; ok {
			return height, group, true
		}
	}
	return 0, "", false
}

// within reports whether p is folder or below it.
func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

// mayImport says why a folder may not import another, or nothing.
func mayImport(from, to string) (reason string) {
	height, group, ok := layer(from)
	if !ok {
		return "no layer is known for " + from + " (fix: give it one in arch_test.go)"
	}
	below, other, ok := layer(to)
	switch {
	case !ok:
		return "no layer is known for " + to
	case below > height:
		return from + " is in layer " + strconv.Itoa(height) + ", below " + to + " in layer " + strconv.Itoa(below) + ": imports point down"
	case below == height && group != other && height >= 2 && height != 4:
		return group + " and " + other + sideways
	}
	return ""
}

func TestImportsPointDown(t *testing.T) {
	for _, s := range parseAll(t) {
		for _, imported := range s.imports(t) {
			to, ours := strings.CutPrefix(imported, module)
			if !ours || s.test && strings.HasSuffix(to, "test") {
				continue // fakes and generators for tests
			}
			reason := mayImport(s.dir, to)
			if s.test && strings.HasSuffix(reason, sideways) {
				continue // a test may hold two parts against each other
			}
			if reason != "" {
				t.Errorf("%s imports %s: %s", s.path, to, reason)
			}
		}
	}
}

// TestRulesAreRules shows that the check above can fail.
func TestRulesAreRules(t *testing.T) {
	for _, c := range []struct {
		from, to string
		allowed  bool
	}{
		{"daemon", "platform/kv", true}, {"control/api", "control/authority", true}, {"overlay/signed", "overlay/identity", true},
		{"platform", "overlay", true}, {"deploy/lab", "segment", true},
		{"segment", "overlay", false}, {"overlay", "overlay/gossip", false}, {"overlay/gossip", "overlay/link", false},
		{"control/api", "platform", false}, {"platform", "daemon", false}, {"daemon", "cmd/bulkhead", false}, {"util", "segment", false},
	} {
		if reason := mayImport(c.from, c.to); (reason == "") != c.allowed {
			t.Errorf("%s imports %s: %q", c.from, c.to, reason)
		}
	}
}

func TestBigLibrariesHaveOneOwner(t *testing.T) {
	users := map[string]map[string]bool{}
	for _, s := range parseAll(t) {
		for _, imported := range s.imports(t) {
			for library, allowed := range owners {
				if !within(imported, library) {
					continue
				}
				if users[library] == nil {
					users[library] = map[string]bool{}
				}
				users[library][s.dir] = true
				if !slices.Contains(allowed, s.dir) && !s.test {
					t.Errorf("%s imports %s, which belongs to %s alone", s.path, imported, strings.Join(allowed, ", "))
				}
			}
		}
	}
	for _, library := range slices.Sorted(maps.Keys(owners)) {
		if len(users[library]) == 0 {
			t.Logf("nobody imports %s", library)
		}
	}
}

func TestSegmentIsPure(t *testing.T) {
	for _, s := range parseAll(t) {
		if s.test || s.dir != "segment" {
			continue
		}
		for _, imported := range s.imports(t) {
			if slices.Contains(impure, imported) {
				t.Errorf("%s imports %s: segment has no I/O, no clock, no goroutine", s.path, imported)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if _, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s starts a goroutine: segment has none", s.path)
			}
			if selects(n, "time", "Now") || selects(n, "time", "Since") || selects(n, "time", "Until") {
				t.Errorf("%s reads the clock: in segment time is an argument", s.path)
			}
			return true
		})
	}
}

// selects reports whether n is pkg.name.
func selects(n ast.Node, pkg, name string) bool {
	s, ok := n.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != name {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == pkg
}

func TestNobodySleeps(t *testing.T) {
	for _, s := range parseAll(t) {
		if s.test && slices.Contains(s.imports(t), "testing/synctest") {
			continue // time passes by itself there
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if selects(n, "time", "Sleep") {
				t.Errorf("%s calls time.Sleep: wait for what you wait for", s.path)
			}
			return true
		})
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	comments := map[string][]string{}
	for _, s := range parseAll(t) {
		if s.test {
			continue
		}
		found := comments[s.dir]
		if s.file.Doc != nil {
			found = append(found, s.path)
		}
		comments[s.dir] = found // also without any
	}
	for _, dir := range slices.Sorted(maps.Keys(comments)) {
		if n := len(comments[dir]); n != 1 {
			t.Errorf("%s has %d package comments, want one: %v", dir, n, comments[dir])
		}
	}
}

func TestFilesAreShort(t *testing.T) {
	for _, s := range parseAll(t) {
		if !s.test && !ast.IsGenerated(s.file) && s.size > maxLines {
			t.Errorf("%s has %d lines, more than %d: it tells more than one story", s.path, s.size, maxLines)
		}
	}
}
