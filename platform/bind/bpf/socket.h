// What processes ask of the kernel: to connect, to send, to bind, to make sockets.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common.h"

// elsewhere reports whether a call is not of this network namespace, and so not ours to judge.
#define elsewhere(v, ctx) (!look(v) || bpf_get_netns_cookie(ctx) != (v)->s->netns)

static __always_inline struct addr wanted6(struct bpf_sock_addr *ctx)
{
	struct addr a = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
	return a;
}

static __always_inline void want6(struct bpf_sock_addr *ctx, const struct addr *a)
{
	ctx->user_ip6[0] = a->w[0];
	ctx->user_ip6[1] = a->w[1];
	ctx->user_ip6[2] = a->w[2];
	ctx->user_ip6[3] = a->w[3];
}

static __always_inline __u16 wanted_port(struct bpf_sock_addr *ctx)
{
	return bpf_ntohs((__u16)ctx->user_port);
}

// bound is the source that a socket has; zero: none yet. six, here and below, is a constant: the verifier wants the
// fields of a socket read at fixed places.
static __always_inline struct addr bound(struct bpf_sock_addr *ctx, const bool six)
{
	struct addr a = {};
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return a;
	if (!six)
		return mapped(sk->src_ip4);
	a.w[0] = sk->src_ip6[0];
	a.w[1] = sk->src_ip6[1];
	a.w[2] = sk->src_ip6[2];
	a.w[3] = sk->src_ip6[3];
	return a;
}

// remember notes that a socket goes outward, and in whose place the resolver answers it.
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct addr *asked)
{
	if (!ctx->sk)
		return;
	struct past *past = bpf_sk_storage_get(&sockets, ctx->sk, 0, asked ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!past)
		return;
	past->inward = 0;
	past->redirected = !!asked;
	if (asked)
		past->asked = *asked;
}

// protocol is that of a socket, as packets and egress lists have it.
static __always_inline __u8 protocol(struct bpf_sock_addr *ctx)
{
	if (ctx->type == SOCK_STREAM)
		return IPPROTO_TCP; // multipath, too
	return ctx->protocol == IPPROTO_ICMPV6 ? IPPROTO_ICMP : ctx->protocol;
}

// choose gives a socket its agent's address as source. One that has a port already cannot be given an address: its mark
// has the routes choose. To an agent of this host they would choose that agent's own address, so that is refused.
static __always_inline int choose(struct bpf_sock_addr *ctx, const struct view *v, const struct agent *a, const struct addr *to, const bool six)
{
	int err;
	if (!six) {
		struct sockaddr_in sa = {.sin_family = AF_INET};
		sa.sin_addr.s_addr = a->ip4.w[3];
		err = bpf_bind(ctx, (struct sockaddr *)&sa, sizeof(sa));
	} else {
		struct sockaddr_in6 sa = {.sin6_family = AF_INET6};
		const struct addr *own = is_mapped(to) ? &a->ip4 : &a->ip6;
		sa.sin6_addr.in6_u.u6_addr32[0] = own->w[0];
		sa.sin6_addr.in6_u.u6_addr32[1] = own->w[1];
		sa.sin6_addr.in6_u.u6_addr32[2] = own->w[2];
		sa.sin6_addr.in6_u.u6_addr32[3] = own->w[3];
		err = bpf_bind(ctx, (struct sockaddr *)&sa, sizeof(sa));
	}
	if (!err)
		return ALLOW;
	const struct addr *self = is_mapped(to) ? &a->ip4 : &a->ip6;
	if (claimed(v, &owners, to) && !same(to, self))
		return refuse(FOREIGN_SOURCE);
	if (ctx->sk && !ctx->sk->mark) {
		__u32 mark = a->mark;
		bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
	}
	return ALLOW;
}

// redirects reports whether a guarded agent asks some other server for names: only the resolver knows what it may have.
static __always_inline bool redirects(const struct view *v, __u32 id, const struct agent *a, const struct addr *to, __u16 port)
{
	return a && (a->flags & GUARDED) && port == DNS && !unclaimed(v, id) && !is_resolver(v, to);
}

static __always_inline int connecting(struct bpf_sock_addr *ctx, const struct view *v, struct addr *to, bool *redirected, const bool six)
{
	__u32 id = current_agent(v);
	struct agent *a = id ? bpf_map_lookup_elem(&agents, &id) : 0;
	__u16 port = wanted_port(ctx);
	__u8 proto = protocol(ctx);
	struct addr asked = *to;
	if (redirects(v, id, a, to, port)) {
		*to = is_mapped(to) ? v->s->resolver4 : v->s->resolver6;
		*redirected = true;
	}
	remember(ctx, *redirected ? &asked : 0);
	if (!in_overlay(v, to)) {
		if (is_loopback(to)) // judged where it arrives
			return ALLOW;
		if (proto == IPPROTO_UDP && listed(id, to, IPPROTO_ICMP, 0)) // ping asks so for its source; what it sends is judged
			return ALLOW;
		return may_leave(v, id, to, proto, proto == IPPROTO_ICMP ? 0 : port, false);
	}
	if (!a)
		return is_resolver(v, to) && port == DNS ? ALLOW : refuse(STRANGER);
	struct addr from = bound(ctx, six);
	return is_zero(&from) ? choose(ctx, v, a, to, six) : ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr to = mapped(ctx->user_ip4);
	bool redirected = false;
	int verdict = connecting(ctx, &v, &to, &redirected, false);
	if (redirected)
		ctx->user_ip4 = to.w[3];
	return verdict;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr to = wanted6(ctx);
	bool redirected = false;
	int verdict = connecting(ctx, &v, &to, &redirected, true);
	if (redirected)
		want6(ctx, &to);
	return verdict;
}

