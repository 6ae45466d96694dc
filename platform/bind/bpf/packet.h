// What leaves sockets and what reaches them.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128

// flow is what a packet says of itself; ports are of TCP and UDP only.
struct flow {
	struct addr src, dst;
	__u8 proto; // ICMPv6 counts as ICMP
	__u8 type;  // of ICMP
	__u16 sport, dport;
	bool v4;
};

// dissect reads a packet. A header that it does not know leaves the protocol to be what it says, with ports 0.
static __always_inline bool dissect(struct __sk_buff *skb, struct flow *f)
{
	__u32 at;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr h;
		if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
			return false;
		f->v4 = true;
		f->src = mapped(h.saddr);
		f->dst = mapped(h.daddr);
		f->proto = h.protocol;
		at = h.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr h;
		if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
			return false;
		f->v4 = false;
		__builtin_memcpy(&f->src, &h.saddr, sizeof(f->src));
		__builtin_memcpy(&f->dst, &h.daddr, sizeof(f->dst));
		f->proto = h.nexthdr;
		at = sizeof(h);
	} else {
		return false;
	}
	f->sport = f->dport = 0;
	f->type = 0;
	if (f->proto == IPPROTO_TCP || f->proto == IPPROTO_UDP) {
		__u16 ports[2];
		if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
			return true;
		f->sport = bpf_ntohs(ports[0]);
		f->dport = bpf_ntohs(ports[1]);
	} else if (f->proto == IPPROTO_ICMP || f->proto == IPPROTO_ICMPV6) {
		bpf_skb_load_bytes(skb, at, &f->type, 1);
		f->proto = IPPROTO_ICMP;
	}
	return true;
}

// of_kernel reports whether a packet is the kernel's own: an answer to a ping, an error, a reset. Its sockets are raw ones
// that belong to whoever made the network namespace.
static __always_inline bool of_kernel(struct __sk_buff *skb, const struct flow *f)
{
	struct bpf_sock *sk = skb->sk;
	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SOCK_RAW)
		return false;
	return f->proto == IPPROTO_TCP ||
	       (f->proto == IPPROTO_ICMP && f->type != (f->v4 ? ICMP_ECHO_REQUEST : ICMPV6_ECHO_REQUEST));
}

// knows_namespace is false on kernels before 6.15, which do not tell programs about packets the network namespace.
volatile const bool knows_namespace = true;

static __always_inline bool here(const struct configuration *s, struct __sk_buff *skb)
{
	return s && (!knows_namespace || bpf_get_netns_cookie(skb) == s->netns);
}

SEC("cgroup_skb/egress")
int leaves(struct __sk_buff *skb)
{
	struct configuration *s = config();
	if (!here(s, skb))
		return ALLOW;
	struct flow f = {};
	if (!dissect(skb, &f))
		return ALLOW;
	bool from_overlay = in_overlay(s, &f.src), to_overlay = in_overlay(s, &f.dst);
	if (!from_overlay && !to_overlay && !s->busy)
		return ALLOW;
	struct identity *id = identify(skb, s);
	__u32 agent = id ? id->agent : s->host;
	if (from_overlay) {
		__u32 *owner = bpf_map_lookup_elem(&owners, &f.src);
		if (owner && *owner == agent)
			return ALLOW;
		if (unclaimed(s, agent) && (is_resolver(s, &f.src) || of_kernel(skb, &f)))
			return ALLOW;
		return refuse(FOREIGN_SOURCE);
	}
	if (to_overlay) // no agent has this source; that the host's own cannot, the firewall sees to
		return unclaimed(s, agent) ? ALLOW : refuse(FOREIGN_SOURCE);
	if (unclaimed(s, agent))
		return ALLOW;
	if (skb->ifindex == LOOPBACK) // judged where it arrives
		return is_own_port(s, f.proto, f.dport) ? refuse(CONTROL) : ALLOW;
	bool answers = f.proto == IPPROTO_TCP && id && !id->outward;
	return may_leave(s, agent, &f.dst, f.proto, f.dport, answers);
}

// sender is the identity of the socket on this host that sent a packet, which it has since it sent; a copy, and nobody
// if there is none.
static __always_inline struct identity sender(struct __sk_buff *skb, const struct configuration *s, const struct flow *f)
{
	struct identity found = {};
	struct bpf_sock_tuple t = {};
	__u32 size;
	if (f->v4) {
		t.ipv4.saddr = f->dst.w[3];
		t.ipv4.daddr = f->src.w[3];
		t.ipv4.sport = bpf_htons(f->dport);
		t.ipv4.dport = bpf_htons(f->sport);
		size = sizeof(t.ipv4);
	} else {
		__builtin_memcpy(t.ipv6.saddr, &f->dst, sizeof(f->dst));
		__builtin_memcpy(t.ipv6.daddr, &f->src, sizeof(f->src));
		t.ipv6.sport = bpf_htons(f->dport);
		t.ipv6.dport = bpf_htons(f->sport);
		size = sizeof(t.ipv6);
	}
	struct bpf_sock *sk = f->proto == IPPROTO_TCP ? bpf_sk_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0) :
							bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return found;
	struct identity *id = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (id && id->generation == s->generation)
		found = *id;
	bpf_sk_release(sk);
	return found;
}

// arrives_here judges what one process of this host sends to another past the overlay.
static __always_inline int arrives_here(struct __sk_buff *skb, const struct configuration *s, const struct flow *f)
{
	if (f->proto != IPPROTO_TCP && f->proto != IPPROTO_UDP)
		return ALLOW;
	struct identity *id = identify(skb, s);
	__u32 receiver = id ? id->agent : s->host;
	if (unclaimed(s, receiver) && !s->guards)
		return ALLOW;
	struct identity from = sender(skb, s, f);
	if (unclaimed(s, from.agent) || from.agent == receiver)
		return ALLOW;
	if (!unclaimed(s, receiver))
		return refuse(NEIGHBOUR);
	struct agent *a = bpf_map_lookup_elem(&agents, &from.agent);
	bool answers = f->proto == IPPROTO_TCP && !from.outward;
	if (!a || !(a->flags & GUARDED) || answers || listed(from.agent, &f->dst, f->proto, f->dport))
		return ALLOW;
	return refuse(EGRESS);
}

SEC("cgroup_skb/ingress")
int arrives(struct __sk_buff *skb)
{
	struct configuration *s = config();
	if (!here(s, skb))
		return ALLOW;
	struct flow f = {};
	if (!dissect(skb, &f))
		return ALLOW;
	if (!in_overlay(s, &f.dst))
		return skb->ifindex == LOOPBACK && s->busy ? arrives_here(skb, s, &f) : ALLOW;
	if (is_resolver(s, &f.dst))
		return ALLOW;
	__u32 *owner = bpf_map_lookup_elem(&owners, &f.dst);
	if (!owner)
		return refuse(FOREIGN_RECEIVE);
	struct identity *id = identify(skb, s);
	return id && id->agent == *owner ? ALLOW : refuse(FOREIGN_RECEIVE);
}
