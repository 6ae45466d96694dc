// Package identity is who is who in a mesh: SPIFFE names, X.509 certificates with what they claim, the keys behind
// them, and the one function that says whether a certificate is to be believed, [Trust.Verify].
//
// A mesh has one root. Directly below it are the issuing authority, which is constrained to the mesh, and the
// signers of policy. The issuing authority certifies hosts, agents and operators:
//
//	root ─┬─ policy/NAME
//	      └─ issuing ─┬─ host/NAME
//	                  ├─ agent/NAME
//	                  └─ operator/NAME
//
// Every key is Ed25519. The only format of our own is the extension that holds [Claims].
package identity
