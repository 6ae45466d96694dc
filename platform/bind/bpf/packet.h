// What leaves sockets and what reaches them.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128
#define FRAGMENT_OFFSET 0x1fff
#define EXTENSIONS 8 // headers of IPv6 that are skipped

// packet is one that was read; the ports and what follows only where they are needed.
struct packet {
	struct flow f;
	__u32 at;   // of what comes after the IP headers
	__u8 type;  // of ICMP
	bool v4;
	bool later; // a later fragment
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

// dissect reads a packet's addresses and protocol, unless it is no IP.
static __always_inline bool dissect(struct __sk_buff *skb, struct packet *p)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr copy, *h;
		if (!at4(skb, &copy, &h))
			return false;
		p->v4 = true;
		p->f.src = mapped(h->saddr);
		p->f.dst = mapped(h->daddr);
		p->f.proto = h->protocol;
		p->at = h->ihl * 4;
		p->later = h->frag_off & bpf_htons(FRAGMENT_OFFSET);
		return true;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr copy, *h;
		if (!at6(skb, &copy, &h))
			return false;
		__builtin_memcpy(&p->f.src, &h->saddr, sizeof(p->f.src));
		__builtin_memcpy(&p->f.dst, &h->daddr, sizeof(p->f.dst));
		p->f.proto = h->nexthdr;
		p->at = sizeof(*h);
		return true;
	}
	return false;
}

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_UDPLITE || proto == IPPROTO_SCTP || proto == IPPROTO_DCCP;
}

// skip finds what is behind the extension headers of IPv6.
static __always_inline bool skip(struct __sk_buff *skb, struct packet *p)
{
	for (int i = 0; i < EXTENSIONS; i++) {
		__u8 h[4]; // next header, length, and of a fragment its offset
		switch (p->f.proto) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
			break;
		default:
			return true;
		}
		if (bpf_skb_load_bytes(skb, p->at, h, sizeof(h)))
			return false;
		if (p->f.proto == IPPROTO_FRAGMENT) {
			p->later = h[2] || h[3] & 0xf8;
			p->at += 8;
		} else {
			p->at += 8 + 8 * h[1];
		}
		p->f.proto = h[0];
	}
	return false;
}

// details reads the ports, or the type of ICMP. It fails at headers that no program needs; of later fragments the ports
// are 0.
static __always_inline bool details(struct __sk_buff *skb, struct packet *p)
{
	if (!p->v4 && !skip(skb, p))
		return false;
	if (has_ports(p->f.proto) && !p->later) {
		__u16 ports[2];
		if (bpf_skb_load_bytes(skb, p->at, ports, sizeof(ports)))
			return false;
		p->f.sport = bpf_ntohs(ports[0]);
		p->f.dport = bpf_ntohs(ports[1]);
	} else if (p->f.proto == IPPROTO_ICMP || p->f.proto == IPPROTO_ICMPV6) {
		bpf_skb_load_bytes(skb, p->at, &p->type, 1);
		p->f.proto = IPPROTO_ICMP;
	}
	return true;
}

// of_overlay is in_overlay where the family is known: this is asked for every packet of the host.
static __always_inline bool of_overlay(const struct view *v, const struct packet *p, const struct addr *a)
{
	if (p->v4)
		return (a->w[3] & v->s->mask4.w[3]) == v->s->net4.w[3];
	return within(a, &v->s->net6, &v->s->mask6);
}

// of_kernel reports whether a packet is the kernel's own: an answer to a ping, an error, a reset. Its sockets are raw ones
// that no process made.
static __always_inline bool of_kernel(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock *sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SOCK_RAW)
		return false;
	struct past *past = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if ((past && past->raw) || !details(skb, p))
		return false;
	return p->f.proto == IPPROTO_TCP ||
	       (p->f.proto == IPPROTO_ICMP && p->type != (p->v4 ? ICMP_ECHO_REQUEST : ICMPV6_ECHO_REQUEST));
}

// knows_namespace is false on kernels before 6.15, which do not tell programs about packets the network namespace.
volatile const bool knows_namespace = true;

static __always_inline bool here(const struct view *v, struct __sk_buff *skb)
{
	return !knows_namespace || bpf_get_netns_cookie(skb) == v->s->netns;
}

