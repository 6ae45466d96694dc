// Package workload finds where the processes of declared agents are: cgroups of systemd units and containers, users, or the
// whole host. It watches cgroup v2 by inotify and container engines by their events.
//
// A container of an engine that gives it no cgroup v2 of its own, as on hosts with both versions, gets one from the
// watcher, which moves the container's processes there. Sockets from before that are not the agent's.
package workload
