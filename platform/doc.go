// Package platform is the operating system: the overlay interface, its addresses and routes, the firewall, the
// service manager, durable files. It knows no mesh: it is told what shall be, makes it so, and can read it back.
package platform
