// Package authority is the root of what a mesh believes: the certificate authority, join and API tokens,
// the registry of hosts and agents, signed policy versions and the audit record, kept in an overlay.Store.
//
// Every change is one transaction: it writes the registry rows, at most one new signed policy version and
// exactly one audit entry, or nothing. What was committed is then published in order: the policy to
// OnPolicy's callbacks, the audit entry as one line of the append-only audit file. Opening the authority
// publishes what a crash left unpublished, so neither a version nor a line is lost or repeated.
package authority
