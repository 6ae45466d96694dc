// What several programs need: who a process or socket is, and where an address belongs.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bind.h"

// view is one generation of what identities follow from, for as long as a program runs.
struct view {
	const struct configuration *s;
	const struct phase *p;
	__u32 generation;
};

static __always_inline bool look(struct view *v)
{
	__u32 zero = 0;
	v->s = bpf_map_lookup_elem(&settings, &zero);
	if (!v->s)
		return false;
	v->generation = *(const volatile __u32 *)&v->s->generation;
	v->p = &v->s->phases[v->generation & 1];
	return true;
}

// claimed is the agent that a cgroup, user or address is of; 0: none.
static __always_inline __u32 claimed(const struct view *v, void *claims, const void *key)
{
	struct claim *c = bpf_map_lookup_elem(claims, key);
	return c ? c->agent[v->generation & 1] : 0;
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

static __always_inline bool in_overlay(const struct view *v, const struct addr *a)
{
	return within(a, &v->s->net4, &v->s->mask4) || within(a, &v->s->net6, &v->s->mask6);
}

static __always_inline bool is_resolver(const struct view *v, const struct addr *a)
{
	return same(a, &v->s->resolver4) || same(a, &v->s->resolver6);
}

// unclaimed processes are the host's own: no agent, or the one that is whatever no other claims.
static __always_inline bool unclaimed(const struct view *v, __u32 agent)
{
	return agent == 0 || agent == v->p->host;
}

// known is whose a cgroup is, if that was found out in this generation.
static __always_inline struct member *known(const struct view *v, __u64 group)
{
	struct member *m = bpf_map_lookup_elem(&members, &group);
	return m && m->generation == v->generation ? m : 0;
}

static __always_inline void note(const struct view *v, __u64 group, __u32 agent)
{
	struct member m = {.generation = v->generation, .agent = agent};
	struct agent *a = agent ? bpf_map_lookup_elem(&agents, &agent) : 0;
	if (a) {
		m.ip4 = a->ip4;
		m.ip6 = a->ip6;
	}
	bpf_map_update_elem(&members, &group, &m, BPF_ANY);
}

// WALK finds the innermost claimed one among a cgroup and those above it, by a helper that names the one at a level.
#define WALK(v, found, at_level)                                               \
	for (int level = 1; level < DEPTH; level++) {                          \
		__u64 id = at_level;                                           \
		if (!id)                                                       \
			break;                                                 \
		__u32 claim = claimed(v, &cgroups, &id);                       \
		if (claim)                                                     \
			found = claim;                                         \
	}

// current_agent is the agent of the calling process: that of its innermost claimed cgroup, or of its user.
static __always_inline __u32 current_agent(const struct view *v)
{
	__u64 group = bpf_get_current_cgroup_id();
	struct member *m = known(v, group);
	__u32 agent = 0;
	if (m) {
		agent = m->agent;
	} else {
		WALK(v, agent, bpf_get_current_ancestor_cgroup_id(level));
		note(v, group, agent);
	}
	if (!agent && v->p->users) {
		__u32 uid = (__u32)bpf_get_current_uid_gid();
		agent = claimed(v, &users, &uid);
	}
	return agent ? agent : v->p->host;
}

// owner_of is the agent of a packet's socket: what the process was that made it.
static __always_inline __u32 owner_of(struct __sk_buff *skb, const struct view *v, struct member **by_cgroup)
{
	__u64 group = bpf_skb_cgroup_id(skb);
	struct member *m = known(v, group);
	__u32 agent = 0;
	if (m) {
		agent = m->agent;
		*by_cgroup = m;
	} else {
		WALK(v, agent, bpf_skb_ancestor_cgroup_id(skb, level));
		note(v, group, agent);
	}
	if (!agent && v->p->users) {
		__u32 uid = bpf_get_socket_uid(skb);
		agent = claimed(v, &users, &uid);
	}
	return agent ? agent : v->p->host;
}

// has reports whether an address is an agent's: of one that is a cgroup, without looking far.
static __always_inline bool has(const struct view *v, __u32 agent, const struct member *by_cgroup, const struct addr *a, bool v4)
{
	if (by_cgroup && by_cgroup->agent && (v4 ? a->w[3] == by_cgroup->ip4.w[3] : same(a, &by_cgroup->ip6)))
		return true;
	__u32 owner = claimed(v, &owners, a);
	return owner && owner == agent;
}

// past_of is what is known of a packet's socket, if anything is.
static __always_inline struct past *past_of(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	return sk ? bpf_sk_storage_get(&sockets, sk, 0, 0) : 0;
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

static __always_inline bool is_own_port(const struct view *v, __u8 proto, __u16 port)
{
	if (proto != IPPROTO_TCP)
		return false;
	for (int i = 0; i < OWN_PORTS; i++)
		if (v->s->own_ports[i] && v->s->own_ports[i] == port)
			return true;
	return false;
}

// may_leave judges a destination outside the overlay that is not this host.
static __always_inline int may_leave(const struct view *v, __u32 agent, const struct addr *to, __u8 proto, __u16 port, bool answers)
{
	if (unclaimed(v, agent))
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
