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

// at4 and at6 are the header of a packet, copied only where the kernel has it in pieces.
static __always_inline bool at4(struct __sk_buff *skb, struct iphdr *copy, struct iphdr **h)
{
	*h = (void *)(long)skb->data;
	if ((void *)(*h + 1) <= (void *)(long)skb->data_end)
		return true;
	*h = copy;
	return !bpf_skb_load_bytes(skb, 0, copy, sizeof(*copy));
}

static __always_inline bool at6(struct __sk_buff *skb, struct ipv6hdr *copy, struct ipv6hdr **h)
{
	*h = (void *)(long)skb->data;
	if ((void *)(*h + 1) <= (void *)(long)skb->data_end)
		return true;
	*h = copy;
	return !bpf_skb_load_bytes(skb, 0, copy, sizeof(*copy));
}

// dissect reads a packet's addresses and protocol. at is where the protocol's header begins.
static __always_inline bool dissect(struct __sk_buff *skb, struct flow *f, __u32 *at)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr copy, *h;
		if (!at4(skb, &copy, &h))
			return false;
		f->v4 = true;
		f->src = mapped(h->saddr);
		f->dst = mapped(h->daddr);
		f->proto = h->protocol;
		*at = h->ihl * 4;
		return true;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr copy, *h;
		if (!at6(skb, &copy, &h))
			return false;
		__builtin_memcpy(&f->src, &h->saddr, sizeof(f->src));
		__builtin_memcpy(&f->dst, &h->daddr, sizeof(f->dst));
		f->proto = h->nexthdr;
		*at = sizeof(*h);
		return true;
	}
	return false;
}

// details reads the ports, or the type of ICMP. A header that it does not know leaves the protocol to be what it says, with
// ports 0.
static __always_inline void details(struct __sk_buff *skb, struct flow *f, __u32 at)
{
	if (f->proto == IPPROTO_TCP || f->proto == IPPROTO_UDP) {
		__u16 ports[2];
		if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
			return;
		f->sport = bpf_ntohs(ports[0]);
		f->dport = bpf_ntohs(ports[1]);
	} else if (f->proto == IPPROTO_ICMP || f->proto == IPPROTO_ICMPV6) {
		bpf_skb_load_bytes(skb, at, &f->type, 1);
		f->proto = IPPROTO_ICMP;
	}
}

// of_overlay is in_overlay where the family is known: this is asked for every packet of the host.
static __always_inline bool of_overlay(const struct configuration *s, const struct flow *f, const struct addr *a)
{
	if (f->v4)
		return (a->w[3] & s->mask4.w[3]) == s->net4.w[3];
	return within(a, &s->net6, &s->mask6);
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

// sign writes on a socket whose it is: where its packets arrive, its user cannot be asked for.
static __always_inline void sign(struct __sk_buff *skb, const struct configuration *s, __u32 agent)
{
	struct past *past = past_of(skb, BPF_SK_STORAGE_GET_F_CREATE);
	if (!past)
		return;
	past->agent = agent;
	past->generation = s->generation;
}

SEC("cgroup_skb/egress")
int leaves(struct __sk_buff *skb)
{
	struct configuration *s = config();
	if (!here(s, skb))
		return ALLOW;
	struct flow f = {};
	__u32 at;
	if (!dissect(skb, &f, &at))
		return ALLOW;
	bool from_overlay = of_overlay(s, &f, &f.src), to_overlay = of_overlay(s, &f, &f.dst);
	if (!from_overlay && !to_overlay && !s->busy)
		return ALLOW;
	__u32 agent = owner_of(skb, s);
	if (from_overlay) {
		__u32 *owner = bpf_map_lookup_elem(&owners, &f.src);
		if (owner && *owner == agent)
			return ALLOW;
		details(skb, &f, at);
		if (unclaimed(s, agent) && (is_resolver(s, &f.src) || of_kernel(skb, &f)))
			return ALLOW;
		return refuse(FOREIGN_SOURCE);
	}
	if (to_overlay) // no agent has this source; that the host's own cannot, the firewall sees to
		return unclaimed(s, agent) ? ALLOW : refuse(FOREIGN_SOURCE);
	if (unclaimed(s, agent))
		return ALLOW;
	details(skb, &f, at);
	if (skb->ifindex == LOOPBACK) { // judged where it arrives
		if (s->by_user)
			sign(skb, s, agent);
		return is_own_port(s, f.proto, f.dport) ? refuse(CONTROL) : ALLOW;
	}
	struct past *past = past_of(skb, 0);
	bool answers = f.proto == IPPROTO_TCP && !(past && past->outward);
	return may_leave(s, agent, &f.dst, f.proto, f.dport, answers);
}

// sender is the agent of the socket on this host that sent a packet, and whether it did so on its own account; nobody if
// there is no such socket.
static __always_inline __u32 sender(struct __sk_buff *skb, const struct configuration *s, const struct flow *f, bool *outward)
{
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
		return 0;
	__u64 group = bpf_sk_cgroup_id(sk);
	struct member *m = known(s, group);
	__u32 agent = 0;
	if (m) {
		agent = m->agent;
	} else {
		WALK(agent, bpf_sk_ancestor_cgroup_id(sk, level));
		note(s, group, agent);
	}
	struct past *past = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (past) {
		*outward = past->outward;
		if (!agent && past->generation == s->generation)
			agent = past->agent;
	}
	bpf_sk_release(sk);
	return agent;
}

// arrives_here judges what one process of this host sends to another past the overlay.
static __always_inline int arrives_here(struct __sk_buff *skb, const struct configuration *s, struct flow *f, __u32 at)
{
	if (f->proto != IPPROTO_TCP && f->proto != IPPROTO_UDP)
		return ALLOW;
	__u32 receiver = owner_of(skb, s);
	if (unclaimed(s, receiver) && !s->guards)
		return ALLOW;
	details(skb, f, at);
	bool outward = false;
	__u32 from = sender(skb, s, f, &outward);
	if (unclaimed(s, from) || from == receiver)
		return ALLOW;
	if (!unclaimed(s, receiver))
		return refuse(NEIGHBOUR);
	struct agent *a = bpf_map_lookup_elem(&agents, &from);
	bool answers = f->proto == IPPROTO_TCP && !outward;
	if (!a || !(a->flags & GUARDED) || answers || listed(from, &f->dst, f->proto, f->dport))
		return ALLOW;
	return refuse(EGRESS);
}

SEC("cgroup_skb/ingress")
int arrives(struct __sk_buff *skb)
{
	struct configuration *s = config();
	if (!here(s, skb))
		return ALLOW;
	bool near = skb->ifindex == LOOPBACK && s->busy;
	struct flow f = {};
	__u32 at;
	if (!dissect(skb, &f, &at))
		return ALLOW;
	if (!of_overlay(s, &f, &f.dst))
		return near ? arrives_here(skb, s, &f, at) : ALLOW;
	if (is_resolver(s, &f.dst))
		return ALLOW;
	__u32 *owner = bpf_map_lookup_elem(&owners, &f.dst);
	if (!owner)
		return refuse(FOREIGN_RECEIVE);
	return *owner == owner_of(skb, s) ? ALLOW : refuse(FOREIGN_RECEIVE);
}
