// Package signed is what hosts believe of each other and of the mesh: records and policy, as signed bytes.
//
// Signatures are DSSE (github.com/secure-systems-lab/dsse) over the exact payload bytes; nothing is canonicalised to
// check one. In turn, what opens has exactly one form, and a digest is of the signed payload alone: whoever passes
// signed bytes on can make neither two digests of one content nor one version with two contents.
package signed
