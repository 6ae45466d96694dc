// What several programs need: who a process or socket is, and where an address belongs.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bind.h"

static __always_inline struct configuration *config(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline int refuse(enum drop why)
{
	__u32 key = why;
	__u64 *count = bpf_map_lookup_elem(&drops, &key);
	if (count)
		(*count)++;
	return REFUSE;
}

static __always_inline struct addr mapped(__u32 ip4)
{
	struct addr a = {{0, 0, bpf_htonl(0xffff), ip4}};
	return a;
}

static __always_inline bool is_mapped(const struct addr *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool same(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool is_zero(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && !a->w[3] && (!a->w[2] || a->w[2] == bpf_htonl(0xffff));
}

static __always_inline bool within(const struct addr *a, const struct addr *net, const struct addr *mask)
{
	return (a->w[0] & mask->w[0]) == net->w[0] && (a->w[1] & mask->w[1]) == net->w[1] &&
	       (a->w[2] & mask->w[2]) == net->w[2] && (a->w[3] & mask->w[3]) == net->w[3];
}

static __always_inline bool in_overlay(const struct configuration *s, const struct addr *a)
{
	return within(a, &s->net4, &s->mask4) || within(a, &s->net6, &s->mask6);
}

static __always_inline bool is_resolver(const struct configuration *s, const struct addr *a)
{
	return same(a, &s->resolver4) || same(a, &s->resolver6);
}

// unclaimed processes are the host's own: no agent, or the one that is whatever no other claims.
static __always_inline bool unclaimed(const struct configuration *s, __u32 agent)
{
	return agent == 0 || agent == s->host;
}

// known is whose a cgroup is, if that was found out in this generation.
static __always_inline struct member *known(const struct configuration *s, __u64 group)
{
	struct member *m = bpf_map_lookup_elem(&members, &group);
	return m && m->generation == s->generation ? m : 0;
}

static __always_inline void note(const struct configuration *s, __u64 group, __u32 agent)
{
	struct member m = {.generation = s->generation, .agent = agent};
	bpf_map_update_elem(&members, &group, &m, BPF_ANY);
}

// WALK finds the innermost claimed one among a cgroup and those above it, by a helper that names the one at a level.
#define WALK(found, at_level)                                                  \
	for (int level = 1; level < DEPTH; level++) {                          \
		__u64 id = at_level;                                           \
		if (!id)                                                       \
			break;                                                 \
		__u32 *claim = bpf_map_lookup_elem(&cgroups, &id);             \
		if (claim)                                                     \
			found = *claim;                                        \
	}

static __always_inline __u32 of_user(const struct configuration *s, __u32 uid)
{
	if (!s->by_user)
		return 0;
	__u32 *agent = bpf_map_lookup_elem(&users, &uid);
	return agent ? *agent : 0;
}

// current_agent is the agent of the calling process: that of its innermost claimed cgroup, or of its user.
static __always_inline __u32 current_agent(const struct configuration *s)
{
	__u64 group = bpf_get_current_cgroup_id();
	struct member *m = known(s, group);
	__u32 agent = 0;
	if (m) {
		agent = m->agent;
	} else {
		WALK(agent, bpf_get_current_ancestor_cgroup_id(level));
		note(s, group, agent);
	}
	if (!agent)
		agent = of_user(s, (__u32)bpf_get_current_uid_gid());
	return agent ? agent : s->host;
}

// owner_of is the agent of a packet's socket: what the process was that made it.
static __always_inline __u32 owner_of(struct __sk_buff *skb, const struct configuration *s)
{
	__u64 group = bpf_skb_cgroup_id(skb);
	struct member *m = known(s, group);
	__u32 agent = 0;
	if (m) {
		agent = m->agent;
	} else {
		WALK(agent, bpf_skb_ancestor_cgroup_id(skb, level));
		note(s, group, agent);
	}
	if (!agent && s->by_user)
		agent = of_user(s, bpf_get_socket_uid(skb));
	return agent ? agent : s->host;
}

// past_of is what is known of a packet's socket, if anything is.
static __always_inline struct past *past_of(struct __sk_buff *skb, __u64 flags)
{
	struct bpf_sock *sk = skb->sk;
	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	return sk ? bpf_sk_storage_get(&sockets, sk, 0, flags) : 0;
}

// listed reports whether an agent's egress list has a destination.
static __always_inline bool listed(__u32 agent, const struct addr *to, __u8 proto, __u16 port)
{
	struct destination key = {.prefixlen = 160, .agent = agent, .addr = *to};
	struct ports *p = bpf_map_lookup_elem(&egress, &key);
	if (!p)
		return false;
	for (int i = 0; i < PORTS; i++) {
		struct port_range *r = &p->range[i];
		if (!r->proto)
			break;
		if (r->proto == proto && r->first <= port && port <= r->last && (!r->until || bpf_ktime_get_ns() < r->until))
			return true;
	}
	return false;
}

// is_local_link reports whether an address is of the link alone, or a cloud's metadata service.
static __always_inline bool is_local_link(const struct addr *a)
{
	if (is_mapped(a))
		return (a->w[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
	if ((a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000))
		return true;
	return a->w[0] == bpf_htonl(0xfd000ec2) && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(0x254);
}

static __always_inline bool is_loopback(const struct addr *a)
{
	if (is_mapped(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || !a->w[3];
	return !a->w[0] && !a->w[1] && !a->w[2] && (a->w[3] == bpf_htonl(1) || !a->w[3]);
}

static __always_inline bool is_control(const struct addr *a, __u8 proto, __u16 port)
{
	struct endpoint key = {.addr = *a, .port = port};
	return proto == IPPROTO_TCP && bpf_map_lookup_elem(&control, &key);
}

static __always_inline bool is_own_port(const struct configuration *s, __u8 proto, __u16 port)
{
	if (proto != IPPROTO_TCP)
		return false;
	for (int i = 0; i < OWN_PORTS; i++)
		if (s->own_ports[i] && s->own_ports[i] == port)
			return true;
	return false;
}

// may_leave judges a destination outside the overlay that is not this host.
static __always_inline int may_leave(const struct configuration *s, __u32 agent, const struct addr *to, __u8 proto, __u16 port, bool answers)
{
	if (unclaimed(s, agent))
		return ALLOW;
	if (is_control(to, proto, port))
		return refuse(CONTROL);
	struct agent *a = bpf_map_lookup_elem(&agents, &agent);
	if (!a)
		return refuse(EGRESS);
	if (!(a->flags & GUARDED) && !is_local_link(to))
		return ALLOW;
	if ((answers && !is_local_link(to)) || listed(agent, to, proto, port))
		return ALLOW;
	return refuse(EGRESS);
}