// sending judges a datagram of a socket that is not connected. from is its source; zero: the kernel's choice, or what
// sending chooses.
static __always_inline int sending(struct bpf_sock_addr *ctx, const struct view *v, struct addr *to, struct addr *from, bool *redirected)
{
	__u32 id = current_agent(v);
	struct agent *a = id ? bpf_map_lookup_elem(&agents, &id) : 0;
	__u16 port = wanted_port(ctx);
	struct addr asked = *to;
	if (redirects(v, id, a, to, port)) {
		*to = is_mapped(to) ? v->s->resolver4 : v->s->resolver6;
		*redirected = true;
		remember(ctx, &asked);
	}
	if (!in_overlay(v, to)) {
		if (is_loopback(to))
			return ALLOW;
		return may_leave(v, id, to, IPPROTO_UDP, port, false);
	}
	if (unclaimed(v, id) && is_resolver(v, from)) // the daemon answers
		return ALLOW;
	if (!a)
		return is_resolver(v, to) && port == DNS ? ALLOW : refuse(STRANGER);
	const struct addr *own = is_mapped(to) ? &a->ip4 : &a->ip6;
	if (is_zero(from))
		*from = *own;
	else if (in_overlay(v, from) && !same(from, own))
		return refuse(FOREIGN_SOURCE);
	return ALLOW;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr to = mapped(ctx->user_ip4), from = mapped(ctx->msg_src_ip4);
	bool redirected = false;
	int verdict = sending(ctx, &v, &to, &from, &redirected);
	if (verdict == ALLOW && in_overlay(&v, &to))
		ctx->msg_src_ip4 = from.w[3];
	if (redirected)
		ctx->user_ip4 = to.w[3];
	return verdict;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr to = wanted6(ctx);
	struct addr from = {{ctx->msg_src_ip6[0], ctx->msg_src_ip6[1], ctx->msg_src_ip6[2], ctx->msg_src_ip6[3]}};
	bool redirected = false;
	int verdict = sending(ctx, &v, &to, &from, &redirected);
	if (verdict == ALLOW && in_overlay(&v, &to)) {
		ctx->msg_src_ip6[0] = from.w[0];
		ctx->msg_src_ip6[1] = from.w[1];
		ctx->msg_src_ip6[2] = from.w[2];
		ctx->msg_src_ip6[3] = from.w[3];
	}
	if (redirected)
		want6(ctx, &to);
	return verdict;
}

// asked_of is the server that a socket asked, if the resolver answered in its place.
static __always_inline struct addr *asked_of(struct bpf_sock_addr *ctx, const struct view *v, const struct addr *from)
{
	if (!ctx->sk || !is_resolver(v, from))
		return 0;
	struct past *past = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	return past && past->redirected ? &past->asked : 0;
}

static __always_inline int pretend4(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr from = mapped(ctx->user_ip4);
	struct addr *asked = asked_of(ctx, &v, &from);
	if (asked)
		ctx->user_ip4 = asked->w[3];
	return ALLOW;
}

static __always_inline int pretend6(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr from = wanted6(ctx);
	struct addr *asked = asked_of(ctx, &v, &from);
	if (asked)
		want6(ctx, asked);
	return ALLOW;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return pretend4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return pretend6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return pretend4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return pretend6(ctx);
}

// binding judges the address that a process wants to have. Whether the address is this machine's does not count, so that
// IP_FREEBIND and IP_TRANSPARENT gain nothing.
static __always_inline int binding(const struct view *v, const struct addr *a)
{
	if (!in_overlay(v, a))
		return ALLOW;
	__u32 id = current_agent(v);
	if (is_resolver(v, a)) // the daemon's
		return unclaimed(v, id) && !(__u32)bpf_get_current_uid_gid() ? ALLOW : refuse(FOREIGN_BIND);
	__u32 owner = claimed(v, &owners, a);
	return owner && owner == id ? ALLOW : refuse(FOREIGN_BIND);
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr a = mapped(ctx->user_ip4);
	return binding(&v, &a);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct view v;
	if (elsewhere(&v, ctx))
		return ALLOW;
	struct addr a = wanted6(ctx);
	return binding(&v, &a);
}

// Sockets for ICMP and raw packets ask no leave to connect or send: the routes choose their source, by their mark. The
// kernel's own raw sockets do not come by here.
SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	if (sk->type != SOCK_RAW && !(sk->type == SOCK_DGRAM && (sk->protocol == IPPROTO_ICMP || sk->protocol == IPPROTO_ICMPV6)))
		return ALLOW;
	struct view v;
	if (elsewhere(&v, sk))
		return ALLOW;
	if (sk->type == SOCK_RAW) {
		struct past *past = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!past)
			return REFUSE;
		past->raw = 1;
	}
	__u32 id = current_agent(&v);
	struct agent *a = id ? bpf_map_lookup_elem(&agents, &id) : 0;
	if (a && !unclaimed(&v, id) && !sk->mark)
		sk->mark = a->mark;
	return ALLOW;
}
