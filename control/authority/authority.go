package authority

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bulkhead-mesh/bulkhead/overlay"
	"github.com/bulkhead-mesh/bulkhead/overlay/identity"
	"github.com/bulkhead-mesh/bulkhead/overlay/signed"
)

// warnIssuing is how long before its end the issuing authority is warned of: time for a planned change.
const warnIssuing = 180 * 24 * time.Hour

// Options are what an authority is opened with.
type Options struct {
	AuditPath    string           // the append-only file, made if missing
	AuditKept    uint64           // newest audit entries that the store keeps, the file having all; 0 is 100,000
	Now          func() time.Time // nil is time.Now
	Logger       *slog.Logger     // nil discards
	ControlAddrs func() []string  // host:port of the control API, for tokens
}

// Authority is the open certificate and policy authority of one mesh. Its methods are safe for concurrent use.
type Authority struct {
	options Options
	store   overlay.Store
	mesh    meshRow
	root    *x509.Certificate
	issuing *identity.Authority
	signer  identity.Key // of policy
	prefix6 netip.Prefix
	jwt     *jwtSigner // nil until upgrade has made one for an older store

	current  atomic.Pointer[signed.VerifiedPolicy]
	onPolicy []func(*signed.VerifiedPolicy)

	mu    sync.Mutex // held by every change, from its transaction until it is published
	audit *auditFile

	strangers, members refusals
}

// Open opens the mesh in store and completes what a crash left unpublished. It returns ErrNoMesh if there is none.
func Open(store overlay.Store, o Options) (*Authority, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.AuditKept == 0 {
		o.AuditKept = 100_000
	}
	if o.ControlAddrs == nil {
		o.ControlAddrs = func() []string { return nil }
	}
	a := &Authority{options: o, store: store,
		// Whoever may not act can still fill the disk with refusals: strangers more slowly than members.
		strangers: refusals{limit: rate.NewLimiter(1, 30)},
		members:   refusals{limit: rate.NewLimiter(10, 100)},
	}
	if err := a.load(); err != nil {
		return nil, fmt.Errorf("open authority: %w", err)
	}
	audit, err := openAudit(o.AuditPath)
	if err != nil {
		return nil, err
	}
	a.audit = audit
	if err := a.audit.complete(store, o.AuditKept); err != nil {
		return nil, errors.Join(fmt.Errorf("complete %s: %w", o.AuditPath, err), audit.close())
	}
	if err := a.upgrade(); err != nil {
		return nil, errors.Join(fmt.Errorf("upgrade the store: %w", err), audit.close())
	}
	return a, nil
}

// Close releases the audit file. The store is its owner's to close.
func (a *Authority) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.audit.close()
}

// load reads the mesh and its newest policy.
func (a *Authority) load() error {
	var c counters
	var jwt jwtRow
	var found bool
	err := a.store.View(func(tx overlay.Tx) (err error) {
		if found, err = get(tx, bucketMeta, keyMesh, &a.mesh); err == nil {
			_, err = get(tx, bucketMeta, keyCounters, &c)
		}
		if err == nil {
			_, err = get(tx, bucketMeta, keyJWT, &jwt)
		}
		return err
	})
	if err != nil {
		return err
	}
	if !found { // not inside: a store that cannot read the row may say that there is none, and fail after
		return ErrNoMesh
	}
	if a.mesh.Format != meshFormat {
		return fmt.Errorf("the store has format %d, this program knows %d (fix: use the program that wrote it)", a.mesh.Format, meshFormat)
	}
	if a.root, err = x509.ParseCertificate(a.mesh.Root); err != nil {
		return fmt.Errorf("parse root: %w", err)
	}
	if err := a.loadIssuing(); err != nil {
		return fmt.Errorf("load issuing authority: %w", err)
	}
	if a.signer, err = identity.ParseKey(a.mesh.Policy.Key); err != nil {
		return fmt.Errorf("parse policy key: %w", err)
	}
	a.prefix6 = prefix6(a.mesh.Mesh, a.root)
	if jwt.ID != "" {
		if a.jwt, err = newJWTSigner(jwt); err != nil {
			return fmt.Errorf("load JWT key: %w", err)
		}
	}
	current, err := a.PolicyAt(c.Version)
	if err != nil {
		return err
	}
	a.current.Store(current)
	return nil
}

func (a *Authority) loadIssuing() error {
	key, err := identity.ParseKey(a.mesh.Issuing.Key)
	if err != nil {
		return err
	}
	if a.issuing, err = identity.LoadIssuing(a.mesh.Issuing.Chain, key); err != nil {
		return err
	}
	if ends := a.issuing.Certificate().NotAfter; ends.Sub(a.now()) < warnIssuing {
		a.options.Logger.Warn("the issuing authority ends soon: found a new mesh before it does", "ends", ends)
	}
	return nil
}

// Mesh is the name of the mesh.
func (a *Authority) Mesh() string { return a.mesh.Mesh }

// Roots are the mesh's trust anchors.
func (a *Authority) Roots() []*x509.Certificate { return []*x509.Certificate{a.root} }

// Trust is what certificates are judged by now, the revocations of the current policy included.
func (a *Authority) Trust() *identity.Trust {
	return &identity.Trust{Mesh: a.mesh.Mesh, Roots: a.Roots(), Revocations: a.Policy().Revocations}
}

// Prefixes are the overlay ranges, IPv4 then IPv6.
func (a *Authority) Prefixes() []netip.Prefix { return []netip.Prefix{a.mesh.Range4, a.prefix6} }