// introduced judges what an agent sends over lo, past the overlay. Most of that is judged where it arrives: there it is
// known who sent it, by this.
static __always_inline int introduced(struct __sk_buff *skb, const struct view *v, const struct packet *p, __u32 agent, const struct past *past)
{
	if (is_own_port(v, p->f.proto, p->f.dport))
		return refuse(CONTROL);
	if (past && past->raw && has_ports(p->f.proto)) // whose flow it is in, nobody knows
		return refuse(FOREIGN_SOURCE);
	if (p->f.proto == IPPROTO_ICMP) // the kernel answers for both ends
		return ALLOW;
	struct sender is = {.at = bpf_ktime_get_ns(), .agent = agent, .answers = p->f.proto == IPPROTO_TCP && past && past->inward};
	struct sender *was = bpf_map_lookup_elem(&senders, &p->f);
	if (was)
		*was = is;
	else if (bpf_map_update_elem(&senders, &p->f, &is, BPF_ANY))
		return refuse(NEIGHBOUR);
	return ALLOW;
}

SEC("cgroup_skb/egress")
int leaves(struct __sk_buff *skb)
{
	struct view v;
	if (!look(&v) || !here(&v, skb))
		return ALLOW;
	struct packet p = {};
	if (!dissect(skb, &p))
		return ALLOW;
	bool from_overlay = of_overlay(&v, &p, &p.f.src), to_overlay = of_overlay(&v, &p, &p.f.dst);
	if (!from_overlay && !to_overlay && !v.p->busy)
		return ALLOW;
	struct member *by_cgroup = 0;
	__u32 agent = owner_of(skb, &v, &by_cgroup);
	if (from_overlay) {
		if (has(&v, agent, by_cgroup, &p.f.src, p.v4))
			return ALLOW;
		if (unclaimed(&v, agent) && (is_resolver(&v, &p.f.src) || of_kernel(skb, &p)))
			return ALLOW;
		return refuse(FOREIGN_SOURCE);
	}
	if (to_overlay) // no agent has this source; that the host's own cannot, the firewall sees to
		return unclaimed(&v, agent) ? ALLOW : refuse(FOREIGN_SOURCE);
	if (unclaimed(&v, agent))
		return ALLOW;
	if (!details(skb, &p))
		return refuse(EGRESS);
	struct past *past = past_of(skb);
	if (skb->ifindex == LOOPBACK)
		return introduced(skb, &v, &p, agent, past);
	return may_leave(&v, agent, &p.f.dst, p.f.proto, p.f.dport, p.f.proto == IPPROTO_TCP && past && past->inward);
}

// notice marks a socket that listens: what it accepts goes inward, and nothing else does. Those of the host's own are
// marked only where there are guards, for which it counts if they come to be an agent's.
static __always_inline void notice(struct __sk_buff *skb, const struct view *v, __u32 agent)
{
	struct bpf_sock *sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk || (!v->p->guards && unclaimed(v, agent)))
		return;
	struct past *past = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (past)
		past->inward = 1;
}

// arrives_over_lo judges what one process of this host sends to another past the overlay.
static __always_inline int arrives_over_lo(struct __sk_buff *skb, const struct view *v, struct packet *p, __u32 agent)
{
	if ((unclaimed(v, agent) && !v->p->guards) || !details(skb, p)) // what has no details did not leave an agent
		return ALLOW;
	struct sender *from = bpf_map_lookup_elem(&senders, &p->f);
	if (!from || from->agent == agent || bpf_ktime_get_ns() - from->at > TRANSIT)
		return ALLOW;
	if (!unclaimed(v, agent))
		return refuse(NEIGHBOUR);
	struct agent *a = bpf_map_lookup_elem(&agents, &from->agent);
	if (!a || !(a->flags & GUARDED) || from->answers || listed(from->agent, &p->f.dst, p->f.proto, p->f.dport))
		return ALLOW;
	return refuse(EGRESS);
}

SEC("cgroup_skb/ingress")
int arrives(struct __sk_buff *skb)
{
	struct view v;
	if (!look(&v) || !here(&v, skb))
		return ALLOW;
	struct packet p = {};
	if (!dissect(skb, &p))
		return ALLOW;
	bool overlay = of_overlay(&v, &p, &p.f.dst), over_lo = skb->ifindex == LOOPBACK;
	bool listens = p.f.proto == IPPROTO_TCP && skb->sk && skb->sk->state == BPF_TCP_LISTEN;
	if (!overlay && (!v.p->busy || (!over_lo && !listens)))
		return ALLOW;
	struct member *by_cgroup = 0;
	__u32 agent = owner_of(skb, &v, &by_cgroup);
	if (!overlay) {
		if (listens)
			notice(skb, &v, agent);
		return over_lo ? arrives_over_lo(skb, &v, &p, agent) : ALLOW;
	}
	if (is_resolver(&v, &p.f.dst)) // the daemon's
		return unclaimed(&v, agent) ? ALLOW : refuse(FOREIGN_RECEIVE);
	return has(&v, agent, by_cgroup, &p.f.dst, p.v4) ? ALLOW : refuse(FOREIGN_RECEIVE);
}
