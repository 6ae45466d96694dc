// Package lab builds worlds of Linux network namespaces: hosts, switches and routers, links that can be cut, lossy
// or slow, real programs inside, and probes that say whether packets pass. It is what the end-to-end tests and
// `make demo` run on.
//
// A world touches nothing outside the namespaces that it made, which all carry its name. It holds a lock for as
// long as its process lives, so the next world finds and removes what a crash left behind, and only that.
package lab
