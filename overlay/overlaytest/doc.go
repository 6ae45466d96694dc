// Package overlaytest holds in-memory stand-ins for what overlay needs: a store and a network of many hosts.
package overlaytest
