// Shapes that the programs and package bind share. Addresses are 16 bytes in network order, IPv4 ones mapped.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define SOL_SOCKET 1
#define SO_MARK 36
#define DNS 53
#define LOOPBACK 1 // the index of lo, in every network namespace
#define DEPTH 24   // of cgroups
#define PORTS 16   // of one destination
#define OWN_PORTS 4

#define ALLOW 1
#define REFUSE 0

struct addr {
	__u32 w[4];
};

// What identities follow from is there twice, for generations that are even and odd: the next is written where nobody looks,
// and then holds all at once.
struct phase {
	__u32 host;   // the agent that is the whole host; 0: none
	__u32 busy;   // there are agents that are not the whole host
	__u32 guards; // some of them are guarded
	__u32 users;  // some of them are users
};

struct claim {
	__u32 agent[2]; // 0: nobody's
};

struct configuration {
	__u64 netns;              // cookie of the network namespace
	struct addr net4, mask4;  // the overlay's ranges
	struct addr net6, mask6;
	struct addr resolver4, resolver6;
	struct phase phases[2];
	__u32 generation;
	__u16 own_ports[OWN_PORTS]; // TCP ports of this host that are not for agents
};

#define GUARDED 1

struct agent {
	struct addr ip4, ip6;
	__u32 mark;
	__u32 flags;
};

// member is whose a cgroup is with all above it, as of a generation.
struct member {
	__u32 generation;
	__u32 agent; // 0: nobody's
	struct addr ip4, ip6;
};

// past is what is known of a socket. What a listener accepts inherits it.
struct past {
	__u8 inward;       // it listens outside the overlay, or was accepted there
	__u8 raw;          // a process made it, to write headers of its own
	__u8 redirected;   // its DNS queries go to the resolver
	__u8 pad;
	struct addr asked; // where they were meant to go
};

struct flow {
	struct addr src, dst;
	__u16 sport, dport; // of protocols that have them
	__u8 proto;         // ICMPv6 counts as ICMP
	__u8 pad[3];
};

// sender is the agent that sent a packet over lo. It counts as long as packets may take; then the flow may be another's.
struct sender {
	__u64 at; // CLOCK_MONOTONIC, ns
	__u32 agent;
	__u32 answers; // it does not go outward with it
};

#define TRANSIT 1000000000ull // ns

struct destination {
	__u32 prefixlen; // with the agent's 32 bits
	__u32 agent;
	struct addr addr;
};

struct port_range {
	__u64 until; // CLOCK_MONOTONIC, ns; 0: for ever
	__u16 first, last;
	__u8 proto; // 0: this and all after are none
	__u8 pad[3];
};

struct ports {
	struct port_range range[PORTS];
};

struct endpoint {
	struct addr addr;
	__u16 port;
	__u16 pad;
};

enum drop {
	FOREIGN_BIND,
	FOREIGN_SOURCE,
	FOREIGN_RECEIVE,
	STRANGER,
	NEIGHBOUR,
	EGRESS,
	CONTROL,
	DROPS,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct claim);
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct claim);
} users SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct agent);
} agents SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, struct addr);
	__type(value, struct claim);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct configuration);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 327680); // 64 agents' lists, with what they learn
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct destination);
	__type(value, struct ports);
} egress SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct endpoint);
	__type(value, __u8);
} control SEC(".maps");

// members saves walking up from the same cgroups again and again.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct member);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct past);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384); // far more than lo holds between sending and arriving
	__type(key, struct flow);
	__type(value, struct sender);
} senders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROPS);
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");