// OnPolicy registers fn to be called with every new policy after its commit, in order of version. Register
// before the authority is used; fn holds up all other changes, and must make none.
func (a *Authority) OnPolicy(fn func(*signed.VerifiedPolicy)) { a.onPolicy = append(a.onPolicy, fn) }

// Policy is the current policy. It is never nil and must not be changed.
func (a *Authority) Policy() *signed.VerifiedPolicy { return a.current.Load() }

func (a *Authority) now() time.Time { return a.options.Now().UTC().Round(0) }

// txn is one change: a transaction, its time, and the counters that it moves.
type txn struct {
	overlay.Tx
	counters
	a     *Authority
	now   time.Time
	filed uint64              // lines that are safe in the audit file
	used  map[netip.Addr]bool // once loaded: the overlay addresses of agents
	// voided are certificates that void since this change began: revokeVoided tells the mesh.
	voided []identity.Revocation
}

// update runs fn in one transaction and publishes what it committed. An error means that nothing was
// committed, except where the store itself cannot tell: then what it did commit is published all the same.
func (a *Authority) update(fn func(*txn) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.store.Update(func(tx overlay.Tx) error {
		t := &txn{Tx: tx, a: a, now: a.now(), filed: a.audit.seq}
		if _, err := get(tx, bucketMeta, keyCounters, &t.counters); err != nil {
			return err
		}
		before := t.counters
		if err := fn(t); err != nil {
			return err
		}
		if t.counters == before {
			return nil
		}
		return put(tx, bucketMeta, keyCounters, t.counters)
	})
	if perr := a.publishLocked(); perr != nil {
		// The change stands and is in the store; the next one, or a restart, publishes it.
		a.options.Logger.Error("publish a change", "error", perr)
	}
	return plain(err)
}

// plain is a refusal without what the store wrapped around it; other errors stay as they are.
func plain(err error) error {
	if refusal, ok := errors.AsType[*Error](err); ok {
		return refusal
	}
	return err
}

// publishLocked makes everything that is committed and not yet published known, in order.
func (a *Authority) publishLocked() error {
	var c counters
	err := a.store.View(func(tx overlay.Tx) error {
		_, err := get(tx, bucketMeta, keyCounters, &c)
		return err
	})
	if err != nil {
		return err
	}
	for v := a.Policy().Version + 1; v <= c.Version; v++ {
		next, err := a.PolicyAt(v)
		if refusal, ok := errors.AsType[*Error](err); ok && refusal.Code == CodeNotFound && v < c.Version {
			continue // lost with a store that was restored: see Recover
		}
		if err != nil {
			return err
		}
		a.current.Store(next)
		for _, fn := range a.onPolicy {
			fn(next)
		}
	}
	if a.audit.seq == c.AuditSeq {
		return nil
	}
	return a.audit.complete(a.store, a.options.AuditKept)
}

// change runs fn as one audited change of a principal that needs a role. A refusal is audited too.
func (a *Authority) change(p Principal, need Role, action, target string, fn func(*txn) (detail string, err error)) (version uint64, err error) {
	if err := a.authorize(p, need, action, target); err != nil {
		return 0, err
	}
	err = a.update(func(t *txn) error {
		before := t.Version
		detail, err := fn(t)
		if err != nil {
			return err
		}
		version = t.Version
		made := uint64(0)
		if version != before {
			made = version
		}
		return t.record(p, action, target, made, resultDone, detail)
	})
	if err == nil {
		return version, nil
	}
	if errors.Is(err, errUnchanged) {
		return a.Policy().Version, err
	}
	a.refused(&a.members, p, action, target, err)
	return 0, err
}

// errUnchanged ends a change that has nothing to do.
var errUnchanged = errors.New("nothing to change")

// unchanged turns errUnchanged into the answer it is.
func unchanged(version uint64, err error) (Change, error) {
	if errors.Is(err, errUnchanged) {
		return Change{Version: version, Unchanged: true}, nil
	}
	return Change{Version: version}, err
}

// authorize refuses, and audits, what p's role does not allow.
func (a *Authority) authorize(p Principal, need Role, action, target string) error {
	if p.Role.Allows(need) {
		return nil
	}
	err := &Error{Code: CodeDenied, Message: fmt.Sprintf("%s may not %s %s: that needs role %s, not %q", p.Name, action, target, need, p.Role),
		Fix: "ask someone with that role"}
	a.refused(&a.members, p, action, target, err)
	return err
}

// refusals bounds how many refused attempts are recorded; the next entry says how many were not.
type refusals struct {
	limit   *rate.Limiter
	skipped atomic.Uint64
}

// refused audits an attempt that came to nothing. Faults of ours are the caller's to log.
func (a *Authority) refused(limit *refusals, p Principal, action, target string, cause error) {
	refusal, ok := errors.AsType[*Error](cause)
	if !ok {
		return
	}
	if !limit.limit.AllowN(a.now(), 1) {
		limit.skipped.Add(1)
		return
	}
	detail := refusal.Error()
	if n := limit.skipped.Swap(0); n > 0 {
		detail = fmt.Sprintf("%d refusals before it were too many to record; %s", n, detail)
	}
	err := a.update(func(t *txn) error { return t.record(p, action, target, 0, refusal.Code, detail) })
	if err != nil {
		a.options.Logger.Error("record a refusal", "who", p.Name, "action", action, "error", err)
	}
}
