// Package api is the HTTP API of a host: its types, the server (on the local socket and on TCP 7443) and the
// client. OpenAPI 3.1 is generated from the types and served at /openapi.json.
//
// The server authenticates and bounds; what is done with a request is the authority's business, or, for reads,
// what the daemon has verified. So status, explain and reach work on every host, also without the control role.
// Errors are RFC 9457 problem details with a code, the field at fault and the fix.
package api
