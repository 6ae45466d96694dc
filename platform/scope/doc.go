// Package scope puts processes into cgroups of agents, for `bulkhead run`: through systemd where it runs, by hand elsewhere.
package scope
